"""Which objects are ours to act on."""

from __future__ import annotations

from typing import Any

import pytest

from batchinference.model.job import KIND as JOB_KIND
from batchinference.model.job import MANAGED_BY
from batchinference.runtime.store import Store
from builders import job


@pytest.mark.parametrize(
    ("managed_by", "ours"),
    [("", True), (None, True), (MANAGED_BY, True), ("example.com/queue", False)],
)
def test_a_job_that_names_another_controller_is_managed_elsewhere(
    managed_by: Any, ours: bool
) -> None:
    body = job().with_spec(managedBy=managed_by).stamped().build()
    if managed_by is None:
        del body["spec"]["managedBy"]
    assert bool(Store().observe(JOB_KIND, "ADDED", body)) == ours
