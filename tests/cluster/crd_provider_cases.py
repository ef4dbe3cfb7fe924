"""Providers of both kinds that the API server must take or refuse."""

from __future__ import annotations

from typing import Any

from cluster.crd_cases import ABSENT, BEDROCK, ROLE, SEGMENTS, STORAGE, Case, merged

ONE_PROVIDER = "must have exactly one of `openAI`, `bedrock` and `langChain`"
NEEDS_STORAGE = "`storage.s3` and `storage.stagingURI` must be set for `bedrock`"
LIVE = {"langChain": {"modelProvider": "openai"}}


def openai(**members: Any) -> dict[str, Any]:
    return {"openAI": members}


def prefixes(*uris: str) -> dict[str, Any]:
    return {"storage": merged(STORAGE, {"s3": {"allowedPrefixes": list(uris)}})}


def staging(uri: str) -> dict[str, Any]:
    return {"storage": merged(STORAGE, {"stagingURI": uri})}


def limits(**members: Any) -> dict[str, Any]:
    return {"limits": members}


def price(**members: Any) -> dict[str, Any]:
    whole = {"model": "m", "inputPerMillionTokens": "0.4", "outputPerMillionTokens": "1.6"}
    return {"pricing": [whole | members]}


PROVIDERS = [
    Case("OpenAI without a key", {}),
    Case("Bedrock", {}, base=BEDROCK),
    Case("LangChain", {}, base=LIVE),
    Case("no provider", {"openAI": ABSENT}, ONE_PROVIDER),
    Case("two providers", LIVE, ONE_PROVIDER),
    Case("an unknown field", {"endpoint": "x"}, 'unknown field "spec.endpoint"'),
    # ---- OpenAI
    Case("a server in the cluster", openai(baseURL="http://vllm.ml.svc:8000/v1")),
    *(
        Case(f"the endpoint {url}", openai(baseURL=url), "spec.openAI.baseURL in body should match")
        for url in (
            "https://api.openai.com/v1/",
            "https://user:secret@example.com/v1",
            "https://example.com/v1?key=secret",
            "https://example.com/v1#x",
            "ftp://example.com",
        )
    ),
    Case("a header", openai(headers=[{"name": "X-Team", "value": "ml"}])),
    *(
        Case(
            f"the header {name}",
            openai(headers=[{"name": name, "value": "x"}]),
            "must not be a header that the operator sets itself",
        )
        for name in ("Authorization", "authorization", "Host", "OpenAI-Project")
    ),
    Case("a header with a colon", openai(headers=[{"name": "a:", "value": "x"}]), "should match"),
    Case("a header with a line break", openai(headers=[{"name": "a", "value": "x\ny"}]), "match"),
    Case(
        "a header twice",
        openai(headers=[{"name": "a", "value": "x"}, {"name": "a", "value": "y"}]),
        "Duplicate value",
    ),
    Case("a CA bundle", openai(caBundle="-----BEGIN CERTIFICATE-----\nx\n")),
    Case("a CA bundle in base64", openai(caBundle="LS0tLS1CRUdJTg=="), "must hold certificates"),
    Case("a week of results", openai(outputExpiresAfterSeconds=604800)),
    Case("less than a week", openai(outputExpiresAfterSeconds=604799), "equal to 604800"),
    Case("more than 30 days", openai(outputExpiresAfterSeconds=2592001), "equal to 2592000"),
    Case("a window of a day", openai(completionWindow="24h")),
    Case("a window in words", openai(completionWindow="soon"), "should match"),
    Case("half a key reference", openai(apiKeySecretRef={"name": "a"}), "key: Required value"),
    # ---- Bedrock
    Case("Bedrock without storage", {"storage": ABSENT}, NEEDS_STORAGE, base=BEDROCK),
    Case(
        "Bedrock without staging", {"storage": {"stagingURI": ABSENT}}, NEEDS_STORAGE, base=BEDROCK
    ),
    Case(
        "no service role", {"bedrock": {"serviceRoleARN": ABSENT}}, "Required value", base=BEDROCK
    ),
    Case(
        "a user as service role",
        {"bedrock": {"serviceRoleARN": ROLE.replace("role", "user")}},
        "should match",
        base=BEDROCK,
    ),
    Case("a region in words", {"bedrock": {"region": "Virginia"}}, "should match", base=BEDROCK),
    Case(
        "an external id alone",
        {"bedrock": {"externalID": "abc"}},
        "must not be set without",
        base=BEDROCK,
    ),
    Case(
        "another account", {"bedrock": {"externalID": "abc", "assumeRoleARN": ROLE}}, base=BEDROCK
    ),
    Case(
        "a bucket owner", {"bedrock": {"bucketOwner": "12345"}}, "at least 12 chars", base=BEDROCK
    ),
    Case("a tag", {"bedrock": {"tags": [{"key": "team", "value": ""}]}}, base=BEDROCK),
    Case(
        "a tag of AWS",
        {"bedrock": {"tags": [{"key": "aws:x", "value": ""}]}},
        "must not start with 'aws:'",
        base=BEDROCK,
    ),
    Case(
        "23 hours", {"bedrock": {"timeoutHours": 23}}, "greater than or equal to 24", base=BEDROCK
    ),
    Case(
        "169 hours", {"bedrock": {"timeoutHours": 169}}, "less than or equal to 168", base=BEDROCK
    ),
    Case(
        "a network",
        {"bedrock": {"vpcConfig": {"subnetIDs": ["subnet-1"], "securityGroupIDs": ["sg-1"]}}},
        base=BEDROCK,
    ),
    Case(
        "a network without groups",
        {"bedrock": {"vpcConfig": {"subnetIDs": ["subnet-1"], "securityGroupIDs": []}}},
        "at least 1 items",
        base=BEDROCK,
    ),
    # ---- LangChain
    Case("half a call a second", {"langChain": {"requestsPerSecond": "0.5"}}, base=LIVE),
    Case(
        "no call a second",
        {"langChain": {"requestsPerSecond": "0.00"}},
        "must be larger than zero",
        base=LIVE,
    ),
    Case("too many calls", {"langChain": {"maxConcurrency": 1001}}, "equal to 1000", base=LIVE),
    # ---- storage
    Case("storage", {"storage": STORAGE}),
    Case(
        "staging without a store",
        {"storage": {"stagingURI": "s3://bucket/x/"}},
        "`s3` must be set where",
    ),
    Case("prefixes", prefixes("s3://bucket/", "s3://bucket/${namespace}/a b/")),
    Case("a prefix without a slash", prefixes("s3://bucket/a"), "should match"),
    Case(
        "a prefix with another variable", prefixes("s3://bucket/${name}/"), "only in '${namespace}'"
    ),
    Case("a prefix that climbs", prefixes("s3://bucket/../"), SEGMENTS),
    Case("a prefix with empty segments", prefixes("s3://bucket//"), SEGMENTS),
    Case("a prefix twice", prefixes("s3://bucket/", "s3://bucket/"), "Duplicate value"),
    Case("a variable as bucket", prefixes("s3://${namespace}/"), "should match"),
    Case("staging in the bucket's root", staging("s3://bucket/")),
    Case("staging that Bedrock cannot read", staging("s3://bucket/a=b/"), "should match"),
    Case("staging that climbs", staging("s3://bucket/../"), SEGMENTS),
    # ---- limits, prices, policies
    Case("limits", limits(minRecordsPerBatch=100, maxRecordsPerBatch=100)),
    Case(
        "a minimum above the maximum",
        limits(minRecordsPerBatch=2, maxRecordsPerBatch=1),
        "must be at most `maxRecordsPerBatch`",
    ),
    Case(
        "a record above its batch",
        limits(maxBytesPerRecord=4096, maxBytesPerBatch=2048),
        "must be at most `maxBytesPerBatch`",
    ),
    Case("limits of a model", limits(models=[{"name": "m", "maxEnqueuedTokens": 1}])),
    Case(
        "a model's minimum above its maximum",
        limits(models=[{"name": "m", "minRecordsPerBatch": 2, "maxRecordsPerBatch": 1}]),
        "must be at most `maxRecordsPerBatch`",
    ),
    Case("a model twice", limits(models=[{"name": "m"}, {"name": "m"}]), "Duplicate value"),
    Case("a price", price(batchDiscountPercent=0)),
    Case("a price as a number", price(inputPerMillionTokens=1), "must be of type string"),
    Case("a discount above all", price(batchDiscountPercent=101), "equal to 100"),
    Case("an unknown policy", {"unknownOutcomePolicy": "Hope"}, "Unsupported value"),
]

OWN_IDENTITY = "only a ClusterInferenceProvider may use the operator's own identity"
NO_BEDROCK_SECRET = {"bedrock": {"credentialsSecretRef": ABSENT}}
NO_S3_SECRET = {"storage": {"s3": {"credentialsSecretRef": ABSENT}}}


def requirement(operator: str, *values: str) -> dict[str, Any]:
    found: dict[str, Any] = {"key": "team", "operator": operator}
    if values:
        found["values"] = list(values)
    return {"allowedNamespaces": {"selector": {"matchExpressions": [found]}}}


NAMESPACED_ONLY = [
    Case("Bedrock without credentials", NO_BEDROCK_SECRET, OWN_IDENTITY, base=BEDROCK),
    Case("storage without credentials", NO_S3_SECRET, OWN_IDENTITY, base=BEDROCK),
    Case("allowed namespaces", {"allowedNamespaces": {"names": ["ml"]}}, "unknown field"),
]
CLUSTER_ONLY = [
    Case("Bedrock with the operator's identity", NO_BEDROCK_SECRET, base=BEDROCK),
    Case("storage with the operator's identity", NO_S3_SECRET, base=BEDROCK),
    Case("allowed namespaces", {"allowedNamespaces": {"names": ["ml"]}}),
    Case("every namespace", {"allowedNamespaces": {"selector": {}}}),
    Case("nothing said of namespaces", {"allowedNamespaces": {}}, "must have `names`, `selector`"),
    Case("a namespace of a wrong name", {"allowedNamespaces": {"names": ["A"]}}, "should match"),
    Case("labels in a set", requirement("In", "ml", "ai")),
    Case("labels that exist", requirement("Exists")),
    Case("a set without values", requirement("In"), "`values` must be set for 'In' and 'NotIn'"),
    Case("existence with values", requirement("Exists", "a"), "and only for these"),
]
