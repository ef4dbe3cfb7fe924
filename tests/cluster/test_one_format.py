"""One format in, one format out: the same dataset through OpenAI and through Bedrock."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from cluster.mixed import PLAIN, comparable, records
from team import Team, sha256

RECORDS = int(os.environ.get("ONE_FORMAT_RECORDS", "50000"))


def result_lines(team: Team, manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in manifest["results"]:
        data = team.read(part["uri"])
        assert sha256(data) == part["sha256"]
        yield from (json.loads(line) for line in data.split(b"\n") if line)


def test_results_differ_only_where_the_models_answers_do(team: Team) -> None:
    lines = [
        line if isinstance(line, bytes) else json.dumps(line).encode()
        for line in records(RECORDS, PLAIN)
    ]
    source = team.put("mixed.jsonl", b"\n".join(lines))
    jobs = {"openai": "gpt-4.1-mini", "bedrock": "us.anthropic.claude-sonnet-4-20250514-v1:0"}
    for provider, model in jobs.items():
        team.apply(
            team.job(
                f"mixed-{provider}",
                provider=provider,
                model=model,
                input={"s3": {"uri": source}},
                successPolicy={"maxFailedPercent": 1},
            )
        )
    for provider in jobs:
        team.wait_state(f"mixed-{provider}", "Succeeded", timeout_s=1200)
    manifests = [team.manifest(f"mixed-{provider}") for provider in jobs]
    assert manifests[0]["counts"] == manifests[1]["counts"]
    assert manifests[0]["counts"]["total"] == RECORDS
    seen = 0
    for one, other in zip(*(result_lines(team, m) for m in manifests), strict=True):
        assert comparable(one) == comparable(other)
        seen += 1
    assert seen == RECORDS
