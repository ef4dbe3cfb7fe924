"""Changes of stored jobs that the API server must take or refuse."""

from __future__ import annotations

from typing import Any

from cluster.crd_cases import ABSENT, JOB, merged

FULL = merged(
    JOB,
    {
        "output": {"configMap": ABSENT, "s3": {"uri": "s3://bucket/out/"}},
        "input": {"inline": ABSENT, "s3": {"uri": "s3://bucket/in.jsonl", "versionID": "1"}},
        "promptTemplate": {"system": "s", "prompt": "p"},
        "parameters": {
            "maxOutputTokens": 5,
            "stop": ["."],
            "responseFormat": {
                "type": "JSONSchema",
                "jsonSchema": {
                    "name": "n",
                    "schema": {"properties": {"a": {"type": "string"}}},
                },
            },
            "extra": {"seed": 1, "nested": {"list": [1, {"deep": True}]}},
        },
        "runID": "1",
        "managedBy": "example.com/queue",
    },
)

# (what, base spec, merge patch of the spec, field that the refusal names)
FORBIDDEN: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("another provider", JOB, {"providerRef": {"name": "other"}}, "providerRef"),
    (
        "another kind of provider",
        JOB,
        {"providerRef": {"kind": "ClusterInferenceProvider"}},
        "providerRef",
    ),
    ("another model", JOB, {"model": "gpt-4.1"}, "model"),
    ("another operation", JOB, {"operation": "Responses"}, "operation"),
    ("another inline text", JOB, {"input": {"inline": "[]"}}, "input"),
    ("another source", JOB, {"input": {"inline": None, "s3": {"uri": "s3://bucket/k"}}}, "input"),
    ("another object", FULL, {"input": {"s3": {"uri": "s3://bucket/b"}}}, "input"),
    ("another version", FULL, {"input": {"s3": {"versionID": "2"}}}, "input"),
    ("no version any more", FULL, {"input": {"s3": {"versionID": None}}}, "input"),
    ("a format", JOB, {"input": {"format": "JSONL"}}, "input"),
    ("a template", JOB, {"promptTemplate": {"prompt": "p"}}, "promptTemplate"),
    ("another template", FULL, {"promptTemplate": {"prompt": "q"}}, "promptTemplate"),
    ("more in the template", FULL, {"promptTemplate": {"idField": "id"}}, "promptTemplate"),
    ("less in the template", FULL, {"promptTemplate": {"system": None}}, "promptTemplate"),
    ("no template any more", FULL, {"promptTemplate": None}, "promptTemplate"),
    ("parameters", JOB, {"parameters": {"maxOutputTokens": 1}}, "parameters"),
    ("empty parameters", JOB, {"parameters": {}}, "parameters"),
    ("another parameter", FULL, {"parameters": {"maxOutputTokens": 6}}, "parameters"),
    ("no parameter any more", FULL, {"parameters": {"maxOutputTokens": None}}, "parameters"),
    ("no parameters any more", FULL, {"parameters": None}, "parameters"),
    ("another stop", FULL, {"parameters": {"stop": ["!"]}}, "parameters"),
    ("another extra", FULL, {"parameters": {"extra": {"seed": 2}}}, "parameters"),
    ("one more extra", FULL, {"parameters": {"extra": {"user": "me"}}}, "parameters"),
    ("one extra less", FULL, {"parameters": {"extra": {"seed": None}}}, "parameters"),
    ("no extra any more", FULL, {"parameters": {"extra": None}}, "parameters"),
    (
        "another extra deep inside",
        FULL,
        {"parameters": {"extra": {"nested": {"list": [1, {"deep": False}]}}}},
        "parameters",
    ),
    (
        "one more extra deep inside",
        FULL,
        {"parameters": {"extra": {"nested": {"more": 1}}}},
        "parameters",
    ),
    ("an extra of another type", FULL, {"parameters": {"extra": {"seed": "1"}}}, "parameters"),
    (
        "another schema for answers",
        FULL,
        {
            "parameters": {
                "responseFormat": {
                    "jsonSchema": {"schema": {"properties": {"a": {"type": "number"}}}}
                }
            }
        },
        "parameters",
    ),
    ("another output", FULL, {"output": {"s3": {"uri": "s3://bucket/other/"}}}, "output"),
    (
        "another output place",
        JOB,
        {"output": {"configMap": None, "s3": {"uri": "s3://bucket/p/"}}},
        "output",
    ),
    ("another output format", FULL, {"output": {"format": "Parquet"}}, "output"),
    ("another ConfigMap", JOB, {"output": {"configMap": {"name": "other"}}}, "output"),
    ("a run id", JOB, {"runID": "1"}, "runID"),
    ("another run id", FULL, {"runID": "2"}, "runID"),
    ("an empty run id", FULL, {"runID": ""}, "runID"),
    ("no run id any more", FULL, {"runID": None}, "runID"),
    ("a controller", JOB, {"managedBy": "example.com/queue"}, "managedBy"),
    ("another controller", FULL, {"managedBy": "example.com/other"}, "managedBy"),
    ("no controller any more", FULL, {"managedBy": None}, "managedBy"),
    (
        "a cancelled run",
        JOB | {"desiredState": "Cancelled"},
        {"desiredState": "Active"},
        "desiredState",
    ),
    (
        "a cancelled run by default",
        JOB | {"desiredState": "Cancelled"},
        {"desiredState": None},
        "desiredState",
    ),
]

ALLOWED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("suspend", JOB, {"suspend": True}),
    ("resume", JOB | {"suspend": True}, {"suspend": False}),
    ("cancel", JOB, {"desiredState": "Cancelled"}),
    ("an output policy", JOB, {"outputPolicy": "Replace"}),
    ("a deadline", JOB, {"activeDeadlineSeconds": 3600}),
    (
        "no deadline any more",
        JOB | {"activeDeadlineSeconds": 3600},
        {"activeDeadlineSeconds": None},
    ),
    ("attempts", JOB, {"retryPolicy": {"maxAttempts": 1}}),
    ("tolerance", JOB, {"successPolicy": {"maxFailedPercent": 5}}),
    ("a budget", JOB, {"budget": {"maxCost": "5"}}),
    ("another budget", JOB | {"budget": {"maxCost": "5"}}, {"budget": {"maxCost": "6"}}),
    ("a priority", JOB, {"priority": 10}),
    ("a deletion policy", JOB, {"deletionPolicy": "Orphan"}),
    ("a time to live", JOB, {"ttlSecondsAfterFinished": 60}),
    ("an empty run id where there was none", JOB, {"runID": ""}),
    ("an empty controller where there was none", JOB, {"managedBy": ""}),
    ("everything as it is", FULL, FULL),
]
