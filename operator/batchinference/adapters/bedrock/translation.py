"""Which translation a job's records go through."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def encode(body: Mapping[str, Any]) -> dict[str, Any]:
    """A chat request as a Converse body. Raises UnsupportedRequest."""
    found: dict[str, Any] = _converse().encode(body)
    return found


def decode(output: Mapping[str, Any], model: str) -> tuple[dict[str, Any], int, int]:
    """A Converse answer as a chat completion, its input and its output tokens."""
    found: tuple[dict[str, Any], int, int] = _converse().decode(output, model)
    return found


def _converse() -> Any:
    return importlib.import_module("batchinference.records.translate.converse")
