"""What is said of a field that this version cannot act on."""

from __future__ import annotations

import pytest

from batchinference.core.problem import not_implemented
from batchinference.model.job import not_implemented_fields, parse_job
from builders import job

TOLD = [
    ({"budget": {"maxCost": "1.00"}}, "`spec.budget`.", "an object is not spelled out"),
]


@pytest.mark.parametrize(("spec", "told", "reason"), TOLD)
def test_a_field_is_told_with_its_value(spec, told, reason) -> None:
    body = job().build()
    body["spec"].update(spec)
    found = parse_job(body).spec
    message = not_implemented(found, not_implemented_fields(found))
    assert told in message, reason
    assert "secret" not in message
    assert "Remove the field" in message


def test_several_fields_are_told_together() -> None:
    body = job().build()
    body["spec"].update(budget={"maxCost": "1.00"}, priority=7)
    message = not_implemented(parse_job(body).spec, ["spec.priority", "spec.budget"])
    assert "`spec.priority: 7` and `spec.budget`" in message
