"""The create request, and its check against AWS's own description of the call.

botocore checks neither patterns nor upper bounds nor enumerations, so a wrong name would cost a
refusal by the service with a sentence that names no field. Pure: no call is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from botocore.model import ListShape, ServiceModel, Shape, StringShape, StructureShape

from batchinference.adapters import aws as cloud
from batchinference.adapters.bedrock.names import input_uri, job_name, output_uri, request_token
from batchinference.errors import InvalidObject, Permanent
from batchinference.model.batch import SubmissionID
from batchinference.model.codec import decode
from batchinference.model.provider import BedrockProvider
from batchinference.model.run import Run
from batchinference.model.status import Reason

WHERE = "spec.bedrock"
"""The provider's field that says how to reach Bedrock."""


_NO_BATCH = {
    ":provisioned-model/": (
        "provisioned throughput serves no batch inference; name the foundation model or an "
        "inference profile instead"
    ),
    ":imported-model/": "imported models serve no batch inference; name a foundation model instead",
    ":custom-model-deployment/": (
        "deployments serve no batch inference; name the custom model itself (…:custom-model/…)"
    ),
    ":prompt-router/": (
        "prompt routers serve no batch inference; name one model or inference profile instead"
    ),
    ":default-prompt-router/": (
        "prompt routers serve no batch inference; name one model or inference profile instead"
    ),
}


def create_request(run: Run, submission: SubmissionID, input_ref: str) -> dict[str, Any]:
    """The arguments of CreateModelInvocationJob, from what the run has pinned.

    Raises:
        Permanent: `ProviderRefused` for a model that batch does not serve or a value that AWS does
            not take, `NotImplemented` for an operation that is not translated.
    """
    settings = _settings(run)
    model = str(run.spec.get("model", ""))
    check_model(model)
    destination: dict[str, Any] = {"s3Uri": output_uri(run, submission)}
    source: dict[str, Any] = {"s3Uri": input_ref, "s3InputFormat": "JSONL"}
    if settings.bucket_owner:
        source["s3BucketOwner"] = settings.bucket_owner
        destination["s3BucketOwner"] = settings.bucket_owner
    if settings.kms_key_id:
        destination["s3EncryptionKeyId"] = settings.kms_key_id
    request: dict[str, Any] = {
        "jobName": job_name(run.owner, submission),
        "clientRequestToken": request_token(submission),
        "modelId": model,
        "roleArn": settings.service_role_arn,
        "modelInvocationType": _invocation_type(run),
        "inputDataConfig": {"s3InputDataConfig": source},
        "outputDataConfig": {"s3OutputDataConfig": destination},
    }
    if settings.timeout_hours is not None:
        request["timeoutDurationInHours"] = settings.timeout_hours
    if settings.vpc_config is not None:
        request["vpcConfig"] = {
            "subnetIds": list(settings.vpc_config.subnet_ids),
            "securityGroupIds": list(settings.vpc_config.security_group_ids),
        }
    if settings.tags:
        request["tags"] = [{"key": tag.key, "value": tag.value} for tag in settings.tags]
    if input_ref != input_uri(run, submission):
        raise Permanent(
            Reason.REFUSED, f"The input {input_ref} is not of ordinal {submission.ordinal}."
        )
    wrong = list(violations(request))
    if wrong:
        raise Permanent(Reason.REFUSED, "AWS would not take the request: " + "; ".join(wrong[:3]))
    return request


def check_model(model: str) -> None:
    """Refuse, by name, what can't be addressed by a batch.

    Raises:
        Permanent: `ProviderRefused`, with what to name instead.
    """
    for part, why in _NO_BATCH.items():
        if model.startswith("arn:") and part in model:
            raise Permanent(Reason.REFUSED, f"spec.model: {model!r} can't be used: {why}.")


def _settings(run: Run) -> BedrockProvider:
    try:
        return decode(
            BedrockProvider, run.provider.settings.get("bedrock"), WHERE, ignore_unknown=True
        )
    except InvalidObject as error:
        raise Permanent(Reason.INVALID_SPEC, str(error)) from error


def _invocation_type(run: Run) -> str:
    if run.staged is not None and run.staged.native:
        return "InvokeModel"
    operation = str(run.spec.get("operation", "ChatCompletions"))
    if operation != "ChatCompletions":
        raise Permanent(
            Reason.NOT_IMPLEMENTED,
            f"spec.operation: {operation} is not translated for Bedrock; use ChatCompletions, or "
            "records in Bedrock's own format (`recordId`, `modelInput`).",
        )
    return "Converse"


# ---------------------------------------------------------------- AWS's own rules


@cache
def _input_shape() -> StructureShape:
    model = ServiceModel(cloud.descriptions().load_service_model("bedrock", "service-2"), "bedrock")
    shape = model.operation_model("CreateModelInvocationJob").input_shape
    assert isinstance(shape, StructureShape)
    return shape


def violations(request: Mapping[str, Any]) -> Iterator[str]:
    """What in the request breaks AWS's rules, with the field's path."""
    yield from _violations(_input_shape(), request, "")


def _violations(shape: Shape, value: Any, path: str) -> Iterator[str]:
    if isinstance(shape, StructureShape):
        for name in shape.required_members:
            if name not in value:
                yield f"{path}{name} is missing"
        for name, inner in value.items():
            member = shape.members.get(name)
            if member is None:
                yield f"{path}{name} is unknown"
            else:
                yield from _violations(member, inner, f"{path}{name}.")
        return
    path = path.removesuffix(".")
    rules: Mapping[str, Any] = shape.metadata
    size = value if isinstance(value, int) else len(value)
    unit = (
        "" if isinstance(value, int) else " entries" if isinstance(value, list) else " characters"
    )
    if size < rules.get("min", size) or size > rules.get("max", size):
        yield (
            f"{path} must have {rules.get('min', 0)} to {rules.get('max', 'any')}{unit}, "
            f"and has {size}"
        )
    elif isinstance(shape, ListShape):
        for number, item in enumerate(value):
            yield from _violations(shape.member, item, f"{path}[{number}].")
    elif isinstance(shape, StringShape):
        if shape.enum and value not in shape.enum:
            yield f"{path} must be one of {', '.join(shape.enum)}, and is {value!r}"
        pattern = rules.get("pattern")
        if pattern and not re.compile(pattern).fullmatch(value):
            yield f"{path} has a form or a character that AWS does not take: {value!r}"
