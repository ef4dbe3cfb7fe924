"""Composition roots: the only place where ports meet adapters, and the only user of kopf."""
