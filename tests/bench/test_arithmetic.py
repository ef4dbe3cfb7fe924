"""The bench's own arithmetic: a figure that is computed wrongly is worse than none."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from bench import OPERATOR, Figure, _Job, _writes, percentile, table


@pytest.mark.parametrize(
    ("count", "percent", "want", "reason"),
    [
        (1, 50, 1, "one value is every percentile"),
        (20, 50, 10, "the rank is rounded up, not the value"),
        (20, 99, 20, "with few values the 99th is the worst"),
        (200, 99, 198, "with many it is not"),
    ],
)
def test_a_percentile_is_a_value_that_was_measured(
    count: int, percent: float, want: float, reason: str
) -> None:
    assert percentile([float(n) for n in range(count, 0, -1)], percent) == want, reason


@pytest.mark.parametrize(
    ("value", "target", "better", "want", "reason"),
    [
        (0.5, 0.5, "higher", "met", "the target itself is enough"),
        (0.49, 0.5, "higher", "MISSED", "a ratio below"),
        (150.0, 150.0, "lower", "met", "the target itself is enough"),
        (151.0, 150.0, "lower", "MISSED", "a peak above"),
        (1.0, None, "lower", "", "nothing was promised"),
    ],
)
def test_a_missed_target_is_marked(
    value: float, target: float | None, better: str, want: str, reason: str
) -> None:
    figure = Figure("f", value, "u", None, target, better)
    assert figure.verdict == want, reason
    assert table([figure]).endswith(f"| {want} |")


def _event(
    verb: str, resource: str, name: str, at: str, *, code: int = 200, user: str = OPERATOR
) -> Mapping[str, Any]:
    plural, _, sub = resource.partition("/")
    return {
        "verb": verb,
        "user": {"username": user},
        "objectRef": {"resource": plural, "subresource": sub, "name": name},
        "responseStatus": {"code": code},
        "requestReceivedTimestamp": f"2026-01-01T00:00:{at}Z",
    }


def test_writes_are_counted_by_job_until_the_one_that_makes_it_complete() -> None:
    job = _Job("small", "key", datetime.fromisoformat("2026-01-01T00:00:05.000000Z"))
    status = "batchinferencejobs/status"
    events = [
        _event("create", "batchinferencejobs", "small", "00.1", user="admin"),
        _event("get", "configmaps", "run-key", "00.2"),
        _event("create", "configmaps", "run-key", "00.3"),
        _event("create", "configmaps", "run-other", "00.4"),
        _event("patch", "batchinferencejobs", "small", "00.5", code=422),
        _event("patch", "batchinferencejobs", "small-2", "00.5"),
        _event("create", "events", "small.7c10", "01.0"),
        _event("patch", status, "small", "04.9"),
        _event("update", "configmaps", "run-key", "05.1"),
        _event("patch", status, "small", "05.2"),
        _event("patch", "batchinferencejobs", "small", "05.3"),
    ]
    found = _writes(events, job)
    assert found.kinds == {"journal": 2, "refused": 1, "Events": 1, "status": 2}
    assert found.after == 1
