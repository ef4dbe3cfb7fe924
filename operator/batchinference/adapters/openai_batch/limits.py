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
    return own.over(Limits(MAX_RECORDS, MAX_BYTES, MAX_RECORD_BYTES), model)
