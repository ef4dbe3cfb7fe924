"""That the books of a crash campaign find what they are for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from crash.books import Tally, balance, defects
from crash.jobs import Given
from team import Team

RECORDS = 4
OPENAI = Given("on-openai", "openai", RECORDS, shards=2)
BEDROCK = Given("on-bedrock", "bedrock", RECORDS, shards=2)
TINY = Given("tiny", "openai-tiny", RECORDS, shards=2, tiny=True)
TAGS = {OPENAI.name: "a" * 20, BEDROCK.name: "b" * 20, TINY.name: "c" * 20}


class World:
    """What a campaign leaves when all went well: two batches of two records each per job."""

    def __init__(self) -> None:
        self.states = dict.fromkeys(TAGS, "Succeeded")
        self.lines = {
            name: [{"custom_id": f"r{n}", "error": None} for n in range(RECORDS)] for name in TAGS
        }
        self.openai = [
            {
                "metadata": {
                    "batchinference_run": TAGS[job.name],
                    "batchinference_shard": str(shard),
                    "batchinference_ordinal": "1",
                },
                "completed": 2,
                "status": "completed",
            }
            for job in (OPENAI, TINY)
            for shard in range(2)
        ]
        self.bedrock = [
            {
                "jobName": f"bij-{TAGS[BEDROCK.name]}-s{shard}-o1-0f",
                "succeeded": 2,
                "status": "Completed",
            }
            for shard in range(2)
        ]
        self.control = self
        self.stack = self

    def state(self) -> dict[str, Any]:
        return {"openai": {"submissions": self.openai}, "bedrock": {"submissions": self.bedrock}}

    def tag_of(self, run_key: str) -> str:
        return TAGS[run_key]

    def get(self, *named: str) -> dict[str, Any]:
        if named[0] == "configmap":
            return {"data": {"results.jsonl": self.read(named[1]).decode()}}
        return {"status": {"state": self.states[named[0]], "runKey": named[0]}}

    def manifest(self, name: str) -> dict[str, Any]:
        return {"results": [{"uri": name}]}

    def read(self, uri: str) -> bytes:
        return b"".join(json.dumps(line).encode() + b"\n" for line in self.lines[uri])


def balanced(world: World) -> Tally:
    tally = Tally()
    balance(cast("Team", world), [OPENAI, BEDROCK, TINY], tally)
    return tally


def test_where_all_went_well_everything_is_counted_and_nothing_is_wrong() -> None:
    tally = balanced(World())
    assert tally.problems == []
    assert (tally.jobs, tally.expected, tally.accepted, tally.void, tally.settled) == (
        3,
        6,
        6,
        0,
        0,
    )
    assert (tally.records_in, tally.records_out, tally.billed) == (12, 12, 12)
    assert tally.lines()[-1] == "nothing was paid twice, nothing is missing"


def test_a_batch_that_failed_unread_and_an_ordinal_that_never_was_are_no_harm() -> None:
    world = World()
    world.bedrock.append({**world.bedrock[0], "succeeded": 0, "status": "Failed"})
    world.bedrock[0]["jobName"] = world.bedrock[0]["jobName"].replace("-o1-", "-o3-")
    tally = balanced(world)
    assert tally.problems == []
    assert (tally.accepted, tally.void, tally.settled) == (6, 1, 1)


def twice(world: World) -> None:
    world.openai.append(dict(world.openai[0]))


def again(world: World) -> None:
    world.bedrock.append({**world.bedrock[0], "jobName": f"x-{TAGS['on-bedrock']}-s0-o2-0f"})


def unbilled(world: World) -> None:
    world.bedrock[0]["succeeded"] = 1


def short(world: World) -> None:
    del world.lines["on-openai"][1]


def doubled(world: World) -> None:
    world.lines["tiny"].append(world.lines["tiny"][-1])


def unanswered(world: World) -> None:
    world.lines["tiny"][0]["error"] = {"code": "AnswerLost"}


def failed(world: World) -> None:
    world.states["on-bedrock"] = "Failed"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (twice, "on-openai: accepted twice"),
        (again, "on-bedrock: batches by shard: {0: 2, 1: 1}"),
        (unbilled, "on-bedrock: 3 of 4 records were paid for"),
        (short, "on-openai: the results are not those of the input"),
        (doubled, "tiny: the results are not those of the input"),
        (unanswered, "tiny: without an answer: ['r0']"),
        (failed, "on-bedrock: null"),
    ],
)
def test_harm_is_found(harm: Callable[[World], None], said: str) -> None:
    world = World()
    harm(world)
    tally = balanced(world)
    assert any(said in problem for problem in tally.problems), tally.problems
    assert any(line.startswith("WRONG: ") for line in tally.lines())


def test_defects_that_the_operator_outlived_are_found_in_its_log() -> None:
    log = "INFO all is well\nERROR Run ab can't be reconciled\nERROR Run cd can't be reconciled\n"
    assert defects(log) == ["the operator met a defect: ERROR Run ab can't be reconciled"]
    assert defects("WARNING Account openai can't be asked: 503\n") == []
