"""The two state machines, as tables: what each input does in each state.

Both tables are total: every pair of state and input is either an arrow or listed as ignored, with
the reason. Terminal is terminal. The tables are data so that they can be rendered into the docs
and checked by a test; nothing else may change a shard's state or a run's phase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

from batchinference.model.run import Run, RunPhase, Shard, ShardState

S = ShardState
P = RunPhase


class ShardInput(StrEnum):
    """What can happen to a shard."""

    QUEUE = "Queue"  # the run is staged and within tolerance and budget
    CLAIM = "Claim"  # the journal says: a create call follows
    ACCEPT = "Accept"  # the provider has it: the call's answer, or found by asking
    APPEAR = "Appear"  # a late batch: of an ordinal that was given up, or one too many
    PUT_BACK = "PutBack"  # certainly not accepted, and may be tried again
    REFUSE = "Refuse"  # certainly not accepted, and never will be
    LOSE = "Lose"  # the call's answer is lost
    FENCE = "Fence"  # absent over two listings a settle time apart
    GIVE_UP = "GiveUp"  # still absent a settle time after its input was deleted
    WRITE_OFF = "WriteOff"  # a person says that nobody will know, and that it must not go again
    OVER = "Over"  # its batch ended, and every late one
    VOID = "Void"  # what it had failed with nothing processed, and may be tried again
    COLLECT = "Collect"  # every record of it is accounted for
    DROP = "Drop"  # the run is being cancelled before this was submitted
    RESUME = "Resume"  # the run came back from parking
    REGROUP = "Regroup"  # it is too large, or some of its records may have an answer by now


class RunInput(StrEnum):
    """What can happen to a run."""

    ADMIT = "Admit"  # the input is there and the output place is ours
    ADOPT = "Adopt"  # its manifest stands already: it is finished
    STAGE = "Stage"  # staging is complete
    REJECT = "Reject"  # final before anything was accepted
    SETTLE = "Settle"  # every shard is settled and nothing goes again
    MANIFEST = "Manifest"  # the manifest stands and the run is final
    PARK = "Park"  # the manifest stands; cancelled by deletion with records unanswered
    RESUME = "Resume"  # the object came back to a parked run
    EXPIRE = "Expire"  # parked for too long
    ABANDON = "Abandon"  # no object, no credentials, and the answers are gone by now
    CLEAN = "Clean"  # nothing of ours is left behind
    RESTART = "Restart"  # the object came back to an end without an accepted submission


SHARD: Mapping[tuple[ShardState, ShardInput], ShardState] = {
    (S.STAGED, ShardInput.QUEUE): S.QUEUED,
    (S.STAGED, ShardInput.DROP): S.DROPPED,
    (S.QUEUED, ShardInput.CLAIM): S.CLAIMED,
    (S.QUEUED, ShardInput.DROP): S.DROPPED,
    (S.QUEUED, ShardInput.ACCEPT): S.SUBMITTED,  # a fenced ordinal that appeared after all
    (S.CLAIMED, ShardInput.ACCEPT): S.SUBMITTED,
    (S.CLAIMED, ShardInput.PUT_BACK): S.QUEUED,
    (S.CLAIMED, ShardInput.REFUSE): S.ENDED,
    (S.CLAIMED, ShardInput.LOSE): S.UNKNOWN,
    (S.UNKNOWN, ShardInput.ACCEPT): S.SUBMITTED,
    (S.UNKNOWN, ShardInput.FENCE): S.FENCING,
    (S.FENCING, ShardInput.ACCEPT): S.SUBMITTED,
    (S.FENCING, ShardInput.GIVE_UP): S.QUEUED,
    (S.UNKNOWN, ShardInput.WRITE_OFF): S.ENDED,
    (S.FENCING, ShardInput.WRITE_OFF): S.ENDED,
    (S.QUEUED, ShardInput.APPEAR): S.SUBMITTED,
    (S.ENDED, ShardInput.APPEAR): S.SUBMITTED,
    (S.COLLECTED, ShardInput.APPEAR): S.SUBMITTED,
    (S.DROPPED, ShardInput.APPEAR): S.SUBMITTED,
    (S.SUBMITTED, ShardInput.OVER): S.ENDED,
    (S.SUBMITTED, ShardInput.VOID): S.QUEUED,
    (S.ENDED, ShardInput.COLLECT): S.COLLECTED,
    (S.DROPPED, ShardInput.ACCEPT): S.SUBMITTED,  # likewise: it is cancelled and collected
    (S.DROPPED, ShardInput.RESUME): S.QUEUED,
    (S.QUEUED, ShardInput.REGROUP): S.REGROUPED,
    (S.REGROUPED, ShardInput.DROP): S.DROPPED,
    (S.REGROUPED, ShardInput.ACCEPT): S.SUBMITTED,
    (S.REGROUPED, ShardInput.APPEAR): S.SUBMITTED,
}
"""The arrows of a shard."""

SHARD_IGNORED: Mapping[ShardInput, str] = {
    ShardInput.QUEUE: "it asks for a place already, or is past asking",
    ShardInput.CLAIM: "only a queued shard is claimed; a lost race",
    ShardInput.ACCEPT: "known already, or the news is of an ordinal that is settled",
    ShardInput.APPEAR: "what the provider has, or may have, goes on beside it",
    ShardInput.PUT_BACK: "after an unanswered attempt a refusal proves nothing; or it is settled",
    ShardInput.REFUSE: "after an unanswered attempt a refusal proves nothing; or it is settled",
    ShardInput.LOSE: "only an open create call can lose its answer",
    ShardInput.FENCE: "only an unknown outcome is fenced",
    ShardInput.GIVE_UP: "only a fenced ordinal is given up",
    ShardInput.WRITE_OFF: "only what nobody knows the outcome of",
    ShardInput.OVER: "the end was seen already",
    ShardInput.VOID: "the end was seen already",
    ShardInput.COLLECT: "collected already, or nothing ended to collect",
    ShardInput.DROP: "what the provider may have is never dropped; it is cancelled and collected",
    ShardInput.RESUME: "only what was dropped is taken up again",
    ShardInput.REGROUP: "what the provider has, or may have, stays as it is",
}
"""Why an input without an arrow does nothing."""

RUN: Mapping[tuple[RunPhase, RunInput], RunPhase] = {
    (P.ADMITTING, RunInput.ADMIT): P.STAGING,
    (P.ADMITTING, RunInput.ADOPT): P.CLEANING,
    (P.ADMITTING, RunInput.REJECT): P.CLEANING,
    (P.STAGING, RunInput.STAGE): P.RUNNING,
    (P.STAGING, RunInput.REJECT): P.CLEANING,
    (P.RUNNING, RunInput.REJECT): P.CLEANING,
    (P.RUNNING, RunInput.SETTLE): P.FINISHING,
    (P.FINISHING, RunInput.MANIFEST): P.CLEANING,
    (P.RUNNING, RunInput.ABANDON): P.CLEANING,
    (P.FINISHING, RunInput.PARK): P.PARKED,
    (P.PARKED, RunInput.RESUME): P.RUNNING,
    (P.PARKED, RunInput.EXPIRE): P.CLEANING,
    (P.CLEANING, RunInput.CLEAN): P.ENDED,
    (P.ENDED, RunInput.RESTART): P.ADMITTING,
}
"""The arrows of a run."""

RUN_IGNORED: Mapping[RunInput, str] = {
    RunInput.ADMIT: "admitted already",
    RunInput.ADOPT: "only a first look at the output place finds an end",
    RunInput.STAGE: "staged already, or rejected meanwhile",
    RunInput.REJECT: "a run with its answers on the way finishes; an end is an end",
    RunInput.SETTLE: "only a running run settles",
    RunInput.MANIFEST: "the manifest is not being written, or stands already",
    RunInput.PARK: "only a run whose manifest has just been written is parked",
    RunInput.RESUME: "only a parked run is taken up again",
    RunInput.EXPIRE: "only a parked run waits for its object",
    RunInput.ABANDON: "nothing is waited for at the provider, or an end is an end",
    RunInput.CLEAN: "nothing is being cleaned",
    RunInput.RESTART: "only an end without an accepted submission starts afresh",
}
"""Why an input without an arrow does nothing."""


def step_shard(shard: Shard, event: ShardInput) -> Shard | None:
    """The shard after the input, or None when the table ignores it."""
    target = SHARD.get((shard.state, event))
    return None if target is None else replace(shard, state=target)


def step_run(run: Run, event: RunInput) -> Run | None:
    """The run after the input, or None when the table ignores it."""
    target = RUN.get((run.phase, event))
    return None if target is None else replace(run, phase=target)


def render() -> str:
    """Both tables as Markdown, for `docs/states.md`."""
    return "\n".join(
        [
            "## Run",
            "",
            *_rows(RUN, RUN_IGNORED, list(RunPhase)),
            "",
            "## Shard",
            "",
            *_rows(SHARD, SHARD_IGNORED, list(ShardState)),
            "",
        ]
    )


def _rows(
    table: Mapping[Any, StrEnum],
    ignored: Mapping[Any, str],
    states: Sequence[StrEnum],
) -> list[str]:
    lines = ["| input | in state | becomes | elsewhere ignored because |", "|---|---|---|---|"]
    for event, why in ignored.items():
        arrows = [(s, table[s, event]) for s in states if (s, event) in table]
        origin = "<br>".join(s.value for s, _ in arrows)
        target = "<br>".join(t.value for _, t in arrows)
        lines.append(f"| {event.value} | {origin} | {target} | {why} |")
    return lines
