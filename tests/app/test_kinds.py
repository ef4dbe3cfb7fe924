"""How the operator waits for its definitions, on a client that plays an API server."""

from __future__ import annotations

from typing import Any, cast

import pytest

from batchinference.adapters.kube.answers import Refusal, refusal
from batchinference.adapters.kube.client import KubeClient
from batchinference.app import handlers, kinds
from batchinference.errors import Retry, Stalled

JOBS, PROVIDERS, CLUSTER = "batchinferencejobs", "inferenceproviders", "clusterinferenceproviders"
Answer = set[str] | Retry | Refusal


class Served:
    """Answers with one after the other, and with the last one from then on."""

    host = "https://api"

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)

    async def call(self, method: str, path: str) -> dict[str, Any]:
        assert (method, path) == ("GET", "/apis/batchinference.dev/v1alpha1")
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return {"resources": [{"name": name} for name in answer]}


def away(code: int) -> Refusal:
    return refusal("GET /apis", code, {"message": "because"}, None)


BROKEN = Retry("Unavailable", "the connection broke")


async def wait(*answers: Answer, within_s: float = 60, others_within_s: float = 60) -> Any:
    client = cast("KubeClient", Served(*answers))
    return await kinds.wait_for_kinds(
        client,
        handlers.KINDS,
        within_s=within_s,
        others_within_s=others_within_s,
        every_s=0,
    )


async def test_all_are_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    answers = (BROKEN, away(404), {JOBS}, {JOBS, PROVIDERS, CLUSTER})
    assert await wait(*answers) == ()
    assert "the connection broke" in caplog.text
    assert f"it does not serve {CLUSTER}, {PROVIDERS}" in caplog.text


async def test_without_those_of_providers_it_goes_on_after_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await wait({JOBS}, others_within_s=0) == (PROVIDERS, CLUSTER)
    assert f"going on without {PROVIDERS}, {CLUSTER}" in caplog.text


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (away(404), "does not serve batchinferencejobs"),
        ({PROVIDERS, CLUSTER}, "does not serve batchinferencejobs"),
        (BROKEN, "the connection broke"),
    ],
)
async def test_without_that_of_jobs_it_gives_up(answer: Answer, said: str) -> None:
    with pytest.raises(Stalled, match=rf"https://api.*{said}.*CustomResourceDefinitions"):
        await wait(answer, within_s=0, others_within_s=0)


async def test_who_may_not_ask_is_told_at_once() -> None:
    with pytest.raises(Stalled, match="denied"):
        await wait(away(403))


async def test_the_rest_is_waited_for_over_answers_that_fail() -> None:
    served = Served({JOBS}, BROKEN, {JOBS, PROVIDERS}, {JOBS, PROVIDERS, CLUSTER})
    client = cast("KubeClient", served)
    await kinds.until_served(client, (PROVIDERS, CLUSTER), every_s=0)
    assert len(served.answers) == 1
