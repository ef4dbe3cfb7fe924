"""OpenAI's Files and Batch API, and every server that speaks the same."""

from batchinference.adapters.openai_batch.data import OpenAIData
from batchinference.adapters.openai_batch.limits import default_limits
from batchinference.adapters.openai_batch.provider import OpenAIBatchProvider

__all__ = ["OpenAIBatchProvider", "OpenAIData", "default_limits"]
