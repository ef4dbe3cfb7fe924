"""The same records as a job on each provider: whatever happens to one happens to both at once.

What is said of them afterwards is counted at the provider and read in the output places; statuses
and Events come second.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from batchinference.model.status import Reason
from stack import BUCKET, OPERATOR_NAMESPACE, wait_for
from team import Team, chat, jsonl

RECORDS = 8
SHARDS = 2
_SMALL = {"limits": {"maxRecordsPerBatch": RECORDS // SHARDS, "minRecordsPerBatch": 1}}
_NOT_LOOKED_AT = '[{"op":"replace","path":"/status","value":{"observedGeneration":-1}}]'
_KEPT = ("runKey", "startTime", "completionTime", "requestCounts", "usage", "outputs", "progress")
"""What the status of a finished run says for ever, whoever shows it."""

Manifest = dict[str, Any]


class Pair:
    """Two jobs of a team, `on-openai` and `on-bedrock`, of eight records in two shards."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.names = ("on-openai", "on-bedrock")
        team.control.settings(bedrock={"min_records": 1})
        self.apply_providers()
        uri = team.put("pair.jsonl", jsonl(chat(f"r{n}", f"Say {n}") for n in range(RECORDS)))
        self.manifests: list[Manifest] = [
            team.job(name, provider=name.removeprefix("on-"), input={"s3": {"uri": uri}})
            for name in self.names
        ]
        self.tags: dict[str, str] = {}
        self.uids: dict[str, str] = {}
        self.keys: dict[str, str] = {}

    def only(self, provider: str) -> None:
        """Go on with one of them, where the moment matters."""
        self.names = (f"on-{provider}",)
        self.manifests = [m for m in self.manifests if m["metadata"]["name"] in self.names]

    # ---------------------------------------------------------------- what is done to them

    def apply_providers(self) -> None:
        """The providers of the namespace, with limits that make two shards."""
        team = self.team
        team.apply(*team.stack.providers(team.namespace, openai=_SMALL, bedrock=_SMALL))

    def apply(self, *options: str) -> None:
        """`kubectl apply` both."""
        self.kubectl("apply", *options)

    def kubectl(self, *command: str, manifests: Iterable[Manifest] | None = None) -> str:
        """A kubectl command that reads both manifests, or others; its standard output."""
        text = yaml.safe_dump_all(list(self.manifests if manifests is None else manifests))
        plane = self.team.stack.control_plane
        return plane.kubectl(
            *("--namespace", self.team.namespace, *command, "--filename", "-"), stdin=text
        ).stdout

    def patch(self, merge: Mapping[str, Any], *options: str) -> None:
        """A merge patch of both."""
        for name in self.names:
            self.team.kubectl(
                *("patch", "bij", name, "--type=merge", f"--patch={json.dumps(merge)}", *options)
            )

    def strip(self) -> None:
        """Take away every annotation and finalizer, and the whole status."""
        self.patch({"metadata": {"annotations": None, "finalizers": None}})
        for name in self.names:
            self.team.kubectl(
                *("patch", "bij", name, "--subresource=status", "--type=json"),
                f"--patch={_NOT_LOOKED_AT}",
            )

    def delete(self) -> None:
        """`kubectl delete` both, and wait until they are gone."""
        self.team.kubectl("delete", "bij", *self.names, "--timeout=120s")

    def changed(self, **spec: Any) -> list[Manifest]:
        """Both manifests with other members in their specs."""
        changed = copy.deepcopy(self.manifests)
        for manifest in changed:
            manifest["spec"].update(spec)
        return changed

    def delete_journals(self) -> None:
        """Take away every journal that the operator has."""
        self.team.stack.control_plane.kubectl(
            *("delete", "configmap", "--namespace", OPERATOR_NAMESPACE),
            *("--selector", "batchinference.dev/journal"),
        )

    # ---------------------------------------------------------------- what becomes of them

    def get(self, name: str) -> Manifest:
        """One of the objects, which must be there."""
        found = self.team.get(name)
        assert found is not None, f"{name} is gone"
        return found

    def run_live(self) -> None:
        """Apply both, and wait until every batch of both is in progress, where they are held."""
        self.team.control.hold()
        self.apply()
        self.wait_live()

    def wait_live(self) -> None:
        """Wait until every batch of both is in progress."""
        for name in self.names:
            wait_for(
                f"{SHARDS} batches of {name} in progress",
                lambda name=name: (
                    [s["state"] for s in self.team.status(name).get("submissions", [])]
                    == ["InProgress"] * SHARDS
                ),
                240,  # a lost answer is looked for, fenced and made anew meanwhile
            )
        self._note()

    def run_to_the_end(self) -> dict[str, Any]:
        """Apply both and wait until nothing is left to do; their statuses."""
        self.apply()
        return self.wait_for_the_end()

    def let_finish(self) -> dict[str, Any]:
        """Let the providers go on and wait for the end; the statuses."""
        self.team.control.release()
        return self.wait_for_the_end()

    def wait_for_the_end(self) -> dict[str, Any]:
        """Wait until both are complete and let go of; their statuses."""
        for name in self.names:
            self.team.wait_condition(name, "Complete", 180)
            wait_for(
                f"no finalizer on {name}",
                lambda name=name: "finalizers" not in self.get(name)["metadata"],
            )
        self._note()
        return {name: self.team.status(name) for name in self.names}

    def _note(self) -> None:
        for name in self.names:
            self.tags[name] = self.team.tag(name)
            self.uids[name] = self.get(name)["metadata"]["uid"]
            self.keys[name] = self.team.status(name)["runKey"]

    def creates(self) -> int:
        """How many create calls the providers have seen, whatever came of them."""
        calls = self.team.control.state()["calls"]
        openai = calls.get("openai", {}).get("batches.create", 0)
        return int(openai + calls.get("bedrock", {}).get("CreateModelInvocationJob", 0))

    # ---------------------------------------------------------------- what may be said of them

    def check_found(self, before: Mapping[str, Any], *, by_manifest: bool = False) -> None:
        """New objects show the finished runs as they were, with an Event; nothing is called.

        Found by its manifest alone, a run ended when its last batch did: a manifest is the same
        whenever it is written, so it can't hold the time of the writing.
        """
        for name in self.names:
            self.team.wait_condition(name, "Complete")
            found = self.get(name)
            assert found["metadata"]["uid"] != self.uids[name], "the same object"
            self.uids[name] = found["metadata"]["uid"]
            self.check_same(name, before, by_manifest=by_manifest)
            submitted = self.team.condition(name, "Submitted")
            assert (submitted["status"], submitted["reason"]) == ("True", Reason.ADOPTED)
            self.check_told(name, Reason.ADOPTED)

    def check_same(
        self, name: str, before: Mapping[str, Any], *, by_manifest: bool = False
    ) -> None:
        """The status of a finished run says what it said before."""
        then, now = before[name], self.team.status(name)
        assert now["state"] == "Succeeded"
        kept = set(_KEPT)
        if by_manifest:
            kept.discard("completionTime")
            times = (then["startTime"], now["completionTime"], then["completionTime"])
            assert list(times) == sorted(times), f"{name}: {times}"
        assert {
            (k, str(then.get(k)), str(now.get(k))) for k in kept if then.get(k) != now.get(k)
        } == (set()), f"{name}: then and now"

    def check_told(self, name: str, reason: str) -> None:
        """There is an Event of that reason about this very object."""
        uid = self.uids[name]
        wait_for(
            f"an Event {reason} about {name}",
            lambda: any(
                event["reason"] == reason and event["regarding"].get("uid") == uid
                for event in self.team.stack.events(name, self.team.namespace)
            ),
        )

    def check_paid_once(self, *, submissions: int | None = SHARDS) -> None:
        """Every shard and ordinal was accepted once, every record answered once and all are there.

        Args:
            submissions: how many per job; None where it depends on how much a cancelled batch did.
        """
        for name in self.names:
            accepted = self.team.accepted(self.tags[name])
            assert set(accepted.values()) == {1}, f"{name}: {accepted}"
            assert submissions in {None, len(accepted)}, f"{name}: {accepted}"
            assert self.answered(name) == RECORDS, f"{name}: answers that were paid for"
            lines = self.results(name)
            assert [line["custom_id"] for line in lines] == [f"r{n}" for n in range(RECORDS)]
            assert all(line["error"] is None for line in lines), lines

    def answered(self, name: str) -> int:
        """How many records the provider answered, and so billed, for a job's run."""
        made = (s for _, s in self.team.submissions(self.tags[name]))
        return sum(s["completed" if "completed" in s else "succeeded"] for s in made)

    def cancels(self, name: str) -> list[int]:
        """How often each batch of a job's run was asked to be cancelled."""
        return [s["cancels"] for _, s in self.team.submissions(self.tags[name])]

    def results(self, name: str) -> list[dict[str, Any]]:
        """The lines of all parts of a job's results."""
        return [
            json.loads(line)
            for part in self.team.manifest(name)["results"]
            for line in self.team.read(part["uri"]).splitlines()
        ]


def elsewhere(manifest: Manifest, folder: str) -> Manifest:
    """The manifest with its output in another place of the same namespace."""
    moved = copy.deepcopy(manifest)
    namespace = moved["metadata"]["namespace"]
    place = f"s3://{BUCKET}/results/{namespace}/{folder}/{moved['spec']['providerRef']['name']}/"
    moved["spec"]["output"] = {"s3": {"uri": place}}
    return moved
