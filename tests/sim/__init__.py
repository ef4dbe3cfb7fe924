"""Deterministic simulation of the whole runtime: seeds become scenarios, scenarios become plays.

Reading order: `scenario` (what can happen), `stage` (one play), `watcher` (what may not happen),
`shrink` (a smaller scenario that fails alike), `mutants` (bugs that must be caught).
"""
