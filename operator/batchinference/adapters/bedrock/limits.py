"""Bedrock's published limits of a batch, with the provider object's own applied. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchinference.model.batch import Limits
from batchinference.model.codec import decode
from batchinference.model.provider import ProviderLimits

MAX_RECORDS = 50_000
MAX_BYTES = 10**9
"""Published as "1 GB" per input file, and not adjustable; a batch here is one file."""
MAX_RECORD_BYTES = 25_000_000
"""The largest body that a model takes by AWS's description of InvokeModel."""
MIN_RECORDS = 100
MIN_RECORDS_BY_MODEL = {"meta.llama4-scout": 50}
"""Models with another minimum, by a part of their id."""
MAX_ACTIVE = 20


def default_limits(settings: Mapping[str, Any], model: str, operation: str) -> Limits:
    """The limits of one model's batches; the model's entry wins over the provider's.

    Args:
        settings: the provider's spec as the API server has it.
        model: the job's model.
        operation: the job's operation; Bedrock's limits are the same for all.

    Raises:
        InvalidObject: `limits` is malformed.
    """
    del operation
    own = decode(ProviderLimits, settings.get("limits") or {}, "spec.limits", ignore_unknown=True)
    of_model = own.of_model(model)
    minimum = next((n for part, n in MIN_RECORDS_BY_MODEL.items() if part in model), MIN_RECORDS)
    return Limits(
        max_records_per_batch=of_model.max_records_per_batch
        or own.max_records_per_batch
        or MAX_RECORDS,
        max_bytes_per_batch=of_model.max_bytes_per_batch or own.max_bytes_per_batch or MAX_BYTES,
        max_bytes_per_record=own.max_bytes_per_record or MAX_RECORD_BYTES,
        min_records_per_batch=of_model.min_records_per_batch
        or own.min_records_per_batch
        or minimum,
        max_active_batches=of_model.max_active_batches or own.max_active_batches or MAX_ACTIVE,
        max_enqueued_tokens=of_model.max_enqueued_tokens or own.max_enqueued_tokens,
        max_concurrent_uploads=own.max_concurrent_uploads or 2,
    )
