"""A model's refusal of one request, before any wire shape is given to it."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Refusal(Exception):
    """The request was understood as far as HTTP goes and refused: status, code, words."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    kind: str = "invalid_request_error"

    def __str__(self) -> str:
        return self.message

    def openai_body(self) -> dict[str, Any]:
        """Render the body that OpenAI sends with such a status."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def of_status(status: int) -> Refusal:
    """Return the refusal that a magic word or a fault rule asks for by number."""
    if status == 429:
        return Refusal(
            429, "Rate limit reached for requests.", "rate_limit_exceeded", None, "requests"
        )
    if status >= 500:
        return Refusal(
            status,
            "The server had an error while processing your request. Sorry about that!",
            "server_error" if status == 500 else None,
            None,
            "server_error",
        )
    return Refusal(status, "The request was refused on demand.", "invalid_request")
