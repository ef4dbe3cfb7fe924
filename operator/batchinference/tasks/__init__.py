"""The heavy work as re-runnable steps: functions of a run, a shard and ports, run by workers.

A task knows records and ports. It must not know Kubernetes objects, conditions or the loop.
"""
