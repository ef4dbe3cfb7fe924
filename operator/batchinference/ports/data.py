"""A provider's bulk data, in a worker: requests as it takes them, result files as it has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from batchinference.model.batch import SubmissionID
from batchinference.model.run import Run
from batchinference.ports.storage import ObjectStore


class ResultLine(msgspec.Struct, frozen=True, gc=False):
    """One line of a provider's result files, brought to the canonical shape. A msgspec struct,
    since one is made for every record: a dataclass takes longer to make than the line to parse.

    Attributes:
        wire_id: the id we sent (`r` + row number); "" when the line could not be read.
        status_code: HTTP-like; 200 with a body is an answer.
        body: the answer as the OpenAI endpoint would give it, or the provider's error body;
            `msgspec.Raw` where it can be passed on byte by byte.
        error_code, error_message: set when it is not an answer.
        unbilled: the line says for certain that the record was never processed.
        input_tokens, output_tokens: from the answer, 0 when it does not say.
    """

    wire_id: str
    status_code: int
    request_id: str = ""
    body: Any = None
    error_code: str = ""
    error_message: str = ""
    unbilled: bool = False
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def is_answer(self) -> bool:
        """Whether the record was answered."""
        return not self.error_code


class BatchData(Protocol):
    """The provider's bulk data, in a worker."""

    def encode(self, row: int, request: Mapping[str, Any], model: str) -> bytes:
        """One canonical request as the provider's input line, without the newline.

        `request["body"]` has the run's parameters merged in already.

        Raises:
            UnsupportedRequest: this provider can't do it; names the option.
        """

    def upload(self, staging: ObjectStore, uri: str, run: Run, submission: SubmissionID) -> str:
        """Bring a staged shard to where the provider reads it; returns the input_ref.

        Raises:
            Stalled, Waiting, Retry, Permanent.
        """

    def open_results(self, files: Sequence[str]) -> Iterator[bytes]:
        """The bytes of the result files, in chunks, one file after another, each ending in a
        newline. The iterator ends only when every file was read whole: a body shorter than it was
        announced raises Retry.

        Raises:
            Permanent: with reason `AnswerLost` when the provider no longer has a file.
            Stalled, Retry.
        """

    def decode(self, line: bytes) -> ResultLine:
        """One line of a result file. A line that can't be read gives wire_id ""."""

    def delete_files(self, run: Run) -> None:
        """Delete everything of this run at the provider: inputs of every ordinal, outputs,
        and uploads that a crash left behind. Absent is fine. Raises Stalled, Retry.
        """


@runtime_checkable
class BodyEncoder(Protocol):
    """Optional capability of a BatchData whose provider takes canonical bodies as they are."""

    def encode_body(self, row: int, url: str, body: bytes) -> bytes:
        """As `encode`, from the complete and checked body as JSON text: it is put into the line
        unchanged, which is a good deal faster and keeps every number as the user wrote it.
        """


@runtime_checkable
class ShowsBatches(Protocol):
    """Optional capability of a BatchData whose files say nothing of whose account they are in."""

    def shows(self, batch_id: str) -> bool:
        """Whether the provider shows this very client the batch. Raises Stalled, Retry."""


@runtime_checkable
class UsualEncoder(Protocol):
    """Optional capability of a BatchData that translates bodies: a quick way for the usual ones."""

    usual_body: type[msgspec.Struct]
    """Members of the bodies that it is for; no body with any other is offered."""

    def usual_lines(
        self, row: int, bodies: Sequence[Any], defaults: Mapping[str, Any]
    ) -> list[bytes | None]:
        """As `encode`, of bodies of consecutive rows, to the same bytes; None for each that is left
        to `encode`. `defaults` are members that all of them get and none of them has.
        """


@runtime_checkable
class SeveralEncoder(Protocol):
    """Optional capability of a BatchData whose provider takes one text per record to embed, where
    a request may have a list of them.
    """

    def encode_several(self, row: int, request: Mapping[str, Any], model: str) -> list[bytes]:
        """As `encode`: the provider's lines for one embeddings request, at least one, in the order
        of its texts and numbered from `row` on. Each is answered with the response to its text.
        """
