"""Published prices: who charges, what a batch costs, and no call to anybody."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from batchinference.adapters.prices import LibraryPrices, seller
from batchinference.model.price import Price

NOW = datetime(2026, 12, 1, tzinfo=UTC)
OPENAI: dict[str, Any] = {"openAI": {}}
HAIKU = "anthropic.claude-3-haiku-20240307-v1:0"
LITE = "amazon.nova-lite-v1:0"


def bedrock(region: str = "us-east-1", **members: Any) -> dict[str, Any]:
    return {"bedrock": {"region": region, **members}}


def of(settings: dict[str, Any], model: str, now: datetime = NOW) -> Price | None:
    return asyncio.run(LibraryPrices().of(settings, model, now))


ARN = "arn:aws:bedrock:us-east-1"
SELLERS: list[tuple[str, dict[str, Any], str, tuple[str, str, str] | None]] = [
    ("OpenAI", OPENAI, "m", ("openai", "", "m")),
    ("the same by name", {"openAI": {"baseURL": "https://api.openai.com/v1"}}, "m", ("openai", "", "m")),
    ("another port of it", {"openAI": {"baseURL": "https://api.openai.com:443/v1"}}, "m", ("openai", "", "m")),
    ("where data stays in Europe prices differ", {"openAI": {"baseURL": "https://eu.api.openai.com/v1"}}, "m", None),
    ("a look-alike", {"openAI": {"baseURL": "https://llm.example.com/v1"}}, "m", None),
    ("a name that begins alike", {"openAI": {"baseURL": "https://api.openai.com.example.com"}}, "m", None),
    ("Azure names deployments", {"openAI": {"baseURL": "https://x.openai.azure.com/openai/v1"}}, "gpt-4o", None),
    ("Bedrock", bedrock(), LITE, ("aws", "us-east-1", LITE)),
    ("through an endpoint of AWS", bedrock(endpointURL="https://vpce-1.bedrock.us-east-1.vpce.amazonaws.com"), LITE, ("aws", "us-east-1", LITE)),
    ("a stand-in", bedrock(endpointURL="http://127.0.0.1:9"), LITE, None),
    ("a foundation model's ARN", bedrock(), f"{ARN}::foundation-model/{LITE}", ("aws", "us-east-1", LITE)),
    ("a profile's ARN", bedrock(), f"{ARN}:123456789012:inference-profile/us.{LITE}", ("aws", "us-east-1", f"us.{LITE}")),
    ("a profile of one's own", bedrock(), f"{ARN}:123456789012:application-inference-profile/abc", None),
    ("a model of one's own", bedrock(), f"{ARN}:123456789012:custom-model/abc", None),
    ("another partition", bedrock(), "arn:aws-us-gov:bedrock:us-gov-west-1::foundation-model/x", None),
    ("no ARN after all", bedrock(), "arn:aws", None),
    ("live calls", {"langChain": {}}, "m", None),
    ("nothing", {}, "m", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "settings", "model", "want"), SELLERS, ids=[s[0] for s in SELLERS]
)
def test_who_charges(reason, settings, model, want) -> None:
    assert seller(settings, model) == want, reason


KNOWN = [
    ("a batch variant of the library", OPENAI, "gpt-4.1-mini", ("0.4", "1.6"), ("0.2", "0.8")),
    ("a dated name", OPENAI, "gpt-4.1-mini-2025-04-14", ("0.4", "1.6"), ("0.2", "0.8")),
    ("half where it has none", OPENAI, "o1-mini", ("1.1", "4.4"), ("0.55", "2.2")),
    ("no output of a vector", OPENAI, "text-embedding-3-small", ("0.02", "0"), ("0.01", "0")),
    ("Bedrock", bedrock(), HAIKU, ("0.25", "1.25"), ("0.125", "0.625")),
    ("of a profile", bedrock(), f"us.{LITE}", ("0.06", "0.24"), ("0.03", "0.12")),
    ("a price that holds everywhere", bedrock("eu-central-1"), HAIKU, ("0.25", "1.25"), ("0.125", "0.625")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "settings", "model", "live", "batch"), KNOWN, ids=[k[0] for k in KNOWN]
)
def test_what_a_model_costs(reason, settings, model, live, batch) -> None:
    found = of(settings, model)
    assert found is not None, reason
    assert (Decimal(found.live_input), Decimal(found.live_output)) == tuple(map(Decimal, live))
    assert (Decimal(found.batch_input), Decimal(found.batch_output)) == tuple(map(Decimal, batch))
    assert (found.currency, found.source) == ("USD", "Library")


UNKNOWN = [
    ("a model that nobody knows", OPENAI, "gpt-of-my-own"),
    ("one that hears, too", OPENAI, "gpt-audio"),
    ("one that is paid by the hour", OPENAI, "whisper-1"),
    ("an American price elsewhere", bedrock("eu-central-1"), LITE),
    ("the cloud of the government", bedrock("us-gov-west-1"), HAIKU),
    ("a model of Bedrock that nobody knows", bedrock(), "acme.model-v1:0"),
    ("a server that nobody knows", {"openAI": {"baseURL": "http://vllm:8000/v1"}}, "gpt-4.1-mini"),
]


@pytest.mark.parametrize(("reason", "settings", "model"), UNKNOWN, ids=[u[0] for u in UNKNOWN])
def test_no_price_is_invented(reason, settings, model) -> None:
    assert of(settings, model) is None, reason


def test_a_price_that_depends_on_length_says_up_to_which() -> None:
    found = of(OPENAI, "gpt-6-sol")
    assert found is not None
    assert found.most_input == 272_000
    assert Decimal(found.batch_input) == Decimal(found.live_input) / 2


def test_the_price_of_the_day_counts() -> None:
    assert of(OPENAI, "o3", datetime(2025, 6, 9, 23, tzinfo=UTC)).live_input == "10"
    assert of(OPENAI, "o3", datetime(2025, 6, 10, tzinfo=UTC)).live_input == "2"


async def test_a_price_is_looked_up_once_a_day(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("batchinference.adapters.prices._look_up", lambda *a: asked.append(a))
    prices = LibraryPrices()
    for day in (1, 1, 2):
        await prices.of(OPENAI, "m", NOW.replace(day=day))
    await prices.of(bedrock(), "m", NOW.replace(day=2))
    assert [(a[0], a[3].day) for a in asked] == [("openai", 1), ("openai", 2), ("aws", 2)]


def test_a_library_that_breaks_is_one_that_knows_nothing(monkeypatch, caplog) -> None:
    def broken(*_args: Any) -> None:
        raise KeyError("gone")

    monkeypatch.setattr("batchinference.adapters.prices._find", broken)
    assert of(OPENAI, "gpt-4.1-mini") is None
    assert "can't be looked up" in caplog.text


_ALONE = """
import asyncio, json, socket, sys, threading
from datetime import UTC, datetime

def refuse(*args, **kwargs):
    raise AssertionError("a call")

import batchinference.app.wiring
from batchinference.adapters.prices import LibraryPrices
before = "genai_prices" in sys.modules

async def main():
    socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
    found = await LibraryPrices().of({"openAI": {}}, "gpt-4.1-mini", datetime.now(UTC))
    return found.live_input

price = asyncio.run(main())
threads = [t.name for t in threading.enumerate() if not t.name.startswith(("MainThread", "asyncio"))]
print(json.dumps([before, price, threads]))
"""


def test_the_library_is_loaded_when_it_is_asked_and_calls_nobody() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ALONE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [False, "0.4", []]
