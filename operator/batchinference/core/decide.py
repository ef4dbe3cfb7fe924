"""What should happen to a run now: pure, from what is true and what was observed.

`decide` returns the next journal content, the effects to start once it is written, and when to
look again. It reads as a list of named steps; each adds to the draft, and a step that says "stop"
ends the list. Shard by shard submitting lives in `core.submit`.

No step calls anything. Losing a decision in a crash loses nothing: the next process decides anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from batchinference.core.abandon import abandon
from batchinference.core.begin import starts_afresh
from batchinference.core.budget import keep_to_budget, take_price
from batchinference.core.cleaning import leave_provider, remove_remains
from batchinference.core.deadline import meet_deadline
from batchinference.core.decisions import answer
from batchinference.core.draft import Decision, Draft, Observed
from batchinference.core.effects import (
    TASKS,
    Announce,
    SetFinalizer,
    StartTask,
    StopTasks,
)
from batchinference.core.holding import ask_for_run, may_take_over
from batchinference.core.late import cancel_live, cancels_strange, follow_late, look_once_more
from batchinference.core.notes import Notes
from batchinference.core.policy import (
    deadline_exceeded,
    may_go_again,
    may_go_on,
    reject,
    staging_verdict,
)
from batchinference.core.rebuild import is_asking, look_back
from batchinference.core.regroup import regroup
from batchinference.core.returning import come_back, tell_found
from batchinference.core.submit import submit_shards
from batchinference.core.transitions import RunInput, ShardInput, step_run, step_shard
from batchinference.model.job import (
    BatchInferenceJob,
    DeletionPolicy,
    DesiredState,
)
from batchinference.model.metadata import PAUSED
from batchinference.model.run import (
    Cancel,
    CancelWhy,
    Ending,
    Run,
    RunPhase,
    Shard,
    ShardState,
    Verdict,
)
from batchinference.model.status import Reason
from batchinference.model.work import TaskKind


def decide(run: Run, notes: Notes, observed: Observed) -> Decision:
    """The next step of a run that has a journal."""
    draft = Draft(run, notes, observed)
    for step in STEPS:
        if step(draft):
            break
    answer(draft)
    return draft.decision()


# ---------------------------------------------------------------- the object


def want_cancel(draft: Draft) -> bool:
    """Deletion and desiredState ask for the end of a run that is not over."""
    run, observed = draft.run, draft.observed
    if run.is_over:
        return False
    why = None
    if observed.is_deleted:
        # Orphaning spares what runs, not what is unwanted already.
        unwanted = run.cancel is not None or draft.spec.desired_state is DesiredState.CANCELLED
        orphan = draft.spec.deletion_policy is DeletionPolicy.ORPHAN and not unwanted
        why = CancelWhy.ORPHANED if orphan else CancelWhy.DELETED
    elif draft.spec.desired_state is DesiredState.CANCELLED and not _is_paused(draft):
        why = CancelWhy.DESIRED
    if why is None or (run.cancel is not None and run.cancel.why is not CancelWhy.DESIRED):
        return False
    if run.cancel is None or run.cancel.why is not why:
        draft.run = replace(run, cancel=Cancel(why, observed.now))
        draft.effects.append(Announce(Reason.CANCELLING, f"The run is being ended: {why.value}"))
    return False


def give_up_unpaid(draft: Draft) -> bool:
    """A cancelled run of which nothing was or may have been accepted ends at once."""
    run = draft.run
    if run.cancel is None or run.was_submitted or run.is_over:
        return False
    if run.may_have_more:
        # What it has must be found and cancelled first; but nobody waits for that for ever.
        until = run.cancel.at + timedelta(seconds=draft.timing.parked_s)
        draft.wake(until)
        if draft.observed.now < until or is_asking(draft):
            return False
    if cancels_strange(draft):
        return False
    stepped = step_run(run, RunInput.REJECT)
    if stepped is None:
        return False
    text = "The run was cancelled before anything was submitted"
    verdict = Verdict(Ending.CANCELLED, Reason.CANCELLED, text)
    if run.cancel.why is CancelWhy.DEADLINE:
        text = f"{deadline_exceeded(run)}; nothing was submitted"
        verdict = Verdict(Ending.FAILED, Reason.DEADLINE_EXCEEDED, text)
    draft.run = replace(stepped, verdict=verdict, completion_time=draft.observed.now)
    draft.effects.append(StopTasks())
    return False


def keep_what_happened(draft: Draft) -> bool:
    """A journal that can't grow keeps what has happened; nothing new is begun (protocol 2.3)."""
    run, full = draft.run, draft.observed.full
    if not full or run.is_over:
        return False
    rejected = reject(run, Reason.JOURNAL_TOO_LARGE, full, draft.observed.now)
    if rejected is not run:
        if not any(shard.submissions for shard in run.shards):
            rejected = replace(rejected, shards=(), cursor=None)  # they are what takes the room
        draft.run = rejected
        draft.effects.append(StopTasks())
        return False
    draft.stall(
        Reason.JOURNAL_TOO_LARGE,
        f"{full} Nothing more is submitted; what the provider has is followed and collected. To "
        "end the run with what it has, set `spec.desiredState: Cancelled`",
    )
    return False


def hold_object(draft: Draft) -> bool:
    """The finalizer stands from before the first provider call until nothing needs it.

    While it is missing nothing is uploaded or submitted; what the provider has is followed,
    collected and finished all the same, and nothing of what comes before needs it (protocol 7.1).
    """
    observed, run = draft.observed, draft.run
    job = observed.job
    if job is None or starts_afresh(run, job):
        return False
    if job.metadata.is_being_deleted:
        _release(draft)
        return False
    if run.is_over:
        if observed.has_finalizer:
            draft.want(SetFinalizer(present=False))
        return False
    if not observed.has_finalizer:
        draft.want(SetFinalizer(present=True))
        draft.blocked = True
        return False
    # It stands: what failed on the way must not delay its removal.
    draft.notes = draft.notes.without_failure(SetFinalizer(present=True).id)
    return False


def _release(draft: Draft) -> None:
    observed, run = draft.observed, draft.run
    if not observed.has_finalizer or observed.job is None:
        return
    asked_at = observed.job.metadata.deletion_time or observed.now
    until = asked_at + timedelta(seconds=draft.timing.cancel_release_s)
    orphaned = run.cancel is not None and run.cancel.why is CancelWhy.ORPHANED
    waiting = [] if orphaned else _unconfirmed(run)
    if run.is_over or not waiting:
        draft.want(SetFinalizer(present=False))
    elif observed.now >= until:
        ids = ", ".join(waiting)
        text = f"Let the object go although these batches are not confirmed cancelled: {ids}"
        if draft.want(SetFinalizer(present=False)):
            draft.effects.append(Announce(Reason.CANCELLING, text, warning=True))
    else:
        draft.wake(until)


def _unconfirmed(run: Run) -> list[str]:
    """What the provider may still be working on, and no cancel call was accepted for."""
    unknown = [f"shard {s.index}" for s in run.shards if s.state.is_open]
    live = [b.batch_id for s in run.shards for b in s.live if b.cancel_accepted_at is None]
    more = ["what an earlier life of the run may have left"] if run.may_have_more else []
    return [*unknown, *live, *more]


# ---------------------------------------------------------------- the phases


def clean_up(draft: Draft) -> bool:
    """After the end: leave nothing of ours behind."""
    if draft.run.phase is RunPhase.CLEANING:
        remove_remains(draft)
    return draft.run.phase in {RunPhase.CLEANING, RunPhase.ENDED}


def stay_parked(draft: Draft) -> bool:
    """Cancelled by deletion: wait for the object, not for ever."""
    run = draft.run
    if run.phase is not RunPhase.PARKED:
        return False
    cancel_live(draft)
    since = run.completion_time or draft.observed.now
    until = since + timedelta(seconds=draft.timing.parked_s)
    if draft.observed.now >= until:
        draft.run = step_run(run, RunInput.EXPIRE) or run
        draft.wake(draft.observed.now)
    draft.wake(until)
    return True


def hold_back(draft: Draft) -> bool:
    """Nothing starts while suspended, or without an object; what the provider has goes on.

    An object that is not to be seen may be gone: then nobody wants what it would cost, and no
    finalizer would stand for it (protocol 7.1). A run that lost its journal is staged all the same
    while its object is there: only so is what the provider has of it found and collected.
    """
    run, observed = draft.run, draft.observed
    if run.cancel is not None:
        return False
    held = draft.spec.suspend or observed.job is None or _is_paused(draft)
    if not held and not (observed.paused_provider and run.phase is RunPhase.RUNNING):
        return False
    draft.held = True
    draft.paused = pause_of_job(observed.job) or observed.paused_provider
    if not held:
        return False
    finds = run.may_have_more and observed.job is not None
    if run.phase in {RunPhase.ADMITTING, RunPhase.STAGING} and not finds:
        if any(effect_id.startswith(TASKS) for effect_id in draft.notes.inflight):
            draft.effects.append(StopTasks())
        return True
    return False


def _is_paused(draft: Draft) -> bool:
    return bool(pause_of_job(draft.observed.job))


def pause_of_job(job: BatchInferenceJob | None) -> str:
    """What to say of a job that somebody paused; "" of one that nobody did."""
    paused = job is not None and job.metadata.is_paused and not job.metadata.is_being_deleted
    return f"Annotation `{PAUSED}` holds the job; nothing new begins" if paused else ""


def read_spec(draft: Draft) -> bool:
    """A spec that can't be acted on is said, whatever the run is at; it holds up only what is new.

    The run goes on as the spec was when it was last fit, since what was paid for must come home.
    """
    problem = draft.observed.unfit
    if problem is not None:
        draft.stall(problem.reason, problem.message, problem.since)
    return False


def admit(draft: Draft) -> bool:
    """Claim the output place and look at the input."""
    if draft.run.phase is not RunPhase.ADMITTING:
        return False
    if draft.run.start_time is None:
        draft.run = replace(draft.run, start_time=draft.observed.now)
    if _may_read_input(draft):
        holder = draft.notes.taking
        if holder is not None and holder.run_key == draft.run.key:
            ask_for_run(draft, holder)
        taken = holder is not None and may_take_over(draft.run, holder, draft.spec.output_policy)
        draft.want(StartTask(TaskKind.ADMIT, replaces=holder if taken else None))
    return True


def stage(draft: Draft) -> bool:
    """One pass over the input, before anything is paid."""
    if draft.run.phase is not RunPhase.STAGING:
        return False
    if _may_read_input(draft):
        draft.want(StartTask(TaskKind.STAGE))
    return True


def _may_read_input(draft: Draft) -> bool:
    """Whether a look at the user's input may begin; if not, the draft says why.

    Nothing is paid for by reading it. But the provider object is what allows the namespace and its
    locations, so nothing is read against its word; and inline input is read from the object's own
    spec, which must then be the one that the run was made of. A look under way goes on: it has
    what it needs, and began when all was well.
    """
    return draft.observed.unfit is None and not draft.provider_problem()


def judge(draft: Draft) -> bool:
    """Staged: fail before anything is paid, or ask for places."""
    run = draft.run
    if run.phase is not RunPhase.RUNNING or run.cancel is not None or run.earlier is not None:
        return False
    if not any(s.state is ShardState.STAGED for s in run.shards) and run.shards:
        return False
    verdict = staging_verdict(run, draft.spec)
    if verdict is not None and not run.was_submitted:
        stepped = step_run(run, RunInput.REJECT) or run
        draft.run = replace(stepped, verdict=verdict, completion_time=draft.observed.now)
        draft.wake(draft.observed.now)
        return True
    least = run.limits.min_records_per_batch
    draft.run = replace(run, shards=tuple(_asked_for(s, least) for s in run.shards))
    return False


def _asked_for(shard: Shard, least: int) -> Shard:
    """A staged shard asks for a place; one that no cut could bring to the minimum never goes."""
    event = ShardInput.DROP if shard.rows < least else ShardInput.QUEUE
    return (step_shard(shard, event) or shard) if shard.state is ShardState.STAGED else shard


def cancel_batches(draft: Draft) -> bool:
    """Drop what the provider does not have; cancel what it has, each batch once."""
    run = draft.run
    if run.cancel is None:
        return False
    if run.phase is RunPhase.RUNNING:
        dropped = tuple(
            (None if s.pooled else step_shard(s, ShardInput.DROP)) or s for s in run.shards
        )
        draft.run = replace(run, shards=dropped)
    cancel_live(draft)
    return False


def collect(draft: Draft) -> bool:
    """Bring the answers of ended batches home, since providers delete files."""
    for shard in draft.run.shards:
        if shard.state is ShardState.ENDED and shard.last is not None:
            draft.want(StartTask(TaskKind.COLLECT, shard.index, shard.last.ordinal))
    return False


def settle(draft: Draft) -> bool:
    """All shards settled: unbilled records go again, or the run finishes."""
    run = draft.run
    if run.phase is not RunPhase.RUNNING or not all(s.state.is_settled for s in run.shards):
        return False
    if run.earlier is not None and run.cancel is None:
        return True  # there are answers that are not known here
    if look_once_more(draft) or cancels_strange(draft):
        return True
    attempts = draft.spec.retry_policy.max_attempts
    again = tuple(s.index for s in run.shards if may_go_again(s, attempts))
    if again and run.cancel is None:
        if not draft.held and not draft.observed.full:
            draft.want(StartTask(TaskKind.POOL, sources=again))
        return True
    draft.run = step_run(run, RunInput.SETTLE) or run
    return False


def finish(draft: Draft) -> bool:
    """Write parts in input order and the manifest last."""
    if draft.run.phase is RunPhase.FINISHING:
        draft.want(StartTask(TaskKind.FINISH, may_go_on=may_go_on(draft.run, draft.spec)))
    return False


STEPS: tuple[Callable[[Draft], bool], ...] = (
    tell_found,
    come_back,
    want_cancel,
    meet_deadline,
    give_up_unpaid,
    abandon,
    keep_what_happened,
    leave_provider,
    hold_object,
    clean_up,
    stay_parked,
    read_spec,
    take_price,
    hold_back,
    admit,
    look_back,
    stage,
    judge,
    follow_late,
    cancel_batches,
    keep_to_budget,
    submit_shards,
    collect,
    regroup,
    settle,
    finish,
)
"""The life of a run, read top down."""
