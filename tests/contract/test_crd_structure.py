"""Rules that every CRD of ours keeps: described, bounded, typed, explained."""

from __future__ import annotations

import re
from typing import Any

import pytest

from contract.crds import KINDS, Node, crd, nodes, problems_at, schema, version

ALL = [pytest.param(kind, node, id=f"{kind}:{node.path}") for kind in KINDS for node in nodes(kind)]
FREE_JSON = {"spec.parameters.extra{}", "spec.parameters.responseFormat.jsonSchema.schema{}"}
"""The only places of a spec whose content we do not know."""

every_field = pytest.mark.parametrize(("kind", "node"), ALL)
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_field
def test_it_is_described_in_sentences(kind: str, node: Node) -> None:
    text = node.schema.get("description", "")
    assert len(text) >= 12, "say what it is"
    assert text[0].isupper() or text[0] in "'`", "a sentence"
    assert text.endswith("."), "a whole one"
    assert "\n" not in text, "folded"


@every_field
def test_it_is_typed_and_bounded(kind: str, node: Node) -> None:
    found = node.schema
    if node.path in FREE_JSON:
        assert found["x-kubernetes-preserve-unknown-fields"] is True
        return
    match found["type"]:
        case "string":
            assert "enum" in found or "maxLength" in found
        case "integer":
            assert {"minimum", "maximum", "format"} <= found.keys()
            limit = {"int32": 2**31 - 1, "int64": 2**53 - 1}[found["format"]]
            assert found["maximum"] <= limit, "JSON numbers are safe up to 2^53"
        case "array":
            assert {"maxItems", "items", "x-kubernetes-list-type"} <= found.keys()
        case "object":
            assert ("properties" in found) != ("additionalProperties" in found)
            assert "properties" in found or "maxProperties" in found
        case other:
            assert other == "boolean", "numbers with fractions are decimal strings"


@every_field
def test_its_list_keys_are_always_there(kind: str, node: Node) -> None:
    found = node.schema
    if found.get("x-kubernetes-list-type") != "map":
        assert "x-kubernetes-list-map-keys" not in found
        return
    item = found["items"]
    for key in found["x-kubernetes-list-map-keys"]:
        assert key in item["required"] or "default" in item["properties"][key]


@every_field
def test_it_uses_no_keyword_that_structural_schemas_forbid(kind: str, node: Node) -> None:
    forbidden = {"$ref", "definitions", "patternProperties", "uniqueItems", "nullable", "oneOf"}
    assert not forbidden & node.schema.keys()
    assert not {"anyOf", "allOf"} & node.schema.keys(), "CEL has better messages"
    assert node.schema.get("additionalProperties") is not False


@every_field
def test_only_status_and_free_json_keep_unknown_fields(kind: str, node: Node) -> None:
    if node.schema.get("x-kubernetes-preserve-unknown-fields"):
        assert node.path in FREE_JSON or node.path.split(".")[0] == "status"


@every_field
def test_its_names_and_values_are_spelt_as_the_conventions_say(kind: str, node: Node) -> None:
    name = node.path.rsplit(".", 1)[-1].rstrip("[]{}")
    assert re.fullmatch(r"[a-z][a-z0-9]*([A-Z][a-zA-Z0-9]*)*", name)
    assert not re.search(r"(Id|Url|Uri|Arn|Api)([A-Z]|s?$)", name), "acronyms stand in capitals"
    assert not name.endswith("Timestamp"), "times end in Time"
    for value in node.schema.get("enum", []):
        assert re.fullmatch(r"[A-Z][A-Za-z]*", value)


@every_field
def test_its_pattern_is_anchored_and_plain(kind: str, node: Node) -> None:
    pattern = node.schema.get("pattern")
    if pattern is not None:
        re.compile(pattern)
        assert pattern.startswith("^")
        assert pattern.endswith("$")
        assert "(?" not in pattern, "the API server's engine has no look-around"


@every_field
def test_its_default_is_legal_and_not_of_a_required_field(kind: str, node: Node) -> None:
    for name, child in node.schema.get("properties", {}).items():
        if "default" in child:
            assert name not in node.schema.get("required", [])
            assert problems_at(child, child["default"]) == []


@every_field
def test_its_rules_explain_themselves(kind: str, node: Node) -> None:
    for rule in node.schema.get("x-kubernetes-validations", []):
        message = rule["message"]
        assert re.search(r"\bmust\b", message)
        assert not message.endswith("."), "the server puts it into a sentence"
        if "oldSelf" in rule["rule"]:
            assert rule["reason"] == "FieldValueForbidden"
        for step in rule.get("fieldPath", "").split(".")[1:]:
            assert step in str(node.schema["properties"])


@every_kind
def test_it_is_one_version_of_our_group(kind: str) -> None:
    spec = crd(kind)["spec"]
    names = spec["names"]
    assert spec["group"] == "batchinference.dev"
    assert crd(kind)["metadata"]["name"] == f"{names['plural']}.batchinference.dev"
    assert (names["plural"], names["singular"]) == (f"{kind.lower()}s", kind.lower())
    assert names["listKind"] == f"{kind}List"
    assert names["categories"] == ["batchinference"]
    assert spec["scope"] == ("Cluster" if kind.startswith("Cluster") else "Namespaced")
    found = version(kind)
    assert (found["name"], found["served"], found["storage"]) == ("v1alpha1", True, True)
    assert found["subresources"] == {"status": {}}


def test_short_names_are_unlikely_to_be_taken() -> None:
    assert [crd(kind)["spec"]["names"]["shortNames"] for kind in KINDS] == [
        ["bij"],
        ["bip"],
        ["cbip"],
    ]


@every_kind
def test_its_status_says_that_nobody_has_looked_yet(kind: str) -> None:
    assert schema(kind, "status")["default"] == {"observedGeneration": -1}


def declared(kind: str, path: str) -> dict[str, Any]:
    node = schema(kind)
    for step in re.sub(r"\[.*?\]", ".[]", path).strip(".").split("."):
        node = node["items"] if step == "[]" else node["properties"][step]
    return node


@every_kind
def test_its_columns_show_declared_fields_of_their_type(kind: str) -> None:
    for column in version(kind)["additionalPrinterColumns"]:
        assert column["description"].endswith(".")
        if column["jsonPath"] == ".metadata.creationTimestamp":
            assert column["type"] == "date"
            continue
        found = declared(kind, column["jsonPath"])
        want = "date" if found.get("format") == "date-time" else found["type"]
        assert column["type"] == want, column["name"]


def test_a_job_shows_what_its_user_looks_for() -> None:
    columns = version("BatchInferenceJob")["additionalPrinterColumns"]
    normal = [column["name"] for column in columns if not column.get("priority")]
    wide = [column["name"] for column in columns if column.get("priority")]
    assert normal == ["State", "Provider", "Model", "Progress", "Age"]
    assert wide == ["External-ID", "Started", "Completed", "Failed-Reqs", "Reason"]


@every_kind
def test_its_selectable_fields_are_declared_scalars(kind: str) -> None:
    fields = version(kind)["selectableFields"]
    assert len(fields) <= 8, "the API server takes no more"
    for field in fields:
        found = declared(kind, field["jsonPath"])
        assert found["type"] in {"string", "boolean", "integer"}
