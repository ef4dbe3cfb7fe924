"""Which objects are ours to act on."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from batchinference.model.job import KIND as JOB_KIND
from batchinference.model.job import MANAGED_BY
from batchinference.runtime.store import Store
from builders import job, openai_provider


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


def test_the_end_of_an_earlier_provider_does_not_take_its_successor_away() -> None:
    store, kind = Store(), "InferenceProvider"
    old, new = (copy.deepcopy(openai_provider()) for _ in range(2))
    old["metadata"] |= {"uid": "old", "resourceVersion": "5"}
    new["metadata"] |= {"uid": "new", "resourceVersion": "7"}
    store.observe(kind, "ADDED", old)
    (key,) = store.observe(kind, "ADDED", new)
    assert store.observe(kind, "MODIFIED", old) == set()
    assert store.observe(kind, "DELETED", old) == set()
    assert store.providers[key].provider.metadata.uid == "new"
    assert store.observe(kind, "DELETED", new) == {key}
    assert not store.providers


def test_an_object_is_gone_when_another_has_its_name_and_late_news_changes_nothing() -> None:
    store = Store()
    old, new = (job().stamped().build() for _ in range(2))
    old["metadata"] |= {"uid": "old", "resourceVersion": "5"}
    new["metadata"] |= {"uid": "new", "resourceVersion": "7"}
    (key,) = store.observe(JOB_KIND, "ADDED", old)
    assert store.observe(JOB_KIND, None, new) == {key}
    assert store.was_deleted("old")
    assert [found.metadata.uid for found in store.jobs_of(key)] == ["new"]
    assert store.observe(JOB_KIND, "MODIFIED", old) == set()
    store.observe(JOB_KIND, "DELETED", old)
    assert [found.metadata.uid for found in store.jobs_of(key)] == ["new"]
