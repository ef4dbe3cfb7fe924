"""More deliberate bugs: of lives that come and go, of fences, of tasks, of ends. See `mutants`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from batchinference.core import absorb, decide, late
from batchinference.core.draft import Draft, Observed
from batchinference.core.effects import SetFinalizer
from batchinference.core.setting import Setting
from batchinference.model.run import Run
from batchinference.model.work import Cleaned, Finished
from batchinference.runtime import effects
from batchinference.runtime.accounts import Accounts
from batchinference.tasks import run as tasks
from batchinference.tasks.workbench import Workbench
from builders import anytime
from fakes.provider import FakeProvider


def set_for(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Patch, until the stack is closed."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    stack.callback(setattr, owner, name, before)


def _set_step(stack: ExitStack, name: str, value: Any) -> None:
    """Put another step in the place of one of `decide`."""
    old = getattr(decide, name)
    set_for(stack, decide, "STEPS", tuple(value if s is old else s for s in decide.STEPS))


def _with(observed: Observed, **timing: float) -> Observed:
    return replace(observed, timing=replace(observed.timing, **timing))


# ---------------------------------------------------------------- paid twice


def forget_the_floor(stack: ExitStack) -> None:
    """A receipt does not keep the highest ordinal."""

    def receipt_of(run: Run) -> Run:
        return replace(made(run), ordinal_floor=0)

    made = absorb.receipt
    set_for(stack, absorb, "receipt", receipt_of)


def send_at_any_time(stack: ExitStack) -> None:
    """Nobody looks at the clock once more before a create call leaves."""
    submit = FakeProvider.submit

    async def late(self: FakeProvider, request: Any, _may_send: Any) -> Any:
        return await submit(self, request, anytime)

    set_for(stack, FakeProvider, "submit", late)


# ---------------------------------------------------------------- paid although it must not be


def pay_without_a_finalizer(stack: ExitStack) -> None:
    """Submitting does not wait for the finalizer, and nobody sets it."""

    def hold_object(draft: Draft) -> bool:
        blocked = draft.blocked
        said = held(draft)
        draft.blocked = blocked
        draft.effects = [e for e in draft.effects if e != SetFinalizer(present=True)]
        return said

    held = decide.hold_object
    _set_step(stack, "hold_object", hold_object)


def pay_without_reading_the_claim(stack: ExitStack) -> None:
    """The claim of the output place is not read before a submission."""

    async def no_reason(*_args: Any) -> None:
        return None

    set_for(stack, effects.Effects, "_reason_not_to_send", no_reason)


def let_go_before_cancels(stack: ExitStack) -> None:
    """The finalizer goes as soon as the object is being deleted."""
    set_for(stack, decide, "_unconfirmed", lambda _run: [])


# ---------------------------------------------------------------- ends


def end_parked_runs_at_once(stack: ExitStack) -> None:
    """A run that was cancelled by deletion is final before its object can come back."""

    def stay_parked(draft: Draft) -> bool:
        draft.observed = _with(draft.observed, parked_s=0.5)
        return stays(draft)

    stays = decide.stay_parked
    _set_step(stack, "stay_parked", stay_parked)


def believe_another_life(stack: ExitStack) -> None:
    """What came of a task is true of whatever life the run has by then."""
    set_for(stack, Run, "is_same_life", lambda _self, _other: True)


def believe_an_old_manifest(stack: ExitStack) -> None:
    """A manifest stands although the run was deleted, or came back, while it was written."""

    def believed(run: Run, result: Finished, setting: Setting) -> Run:
        now = absorb.may_go_on(run, setting.spec)
        return finished(run, replace(result, may_go_on=now), setting)

    finished = absorb._finished
    set_for(stack, absorb, "_finished", believed)


def leave_staging_behind(stack: ExitStack) -> None:
    """CLEAN removes the provider's files alone."""

    def clean(run: Run, bench: Workbench) -> Cleaned:
        bench.data.delete_files(run)
        return Cleaned()

    set_for(stack, tasks, "clean", clean)


def leave_files_behind(stack: ExitStack) -> None:
    """CLEAN removes staging alone."""

    def clean(run: Run, bench: Workbench) -> Cleaned:
        bench.staging.delete_prefix(run.staging.uri)
        return Cleaned()

    set_for(stack, tasks, "clean", clean)


def keep_the_claim(stack: ExitStack) -> None:
    """A run that never submitted keeps its output place."""
    set_for(stack, tasks, "release", lambda _run, _bench: Cleaned())


def tell_nobody_of_a_duplicate(stack: ExitStack) -> None:
    """A batch that appears late is followed in silence."""
    set_for(stack, late, "_tell", lambda _draft, _shard, _late: None)


# ---------------------------------------------------------------- waits


def forget_to_wake_up(stack: ExitStack) -> None:
    """Nobody comes back to a run that waits for a time."""
    set_for(stack, Draft, "wake", lambda _self, _at: None)


def forget_who_asks(stack: ExitStack) -> None:
    """Places are given when an account is new, and never again."""

    def changed(self: Accounts, account: str, key: str) -> None:
        if account not in self._accounts:
            first(self, account, key)

    first = Accounts.changed
    set_for(stack, Accounts, "changed", changed)
