"""New runs: what a job and its provider object make of them, and their move to another provider.

It asks whether the job still is what the watch showed. Must not write journals.
"""

from __future__ import annotations

from batchinference.clock import Clock
from batchinference.core.begin import begin, has_nothing
from batchinference.errors import Fault, Superseded
from batchinference.model.job import KIND, BatchInferenceJob
from batchinference.model.run import Run
from batchinference.ports import Kube, ProviderFactory
from batchinference.runtime.providers import Providers
from batchinference.runtime.store import Store, ref_of


class Beginning:
    """Makes runs from objects.

    Args:
        installation: whose these runs are.
        namespace: the operator's own.
    """

    def __init__(
        self,
        providers: Providers,
        factory: ProviderFactory,
        store: Store,
        kube: Kube,
        clock: Clock,
        *,
        installation: str,
        namespace: str,
    ) -> None:
        self._providers = providers
        self._factory = factory
        self._store = store
        self._kube = kube
        self._clock = clock
        self.installation = installation
        self._namespace = namespace

    def begun(self, job: BatchInferenceJob, key: str) -> Run | None:
        """A new run of the job, which is known by that key; None while its provider can't be used.

        Raises:
            Stalled: a location is not allowed, or storage is missing.
        """
        pinned = self._providers.pin(job)
        if pinned is None:
            return None
        provider, pin = pinned
        return begin(
            job,
            provider.spec,
            pin,
            self._factory.default_limits(pin.settings, job.spec.model, job.spec.operation),
            installation=self.installation,
            operator_namespace=self._namespace,
            now=self._clock.now(),
            key=key,
        )

    def mended(self, job: BatchInferenceJob, run: Run) -> Run | None:
        """The run as it would begin on what its provider object says now; None when that is no
        other, or when the run has something where it led before. So a mistake in a provider is
        mended there.
        """
        if not has_nothing(run):
            return None
        if self._providers.changed_under(job, run.provider, self._clock.now()) is None:
            return None
        try:
            return self.begun(job, run.key)
        except Fault:
            return None  # not mended yet

    async def confirm(self, job: BatchInferenceJob) -> None:
        """Make sure that the object still is what the watch showed. A process that was stopped may
        remember one that is over by now: its journal, if that is gone, must not be made anew.

        Raises:
            Superseded: it has changed, and is known as it is now; or it has gone.
            Fault: the API server can't be asked now.
        """
        meta = job.metadata
        found = await self._kube.get(ref_of(job))
        held = found.get("metadata", {}) if found is not None else {}
        if found is not None:
            self._store.observe(KIND, "MODIFIED", found)
        if (held.get("uid"), held.get("resourceVersion")) != (meta.uid, meta.resource_version):
            raise Superseded(f"{meta.namespace}/{meta.name} has changed since it was seen")
