"""The loop: store, keyed queue, reconciler, effects, accounts, status writer."""
