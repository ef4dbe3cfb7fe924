"""What the core needs of the outside world, as Protocols, and nothing of how it is done.

Adapters implement these, fakes implement these, both pass the same conformance suites under
`tests/`. Control-plane ports are asynchronous (the operator's loop); data-plane ports are
synchronous (one worker process, one task at a time), because record bytes never touch the loop.

Every implementation maps foreign exceptions to `errors`: nothing else may leave a port.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from batchinference.model.batch import (
    Account,
    BatchView,
    CancelOutcome,
    Limits,
    Page,
    SubmissionID,
    SubmitOutcome,
    Traits,
)
from batchinference.model.run import Run
from batchinference.model.work import Task, TaskReport, TaskResult
from batchinference.ports.data import (
    BatchData,
    BodyEncoder,
    ResultLine,
    SeveralEncoder,
    ShowsBatches,
    UsualEncoder,
)
from batchinference.ports.storage import (
    Claim,
    ObjectInfo,
    ObjectStore,
    ObjectWriter,
    Replaceable,
    ResultPlace,
    SourceChanged,
)
from batchinference.records.refusal import UnsupportedRequest  # adapters know no records

__all__ = [
    "BatchData",
    "BatchProvider",
    "BodyEncoder",
    "Claim",
    "Event",
    "Journals",
    "Kube",
    "Metrics",
    "ObjectInfo",
    "ObjectRef",
    "ObjectStore",
    "ObjectWriter",
    "ProviderFactory",
    "Recorder",
    "Replaceable",
    "ResolvedProvider",
    "ResultLine",
    "ResultPlace",
    "SeveralEncoder",
    "ShowsBatches",
    "SourceChanged",
    "TaskListener",
    "TaskRunner",
    "UnsupportedRequest",
    "UsualEncoder",
]

# ---------------------------------------------------------------- provider, control plane


class BatchProvider(Protocol):
    """One account of one provider. Calls are bounded in time; `submit` retries nothing."""

    traits: Traits

    async def check(self) -> Account:
        """Try credentials and endpoint with a real, harmless call.

        Raises:
            Stalled: credentials rejected, endpoint unreachable by name, access denied.
            Retry: a passing failure.
        """

    def create_request(
        self, run: Run, submission: SubmissionID, input_ref: str
    ) -> Mapping[str, Any]:
        """The complete create request, pure and checked by us where the SDK does not check.

        Raises:
            Permanent: the request can't be made (a model ARN that batch does not serve, ...).
        """

    async def submit(
        self, request: Mapping[str, Any], may_send: Callable[[], bool]
    ) -> SubmitOutcome:
        """Send the request once. Never raises for what the provider or the network does.

        `may_send` is asked at the last moment before the request leaves, when credentials have been
        renewed and queues have been waited in; False = it stays here, and is `NotSent`.
        """

    async def page(self, cursor: str | None, since: datetime | None) -> Page:
        """One page of the account's batches, in the provider's order; nothing older than `since` is
        needed. Raises as `check`.
        """

    async def get(self, batch_id: str) -> BatchView | None:
        """The batch, or None when the provider says that there is none. Raises as `page`."""

    async def cancel(self, batch_id: str) -> CancelOutcome:
        """Ask for the end of a batch. Raises as `page`."""

    async def input_readable(self, input_ref: str) -> bool:
        """Whether this very client can still read the uploaded input. Raises as `page`."""

    async def delete_input(self, input_ref: str) -> None:
        """Delete the uploaded input; absent is fine. Raises as `page`."""

    async def close(self) -> None:
        """Release connections."""


# ---------------------------------------------------------------- Kubernetes, control plane


class Journals(Protocol):
    """The journal's store: one ConfigMap per run key. `version` is its resourceVersion."""

    async def unended(self) -> Sequence[tuple[str, Run | None, str]]:
        """Every journal but the receipts of ended runs, as (run key, run, version); run None for
        one that can't be read. There may be years of receipts: they are read by their keys.
        """

    def unended_versions(self) -> AsyncIterator[tuple[str, str]]:
        """The same without their contents, as (run key, version).

        Raises:
            Stalled, Retry: the API server can't be asked now.
        """

    def ended(self) -> AsyncIterator[tuple[Run, str]]:
        """The receipts of ended runs, as (run, version); without those that can't be read.

        Raises:
            Stalled, Retry: the API server can't be asked now.
        """

    async def get(self, key: str) -> tuple[Run, str] | None:
        """One journal. Raises NewerSchema."""

    async def is_current(self, key: str, version: str) -> bool:
        """Whether the journal is there and has that version still. Its content is not looked at."""

    async def annotations(self, key: str) -> Mapping[str, str]:
        """What people wrote on a journal: their decisions. Empty when there is none."""

    async def create(self, run: Run) -> str:
        """Create; returns the version.

        Raises:
            Superseded: it exists.
            Permanent: `JournalTooLarge`.
            Retry.
        """

    async def write(self, run: Run, version: str, *, in_full: bool = False) -> str:
        """Write if the version still holds; returns the new one. Raises as `create`.

        `in_full`: what has happened must be kept, so a reserve beyond the limit may be used.
        """

    async def delete(self, key: str, version: str) -> None:
        """Delete it if that version still holds; one that is gone is fine.

        Raises:
            Superseded: it changed since.
            Stalled, Retry.
        """


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """One object of ours in Kubernetes. `namespace` is "" for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """An Event, de-duplicated by (object, reason, message). No prompts, answers, secrets."""

    about: ObjectRef
    reason: str
    message: str
    warning: bool = False
    action: str = "Reconcile"


class Kube(Protocol):
    """The few things the operator does with objects that are not journals."""

    async def get(self, ref: ObjectRef) -> Mapping[str, Any] | None:
        """The object as the API server has it, or None when it says 404."""

    async def patch_status(
        self, ref: ObjectRef, status: Mapping[str, Any], resource_version: str
    ) -> str | None:
        """Replace the members of status; returns the new resourceVersion, None when the object is
        gone. A member with value None is removed.

        Raises:
            Superseded: the object has another resourceVersion now, or another uid.
        """

    async def set_finalizer(self, ref: ObjectRef, present: bool) -> Mapping[str, Any] | None:
        """Add or remove our finalizer, leaving others; returns the object as it stands then, None
        when it is gone. Raises Superseded when the uid is another one.
        """

    async def delete_object(self, ref: ObjectRef, resource_version: str) -> bool:
        """Ask for the deletion of this very object as it was read; False when it is gone.

        Raises:
            Superseded: the object has another resourceVersion now, or another uid.
        """

    async def secret(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """A Secret's decoded data, or None when it says 404. Raises Stalled AccessDenied."""

    async def namespace_labels(self, name: str) -> Mapping[str, str] | None:
        """The namespace's labels, or None when there is no such namespace."""

    async def config_map_exists(self, namespace: str, name: str, key: str) -> bool:
        """Whether the ConfigMap and the key are there."""


class Recorder(Protocol):
    """Events, fire and forget: never blocks, never raises."""

    def record(self, event: Event) -> None:
        """Queue an Event."""


# ---------------------------------------------------------------- tasks, credentials


class TaskListener(Protocol):
    """Who hears of tasks. Called on the operator's loop."""

    def report(self, task: Task, report: TaskReport) -> None:
        """A running task says something."""

    def done(self, task: Task, result: TaskResult) -> None:
        """A task is over. A worker that died gives a TaskFault `WorkerLost` of kind RETRY."""


class TaskRunner(Protocol):
    """Runs tasks outside the operator's loop."""

    def start(self, task: Task, listener: TaskListener) -> None:
        """Start or queue the task; a task with the same id under way makes this a no-op."""

    def stop(self, run_key: str) -> None:
        """End the tasks of a run, queued and running; their `done` is not called."""


@dataclass(frozen=True, slots=True)
class ResolvedProvider:
    """A provider as it can be used now: settings, secrets, limits.

    `secrets` maps a role (`apiKey`, `bedrock`, `storage`, `caBundle`) to decoded values.
    `identity` is the object's `Kind/namespace/name`: the account where the provider tells none, and
    only a ClusterInferenceProvider may use the operator's own cloud identity.
    """

    pin_settings: Mapping[str, Any]
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    identity: str = ""


class ProviderFactory(Protocol):
    """Makes clients of providers."""

    def connect(self, resolved: ResolvedProvider) -> BatchProvider:
        """A client; no call is made yet.

        Raises:
            Stalled: the settings or the secrets can't be used (a key is missing in the Secret).
        """

    def default_limits(self, settings: Mapping[str, Any], model: str, operation: str) -> Limits:
        """The provider's published limits with the overrides of its `limits` applied."""

    def taken_by(self, run: Run, resolved: ResolvedProvider) -> str:
        """See `ResultPlace.taken_by`. Blocking: call it in a thread."""

    def holds_claim(self, run: Run, resolved: ResolvedProvider) -> bool:
        """Whether the output claim is still ours. Blocking: call it in a thread."""


class Metrics(Protocol):
    """Numbers for the exposition endpoint. Names are declared in `telemetry.metrics`."""

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        """Add to a counter."""

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add to a histogram."""
