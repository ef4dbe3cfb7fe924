"""Gathers what is decided on: the object, its provider, the account, what people wrote.

Reads only. What follows from it is `core.decide`'s; what is done with a decision the reconciler's.
"""

from __future__ import annotations

from dataclasses import replace

from batchinference.clock import Clock
from batchinference.core.draft import Observed
from batchinference.core.problem import Problem
from batchinference.core.view import is_final, is_shown_elsewhere
from batchinference.errors import Fault
from batchinference.model.batch import Traits
from batchinference.model.job import (
    BatchInferenceJob,
    parse_journaled_spec,
    unsupported_operation,
)
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.runtime.accounts import Accounts
from batchinference.runtime.beginning import Beginning
from batchinference.runtime.clients import Clients
from batchinference.runtime.entry import Entry
from batchinference.runtime.journaling import Journaling
from batchinference.runtime.pricing import Pricing
from batchinference.runtime.providers import Providers
from batchinference.runtime.settings import RuntimeSettings
from batchinference.runtime.store import FINALIZER, Store

_SPEC_CHANGED = (
    "The billable part of the spec is no longer what this object was created with: nothing more is "
    "submitted. Change it back, or create the object with another `runID`"
)


class Observing:
    """Looks at everything that a run depends on."""

    def __init__(
        self,
        *,
        store: Store,
        journaling: Journaling,
        clients: Clients,
        accounts: Accounts,
        providers: Providers,
        pricing: Pricing,
        beginning: Beginning,
        clock: Clock,
        settings: RuntimeSettings,
        namespace: str,
    ) -> None:
        self._store = store
        self._journaling = journaling
        self._clients = clients
        self._accounts = accounts
        self._providers = providers
        self._pricing = pricing
        self._beginning = beginning
        self._clock = clock
        self._settings = settings
        self._namespace = namespace

    async def why_not_begin(self, job: BatchInferenceJob) -> Problem | None:
        """Why no run can be begun for the object now; None when one can."""
        now = self._clock.now()
        unfit = self._unfit(job)
        if unfit is not None:
            return unfit
        if is_final(job.status):
            text = (
                "The status of this object shows an end, but its journal is gone: nothing is "
                "submitted. Restore the journal ConfigMap from a backup, or create the object with "
                "another `runID`"
            )
            return Problem(Reason.JOURNAL_LOST, text, now)
        problem = await self._providers.problem_for(job, now)
        if problem is not None:
            return problem
        pinned = self._providers.pin(job)
        why_not = unsupported_operation(job.spec.operation, pinned[0].spec) if pinned else ""
        if why_not:
            return Problem(Reason.UNSUPPORTED, why_not, now)
        return None

    def _unfit(self, job: BatchInferenceJob) -> Problem | None:
        """Why the spec can't be acted on; None when it can."""
        now = self._clock.now()
        flaw = self._store.flaw(job.metadata.uid)
        if flaw:
            return Problem(Reason.INVALID_SPEC, flaw, now)
        if self._store.has_changed_spec(job.metadata.uid):
            return Problem(Reason.SPEC_CHANGED, _SPEC_CHANGED, now)
        return None

    async def observe(self, entry: Entry, run: Run) -> Observed:
        """The world as one decision on the run sees it."""
        now = self._clock.now()
        job = self._store.steering(entry.key)
        deleted, has_finalizer = self._store.was_deleted(run.owner.uid), False
        if job is not None:
            deleted = job.metadata.is_being_deleted
            has_finalizer = FINALIZER in job.metadata.finalizers
            if not deleted and is_shown_elsewhere(job, run, self._beginning.installation):
                # That one puts it there and takes it off: to us it is as it should be.
                has_finalizer = not run.is_over
        observed = Observed(
            now=now,
            timing=self._settings,
            spec=job.spec if job is not None else parse_journaled_spec(run.spec),
            job=job,
            is_deleted=deleted,
            has_finalizer=has_finalizer,
            full=entry.full,
            was_adopted=run.adopted,
        )
        if run.is_over:
            return observed
        problem = unfit = fresh = None
        if job is not None and not deleted:
            problem = await self._providers.problem_for(job, now)
            problem = problem or self._providers.changed_under(job, run.provider, now)
            unfit = self._unfit(job)
            fresh = self._beginning.mended(job, run) if unfit is None else None
        traits, maker = Traits(), None
        try:
            client = (await self._clients.of_run(run.provider)).client
            traits, maker = client.traits, client.create_request
        except Fault as fault:
            problem = problem or Problem(fault.reason, fault.message, now, has_grace=True)
        return replace(
            observed,
            annotations=await self._journaling.annotations(entry, job),
            journal_namespace=self._namespace,
            paused_provider=self._providers.paused(run.provider),
            resubmits_unknown=self._providers.resubmits_unknown(run.provider),
            unfit=unfit,
            fresh=fresh,
            provider=problem,
            granted=self._accounts.granted(run.provider.account, run.key),
            traits=traits,
            make_request=maker,
            price=await self._pricing.of(run, now),
        )
