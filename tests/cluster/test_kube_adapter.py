"""The Kubernetes adapter against the real API server: preconditions are its promises, not ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchinference.adapters.kube import names
from batchinference.adapters.kube.answers import Refusal
from batchinference.adapters.kube.client import KubeClient
from batchinference.adapters.kube.events import KubeEvents
from batchinference.adapters.kube.journals import PLAIN_LIMIT, KubeJournals
from batchinference.adapters.kube.names import CONFIG_MAPS, FINALIZER
from batchinference.adapters.kube.objects import KubeObjects
from batchinference.clock import SystemClock
from batchinference.errors import NewerSchema, Permanent, Retry, Stalled, Superseded
from batchinference.model.codec import encode
from batchinference.model.run import SCHEMA, RunPhase
from batchinference.ports import Event, ObjectRef
from builders import job, run_of
from conformance.journals import JournalsConformance
from control_plane import ControlPlane

_CRDS = Path(__file__).parents[2] / "crds"


@pytest.fixture(scope="module")
def served(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane with our kinds; without them again afterwards."""
    control_plane.kubectl("apply", "-f", str(_CRDS))
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(_CRDS))
    yield control_plane
    control_plane.kubectl("delete", "-f", str(_CRDS), "--timeout=120s")


@pytest.fixture
async def client(served: ControlPlane) -> AsyncIterator[KubeClient]:
    connected = await KubeClient.connect(str(served.kubeconfig), max_connections=4)
    yield connected
    await connected.close()


@pytest.fixture
def objects(client: KubeClient) -> KubeObjects:
    return KubeObjects(client)


@pytest.fixture
async def created(client: KubeClient, namespace: str) -> dict[str, Any]:
    """A job as the API server has it."""
    manifest = job(namespace=namespace).build()
    path = f"/apis/batchinference.dev/v1alpha1/namespaces/{namespace}/batchinferencejobs"
    return await client.call("POST", path, body=manifest)


def ref_of(body: dict[str, Any]) -> ObjectRef:
    metadata = body["metadata"]
    return ObjectRef(body["kind"], metadata.get("namespace", ""), metadata["name"], metadata["uid"])


async def until_served(client: KubeClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Create the object as soon as its new kind is served."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await client.call("POST", path, body=body)
            except Refusal as refusal:
                if refusal.code != 404:
                    raise
                await asyncio.sleep(0.1)


def version_of(body: Any) -> str:
    return str(body["metadata"]["resourceVersion"])


class TestObjects:
    async def test_an_object_is_read_and_a_missing_one_is_none(
        self, objects: KubeObjects, created: dict[str, Any]
    ) -> None:
        ref = ref_of(created)
        found = await objects.get(ref)
        assert found is not None
        assert found["spec"] == created["spec"]
        assert await objects.get(replace(ref, name="another")) is None

    async def test_a_kind_that_is_not_served_is_no_evidence_that_an_object_is_gone(
        self, objects: KubeObjects, monkeypatch: pytest.MonkeyPatch, namespace: str
    ) -> None:
        unserved = names.Resource("/apis/batchinference.dev/v9", "batchinferencejobs", "Old")
        monkeypatch.setitem(names.RESOURCES, "Old", unserved)
        with pytest.raises(Retry):
            await objects.get(ObjectRef("Old", namespace, "triage"))

    async def test_status_members_are_replaced_whole_and_others_kept(
        self, objects: KubeObjects, created: dict[str, Any]
    ) -> None:
        ref = ref_of(created)
        first = await objects.patch_status(
            ref,
            {"shards": {"total": 3, "queued": 3}, "progress": "0/9", "runKey": "k"},
            version_of(created),
        )
        assert first is not None
        second = await objects.patch_status(
            ref, {"shards": {"total": 3, "running": 3}, "progress": None, "state": None}, first
        )
        now = await objects.get(ref)
        assert now is not None
        assert version_of(now) == second
        assert now["status"] == {
            "observedGeneration": -1,
            "runKey": "k",
            "shards": {"total": 3, "running": 3},  # and not queued: 3 of before
        }

    async def test_a_stale_status_write_is_superseded_and_changes_nothing(
        self, objects: KubeObjects, created: dict[str, Any]
    ) -> None:
        ref = ref_of(created)
        await objects.patch_status(ref, {"runKey": "theirs"}, version_of(created))
        with pytest.raises(Superseded):
            await objects.patch_status(ref, {"runKey": "ours"}, version_of(created))
        now = await objects.get(ref)
        assert now is not None
        assert now["status"]["runKey"] == "theirs"

    async def test_a_status_write_for_another_uid_is_superseded_and_changes_nothing(
        self, objects: KubeObjects, created: dict[str, Any]
    ) -> None:
        ref = replace(ref_of(created), uid="another")
        with pytest.raises(Superseded):
            await objects.patch_status(ref, {"runKey": "ours"}, version_of(created))
        now = await objects.get(ref)
        assert now is not None
        assert "runKey" not in now["status"]

    async def test_a_status_is_written_where_there_was_none(
        self, client: KubeClient, objects: KubeObjects, namespace: str
    ) -> None:
        crd = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "plains.example.org"},
            "spec": {
                "group": "example.org",
                "scope": "Namespaced",
                "names": {"plural": "plains", "kind": "Plain"},
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "subresources": {"status": {}},
                        "schema": {
                            "openAPIV3Schema": {
                                "type": "object",
                                "x-kubernetes-preserve-unknown-fields": True,
                            }
                        },
                    }
                ],
            },
        }
        await client.call("POST", names.RESOURCES["CustomResourceDefinition"].path(), body=crd)
        plains = names.Resource("/apis/example.org/v1", "plains", "Plain")
        names.RESOURCES["Plain"] = plains
        try:
            body = {"apiVersion": "example.org/v1", "kind": "Plain", "metadata": {"name": "p"}}
            made = await until_served(client, plains.path(namespace), body)
            written = await objects.patch_status(ref_of(made), {"state": "New"}, version_of(made))
            now = await objects.get(ref_of(made))
            assert now is not None
            assert (version_of(now), now["status"]) == (written, {"state": "New"})
            with pytest.raises(Superseded):
                await objects.patch_status(ref_of(made), {"state": "Old"}, version_of(made))
        finally:
            del names.RESOURCES["Plain"]
            path = names.RESOURCES["CustomResourceDefinition"].path(name="plains.example.org")
            await client.call("DELETE", path)

    async def test_a_status_write_to_an_object_that_is_gone_is_none(
        self, objects: KubeObjects, created: dict[str, Any]
    ) -> None:
        ref = replace(ref_of(created), name="gone")
        assert await objects.patch_status(ref, {"runKey": "k"}, "1") is None

    async def test_a_status_that_the_schema_refuses_is_permanent_and_names_the_field(
        self, objects: KubeObjects, created: dict[str, Any]
    ) -> None:
        with pytest.raises(Permanent, match=r"status\.runKey"):
            await objects.patch_status(ref_of(created), {"runKey": 5}, version_of(created))

    async def test_an_object_is_deleted_only_as_it_was_read(
        self, objects: KubeObjects, client: KubeClient, created: dict[str, Any]
    ) -> None:
        ref = ref_of(created)
        with pytest.raises(Superseded):
            await objects.delete_object(ref, "1")
        with pytest.raises(Superseded):
            await objects.delete_object(replace(ref, uid="another"), version_of(created))
        assert await objects.get(ref) is not None
        assert await objects.delete_object(ref, version_of(created))
        assert await objects.get(ref) is None
        assert not await objects.delete_object(ref, version_of(created))

    async def test_the_finalizer_comes_and_goes_beside_others(
        self, client: KubeClient, objects: KubeObjects, created: dict[str, Any]
    ) -> None:
        ref = ref_of(created)
        version = await objects.set_finalizer(ref, True)
        assert await objects.set_finalizer(ref, True) == version  # no write without a change
        path = f"/apis/batchinference.dev/v1alpha1/namespaces/{ref.namespace}/batchinferencejobs/{ref.name}"
        await client.call(
            "PATCH",
            path,
            body={"metadata": {"finalizers": ["example.org/first", FINALIZER, "example.org/last"]}},
            content_type="application/merge-patch+json",
        )
        await objects.set_finalizer(ref, False)
        now = await objects.get(ref)
        assert now is not None
        assert now["metadata"]["finalizers"] == ["example.org/first", "example.org/last"]
        await objects.set_finalizer(ref, True)
        now = await objects.get(ref)
        assert now is not None
        assert now["metadata"]["finalizers"][-1] == FINALIZER
        await client.call(
            "PATCH",
            path,
            body={"metadata": {"finalizers": None}},
            content_type="application/merge-patch+json",
        )

    async def test_the_finalizer_holds_a_deleted_object_until_it_is_taken_off(
        self, client: KubeClient, objects: KubeObjects, created: dict[str, Any]
    ) -> None:
        ref = ref_of(created)
        await objects.set_finalizer(ref, True)
        path = f"/apis/batchinference.dev/v1alpha1/namespaces/{ref.namespace}/batchinferencejobs/{ref.name}"
        await client.call("DELETE", path)
        held = await objects.get(ref)
        assert held is not None
        assert held["metadata"]["deletionTimestamp"]
        await objects.set_finalizer(ref, False)
        assert await objects.get(ref) is None
        assert await objects.set_finalizer(ref, False) is None

    async def test_an_object_that_is_being_deleted_takes_no_finalizer(
        self, client: KubeClient, objects: KubeObjects, created: dict[str, Any]
    ) -> None:
        ref = ref_of(created)
        path = f"/apis/batchinference.dev/v1alpha1/namespaces/{ref.namespace}/batchinferencejobs/{ref.name}"
        merge = "application/merge-patch+json"
        held = {"metadata": {"finalizers": ["example.org/other"]}}
        await client.call("PATCH", path, body=held, content_type=merge)
        await client.call("DELETE", path)
        with pytest.raises(Superseded, match="being deleted"):
            await objects.set_finalizer(ref, True)
        await client.call(
            "PATCH", path, body={"metadata": {"finalizers": None}}, content_type=merge
        )

    async def test_the_finalizer_of_another_uid_is_left_alone(
        self, objects: KubeObjects, created: dict[str, Any]
    ) -> None:
        with pytest.raises(Superseded):
            await objects.set_finalizer(replace(ref_of(created), uid="another"), True)

    async def test_the_finalizer_wins_against_writers_in_between(
        self, objects: KubeObjects, created: dict[str, Any]
    ) -> None:
        ref = ref_of(created)
        real, interfered = objects._client.call, 0

        async def busy(method: str, path: str, **rest: Any) -> dict[str, Any]:
            nonlocal interfered
            if method == "PATCH" and interfered < 2:
                interfered += 1
                await real(
                    "PATCH",
                    path,
                    body={"metadata": {"labels": {"touched": str(interfered)}}},
                    content_type="application/merge-patch+json",
                )
            return await real(method, path, **rest)

        objects._client.call = busy  # type: ignore[method-assign]
        assert await objects.set_finalizer(ref, True)
        now = await objects.get(ref)
        assert interfered == 2
        assert now is not None
        assert now["metadata"]["finalizers"] == [FINALIZER]
        await objects.set_finalizer(ref, False)

    async def test_secrets_namespaces_and_config_maps_are_read_by_name(
        self, objects: KubeObjects, namespace: str, kubectl: Any
    ) -> None:
        kubectl(
            "create", "secret", "generic", "openai", "--from-literal=api-key=sk-1", "-n", namespace
        )
        kubectl("create", "configmap", "rows", "--from-literal=in.jsonl={}", "-n", namespace)
        kubectl("label", "namespace", namespace, "team=ml")
        assert await objects.secret(namespace, "openai") == {"api-key": "sk-1"}
        assert await objects.secret(namespace, "other") is None
        labels = await objects.namespace_labels(namespace)
        assert labels is not None
        assert labels["team"] == "ml"
        assert await objects.namespace_labels("no-such-namespace") is None
        assert await objects.config_map_exists(namespace, "rows", "in.jsonl")
        assert not await objects.config_map_exists(namespace, "rows", "out.jsonl")
        assert not await objects.config_map_exists(namespace, "no-rows", "in.jsonl")
        assert await objects.uid_of_namespace("kube-system")

    async def test_what_rbac_forbids_is_stalled_and_says_so(
        self, served: ControlPlane, namespace: str, kubectl: Any
    ) -> None:
        kubectl("create", "serviceaccount", "nobody", "-n", namespace)
        kubeconfig = served.service_account_kubeconfig(namespace, "nobody")
        client = await KubeClient.connect(str(kubeconfig))
        try:
            with pytest.raises(Stalled, match="RBAC") as denied:
                await KubeObjects(client).secret(namespace, "openai")
            assert denied.value.reason == "AccessDenied"
        finally:
            await client.close()


class TestJournals(JournalsConformance):
    @pytest.fixture
    def journals(self, client: KubeClient, namespace: str) -> KubeJournals:
        return KubeJournals(client, namespace)

    async def test_a_small_journal_is_readable_and_a_large_one_compressed(
        self, journals: KubeJournals, client: KubeClient, namespace: str
    ) -> None:
        small, large = run_of("small"), run_of("large", shards=200, submitted=200)
        await journals.create(small)
        version = await journals.create(large)
        path = CONFIG_MAPS.path(namespace)
        plain = await client.call("GET", f"{path}/run-{small.key}")
        assert json.loads(plain["data"]["journal"]) == encode(small)
        packed = await client.call("GET", f"{path}/run-{large.key}")
        assert len(json.dumps(encode(large))) > PLAIN_LIMIT
        assert "data" not in packed
        assert list(packed["binaryData"]) == ["journal.json.zlib"]
        shrunk = replace(large, shards=large.shards[:1])
        await journals.write(shrunk, version)
        again = await client.call("GET", f"{path}/run-{large.key}")
        assert "binaryData" not in again
        assert json.loads(again["data"]["journal"]) == encode(shrunk)

    async def test_labels_tell_what_a_journal_is_and_no_owner_can_take_it_along(
        self, journals: KubeJournals, client: KubeClient, namespace: str
    ) -> None:
        run = run_of()
        path = f"{CONFIG_MAPS.path(namespace)}/run-{run.key}"
        version = await journals.create(run)
        seen = []
        for phase in (RunPhase.PARKED, RunPhase.ENDED):
            version = await journals.write(replace(run, phase=phase), version)
            metadata = (await client.call("GET", path))["metadata"]
            seen.append(metadata["labels"]["batchinference.dev/journal"])
            assert "ownerReferences" not in metadata
            assert metadata["annotations"]["batchinference.dev/phase"] == phase.value
            assert metadata["annotations"]["batchinference.dev/job"] == "ml/triage"
        assert seen == ["parked", "ended"]

    async def test_a_journal_of_a_newer_operator_is_reported_and_never_read(
        self, journals: KubeJournals, client: KubeClient, namespace: str
    ) -> None:
        run = run_of()
        await journals.create(run)
        newer = {**encode(run), "schema": SCHEMA + 1, "unheardOf": True}
        await client.call(
            "PATCH",
            f"{CONFIG_MAPS.path(namespace)}/run-{run.key}",
            body={"data": {"journal": json.dumps(newer)}},
            content_type="application/merge-patch+json",
        )
        with pytest.raises(NewerSchema, match=str(SCHEMA + 1)):
            await journals.get(run.key)
        assert [(key, found) for key, found, _ in await journals.unended()] == [(run.key, None)]

    async def test_annotations_of_people_survive_our_writes(
        self, journals: KubeJournals, client: KubeClient, namespace: str
    ) -> None:
        run = run_of()
        await journals.create(run)
        await client.call(
            "PATCH",
            f"{CONFIG_MAPS.path(namespace)}/run-{run.key}",
            body={"metadata": {"annotations": {"batchinference.dev/abandon": "1"}}},
            content_type="application/merge-patch+json",
        )
        held = await journals.get(run.key)
        assert held is not None
        await journals.write(replace(run, phase=RunPhase.STAGING), held[1])
        annotations = await journals.annotations(run.key)
        assert annotations["batchinference.dev/abandon"] == "1"
        assert annotations["batchinference.dev/phase"] == "Staging"

    async def test_more_journals_than_a_page_are_all_listed(
        self, journals: KubeJournals, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("batchinference.adapters.kube.journals._PAGE", 2)
        keys = {run_of(f"job-{n}").key for n in range(5)}
        for n in range(5):
            await journals.create(run_of(f"job-{n}"))
        assert {key for key, _, _ in await journals.unended()} == keys
        assert {key async for key, _ in journals.unended_versions()} == keys

    async def test_other_config_maps_are_not_taken_for_journals(
        self, journals: KubeJournals, client: KubeClient, namespace: str
    ) -> None:
        body = {"metadata": {"name": "run-away"}, "data": {"journal": "{}"}}
        await client.call("POST", CONFIG_MAPS.path(namespace), body=body)
        assert list(await journals.unended()) == []
        assert [key async for key in journals.unended_versions()] == []


class HandClock(SystemClock):
    """The machine's clock, put forward by hand."""

    ahead_s = 0.0

    def elapsed(self) -> float:
        return super().elapsed() + self.ahead_s


class TestEvents:
    @pytest.fixture
    def clock(self) -> HandClock:
        return HandClock()

    async def events_of(self, client: KubeClient, namespace: str) -> list[dict[str, Any]]:
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        answer = await client.call("GET", path)
        return [e for e in answer["items"] if e["reportingController"].startswith("batchinf")]

    async def test_an_event_lands_beside_its_object(
        self, client: KubeClient, clock: HandClock, created: dict[str, Any], kubectl: Any
    ) -> None:
        events = KubeEvents(client, clock, "pod-1")
        events.start()
        ref = ref_of(created)
        events.record(Event(ref, "SubmissionAccepted", "Batch batch_1 was accepted."))
        await events.stop()
        (event,) = await self.events_of(client, ref.namespace)
        assert event["reason"] == "SubmissionAccepted"
        assert event["type"] == "Normal"
        assert event["reportingController"] == "batchinference.dev/operator"
        assert event["reportingInstance"] == "pod-1"
        assert event["regarding"]["uid"] == ref.uid
        described = kubectl("describe", "batchinferencejob", ref.name, "-n", ref.namespace)
        assert "Batch batch_1 was accepted." in described.stdout

    async def test_a_repeat_raises_a_count_and_makes_no_new_event(
        self, client: KubeClient, clock: HandClock, created: dict[str, Any]
    ) -> None:
        events = KubeEvents(client, clock, "pod-1")
        events.start()
        ref = ref_of(created)
        for _ in range(7):
            events.record(Event(ref, "QuotaWait", "The account is full.", warning=True))
        events.record(Event(ref, "QuotaWait", "Another sentence."))
        await events._queue.join()
        await events.stop()
        found = {event["note"]: event for event in await self.events_of(client, ref.namespace)}
        assert len(found) == 2
        assert found["The account is full."]["series"]["count"] == 7
        assert found["The account is full."]["type"] == "Warning"

    async def test_a_repeat_is_told_again_only_after_a_while(
        self, client: KubeClient, clock: HandClock, created: dict[str, Any]
    ) -> None:
        events = KubeEvents(client, clock, "pod-1")
        events.start()
        event = Event(ref_of(created), "QuotaWait", "The account is full.")
        counts = []
        for ahead_s in (0, 10, 400):
            clock.ahead_s = ahead_s
            events.record(event)
            await events._queue.join()
            (stored,) = await self.events_of(client, created["metadata"]["namespace"])
            counts.append(stored.get("series", {}).get("count"))
        await events.stop()
        assert counts == [None, None, 3]

    async def test_events_of_cluster_scoped_kinds_go_to_default(
        self, client: KubeClient, clock: HandClock
    ) -> None:
        events = KubeEvents(client, clock, "pod-1")
        events.start()
        about = ObjectRef("ClusterInferenceProvider", "", "shared", "uid-1")
        events.record(Event(about, "CredentialsRejected", "Key rejected.", warning=True))
        await events.stop()
        notes = [event["note"] for event in await self.events_of(client, "default")]
        assert "Key rejected." in notes

    async def test_a_long_message_is_cut_and_a_missing_namespace_hurts_nobody(
        self, client: KubeClient, clock: HandClock, created: dict[str, Any]
    ) -> None:
        events = KubeEvents(client, clock, "pod-1")
        events.start()
        events.record(Event(ObjectRef("BatchInferenceJob", "gone", "x", "u"), "A", "m"))
        events.record(Event(ref_of(created), "A", "ü" * 3000))
        await events.stop()
        (event,) = await self.events_of(client, created["metadata"]["namespace"])
        assert len(event["note"].encode()) <= 1024
        assert event["note"].endswith("…")


async def test_an_api_server_that_does_not_answer_is_retry(own_control_plane: Any) -> None:
    own = own_control_plane()
    client = await KubeClient.connect(str(own.kubeconfig), timeout_s=5)
    objects = KubeObjects(client)
    assert await objects.uid_of_namespace("kube-system")
    await asyncio.to_thread(own.kill_apiserver)
    with pytest.raises(Retry):
        await objects.uid_of_namespace("kube-system")
    await asyncio.to_thread(own.start_apiserver)
    assert await objects.uid_of_namespace("kube-system")
    await client.close()
