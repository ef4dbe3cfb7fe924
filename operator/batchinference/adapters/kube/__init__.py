"""Kubernetes: the API server's clients, and the ports that stand on them.

Owns paths, verbs, labels and preconditions. It must not know providers, tasks or what a run is for.
"""
