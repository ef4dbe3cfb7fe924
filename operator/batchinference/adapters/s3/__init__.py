"""Objects in S3 and in stores that speak the same."""

from batchinference.adapters.s3.store import S3Store

__all__ = ["S3Store"]
