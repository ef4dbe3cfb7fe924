"""What an answer of the API server means, the same for the asynchronous and the blocking client.

Knows the Status object and HTTP codes, nothing of kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchinference.errors import Fault, Permanent, Retry, Stalled
from batchinference.model.status import Reason

UNAVAILABLE = Reason.API_SERVER_UNAVAILABLE
"""Reason of a passing failure of the API server; never in a condition, it could not be written."""


class Refusal(Exception):
    """The API server answered with an error. Callers handle the codes they expect.

    Attributes:
        what: the call, such as `PATCH /api/v1/...`, without its query.
        code: the HTTP status.
        status: the Status object, {} when the body was none.
        retry_after_s: from the answer's header.
    """

    def __init__(
        self,
        what: str,
        code: int,
        status: Mapping[str, Any],
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{what}: {code} {status.get('message', '')}")
        self.what = what
        self.code = code
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def reason(self) -> str:
        """The machine reason, such as `AlreadyExists`; "" without one."""
        return str(self.status.get("reason") or "")

    @property
    def message(self) -> str:
        """The server's sentence."""
        return str(self.status.get("message") or "no message")

    @property
    def details(self) -> Mapping[str, Any]:
        """The details of the Status: name, kind, causes."""
        details = self.status.get("details")
        return details if isinstance(details, Mapping) else {}

    def causes(self) -> str:
        """The messages of all causes in one string."""
        causes = self.details.get("causes") or ()
        return " ".join(str(cause.get("message", "")) for cause in causes)

    def is_missing(self, name: str) -> bool:
        """Whether this is a 404 that names the object.

        A kind that is not served, a path that a proxy does not know, also answer 404: they are no
        evidence that an object is gone.
        """
        return self.code == 404 and self.details.get("name") == name

    def fault(self) -> Fault:
        """What follows from an answer that the caller did not expect."""
        if self.code == 403:
            return Stalled(
                Reason.ACCESS_DENIED,
                f"The API server denied {self.what}: {self.message}. Check the operator's RBAC.",
            )
        if self.code in {400, 405, 413, 415, 422}:
            return Permanent(Reason.API_SERVER_REFUSED, f"{self.what} was refused: {self.message}")
        # 401 too: tokens rotate, the next call reads the new one.
        return Retry(
            UNAVAILABLE,
            f"{self.what} was answered with {self.code}: {self.message}",
            self.retry_after_s,
        )


def unreachable(what: str, fault: BaseException) -> Retry:
    """The fault of a call that got no answer: it may or may not have been done."""
    said = str(fault) or type(fault).__name__
    return Retry(UNAVAILABLE, f"{what} got no answer from the API server: {said}")


def refusal(what: str, code: int, body: Any, retry_after: str | None) -> Refusal:
    """The `Refusal` for an answer with an error code."""
    status = body if isinstance(body, Mapping) and body.get("kind") == "Status" else {}
    return Refusal(what, code, status, _seconds(retry_after))


def _seconds(header: str | None) -> float | None:
    # The HTTP-date form is legal and not used by the API server.
    return float(header) if header and header.isdigit() else None
