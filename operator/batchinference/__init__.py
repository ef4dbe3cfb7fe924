"""Batch Inference Operator: paid, asynchronous LLM batch jobs from Kubernetes."""
