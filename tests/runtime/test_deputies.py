"""Tenants who try to have the operator do what they may not do themselves."""

from __future__ import annotations

from typing import Any

from batchinference.model.run import RunPhase
from batchinference.ports import ObjectRef
from builders import job, openai_provider
from fakes.server import Habits
from runtime.house import House, play, ref

HOUR_S = 3600.0
SYSTEM = "batch-inference-system"


def cluster_provider(**allowed: Any) -> dict[str, Any]:
    body = openai_provider("shared", "", allowedNamespaces=allowed)
    body["kind"] = "ClusterInferenceProvider"
    del body["metadata"]["namespace"]
    body["spec"]["storage"]["stagingURI"] = "s3://staging/shared/"
    return body


def give_shared(house: House, **allowed: Any) -> None:
    """A cluster provider with its Secrets where they belong."""
    for name in ("openai", "aws"):
        house.kube.secrets[SYSTEM, name] = house.kube.secrets["ml", name]
    provider = cluster_provider(**allowed)
    house.factory.servers[provider["spec"]["openAI"]["baseURL"]] = house.server
    house.kube.create(provider)


def creates(house: House) -> int:
    return house.server.calls.get("create", 0)


ALLOWED: list[tuple[dict[str, Any], dict[str, str], bool, str]] = [
    ({}, {}, False, "nothing is said"),
    ({"names": ["other"]}, {}, False, "others by name"),
    ({"names": ["m", "mll", "ML", "ml."]}, {}, False, "names that almost match"),
    ({"names": ["ml"]}, {}, True, "by name"),
    ({"selector": {"matchLabels": {"batch": "yes"}}}, {"batch": "yes"}, True, "by label"),
    ({"selector": {"matchLabels": {"batch": "yes"}}}, {"batch": "no"}, False, "another value"),
    ({"selector": {"matchLabels": {"batch": "yes"}}}, {}, False, "no label"),
]


def test_a_cluster_provider_serves_whom_it_allows_and_nobody_else() -> None:
    for allowed, labels, fine, reason in ALLOWED:

        async def scene(house: House) -> None:
            house.kube.namespaces["ml"] = labels  # noqa: B023 - it runs before the next turn
            give_shared(house, **allowed)  # noqa: B023
            await house.operator()
            house.give(job().provider("shared", "ClusterInferenceProvider"))
            if fine:  # noqa: B023
                await house.until(lambda: house.state() == "Succeeded")
                return
            await house.until(lambda: house.state() == "Stalled")
            assert house.condition("Stalled")["reason"] == "NamespaceNotAllowed", reason  # noqa: B023
            await house.pass_time(HOUR_S)
            assert creates(house) == 0, reason  # noqa: B023
            assert house.server.files == {}, reason  # noqa: B023

        play(scene)


def test_a_namespace_that_is_not_allowed_any_more_submits_no_more_and_loses_nothing() -> None:
    async def scene(house: House) -> None:
        house.kube.namespaces["ml"] = {"batch": "yes"}
        give_shared(house, selector={"matchLabels": {"batch": "yes"}})
        shared = ("ClusterInferenceProvider", "", "shared")
        limits = {"maxActiveBatches": 1, "maxRecordsPerBatch": 2}
        house.kube.objects[shared]["spec"]["limits"] = limits
        await house.operator()
        body = house.give(job().provider("shared", "ClusterInferenceProvider"), records=4)
        await house.until(lambda: creates(house) == 1)
        house.kube.namespaces["ml"] = {}
        await house.pass_time(2 * HOUR_S)
        assert creates(house) == 1, "what waited goes on waiting"
        assert house.condition("Stalled")["reason"] == "NamespaceNotAllowed"
        run = house.run(body)
        assert run is not None
        assert [s.collected is not None for s in run.shards] == [True, False], (
            "the paid one is kept"
        )
        house.kube.namespaces["ml"] = {"batch": "yes"}
        await house.until(lambda: house.state() == "Succeeded")
        assert creates(house) == 2

    play(scene, habits=Habits(work_s=600))


def test_a_provider_reads_no_secret_of_another_namespace() -> None:
    async def scene(house: House) -> None:
        house.kube.namespaces["evil"] = {}
        for name in ("openai", "ml/openai", "../ml/openai"):
            slug = str(len(name))
            provider = openai_provider(f"theft-{slug}", "evil")
            provider["spec"]["openAI"]["apiKeySecretRef"]["name"] = name
            house.factory.servers[provider["spec"]["openAI"]["baseURL"]] = house.server
            house.kube.create(provider)
        await house.operator()

        def reasons() -> set[str]:
            return {
                condition["reason"]
                for (kind, namespace, _), body in house.kube.objects.items()
                for condition in body.get("status", {}).get("conditions", ())
                if (kind, namespace, condition["type"]) == ("InferenceProvider", "evil", "Ready")
            }

        await house.until(reasons)
        await house.pass_time(HOUR_S)
        assert reasons() == {"SecretNotFound"}

    play(scene)


def test_a_forged_status_leads_to_no_batch_of_another_run() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job("victim"))
        await house.until(lambda: house.state("victim") == "Running")
        (batch,) = house.server.batches.values()
        forged = house.give(job("forger"))
        target = house.kube.objects["BatchInferenceJob", "ml", "forger"]
        target["status"] = {
            "observedGeneration": 1,
            "state": "Running",
            "runKey": house.status("victim")["runKey"],
            "submissions": [{"shard": 0, "ordinal": 1, "batchID": batch.id, "state": "InProgress"}],
            "conditions": house.status("victim")["conditions"],
        }
        house.kube.annotate(ref("forger"), touched="yes")
        await house.pass_time(120)
        run = house.run(forged)
        held = {made.batch_id for shard in run.shards for made in shard.made} if run else set()
        assert batch.id not in held
        house.kube.delete(ref("forger"))
        await house.until(lambda: house.job("forger") is None)
        assert not batch.cancels, "deleting the forger cancels nothing of the victim's"
        await house.until(lambda: house.state("victim") == "Succeeded")

    play(scene, habits=Habits(work_s=1800))


def test_a_forged_end_is_an_end_of_nothing_but_the_forgers_own_job() -> None:
    async def scene(house: House) -> None:
        body = job("forger").build()
        body["status"] = {}
        house.give(job("forger"))
        target = house.kube.objects["BatchInferenceJob", "ml", "forger"]
        said = {"status": "True", "reason": "Succeeded", "message": "", "observedGeneration": 1}
        said["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        target["status"] = {
            "observedGeneration": 1,
            "state": "Succeeded",
            "conditions": [{"type": "Complete", **said}, {"type": "Submitted", **said}],
        }
        house.give(job("honest"))
        await house.operator()
        await house.until(lambda: house.state("honest") == "Succeeded")
        await house.pass_time(HOUR_S)
        assert creates(house) == 1, "what says that it is over is not begun"
        run = house.run(body)
        assert run is None or run.phase is RunPhase.ENDED
        house.kube.delete(ObjectRef("BatchInferenceJob", "ml", "forger"))
        await house.until(lambda: house.job("forger") is None, 5)

    play(scene)
