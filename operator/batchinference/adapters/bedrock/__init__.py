"""AWS Bedrock batch inference: model invocation jobs over data in S3."""

from batchinference.adapters.bedrock.data import BedrockData
from batchinference.adapters.bedrock.limits import default_limits
from batchinference.adapters.bedrock.provider import BedrockProvider

__all__ = ["BedrockData", "BedrockProvider", "default_limits"]
