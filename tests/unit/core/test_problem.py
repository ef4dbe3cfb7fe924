"""What is said of a field that this version cannot act on."""

from __future__ import annotations

import pytest

from batchinference.core.problem import not_implemented
from batchinference.model.job import parse_job
from builders import job

TOLD = [
    (["spec.priority"], "`spec.priority: 7`", "a number"),
    (["spec.promptTemplate"], "`spec.promptTemplate`.", "an object is not spelled out"),
    (["spec.priority", "spec.budget"], "`spec.priority: 7` and `spec.budget`", "several"),
]


@pytest.mark.parametrize(("paths", "told", "reason"), TOLD)
def test_a_field_is_told_with_its_value(paths: list[str], told: str, reason: str) -> None:
    body = job().build()
    body["spec"].update(priority=7, budget={"maxCost": "1.00"})
    body["spec"]["promptTemplate"] = {"prompt": "secret {{ a }}"}
    message = not_implemented(parse_job(body).spec, paths)
    assert told in message, reason
    assert "secret" not in message
    assert "Remove the field" in message
