"""The objects as the watch last showed them, by run. No I/O; never raises on hostile objects.

Owns which object steers a run and which keys an event concerns. It must not know what a run does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from batchinference.core.begin import keys_of
from batchinference.core.view import is_final
from batchinference.errors import InvalidObject
from batchinference.model.job import (
    KIND,
    MANAGED_BY,
    BatchInferenceJob,
    Input,
    JobSpec,
    Operation,
    Output,
    ProviderRef,
    parse_spec,
)
from batchinference.model.metadata import GROUP, ObjectMeta, parse_metadata
from batchinference.model.provider import InferenceProvider, parse_provider
from batchinference.model.sharing import shared
from batchinference.ports import ObjectRef

FINALIZER = "batchinference.dev/cancel-on-delete"
STRAY = "stray/"
_OURS = f"{GROUP}/"
PROVIDER = "provider/"

_NO_SPEC = JobSpec(ProviderRef(""), "", Operation.CHAT_COMPLETIONS, Input(), Output())
"""Stands where a spec can't be read; nothing follows from it."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A job of which the object alone does not tell its run: its spec does not decode (validation
    was off, or the definition is a newer one), or its status names another run than its spec.

    Attributes:
        keys: the run that its spec asks for, by the newest version of keys and by earlier ones;
            empty where the spec does not decode.
        flaw: what does not decode; the spec of `job` says nothing then. "" when all does.
        is_foreign: another controller acts on it, and it has our finalizer; its spec was not read.
    """

    job: BatchInferenceJob
    keys: tuple[str, ...]
    flaw: str
    is_foreign: bool = False


@dataclass(frozen=True, slots=True)
class SeenProvider:
    """A provider object, with its spec also as the API server has it."""

    provider: InferenceProvider
    settings: Mapping[str, Any]


def provider_key(kind: str, namespace: str, name: str) -> str:
    """The queue key of a provider object."""
    return f"{PROVIDER}{kind}/{namespace}/{name}"


def provider_of(job: BatchInferenceJob) -> str:
    """The queue key of the provider that a job refers to."""
    ref = job.spec.provider_ref
    cluster = ref.kind == "ClusterInferenceProvider"
    return provider_key(ref.kind, "" if cluster else job.metadata.namespace, ref.name)


def ref_of(job: BatchInferenceJob) -> ObjectRef:
    """The object itself, and no other of its name."""
    meta = job.metadata
    return ObjectRef(KIND, meta.namespace, meta.name, meta.uid)


def rests(job: BatchInferenceJob) -> bool:
    """Whether the object says all that there is to say of a run that is over, and is not ours to
    hold.
    """
    meta = job.metadata
    observed = job.status.get("observedGeneration")
    shown = is_final(job.status) and observed == meta.generation
    return shown and FINALIZER not in meta.finalizers


class Store:
    """Jobs and providers in memory."""

    def __init__(self) -> None:
        self._jobs: dict[str, BatchInferenceJob] = {}
        self._keys: dict[str, str] = {}
        self._uids: dict[str, set[str]] = {}
        self._changed_spec: set[str] = set()
        self._flaws: dict[str, str] = {}
        self._deleted: set[str] = set()
        self._gone: dict[str, set[str]] = {}
        self._names: dict[tuple[str, str], ObjectMeta] = {}
        self._listing = 0
        self._listed: dict[str, int] = {}
        self._strays: dict[str, Stray] = {}
        self.providers: dict[str, SeenProvider] = {}

    # ---- what the feed tells

    def observe(self, kind: str, event: str | None, body: Mapping[str, Any]) -> set[str]:
        """Take in one watch event; returns the queue keys that it concerns."""
        if kind == KIND:
            return self._observe_job(event, body)
        return self._observe_provider(kind, event, body)

    def _observe_job(self, event: str | None, body: Mapping[str, Any]) -> set[str]:
        meta = parse_metadata(body)
        uid = meta.uid
        if event == "DELETED":
            name = (meta.namespace, meta.name)
            if name in self._names and self._names[name].uid == uid:
                del self._names[name]
            return self._forget(uid)
        if uid in self._deleted:
            return set()  # the answer to one of our writes that the watch has overtaken
        status = shared(body.get("status") or {})
        gone = self._forget_namesake(meta)
        if _is_managed_elsewhere(body):
            return gone | self._hand_over(BatchInferenceJob(meta, _NO_SPEC, status))
        try:
            job, flaw = BatchInferenceJob(meta, parse_spec(body.get("spec", {})), status), ""
        except InvalidObject as error:
            job, flaw = BatchInferenceJob(meta, _NO_SPEC, status), str(error)
        self._was_listed(event, uid)
        stray = Stray(job, () if flaw else tuple(keys_of(job)), flaw)
        if uid not in self._keys:
            named = str(status.get("runKey") or "")
            if flaw or (named and named not in stray.keys):
                return gone | self._keep_stray(stray)
            self._keys[uid] = named or stray.keys[0]
        return gone | self._file(stray, self._keys[uid])

    def _forget_namesake(self, meta: ObjectMeta) -> set[str]:
        """An object of the same name was there before: it is gone, whether the watch showed it or
        not.
        """
        name = (meta.namespace, meta.name)
        before = self._names.get(name)
        another = before is not None and before.uid != meta.uid
        if before is not None and another and _is_older(meta, before.resource_version):
            return set()  # late news of the one before
        self._names[name] = meta
        return self._forget(before.uid) if before is not None and another else set()

    def _was_listed(self, event: str | None, uid: str) -> None:
        known = uid in self._jobs or uid in self._strays
        if event is None and known and self._listed.get(uid) == self._listing:
            self._listing += 1  # shown already: the watch has begun to list anew
        self._listed[uid] = self._listing

    def _keep_stray(self, stray: Stray) -> set[str]:
        meta = stray.job.metadata
        before = self._strays.get(meta.uid)
        if before is not None and _is_older(meta, before.job.metadata.resource_version):
            return set()
        self._strays[meta.uid] = stray
        same = before is not None and _trigger(before.job) == _trigger(stray.job)
        return set() if same else {STRAY + meta.uid}

    def _file(self, stray: Stray, key: str) -> set[str]:
        """Put a job to its run. One that does not decode (any more) keeps the spec it had."""
        job = stray.job
        uid = job.metadata.uid
        self._strays.pop(uid, None)
        before = self._jobs.get(uid)
        if before is not None and _is_older(job.metadata, before.metadata.resource_version):
            return set()
        self._changed_spec.discard(uid)
        self._flaws.pop(uid, None)
        if stray.flaw:
            self._flaws[uid] = stray.flaw
            job = replace(job, spec=before.spec) if before is not None else job
        elif key not in stray.keys:
            self._changed_spec.add(uid)
        self._keys[uid] = key
        self._jobs[uid] = job
        self._uids.setdefault(key, set()).add(uid)
        if before is None or _trigger(before) != _trigger(job) or _is_stripped(before, job):
            return {key}
        return set()

    def settle(self, uid: str, key: str, spec: JobSpec) -> set[str]:
        """The stray turned out to be of that run, whose journal has that spec; returns the queue
        keys that it concerns.
        """
        stray = self._strays.get(uid)
        if stray is None:
            return set()
        if stray.flaw:
            stray = replace(stray, job=replace(stray.job, spec=spec))
        return self._file(stray, key)

    def refile(self, key: str, known: str) -> None:
        """The objects of that key are of a run that is known by another one."""
        for uid in self._uids.pop(key, set()):
            self._keys[uid] = known
            self._uids.setdefault(known, set()).add(uid)

    def _hand_over(self, job: BatchInferenceJob) -> set[str]:
        """Another controller acts on the object. That is no deletion: what a run of ours has at the
        provider goes on without it. Only our finalizer would still hold it.
        """
        uid = job.metadata.uid
        key = self._take_out(uid)
        found = set() if key is None else {key}
        if FINALIZER in job.metadata.finalizers:
            self._strays[uid] = Stray(job, (), "", is_foreign=True)
            self._listed[uid] = self._listing
            found.add(STRAY + uid)
        return found

    def _forget(self, uid: str) -> set[str]:
        key = self._take_out(uid)
        if key is None:
            return set()
        self._deleted.add(uid)
        self._gone.setdefault(key, set()).add(uid)
        return {key}

    def _take_out(self, uid: str) -> str | None:
        """Know nothing more of the object; returns the run that it was of."""
        self._strays.pop(uid, None)
        self._changed_spec.discard(uid)
        self._flaws.pop(uid, None)
        self._jobs.pop(uid, None)
        self._listed.pop(uid, None)
        key = self._keys.pop(uid, None)
        if key is not None:
            self._uids[key].discard(uid)
            if not self._uids[key]:
                del self._uids[key]
        return key

    def _observe_provider(self, kind: str, event: str | None, body: Mapping[str, Any]) -> set[str]:
        meta = body.get("metadata", {})
        key = provider_key(kind, str(meta.get("namespace", "")), str(meta.get("name", "")))
        before = self.providers.get(key)
        if before is not None and _is_predecessor(parse_metadata(body), before, event):
            return set()
        if event == "DELETED":
            self.providers.pop(key, None)
            return {key}
        try:
            seen = SeenProvider(parse_provider({"kind": kind, **body}), body.get("spec", {}))
        except InvalidObject:
            # The schema forbids it; without the schema such an object is as good as absent.
            self.providers.pop(key, None)
            return {key}
        self.providers[key] = seen
        same = before is not None and _same_provider(before.provider, seen.provider)
        was = before is not None and before.provider.metadata.is_paused
        if was is not seen.provider.metadata.is_paused:
            return {key, *self.dependents(key)}
        return set() if same else {key}

    # ---- what the reconciler asks

    def steering(self, key: str) -> BatchInferenceJob | None:
        """The oldest object of the run that is not being deleted, else the oldest one."""
        jobs = self.jobs_of(key)
        living = [j for j in jobs if not j.metadata.is_being_deleted]
        return next(iter(living or jobs), None)

    def jobs_of(self, key: str) -> list[BatchInferenceJob]:
        """Every object of the run, oldest first."""
        jobs = [self._jobs[uid] for uid in self._uids.get(key, ())]
        return sorted(jobs, key=lambda j: (str(j.metadata.creation_time), j.metadata.uid))

    def was_deleted(self, uid: str) -> bool:
        """Whether the watch showed that object going."""
        return uid in self._deleted

    def was_leaving(self, uid: str) -> bool:
        """Whether the object was last seen being deleted."""
        job = self._jobs.get(uid)
        return job is not None and job.metadata.is_being_deleted

    def unlisted(self) -> list[BatchInferenceJob]:
        """Objects that the newest listing has not shown (yet): they may be gone."""
        strays = {uid: stray.job for uid, stray in self._strays.items()}
        seen = {**self._jobs, **strays}
        return [job for uid, job in seen.items() if self._listed[uid] < self._listing]

    def forget_gone(self, uid: str) -> set[str]:
        """The object is not there any more; returns the queue keys that it concerns."""
        self._deleted.add(uid)
        return self._forget(uid)

    def has_changed_spec(self, uid: str) -> bool:
        """Whether the billable spec is no longer the one its run was made of."""
        return uid in self._changed_spec

    def flaw(self, uid: str) -> str:
        """What of the object's spec does not decode; "" when all does."""
        return self._flaws.get(uid, "")

    def stray(self, uid: str) -> Stray | None:
        """A job whose run is not known yet."""
        return self._strays.get(uid)

    def dependents(self, key: str) -> set[str]:
        """Runs whose object refers to that provider."""
        return {self._keys[uid] for uid, job in self._jobs.items() if provider_of(job) == key}

    def jobs(self) -> Iterator[tuple[str, BatchInferenceJob]]:
        """Every job with its run key."""
        return ((self._keys[uid], job) for uid, job in self._jobs.items())

    def forget_run(self, key: str, *uids: str) -> None:
        """Nobody asks any more which objects of the run, or of that uid, were deleted."""
        self._deleted.difference_update(self._gone.pop(key, ()), uids)

    # ---- what our own writes tell ahead of the watch

    def wrote_status(self, uid: str, status: Mapping[str, Any], version: str) -> None:
        """Our status write went through; the watch may have brought something newer already."""
        job, stray = self._jobs.get(uid), self._strays.get(uid)
        if job is not None:
            self._jobs[uid] = _with_status(job, status, version)
        if stray is not None:
            self._strays[uid] = replace(stray, job=_with_status(stray.job, status, version))


def _with_status(
    job: BatchInferenceJob, status: Mapping[str, Any], version: str
) -> BatchInferenceJob:
    meta = replace(job.metadata, resource_version=version)
    older = _is_older(meta, job.metadata.resource_version)
    return job if older else replace(job, metadata=meta, status=status)


def _is_managed_elsewhere(body: Mapping[str, Any]) -> bool:
    """Whether another controller acts on the job, read from a spec that need not decode."""
    spec = body.get("spec")
    named = spec.get("managedBy", "") if isinstance(spec, Mapping) else ""
    return named not in {"", None, MANAGED_BY}


def _is_older(meta: ObjectMeta, version: str) -> bool:
    """Whether the object is older than that version of it. Versions of one kind can be compared."""
    old, new = version, meta.resource_version
    return old.isdecimal() and new.isdecimal() and int(new) < int(old)


def _trigger(job: BatchInferenceJob) -> tuple[object, ...]:
    """What makes an event worth a look; our own status writes do not."""
    meta = job.metadata
    told = {name: text for name, text in meta.annotations.items() if name.startswith(_OURS)}
    return meta.generation, meta.deletion_time, FINALIZER in meta.finalizers, told


def _is_stripped(before: BatchInferenceJob, job: BatchInferenceJob) -> bool:
    """Whether somebody took the status away. Of a run that is over nothing else would bring it
    back; other changes are left to the next pass, or two operators would go on correcting each
    other.
    """
    return bool(before.status.get("runKey")) and not job.status.get("runKey")


def _is_predecessor(meta: ObjectMeta, held: SeenProvider, event: str | None) -> bool:
    """Whether the event is of an earlier object of that name: the feed keeps the order of events
    of one object, not that of an object and its successor.
    """
    newer = held.provider.metadata
    if meta.uid == newer.uid:
        return False
    return event == "DELETED" or _is_older(meta, newer.resource_version)


def _same_provider(old: InferenceProvider, new: InferenceProvider) -> bool:
    return (
        old.metadata.uid == new.metadata.uid and old.metadata.generation == new.metadata.generation
    )
