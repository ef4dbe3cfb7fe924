"""The journal of an ended run, compacted: enough to rebuild its status and to never start again.

A receipt stays below 2 KiB and is kept for ever unless a retention is set (protocol 2.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from batchinference.model.run import Run

_SPEC_KEPT = ("providerRef", "model", "operation", "runID")
_MESSAGE_KEPT = 512


def receipt(run: Run) -> Run:
    """The run without what only a live run needs."""
    ordinals = [s.last.ordinal for s in run.shards if s.last]
    verdict = run.verdict
    if verdict is not None and len(verdict.message) > _MESSAGE_KEPT:
        verdict = replace(verdict, message=verdict.message[: _MESSAGE_KEPT - 1] + "…")
    staged = replace(run.staged, first_bad=()) if run.staged else None
    return replace(
        run,
        submitted=run.was_submitted,
        ordinal_floor=max([run.ordinal_floor, *ordinals]),
        shards=(),
        cursor=None,
        staged=staged,
        verdict=verdict,
        spec=_only(run.spec, _SPEC_KEPT),
        provider=replace(run.provider, settings={}),
    )


def _only(spec: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    return {k: v for k, v in spec.items() if k in names}
