"""The status of a job, derived from its run: a view that can be rebuilt at any time.

The written precedence of the shown state, highest first: the verdict once it is final; Stalled;
Cancelling; Suspended (nothing accepted yet); then where the shards are. Of the
conditions (docs/adr/0011), Reconciling is True only while Pending, so that a job that waits in a
queue for hours is Current for kstatus; Stalled is True on every end that is not a success.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from batchinference.core.counts import (
    cost,
    has_unseen_batch,
    newest_submissions,
    request_counts,
    shard_counts,
    usage,
)
from batchinference.core.notes import Notes
from batchinference.core.problem import Problem
from batchinference.core.receipt import absolute
from batchinference.core.timing import Timing
from batchinference.core.waiting import waiting_for
from batchinference.errors import InvalidObject
from batchinference.model.codec import decode
from batchinference.model.job import BatchInferenceJob
from batchinference.model.run import (
    Ending,
    Run,
    RunPhase,
    ShardState,
    SubmissionState,
)
from batchinference.model.status import (
    Condition,
    ConditionType,
    ConfigMapRef,
    JobStatus,
    Outputs,
    Reason,
    State,
    settled,
)

_NOTHING_ACCEPTED = "Nothing was accepted by the provider"
_HAD_PLACE = {SubmissionState.ACCEPTED, SubmissionState.ENDED}
_ENDINGS = {
    Ending.SUCCEEDED: State.SUCCEEDED,
    Ending.FAILED: State.FAILED,
    Ending.CANCELLED: State.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What the view is taken of. `run` None: nothing was claimed yet.

    Attributes:
        installation: whose view it is.
        steered_by: the job that steers the run, where that is another one.
        paused: see `core.draft.Decision`.
        delay: what all runs of the account wait for, as reason and message.
    """

    job: BatchInferenceJob
    run: Run | None
    notes: Notes
    problem: Problem | None
    held: bool
    now: datetime
    timing: Timing
    installation: str = ""
    steered_by: str = ""
    paused: str = ""
    delay: tuple[str, str] | None = None


def status_of(scene: Scene) -> JobStatus:
    """The whole status."""
    run = scene.run
    if run is None:
        return _without_run(scene)
    state = shown_state(scene)
    before = None
    if run.phase is RunPhase.ENDED or has_unseen_batch(run, scene.notes):
        before = _shown_before(scene)
        if before is not None and before.run_key != run.key:
            before = None
    kept = before if run.phase is RunPhase.ENDED else None
    counts = request_counts(run, scene.notes, before.request_counts if before else None)
    status = JobStatus(
        observed_generation=scene.job.metadata.generation,
        state=state,
        conditions=tuple(_conditions(scene, state)),
        run_key=run.key,
        start_time=_whole_second(run.start_time),
        completion_time=_whole_second(run.completion_time) if run.is_over else None,
        progress=f"{counts.completed}/{counts.total}" if counts.total else "",
        request_counts=counts if counts.total else None,
        shards=kept.shards if kept else shard_counts(run.shards) if run.shards else None,
        submissions=kept.submissions if kept else newest_submissions(run, scene.notes, before),
        usage=usage(run),
        cost=cost(run),
        outputs=_outputs(run),
        installation=scene.installation if run.output.claimed else _owner(scene.job),
    )
    return _as_it_ended(scene, status) if is_final(scene.job.status) else status


def _as_it_ended(scene: Scene, status: JobStatus) -> JobStatus:
    """The status of an object that says its end already: that end stands, also where the run has
    come to another one since, because its journal was lost in between.
    """
    before = _shown_before(scene)
    if before is None:
        return status
    said = {c.type: c for c in before.conditions if c.type in _OF_AN_END}
    held = (said.get(c.type, c) for c in status.conditions)
    generation = status.observed_generation
    return replace(
        status,
        state=before.state,
        completion_time=before.completion_time,
        conditions=tuple(replace(c, observed_generation=generation) for c in held),
    )


def is_shown_elsewhere(job: BatchInferenceJob, run: Run | None, installation: str) -> bool:
    """Whether another installation shows the job, and this one must not touch it.

    Two whose watch scopes overlap would write against each other for ever. The one whose run holds
    the output place shows the job, since no other can submit anything of it.
    """
    holds = run is not None and run.output.claimed and not run.is_over
    return not holds and _owner(job) not in {"", installation}


def _owner(job: BatchInferenceJob) -> str:
    return str(job.status.get("installation") or "")


def _whole_second(time: datetime | None) -> datetime | None:
    """A time as Kubernetes writes them."""
    return time and time.replace(microsecond=0)


def _without_run(scene: Scene) -> JobStatus:
    """A status without a journal: what it said before stands, since nobody else knows it any more;
    and an end stays an end (protocol 2.6).
    """
    before = _shown_before(scene)
    generation = scene.job.metadata.generation
    if before is not None and is_final(scene.job.status):
        held = tuple(replace(c, observed_generation=generation) for c in before.conditions)
        return replace(before, observed_generation=generation, conditions=held)
    state = shown_state(scene)
    conditions = tuple(_conditions(scene, state))
    kept = before or JobStatus(generation, state, ())
    return replace(kept, observed_generation=generation, state=state, conditions=conditions)


def _shown_before(scene: Scene) -> JobStatus | None:
    """The status as it stands; None where there is none, or none of ours."""
    try:
        return decode(JobStatus, scene.job.status, ignore_unknown=True)
    except InvalidObject:
        return None


def shown_state(scene: Scene) -> State:
    """The one word, by the precedence of the module."""
    run = scene.run
    if run is not None and run.is_over and run.verdict is not None:
        return _ENDINGS[run.verdict.ending]
    if is_stalled(scene):
        return State.STALLED
    if run is None:
        return State.SUSPENDED if scene.held else State.PENDING
    if run.cancel is not None:
        return State.CANCELLING
    if scene.held and not _accepted(run):
        return State.SUSPENDED
    if run.phase is RunPhase.ADMITTING:
        return State.PENDING
    if run.phase is RunPhase.STAGING:
        return State.STAGING
    return _running_state(run)


def _running_state(run: Run) -> State:
    states = {s.state for s in run.shards}
    if ShardState.SUBMITTED in states:
        return State.RUNNING
    if run.phase is RunPhase.FINISHING or ShardState.ENDED in states:
        return State.COLLECTING
    if states and all(s.is_settled for s in states):
        return State.COLLECTING
    had_place = any(s.state in _HAD_PLACE for shard in run.shards for s in shard.made)
    return State.RUNNING if had_place else State.QUEUED


def is_stalled(scene: Scene) -> bool:
    """Whether the problem is one that a person must solve by now."""
    problem = scene.problem
    if problem is None:
        return False
    grace = timedelta(seconds=scene.timing.reference_grace_s)
    return not (problem.has_grace and scene.now < problem.since + grace)


# ---------------------------------------------------------------- conditions


def conditions_in(status: Mapping[str, Any]) -> dict[str, Condition]:
    """The conditions that a status holds, by type; what can't be read is left out."""
    found = {}
    listed = status.get("conditions")
    for entry in listed if isinstance(listed, list) else []:
        try:
            condition = decode(Condition, entry, ignore_unknown=True)
        except InvalidObject:
            continue
        found[condition.type] = condition
    return found


def shows_submission(status: Mapping[str, Any]) -> bool:
    """Whether a status says that something was or may have been accepted, or that its run is over:
    then a missing journal is a lost one (protocol 2.6).
    """
    submitted = conditions_in(status).get(ConditionType.SUBMITTED)
    return is_final(status) or (submitted is not None and submitted.status != "False")


def is_final(status: Mapping[str, Any]) -> bool:
    """Whether a status says that its run is over: then it says so for ever."""
    listed = status.get("conditions")
    return any(
        isinstance(entry, Mapping) and entry.get("type") in _ENDS and entry.get("status") == "True"
        for entry in (listed if isinstance(listed, list) else ())
    )


_ENDS = (ConditionType.COMPLETE, ConditionType.FAILED)
_OF_AN_END = (*_ENDS, ConditionType.STALLED, ConditionType.RECONCILING)


def _conditions(scene: Scene, state: State) -> Iterable[Condition]:
    before = conditions_in(scene.job.status)
    for kind, (value, reason, message) in _facts(scene, state).items():
        fresh = Condition(
            type=str(kind),
            status=value,
            reason=reason,
            message=message,
            observed_generation=scene.job.metadata.generation,
            last_transition_time=scene.now.replace(microsecond=0),
        )
        yield settled(fresh, before.get(kind))


def _facts(scene: Scene, state: State) -> Mapping[str, tuple[str, str, str]]:
    run, problem = scene.run, scene.problem
    verdict = run.verdict if run is not None and run.is_over else None
    submitted = _submitted(scene, state)
    failed = verdict is not None and verdict.ending is not Ending.SUCCEEDED
    # What matters is told once, by the condition that it is about.
    facts: dict[str, tuple[str, str, str]] = {
        ConditionType.SUBMITTED: _shared(scene, submitted),
        ConditionType.COMPLETE: ("False", state.value, "Not complete"),
        ConditionType.FAILED: ("False", state.value, "Not failed"),
        ConditionType.SUSPENDED: _suspended(scene),
        ConditionType.RECONCILING: ("False", state.value, "Not reconciling"),
        ConditionType.STALLED: ("False", state.value, "Not stalled"),
    }
    if verdict is not None:
        said = ("True", verdict.reason, verdict.message)
        facts[ConditionType.FAILED if failed else ConditionType.COMPLETE] = said
        # kstatus and the Reason column read Stalled alone.
        stalled = said if failed else ("False", verdict.reason, "Not stalled")
        facts[ConditionType.STALLED] = stalled
    elif state is State.STALLED and problem is not None:
        facts[ConditionType.STALLED] = ("True", problem.reason, problem.message)
    elif state is State.PENDING:
        reason, message = _pending(scene)
        facts[ConditionType.RECONCILING] = ("True", reason, message)
        facts[ConditionType.STALLED] = ("False", reason, "Not stalled")
    elif state is State.QUEUED:
        waiting = waiting_for(scene.run, scene.notes, scene.delay)
        facts[ConditionType.STALLED] = (
            "False",
            waiting[0] if waiting else submitted[1],
            "Not stalled",
        )
    return facts


def _submitted(scene: Scene, state: State) -> tuple[str, str, str]:
    run = scene.run
    if run is None:
        before = conditions_in(scene.job.status).get(ConditionType.SUBMITTED)
        if before is not None and before.status != "False":
            return before.status, before.reason, before.message
        return "False", Reason.NOT_SUBMITTED, _NOTHING_ACCEPTED
    if _accepted(run):
        reason = Reason.ADOPTED if run.adopted else Reason.SUBMITTED
        text = _adoption(run) if run.adopted else "The provider accepted batches of this run"
        return "True", reason, text if run.is_over else f"{text}. {_progress(scene)}"
    if run.may_have_more and not run.is_over:
        said = "The journal of this run is lost; the provider is being asked what it has of it"
        return "Unknown", Reason.JOURNAL_LOST, f"{said}. {_progress(scene)}"
    if run.is_over or state is State.PENDING:
        return "False", Reason.NOT_SUBMITTED, _NOTHING_ACCEPTED
    if any(s.state in {ShardState.UNKNOWN, ShardState.FENCING} for s in run.shards):
        said = "The answer to a create call was lost; the provider is being asked"
        return "Unknown", Reason.OUTCOME_UNKNOWN, f"{said}. {_progress(scene)}"
    reason = Reason.NOT_SUBMITTED
    if state is State.QUEUED:
        waiting = waiting_for(scene.run, scene.notes, scene.delay)
        reason = waiting[0] if waiting else Reason.QUEUED
    return "False", reason, _progress(scene)


def _shared(scene: Scene, said: tuple[str, str, str]) -> tuple[str, str, str]:
    """What is said of the submission to one of several objects of a run that does not steer it."""
    if not scene.steered_by:
        return said
    status, _, message = said
    text = (
        f"This job shares its run with {scene.steered_by}, which was created first and steers it: "
        "what may be changed here has no effect until that one is deleted"
    )
    return status, Reason.SHARED_RUN, f"{text}. {message}"


def _adoption(run: Run) -> str:
    text = f"Run {run.key[:12]} was found by its content: nothing is submitted again"
    if run.verdict is not None and run.verdict.ending is not Ending.SUCCEEDED:
        text += ". To run it again, create the object with another `runID` and `output`"
    return text


def _suspended(scene: Scene) -> tuple[str, str, str]:
    run = scene.run
    if not scene.held:
        return "False", Reason.NOT_SUSPENDED, "Not suspended"
    if run is not None and _accepted(run):
        queued = sum(s.state is ShardState.QUEUED for s in run.shards)
        text = f"Batches at the provider go on; {queued} shards are held back"
        if scene.paused:
            return "False", Reason.PAUSED, f"{text}. {scene.paused}"
        return "False", Reason.ALREADY_SUBMITTED, text
    if scene.paused:
        return "True", Reason.PAUSED, scene.paused
    return "True", Reason.SUSPENDED, "`spec.suspend` holds the job; nothing is submitted"


def _pending(scene: Scene) -> tuple[str, str]:
    """What a job waits for that has just been seen."""
    if scene.problem is not None:
        return scene.problem.reason, scene.problem.message
    looking = Reason.PENDING, "References, credentials and input are being looked at"
    return waiting_for(scene.run, scene.notes, scene.delay) or looking


def _progress(scene: Scene) -> str:
    """Where the shards are, and what delays them; what stalls them is told by Stalled."""
    run = scene.run
    parts = [_NOTHING_ACCEPTED]
    if run is not None and run.phase is RunPhase.STAGING:
        parts = ["The input is being read, checked and split"]
    elif run is not None and run.shards:
        counts = shard_counts(run.shards)
        where = (
            f"{counts.queued} queued, {counts.running} at the provider, {counts.finished} finished"
        )
        parts = [f"{counts.total} shards: {where}"]
    if scene.problem is not None and not scene.problem.is_untold and not is_stalled(scene):
        parts.append(scene.problem.message)
    elif waiting := waiting_for(scene.run, scene.notes, scene.delay):
        parts.append(waiting[1])
    return ". ".join(parts)


def _accepted(run: Run) -> bool:
    """Whether something was accepted; at the end what might have been counts, as in a receipt."""
    if run.is_over:
        return run.was_submitted
    return any(
        s.state in {SubmissionState.ACCEPTED, SubmissionState.VOID, SubmissionState.ENDED}
        for shard in run.shards
        for s in shard.made
    )


def _outputs(run: Run) -> Outputs | None:
    found = absolute(run)
    if found is None:
        return None
    ref = ConfigMapRef(found.config_map) if found.config_map else None
    return Outputs(found.results_uri, found.errors_uri, found.manifest_uri, ref)
