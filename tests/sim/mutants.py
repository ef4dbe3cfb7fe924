"""Deliberate bugs that the simulation must catch: each patches named functions of the runtime.

A mutant that survives means that the simulation has gone blind, or that the function is not called
any more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from batchinference.core import absorb, decide, follow, submit
from batchinference.core.draft import Draft
from batchinference.core.notes import Notes
from batchinference.core.outcomes import BatchSeen, LookedUp
from batchinference.model.batch import BatchState, OutcomeUnknown, RefusalKind, Refused
from batchinference.model.run import Run, Shard, ShardState, SubmissionState
from batchinference.runtime import following, looking_up, reconciler
from batchinference.tasks.join import Join
from builders import anytime
from fakes.journals import FakeJournals
from fakes.provider import FakeProvider
from sim import bugs
from sim.bugs import set_for

Patch = Callable[[ExitStack], None]


@dataclass(frozen=True)
class Mutant:
    """A bug.

    Attributes:
        patch: plants it for as long as the stack is open.
        caught_by: words that the complaint must hold.
        known: seeds that show it, for those that few do.
    """

    name: str
    patch: Patch
    caught_by: str
    known: tuple[int, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Where it is looked for: first where it was seen, then where it may be."""
        return (*self.known, *range(1, 60))


def _put_back_what_is_unknown(run: Run, notes: Notes, shard: Shard) -> tuple[Run, Notes]:
    back = shard.with_last(state=SubmissionState.REFUSED, request={})
    return run.with_shard(replace(back, state=ShardState.QUEUED)), notes


def resubmit_without_asking(stack: ExitStack) -> None:
    """A lost answer is taken for a refusal."""
    set_for(stack, follow, "lose", _put_back_what_is_unknown)


def forget_the_claim(stack: ExitStack) -> None:
    """A claim of a process that died is taken for one that was never sent."""
    set_for(stack, submit, "lose", _put_back_what_is_unknown)


def send_again_after_a_restart(stack: ExitStack) -> None:
    """A claim of a process that died is sent again at once, as if every provider had tokens."""
    made = FakeProvider.__init__

    def init(self: FakeProvider, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.traits = replace(self.traits, resend_window_s=600.0)

    set_for(stack, FakeProvider, "__init__", init)


def believe_one_listing(stack: ExitStack) -> None:
    """The first listing without the submission settles it, without a fence."""

    def unknown(draft: Draft, shard: Shard) -> Shard:
        look = draft.notes.looks.get((shard.index, shard.submissions[-1].ordinal))
        if look is None:
            return asked(draft, shard)
        draft.run, draft.notes = _put_back_what_is_unknown(draft.run, draft.notes, shard)
        return draft.run.shards[shard.index]

    asked = submit._unknown
    set_for(stack, submit, "_unknown", unknown)


def ignore_the_journals_version(stack: ExitStack) -> None:
    """Whoever writes last wins."""
    write = FakeJournals.write

    async def blindly(self: FakeJournals, run: Run, version: str) -> str:
        held = self.stored.get(run.key)
        return await write(self, run, str(held[1]) if held else version)

    set_for(stack, FakeJournals, "write", blindly)


def claim_after_sending(stack: ExitStack) -> None:
    """Effects start before their claim is written."""
    once = reconciler.Reconciler._is_ours

    async def is_ours(self: Any, entry: Any, decision: Any) -> bool:
        for shard in decision.run.shards:
            if shard.state is ShardState.CLAIMED and shard not in entry.run.shards:
                connected = await self._observing._clients.of_run(decision.run.provider)
                await connected.client.submit(shard.submissions[-1].request, anytime)
        return await once(self, entry, decision)

    set_for(stack, reconciler.Reconciler, "_is_ours", is_ours)


def restart_ordinals(stack: ExitStack) -> None:
    """Every submission of a shard is the first."""
    set_for(stack, submit, "next_ordinal", lambda _run, _shard: 1)


def never_cancel(stack: ExitStack) -> None:
    """The batches of a deleted job run on."""
    steps = tuple(s for s in decide.STEPS if s is not decide.cancel_batches)
    set_for(stack, decide, "STEPS", steps)


def bill_lost_answers_again(stack: ExitStack) -> None:
    """What is missing from a completed batch is sent once more, whatever the provider counts."""
    set_for(stack, BatchState, "may_leave_unbilled", property(lambda _state: True))
    never_less = property(lambda _join: 1_000_000, lambda _join, _value: None)
    stack.enter_context(patch.object(Join, "processed", never_less, create=True))


def take_any_batch_of_the_shard(stack: ExitStack) -> None:
    """A look-up does not compare ordinals."""

    def is_that(view: Any, run: Run, effect: Any) -> bool:
        named = view.submission
        return named is not None and (named.tag, named.shard) == (run.tag, effect.shard)

    set_for(stack, looking_up, "_is_that", is_that)


def refuse_after_an_unanswered_try(stack: ExitStack) -> None:
    """A refusal of a repeat is believed although the first try may have been accepted."""
    answered = follow.submit_answered

    def submit_answered(run: Run, notes: Notes, answer: Any, setting: Any) -> tuple[Run, Notes]:
        outcome = answer.outcome
        if isinstance(outcome, OutcomeUnknown):
            refused = Refused(RefusalKind.THROTTLED, "lost", "taken for a refusal")
            return answered(run, notes, replace(answer, outcome=refused), setting)
        return answered(run, notes, answer, setting)

    set_for(stack, absorb, "submit_answered", submit_answered)


def forget_an_end_that_came_early(stack: ExitStack) -> None:
    """The poller tells an end once, whether the journal knows the batch or not."""

    def saw(self: Any, entry: Any, view: Any, **_given: Any) -> None:
        if entry.notes.views.get(view.id) != view:
            self._deliver(entry.key, BatchSeen(view))

    set_for(stack, following.Following, "_saw", saw)


def believe_a_cut_listing(stack: ExitStack) -> None:
    """What a listing did not show is taken for absent, whether it came to its end or not."""
    looked_up = follow.looked_up

    def believing(run: Run, notes: Notes, look: LookedUp, setting: Any) -> tuple[Run, Notes]:
        return looked_up(run, notes, replace(look, complete=True), setting)

    set_for(stack, absorb, "looked_up", believing)
    set_for(stack, submit, "_is_conclusive", lambda _draft, _look: True)


def leave_late_batches_alone(stack: ExitStack) -> None:
    """A batch that appears after its ordinal was given up is none of ours."""
    set_for(stack, follow, "appeared", lambda run, _key, _view, _now: run)


def never_look_back(stack: ExitStack) -> None:
    """A run without a journal is taken for a new one, whatever the provider has of it."""

    def searched(run: Run, notes: Notes, _found: Any, _setting: Any) -> tuple[Run, Notes]:
        return replace(run, earlier=None), notes

    set_for(stack, absorb, "searched", searched)


MUTANTS = (
    Mutant("resubmit without asking", resubmit_without_asking, "could bill"),
    Mutant("forget the claim", forget_the_claim, "could bill", (8,)),
    Mutant("send again after a restart", send_again_after_a_restart, "accepted twice", (2,)),
    Mutant("believe one listing", believe_one_listing, "could bill", (1,)),
    Mutant("ignore the journal's version", ignore_the_journals_version, "forgot ordinal", (26,)),
    Mutant("claim after sending", claim_after_sending, "accepted twice", (2,)),
    Mutant("restart ordinals", restart_ordinals, "do not rise"),
    Mutant("never cancel", never_cancel, "never cancelled", (69,)),
    Mutant("bill lost answers again", bill_lost_answers_again, "could bill", (30,)),
    Mutant("take any batch of the shard", take_any_batch_of_the_shard, "never ends", (32,)),
    Mutant(
        "believe a refusal after a lost answer", refuse_after_an_unanswered_try, "could bill", (14,)
    ),
    Mutant("believe a cut listing", believe_a_cut_listing, "could bill", (15,)),
    Mutant("leave late batches alone", leave_late_batches_alone, "nobody heard", (165,)),
    Mutant("never look back", never_look_back, "accepted twice", (26,)),
    Mutant("forget an end that came early", forget_an_end_that_came_early, "never", (109,)),
    Mutant("forget the floor", bugs.forget_the_floor, "ordinals restarted"),
    Mutant("send at any time", bugs.send_at_any_time, "accepted twice", (100056,)),
    Mutant("believe another life", bugs.believe_another_life, "never ends", (100108,)),
    Mutant("believe an old manifest", bugs.believe_an_old_manifest, "is missing", (100224,)),
    Mutant("pay without a finalizer", bugs.pay_without_a_finalizer, "never had the finalizer"),
    Mutant("pay without the claim", bugs.pay_without_reading_the_claim, "is another's", (25,)),
    Mutant("let go before cancels", bugs.let_go_before_cancels, "let go", (12,)),
    Mutant("end parked runs at once", bugs.end_parked_runs_at_once, "was final after", (44,)),
    Mutant("leave staging behind", bugs.leave_staging_behind, "left in staging"),
    Mutant("leave files behind", bugs.leave_files_behind, "left at the provider"),
    Mutant("keep the claim", bugs.keep_the_claim, "keeps its claim", (2,)),
    Mutant("tell nobody of a duplicate", bugs.tell_nobody_of_a_duplicate, "nobody heard", (165,)),
    Mutant("forget to wake up", bugs.forget_to_wake_up, "without a wake-up"),
    Mutant("forget who asks", bugs.forget_who_asks, "without a wake-up"),
)
"""All of them."""
