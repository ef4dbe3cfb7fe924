"""The reference pages name every field and every constant, and none that are not there."""

from __future__ import annotations

import pytest

from batchinference.model.status import ConditionType, Reason, State
from contract.crds import KINDS, ROOT, Node, field_paths, schema

PAGES = {
    "BatchInferenceJob": "batchinferencejob.md",
    "InferenceProvider": "inferenceprovider.md",
    "ClusterInferenceProvider": "inferenceprovider.md",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_page_names_every_field(kind: str) -> None:
    page = (ROOT / "docs" / "reference" / PAGES[kind]).read_text()
    assert [path for path in field_paths(kind) if f"`{path}`" not in page] == []


@pytest.mark.parametrize("page", sorted(set(PAGES.values())))
def test_the_reference_page_names_no_field_that_is_not_there(page: str) -> None:
    lines = (ROOT / "docs" / "reference" / page).read_text().splitlines()
    named = {line.split("`")[1] for line in lines if line.startswith("| `s")}
    known = {path for kind in KINDS if PAGES[kind] == page for path in field_paths(kind)}
    assert named - known == set()


def test_the_reference_page_shows_each_constant_of_its_field() -> None:
    page = (ROOT / "docs" / "reference" / PAGES["BatchInferenceJob"]).read_text()
    for node in Node("", schema("BatchInferenceJob")).walk():
        for value in node.schema.get("enum", []):
            assert value in page
    for state in State:
        assert state in page
    for kind in ConditionType:
        assert kind in page


def test_the_reference_pages_explain_every_reason() -> None:
    pages = "".join(
        (ROOT / "docs" / "reference" / page).read_text() for page in set(PAGES.values())
    )
    reasons = [value for name, value in vars(Reason).items() if name.isupper()]
    assert [reason for reason in reasons if f"`{reason}`" not in pages] == []
