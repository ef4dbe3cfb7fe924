"""Stand-ins for the outside world. They import ports, model, errors and clock, nothing under test.

Every fake passes the conformance suite of its port. Reading order: `world`, `clock`, `kube`,
`journals`, `provider`.
"""
