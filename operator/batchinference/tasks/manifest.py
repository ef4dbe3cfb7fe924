"""What a manifest says of where results are; and reading one of this very run that stands in its
output place: then the run is finished, whoever finished it (protocol 3.3, 2.6).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Protocol, runtime_checkable

import msgspec

from batchinference.model.run import Results, Run
from batchinference.model.work import EarlierEnd, Holder
from batchinference.ports import ResultPlace

MANIFEST_SCHEMA = 1


@runtime_checkable
class ReadableResults(Protocol):
    """Optional capability of a ResultPlace: read back what stands there."""

    def manifest(self) -> tuple[str, bytes] | None:
        """Where the manifest is and its JSON; None without one."""


class _Counts(msgspec.Struct):
    total: int
    completed: int
    failed: int
    expired: int
    bad: int = 0


class _Usage(msgspec.Struct, rename="camel"):
    input_tokens: int
    output_tokens: int


class _Cost(msgspec.Struct, rename="camel"):
    currency: str
    estimated: str = ""
    actual: str = ""
    on_demand: str = ""


class _Times(msgspec.Struct, rename="camel"):
    started_at: datetime | None = None
    last_batch_ended_at: datetime | None = None


class _Manifest(msgspec.Struct, rename="camel"):
    schema: int
    run_key: str
    counts: _Counts
    usage: _Usage
    times: _Times
    final: bool = True
    cost: _Cost | None = None
    errors: list[msgspec.Raw] = []


def earlier_end(run: Run, place: ResultPlace, holder: Holder) -> EarlierEnd | None:
    """How this very run ended before; None when it did not, or when its manifest can't be read."""
    if not (holder.finished and holder.run_key == run.key and isinstance(place, ReadableResults)):
        return None
    uri, data = place.manifest() or ("", b"")
    try:
        found = msgspec.json.decode(data, type=_Manifest, strict=False)
    except msgspec.MsgspecError:
        return None
    if found.schema != MANIFEST_SCHEMA or found.run_key != run.key or not found.final:
        return None
    counts, usage = found.counts, found.usage
    results = replace(
        where_results_are(run, place, uri, has_errors=bool(found.errors)),
        completed=counts.completed,
        failed=counts.failed,
        expired=counts.expired,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
    )
    if found.cost is not None:
        cost = found.cost
        results = replace(
            results,
            currency=cost.currency,
            estimated=cost.estimated,
            cost=cost.actual,
            on_demand_cost=cost.on_demand,
        )
    return EarlierEnd(
        results=results,
        rows=counts.total,
        bad=counts.bad,
        started_at=found.times.started_at,
        ended_at=found.times.last_batch_ended_at,
    )


def where_results_are(
    run: Run, place: ResultPlace, manifest_uri: str, *, has_errors: bool
) -> Results:
    """The results of a run, without numbers."""
    is_map = run.output.is_config_map

    def folder(kind: str) -> str:
        return place.part_uri(kind, 0).rpartition("/")[0] + "/"

    return Results(
        results_uri="" if is_map else folder("results"),
        errors_uri=folder("errors") if has_errors and not is_map else "",
        manifest_uri="" if is_map else manifest_uri,
        config_map=run.output.uri.rstrip("/").rpartition("/")[2] if is_map else "",
    )
