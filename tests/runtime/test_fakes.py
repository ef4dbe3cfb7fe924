"""The fakes do what their ports promise; the simulation stands on them."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest

from batchinference.errors import NewerSchema, Retry, Superseded
from batchinference.model.batch import (
    Accepted,
    BatchState,
    CancelOutcome,
    OutcomeUnknown,
    SubmissionID,
)
from batchinference.model.codec import encode
from batchinference.model.work import FaultKind, Task, TaskFault, TaskKind, TaskReport, TaskResult
from batchinference.ports import ObjectRef
from builders import anytime, job, run_of
from conformance.journals import JournalsConformance
from fakes.clock import Hang, VirtualClock, run_virtual
from fakes.journals import FakeJournals
from fakes.kube import FINALIZER, FakeKube
from fakes.provider import FakeProvider, Faults, Flavour
from fakes.runner import FakeRunner, WorkerDied
from fakes.server import Fate, Habits, ProviderServer
from fakes.world import Process, World, track_tasks

REF = ObjectRef(kind="BatchInferenceJob", namespace="ml", name="triage")


class TestVirtualTime:
    def test_a_day_passes_at_once(self) -> None:
        async def main() -> float:
            clock = VirtualClock()
            await asyncio.gather(clock.sleep(86_400), clock.sleep(5))
            return clock.elapsed()

        assert run_virtual(main()) == 86_400

    def test_a_wait_for_nothing_is_a_hang_that_names_who_waits(self) -> None:
        async def main() -> None:
            await asyncio.get_running_loop().create_future()

        with pytest.raises(Hang, match=r"test_fakes\.py.* in main"):
            run_virtual(main())

    def test_spinning_without_time_is_a_hang(self) -> None:
        async def main() -> None:
            while True:
                await asyncio.sleep(0)

        with pytest.raises(Hang, match="spinning"):
            run_virtual(main())

    def test_threads_run_inline_after_a_delay(self) -> None:
        async def main() -> tuple[int, float]:
            found = await asyncio.to_thread(lambda: 7)
            return found, asyncio.get_running_loop().time()

        assert run_virtual(main(), thread_delay=lambda: 1.5) == (7, 3.0)

    def test_a_thread_that_raises_raises_in_its_caller(self) -> None:
        async def main() -> None:
            await asyncio.to_thread(int, "x")

        with pytest.raises(ValueError, match="invalid literal"):
            run_virtual(main())


class TestDeath:
    def test_the_dead_have_no_effect_and_the_world_goes_on(self) -> None:
        async def main() -> list[str]:
            loop = asyncio.get_running_loop()
            track_tasks(loop)
            done: list[str] = []
            world = World()
            process = Process("p1", loop)

            async def work() -> None:
                try:
                    async with world.effect("first"):
                        done.append("first")
                    world.later(5, done.append, "world")
                    process.later(5, done.append, "timer of the dead")
                    await asyncio.sleep(10)
                finally:
                    async with world.effect("last words"):
                        done.append("last words")

            process.spawn(work())
            await asyncio.sleep(1)
            process.kill()
            await process.buried()
            await asyncio.sleep(20)
            return done

        assert run_virtual(main()) == ["first", "world"]

    @pytest.mark.parametrize(("when", "taken"), [("before", False), ("after", True)])
    def test_a_crash_point_decides_whether_the_effect_took_hold(
        self, when: str, taken: bool
    ) -> None:
        async def main() -> tuple[bool, bool]:
            loop = asyncio.get_running_loop()
            track_tasks(loop)
            world = World(crash=lambda name, at: (name, at) == ("journal.create", when))
            journals = FakeJournals(world)
            process = Process("p1", loop)
            run = run_of()
            process.spawn(journals.create(run))
            await asyncio.sleep(1)
            return process.alive, journals.peek(run.key) is not None

        assert run_virtual(main()) == (False, taken)

    def test_a_task_that_swallows_its_cancellation_is_found_out(self) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            track_tasks(loop)
            process = Process("p1", loop)
            stubborn = True

            async def cling() -> None:
                while stubborn:
                    try:
                        await asyncio.sleep(1)
                    except asyncio.CancelledError:
                        continue

            process.spawn(cling())
            await asyncio.sleep(0)
            process.kill()
            try:
                await process.buried()
            finally:
                stubborn = False

        with pytest.raises(AssertionError, match="swallow"):
            run_virtual(main())


class TestFakeJournals(JournalsConformance):
    @pytest.fixture
    def journals(self) -> FakeJournals:
        return FakeJournals()

    async def test_a_newer_schema_is_reported_and_never_written(self) -> None:
        journals = FakeJournals()
        run = run_of()
        journals.put_raw(run.key, {**encode(run), "schema": 99})
        with pytest.raises(NewerSchema):
            await journals.get(run.key)
        with pytest.raises(NewerSchema):
            await journals.write(run, "1")
        assert list(await journals.unended()) == [(run.key, None, "1")]


class TestFakeKube:
    async def test_a_stale_status_write_is_superseded(self) -> None:
        kube = FakeKube()
        made = kube.create(job().build())
        version = made["metadata"]["resourceVersion"]
        new = await kube.patch_status(REF, {"state": "Pending"}, version)
        assert new is not None
        assert int(new) > int(version)
        with pytest.raises(Superseded):
            await kube.patch_status(REF, {"state": "Running"}, version)

    async def test_a_write_meant_for_an_earlier_object_is_superseded(self) -> None:
        kube = FakeKube()
        kube.create(job().build())
        ref = ObjectRef(REF.kind, REF.namespace, REF.name, uid="another")
        with pytest.raises(Superseded):
            await kube.set_finalizer(ref, present=True)

    async def test_a_status_write_that_changes_nothing_keeps_the_version(self) -> None:
        kube = FakeKube()
        made = kube.create(job().build())
        first = await kube.patch_status(REF, {"state": "A"}, made["metadata"]["resourceVersion"])
        assert first is not None
        assert await kube.patch_status(REF, {"state": "A"}, first) == first

    async def test_members_of_status_are_replaced_and_none_removes(self) -> None:
        kube = FakeKube()
        kube.create(job().build())
        await kube.patch_status(REF, {"state": "A", "progress": "1/2"}, "")
        await kube.patch_status(REF, {"progress": None}, "")
        found = await kube.get(REF)
        assert found is not None
        assert found["status"] == {"observedGeneration": -1, "state": "A"}

    async def test_a_finalizer_holds_a_deleted_object_until_it_goes(self) -> None:
        kube = FakeKube()
        kube.create(job().build())
        await kube.set_finalizer(REF, present=True)
        kube.delete(REF)
        found = await kube.get(REF)
        assert found is not None
        assert found["metadata"]["deletionTimestamp"]
        assert found["metadata"]["finalizers"] == [FINALIZER]
        await kube.set_finalizer(REF, present=False)
        assert await kube.get(REF) is None

    async def test_an_object_that_comes_back_has_another_uid(self) -> None:
        kube = FakeKube()
        first = kube.create(job().build())
        kube.delete(REF)
        second = kube.create(job().build())
        assert first["metadata"]["uid"] != second["metadata"]["uid"]

    async def test_only_a_spec_edit_raises_the_generation(self) -> None:
        kube = FakeKube()
        kube.create(job().build())
        await kube.patch_status(REF, {"state": "A"}, "")
        kube.edit_spec(REF, suspend=True)
        found = await kube.get(REF)
        assert found is not None
        assert found["metadata"]["generation"] == 2

    def test_watch_events_come_in_order_and_deletions_are_lost_while_it_is_broken(self) -> None:
        async def main() -> list[tuple[str | None, str]]:
            loop = asyncio.get_running_loop()
            kube = FakeKube(World(seed=1, latency_s=0.5))
            seen: list[tuple[str | None, str]] = []

            def observe(_kind: str, event: str | None, body: Any) -> None:
                seen.append((event, body["metadata"]["name"]))

            kube.create(job("a").build())
            kube.watch(Process("p1", loop), observe)
            kube.create(job("b").build())
            kube.edit_spec(ObjectRef(REF.kind, "ml", "b"), suspend=True)
            await asyncio.sleep(60)
            kube.break_watches()
            kube.delete(ObjectRef(REF.kind, "ml", "a"))
            await asyncio.sleep(60)
            kube.mend_watches()
            await asyncio.sleep(60)
            return seen

        assert run_virtual(main()) == [
            (None, "a"),
            ("ADDED", "b"),
            ("MODIFIED", "b"),
            (None, "b"),
        ]


SUBMISSION = SubmissionID(tag="a1b2", shard=0, ordinal=1, content_hash="c0ffee")
LINES = b'{"custom_id":"r0","body":{}}\n{"custom_id":"r1","body":{}}\n'


class TestFakeProvider:
    def test_a_batch_goes_through_its_states_by_time_alone(self) -> None:
        async def main() -> list[BatchState]:
            server = ProviderServer("acme", Habits(validate_s=10, work_s=100))
            client = FakeProvider(server)
            ref = server.upload(LINES, VirtualClock().now())
            answer = await client.submit(client.create_request(run_of(), SUBMISSION, ref), anytime)
            assert isinstance(answer, Accepted)
            seen: list[BatchState] = []
            while not seen or not seen[-1].is_over:
                view = await client.get(answer.batch.id)
                assert view is not None
                if view.state not in seen:
                    seen.append(view.state)
                await asyncio.sleep(0.5)
                if view.state.is_over:
                    assert view.submission == SUBMISSION
                    assert view.completed == 2
            return seen

        assert run_virtual(main()) == [
            BatchState.VALIDATING,
            BatchState.IN_PROGRESS,
            BatchState.COMPLETED,
        ]

    @pytest.mark.parametrize(
        ("flavour", "accepted", "reason"),
        [
            (Flavour.OPENAI, 2, "there is no idempotency key: the same request is a second batch"),
            (Flavour.BEDROCK, 1, "the same client token finds the same job"),
        ],
    )
    def test_sending_a_request_twice(self, flavour: Flavour, accepted: int, reason: str) -> None:
        async def main() -> None:
            server = ProviderServer("acme", Habits(replay_s=600))
            client = FakeProvider(server, flavour=flavour)
            ref = server.upload(LINES, VirtualClock().now())
            request = client.create_request(run_of(), SUBMISSION, ref)
            for _ in range(2):
                assert isinstance(await client.submit(request, anytime), Accepted)
            assert len(server.batches) == accepted, reason
            assert bool(server.violations) == (accepted == 2), reason

        run_virtual(main())

    def test_a_token_with_another_request_is_a_conflict_and_so_unknown(self) -> None:
        async def main() -> None:
            server = ProviderServer("acme", Habits(replay_s=600))
            client = FakeProvider(server, flavour=Flavour.BEDROCK)
            request = dict(client.create_request(run_of(), SUBMISSION, "s3://a/"))
            assert isinstance(await client.submit(request, anytime), Accepted)
            changed = {**request, "modelId": "another"}
            assert isinstance(await client.submit(changed, anytime), OutcomeUnknown)

        run_virtual(main())

    @pytest.mark.parametrize(
        ("faults", "batches"),
        [
            (Faults(lost=1), 1),
            (Faults(dropped=1), 0),
            (Faults(straggling=1, straggle_s=20), 1),
            (Faults(throttled=1), 0),
            (Faults(quota=1), 0),
        ],
    )
    def test_faults_of_a_create_call(self, faults: Faults, batches: int) -> None:
        async def main() -> None:
            server = ProviderServer("acme")
            client = FakeProvider(server, faults=faults)
            answer = await client.submit(
                client.create_request(run_of(), SUBMISSION, "file-1"), anytime
            )
            assert not isinstance(answer, Accepted)
            await asyncio.sleep(60)
            assert len(server.batches) == batches

        run_virtual(main())

    def test_a_create_without_its_input_is_accepted_and_fails_in_validation(self) -> None:
        async def main() -> None:
            server = ProviderServer("acme")
            client = FakeProvider(server)
            answer = await client.submit(
                client.create_request(run_of(), SUBMISSION, "gone"), anytime
            )
            assert isinstance(answer, Accepted)
            await asyncio.sleep(60)
            view = await client.get(answer.batch.id)
            assert view is not None
            assert view.state is BatchState.FAILED
            assert view.failure is not None
            assert view.failure.nothing_processed

        run_virtual(main())

    def test_listings_are_newest_first_paged_and_late(self) -> None:
        async def main() -> None:
            server = ProviderServer("acme", Habits(list_lag_s=30, page_size=2))
            client = FakeProvider(server)
            for ordinal in range(1, 6):
                named = SubmissionID("a1b2", 0, ordinal, "c0ffee")
                await client.submit(client.create_request(run_of(), named, "gone"), anytime)
                await asyncio.sleep(1)
            first = await client.page(None, None)
            assert len(first.batches) < 5
            await asyncio.sleep(60)
            ordinals, cursor = [], None
            while True:
                page = await client.page(cursor, None)
                ordinals += [b.submission.ordinal for b in page.batches if b.submission]
                cursor = page.cursor
                if cursor is None:
                    break
            assert ordinals == [5, 4, 3, 2, 1]

        run_virtual(main())

    def test_cancelling_keeps_what_was_processed_and_bills_no_more(self) -> None:
        async def main() -> None:
            server = ProviderServer("acme", Habits(validate_s=1, work_s=1000, cancel_s=5), seed=3)
            client = FakeProvider(server)
            data = b"".join(b'{"custom_id":"r%d","body":{}}\n' % n for n in range(50))
            ref = server.upload(data, VirtualClock().now())
            answer = await client.submit(client.create_request(run_of(), SUBMISSION, ref), anytime)
            assert isinstance(answer, Accepted)
            await asyncio.sleep(60)
            assert await client.cancel(answer.batch.id) is CancelOutcome.ACCEPTED
            await asyncio.sleep(60)
            assert await client.cancel(answer.batch.id) is CancelOutcome.ALREADY_OVER
            assert await client.cancel("nobody") is CancelOutcome.NOT_FOUND
            now = VirtualClock().now()
            batch = server.batches[answer.batch.id]
            assert batch.state_at(now) is BatchState.CANCELLED
            assert 0 < len(batch.processed_by(now)) < 50

        run_virtual(main())

    def test_the_server_notices_records_that_could_be_billed_twice(self) -> None:
        async def main() -> None:
            server = ProviderServer("acme", Habits(fates=((Fate.COMPLETE, 1),)))
            client = FakeProvider(server)
            ref = server.upload(LINES, VirtualClock().now())
            for shard in range(2):
                named = SubmissionID("a1b2", shard, 1, "c0ffee")
                await client.submit(client.create_request(run_of(), named, ref), anytime)
            assert any("could bill" in v for v in server.violations)

        run_virtual(main())

    def test_an_outage_answers_retry(self) -> None:
        async def main() -> None:
            server = ProviderServer("acme")
            server.outage = True
            with pytest.raises(Retry):
                await FakeProvider(server).get("batch")

        run_virtual(main())


class _Heard:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def report(self, task: Task, report: TaskReport) -> None:
        self.said.append(report)

    def done(self, task: Task, result: TaskResult) -> None:
        self.said.append(result)


class TestFakeRunner:
    def test_a_worker_that_dies_is_a_lost_worker(self) -> None:
        async def main() -> None:
            def perform(_task: Task, _report: Any) -> TaskResult:
                raise WorkerDied

            heard = _Heard()
            FakeRunner(perform).start(Task(TaskKind.ADMIT, run_of()), heard)
            await asyncio.sleep(1)
            assert len(heard.said) == 1
            assert isinstance(heard.said[0], TaskFault)
            assert heard.said[0].reason == "WorkerLost"

        run_virtual(main())

    def test_a_stopped_task_says_nothing_and_frees_its_place(self) -> None:
        async def main() -> None:
            fault = TaskFault(FaultKind.RETRY, "X", "x")
            runner = FakeRunner(lambda _task, _report: fault, World(latency_s=1), slots=1)
            stopped, other = _Heard(), _Heard()
            runner.start(Task(TaskKind.ADMIT, run_of("a")), stopped)
            runner.start(Task(TaskKind.ADMIT, run_of("b")), other)
            runner.stop(run_of("a").key)
            await asyncio.sleep(60)
            assert stopped.said == []
            assert other.said == [fault]
            assert runner.idle

        run_virtual(main())

    def test_a_task_under_way_is_not_started_twice(self) -> None:
        async def main() -> None:
            fault = TaskFault(FaultKind.RETRY, "X", "x")
            runner = FakeRunner(lambda _task, _report: fault)
            heard = _Heard()
            for _ in range(2):
                runner.start(Task(TaskKind.ADMIT, run_of()), heard)
            await asyncio.sleep(1)
            assert heard.said == [fault]

        run_virtual(main())


def test_nothing_is_left_unawaited() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_virtual(asyncio.sleep(1))
