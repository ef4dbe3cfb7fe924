"""What a failed call to Bedrock means: for a create call, and for every other call.

Owns the line between "refused for certain" and "nobody knows" (protocol 4.4). Pure.
"""

from __future__ import annotations

from botocore import exceptions as aws

from batchinference.adapters import aws as cloud
from batchinference.adapters.bedrock.request import WHERE
from batchinference.errors import Fault
from batchinference.model.batch import OutcomeUnknown, RefusalKind, Refused, SubmitOutcome
from batchinference.model.status import Reason

_UNCERTAIN_CODES = {"ConflictException", "RequestTimeout", "RequestTimeoutException"}
_QUOTA_WAIT_S = 300.0
_CONNECT_WAIT_S = 10.0
_OVER_TEXTS = ("state was:", "already", "cannot be stopped", "terminal")


def outcome(error: Exception) -> SubmitOutcome:
    """What a create call that failed means. Nothing but a certain no is a refusal."""
    code, told = cloud.code_of(error), cloud.message_of(error)
    if isinstance(error, aws.ParamValidationError):
        return Refused(RefusalKind.INVALID, "ParamValidation", told)
    if cloud.never_connected(error):
        return Refused(
            RefusalKind.THROTTLED, "connect", f"No connection to Bedrock: {told}", _CONNECT_WAIT_S
        )
    if cloud.bad_certificate(error):
        return Refused(
            RefusalKind.CREDENTIALS,
            "certificate",
            f"The endpoint's certificate is not trusted; check `{WHERE}.caBundle`.",
        )
    if cloud.is_credentials(error):
        return Refused(
            RefusalKind.CREDENTIALS,
            code or type(error).__name__,
            f"AWS refused the credentials; renew those of `{WHERE}`.",
        )
    status = cloud.status_of(error)
    if not 400 <= status < 500 or status in {408, 409, 425, 499} or code in _UNCERTAIN_CODES:
        kind = code or type(error).__name__
        return OutcomeUnknown(f"No clear answer to the create call: {kind}: {told}")
    return _refused(error, code, told, status)


def _refused(error: Exception, code: str, told: str, status: int) -> Refused:
    if code == "ServiceQuotaExceededException":
        return Refused(RefusalKind.QUOTA, code, told, _QUOTA_WAIT_S)
    if cloud.is_throttled(error):
        return Refused(RefusalKind.THROTTLED, code, told, cloud.retry_after_s(error))
    if "invalid_payment_instrument" in told.lower():
        return Refused(RefusalKind.BILLING, code, told)
    # An account that may not use batch yet is told so as a validation error.
    not_entitled = "not authorized" in told.lower() or "support case" in told.lower()
    if cloud.is_denied(error) or not_entitled:
        return Refused(RefusalKind.CREDENTIALS, code, told)
    return Refused(RefusalKind.INVALID, code or str(status), told)


def is_over(error: Exception) -> bool:
    """Whether a refused stop says that the job had ended already."""
    code, told = cloud.code_of(error), cloud.message_of(error).lower()
    return code == "ConflictException" or (
        code == "ValidationException" and any(text in told for text in _OVER_TEXTS)
    )


def is_absent(error: Exception) -> bool:
    """Whether Bedrock says that there is no such job."""
    return cloud.code_of(error) == "ResourceNotFoundException"


def fault(error: Exception, doing: str) -> Fault:
    """What follows from any other call that failed."""
    return cloud.fault(error, doing, passing=Reason.PROVIDER_UNAVAILABLE, where=WHERE)
