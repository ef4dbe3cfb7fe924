"""Checked records as the provider's lines, one by one or in bulk. Owns the choice between the two.

A provider that takes bodies as they are puts the same frame around each: the frame is learned once,
and lines are then made without asking again. All others translate record by record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, TypeVar

import msgspec

from batchinference.core.locations import all_staging, allowed_places
from batchinference.errors import Stalled
from batchinference.model.codec import decode
from batchinference.model.job import Operation, Parameters, PromptTemplate
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.ports import BatchData, BodyEncoder, SeveralEncoder, UsualEncoder
from batchinference.records import codes
from batchinference.records.bounds import MEMBERS
from batchinference.records.parameters import REQUIRED, URLS, defaults
from batchinference.records.refusal import BadLine, UnsupportedRequest
from batchinference.records.request import (
    BEHIND_BODY,
    Request,
    RequestReader,
    Rules,
    Usual,
    decode_body,
)
from batchinference.records.template import FIELD, Template
from batchinference.records.wire import wire_id

_Made = TypeVar("_Made", bytes, list[bytes])


class Encoder:
    """Turns checked records into the provider's lines.

    Attributes:
        has_rows: records are rows, of which a template makes requests.
        takes_many: whether `many` may be asked.
        native: the records so far are in the provider's own format; None before the first.
    """

    def __init__(
        self, run: Run, data: BatchData, template: Mapping[str, Any] | None = None
    ) -> None:
        """Make it for a run; `template` is its prompt template, where its records are rows.

        Raises:
            Permanent: the template is none.
            Stalled: it is not known any more.
        """
        spec = run.spec
        operation = Operation(spec.get("operation") or Operation.CHAT_COMPLETIONS)
        parameters = decode(
            Parameters, spec.get("parameters") or {}, "spec.parameters", ignore_unknown=True
        )
        self._model = str(spec["model"])
        self._url = URLS[operation]
        self._data = data
        self._encode_body = data.encode_body if isinstance(data, BodyEncoder) else None
        self._encode_several = None
        if operation is Operation.EMBEDDINGS and isinstance(data, SeveralEncoder):
            self._encode_several = data.encode_several
        self._rows = _template(run, operation, template)
        self.has_rows = self._rows is not None
        self.takes_many = self._encode_several is None and not self.has_rows
        self._usual = None
        if operation is Operation.CHAT_COMPLETIONS and isinstance(data, UsualEncoder):
            self._usual = data
        self._frame = _frame(self._encode_body, self._url) if self._encode_body else None
        self.reader = RequestReader(
            Rules(
                self._model,
                self._url,
                REQUIRED[operation],
                defaults(parameters, operation),
                native="bedrock" in run.provider.settings,
                places=_places(run),
                closed=_closed(run),
                body=self._usual.usual_body if self._usual is not None else None,
                bounds=MEMBERS[operation],
            )
        )
        self.native: bool | None = run.cursor.native if run.cursor else None

    def read(self, line: bytes, is_ascii: bool, number: int) -> Request:
        """The record of a line; `number` is its own, from 0. Raises BadLine."""
        if self._rows is None:
            return self.reader.read(line, is_ascii)
        custom_id, body = self._rows.request(line, number)
        return self.reader.complete(custom_id, msgspec.json.encode(body))

    def lines(self, row: int, request: Request) -> list[bytes]:
        """The record's lines, without newlines: more than one where it goes to the provider as
        several, which are numbered from `row` on.

        Raises:
            BadLine: as `_line`.
        """
        if self._encode_several is None or request.native:
            return [self._line(row, request)]
        if request.native is not self.native:
            self._agree(request)
        return self._translate(self._encode_several, row, request)

    def _line(self, row: int, request: Request) -> bytes:
        """The record's line, without the newline.

        Raises:
            BadLine: the provider can't do it, or it is of another format than the others.
        """
        if request.native is not self.native:
            self._agree(request)
        if request.native:
            return b'{"recordId":"r%010d","modelInput":%b}' % (row, request.body)
        if self._encode_body is not None:
            return self._encode_body(row, self._url, request.body)
        return self._translate(self._data.encode, row, request)

    def _translate(
        self, encode: Callable[[int, Mapping[str, Any], str], _Made], row: int, request: Request
    ) -> _Made:
        body = decode_body(request.body, request.custom_id)
        complete = {"custom_id": wire_id(row), "method": "POST", "url": self._url, "body": body}
        try:
            return encode(row, complete, self._model)
        except UnsupportedRequest as refused:
            raise BadLine(refused.code, refused.message, request.custom_id) from None

    def many(self, row: int, usual: Usual) -> tuple[bytes, list[int]] | None:
        """The lines of consecutive records with their newlines, and their sizes; None where each
        record needs a look of its own.
        """
        if self.native:
            return None
        if self._frame is None:
            return self._translated(row, usual)
        self.native = False
        head = self._frame + usual.front.replace(b"%", b"%%")
        heads = [head % n for n in range(row, row + len(usual.rests))]
        data = b"".join(chain.from_iterable(zip(heads, usual.rests, strict=True)))
        size = len(heads[0])
        return data, [size + len(rest) for rest in usual.rests]

    def _translated(self, row: int, usual: Usual) -> tuple[bytes, list[int]] | None:
        """As `many`, for a provider that takes no bodies as they are."""
        front, behind = usual.front, len(BEHIND_BODY)
        quick: list[bytes | None] = []
        if self._usual is not None and usual.bodies:
            defaults = decode_body(front.removesuffix(b",") + b"}") if front else {}
            quick = self._usual.usual_lines(row, usual.bodies, defaults)
        lines: list[bytes] = []
        try:
            for number, rest in enumerate(usual.rests):
                line = quick[number] if quick else None
                if line is None:
                    text = rest[:-behind]
                    body = decode_body(front + text if front else text)
                    line = self._encode(row + number, body)
                lines.append(line)
        except (BadLine, UnsupportedRequest):
            return None  # whose fault it is comes out one by one
        self.native = False
        lines.append(b"")
        data = b"\n".join(lines)
        lines.pop()
        return data, [len(line) + 1 for line in lines]

    def _encode(self, row: int, body: dict[str, Any]) -> bytes:
        complete = {"custom_id": wire_id(row), "method": "POST", "url": self._url, "body": body}
        return self._data.encode(row, complete, self._model)

    def _agree(self, request: Request) -> None:
        """The first record decides whether all are canonical or all are the provider's own: one
        batch can't hold both.
        """
        if self.native is not None:
            ours, theirs = ("`modelInput`", "`body`") if self.native else ("`body`", "`modelInput`")
            raise BadLine(
                codes.MIXED_FORMATS,
                f"the records before have {ours}, this one has {theirs}; use one of them",
                request.custom_id,
            )
        self.native = request.native


def _template(
    run: Run, operation: Operation, template: Mapping[str, Any] | None
) -> Template | None:
    """The run's template, None where it has none."""
    if "promptTemplate" not in run.spec:
        return None
    if template is None:
        raise Stalled(
            Reason.INPUT_NOT_FOUND,
            "The prompt template is known only from the object, and that is not there",
        )
    return Template(decode(PromptTemplate, template, FIELD, ignore_unknown=True), operation)


def _places(run: Run) -> tuple[str, ...]:
    """What records may name: what the provider allows the job's namespace."""
    s3 = run.provider.settings.get("storage", {}).get("s3", {})
    return allowed_places(s3.get("allowedPrefixes", ()), run.owner.namespace)


def _closed(run: Run) -> tuple[str, ...]:
    """What records may not name even there: other runs' data."""
    return () if run.staging.is_config_map else (all_staging(run.staging.uri),)


def _frame(encode_body: Callable[[int, str, bytes], bytes], url: str) -> bytes | None:
    """What stands in front of every body, as a format of the row; None where lines are not the
    wire id and the body in a fixed frame that ends in a brace.
    """
    row, body = 1_234_567_890, b"\0"
    before, _, after = encode_body(row, url, body).partition(body)
    head, wire, rest = before.partition(wire_id(row).encode())
    if after != b"}" or not wire or wire in rest:
        return None
    frame = head.replace(b"%", b"%%") + b"r%010d" + rest.replace(b"%", b"%%")
    return frame if frame % 7 + b"{}}" == encode_body(7, url, b"{}") else None
