"""Verdicts on one record: why it is not sent. Not failures of the operator; nothing is retried."""

from __future__ import annotations


class UnsupportedRequest(Exception):
    """A record that this provider can't do.

    Attributes:
        code: stable error code for the results (`records.codes`).
        message: names the option or the content; never quotes the record.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class BadLine(Exception):
    """A line that is not a usable record.

    Attributes:
        code: stable error code for the results (`records.codes`).
        message: what is wrong and what it should be; never quotes prompts.
        custom_id: the user's id as JSON text where it could be read, else b"null".
    """

    def __init__(self, code: str, message: str, custom_id: bytes = b"null") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.custom_id = custom_id
