"""BatchInferenceJob: what a user asks for.

Owns the spec and which of its fields are billable (part of the run's identity). Knows nothing of
how a run goes, and does not interpret templates, parameters or records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from batchinference.errors import InvalidObject
from batchinference.model.codec import decode, encode
from batchinference.model.metadata import ObjectMeta, parse_metadata
from batchinference.model.provider import ProviderKind, ProviderSpec

KIND = "BatchInferenceJob"
MANAGED_BY = "batchinference.dev/operator"
"""The value of `managedBy` that names this operator, as an empty one does."""

BILLABLE = (
    "providerRef",
    "model",
    "operation",
    "input",
    "promptTemplate",
    "parameters",
    "output",
    "runID",
)
"""The spec's fields that are immutable and part of the run key, as they stand on the wire."""


class Operation(StrEnum):
    """What each record asks for, after the OpenAI endpoints."""

    CHAT_COMPLETIONS = "ChatCompletions"
    EMBEDDINGS = "Embeddings"
    COMPLETIONS = "Completions"
    RESPONSES = "Responses"


class InputFormat(StrEnum):
    """How the records are written in the input."""

    JSONL = "JSONL"
    CSV = "CSV"
    PARQUET = "Parquet"


class OutputFormat(StrEnum):
    """How the results are written."""

    JSONL = "JSONL"
    PARQUET = "Parquet"


class MissingField(StrEnum):
    """What happens to a row without a field that the template names."""

    FAIL = "Fail"
    EMPTY = "Empty"


class ResponseFormatType(StrEnum):
    """The shape that answers must have."""

    TEXT = "Text"
    JSON_OBJECT = "JSONObject"
    JSON_SCHEMA = "JSONSchema"


class OutputPolicy(StrEnum):
    """What to do when the output place holds an ended run of another key."""

    FAIL = "Fail"
    REPLACE = "Replace"


class DesiredState(StrEnum):
    """Whether the run is wanted. There is no way back from Cancelled."""

    ACTIVE = "Active"
    CANCELLED = "Cancelled"


class DeletionPolicy(StrEnum):
    """What deleting a running job does to its batches."""

    CANCEL = "Cancel"
    ORPHAN = "Orphan"


@dataclass(frozen=True, slots=True)
class ProviderRef:
    """The provider object that runs the job."""

    name: str
    kind: ProviderKind = ProviderKind.INFERENCE_PROVIDER


@dataclass(frozen=True, slots=True)
class S3Input:
    """An object, or a prefix when `uri` ends in a slash; `version_id` is of one object."""

    uri: str
    version_id: str = ""


@dataclass(frozen=True, slots=True)
class ConfigMapKeyRef:
    """A key of a ConfigMap in the job's namespace."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Input:
    """Where the records come from: exactly one source. Format None is by suffix, else JSONL."""

    s3: S3Input | None = None
    config_map_key_ref: ConfigMapKeyRef | None = None
    inline: str | None = None
    format: InputFormat | None = None


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """How a row becomes a request; "" where a part is not used."""

    system: str = ""
    prompt: str = ""
    input: str = ""
    id_field: str = ""
    image_url_field: str = ""
    missing_field: MissingField = MissingField.FAIL


@dataclass(frozen=True, slots=True)
class JSONSchema:
    """The schema that answers must follow."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The shape that answers must have; a schema where the type says so."""

    type: ResponseFormatType
    json_schema: JSONSchema | None = None


@dataclass(frozen=True, slots=True)
class Parameters:
    """Defaults under each record's own body.

    Attributes:
        temperature, top_p: decimal strings; "" leaves them to the model.
        extra: members of the request body by the provider's own names.
    """

    max_output_tokens: int | None = None
    temperature: str = ""
    top_p: str = ""
    stop: tuple[str, ...] = ()
    response_format: ResponseFormat | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class S3Output:
    """A prefix; `${namespace}`, `${name}`, `${runID}` and `${runKey}` stand for the run."""

    uri: str


@dataclass(frozen=True, slots=True)
class ConfigMapOutput:
    """ConfigMaps of the job's namespace: this name, then `<name>-1` and so on."""

    name: str


@dataclass(frozen=True, slots=True)
class Output:
    """Where the results go: exactly one place."""

    s3: S3Output | None = None
    config_map: ConfigMapOutput | None = None
    format: OutputFormat = OutputFormat.JSONL


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often records that were not billed go to the provider, the first time included."""

    max_attempts: int = 3


@dataclass(frozen=True, slots=True)
class SuccessPolicy:
    """How much may fail; an unset member does not limit, and both unset allow nothing to fail."""

    max_failed_percent: int | None = None
    max_failed_records: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """The most a run may cost, as a decimal string."""

    max_cost: str
    currency: str = "USD"


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The spec of a job: the billable fields first, then those that may change."""

    provider_ref: ProviderRef
    model: str
    operation: Operation
    input: Input
    output: Output
    prompt_template: PromptTemplate | None = None
    parameters: Parameters = Parameters()
    run_id: str = ""
    managed_by: str = ""
    output_policy: OutputPolicy = OutputPolicy.FAIL
    desired_state: DesiredState = DesiredState.ACTIVE
    suspend: bool = False
    active_deadline_seconds: int | None = None
    retry_policy: RetryPolicy = RetryPolicy()
    success_policy: SuccessPolicy = SuccessPolicy()
    budget: Budget | None = None
    priority: int = 0
    deletion_policy: DeletionPolicy = DeletionPolicy.CANCEL
    ttl_seconds_after_finished: int | None = None

    def billable(self) -> dict[str, Any]:
        """The billable part as JSON, with defaults left out: what the run key is made of."""
        return {name: value for name, value in encode(self).items() if name in BILLABLE}


@dataclass(frozen=True, slots=True)
class BatchInferenceJob:
    """A job object as last seen.

    Attributes:
        status: as the API server has it; a view, rebuilt from the journal.
    """

    metadata: ObjectMeta
    spec: JobSpec
    status: Mapping[str, Any] = field(default_factory=dict)


def parse_job(manifest: Mapping[str, Any], *, ignore_unknown: bool = True) -> BatchInferenceJob:
    """Build a job from an object.

    Raises:
        InvalidObject: it does not have the shape of the kind.
    """
    return BatchInferenceJob(
        metadata=parse_metadata(manifest),
        spec=parse_spec(manifest.get("spec", {}), ignore_unknown=ignore_unknown),
        status=manifest.get("status") or {},
    )


def parse_spec(spec: Any, *, ignore_unknown: bool = True) -> JobSpec:
    """Build the spec of a job, and check that its unions have one member.

    Raises:
        InvalidObject: it does not have the shape of the kind.
    """
    found = decode(JobSpec, spec, "spec", ignore_unknown=ignore_unknown)
    source = found.input
    if [source.s3, source.config_map_key_ref, source.inline].count(None) != 2:
        raise InvalidObject(
            "spec.input", "must have exactly one of `s3`, `configMapKeyRef` and `inline`"
        )
    if [found.output.s3, found.output.config_map].count(None) != 1:
        raise InvalidObject("spec.output", "must have exactly one of `s3` and `configMap`")
    return found


def parse_journaled_spec(spec: Mapping[str, Any]) -> JobSpec:
    """The last-seen spec as a journal has it: without inline input and prompt texts, and of a
    receipt only a few members.

    Raises:
        InvalidObject: a later version wrote it, or nobody did.
    """
    return decode(JobSpec, {"output": {}, "input": {}, **spec}, "spec", ignore_unknown=True)


def unsupported_operation(operation: Operation, provider: ProviderSpec) -> str:
    """Why a provider of this kind has no batches of the operation; "" when it has."""
    if provider.bedrock is None or operation in _ON_BEDROCK:
        return ""
    return (
        f"`spec.operation: {operation}` is not possible on Bedrock, where this version runs "
        f"{', '.join(_ON_BEDROCK)}. Create the job anew with one of these, or with a provider that "
        "is `openAI`"
    )


_ON_BEDROCK = (Operation.CHAT_COMPLETIONS,)
