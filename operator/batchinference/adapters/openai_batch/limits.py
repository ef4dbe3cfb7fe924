"""OpenAI's published limits of a batch, with the provider object's own applied. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchinference.model.batch import Limits
from batchinference.model.codec import decode
from batchinference.model.provider import ProviderLimits

MAX_RECORDS = 50_000
MAX_BYTES = 200 * 10**6
"""Published as "200 MB"; the smaller reading is the one that every server takes."""
MAX_RECORD_BYTES = 16 * 10**6
"""Nothing is published; a line is one request, and no server's body limit is known to be larger."""


def default_limits(settings: Mapping[str, Any], model: str, operation: str) -> Limits:
    """The limits of one model's batches; the model's entry wins over the provider's.

    For `Embeddings` the record limit counts input strings at the provider: staging makes one
    record per line, so a line with a list of strings counts as one here.

    Args:
        settings: the provider's spec as the API server has it.
        model: the job's model.
        operation: the job's operation; OpenAI's limits are the same for all.

    Raises:
        InvalidObject: `limits` is malformed.
    """
    del operation
    own = decode(ProviderLimits, settings.get("limits") or {}, "spec.limits", ignore_unknown=True)
    of_model = own.of_model(model)
    return Limits(
        max_records_per_batch=of_model.max_records_per_batch
        or own.max_records_per_batch
        or MAX_RECORDS,
        max_bytes_per_batch=of_model.max_bytes_per_batch or own.max_bytes_per_batch or MAX_BYTES,
        max_bytes_per_record=own.max_bytes_per_record or MAX_RECORD_BYTES,
        min_records_per_batch=of_model.min_records_per_batch or own.min_records_per_batch or 1,
        max_active_batches=of_model.max_active_batches or own.max_active_batches,
        max_enqueued_tokens=of_model.max_enqueued_tokens or own.max_enqueued_tokens,
        max_concurrent_uploads=own.max_concurrent_uploads or 2,
    )
