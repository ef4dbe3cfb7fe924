"""Everything that can happen to a run, in any order: no record is paid for twice, no answer lost.

Hypothesis draws what happens: calls that fail, lose their answers or take hold late, crashes,
deletions and returns, suspension, ends of every kind, news told twice. Books are kept and checked
after every step (`abstract_world`); in the end the world calms down and the run must end by itself.
"""

from __future__ import annotations

from datetime import timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from batchinference.model.batch import BatchState
from batchinference.model.run import RunPhase, ShardState
from unit.core.abstract_world import World

SENT = st.sampled_from(
    [
        "well",
        "well",
        "lost",
        "hangs",
        "dropped",
        "quota",
        "throttled",
        "credentials",
        "invalid",
        "unsent",
    ]
)
DONE = st.sampled_from(["well", "well", "well", "fails", "fails late", "changing", "permanent"])
ENDS = st.sampled_from([s for s in BatchState if s.is_over])
FAILURE = st.sampled_from(["quota", "transient", "invalid", "processed"])


class RunMachine(RuleBasedStateMachine):
    """The drawn world."""

    @initialize(
        window=st.sampled_from([0.0, 0.0, 150.0, 3600.0]),
        shards=st.integers(1, 3),
        steps=st.sampled_from([0, 1, 3, 4, 4, 4, 4]),
        stumbles=st.booleans(),
        first=SENT,
        blind=st.sampled_from([False, False, False, True]),
    )
    def begin(self, window, shards, steps, stumbles, first, blind) -> None:
        """Usually the first create calls have just ended when the drawing begins."""
        self.world = World(window_s=window, shards=shards)
        self.world.reconcile()
        for _ in range(steps):
            if stumbles and "task:Stage" in self.world.inflight:
                self.world.perform("task:Stage", "changing")
                self.world.now = self.world.wake_at
                self.world.reconcile()
            self.do_all()
        for effect_id in self.under_way("submit:"):
            self.world.perform(effect_id, first)
        self.world.blind = blind

    def do_all(self) -> None:
        for effect_id in sorted(self.world.inflight):
            if effect_id in self.world.inflight:
                self.world.perform(effect_id, "well")

    def under_way(self, kind) -> list[str]:
        return sorted(i for i in self.world.inflight if i.startswith(kind))

    # ------------------------------------------------------------ calls and tasks

    @precondition(lambda self: self.under_way("submit:"))
    @rule(data=st.data(), how=SENT)
    def a_create_call_ends(self, data, how) -> None:
        self.world.perform(data.draw(st.sampled_from(self.under_way("submit:"))), how)

    @precondition(lambda self: self.world.inflight)
    @rule(data=st.data(), how=DONE)
    def an_effect_is_done(self, data, how) -> None:
        effect_id = data.draw(st.sampled_from(sorted(self.world.inflight)))
        self.world.perform(effect_id, how if how == "well" or effect_id[:4] != "subm" else "lost")

    @rule(turns=st.integers(1, 6))
    def the_operator_goes_on_undisturbed(self, turns) -> None:
        """Calls go well, and time passes from one wake-up to the next."""
        for _ in range(turns):
            if self.world.inflight:
                self.do_all()
            elif self.world.wake_at is not None:
                self.world.now = max(self.world.now, self.world.wake_at)
                self.world.reconcile()

    @rule(seconds=st.sampled_from([1, 20, 61, 121, 400]))
    def time_passes(self, seconds) -> None:
        self.world.now += timedelta(seconds=seconds)
        self.world.reconcile()

    @precondition(lambda self: self.world.flying)
    @rule(data=st.data())
    def a_create_call_takes_hold_late(self, data) -> None:
        self.world.land(data.draw(st.integers(0, len(self.world.flying) - 1)))

    @rule()
    def the_process_dies(self) -> None:
        self.world.crash()

    @precondition(lambda self: self.world.told)
    @rule(data=st.data())
    def something_is_told_again(self, data) -> None:
        self.world.tell(data.draw(st.sampled_from(self.world.told)))

    # ------------------------------------------------------------ batches

    @precondition(lambda self: self.running())
    @rule(data=st.data(), state=ENDS, part=st.integers(0, 4), failure=FAILURE, seen=st.booleans())
    def a_batch_ends(self, data, state, part, failure, seen) -> None:
        self.world.end(data.draw(st.sampled_from(self.running())), state, part, failure)
        if seen:
            self.world.now += timedelta(seconds=30)
            self.world.poll()

    def running(self):
        return [b for b in self.world.batches if not b.state.is_over]

    @precondition(lambda self: self.world.batches)
    @rule(denied=st.sampled_from([False, False, False, True]))
    def the_account_is_polled(self, denied) -> None:
        self.world.poll(denied=denied)

    # ------------------------------------------------------------ people

    @rule(what=st.sampled_from(["delete", "orphan", "suspend", "cancel", "provider", "blind"]))
    def somebody_changes_something(self, what) -> None:
        world = self.world
        wanted = world.is_there and world.deleting_since is None
        match what:
            case "delete" if wanted:
                world.delete()
            case "orphan" if wanted:
                world.change(deletionPolicy="Orphan")
                world.delete()
            case "suspend" if world.is_there:
                world.change(suspend=not world.builder.spec.get("suspend", False))
            case "cancel" if world.is_there and len(world.batches) > 1:
                world.change(desiredState="Cancelled")
            case "provider":
                world.provider_ok = not world.provider_ok
                world.reconcile()
            case "blind" if ShardState.FENCING not in states(world):
                # Not while a fence is put up: from then on the account is taken for granted.
                world.blind = not world.blind

    @precondition(lambda self: self.world.is_there)
    @rule(most=st.integers(0, 16))
    def somebody_sets_a_budget(self, most) -> None:
        self.world.change(budget={"maxCost": f"{most}.00"})

    @rule()
    def the_price_is_found_or_lost(self) -> None:
        self.world.priced = not self.world.priced
        self.world.reconcile()

    @precondition(lambda self: not self.world.is_there)
    @rule()
    def the_object_comes_back(self) -> None:
        self.world.create()

    def teardown(self) -> None:
        """The world calms down: everything goes well, and the run comes to its end by itself."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.provider_ok, world.blind, world.flying = True, False, []
        world.priced = True
        if world.is_there and world.deleting_since is None:
            world.change(suspend=False, budget={"maxCost": "1000000"})
        for _ in range(400):
            world.blind = False
            released = not (world.is_there and world.finalizer)
            if world.run.phase is RunPhase.ENDED and not world.inflight and released:
                break
            if world.inflight:
                self.do_all()
            elif any(not b.state.is_over for b in world.batches):
                for batch in world.batches:
                    if not batch.state.is_over:
                        world.end(batch, BatchState.COMPLETED, 0, "")
            elif ShardState.SUBMITTED in states(world):
                world.now += timedelta(seconds=30)
                world.poll()
            else:
                assert world.wake_at is not None, f"it hangs without a wake-up: {world.run}"
                world.now = max(world.wake_at, world.now + timedelta(seconds=0.01))
                world.reconcile()
        assert world.run.phase is RunPhase.ENDED, f"it never ends: {world.run}"
        assert not (world.is_there and world.finalizer), "the object is still held"
        if world.is_there and world.deleting_since is None and world.run.cancel is None:
            self.check_that_everything_was_tried()

    def check_that_everything_was_tried(self) -> None:
        """A wanted run ends with every record answered, or with a verdict that says why not."""
        world = self.world
        assert world.run.verdict is not None
        if world.run.verdict.ending == "Succeeded":
            answered = {row for batch in world.batches for row in batch.billed}
            assert answered == set(range(world.shards * 4))


def states(world: World) -> set[ShardState]:
    return {s.state for s in world.run.shards}


RunMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestRun = RunMachine.TestCase
