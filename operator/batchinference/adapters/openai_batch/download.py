"""The bytes of one result file, whole or not at all.

Owns what happens when a download is cut, which large ones often are: it goes on where it broke if
the server honours a range, and is read again up to that place if it does not. Constant memory.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
from openai import APIStatusError, OpenAI, OpenAIError

from batchinference.adapters.openai_batch.faults import fault, is_json
from batchinference.adapters.transfers import Transfer, Transfers
from batchinference.errors import Permanent, Retry, Stalled
from batchinference.model.status import Reason
from batchinference.records.codes import ANSWER_LOST

if TYPE_CHECKING:
    from openai._response import APIResponse

ATTEMPTS = 5
"""Cut connections in a row, without a new byte in between, until a download gives up."""

_ABSENT_ATTEMPTS = 4
"""A file may show up a moment after its batch has ended."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_BROKEN = (OpenAIError, httpx2.HTTPError, OSError)


@dataclass(frozen=True, slots=True)
class _Body:
    """An open answer.

    Attributes:
        start: which byte of the file it begins with.
        size: bytes of the whole file, None where the server does not say.
        etag: what tells this content of the file from another, "" where the server does not say.
        says_its_end: a connection that breaks can be told from the end of the body.
    """

    answer: APIResponse[Any]
    start: int
    size: int | None
    etag: str
    says_its_end: bool

    def is_of_another_file(self, first: _Body) -> bool:
        """Whether the file was changed since that first answer, as far as the servers' words go."""
        sizes, tags = {self.size, first.size} - {None}, {self.etag, first.etag} - {""}
        return len(sizes) > 1 or len(tags) > 1


def download(
    client: OpenAI, file_id: str, sleep: Callable[[float], None], transfers: Transfers
) -> Iterator[bytes]:
    """The file in pieces.

    Raises:
        Permanent: `AnswerLost`: the server no longer has it.
        Retry: it was cut again and again, or is another one when read again.
        Stalled: credentials or endpoint are no good.
    """
    position, checksum, failures, absent = 0, 0, 0, 0
    first: _Body | None = None
    another = Retry(
        Reason.PROVIDER_UNAVAILABLE,
        f"The result file {file_id} is another one when it is read again.",
    )
    what = f"Reading the result file {file_id}"
    transfer = transfers.begin(what, Reason.PROVIDER_UNAVAILABLE)
    while True:
        before = position
        try:
            with _open(client, file_id, position, first.etag if first else "", transfer) as body:
                first = first or body
                if position and body.is_of_another_file(first):
                    raise another
                again, skipped = 0, body.start
                for piece in _pieces(body.answer, transfer):
                    old = piece[: position - skipped] if skipped < position else b""
                    skipped += len(old)
                    again = zlib.crc32(old, again)
                    if skipped == position and old and again != checksum:
                        raise another
                    if len(old) < len(piece):
                        fresh = piece[len(old) :]
                        position += len(fresh)
                        skipped = position
                        checksum = zlib.crc32(fresh, checksum)
                        yield fresh
                # An end that might be a break is believed when nothing comes behind it.
                is_end = body.says_its_end or position == before
                if skipped == position and (is_end if body.size is None else position >= body.size):
                    return
                cause: Exception | None = None
        except APIStatusError as error:
            if error.status_code in {404, 410}:
                if not is_json(error):
                    raise _in_between(file_id) from error
                absent += 1
                if absent == _ABSENT_ATTEMPTS:
                    raise Permanent(
                        ANSWER_LOST, f"The provider no longer has the result file {file_id}."
                    ) from error
                sleep(float(2**absent))
                continue
            if error.status_code == 416 and position:
                if first is not None and first.size is not None and position < first.size:
                    raise another from error
                return  # the range begins behind the last byte: nothing was missing
            raise fault(error, f"read the result file {file_id}") from error
        except _BROKEN as error:
            told = fault(error, f"read the result file {file_id}")
            if isinstance(told, Stalled):
                raise told from error
            cause = error
        failures = failures + 1 if position == before else 1
        if failures >= ATTEMPTS:
            raise Retry(
                Reason.PROVIDER_UNAVAILABLE,
                f"The result file {file_id} was cut after {position} bytes, "
                f"{failures} times in a row.",
            ) from cause
        sleep(min(8.0, 0.25 * 2**failures))


def _in_between(file_id: str) -> Retry:
    """The page of a gateway or a login says nothing of the file."""
    return Retry(
        Reason.PROVIDER_UNAVAILABLE,
        f"Something between here and the provider answered for the result file {file_id}.",
    )


def _pieces(answer: APIResponse[Any], transfer: Transfer) -> Iterator[bytes]:
    pieces = answer.iter_bytes()
    while True:
        with transfer.moving():
            piece = next(pieces, None)
        if piece is None:
            return
        transfer.moved(len(piece))
        yield piece


@contextmanager
def _open(
    client: OpenAI, file_id: str, position: int, etag: str, transfer: Transfer
) -> Iterator[_Body]:
    # Without compression the announced length is that of the file.
    headers = {"Accept-Encoding": "identity"}
    if position:
        headers["Range"] = f"bytes={position}-"
        if etag and not etag.startswith("W/"):
            headers["If-Range"] = etag  # a file that was changed meanwhile comes whole
    with ExitStack() as opened:
        content = client.files.with_streaming_response.content(file_id, extra_headers=headers)
        with transfer.asking():
            answer = opened.enter_context(content)
        if "text/html" in answer.headers.get("content-type", ""):
            raise _in_between(file_id)
        etag = answer.headers.get("etag", "")
        chunked = "chunked" in answer.headers.get("transfer-encoding", "")
        given = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if answer.status_code == 206 and given and int(given[1]) == position:
            size = None if given[2] == "*" else int(given[2])
            yield _Body(answer, position, size, etag, chunked or "content-length" in answer.headers)
            return
        length = answer.headers.get("content-length", "")
        plain = answer.headers.get("content-encoding", "identity") == "identity"
        size = int(length) if plain and length.isdigit() else None
        yield _Body(answer, 0, size, etag, chunked or bool(length))
