"""Secrets and clients: what is read again when, and what is said of what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from batchinference.errors import Stalled
from batchinference.model.batch import Account
from batchinference.model.status import Reason
from batchinference.ports import ResolvedProvider
from batchinference.runtime.clients import Clients, no_answer
from batchinference.runtime.credentials import Credentials, fingerprint, same_connection
from fakes.clock import VirtualClock, run_virtual
from fakes.kube import FakeKube

SETTINGS = {"openAI": {"apiKeySecretRef": {"name": "openai", "key": "api-key"}}}
RETRY_S = 30.0


class Desk:
    """Credentials over a fake API server."""

    def __init__(self) -> None:
        self.kube = FakeKube()
        self.clock = VirtualClock()
        self.credentials = Credentials(self.kube, self.clock, RETRY_S)

    def put(self, **data: str) -> None:
        self.kube.secrets["ml", "openai"] = {k.replace("_", "-"): v for k, v in data.items()}

    async def key(self) -> str:
        resolved = await self.credentials.resolve("Kind/ml/openai", "ml", SETTINGS)
        return resolved.secrets["apiKey"]["value"]


def test_a_missing_key_is_told_with_the_names_of_those_there_and_no_value() -> None:
    async def main() -> None:
        desk = Desk()
        desk.put(token="sk-value", other="x")
        with pytest.raises(Stalled) as missing:
            await desk.key()
        told = missing.value.message
        assert missing.value.reason == Reason.SECRET_NOT_FOUND
        assert "'ml/openai' has no key 'api-key'. Keys that it has: other, token." in told
        assert "`spec.openAI.apiKeySecretRef`" in told
        assert "sk-value" not in told
        desk.kube.secrets["ml", "openai"] = {}
        await desk.clock.sleep(RETRY_S)
        with pytest.raises(Stalled, match="Keys that it has: none"):
            await desk.key()

    run_virtual(main())


def test_a_key_that_is_added_later_is_found_without_a_restart() -> None:
    async def main() -> None:
        desk = Desk()
        desk.put(token="sk-value")
        with pytest.raises(Stalled):
            await desk.key()
        desk.put(api_key="sk-value")
        with pytest.raises(Stalled):
            await desk.key()  # not asked again at once
        await desk.clock.sleep(RETRY_S)
        assert await desk.key() == "sk-value"

    run_virtual(main())


class Picky:
    """A factory whose adapter looks into the Secret when it is made, as that of AWS does."""

    def connect(self, resolved: ResolvedProvider) -> Answering:
        if resolved.secrets["apiKey"]["value"] != "good":
            raise Stalled(Reason.CREDENTIALS_REJECTED, "no good")
        return Answering()


class Answering:
    async def check(self) -> Account:
        return Account("account")


def test_credentials_that_the_adapter_itself_refuses_are_read_again() -> None:
    async def main() -> None:
        desk = Desk()
        clients = Clients(Picky(), desk.credentials, 60.0)
        desk.put(api_key="bad")
        with pytest.raises(Stalled):
            await clients.check("Kind/ml/openai", "ml", SETTINGS)
        desk.put(api_key="good")
        assert (await clients.check("Kind/ml/openai", "ml", SETTINGS)).id == "account"

    run_virtual(main())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"openAI": {"baseURL": "http://gate:1/v1"}}, "http://gate:1/v1"),
        ({"openAI": {}}, "OpenAI"),
        ({"bedrock": {"region": "eu-west-1"}}, "Bedrock in eu-west-1"),
        ({"bedrock": {"region": "eu-west-1", "endpointURL": "http://vpc"}}, "http://vpc"),
    ],
)
def test_a_silent_provider_is_named(settings: Mapping[str, Any], said: str) -> None:
    assert no_answer(settings, 60) == f"No answer of {said} within 60 s"


def test_a_slash_at_the_end_of_an_url_makes_no_other_connection() -> None:
    def settings(url: str) -> dict[str, Any]:
        return {"openAI": {**SETTINGS["openAI"], "baseURL": url}}

    plain, slashed = settings("https://a.test/v1"), settings("https://a.test/v1/")
    assert same_connection(plain, slashed)
    assert not same_connection(plain, settings("https://a.test/v2"))
    prints = [fingerprint(ResolvedProvider(s, {}, "id")) for s in (plain, slashed)]
    assert prints[0] == prints[1]
