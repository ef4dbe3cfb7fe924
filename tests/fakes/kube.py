"""An API server in memory: objects with versions and finalizers, and watches that lag and break.

Only the behaviour that the operator's port can see; admission and schemas are the real control
plane's business. Users act through `create`, `edit_spec` and `delete`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from batchinference.errors import Retry, Stalled, Superseded
from batchinference.model.codec import encode_time
from batchinference.model.status import Reason
from batchinference.ports import ObjectRef
from fakes.world import Process, World, demand_life

FINALIZER = "batchinference.dev/cancel-on-delete"

JOB = "BatchInferenceJob"

Observer = Callable[[str, str | None, Mapping[str, Any]], None]
Key = tuple[str, str, str]


def copied(body: Any) -> Any:
    """A copy of what is JSON, much faster than `copy.deepcopy`."""
    return msgspec.json.decode(msgspec.json.encode(body))


class Watch:
    """One operator's watches. Events of one kind come in order, late, now and then twice."""

    def __init__(self, process: Process, observe: Observer) -> None:
        self.process = process
        self.observe = observe
        self.broken = False
        self._free_at = 0.0

    def deliver(self, delay: float, now: float, event: str | None, body: Mapping[str, Any]) -> None:
        """Hand an event over, never before the one that came earlier."""
        # A hair later than the one before: timers of one moment fire in no order.
        self._free_at = max(self._free_at + 1e-6, now + delay)
        kind = str(body["kind"])
        self.process.later(self._free_at - now, self.observe, kind, event, copied(body))


class FakeKube:
    """`ports.Kube`, and what users and other controllers do to objects.

    Attributes:
        objects: (kind, namespace, name) -> body.
        secrets: (namespace, name) -> data.
        namespaces: name -> labels.
        history: every body a job ever had, oldest first, for invariants.
        on_change, on_let_go: told of every change of a job, and before an operator removes the
            last finalizer of one that is being deleted.
        failure_rate: how often a call answers Retry, half of the time after it took hold.
        duplicate_rate: how often a watch event is delivered twice.
        refuses_finalizers: adding ours is forbidden.
        finalizer_calls, finalizer_writes: how often it was to be added or removed, and was.
        refused_status_writes: those with an outdated precondition.
        secret_reads: how often a Secret was asked for.
    """

    def __init__(self, world: World | None = None, *, failure_rate: float = 0.0) -> None:
        self.objects: dict[Key, dict[str, Any]] = {}
        self.secrets: dict[tuple[str, str], dict[str, str]] = {}
        self.namespaces: dict[str, dict[str, str]] = {"ml": {}}
        self.config_maps: dict[tuple[str, str], dict[str, str]] = {}
        self.history: list[dict[str, Any]] = []
        self.failure_rate = failure_rate
        self.duplicate_rate = 0.0
        self.refuses_finalizers = False
        self.finalizer_calls = 0
        self.finalizer_writes = 0
        self.refused_status_writes = 0
        self.secret_reads = 0
        self.status_writes: dict[str, int] = {}
        self.on_change: Callable[[dict[str, Any]], None] | None = None
        self.on_let_go: Callable[[dict[str, Any]], None] | None = None
        self._world = world or World()
        self._watches: list[Watch] = []
        self._version = 0
        self._uids = 0

    # ---- what users and other controllers do

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object, stamped as the API server does."""
        made = copied(body)
        meta = made["metadata"]
        key = (made["kind"], meta.get("namespace", ""), meta["name"])
        assert key not in self.objects, f"{key} exists"
        self._uids += 1
        meta.update(
            uid=f"uid-{self._uids:04d}",
            generation=1,
            creationTimestamp=encode_time(self._world.clock.now().replace(microsecond=0)),
        )
        made["status"] = {"observedGeneration": -1} if made["kind"] == JOB else {}
        self.objects[key] = made
        self._changed(made, "ADDED")
        return copied(made)

    def edit_spec(self, ref: ObjectRef, **members: Any) -> None:
        """Change members of a spec by their wire names; None removes."""
        body = self._find(ref)
        assert body is not None, f"{ref} is not there"
        spec = {**body["spec"], **members}
        spec = {k: v for k, v in spec.items() if v is not None}
        if spec != body["spec"]:
            body["spec"] = spec
            body["metadata"]["generation"] += 1
            self._changed(body, "MODIFIED")

    def annotate(self, ref: ObjectRef, **annotations: str) -> None:
        """Set annotations; underscores stand for what Python names cannot hold."""
        body = self._find(ref)
        assert body is not None, f"{ref} is not there"
        body["metadata"].setdefault("annotations", {}).update(annotations)
        self._changed(body, "MODIFIED")

    def delete(self, ref: ObjectRef) -> None:
        """Ask for the deletion; finalizers hold the object."""
        body = self._find(ref)
        if body is None or body["metadata"].get("deletionTimestamp"):
            return
        meta = body["metadata"]
        if meta.get("finalizers"):
            meta["deletionTimestamp"] = encode_time(self._world.clock.now().replace(microsecond=0))
            meta["generation"] += 1
            self._changed(body, "MODIFIED")
        else:
            self._remove(body)

    def strip_finalizers(self, ref: ObjectRef) -> None:
        """What an impatient person does to an object that will not go."""
        body = self._find(ref)
        if body is None:
            return
        body["metadata"]["finalizers"] = []
        if body["metadata"].get("deletionTimestamp"):
            self._remove(body)
        else:
            self._changed(body, "MODIFIED")

    def jobs(self) -> list[dict[str, Any]]:
        """Every job that is there."""
        return [b for (kind, _, _), b in self.objects.items() if kind == JOB]

    def find(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """The object as it stands."""
        return self.objects.get((kind, namespace, name))

    # ---- watches

    def watch(self, process: Process, observe: Observer) -> Watch:
        """Connect an operator: the initial list comes as events of type None, then changes."""
        watch = Watch(process, observe)
        self._watches = [w for w in self._watches if w.process.alive]
        self._watches.append(watch)
        self.relist(watch)
        return watch

    def break_watches(self, process: Process | None = None) -> None:
        """Watches (of one operator) fall silent: changes are missed until `mend_watches` lists
        again.
        """
        for watch in self._watches:
            watch.broken = watch.broken or process in {None, watch.process}

    def mend_watches(self) -> None:
        """List again, as kopf does; what was deleted meanwhile is just not in the list."""
        for watch in self._watches:
            if watch.broken:
                watch.broken = False
                self.relist(watch)

    def relist(self, watch: Watch) -> None:
        """Deliver everything there is as events of type None, in no order."""
        bodies = list(self.objects.values())
        self._world.random.shuffle(bodies)
        for body in bodies:
            watch.deliver(self._world.delay(), self._world.clock.elapsed(), None, body)

    # ---- the port

    async def get(self, ref: ObjectRef) -> Mapping[str, Any] | None:
        await self._read("get")
        found = copied(self._find(ref) or self._place(ref))
        await self._world.pause()
        return found

    async def patch_status(
        self, ref: ObjectRef, status: Mapping[str, Any], resource_version: str
    ) -> str | None:
        async with self._world.effect("kube.status"):
            self._maybe_fail("status")
            body = self._matching(ref)
            if body is None:
                return None
            current = body["metadata"]["resourceVersion"]
            if resource_version and current != resource_version:
                self.refused_status_writes += 1
                raise Superseded(f"{ref.name} has version {current}, not {resource_version}")
            sent = json.loads(json.dumps(status))  # what goes over the wire is JSON
            merged = {k: v for k, v in {**body.get("status", {}), **sent}.items() if v is not None}
            self.status_writes[ref.name] = self.status_writes.get(ref.name, 0) + 1
            if merged != body.get("status"):
                body["status"] = merged
                self._changed(body, "MODIFIED")
            self._maybe_fail("status answer")
            return str(body["metadata"]["resourceVersion"])

    async def set_finalizer(self, ref: ObjectRef, present: bool) -> Mapping[str, Any] | None:
        async with self._world.effect("kube.finalizer"):
            self.finalizer_calls += 1
            self._maybe_fail("finalizer")
            body = self._matching(ref)
            if body is None:
                return None
            self._set_finalizer(body, present)
            self._maybe_fail("finalizer answer")
            return copied(body)

    async def delete_object(self, ref: ObjectRef, resource_version: str) -> bool:
        async with self._world.effect("kube.delete"):
            self._maybe_fail("delete")
            body = self._matching(ref)
            if body is None:
                return False
            if body["metadata"]["resourceVersion"] != resource_version:
                raise Superseded(f"{ref.name} has changed")
            self.delete(ref)
            self._maybe_fail("delete answer")
            return True

    def _set_finalizer(self, body: dict[str, Any], present: bool) -> None:
        meta = body["metadata"]
        held = list(meta.get("finalizers") or [])
        if present == (FINALIZER in held):
            return
        if present and self.refuses_finalizers:
            raise Stalled(Reason.ACCESS_DENIED, "adding the finalizer is forbidden")
        if present and meta.get("deletionTimestamp"):
            raise Superseded("a finalizer can't be added to an object that is being deleted")
        self.finalizer_writes += 1
        meta["finalizers"] = [*held, FINALIZER] if present else [f for f in held if f != FINALIZER]
        if meta.get("deletionTimestamp") and not meta["finalizers"]:
            if self.on_let_go is not None:
                self.on_let_go(body)
            self._remove(body)
        else:
            self._changed(body, "MODIFIED")

    async def secret(self, namespace: str, name: str) -> Mapping[str, str] | None:
        self.secret_reads += 1
        await self._read("secret")
        found = self.secrets.get((namespace, name))
        return dict(found) if found is not None else None

    async def namespace_labels(self, name: str) -> Mapping[str, str] | None:
        await self._read("namespace")
        found = self.namespaces.get(name)
        return dict(found) if found is not None else None

    async def config_map_exists(self, namespace: str, name: str, key: str) -> bool:
        await self._read("configmap")
        return key in self.config_maps.get((namespace, name), {})

    # ---- inside

    async def _read(self, what: str) -> None:
        await self._world.pause()
        demand_life()
        self._maybe_fail(what)

    def _maybe_fail(self, what: str) -> None:
        if self._world.chance(self.failure_rate / 2):
            raise Retry("Unavailable", f"{what}: the API server did not answer")

    def _find(self, ref: ObjectRef) -> dict[str, Any] | None:
        return self.objects.get((ref.kind, ref.namespace, ref.name))

    def _place(self, ref: ObjectRef) -> dict[str, Any] | None:
        """What objects live in: their namespace and their kind."""
        there = ref.kind == "CustomResourceDefinition" or (
            ref.kind == "Namespace" and ref.name in self.namespaces
        )
        return {"kind": ref.kind, "metadata": {"name": ref.name}} if there else None

    def _matching(self, ref: ObjectRef) -> dict[str, Any] | None:
        body = self._find(ref)
        if body is not None and ref.uid and body["metadata"]["uid"] != ref.uid:
            raise Superseded(f"{ref.name} is another object now")
        return body

    def _remove(self, body: dict[str, Any]) -> None:
        meta = body["metadata"]
        del self.objects[body["kind"], meta.get("namespace", ""), meta["name"]]
        self._changed(body, "DELETED")

    def _changed(self, body: dict[str, Any], event: str) -> None:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        if body["kind"] == JOB:
            self.history.append({"event": event, **copied(body)})
            self._world.trace(f"{event} {describe(body)}")
            if self.on_change is not None:
                self.on_change(self.history[-1])
        now = self._world.clock.elapsed()
        for watch in self._watches:
            if watch.broken or not watch.process.alive:
                continue
            watch.deliver(self._world.delay(), now, event, body)
            if self._world.chance(self.duplicate_rate):
                watch.deliver(self._world.delay(), now, event, body)


def describe(body: Mapping[str, Any]) -> str:
    """A job in one line, for traces."""
    meta, status = body["metadata"], body.get("status", {})
    true = [
        f"{c['type']}={c['reason']}"
        for c in status.get("conditions", [])
        if c["status"] in {"True", "Unknown"}
    ]
    deleting = " deleting" if meta.get("deletionTimestamp") else ""
    held = " finalizer" if meta.get("finalizers") else ""
    return (
        f"{meta['name']}/{meta['uid']}{deleting}{held} {status.get('state', '')} {' '.join(true)}"
    )
