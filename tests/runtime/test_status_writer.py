"""What a status write came to is counted as what it was."""

from __future__ import annotations

import pytest

from batchinference.errors import Retry, Superseded
from batchinference.runtime.status_writer import StatusWriter
from builders import job
from fakes.kube import FakeKube
from runtime.house import Counts, ref


class Outcomes(Counts):
    """Metrics that keep the outcomes of writes."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        assert name == "status_writes_total"
        self.told.append(labels["outcome"])


async def test_each_outcome_of_a_write_has_its_own_name() -> None:
    kube, metrics = FakeKube(), Outcomes()
    writer = StatusWriter(kube, metrics, at_once=1)
    version = kube.create(job().build())["metadata"]["resourceVersion"]
    new, old = {"state": "Running"}, {"state": "Pending"}
    assert await writer.write(ref(), old, old, version) is None
    assert metrics.told == [], "nothing to write"
    assert await writer.write(ref(), new, old, version) is not None
    with pytest.raises(Superseded):
        await writer.write(ref(), new, old, version)
    kube.failure_rate = 2.0
    with pytest.raises(Retry):
        await writer.write(ref(), new, old, version)
    kube.failure_rate = 0.0
    kube.delete(ref())
    assert await writer.write(ref(), new, old, version) is None
    assert metrics.told == ["written", "superseded", "failed", "gone"]
