"""Providers as the model reads them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.errors import InvalidObject
from batchinference.model.batch import Limits
from batchinference.model.codec import decode, encode
from batchinference.model.provider import (
    BedrockProvider,
    ClusterProviderSpec,
    LangChainProvider,
    ModelLimits,
    OpenAIProvider,
    ProviderKind,
    ProviderLimits,
    ProviderSpec,
    not_implemented_fields,
    parse_provider,
)

BEDROCK = {"region": "us-east-1", "serviceRoleARN": "arn:aws:iam::123456789012:role/r"}


def provider(kind: str = "InferenceProvider", **members: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "metadata": {"name": "openai", "namespace": "ml"},
        "spec": members or {"openAI": {}},
    }


@given(st.from_type(ClusterProviderSpec))
def test_every_spec_survives_the_codec(spec: ClusterProviderSpec) -> None:
    assert decode(ClusterProviderSpec, encode(spec), "spec") == spec


def test_a_journal_keeps_a_cluster_spec_as_a_plain_one() -> None:
    found = parse_provider(
        provider("ClusterInferenceProvider", openAI={}, allowedNamespaces={"names": ["ml"]})
    )
    kept = decode(ProviderSpec, encode(found.spec), ignore_unknown=True)
    assert kept == ProviderSpec(open_ai=OpenAIProvider())


@pytest.mark.parametrize(
    ("member", "given_value", "want"),
    [
        ("openAI", {}, OpenAIProvider),
        ("bedrock", BEDROCK, BedrockProvider),
        ("langChain", {"modelProvider": "openai"}, LangChainProvider),
    ],
)
def test_the_member_that_is_set_is_the_provider(
    member: str, given_value: dict[str, Any], want: type
) -> None:
    assert isinstance(parse_provider(provider(**{member: given_value})).spec.provider, want)


@pytest.mark.parametrize("members", [{"quotaGroup": "a"}, {"openAI": {}, "bedrock": BEDROCK}])
def test_exactly_one_provider_must_be_set(members: dict[str, Any]) -> None:
    with pytest.raises(InvalidObject, match="must have exactly one of `openAI`, `bedrock`"):
        parse_provider(provider(**members))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InvalidObject, match="kind: must be one of 'InferenceProvider'"):
        parse_provider(provider("Issuer"))


def test_only_the_cluster_kind_has_allowed_namespaces() -> None:
    with pytest.raises(InvalidObject, match=r"spec\.allowedNamespaces: is not a known field"):
        parse_provider(
            provider(openAI={}, allowedNamespaces={"names": ["ml"]}), ignore_unknown=False
        )


def test_a_namespaced_provider_serves_its_own_namespace() -> None:
    found = parse_provider(provider())
    assert found.kind is ProviderKind.INFERENCE_PROVIDER
    assert not found.is_cluster
    assert found.allows("ml", {})
    assert not found.allows("other", {})


@pytest.mark.parametrize(
    ("allowed", "labels", "want", "reason"),
    [
        (None, {}, False, "absent allows nobody"),
        ({"names": ["ml"]}, {}, True, "named"),
        ({"names": ["other"]}, {}, False, "not named"),
        ({"names": ["other"], "selector": {}}, {}, True, "an empty selector matches all"),
        ({"selector": {"matchLabels": {"a": "b"}}}, {"a": "b", "c": "d"}, True, "label equal"),
        ({"selector": {"matchLabels": {"a": "b"}}}, {"a": "x"}, False, "label differs"),
        ({"selector": {"matchLabels": {"a": "b"}}}, {}, False, "label absent"),
        ({"selector": {"matchExpressions": [("a", "In", ["b"])]}}, {"a": "b"}, True, "in"),
        ({"selector": {"matchExpressions": [("a", "In", ["b"])]}}, {}, False, "absent is not in"),
        ({"selector": {"matchExpressions": [("a", "NotIn", ["b"])]}}, {}, True, "absent is not in"),
        ({"selector": {"matchExpressions": [("a", "NotIn", ["b"])]}}, {"a": "b"}, False, "in"),
        ({"selector": {"matchExpressions": [("a", "Exists", [])]}}, {"a": ""}, True, "there"),
        ({"selector": {"matchExpressions": [("a", "Exists", [])]}}, {}, False, "not there"),
        ({"selector": {"matchExpressions": [("a", "DoesNotExist", [])]}}, {}, True, "not there"),
        (
            {"selector": {"matchExpressions": [("a", "DoesNotExist", [])]}},
            {"a": ""},
            False,
            "there",
        ),
        (
            {
                "selector": {
                    "matchLabels": {"a": "b"},
                    "matchExpressions": [("c", "Exists", [])],
                }
            },
            {"a": "b"},
            False,
            "all requirements must be met",
        ),
    ],
)
def test_a_cluster_provider_serves_the_namespaces_it_allows(
    allowed: dict[str, Any] | None, labels: dict[str, str], want: bool, reason: str
) -> None:
    members: dict[str, Any] = {"openAI": {}}
    if allowed is not None:
        selector = allowed.get("selector", {})
        if "matchExpressions" in selector:
            selector["matchExpressions"] = [
                {"key": k, "operator": o, "values": v} for k, o, v in selector["matchExpressions"]
            ]
        members["allowedNamespaces"] = allowed
    found = parse_provider(provider("ClusterInferenceProvider", **members))
    assert found.is_cluster
    assert found.allows("ml", labels) is want, reason


def test_limits_of_a_model_are_found_by_its_name() -> None:
    limits = parse_provider(
        provider(openAI={}, limits={"models": [{"name": "a", "maxActiveBatches": 2}]})
    ).spec.limits
    assert limits.of_model("a") == ModelLimits("a", max_active_batches=2)
    assert limits.of_model("b") == ModelLimits("b")


PUBLISHED = Limits(50, 500, 5, 2, max_active_batches=20)


@pytest.mark.parametrize(
    ("limits", "want", "reason"),
    [
        (ProviderLimits(), PUBLISHED, "nothing is said"),
        (
            ProviderLimits(1, 2, 3, 4, 5, 6, 7),
            Limits(3, 4, 5, 6, 1, 2, 7),
            "the provider's own, each in its place",
        ),
        (
            ProviderLimits(1, 2, 3, 4, 5, 6, 7, (ModelLimits("a", 11, 12, 13, 14, 16),)),
            Limits(13, 14, 5, 16, 11, 12, 7),
            "the model's before the provider's",
        ),
        (
            ProviderLimits(max_enqueued_tokens=9, models=(ModelLimits("b", 11),)),
            Limits(50, 500, 5, 2, 20, 9),
            "what is said of another model is nothing to this one",
        ),
    ],
)
def test_limits_stand_over_the_published_ones(
    limits: ProviderLimits, want: Limits, reason: str
) -> None:
    assert limits.over(PUBLISHED, "a") == want, reason


@pytest.mark.parametrize(
    ("members", "want"),
    [
        ({"openAI": {}, "limits": {"maxActiveBatches": 1}}, ()),
        ({"bedrock": BEDROCK, "unknownOutcomePolicy": "Halt", "quotaGroup": ""}, ()),
        ({"langChain": {"modelProvider": "openai"}}, ("spec.langChain",)),
        ({"openAI": {}, "quotaGroup": "a"}, ()),
        ({"openAI": {}, "unknownOutcomePolicy": "Resubmit"}, ()),
        (
            {
                "openAI": {},
                "pricing": [
                    {
                        "model": "m",
                        "inputPerMillionTokens": "1",
                        "outputPerMillionTokens": "1",
                    }
                ],
            },
            (),
        ),
    ],
)
def test_what_this_version_cannot_act_on_is_named(
    members: dict[str, Any], want: tuple[str, ...]
) -> None:
    assert not_implemented_fields(parse_provider(provider(**members)).spec) == want
