"""Metrics and JSON logs. Never prompts, answers, credentials or signed URLs."""
