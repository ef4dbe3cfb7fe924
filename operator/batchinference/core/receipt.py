"""The journal of an ended run, compacted: enough to rebuild its status and to never start again.

A receipt stays below 2 KiB and is kept for ever unless a retention is set (protocol 2.5). What
grows with its user's choices is written once: the results' URIs are relative to the output place.
(A place whose key takes nearly all that S3 allows, 1024 bytes, costs some bytes more.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from batchinference.model.codec import encode
from batchinference.model.earlier import Earlier
from batchinference.model.run import Place, Results, Run, Verdict

LIMIT = 2048
"""Bytes of JSON that a receipt may take."""

_SPEC_KEPT = ("providerRef", "model", "operation", "runID")
_HERE = "./"


def receipt(run: Run) -> Run:
    """The run without what only a live run needs."""
    ordinals = [made.ordinal for shard in run.shards for made in shard.made]
    made = replace(
        run,
        submitted=run.was_submitted,
        ordinal_floor=max([run.ordinal_floor, run.ordinal_found, *ordinals]),
        ordinal_found=0,
        shards=(),
        cursor=None,
        parked_s=0,
        input=None,
        staged=replace(run.staged, first_bad=()) if run.staged else None,
        results=_relative(run.results, run.output.uri) if run.results else None,
        staging=Place(""),
        earlier=_unasked(run),
        price=None,
        left=(),
        spec=_only(run.spec, _SPEC_KEPT),
        provider=replace(run.provider, settings={}),
    )
    return replace(made, verdict=_cut(made, run.verdict)) if run.verdict else made


def _unasked(run: Run) -> Earlier | None:
    """What was not all found is looked for when the run starts afresh."""
    return run.earlier and Earlier(asking=True, expected=run.earlier.expected)


def absolute(run: Run) -> Results | None:
    """The results of a run, or of its receipt, with whole URIs."""
    return run.results and _mapped(run.results, lambda uri: _joined(run.output.uri, uri))


def _relative(results: Results, place: str) -> Results:
    def shortened(uri: str) -> str:
        inside = place.endswith("/") and uri.startswith(place)
        return _HERE + uri.removeprefix(place) if inside else uri

    return _mapped(results, shortened)


def _joined(place: str, uri: str) -> str:
    return place + uri.removeprefix(_HERE) if uri.startswith(_HERE) else uri


def _mapped(results: Results, change: Callable[[str], str]) -> Results:
    return replace(
        results,
        results_uri=change(results.results_uri),
        errors_uri=change(results.errors_uri),
        manifest_uri=change(results.manifest_uri),
    )


def _cut(run: Run, verdict: Verdict) -> Verdict:
    """The verdict with as much of its message as there is room for."""
    while (over := _size(replace(run, verdict=verdict)) - LIMIT) > 0 and verdict.message != "…":
        # A character takes up to twelve bytes of JSON, so several rounds may be needed.
        kept = max(len(verdict.message) - 1 - max(over // 12, 1), 0)
        verdict = replace(verdict, message=verdict.message[:kept] + "…")
    return verdict


def _size(run: Run) -> int:
    return len(json.dumps(encode(run)))


def _only(spec: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    return {k: v for k, v in spec.items() if k in names}
