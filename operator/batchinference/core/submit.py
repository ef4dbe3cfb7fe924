"""Handing shards to the provider: protocol 4 and 5, one function per state of a shard.

Every ambiguous branch chooses not to submit and says so.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from batchinference.core.decisions import (
    ask_of_absence,
    ask_of_batch,
    ask_of_submission,
    not_accepted,
)
from batchinference.core.draft import Draft
from batchinference.core.effects import (
    ASKING,
    Announce,
    DeleteInput,
    LookUp,
    StartTask,
    Submit,
    following,
    resubmitting,
    submitting,
)
from batchinference.core.follow import lose
from batchinference.core.keys import next_ordinal, submission_id
from batchinference.core.late import in_doubt, let_go, taken_back, with_late
from batchinference.core.notes import Look
from batchinference.core.policy import quota_refusal, reject
from batchinference.core.problem import Problem
from batchinference.core.refusals import unpaid
from batchinference.core.regroup import with_oversized_apart
from batchinference.core.stuck import tell_of_stuck
from batchinference.core.transitions import ShardInput, step_shard
from batchinference.errors import Permanent
from batchinference.model.run import (
    RunPhase,
    Shard,
    ShardState,
    Submission,
    SubmissionState,
)
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, TaskKind


def submit_shards(draft: Draft) -> bool:
    """Get every shard to the provider, at most once at a time."""
    if draft.run.phase is not RunPhase.RUNNING:
        return False
    _unfollowed(draft)
    numbers = range(len(draft.run.shards))
    for index in numbers:
        shard = draft.run.shards[index]
        if shard.state is ShardState.CLAIMED:
            shard = _claimed(draft, shard)
        if shard.state is ShardState.UNKNOWN:
            shard = _unknown(draft, shard)
        if shard.state is ShardState.FENCING:
            shard = _fencing(draft, shard)
        _submitted(draft, shard)
    draft.run = with_oversized_apart(taken_back(draft.run))
    stuck = _unpaid(draft)
    _announce_quota(draft)
    # Only now is it known whether any shard stalls the run, which holds back all that are queued.
    for index in numbers:
        shard = draft.run.shards[index]
        if shard.state is ShardState.QUEUED:
            _tidy(draft, shard)
            if not stuck or index in stuck:
                _queued(draft, shard)
        if draft.run.phase is not RunPhase.RUNNING:
            return True
    return False


def _unfollowed(draft: Draft) -> None:
    """Batches that nobody can ask for: what came of them is not known, and is not collected."""
    failure = draft.notes.failures.get(ASKING)
    if failure is None or not any(shard.live for shard in draft.run.shards):
        return
    fault = failure.fault
    if fault.kind in {FaultKind.STALLED, FaultKind.PERMANENT} or draft.is_unreachable(failure):
        problem = Problem(fault.reason, fault.message, failure.since, has_grace=True)
        draft.problems.append(problem)


def _claimed(draft: Draft, shard: Shard) -> Shard:
    """A claim whose call is not under way in this process: another one made it and died."""
    if _is_being_sent(draft, shard):
        _tell_refusal(draft, shard)
        return shard
    draft.run, draft.notes = lose(draft.run, draft.notes, shard)
    return draft.run.shards[shard.index]


def _is_being_sent(draft: Draft, shard: Shard) -> bool:
    assert shard.last is not None
    return submitting(shard.index, shard.last.ordinal) in draft.notes.inflight


def _tell_refusal(draft: Draft, shard: Shard) -> None:
    """Why the shard was put back the last time, until a try succeeds."""
    refused = draft.notes.failures.get(resubmitting(shard.index))
    if refused is not None:
        draft.tell(refused)


def _unknown(draft: Draft, shard: Shard) -> Shard:
    """Ask the provider; absence counts only twice, a settle time apart (protocol 5)."""
    assert shard.last is not None
    last = shard.last
    key = (shard.index, last.ordinal)
    if _is_being_sent(draft, shard):
        return shard  # whatever a listing shows meanwhile proves nothing
    ask = LookUp(shard.index, last.ordinal, last.input_ref, fenced=False)
    look = draft.notes.looks.get(key)
    if look is None:
        draft.want(ask)
        return shard
    if not look.readable:
        # Nor is the request repeated: another account would take it for a new one.
        draft.stall(
            Reason.ACCOUNT_CHANGED,
            f"Shard {shard.index}, ordinal {last.ordinal}, is in no listing, but these credentials "
            f"can't read its input {last.input_ref} either: they may be of another account. "
            "Restore the credentials that the run was started with. If that can't be: "
            + ask_of_submission(draft, shard, last),
            look.newest,
        )
        again = look.newest + timedelta(seconds=draft.timing.reference_retry_s)
        _look_again(draft, ask, again)
        return shard
    if _may_repeat(draft, last):
        draft.want(Submit(shard.index, last.ordinal, last.request, fresh=False))
        draft.wake(_repeat_until(draft, last))
        return shard
    if not _is_conclusive(draft, look):
        if _is_settled_by_policy(draft, last):
            return _resubmitted(draft, shard, last)
        _inconclusive(draft, shard, ask, look)
        return shard
    settled = look.first + timedelta(seconds=draft.timing.settle_s)
    if look.newest < settled:
        _look_again(draft, ask, settled)
        return shard
    fencing = step_shard(shard, ShardInput.FENCE) or shard
    draft.run = draft.run.with_shard(fencing)
    draft.notes = draft.notes.without_looks(key)
    return fencing


def _is_conclusive(draft: Draft, look: Look) -> bool:
    """Whether not being in that listing says anything."""
    return look.complete and draft.observed.traits.lists_complete


def _is_settled_by_policy(draft: Draft, last: Submission) -> bool:
    """Whether the provider object's policy decides, once the create call can't arrive any more."""
    arrived = last.claimed_at + timedelta(seconds=draft.timing.settle_s)
    return draft.observed.resubmits_unknown and draft.observed.now >= arrived


def _resubmitted(draft: Draft, shard: Shard, last: Submission) -> Shard:
    text = (
        f"Nobody can tell whether shard {shard.index}, ordinal {last.ordinal}, was accepted: by "
        "`unknownOutcomePolicy: Resubmit` of the provider it goes again, and may be billed twice"
    )
    draft.effects.append(Announce(Reason.DECIDED, text, warning=True))
    fencing = not_accepted(shard, draft.observed.now)
    draft.run = draft.run.with_shard(fencing)
    draft.notes = draft.notes.without_looks((shard.index, last.ordinal))
    return fencing


def _inconclusive(draft: Draft, shard: Shard, ask: LookUp, look: Look) -> None:
    """Say so, and go on asking: the listing may have an end another time."""
    asked = next(s for s in shard.submissions if s.ordinal == ask.ordinal)
    if shard.state.is_open:
        how = ask_of_submission(draft, shard, asked)
    else:
        how = ask_of_absence(draft, shard.index, asked)
    draft.stall(
        Reason.OUTCOME_UNKNOWN,
        f"The answer to the create call of shard {shard.index}, ordinal {ask.ordinal}, was lost, "
        "and this provider's listings can't tell whether it was accepted: they are not complete. "
        + how,
        asked.claimed_at,
    )
    again = look.newest + timedelta(seconds=draft.timing.reference_retry_s)
    _look_again(draft, ask, again)


def _repeat_until(draft: Draft, last: Submission) -> datetime:
    """When the provider may begin to forget the claimed request; a call may take its time too."""
    window = draft.observed.traits.resend_window_s - draft.timing.submit_timeout_s
    return last.claimed_at + timedelta(seconds=window)


def _may_repeat(draft: Draft, last: Submission) -> bool:
    """Whether the same create request may be sent again: it can't make a second batch, but it may
    make the first one, so whatever holds submissions back holds it back too.
    """
    held = draft.held or draft.blocked or draft.run.cancel is not None
    usable = draft.observed.provider is None
    # A claim that lies ahead was made by another clock: nobody knows how old it is.
    in_time = last.claimed_at <= draft.observed.now < _repeat_until(draft, last)
    return usable and not held and in_time


def _fencing(draft: Draft, shard: Shard) -> Shard:
    """Delete the input, wait, look once more; only then is the ordinal given up."""
    assert shard.last is not None
    last = shard.last
    if last.fenced_at is None:
        draft.want(DeleteInput(shard.index, last.ordinal, last.input_ref))
        return shard
    if last.settled is not None:
        return _given_up(draft, shard)
    settled = last.fenced_at + timedelta(seconds=draft.timing.settle_s)
    look = draft.notes.looks.get((shard.index, last.ordinal))
    ask = LookUp(shard.index, last.ordinal, last.input_ref, fenced=True)
    if look is None or look.newest < settled:
        _look_again(draft, ask, settled)
        return shard
    if not _is_conclusive(draft, look):
        if _is_settled_by_policy(draft, last):
            return _given_up(draft, _resubmitted(draft, shard, last))
        _inconclusive(draft, shard, ask, look)
        return shard
    return _given_up(draft, shard)


def _given_up(draft: Draft, shard: Shard) -> Shard:
    given_up = step_shard(shard, ShardInput.GIVE_UP) or shard
    if draft.run.cancel is not None:
        given_up = step_shard(given_up, ShardInput.DROP) or given_up
    given_up = with_late(given_up.with_last(state=SubmissionState.FENCED, request={}))
    draft.run = draft.run.with_shard(given_up)
    return given_up


def _submitted(draft: Draft, shard: Shard) -> None:
    """At the provider: say so when the provider denies it; nothing else follows from that."""
    for live in shard.live:
        if live.settled is not None:
            let_go(draft, draft.run.shards[shard.index], live)
            continue
        failure = draft.notes.failures.get(following(live.batch_id))
        if failure is not None and failure.count > 1:
            text = f"{failure.fault.message}. {ask_of_batch(draft, shard, live)}"
            draft.stall(failure.fault.reason, text, failure.since)
        else:
            tell_of_stuck(draft, shard, live)


def _look_again(draft: Draft, ask: LookUp, at: datetime) -> None:
    if draft.observed.now >= at:
        draft.want(ask)
    else:
        draft.wake(at)


def _still_missing(draft: Draft, shard: Shard) -> bool:
    """Whether a listing that is not older than the settle time still shows no ordinal that was
    given up and had the same records: time may have passed since, and another process.
    """
    oldest = draft.observed.now - timedelta(seconds=draft.timing.settle_s)
    for ask in _forebears(draft, shard):
        look = draft.notes.looks.get((ask.shard, ask.ordinal))
        if look is None or look.newest < oldest:
            draft.want(ask)
            return False
    return True


def _may_ask(draft: Draft, shard: Shard) -> bool:
    """Whether asking for these ordinals works; otherwise a place would be of no use."""
    for ask in _forebears(draft, shard):
        look = draft.notes.looks.get((ask.shard, ask.ordinal))
        unsure = look is not None and not _is_conclusive(draft, look)
        if look is not None and unsure and not draft.observed.resubmits_unknown:
            _inconclusive(draft, draft.run.shards[ask.shard], ask, look)
            return False
        if not draft.may_start(ask):
            return False
    return True


def _forebears(draft: Draft, shard: Shard) -> list[LookUp]:
    """For each given-up ordinal that had the same records, how to ask for it. Pooled records may
    have been in any shard.
    """
    return [
        LookUp(before.index, gone.ordinal, gone.input_ref, fenced=True)
        for before in (draft.run.shards if shard.sources else (shard,))
        for gone in in_doubt(before)
    ]


def _unpaid(draft: Draft) -> set[int]:
    """Queued shards that the provider did not take because of its bill. Only these are tried until
    it takes one of them: with the others it would be the same.
    """
    found = set()
    for shard in draft.run.shards:
        failure = shard.last.failure if shard.last else None
        if shard.last and shard.state is ShardState.QUEUED and failure and failure.billing:
            found.add(shard.index)
            since = shard.last.ended_at or shard.last.claimed_at
            draft.problems.append(Problem(Reason.BILLING, unpaid(failure, draft.timing), since))
    return found


def _announce_quota(draft: Draft) -> None:
    """One Event when the provider first has no quota for a shard."""
    told, said = draft.notes.told, quota_refusal(draft.run)
    if said is not None and Reason.QUOTA_WAIT not in told:
        draft.notes = replace(draft.notes, told=told | {Reason.QUOTA_WAIT})
        draft.effects.append(Announce(Reason.QUOTA_WAIT, said))


def _tidy(draft: Draft, shard: Shard) -> None:
    """The input of a refused or void submission is of no use to the next one, which uploads its
    own. It is deleted once, and otherwise with the rest when the run is over.
    """
    last = shard.last
    if last is None or last.input_deleted or last.state not in _UNUSED:
        return
    deletion = DeleteInput(shard.index, last.ordinal, last.input_ref)
    if deletion.id not in draft.notes.failures:
        draft.want(deletion)


_UNUSED = {SubmissionState.REFUSED, SubmissionState.VOID}
_KEPT_VOIDS = 3
"""So many that a listing which is late with the newest of them still finds them here."""


def _kept(shard: Shard) -> list[Submission]:
    """The submissions that the journal goes on holding: however often a quota refuses a shard or
    fails its batch, it does not grow.
    """
    kept = [s for s in shard.submissions if s.state is not SubmissionState.REFUSED]
    voids = [s.ordinal for s in kept if s.state is SubmissionState.VOID]
    return [s for s in kept if s.ordinal not in voids[:-_KEPT_VOIDS]]


def _queued(draft: Draft, shard: Shard) -> None:
    """Upload, claim, send - in this order, and only with a place from the account."""
    now = draft.observed.now
    if draft.run.cancel is not None or draft.held or shard.index in draft.unaffordable:
        return
    has_provider = not draft.provider_problem()
    if has_provider:  # what stopped it before is no news where something else stops it now
        _tell_refusal(draft, shard)
    if draft.blocked:
        return
    if shard.not_before is not None and now < shard.not_before:
        draft.wake(shard.not_before)
        return
    if not has_provider:
        return
    ordinal = next_ordinal(draft.run, shard)
    input_ref = draft.notes.uploads.get((shard.index, ordinal))
    upload = StartTask(TaskKind.UPLOAD, shard.index, ordinal)
    if input_ref is None and not draft.may_start(upload):
        return
    if not _may_ask(draft, shard):
        return
    draft.asking.add(shard.index)
    if shard.index not in draft.observed.granted or not _still_missing(draft, shard):
        return
    if input_ref is None:
        draft.want(upload)
        return
    if draft.observed.make_request is None:
        return
    named = submission_id(draft.run, shard, ordinal)
    try:
        request = draft.observed.make_request(draft.run, named, input_ref)
    except Permanent as fault:
        draft.run = reject(draft.run, fault.reason, fault.message, now)
        if draft.run.phase is RunPhase.RUNNING:
            draft.stall(fault.reason, fault.message)
        return
    submission = Submission(
        ordinal=ordinal,
        state=SubmissionState.CLAIMED,
        request=request,
        input_ref=input_ref,
        claimed_at=now,
        submit_by=now + timedelta(seconds=draft.timing.submit_timeout_s),
    )
    queued = replace(shard, submissions=(*_kept(shard), submission), not_before=None)
    claimed = step_shard(queued, ShardInput.CLAIM)
    assert claimed is not None
    draft.run = draft.run.with_shard(claimed)
    draft.notes = draft.notes.without_upload((shard.index, ordinal))
    draft.effects.append(Submit(shard.index, ordinal, request, fresh=True))
