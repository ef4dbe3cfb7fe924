"""Builders of batch inputs and the waits that the tests of the sandbox share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

CHAT = "/v1/chat/completions"
ROLE = "arn:aws:iam::123456789012:role/BatchRole"
NOVA = "amazon.nova-lite-v1:0"
CLAUDE = "us.anthropic.claude-sonnet-4-20250514-v1:0"
ENDED = {"completed", "failed", "expired", "cancelled"}
JOB_ENDED = {"Completed", "PartiallyCompleted", "Failed", "Stopped", "Expired"}


def chat_line(custom_id: str = "r1", text: str = "hello", **changes: Any) -> dict[str, Any]:
    body = {"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": text}]}
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
    return {**line, **changes}


def chat_lines(count: int, *texts: str) -> list[dict[str, Any]]:
    """`count` plain lines, the first ones with the given texts."""
    return [
        chat_line(f"r{number}", texts[number] if number < len(texts) else f"hello {number}")
        for number in range(count)
    ]


def converse_records(count: int, *texts: str) -> list[dict[str, Any]]:
    return [
        {
            "recordId": f"r{number:010d}",
            "modelInput": {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"text": texts[number] if number < len(texts) else f"hello {number}"}
                        ],
                    }
                ]
            },
        }
        for number in range(count)
    ]


def jsonl(lines: Iterable[Any]) -> bytes:
    return b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )


def until(read: Callable[[], Any], holds: Callable[[Any], bool], within_s: float = 120) -> Any:
    deadline = time.monotonic() + within_s
    while True:
        value = read()
        if holds(value):
            return value
        assert time.monotonic() < deadline, f"not within {within_s} s: {value}"
        time.sleep(0.01)


def submit(client: Any, lines: Iterable[Any], endpoint: str = CHAT, **members: Any) -> Any:
    file = client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **members
    )


def ended(client: Any, batch: Any) -> Any:
    return until(lambda: client.batches.retrieve(batch.id), lambda now: now.status in ENDED)


def run(client: Any, lines: Iterable[Any], endpoint: str = CHAT, **members: Any) -> Any:
    return ended(client, submit(client, lines, endpoint, **members))


def lines_of(client: Any, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in raw_lines(client, file_id)]


def raw_lines(client: Any, file_id: str) -> list[bytes]:
    return client.files.content(file_id).read().removesuffix(b"\n").split(b"\n")


def put_input(s3: Any, records: Iterable[Any], key: str) -> str:
    s3.put_object(Bucket="team-data", Key=key, Body=jsonl(records))
    return f"s3://team-data/{key}"


def job_request(name: str, uri: str, **changes: Any) -> dict[str, Any]:
    request = {
        "jobName": name,
        "roleArn": ROLE,
        "modelId": NOVA,
        "modelInvocationType": "Converse",
        "inputDataConfig": {"s3InputDataConfig": {"s3Uri": uri, "s3InputFormat": "JSONL"}},
        "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": "s3://team-data/out/"}},
    }
    return {**request, **changes}


def job_ended(bedrock: Any, arn: str) -> dict[str, Any]:
    return until(
        lambda: bedrock.get_model_invocation_job(jobIdentifier=arn),
        lambda job: job["status"] in JOB_ENDED,
    )


def job_lines(s3: Any, arn: str, name: str = "in.jsonl") -> list[dict[str, Any]]:
    body = s3.get_object(Bucket="team-data", Key=f"out/{arn[-12:]}/{name}.out")["Body"].read()
    return [json.loads(line) for line in body.splitlines()]


def manifest(s3: Any, arn: str) -> dict[str, int]:
    key = f"out/{arn[-12:]}/manifest.json.out"
    return json.loads(s3.get_object(Bucket="team-data", Key=key)["Body"].read())
