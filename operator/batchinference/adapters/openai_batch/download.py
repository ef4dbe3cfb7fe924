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

from batchinference.adapters.openai_batch.faults import fault
from batchinference.adapters.transfers import Transfer, Transfers
from batchinference.errors import Permanent, Retry
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
    """

    answer: APIResponse[Any]
    start: int
    size: int | None


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
    what = f"Reading the result file {file_id}"
    transfer = transfers.begin(what, Reason.PROVIDER_UNAVAILABLE)
    while True:
        before = position
        try:
            with _open(client, file_id, position, transfer) as body:
                again, skipped = 0, body.start
                for piece in _pieces(body.answer, transfer):
                    old = piece[: position - skipped] if skipped < position else b""
                    skipped += len(old)
                    again = zlib.crc32(old, again)
                    if skipped == position and old and again != checksum:
                        raise Retry(
                            Reason.PROVIDER_UNAVAILABLE,
                            f"The result file {file_id} is another one when it is read again.",
                        )
                    if len(old) < len(piece):
                        fresh = piece[len(old) :]
                        position += len(fresh)
                        skipped = position
                        checksum = zlib.crc32(fresh, checksum)
                        yield fresh
                if skipped == position and (body.size is None or position >= body.size):
                    return
                cause: Exception | None = None
        except APIStatusError as error:
            if error.status_code in {404, 410}:
                absent += 1
                if absent == _ABSENT_ATTEMPTS:
                    raise Permanent(
                        ANSWER_LOST, f"The provider no longer has the result file {file_id}."
                    ) from error
                sleep(float(2**absent))
                continue
            if error.status_code == 416 and position:
                return  # the range begins behind the last byte: nothing was missing
            raise fault(error, f"read the result file {file_id}") from error
        except _BROKEN as error:
            cause = error
        failures = failures + 1 if position == before else 1
        if failures >= ATTEMPTS:
            raise Retry(
                Reason.PROVIDER_UNAVAILABLE,
                f"The result file {file_id} was cut after {position} bytes, "
                f"{failures} times in a row.",
            ) from cause
        sleep(min(8.0, 0.25 * 2**failures))


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
def _open(client: OpenAI, file_id: str, position: int, transfer: Transfer) -> Iterator[_Body]:
    # Without compression the announced length is that of the file.
    headers = {"Accept-Encoding": "identity"}
    if position:
        headers["Range"] = f"bytes={position}-"
    with ExitStack() as opened:
        content = client.files.with_streaming_response.content(file_id, extra_headers=headers)
        with transfer.asking():
            answer = opened.enter_context(content)
        given = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if answer.status_code == 206 and given and int(given[1]) == position:
            yield _Body(answer, position, None if given[2] == "*" else int(given[2]))
            return
        length = answer.headers.get("content-length", "")
        plain = answer.headers.get("content-encoding", "identity") == "identity"
        yield _Body(answer, 0, int(length) if plain and length.isdigit() else None)
