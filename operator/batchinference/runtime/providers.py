"""Provider objects: whether they can be used, found out by using them, and what their status says.

`Ready` is True only after a real call with the object's credentials to its endpoint. A job may
begin only on a provider that was tried in this process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from batchinference.clock import Clock
from batchinference.core.problem import Problem, not_implemented
from batchinference.core.view import conditions_in
from batchinference.errors import Fault, Retry, Stalled, Superseded
from batchinference.model.batch import Account
from batchinference.model.codec import encode
from batchinference.model.job import BatchInferenceJob
from batchinference.model.metadata import PAUSED, ObjectMeta
from batchinference.model.provider import (
    InferenceProvider,
    ProviderStatus,
    UnknownOutcomePolicy,
    not_implemented_fields,
)
from batchinference.model.run import ProviderPin
from batchinference.model.status import Reason
from batchinference.ports import Kube, Metrics, ObjectRef, Recorder
from batchinference.runtime.circuits import Circuits
from batchinference.runtime.clients import Clients
from batchinference.runtime.credentials import same_connection
from batchinference.runtime.index import Indexes
from batchinference.runtime.provider_conditions import conditions, news
from batchinference.runtime.settings import RuntimeSettings
from batchinference.runtime.status_writer import StatusWriter, changed_members
from batchinference.runtime.store import SeenProvider, Store, provider_key, provider_of
from batchinference.runtime.trials import Trials

logger = logging.getLogger(__name__)

_LEAST_S = 1.0
"""Between two looks at an object, whatever the settings say."""

_NUMBERS = {"activeBatches", "queuedShards", "enqueuedTokens"}


@dataclass(frozen=True, slots=True)
class Numbers:
    """What an account has under way."""

    active_batches: int = 0
    queued_shards: int = 0
    enqueued_tokens: int = 0


class AccountNumbers(Protocol):
    """Who counts what an account has under way."""

    def numbers(self, account: str) -> Numbers:
        """The account's numbers now."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What the last trial of a provider object said. `problem` None: it can be used."""

    generation: int
    account: str
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class _Due:
    """Which object was tried, and when it is again."""

    uid: str
    at: float


class Providers:
    """Tries provider objects and answers for them."""

    def __init__(
        self,
        store: Store,
        clients: Clients,
        kube: Kube,
        writer: StatusWriter,
        recorder: Recorder,
        numbers: AccountNumbers,
        clock: Clock,
        settings: RuntimeSettings,
        namespace: str,
        installation: str,
        metrics: Metrics,
        look: Callable[[str], None],
        indexes: Indexes,
        circuits: Circuits,
    ) -> None:
        self._store = store
        self._clients = clients
        self._kube = kube
        self._writer = writer
        self._recorder = recorder
        self._numbers = numbers
        self._clock = clock
        self._settings = settings
        self._namespace = namespace
        self._installation = installation
        self._shown: dict[str, tuple[str, int]] = {}
        self._counts_from: dict[str, float] = {}
        self._yielded: set[str] = set()
        self._metrics = metrics
        self._look = look
        self._circuits = circuits
        circuits.on_change(self._circuit_changed)
        self._under_way = Trials(settings.trials, settings.trials_per_namespace, metrics)
        self._news: set[str] = set()
        self._indexes = indexes
        self._trials: dict[str, Trial] = {}
        self._due: dict[str, _Due] = {}
        self._labels: dict[str, tuple[float, Mapping[str, str]]] = {}

    def secrets_namespace(self, provider: InferenceProvider) -> str:
        """Where its Secrets are: its own namespace, or the operator's for the cluster kind."""
        return self._namespace if provider.is_cluster else provider.metadata.namespace

    async def look(self, key: str) -> tuple[float, bool]:
        """Look at the object behind a queue key: have it tried when that is due, and bring its
        status up to date. A trial goes on beside this; what came of it brings the key back.

        Returns the seconds until the next look (0 = none), and whether its users should look.
        """
        seen = self._store.providers.get(key)
        if seen is None:
            self._under_way.drop(key)
            self._news.discard(key)
            self._due.pop(key, None)
            self._shown.pop(key, None)
            self._counts_from.pop(key, None)
            self._yielded.discard(key)
            return 0.0, self._trials.pop(key, None) is not None
        meta, trial = seen.provider.metadata, self._trials.get(key)
        is_due = trial is None or self._is_due(key, meta, trial)
        if is_due:
            version = (meta.uid, meta.generation)
            work = partial(self._try_out, key, seen)
            self._under_way.start(key, meta.namespace, version, work)
        if trial is None:
            return 0.0, False
        is_news = key in self._news
        self._news.discard(key)
        # In between only the numbers are shown anew, which asks nobody.
        wait = self._settings.progress_s
        if not is_due:
            wait = min(wait, max(self._due[key].at - self._clock.elapsed(), _LEAST_S))
        if self._is_shown_elsewhere(key, seen.provider):
            return wait, is_news
        if await self._write(key, seen.provider, trial):
            self._shown[key] = (meta.uid, meta.generation)
        else:
            wait = min(wait, self._settings.retry_first_s)
        return wait, is_news

    def _is_shown_elsewhere(self, key: str, provider: InferenceProvider) -> bool:
        """Whether another installation has shown the object since this one did.

        Each shows it once, and again when it is edited; then the one goes on that was last. So
        two whose watch scopes overlap do not write against each other for ever, and the status of
        one that is gone does not stand for ever.
        """
        owner = str(provider.status.get("installation") or "")
        meta = provider.metadata
        others = owner not in {"", self._installation}
        if not others or self._shown.get(key) != (meta.uid, meta.generation):
            return False
        if key not in self._yielded:
            self._yielded.add(key)
            logger.warning(
                "The status of %s is written by installation %s, too; this one (%s) leaves it to "
                "that. Let no two installations watch the same namespaces",
                _identity(provider),
                owner,
                self._installation,
            )
        return True

    def _circuit_changed(self, account: str) -> None:
        for key, trial in self._trials.items():
            if trial.account == account:
                self._look(key)

    async def close(self) -> None:
        """End all trials."""
        await self._under_way.close()

    async def _try_out(self, key: str, seen: SeenProvider) -> None:
        before = self._trials.get(key)
        meta = seen.provider.metadata
        due = self._due.get(key)
        if before is None or due is None or due.uid != meta.uid:
            # A new object of that name: what was cached for another one says nothing about it.
            self._clients.reject(self.secrets_namespace(seen.provider), seen.settings)
        account = before.account if before and before.generation == meta.generation else ""
        # While the provider fails, a trial is one of the calls that take turns in trying it.
        if not self._circuits.begin_probe(account):
            wait = self._circuits.wait_s(account)
            self._due[key] = _Due(meta.uid, self._clock.elapsed() + wait)
            return
        try:
            trial = await self._trial(seen, before)
        finally:
            self._circuits.end_probe(account)
        works = trial.problem is None
        wait = self._settings.provider_check_s if works else self._settings.provider_retry_s
        if trial != before:
            self._news.add(key)
        self._trials[key] = trial
        self._due[key] = _Due(meta.uid, self._clock.elapsed() + wait)
        self._look(key)

    def _is_due(self, key: str, meta: ObjectMeta, trial: Trial) -> bool:
        due = self._due[key]
        is_same = due.uid == meta.uid and trial.generation == meta.generation
        return not is_same or self._clock.elapsed() >= due.at

    async def _trial(self, seen: SeenProvider, before: Trial | None) -> Trial:
        provider = seen.provider
        generation = provider.metadata.generation
        now = self._clock.now()
        known = before.account if before and before.generation == generation else ""
        inert = not_implemented_fields(provider.spec)
        if inert:
            text = not_implemented(provider.spec, inert)
            return Trial(generation, known, Problem(Reason.NOT_IMPLEMENTED, text, now))
        try:
            namespace = self.secrets_namespace(provider)
            account = await self._check(provider, namespace, seen.settings)
            # Before any job needs it: it may take its time.
            self._indexes.prepare(
                await self._clients.connect(_identity(provider), namespace, seen.settings)
            )
        except Fault as fault:
            if known:
                self._circuits.heard(known, fault)
            if not isinstance(fault, Stalled) and known and before and before.problem is None:
                # A passing failure of a provider that worked: its jobs need not hear of it.
                return before
            since = before.problem.since if before and before.problem else now
            problem = Problem(fault.reason, fault.message, since, has_grace=True)
            return Trial(generation, known, problem)
        found = self._account_id(provider, account.id)
        self._circuits.answered(found)
        return Trial(generation, found, None)

    async def _check(
        self, provider: InferenceProvider, namespace: str, settings: Mapping[str, Any]
    ) -> Account:
        """Try the provider with a real call. Raises `Fault` alone."""
        try:
            return await self._clients.check(_identity(provider), namespace, settings)
        except Fault:
            raise
        except Exception:
            self._metrics.count("reconcile_errors_total")
            logger.exception("%s can't be tried", _identity(provider))
            text = "Internal error; the operator's log has the details"
            raise Retry(Reason.INTERNAL_ERROR, text) from None

    def _account_id(self, provider: InferenceProvider, account: str) -> str:
        """What quotas count against: the group that the object names, else the account; an
        endpoint that names no account counts against the provider object (protocol 1.5).

        A group of a namespace is that namespace's own, so that no tenant can join the account of
        another one by naming its group.
        """
        group = provider.spec.quota_group
        if not group:
            return account or _identity(provider)
        scope = "" if provider.is_cluster else f"{provider.metadata.namespace}/"
        return f"group/{scope}{group}"

    async def _write(self, key: str, provider: InferenceProvider, trial: Trial) -> bool:
        """Show the trial; False when it has to be tried again soon."""
        numbers = self._numbers.numbers(trial.account)
        failing = self._circuits.why_open(trial.account)
        shown = conditions(provider, trial.problem, failing, self._clock.now())
        status = ProviderStatus(
            observed_generation=provider.metadata.generation,
            conditions=shown,
            active_batches=numbers.active_batches,
            queued_shards=numbers.queued_shards,
            enqueued_tokens=str(numbers.enqueued_tokens),
            account=trial.account,
            installation=self._installation,
        )
        meta = provider.metadata
        ref = ObjectRef(provider.kind, meta.namespace, meta.name, meta.uid)
        # An empty column would leave open whether nobody counted.
        zeros = {"activeBatches": 0, "queuedShards": 0}
        body = {**zeros, **encode(status)}
        now = self._clock.elapsed()
        counts_from = self._counts_from.setdefault(key, now + self._settings.progress_s)
        if now < counts_from and changed_members(provider.status, body).keys() <= _NUMBERS:
            return True  # a new process has not seen the objects of all runs yet
        try:
            written = await self._writer.write(ref, body, provider.status, meta.resource_version)
        except (Fault, Superseded) as fault:
            logger.warning("Status of %s %s: %s", provider.kind, meta.name, fault)
            return False
        if written is not None:
            for event in news(ref, conditions_in(provider.status), shown):
                self._recorder.record(event)
        return True

    # ---- what jobs ask

    async def problem_for(self, job: BatchInferenceJob, now: datetime) -> Problem | None:
        """Why this job can't use its provider; None when it can."""
        key = provider_of(job)
        ref, namespace = job.spec.provider_ref, job.metadata.namespace
        seen, trial = self._store.providers.get(key), self._trials.get(key)
        if seen is None:
            where = "" if "Cluster" in ref.kind else f" in namespace '{namespace}'"
            text = f"{ref.kind} '{ref.name}'{where} does not exist"
            return Problem(Reason.PROVIDER_NOT_FOUND, text, now, has_grace=True)
        if seen.provider.is_cluster:
            labels = await self._namespace_labels(namespace)
            if not seen.provider.allows(namespace, labels):
                text = (
                    f"{ref.kind} '{ref.name}' does not allow namespace '{namespace}' "
                    "(`spec.allowedNamespaces`)"
                )
                return Problem(Reason.NAMESPACE_NOT_ALLOWED, text, now, has_grace=True)
        if trial is None:
            text = f"{ref.kind} '{ref.name}' is being tried"
            return Problem(Reason.PROVIDER_NOT_READY, text, now, has_grace=True, is_untold=True)
        if trial.problem is None:
            return None
        text = f"{ref.kind} '{ref.name}' is not ready: {trial.problem.message}"
        return Problem(trial.problem.reason, text, trial.problem.since, has_grace=True)

    async def _namespace_labels(self, namespace: str) -> Mapping[str, str]:
        """The namespace's labels, read anew now and then: selectors follow relabelling."""
        now = self._clock.elapsed()
        known = self._labels.get(namespace)
        if known is None or now - known[0] > self._settings.reference_retry_s:
            known = (now, await self._kube.namespace_labels(namespace) or {})
            self._labels[namespace] = known
        return known[1]

    def changed_under(
        self, job: BatchInferenceJob, pin: ProviderPin, now: datetime
    ) -> Problem | None:
        """Whether the provider object leads elsewhere now than when the run was admitted."""
        seen = self._store.providers.get(provider_of(job))
        if seen is None or same_connection(seen.settings, pin.settings):
            return None
        text = (
            f"{pin.kind} '{pin.name}' was changed after this run had begun: shards that are not "
            "submitted yet wait until it is changed back. To run on the new settings, create the "
            "object with another `runID`"
        )
        return Problem(Reason.PROVIDER_CHANGED, text, now)

    def _object_of(self, pin: ProviderPin) -> SeenProvider | None:
        namespace = "" if "Cluster" in pin.kind else pin.namespace
        return self._store.providers.get(provider_key(pin.kind, namespace, pin.name))

    def paused(self, pin: ProviderPin) -> str:
        """What to say of the run's provider object when somebody paused it; "" otherwise."""
        seen = self._object_of(pin)
        if seen is None or not seen.provider.metadata.is_paused:
            return ""
        return f"Annotation `{PAUSED}` of {pin.kind} '{pin.name}' holds what is not submitted"

    def settings_of(self, pin: ProviderPin) -> Mapping[str, Any] | None:
        """The spec of the run's provider object as it is now; None where the object is gone."""
        seen = self._object_of(pin)
        return seen.settings if seen is not None else None

    def resubmits_unknown(self, pin: ProviderPin) -> bool:
        """Whether the run's provider object opts out of the halt now (protocol 5.5), or did so when
        the run was admitted, where it is gone.
        """
        settings = self.settings_of(pin)
        settings = pin.settings if settings is None else settings
        return settings.get("unknownOutcomePolicy") == UnknownOutcomePolicy.RESUBMIT

    def pin(self, job: BatchInferenceJob) -> tuple[InferenceProvider, ProviderPin] | None:
        """The provider of a job that can use it, and what its run is to remember of it."""
        key = provider_of(job)
        seen, trial = self._store.providers.get(key), self._trials.get(key)
        if seen is None or trial is None or trial.problem is not None:
            return None
        meta = seen.provider.metadata
        pin = ProviderPin(
            kind=seen.provider.kind,
            name=meta.name,
            namespace=meta.namespace,
            settings=seen.settings,
            secrets_namespace=self.secrets_namespace(seen.provider),
            account=trial.account,
        )
        return seen.provider, pin


def _identity(provider: InferenceProvider) -> str:
    meta = provider.metadata
    return f"{provider.kind}/{meta.namespace}/{meta.name}"
