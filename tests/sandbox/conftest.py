from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from openai import OpenAI

from batchinference.sandbox import Control, Sandbox

BUCKET = "team-data"
QUICK_OPENAI = {
    "validating_s": 0.01,
    "in_progress_s": 0.05,
    "finalizing_s": 0.01,
    "cancelling_s": 0.01,
}
QUICK_BEDROCK = {
    "submitted_s": 0.01,
    "validating_s": 0.01,
    "scheduled_s": 0.01,
    "in_progress_s": 0.05,
    "stopping_s": 0.01,
    "min_records": 3,
}


@pytest.fixture(scope="session")
def running_sandbox() -> Iterator[Sandbox]:
    with Sandbox.start(
        s3_buckets=(BUCKET, "other-bucket"),
        api_keys={"sandbox-key": "proj_a", "same-project": "proj_a", "other-key": "proj_b"},
        accounts={"sandbox": "123456789012", "neighbour": "210987654321"},
        openai=QUICK_OPENAI,
        bedrock=QUICK_BEDROCK,
    ) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running_sandbox: Sandbox) -> Iterator[Sandbox]:
    yield running_sandbox
    broken = running_sandbox.control.state(brief=True)["broken"]
    running_sandbox.control.reset()
    assert broken == []


@pytest.fixture
def control(sandbox: Sandbox) -> Control:
    return sandbox.control


@pytest.fixture
def openai(sandbox: Sandbox) -> Iterator[OpenAI]:
    with OpenAI(
        api_key="sandbox-key", base_url=sandbox.openai_base_url, max_retries=0, timeout=20
    ) as client:
        yield client


def aws(
    sandbox: Sandbox,
    service: str,
    key: str = "sandbox",
    region: str = "us-east-1",
    read_timeout: float = 20,
) -> Any:
    url = sandbox.s3_url if service == "s3" else sandbox.url
    return boto3.client(
        service,
        endpoint_url=url,
        region_name=region,
        aws_access_key_id=key,
        aws_secret_access_key="anything",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=read_timeout),
    )


@pytest.fixture
def bedrock(sandbox: Sandbox) -> Iterator[Any]:
    client = aws(sandbox, "bedrock")
    yield client
    client.close()


@pytest.fixture
def s3(sandbox: Sandbox) -> Iterator[Any]:
    client = aws(sandbox, "s3")
    yield client
    client.close()
