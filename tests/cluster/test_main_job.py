"""The main job, end to end: kubectl in, ordered results out, on a real control plane."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from stack import wait_for
from team import Team, chat, jsonl, sha256


def result_lines(team: Team, manifest: dict[str, Any], kind: str = "results") -> Iterator[Any]:
    """The lines of all parts, checked against what the manifest says of them."""
    for part in manifest[kind]:
        data = team.read(part["uri"])
        assert len(data) == part["bytes"]
        assert sha256(data) == part["sha256"]
        lines = data.splitlines()
        assert len(lines) == part["rows"]
        yield from map(json.loads, lines)


def test_inline_prompts_come_back_in_a_config_map_without_object_storage(team: Team) -> None:
    team.apply(
        *_without_storage(team),
        {
            **team.job(
                "haiku",
                input={
                    "inline": jsonl(chat(f"id-{n}", f"Say number {n}") for n in range(7)).decode()
                },
                output={"configMap": {"name": "haiku-results"}},
            )
        },
    )
    team.kubectl("wait", "bij/haiku", "--for=condition=Complete", "--timeout=60s")
    found = team.stack.get("configmap", "haiku-results", team.namespace)
    assert found is not None
    lines = [json.loads(line) for line in found["data"]["results.jsonl"].splitlines()]
    assert [line["custom_id"] for line in lines] == [f"id-{n}" for n in range(7)]
    assert [line["row"] for line in lines] == list(range(7))
    assert all(line["response"]["status_code"] == 200 for line in lines)
    assert json.loads(found["data"]["manifest.json"])["counts"]["completed"] == 7
    assert "ownerReferences" not in found["metadata"]
    header, row = team.kubectl("get", "bij", "haiku").splitlines()
    assert header.split() == ["NAME", "STATE", "PROVIDER", "MODEL", "PROGRESS", "AGE"]
    assert row.split()[:5] == ["haiku", "Succeeded", "openai", "gpt-4.1-mini", "7/7"]
    tag = team.tag("haiku")
    assert set(team.accepted(tag).values()) == {1}
    wait_for(
        "cleaned staging",
        lambda: (
            not team.stack.control_plane.kubectl(
                *("get", "configmaps", "--all-namespaces", "--output", "name"),
                *(
                    "--selector",
                    f"batchinference.dev/staging=staging-{team.status('haiku')['runKey']}",
                ),
            ).stdout
        ),
    )
    wait_for(
        "the provider's files deleted",
        lambda: (
            [
                f["deleted"]
                for f in team.control.state()["openai"]["files"]
                if f["filename"].startswith(tag)
            ]
            == [True]
        ),
    )


def _without_storage(team: Team) -> list[dict[str, Any]]:
    """The provider `openai` without any object storage."""
    objects = team.stack.providers(team.namespace)
    provider = next(o for o in objects if o["metadata"]["name"] == "openai" and "spec" in o)
    del provider["spec"]["storage"]
    team.kubectl("delete", "inferenceprovider", "openai")
    return [provider]


def test_openai_job_of_three_shards_comes_back_in_input_order(team: Team) -> None:
    total = 120_000
    ids = [f"ticket/{(n * 7919) % total:06d}" for n in range(total)]
    data = jsonl(chat(i, f"Classify ticket {n}") for n, i in enumerate(ids))
    uri = team.put("big.jsonl", data)
    team.apply(team.job("big", input={"s3": {"uri": uri}}))
    wait_for("staged", lambda: team.status("big").get("shards", {}).get("total") == 3, 120)
    wait_for(
        "past staging",
        lambda: team.status("big").get("state") in {"Queued", "Running", "Collecting", "Succeeded"},
    )
    team.put("big.jsonl", b"overwritten, and not even JSON\n")
    team.wait_condition("big", "Complete", 300)
    manifest = team.manifest("big")
    counts = manifest["counts"]
    assert [counts[n] for n in ("total", "completed", "failed", "lost")] == [total, total, 0, 0]
    assert sum(part["rows"] for part in manifest["results"]) == total
    seen = 0
    for line in result_lines(team, manifest):
        assert (line["row"], line["custom_id"]) == (seen, ids[seen])
        assert f"{seen}" in line["response"]["body"]["choices"][0]["message"]["content"]
        seen += 1
    assert seen == total
    accepted = team.accepted(team.tag("big"))
    assert accepted == {(0, 1): 1, (1, 1): 1, (2, 1): 1}
    status = team.status("big")
    assert status["progress"] == f"{total}/{total}"
    assert int(status["usage"]["inputTokens"]) > total


PRICE = {
    "model": "gpt-4.1-mini",
    "inputPerMillionTokens": "0.40",
    "outputPerMillionTokens": "1.60",
}


def test_a_budget_that_is_too_small_is_raised_and_the_job_completes_with_its_cost(
    team: Team,
) -> None:
    source = team.put("paid.jsonl", jsonl(chat(f"id-{n}", f"Say number {n}") for n in range(20)))
    team.apply(
        team.job(
            "paid",
            input={"s3": {"uri": source}},
            parameters={"maxOutputTokens": 50},
            budget={"maxCost": "0.0001"},
        )
    )
    stalled = team.wait_condition("paid", "Stalled")
    assert stalled["reason"] == "PriceUnknown", "nobody knows what the sandbox charges"
    _patch(team, "inferenceprovider/openai", {"pricing": [PRICE]})
    try:
        wait_for(
            "the budget is held against the price",
            lambda: team.condition("paid", "Stalled")["reason"] == "BudgetExceeded",
        )
        assert not team.accepted(team.tag("paid"))
        most = team.status("paid")["cost"]["estimated"]
        assert (
            f"Raise `spec.budget.maxCost` to {most}" in team.condition("paid", "Stalled")["message"]
        )
        _patch(team, "bij/paid", {"budget": {"maxCost": most}})
        team.wait_state("paid", "Succeeded")
        status, manifest = team.status("paid"), team.manifest("paid")
        used = {name: Decimal(tokens) for name, tokens in status["usage"].items()}
        live = (
            used["inputTokens"] * Decimal("0.4") + used["outputTokens"] * Decimal("1.6")
        ) / 10**6
        assert status["cost"] == manifest["cost"]
        assert status["cost"]["estimated"] == most
        assert abs(Decimal(status["cost"]["onDemand"]) - live) <= Decimal("0.0000005")
        assert Decimal(status["cost"]["actual"]) <= Decimal(most)
        assert status["cost"]["currency"] == "USD"
    finally:
        _patch(team, "inferenceprovider/openai", {"pricing": None})


def _patch(team: Team, target: str, spec: dict[str, Any]) -> None:
    team.kubectl("patch", target, "--type=merge", "--patch", json.dumps({"spec": spec}))


OPERATIONS = [
    (
        "Completions",
        "gpt-3.5-turbo-instruct",
        {"prompt": "Say a number", "max_tokens": 8},
        lambda body: body["choices"][0]["text"],
    ),
    (
        "Responses",
        "gpt-4.1-mini",
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "What is on it?"},
                        {
                            "type": "input_image",
                            "detail": "auto",
                            "image_url": "https://example.com/cat.png",
                        },
                    ],
                }
            ]
        },
        lambda body: body["output"][-1]["content"][0]["text"],
    ),
    (
        "Embeddings",
        "text-embedding-3-small",
        {"input": ["one", "two"], "dimensions": 8},
        lambda body: [len(item["embedding"]) for item in body["data"]] == [8, 8],
    ),
]


@pytest.mark.parametrize(
    ("operation", "model", "body", "said"), OPERATIONS, ids=[o[0] for o in OPERATIONS]
)
def test_every_operation_of_openai_comes_back_with_its_usage(
    team: Team,
    operation: str,
    model: str,
    body: dict[str, Any],
    said: Callable[[dict[str, Any]], object],
) -> None:
    name = operation.lower()
    records = [{"custom_id": f"id-{n}", "body": body} for n in range(3)]
    source = team.put(f"{name}.jsonl", jsonl(records))
    team.apply(team.job(name, model=model, operation=operation, input={"s3": {"uri": source}}))
    team.wait_state(name, "Succeeded")
    lines = list(result_lines(team, team.manifest(name)))
    assert [line["custom_id"] for line in lines] == ["id-0", "id-1", "id-2"]
    assert all(said(line["response"]["body"]) for line in lines)
    assert int(team.status(name)["usage"]["inputTokens"]) > 0


def test_rows_of_a_packed_table_become_requests_by_a_template(team: Team) -> None:
    rows = [("id", "customer", "text"), *((f"t-{n}", f"Ann {n}", f"Line\n{n}") for n in range(40))]
    table = io.StringIO(newline="")
    csv.writer(table).writerows([*rows, ("t-40", "too few")])
    source = team.put("tickets.csv.gz", gzip.compress(table.getvalue().encode()))
    team.apply(
        team.job(
            "rows",
            input={"s3": {"uri": source}},
            promptTemplate={
                "system": "One of: billing, technical",
                "prompt": "{{ customer }} says: {{ text }}",
                "idField": "id",
            },
            parameters={"maxOutputTokens": 8},
            successPolicy={"maxFailedRecords": 1},
        )
    )
    team.wait_state("rows", "Succeeded")
    lines = list(result_lines(team, team.manifest("rows")))
    assert [line["custom_id"] for line in lines] == [*(f"t-{n}" for n in range(40)), None]
    answers = [line["response"]["body"]["choices"][0]["message"]["content"] for line in lines[:40]]
    assert set(answers) == {"billing", "technical"}
    assert lines[40]["error"]["code"] == "WrongFieldCount"
    assert f"{source} row 41: the row has 2 fields" in lines[40]["error"]["message"]
    journal = team.journal("rows")
    assert journal is not None
    assert "says" not in json.dumps(journal), "prompts are in no journal"


def test_bedrock_job_of_two_shards_comes_back_in_input_order(team: Team) -> None:
    total = 60_000
    data = jsonl(chat(f"review-{n}", f"Judge review {n}", max_tokens=16) for n in range(total))
    uri = team.put("reviews.jsonl", data)
    team.apply(team.job("reviews", provider="bedrock", input={"s3": {"uri": uri}}))
    team.wait_condition("reviews", "Complete", 300)
    manifest = team.manifest("reviews")
    seen = 0
    for line in result_lines(team, manifest):
        assert (line["row"], line["custom_id"]) == (seen, f"review-{seen}")
        assert line["response"]["body"]["object"] == "chat.completion"
        seen += 1
    assert seen == total
    assert team.accepted(team.tag("reviews")) == {(0, 1): 1, (1, 1): 1}
    wait_for("staging deleted", lambda: not _staging(team, "bedrock"))


def _staging(team: Team, provider: str) -> list[str]:
    return team.keys(f"s3://team-data/staging/{provider}/{team.namespace}/")


def test_deleting_a_running_job_cancels_each_batch_once_and_keeps_the_answers(team: Team) -> None:
    team.apply(*team.stack.providers(team.namespace, openai=_limits(100)))
    uri = team.put("some.jsonl", jsonl(chat(f"r{n}", f"Say {n}") for n in range(300)))
    team.control.hold("openai")
    team.apply(team.job("some", input={"s3": {"uri": uri}}))
    wait_for(
        "three live batches",
        lambda: (
            len(team.status("some").get("submissions", [])) == 3
            and all(s["state"] == "InProgress" for s in team.status("some")["submissions"])
        ),
    )
    tag = team.tag("some")
    team.kubectl("delete", "bij", "some", "--timeout=30s")
    assert team.get("some") is None
    made = dict(team.submissions(tag))
    assert [s["cancels"] for s in made.values()] == [1, 1, 1]
    team.control.release("openai")
    prefix = f"s3://team-data/results/{team.namespace}/some/"
    wait_for("the manifest", lambda: f"{prefix}manifest.json" in team.keys(prefix))
    manifest = team.manifest("some")
    answered = [r for r in result_lines(team, manifest) if r["error"] is None]
    assert len(answered) == sum(s["completed"] for _, s in team.submissions(tag)) > 0
    assert manifest["counts"]["total"] == 300
    assert [s["cancels"] for _, s in team.submissions(tag)] == [1, 1, 1]


def _limits(records: int) -> dict[str, Any]:
    return {"limits": {"maxRecordsPerBatch": records, "minRecordsPerBatch": 1}}


def test_delete_and_create_again_takes_up_the_records_without_an_answer(team: Team) -> None:
    team.apply(*team.stack.providers(team.namespace, openai=_limits(50)))
    records = [chat(f"r{n}", f"Say {n}") for n in range(100)]
    uri = team.put("again.jsonl", jsonl(records))
    job = team.job("again", input={"s3": {"uri": uri}})
    team.control.hold("openai")
    team.apply(job)
    wait_for("two batches", lambda: len(team.status("again").get("submissions", [])) == 2)
    wait_for(
        "both in progress",
        lambda: {s["state"] for s in team.status("again")["submissions"]} == {"InProgress"},
    )
    tag = team.tag("again")
    team.kubectl("delete", "bij", "again", "--timeout=30s")
    team.control.release("openai")
    team.apply(job)
    team.wait_condition("again", "Complete", 90)
    lines = list(result_lines(team, team.manifest("again")))
    assert [line["custom_id"] for line in lines] == [r["custom_id"] for r in records]
    assert all(line["error"] is None for line in lines)
    assert set(team.accepted(tag).values()) == {1}
    billed = sum(s["completed"] for _, s in team.submissions(tag))
    assert billed == 100, "no record was answered twice"


def test_a_finished_job_is_deleted_at_once_and_found_again_without_a_call(team: Team) -> None:
    job = team.job(
        "once",
        input={"inline": jsonl(chat(f"r{n}", f"Say {n}") for n in range(3)).decode()},
        output={"configMap": {"name": "once-results"}},
    )
    team.apply(job)
    team.wait_condition("once", "Complete")
    first = team.status("once")
    tag = team.tag("once")
    wait_for("the finalizer gone", lambda: "finalizers" not in team.get("once")["metadata"])
    team.kubectl("delete", "bij", "once", "--timeout=10s")
    team.apply(job)
    team.wait_condition("once", "Complete")
    again = team.status("once")
    assert team.condition("once", "Submitted")["reason"] == "AdoptedPreviousRun"
    assert again["completionTime"] == first["completionTime"]
    assert again["outputs"] == first["outputs"]
    assert team.accepted(tag) == {(0, 1): 1}


def test_cancelling_by_desired_state_keeps_the_object_and_the_partial_results(team: Team) -> None:
    uri = team.put("stop.jsonl", jsonl(chat(f"r{n}", f"Say {n}") for n in range(40)))
    team.control.hold("openai")
    team.apply(team.job("stop", input={"s3": {"uri": uri}}))
    wait_for(
        "in progress",
        lambda: [s["state"] for s in team.status("stop").get("submissions", [])] == ["InProgress"],
    )
    team.kubectl("patch", "bij", "stop", "--type=merge", '-p={"spec":{"desiredState":"Cancelled"}}')
    failed = team.wait_condition("stop", "Failed")
    assert failed["reason"] == "Cancelled"
    assert team.status("stop")["state"] == "Cancelled"
    counts = team.manifest("stop")["counts"]
    assert counts["total"] == 40
    assert 0 < counts["completed"] < 40
    assert [s["cancels"] for _, s in team.submissions(team.tag("stop"))] == [1]


def test_a_suspended_job_makes_no_call_until_it_is_resumed(team: Team) -> None:
    spec = {
        "input": {"inline": jsonl([chat("a", "Say a")]).decode()},
        "output": {"configMap": {"name": "held-results"}},
    }
    team.apply(team.job("held", suspend=True, **spec))
    team.wait_condition("held", "Suspended")
    assert team.status("held")["state"] == "Suspended"
    assert "submissions" not in team.status("held")
    team.kubectl("patch", "bij", "held", "--type=merge", '-p={"spec":{"suspend":false}}')
    team.wait_condition("held", "Complete")
