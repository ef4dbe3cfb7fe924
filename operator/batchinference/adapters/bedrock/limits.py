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
    minimum = next((n for part, n in MIN_RECORDS_BY_MODEL.items() if part in model), MIN_RECORDS)
    published = Limits(
        MAX_RECORDS, MAX_BYTES, MAX_RECORD_BYTES, minimum, max_active_batches=MAX_ACTIVE
    )
    return own.over(published, model)
