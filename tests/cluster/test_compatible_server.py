"""Whole jobs through `baseURL` on a batch server that somebody else wrote: AIBrix 0.8.0."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest

from compatible.lossy_proxy import LossyProxy
from compatible.model_stub import REFUSE, ModelStub, answer_to
from compatible_server import CompatibleServer
from stack import wait_for
from team import Team, chat, jsonl

RESULTS = "answers"


@pytest.fixture(scope="module")
def model() -> Iterator[ModelStub]:
    with ModelStub() as running:
        yield running


@pytest.fixture(scope="module")
def server(
    model: ModelStub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CompatibleServer]:
    with CompatibleServer.start(tmp_path_factory.mktemp("aibrix"), model.url) as running:
        yield running


@pytest.fixture
def proxy(server: CompatibleServer, model: ModelStub) -> Iterator[LossyProxy]:
    with LossyProxy(server.base_url) as running:
        yield running
    model.release()


def aibrix(team: Team, proxy: LossyProxy, **spec: Any) -> dict[str, Any]:
    """A provider with nothing but an address: no key, no storage."""
    return {
        "apiVersion": "batchinference.dev/v1alpha1",
        "kind": "InferenceProvider",
        "metadata": {"name": "aibrix", "namespace": team.namespace},
        "spec": {"openAI": {"baseURL": proxy.base_url}, **spec},
    }


def job(team: Team, name: str, prompts: list[str], **spec: Any) -> dict[str, Any]:
    """A job without object storage; its ids are such as no provider would take."""
    records = [chat(f"{name}/ä {n}", prompt, max_tokens=64) for n, prompt in enumerate(prompts)]
    return team.job(
        name,
        provider="aibrix",
        model="local-model",
        input={"inline": jsonl(records).decode()},
        output={"configMap": {"name": RESULTS}},
        **spec,
    )


def prompts_of(team: Team, number: int) -> list[str]:
    """Prompts that no other test asks."""
    return [f"{team.namespace} question {n}" for n in range(number)]


def lines(team: Team, key: str = "results.jsonl") -> list[dict[str, Any]]:
    """The lines of the results; [] before the manifest stands."""
    found = team.stack.get("configmap", RESULTS, team.namespace)
    if not found or "batchinference.dev/manifest" not in found["metadata"]["annotations"]:
        return []
    return [json.loads(line) for line in found["data"].get(key, "").splitlines()]


def wait_until_asked(team: Team, model: ModelStub, name: str, questions: int) -> None:
    """Wait until the model was asked more than that for a job."""
    try:
        wait_for(
            f"{questions} questions",
            lambda: model.calls(team.namespace).total() > questions,
        )
    except AssertionError as error:
        raise AssertionError(f"{error}\n{team.explain(name)}") from error


def said(line: dict[str, Any]) -> str:
    """The answer's text."""
    text: str = line["response"]["body"]["choices"][0]["message"]["content"]
    return text


def batches(server: CompatibleServer, tag: str) -> list[dict[str, Any]]:
    """What the server itself says of a run's batches."""
    with urlopen(f"{server.base_url}/batches?limit=100", timeout=10) as answer:
        listed = json.load(answer)["data"]
    return [b for b in listed if b.get("metadata", {}).get("batchinference_run") == tag]


def stored_inputs(server: CompatibleServer, tag: str) -> list[str]:
    """The names of a run's input files that the server still has."""
    with urlopen(f"{server.base_url}/files?purpose=batch&limit=100", timeout=10) as answer:
        listed = json.load(answer)["data"]
    return [f["filename"] for f in listed if f["filename"].startswith(tag)]


def test_a_job_of_three_batches_is_complete_and_every_row_has_its_own_answer(
    team: Team, server: CompatibleServer, proxy: LossyProxy, model: ModelStub
) -> None:
    prompts = prompts_of(team, 25)
    team.apply(aibrix(team, proxy, limits={"maxRecordsPerBatch": 10}))
    team.kubectl("wait", "inferenceprovider/aibrix", "--for=condition=Ready", "--timeout=30s")
    team.apply(job(team, "questions", prompts))
    team.wait_condition("questions", "Complete", 90)
    found = lines(team)
    assert [(line["row"], line["custom_id"]) for line in found] == [
        (n, f"questions/ä {n}") for n in range(25)
    ]
    assert [said(line) for line in found] == [answer_to(prompt) for prompt in prompts]
    assert all(line["error"] is None for line in found)
    assert model.calls(team.namespace) == Counter(prompts), "every record was asked once"
    status = team.status("questions")
    assert (status["state"], status["progress"]) == ("Succeeded", "25/25")
    assert status["usage"] == {"inputTokens": "75", "outputTokens": "125"}
    made = batches(server, team.tag("questions"))
    assert sorted(b["metadata"]["batchinference_shard"] for b in made) == ["0", "1", "2"]
    assert {b["id"] for b in made} == {s["batchID"] for s in status["submissions"]}
    assert proxy.count("POST", "/v1/batches") == 3
    wait_for("its files deleted", lambda: not stored_inputs(server, team.tag("questions")))


def test_records_that_fail_are_errors_and_the_tolerance_decides(
    team: Team, proxy: LossyProxy, model: ModelStub
) -> None:
    prompts = [f"{p} {REFUSE}" if n % 4 == 1 else p for n, p in enumerate(prompts_of(team, 12))]
    team.apply(aibrix(team, proxy))
    team.apply(job(team, "strict", prompts))
    failed = team.wait_condition("strict", "Failed")
    assert "3" in failed["message"]
    found = lines(team)
    assert [line["custom_id"] for line in found] == [f"strict/ä {n}" for n in range(12)]
    for line, prompt in zip(found, prompts, strict=True):
        if REFUSE in prompt:
            assert line["error"]["code"] == "inference_failed"
        else:
            assert said(line) == answer_to(prompt)
    assert lines(team, "errors.jsonl") == [line for line in found if line["error"]]
    assert team.status("strict")["requestCounts"] == {"total": 12, "completed": 9, "failed": 3}
    assert model.calls(team.namespace) == Counter(prompts), "what failed was not sent again"
    team.kubectl("delete", "configmap", RESULTS)
    team.apply(job(team, "lenient", prompts, successPolicy={"maxFailedRecords": 3}))
    team.wait_condition("lenient", "Complete")
    assert [line["error"] is None for line in lines(team)] == [REFUSE not in p for p in prompts]


def test_a_cancelled_job_keeps_what_was_answered(
    team: Team, server: CompatibleServer, proxy: LossyProxy, model: ModelStub
) -> None:
    prompts = prompts_of(team, 40)
    team.apply(aibrix(team, proxy))
    model.hold_after(10)
    team.apply(job(team, "stop", prompts))
    wait_until_asked(team, model, "stop", 10)
    wait_for(
        "in progress",
        lambda: [s["state"] for s in team.status("stop").get("submissions", [])] == ["InProgress"],
    )
    assert len(stored_inputs(server, team.tag("stop"))) == 1
    team.kubectl("patch", "bij", "stop", "--type=merge", '-p={"spec":{"desiredState":"Cancelled"}}')
    wait_for(
        "the server's cancel",
        lambda: [b["status"] for b in batches(server, team.tag("stop"))] == ["cancelling"],
    )
    model.release()
    failed = team.wait_condition("stop", "Failed")
    assert failed["reason"] == "Cancelled"
    assert [b["status"] for b in batches(server, team.tag("stop"))] == ["cancelled"]
    found = lines(team)
    assert [line["row"] for line in found] == list(range(40))
    answered = {line["row"]: said(line) for line in found if line["error"] is None}
    asked = model.calls(team.namespace)
    assert answered == {n: answer_to(p) for n, p in enumerate(prompts) if p in asked}
    assert 10 < len(answered) < 40


def test_a_deleted_job_is_cancelled_at_the_server_and_goes_on_when_it_comes_back(
    team: Team, server: CompatibleServer, proxy: LossyProxy, model: ModelStub
) -> None:
    prompts = prompts_of(team, 30)
    team.apply(aibrix(team, proxy))
    model.hold_after(8)
    wanted = job(team, "back", prompts)
    team.apply(wanted)
    wait_until_asked(team, model, "back", 8)
    tag = wait_for("the tag", lambda: team.status("back").get("runKey") and team.tag("back"))
    wait_for("its batch", lambda: team.status("back").get("submissions"))
    team.kubectl("delete", "bij", "back", "--timeout=60s")
    assert batches(server, tag)[0]["status"] in {"cancelling", "finalizing", "cancelled"}
    model.release()
    team.apply(wanted)
    team.wait_condition("back", "Complete", 90)
    assert [said(line) for line in lines(team)] == [answer_to(prompt) for prompt in prompts]
    assert model.calls(team.namespace) == Counter(prompts), "no record was asked twice"


def test_a_lost_answer_to_the_create_call_is_settled_by_the_servers_own_listing(
    team: Team, server: CompatibleServer, proxy: LossyProxy, model: ModelStub
) -> None:
    prompts = prompts_of(team, 5)
    team.apply(aibrix(team, proxy))
    team.kubectl("wait", "inferenceprovider/aibrix", "--for=condition=Ready", "--timeout=30s")
    proxy.lose_answer("POST", "/v1/batches")
    team.apply(job(team, "lost", prompts))
    team.wait_condition("lost", "Complete", 90)
    assert [said(line) for line in lines(team)] == [answer_to(prompt) for prompt in prompts]
    assert proxy.lost == [("POST", "/v1/batches")]
    assert proxy.count("POST", "/v1/batches") == 1
    assert len(batches(server, team.tag("lost"))) == 1
    assert model.calls(team.namespace) == Counter(prompts)


def test_operator_and_server_are_killed_and_the_job_is_complete_all_the_same(
    team: Team, server: CompatibleServer, proxy: LossyProxy, model: ModelStub
) -> None:
    prompts = prompts_of(team, 30)
    team.apply(aibrix(team, proxy))
    model.hold_after(8)
    team.apply(job(team, "killed", prompts))
    wait_until_asked(team, model, "killed", 8)
    operator = team.stack.operators[0]
    operator.kill_all()
    server.program.kill()
    model.release()
    operator.start()
    team.stack.wait_until_healthy(operator)
    server.program.start()
    server.wait_until_it_answers()
    team.wait_condition("killed", "Complete", 90)
    assert [said(line) for line in lines(team)] == [answer_to(prompt) for prompt in prompts]
    assert len(batches(server, team.tag("killed"))) == 1


@pytest.mark.slow
def test_records_that_an_expired_batch_did_not_reach_go_again(
    team: Team, server: CompatibleServer, proxy: LossyProxy, model: ModelStub
) -> None:
    prompts = prompts_of(team, 40)
    provider = aibrix(team, proxy)
    provider["spec"]["openAI"]["completionWindow"] = "1m"  # the shortest that it takes
    team.apply(provider)
    model.hold_after(10)
    team.apply(job(team, "late", prompts))
    wait_until_asked(team, model, "late", 10)
    tag = team.tag("late")
    [made] = wait_for("its batch", lambda: batches(server, tag))
    # The server looks every second for ended windows, and shows what it found only when the calls
    # under way are over: its clock is all that can be seen from outside.
    wait_for("the window's end", lambda: time.time() > made["expires_at"] + 5, 90)
    model.release()
    team.wait_condition("late", "Complete", 90)
    assert [said(line) for line in lines(team)] == [answer_to(prompt) for prompt in prompts]
    assert model.calls(team.namespace) == Counter(prompts), "no record was asked twice"
    ends = {b["status"]: b["request_counts"] for b in batches(server, tag)}
    assert set(ends) == {"expired", "completed"}
    assert ends["expired"]["completed"] + ends["completed"]["total"] == len(prompts)
