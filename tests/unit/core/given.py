"""What the tests of the core start from: settings, observations and decisions over defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from batchinference.core.absorb import absorb
from batchinference.core.decide import decide
from batchinference.core.draft import Decision, Observed
from batchinference.core.effects import Effect
from batchinference.core.notes import Look, Notes
from batchinference.core.outcomes import Outcome
from batchinference.core.setting import Setting
from batchinference.core.timing import Timing
from batchinference.model.batch import BatchFailure, BatchState, BatchView, SubmissionID, Traits
from batchinference.model.job import BatchInferenceJob, JobSpec, parse_job, parse_spec
from batchinference.model.run import Run, Shard, ShardState, Submission, SubmissionState
from batchinference.model.work import FaultKind, TaskFault
from builders import START, JobBuilder, job, run_of, shard_of, submission_of

TIMING = Timing()
NOW = START + timedelta(hours=2)
"""Long after everything in the builders' journals was claimed."""

DESCRIBED = {"Submitted", "Complete", "Failed", "Suspended", "Reconciling", "Stalled"}


def after(seconds: float, since: datetime = NOW) -> datetime:
    """That many seconds later."""
    return since + timedelta(seconds=seconds)


def spec_of(builder: JobBuilder | None = None) -> JobSpec:
    """The spec of a job."""
    return parse_spec((builder or job()).build()["spec"])


def seen(builder: JobBuilder) -> BatchInferenceJob:
    """A job as the watch shows it."""
    return parse_job(builder.stamped().build())


def setting(now: datetime = NOW, builder: JobBuilder | None = None, **timing: Any) -> Setting:
    """What folding needs."""
    return Setting(now, spec_of(builder), replace(TIMING, **timing), jitter=0.5)


def request_of(run: Run, named: SubmissionID, input_ref: str) -> Mapping[str, Any]:
    """A create request that holds all that identifies a submission."""
    return {
        "input_file_id": input_ref,
        "metadata": {"tag": run.tag, "shard": named.shard, "ordinal": named.ordinal},
    }


def observed(
    builder: JobBuilder | None = None,
    *,
    now: datetime = NOW,
    deleting: bool = False,
    gone: bool = False,
    granted: Iterable[int] = range(1000),
    finalizer: bool = True,
    traits: Traits | None = None,
    **members: Any,
) -> Observed:
    """The world of a job that holds our finalizer and has a place for every shard.

    `deleting`: it has a deletionTimestamp; `gone`: it was deleted and is not there any more.
    """
    builder = builder or job()
    found = seen(builder)
    if deleting:
        found = replace(found, metadata=replace(found.metadata, deletion_time=now))
    return Observed(
        **{
            "now": now,
            "timing": TIMING,
            "spec": found.spec,
            "job": None if gone else found,
            "is_deleted": deleting or gone,
            "has_finalizer": finalizer and not gone,
            "granted": frozenset(granted),
            "traits": traits or Traits(),
            "make_request": request_of,
            **members,
        }
    )


def owned(run: Run, builder: JobBuilder | None = None) -> Run:
    """The run, steered by the object that the job builder stamps."""
    meta = seen(builder or job()).metadata
    return replace(run, owner=replace(run.owner, uid=meta.uid))


def run_with(*shards: Shard, **members: Any) -> Run:
    """A running run of these shards, steered by the default job."""
    made = run_of(shards=len(shards))
    return owned(replace(made, output=replace(made.output, claimed=True), shards=shards, **members))


def in_state(state: ShardState, index: int = 0, **members: Any) -> Shard:
    """A shard in that state, with the submission that goes with it."""
    made = {
        ShardState.CLAIMED: SubmissionState.CLAIMED,
        ShardState.UNKNOWN: SubmissionState.CLAIMED,
        ShardState.FENCING: SubmissionState.CLAIMED,
        ShardState.SUBMITTED: SubmissionState.ACCEPTED,
        ShardState.ENDED: SubmissionState.ENDED,
        ShardState.COLLECTED: SubmissionState.ENDED,
    }.get(state)
    submissions: tuple[Submission, ...] = ()
    if made is not None:
        unanswered = state in {ShardState.UNKNOWN, ShardState.FENCING}
        submissions = (replace(submission_of(1, made), attempted=unanswered),)
        submissions = tuple(
            replace(s, batch_id=s.batch_id and f"batch-{index}-{s.ordinal}") for s in submissions
        )
    return shard_of(index, state, **{"submissions": submissions, **members})


def with_late_batch(shard: Shard, batch_id: str = "batch-late", **members: Any) -> Shard:
    """The shard with a batch besides that of its newest submission; live unless said otherwise."""
    late = replace(submission_of(1), batch_id=batch_id, **members)
    return replace(shard, late=(*shard.late, late))


def view_of(
    run: Run,
    shard: int = 0,
    ordinal: int = 1,
    state: BatchState = BatchState.IN_PROGRESS,
    batch_id: str = "",
    **members: Any,
) -> BatchView:
    """A batch as the provider shows it."""
    named = SubmissionID(run.tag, shard, ordinal, run.shards[shard].sha256[:12])
    return BatchView(
        **{
            "id": batch_id or f"batch-{shard}-{ordinal}",
            "state": state,
            "submission": named,
            "created_at": after(-60),
            **members,
        }
    )


def failed_view(run: Run, failure: BatchFailure, **members: Any) -> BatchView:
    """A batch that failed as a whole."""
    return view_of(run, state=BatchState.FAILED, failure=failure, **members)


def looks(
    shard: int = 0,
    ordinal: int = 1,
    *,
    first: float,
    newest: float,
    readable: bool = True,
    complete: bool = True,
) -> Notes:
    """Notes of absences, in seconds before now."""
    look = Look(after(-first), after(-newest), readable, complete)
    return Notes(looks={(shard, ordinal): look})


def failing(
    effect_id: str,
    kind: FaultKind = FaultKind.RETRY,
    reason: str = "ProviderUnavailable",
    notes: Notes | None = None,
) -> Notes:
    """Notes of an effect that has just failed."""
    fault = TaskFault(kind, reason, f"{effect_id} failed")
    return (notes or Notes()).with_failure(effect_id, fault, NOW, TIMING, 0.5)


def fold(run: Run, *outcomes: Outcome, notes: Notes | None = None, now: datetime = NOW) -> Run:
    """The run after the outcomes."""
    return fold_all(run, *outcomes, notes=notes, now=now)[0]


def fold_all(
    run: Run, *outcomes: Outcome, notes: Notes | None = None, now: datetime = NOW
) -> tuple[Run, Notes]:
    """The run and the notes after the outcomes."""
    known = notes or Notes()
    for outcome in outcomes:
        run, known = absorb(run, known, outcome, setting(now))
    return run, known


def decided(run: Run, seen_now: Observed | None = None, notes: Notes | None = None) -> Decision:
    """What is decided about the run."""
    return decide(run, notes or Notes(), seen_now or observed())


def of_kind(decision: Decision, kind: type[Effect]) -> list[Any]:
    """The decision's effects of one kind."""
    return [effect for effect in decision.effects if isinstance(effect, kind)]
