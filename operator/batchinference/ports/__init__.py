"""What the core needs of the outside world, as Protocols, and nothing of how it is done.

Adapters implement these, fakes implement these, both pass the same conformance suites under
`tests/`. Control-plane ports are asynchronous (the operator's loop); data-plane ports are
synchronous (one worker process, one task at a time), because record bytes never touch the loop.

Every implementation maps foreign exceptions to `errors`: nothing else may leave a port.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

import msgspec

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


# ---------------------------------------------------------------- provider, data plane


class ResultLine(msgspec.Struct, frozen=True, gc=False):
    """One line of a provider's result files, brought to the canonical shape. A msgspec struct,
    since one is made for every record: a dataclass takes longer to make than the line to parse.

    Attributes:
        wire_id: the id we sent (`r` + row number); "" when the line could not be read.
        status_code: HTTP-like; 200 with a body is an answer.
        body: the answer as the OpenAI endpoint would give it, or the provider's error body;
            `msgspec.Raw` where it can be passed on byte by byte.
        error_code, error_message: set when it is not an answer.
        unbilled: the line says for certain that the record was never processed.
        input_tokens, output_tokens: from the answer, 0 when it does not say.
    """

    wire_id: str
    status_code: int
    request_id: str = ""
    body: Any = None
    error_code: str = ""
    error_message: str = ""
    unbilled: bool = False
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def is_answer(self) -> bool:
        """Whether the record was answered."""
        return not self.error_code


class BatchData(Protocol):
    """The provider's bulk data, in a worker."""

    def encode(self, row: int, request: Mapping[str, Any], model: str) -> bytes:
        """One canonical request as the provider's input line, without the newline.

        `request["body"]` has the run's parameters merged in already.

        Raises:
            UnsupportedRequest: this provider can't do it; names the option.
        """

    def upload(self, staging: ObjectStore, uri: str, run: Run, submission: SubmissionID) -> str:
        """Bring a staged shard to where the provider reads it; returns the input_ref.

        Raises:
            Stalled, Waiting, Retry, Permanent.
        """

    def open_results(self, files: Sequence[str]) -> Iterator[bytes]:
        """The bytes of the result files, in chunks, one file after another, each ending in a
        newline. The iterator ends only when every file was read whole: a body shorter than it was
        announced raises Retry.

        Raises:
            Permanent: with reason `AnswerLost` when the provider no longer has a file.
            Stalled, Retry.
        """

    def decode(self, line: bytes) -> ResultLine:
        """One line of a result file. A line that can't be read gives wire_id ""."""

    def delete_files(self, run: Run) -> None:
        """Delete everything of this run at the provider: inputs of every ordinal, outputs,
        and uploads that a crash left behind. Absent is fine. Raises Stalled, Retry.
        """


@runtime_checkable
class BodyEncoder(Protocol):
    """Optional capability of a BatchData whose provider takes canonical bodies as they are."""

    def encode_body(self, row: int, url: str, body: bytes) -> bytes:
        """As `encode`, from the complete and checked body as JSON text: it is put into the line
        unchanged, which is a good deal faster and keeps every number as the user wrote it.
        """


@runtime_checkable
class UsualEncoder(Protocol):
    """Optional capability of a BatchData that translates bodies: a quick way for the usual ones."""

    usual_body: type[msgspec.Struct]
    """Members of the bodies that it is for; no body with any other is offered."""

    def usual_lines(
        self, row: int, bodies: Sequence[Any], defaults: Mapping[str, Any]
    ) -> list[bytes | None]:
        """As `encode`, of bodies of consecutive rows, to the same bytes; None for each that is left
        to `encode`. `defaults` are members that all of them get and none of them has.
        """


@runtime_checkable
class SeveralEncoder(Protocol):
    """Optional capability of a BatchData whose provider takes one text per record to embed, where
    a request may have a list of them.
    """

    def encode_several(self, row: int, request: Mapping[str, Any], model: str) -> list[bytes]:
        """As `encode`: the provider's lines for one embeddings request, at least one, in the order
        of its texts and numbered from `row` on. Each is answered with the response to its text.
        """


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
