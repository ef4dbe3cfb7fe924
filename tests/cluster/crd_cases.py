"""What a case for the API server is: a change of a minimal object, and what the server says to it.

Maps are merged, ABSENT removes a member. `says` is a part of the server's refusal; None means that
the object is taken. The cases stand in `crd_job_cases.py` and `crd_provider_cases.py`, changes of
stored jobs in `crd_edit_cases.py`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

ABSENT = object()
SEGMENTS = "must not contain '.', '..' or empty path segments"
ROLE = "arn:aws:iam::123456789012:role/batch"

JOB = {
    "providerRef": {"name": "openai"},
    "model": "gpt-4.1-mini",
    "operation": "ChatCompletions",
    "input": {"inline": "{}"},
    "output": {"configMap": {"name": "answers"}},
}
OPENAI = {"openAI": {}}
STORAGE = {
    "s3": {"region": "us-east-1", "credentialsSecretRef": {"name": "aws"}},
    "stagingURI": "s3://bucket/staging/",
}
BEDROCK = {
    "bedrock": {
        "region": "us-east-1",
        "serviceRoleARN": ROLE,
        "credentialsSecretRef": {"name": "aws"},
    },
    "storage": STORAGE,
}


def merged(base: Any, change: Any) -> Any:
    """The base with the change merged in; a map that changes a non-map replaces it."""
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    result = dict(copy.deepcopy(base)) if isinstance(base, dict) else {}
    for key, value in change.items():
        if value is ABSENT:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


@dataclass(frozen=True)
class Case:
    """One object, and what the server says to it."""

    name: str
    change: dict[str, Any]
    says: str | None = None
    metadata: dict[str, Any] | None = None
    base: dict[str, Any] | None = None
