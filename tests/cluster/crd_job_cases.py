"""Jobs that the API server must take or refuse."""

from __future__ import annotations

from typing import Any

from cluster.crd_cases import ABSENT, SEGMENTS, Case


def source(**members: Any) -> dict[str, Any]:
    return {"input": {"inline": ABSENT, **members}}


def read(uri: str, **members: Any) -> dict[str, Any]:
    return source(s3={"uri": uri, **members})


def write(uri: str) -> dict[str, Any]:
    return {"output": {"configMap": ABSENT, "s3": {"uri": uri}}}


def parameters(**members: Any) -> dict[str, Any]:
    return {"parameters": members}


ONE_INPUT = "must have exactly one of `s3`, `configMapKeyRef` and `inline`"
ONE_OUTPUT = "must have exactly one of `s3` and `configMap`"
BAD_URI = "spec.input.s3.uri in body should match"
FORMATS = "promptTemplate` must be set when `input.format` is 'CSV' or 'Parquet'"
GENERATED = {"name": ABSENT, "generateName": "nightly-"}

JOBS = [
    Case("the smallest job", {}),
    # ---- required members and enums
    *(
        Case(f"no {name}", {name: ABSENT}, f"spec.{name}: Required value")
        for name in ("providerRef", "model", "operation", "input", "output")
    ),
    Case("an unknown field", {"suspended": True}, 'unknown field "spec.suspended"'),
    Case("an unknown operation", {"operation": "Videos"}, "spec.operation: Unsupported value"),
    Case("an unknown provider kind", {"providerRef": {"kind": "Issuer"}}, "Unsupported value"),
    Case("a cluster provider", {"providerRef": {"kind": "ClusterInferenceProvider"}}),
    Case("a model with a space", {"model": "gpt 4"}, "spec.model in body should match"),
    Case("an empty model", {"model": ""}, "spec.model in body should be at least 1 chars"),
    Case(
        "an ARN as model",
        {"model": "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova:0"},
    ),
    # ---- input
    Case("no source", source(), ONE_INPUT),
    Case("two sources", {"input": {"s3": {"uri": "s3://bucket/k"}}}, ONE_INPUT),
    Case("a ConfigMap as input", source(configMapKeyRef={"name": "a", "key": "b.jsonl"})),
    Case("a ConfigMap without key", source(configMapKeyRef={"name": "a"}), "key: Required value"),
    Case("inline of 32 KiB", {"input": {"inline": "x" * 32768}}),
    Case("inline above 32 KiB", {"input": {"inline": "x" * 32769}}, "Too long"),
    Case("inline above 32 KiB in UTF-8", {"input": {"inline": "é" * 16385}}, "at most 32768 bytes"),
    Case("empty inline", {"input": {"inline": ""}}, "at least 1 chars"),
    *(
        Case(f"reading {uri}", read(uri))
        for uri in (
            "s3://bucket/key.jsonl",
            "s3://bucket/",
            "s3://bucket/day=2026-11-22/",
            "s3://my.bucket-1/a b/ü+(1).jsonl",
            "s3://bucket/a..b/.hidden/c.",
        )
    ),
    *(
        Case(f"reading {uri}", read(uri), says)
        for uri, says in (
            ("http://bucket/key", BAD_URI),
            ("s3://bucket", BAD_URI),
            ("s3://ab/key", BAD_URI),
            ("s3://Bucket/key", BAD_URI),
            ("s3://bucket/a%2fb", BAD_URI),
            ("s3://bucket/a\nb", BAD_URI),
            ("s3://bucket/../other/key", SEGMENTS),
            ("s3://bucket/a/./b", SEGMENTS),
            ("s3://bucket/a/..", SEGMENTS),
            ("s3://bucket/.", SEGMENTS),
            ("s3://bucket//", SEGMENTS),
            ("s3://bucket/a//b", SEGMENTS),
            ("s3://bucket/${namespace}/", "variables are replaced in `output` only"),
            (f"s3://bucket/{'k' * 1100}", "Too long"),
        )
    ),
    Case("a version of an object", read("s3://bucket/key", versionID="3/L4kqtJlcpXroDTDmJ")),
    Case("a version of a prefix", read("s3://bucket/p/", versionID="1"), "a version belongs to"),
    # ---- formats and templates
    Case("CSV with a template", {"input": {"format": "CSV"}, "promptTemplate": {"prompt": "p"}}),
    Case("CSV without a template", {"input": {"format": "CSV"}}, FORMATS),
    Case(
        "Parquet in S3",
        read("s3://bucket/rows.parquet") | {"promptTemplate": {"prompt": "{{ text }}"}},
    ),
    Case(
        "Parquet inline",
        {"input": {"format": "Parquet"}, "promptTemplate": {"prompt": "p"}},
        "must not be 'Parquet' unless the input is `s3`",
    ),
    Case("a template without prompt", {"promptTemplate": {"system": "s"}}, "must have `prompt`"),
    Case(
        "a chat template with input",
        {"promptTemplate": {"prompt": "p", "input": "i"}},
        "must have `prompt`, and not `input`",
    ),
    Case(
        "a template for embeddings",
        {"operation": "Embeddings", "promptTemplate": {"input": "{{ text }}"}},
    ),
    *(
        Case(
            f"a template for embeddings with {name}",
            {"operation": "Embeddings", "promptTemplate": {"input": "i", name: "p"}},
            "when `operation` is 'Embeddings'",
        )
        for name in ("prompt", "system", "imageURLField")
    ),
    Case(
        "a template for embeddings without input",
        {"operation": "Embeddings", "promptTemplate": {"idField": "id"}},
        "`promptTemplate` must have `input`",
    ),
    # ---- parameters
    Case("free JSON as extra", parameters(extra={"a": {"b": [1, 0.5, None, {"c": "d"}]}})),
    Case("32 extra members", parameters(extra={f"m{n}": n for n in range(32)})),
    Case("33 extra members", parameters(extra={f"m{n}": n for n in range(33)}), "Too many"),
    *(
        Case(
            f"extra with {name}", parameters(extra={name: 1}), "must not validate the schema (not)"
        )
        for name in ("model", "messages", "prompt", "input", "stream", "stream_options")
    ),
    *(
        Case(f"temperature {t}", parameters(temperature=t))
        for t in ("0", "0.7", "1.25", "2", "2.0")
    ),
    Case("temperature 2.1", parameters(temperature="2.1"), "should match"),
    Case("temperature as a number", parameters(temperature=1), "must be of type string"),
    *(Case(f"topP {p}", parameters(topP=p)) for p in ("0", "0.95", "1")),
    Case("topP 1.1", parameters(topP="1.1"), "should match"),
    Case("no output tokens", parameters(maxOutputTokens=0), "should be greater than or equal to 1"),
    Case("17 stops", parameters(stop=[str(n) for n in range(17)]), "must have at most 16 items"),
    Case(
        "extra for embeddings", {"operation": "Embeddings", **parameters(extra={"dimensions": 8})}
    ),
    *(
        Case(
            f"{name} for embeddings",
            {"operation": "Embeddings", **parameters(**{name: value})},
            "must hold nothing but `extra`",
        )
        for name, value in (
            ("maxOutputTokens", 1),
            ("temperature", "0"),
            ("topP", "1"),
            ("stop", ["."]),
            ("responseFormat", {"type": "Text"}),
        )
    ),
    Case(
        "a schema for answers",
        parameters(
            responseFormat={
                "type": "JSONSchema",
                "jsonSchema": {"name": "label", "schema": {"type": "object"}},
            }
        ),
    ),
    Case(
        "answers by a schema that is missing",
        parameters(responseFormat={"type": "JSONSchema"}),
        "`jsonSchema` must be set when `type` is 'JSONSchema'",
    ),
    Case(
        "a schema for free text",
        parameters(
            responseFormat={"type": "Text", "jsonSchema": {"name": "n", "schema": {"type": "x"}}}
        ),
        "and only then",
    ),
    # ---- output
    Case("no output place", {"output": {"configMap": ABSENT}}, ONE_OUTPUT),
    Case("two output places", {"output": {"s3": {"uri": "s3://bucket/p/"}}}, ONE_OUTPUT),
    Case("results in S3", write("s3://bucket/p/")),
    Case(
        "Parquet in S3 as output",
        {"output": {"configMap": ABSENT, "s3": {"uri": "s3://bucket/p/"}, "format": "Parquet"}},
    ),
    Case("Parquet in a ConfigMap", {"output": {"format": "Parquet"}}, "text cannot hold it"),
    Case("a ConfigMap of a wrong name", {"output": {"configMap": {"name": "A_b"}}}, "should match"),
    Case("variables in the output", write("s3://bucket/${namespace}/${name}/${runKey}/")),
    Case("an output that is no prefix", write("s3://bucket/key"), "spec.output.s3.uri in body"),
    Case("an output with empty segments", write("s3://bucket/a//"), SEGMENTS),
    Case("an output that climbs", write("s3://bucket/../"), SEGMENTS),
    Case("an unknown variable", write("s3://bucket/${cluster}/"), "must use '$' only in"),
    Case("a variable without braces", write("s3://bucket/$name/"), "must use '$' only in"),
    Case(
        "a run id in the output without a run id",
        write("s3://bucket/${runID}/"),
        "`runID` must be set when `output.s3.uri` contains '${runID}'",
    ),
    Case("a run id in the output", write("s3://bucket/${runID}/") | {"runID": "7"}),
    # ---- identity
    Case("a generated name without run id", {}, "`runID` must be set when", GENERATED),
    Case("a generated name with an empty run id", {"runID": ""}, "`runID` must be set", GENERATED),
    Case("a generated name with a run id", {"runID": "2026-11-22"}, None, GENERATED),
    Case("a run id with a slash", {"runID": "a/b"}, "spec.runID in body should match"),
    Case("a long run id", {"runID": "a" * 64}, "Too long"),
    # ---- the rest
    Case("another controller", {"managedBy": "kueue.x-k8s.io/multikueue"}),
    Case("a controller without domain", {"managedBy": "kueue"}, "should match"),
    Case("a long controller", {"managedBy": f"example.com/{'a' * 60}"}, "Too long"),
    Case("no attempts", {"retryPolicy": {"maxAttempts": 0}}, "greater than or equal to 1"),
    Case("11 attempts", {"retryPolicy": {"maxAttempts": 11}}, "less than or equal to 10"),
    Case("no failures", {"successPolicy": {"maxFailedPercent": 0, "maxFailedRecords": 0}}),
    Case("101 percent", {"successPolicy": {"maxFailedPercent": 101}}, "less than or equal to 100"),
    Case("a budget", {"budget": {"maxCost": "25.00"}}),
    Case("a budget without cost", {"budget": {}}, "maxCost: Required value"),
    Case("a budget as a number", {"budget": {"maxCost": 25}}, "must be of type string"),
    Case("a budget with an exponent", {"budget": {"maxCost": "1e3"}}, "should match"),
    Case("a small currency", {"budget": {"maxCost": "1", "currency": "usd"}}, "should match"),
    Case("too high a priority", {"priority": 1001}, "less than or equal to 1000"),
    Case("no deadline at all", {"activeDeadlineSeconds": 0}, "greater than or equal to 1"),
    Case("gone at once", {"ttlSecondsAfterFinished": 0}),
    Case("a negative ttl", {"ttlSecondsAfterFinished": -1}, "greater than or equal to 0"),
    *(
        Case(f"an unknown {name}", {name: "Maybe"}, f"spec.{name}: Unsupported value")
        for name in ("outputPolicy", "desiredState", "deletionPolicy")
    ),
]
