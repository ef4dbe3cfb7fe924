from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from batchinference.adapters.s3 import S3Store
from batchinference.sandbox import Sandbox

BUCKET = "team-data"
AWS_SECRET = {"AWS_ACCESS_KEY_ID": "sandbox", "AWS_SECRET_ACCESS_KEY": "anything"}


@pytest.fixture(scope="module")
def running_sandbox() -> Iterator[Sandbox]:
    with Sandbox.start(s3_buckets=(BUCKET,)) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running_sandbox: Sandbox) -> Iterator[Sandbox]:
    running_sandbox.control.settings(
        openai={
            "validating_s": 0.0,
            "in_progress_s": 0.02,
            "finalizing_s": 0.0,
            "cancelling_s": 0.0,
        },
        bedrock={
            "submitted_s": 0.0,
            "validating_s": 0.0,
            "scheduled_s": 0.0,
            "in_progress_s": 0.02,
            "stopping_s": 0.0,
            "min_records": 2,
        },
    )
    yield running_sandbox
    running_sandbox.control.reset()


@pytest.fixture
def storage(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "s3": {
            "endpointURL": sandbox.s3_url,
            "region": "us-east-1",
            "credentialsSecretRef": {"name": "aws"},
        },
        "stagingURI": f"s3://{BUCKET}/ml/.staging/",
    }


@pytest.fixture
def waits() -> list[float]:
    """What a client would have slept."""
    return []


@pytest.fixture
def store(storage: dict[str, Any], waits: list[float]) -> S3Store:
    return S3Store({"storage": storage}, {"storage": AWS_SECRET}, sleep=waits.append)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[[], None]:
    """An environment that would send every SDK elsewhere, with other credentials."""
    config = tmp_path / "config"
    config.write_text(
        "[default]\nregion = eu-west-9\nendpoint_url = http://127.0.0.1:9\n"
        "[profile evil]\naws_access_key_id = EVIL\naws_secret_access_key = EVIL\n"
    )

    def poison() -> None:
        evil = "http://127.0.0.1:9"  # the discard port: nobody listens
        for name, value in {
            "OPENAI_API_KEY": "evil-key",
            "OPENAI_ADMIN_KEY": "evil-admin",
            "OPENAI_ORG_ID": "evil-org",
            "OPENAI_PROJECT_ID": "evil-project",
            "OPENAI_BASE_URL": evil,
            "OPENAI_WEBHOOK_SECRET": "evil-hook",
            "OPENAI_CUSTOM_HEADERS": "X-Evil: yes\nAuthorization: Bearer evil",
            "AWS_ACCESS_KEY_ID": "EVIL",
            "AWS_SECRET_ACCESS_KEY": "EVIL",
            "AWS_SESSION_TOKEN": "EVIL",
            "AWS_PROFILE": "does-not-exist",
            "AWS_REGION": "eu-west-9",
            "AWS_DEFAULT_REGION": "eu-west-9",
            "AWS_CONFIG_FILE": str(config),
            "AWS_ENDPOINT_URL": evil,
            "AWS_ENDPOINT_URL_S3": evil,
            "AWS_ENDPOINT_URL_BEDROCK": evil,
            "AWS_ENDPOINT_URL_STS": evil,
            "AWS_MAX_ATTEMPTS": "9",
            "AWS_RETRY_MODE": "legacy",
        }.items():
            monkeypatch.setenv(name, value)

    return poison
