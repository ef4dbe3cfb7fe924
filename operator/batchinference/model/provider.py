"""InferenceProvider and ClusterInferenceProvider: endpoint, credentials, storage and limits.

The two kinds share one spec. Owns what a provider object says; knows neither how a provider is
called nor which limits hold where the object is silent (the adapters' published defaults).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from batchinference.errors import InvalidObject
from batchinference.model.batch import Limits
from batchinference.model.codec import decode
from batchinference.model.metadata import ObjectMeta, parse_metadata
from batchinference.model.status import Condition


class ProviderKind(StrEnum):
    """The kinds of provider object: of a namespace, or of the cluster."""

    INFERENCE_PROVIDER = "InferenceProvider"
    CLUSTER_INFERENCE_PROVIDER = "ClusterInferenceProvider"


@dataclass(frozen=True, slots=True)
class SecretKeyRef:
    """One key of a Secret, in the namespace that the provider's kind gives."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A whole Secret, in the namespace that the provider's kind gives."""

    name: str


@dataclass(frozen=True, slots=True)
class Header:
    """A header sent with every call."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class OpenAIProvider:
    """A server that speaks OpenAI's Files and Batch API.

    Attributes:
        base_url: without a slash at its end.
        api_key_secret_ref: None sends no credential.
        ca_bundle: PEM text; "" trusts the public authorities and the pod's.
    """

    base_url: str = "https://api.openai.com/v1"
    api_key_secret_ref: SecretKeyRef | None = None
    organization: str = ""
    project: str = ""
    headers: tuple[Header, ...] = ()
    ca_bundle: str = ""
    completion_window: str = "24h"
    output_expires_after_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class VPCConfig:
    """The network that Bedrock reads and writes the data through."""

    subnet_ids: tuple[str, ...]
    security_group_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tag:
    """An AWS tag."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class BedrockProvider:
    """AWS Bedrock batch inference in one region.

    Attributes:
        service_role_arn: the role that Bedrock itself takes to read and write the data.
        endpoint_url: "" is AWS's own endpoint of the region.
        credentials_secret_ref: None is the operator's own identity (cluster providers only).
        assume_role_arn: the role to take with these credentials before any call.
        timeout_hours: None leaves it to AWS.
        ca_bundle: PEM text; "" trusts the public authorities and the pod's.
    """

    region: str
    service_role_arn: str
    endpoint_url: str = ""
    credentials_secret_ref: SecretRef | None = None
    assume_role_arn: str = ""
    external_id: str = ""
    kms_key_id: str = ""
    bucket_owner: str = ""
    vpc_config: VPCConfig | None = None
    tags: tuple[Tag, ...] = ()
    timeout_hours: int | None = None
    ca_bundle: str = ""


@dataclass(frozen=True, slots=True)
class LangChainProvider:
    """Live calls through LangChain, where no batch API exists.

    Attributes:
        requests_per_second: a decimal string; "" does not limit.
        tokens_per_minute: None does not limit.
    """

    model_provider: str
    base_url: str = ""
    api_key_secret_ref: SecretKeyRef | None = None
    max_concurrency: int = 16
    requests_per_second: str = ""
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class S3Storage:
    """Where data may lie, and how to get there.

    Attributes:
        endpoint_url: "" is AWS's own endpoint of the region.
        credentials_secret_ref: None is the operator's own identity (cluster providers only).
        allowed_prefixes: nothing outside of them is read or written; none allow nothing.
            `${namespace}` stands for the job's namespace.
        ca_bundle: PEM text; "" trusts the public authorities and the pod's.
    """

    region: str
    endpoint_url: str = ""
    credentials_secret_ref: SecretRef | None = None
    allowed_prefixes: tuple[str, ...] = ()
    ca_bundle: str = ""


@dataclass(frozen=True, slots=True)
class Storage:
    """Object storage of a provider; absent where its runs are tiny.

    Attributes:
        staging_uri: s3://bucket/prefix/ for encoded shards and raw answers; "" where there is none.
    """

    s3: S3Storage | None = None
    staging_uri: str = ""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Limits of one model, tighter or wider than the provider's; None leaves those standing."""

    name: str
    max_active_batches: int | None = None
    max_enqueued_tokens: int | None = None
    max_records_per_batch: int | None = None
    max_bytes_per_batch: int | None = None
    min_records_per_batch: int | None = None


@dataclass(frozen=True, slots=True)
class ProviderLimits:
    """What the platform team allows; None is the provider's published limit."""

    max_active_batches: int | None = None
    max_enqueued_tokens: int | None = None
    max_records_per_batch: int | None = None
    max_bytes_per_batch: int | None = None
    max_bytes_per_record: int | None = None
    min_records_per_batch: int | None = None
    max_concurrent_uploads: int | None = None
    models: tuple[ModelLimits, ...] = ()

    def of_model(self, name: str) -> ModelLimits:
        """The limits of that model; an entry without any limit where none is listed."""
        return next((m for m in self.models if m.name == name), ModelLimits(name))

    def over(self, published: Limits, model: str) -> Limits:
        """The published limits with these in their place; the model's entry wins over the rest."""
        own = self.of_model(model)
        return Limits(
            max_records_per_batch=own.max_records_per_batch
            or self.max_records_per_batch
            or published.max_records_per_batch,
            max_bytes_per_batch=own.max_bytes_per_batch
            or self.max_bytes_per_batch
            or published.max_bytes_per_batch,
            max_bytes_per_record=self.max_bytes_per_record or published.max_bytes_per_record,
            min_records_per_batch=own.min_records_per_batch
            or self.min_records_per_batch
            or published.min_records_per_batch,
            max_active_batches=own.max_active_batches
            or self.max_active_batches
            or published.max_active_batches,
            max_enqueued_tokens=own.max_enqueued_tokens
            or self.max_enqueued_tokens
            or published.max_enqueued_tokens,
            max_concurrent_uploads=self.max_concurrent_uploads or published.max_concurrent_uploads,
        )


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """Live-call prices of one model as decimal strings, and what a batch takes off them."""

    model: str
    input_per_million_tokens: str
    output_per_million_tokens: str
    currency: str = "USD"
    batch_discount_percent: int = 50


class UnknownOutcomePolicy(StrEnum):
    """What to do when nobody can say whether a submission was accepted."""

    HALT = "Halt"
    RESUBMIT = "Resubmit"


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """The spec that both kinds share: exactly one of the three providers, and its rules."""

    open_ai: OpenAIProvider | None = None
    bedrock: BedrockProvider | None = None
    lang_chain: LangChainProvider | None = None
    storage: Storage = Storage()
    limits: ProviderLimits = ProviderLimits()
    quota_group: str = ""
    pricing: tuple[ModelPrice, ...] = ()
    unknown_outcome_policy: UnknownOutcomePolicy = UnknownOutcomePolicy.HALT

    @property
    def provider(self) -> OpenAIProvider | BedrockProvider | LangChainProvider:
        """The member of the union that is set."""
        found = self.open_ai or self.bedrock or self.lang_chain
        assert found is not None, "parse_provider refuses a spec without one"
        return found


class SelectorOperator(StrEnum):
    """How a label's value relates to a selector's values."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class SelectorRequirement:
    """One requirement on a label."""

    key: str
    operator: SelectorOperator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet it; as in Kubernetes, NotIn is met by an absent label."""
        value = labels.get(self.key)
        if self.operator is SelectorOperator.IN:
            return value in self.values
        if self.operator is SelectorOperator.NOT_IN:
            return value not in self.values
        return (value is not None) == (self.operator is SelectorOperator.EXISTS)


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """Kubernetes' label selector: all of it must match, and an empty one matches everything."""

    match_labels: Mapping[str, str] = field(default_factory=dict)
    match_expressions: tuple[SelectorRequirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet every requirement."""
        return all(labels.get(k) == v for k, v in self.match_labels.items()) and all(
            requirement.matches(labels) for requirement in self.match_expressions
        )


@dataclass(frozen=True, slots=True)
class AllowedNamespaces:
    """The namespaces that may use a cluster provider: named, or matched by their labels."""

    names: tuple[str, ...] = ()
    selector: LabelSelector | None = None

    def allow(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether the namespace with these labels may."""
        selected = self.selector is not None and self.selector.matches(labels)
        return namespace in self.names or selected


@dataclass(frozen=True, slots=True)
class ClusterProviderSpec(ProviderSpec):
    """The spec of the cluster kind; None allows no namespace."""

    allowed_namespaces: AllowedNamespaces | None = None


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    """The whole status of a provider object.

    Attributes:
        enqueued_tokens: a decimal string, as it may pass 2^53.
        account: what the quotas count against; "" until it was asked.
        installation: who wrote this.
    """

    observed_generation: int
    conditions: tuple[Condition, ...] = ()
    active_batches: int = 0
    queued_shards: int = 0
    enqueued_tokens: str = ""
    account: str = ""
    installation: str = ""


@dataclass(frozen=True, slots=True)
class InferenceProvider:
    """A provider object of either kind, as last seen.

    Attributes:
        status: as the API server has it; a view, never read for decisions.
    """

    kind: ProviderKind
    metadata: ObjectMeta
    spec: ProviderSpec
    allowed_namespaces: AllowedNamespaces | None = None
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_cluster(self) -> bool:
        """Whether it belongs to the cluster and so may use the operator's own identity."""
        return self.kind is ProviderKind.CLUSTER_INFERENCE_PROVIDER

    def allows(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether jobs of that namespace (with these labels) may use it."""
        if not self.is_cluster:
            return namespace == self.metadata.namespace
        allowed = self.allowed_namespaces
        return allowed is not None and allowed.allow(namespace, labels)


def parse_provider(
    manifest: Mapping[str, Any], *, ignore_unknown: bool = True
) -> InferenceProvider:
    """Build a provider from an object of either kind.

    Raises:
        InvalidObject: it does not have the shape of its kind.
    """
    kind = decode(ProviderKind, manifest.get("kind"), "kind")
    cluster = kind is ProviderKind.CLUSTER_INFERENCE_PROVIDER
    shape = ClusterProviderSpec if cluster else ProviderSpec
    spec = decode(shape, manifest.get("spec", {}), "spec", ignore_unknown=ignore_unknown)
    if [spec.open_ai, spec.bedrock, spec.lang_chain].count(None) != 2:
        raise InvalidObject("spec", "must have exactly one of `openAI`, `bedrock`, `langChain`")
    return InferenceProvider(
        kind=kind,
        metadata=parse_metadata(manifest),
        spec=spec,
        allowed_namespaces=spec.allowed_namespaces
        if isinstance(spec, ClusterProviderSpec)
        else None,
        status=manifest.get("status") or {},
    )


def not_implemented_fields(spec: ProviderSpec) -> tuple[str, ...]:
    """Paths of the fields with a value that this version cannot act on; they stall the job."""
    found = {
        "spec.langChain": spec.lang_chain is not None,
    }
    return tuple(path for path, present in found.items() if present)
