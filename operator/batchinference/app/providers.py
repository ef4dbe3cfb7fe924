"""`ports.ProviderFactory`: which adapter serves which member of a provider's spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchinference.adapters import bedrock, openai_batch
from batchinference.adapters.bedrock import BedrockProvider
from batchinference.adapters.openai_batch import OpenAIBatchProvider
from batchinference.adapters.s3 import S3Store
from batchinference.app.bench import ConnectionsCache, no_batches
from batchinference.app.metered import MeteredProvider
from batchinference.model.batch import Limits
from batchinference.model.provider import ProviderKind
from batchinference.model.run import Run
from batchinference.ports import BatchProvider, Metrics, ResolvedProvider, ResultPlace
from batchinference.tasks.admit import claim_of


class Providers:
    """Implements `ports.ProviderFactory`."""

    def __init__(
        self, worker_connections: Mapping[str, Any], submit_timeout_s: float, metrics: Metrics
    ) -> None:
        """Make a factory.

        Args:
            worker_connections: how to reach the API server; read anew for each claim check.
            submit_timeout_s: seconds in which a create call must be over.
            metrics: told of every call.
        """
        self._worker_connections = worker_connections
        self._submit_timeout_s = submit_timeout_s
        self._metrics = metrics
        self._cache = ConnectionsCache()

    def connect(self, resolved: ResolvedProvider) -> BatchProvider:
        """See `ports.ProviderFactory.connect`."""
        settings, secrets = resolved.pin_settings, resolved.secrets
        if "openAI" in settings:
            openai = OpenAIBatchProvider(
                settings,
                secrets,
                identity=resolved.identity,
                submit_timeout_s=self._submit_timeout_s,
            )
            return MeteredProvider(openai, "openAI", self._metrics)
        if "bedrock" in settings:
            own = resolved.identity.startswith(f"{ProviderKind.CLUSTER_INFERENCE_PROVIDER}/")
            store = S3Store(settings, secrets, own_identity=own)
            aws = BedrockProvider(settings, secrets, store, own_identity=own)
            return MeteredProvider(aws, "bedrock", self._metrics)
        raise no_batches(settings)

    def default_limits(self, settings: Mapping[str, Any], model: str, operation: str) -> Limits:
        """See `ports.ProviderFactory.default_limits`. Raises Stalled for other providers."""
        if "openAI" in settings:
            return openai_batch.default_limits(settings, model, operation)
        if "bedrock" in settings:
            return bedrock.default_limits(settings, model, operation)
        raise no_batches(settings)

    def holds_claim(self, run: Run, resolved: ResolvedProvider) -> bool:
        """See `ports.ProviderFactory.holds_claim`."""
        return self._place(run, resolved).holds(claim_of(run))

    def taken_by(self, run: Run, resolved: ResolvedProvider) -> str:
        """See `ports.ProviderFactory.taken_by`."""
        return self._place(run, resolved).taken_by(claim_of(run))

    def _place(self, run: Run, resolved: ResolvedProvider) -> ResultPlace:
        connections = self._cache.of(
            run, resolved.pin_settings, resolved.secrets, self._worker_connections
        )
        return connections.place(run)
