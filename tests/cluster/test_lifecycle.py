"""Deadlines, times to live, pauses and decisions, as the chart's roles and schemas allow them."""

from __future__ import annotations

import json
import re

from stack import OPERATOR_NAMESPACE, wait_for
from team import Team, chat, jsonl


def start(team: Team, name: str, **spec: object) -> None:
    uri = team.put(f"{name}.jsonl", jsonl(chat(f"r{n}", f"Say {n}") for n in range(3)))
    team.apply(team.job(name, input={"s3": {"uri": uri}}, **spec))


def test_a_deadline_cancels_at_the_provider_and_keeps_what_there_is(team: Team) -> None:
    team.control.hold("openai")
    start(team, "late", activeDeadlineSeconds=3600)
    team.wait_state("late", "Running")
    patch = json.dumps({"spec": {"activeDeadlineSeconds": 1}})
    team.kubectl("patch", "bij/late", "--type=merge", f"--patch={patch}")
    team.kubectl("wait", "bij/late", "--for=condition=Failed", "--timeout=60s")
    assert team.condition("late", "Failed")["reason"] == "DeadlineExceeded"
    ((_, made),) = team.submissions(team.tag("late"))
    assert made["status"] == "cancelled"
    assert team.manifest("late")["counts"]["total"] == 3


def test_a_finished_job_is_deleted_in_time_and_its_results_and_receipt_stay(team: Team) -> None:
    team.control.hold("openai")
    start(team, "short", ttlSecondsAfterFinished=2)
    team.wait_state("short", "Running")
    key = team.status("short")["runKey"]
    team.control.release("openai")
    wait_for("the object gone", lambda: team.get("short") is None, 30)
    assert team.manifest("short")["counts"]["completed"] == 3
    receipt = team.stack.get("configmap", f"run-{key}", OPERATOR_NAMESPACE)
    assert receipt is not None
    assert receipt["metadata"]["labels"]["batchinference.dev/journal"] == "ended"


def test_whoever_is_on_duty_pauses_a_provider_and_a_job(team: Team) -> None:
    team.kubectl("annotate", "bip/openai", "batchinference.dev/paused=true")
    start(team, "held")
    team.kubectl("wait", "bij/held", "--for=condition=Suspended", "--timeout=60s")
    assert team.condition("held", "Suspended")["reason"] == "Paused"
    assert not team.accepted(team.tag("held"))
    team.kubectl("annotate", "bij/held", "batchinference.dev/paused=true")
    team.kubectl("annotate", "bip/openai", "batchinference.dev/paused-")
    wait_for(
        "the job's own pause",
        lambda: "holds the job" in team.condition("held", "Suspended")["message"],
    )
    team.kubectl("annotate", "bij/held", "batchinference.dev/paused-")
    team.wait_condition("held", "Complete")


def test_a_batch_that_is_denied_for_good_is_given_up_with_the_command_of_the_message(
    team: Team,
) -> None:
    team.control.hold("openai")
    start(team, "denied")
    team.wait_state("denied", "Running")
    team.control.fault("openai", "error", "batches.retrieve", status=404, times=None)
    stalled = team.wait_condition("denied", "Stalled")
    assert stalled["reason"] == "BatchNotFound"
    command = re.search(r"`kubectl (annotate [^`]+)`", stalled["message"])
    assert command is not None, stalled["message"]
    team.stack.control_plane.kubectl(*command[1].split())
    team.wait_condition("denied", "Failed", 60)
    counts = team.manifest("denied")["counts"]
    assert counts["lost"] + counts["failed"] >= 3
    events = json.loads(team.kubectl("get", "events", "--output=json"))["items"]
    assert any(event["reason"] == "DecidedByAnnotation" for event in events)
