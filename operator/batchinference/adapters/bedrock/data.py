"""`ports.BatchData` for Bedrock: everything lies in the provider's staging bucket.

Runs in a worker. Uploading is a copy inside S3, reading is reading from S3. What a line means is
in `lines`; what lies where is in `names`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from batchinference.adapters.bedrock.lines import result
from batchinference.adapters.bedrock.names import input_uri, inputs_uri, outputs_uri
from batchinference.adapters.bedrock.view import MAYBE
from batchinference.errors import Permanent, Stalled
from batchinference.model.batch import SubmissionID
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.ports import (
    ObjectInfo,
    ObjectStore,
    ResultLine,
    SourceChanged,
    UnsupportedRequest,
)
from batchinference.records import codes
from batchinference.records.translate import converse, usual_converse
from batchinference.records.wire import wire_id

SUFFIX = ".jsonl.out"
"""Result files end in this; the manifest beside them does not."""

_ATTEMPTS = 4
"""Objects may show up a moment after their job has ended."""

_encode = msgspec.json.Encoder().encode


class _UsualLine(msgspec.Struct, gc=False, rename="camel"):
    record_id: str
    model_input: usual_converse.ModelInput


class BedrockData:
    """See `ports.BatchData`."""

    def __init__(
        self, store: ObjectStore, *, model: str = "", sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Make it; no call is made.

        Args:
            store: where the run's staging is.
            model: the job's model, for the bodies of answers.
            sleep: how to wait between attempts.
        """
        self._store = store
        self._model = model
        self._sleep = sleep

    def encode(self, row: int, request: Mapping[str, Any], model: str) -> bytes:
        """See `ports.BatchData.encode`. A `modelInput` is passed on untouched."""
        del model  # it belongs to the job, and no body may name it
        native = request.get("modelInput")
        if native is not None:
            return _encode({"recordId": wire_id(row), "modelInput": native})
        body = request["body"]
        if body.get("stream"):
            raise UnsupportedRequest(
                codes.STREAMING_UNSUPPORTED, "`body.stream` is true: a batch can't"
            )
        return _encode({"recordId": wire_id(row), "modelInput": converse.encode(body)})

    usual_body = usual_converse.Body

    def usual_lines(
        self, row: int, bodies: Sequence[usual_converse.Body], defaults: Mapping[str, Any]
    ) -> list[bytes | None]:
        """See `ports.UsualEncoder.usual_lines`."""
        translated = map(usual_converse.UsualConverse(defaults).translate, bodies)
        return [
            None if found is None else _encode(_UsualLine(wire_id(number), found))
            for number, found in enumerate(translated, row)
        ]

    def upload(self, staging: ObjectStore, uri: str, run: Run, submission: SubmissionID) -> str:
        """See `ports.BatchData.upload`; the input_ref is the copy's URI."""
        target = input_uri(run, submission)
        if run.staging.is_config_map:
            raise Stalled(
                Reason.STORAGE_MISSING,
                "Bedrock reads its input from S3; set `spec.storage.stagingURI` of the provider.",
            )
        try:
            staging.copy(uri, target)
        except SourceChanged as error:
            raise Stalled(
                Reason.STAGING_UNAVAILABLE, f"The staged shard {uri} was changed by somebody."
            ) from error
        return target

    def open_results(self, files: Sequence[str]) -> Iterator[bytes]:
        """See `ports.BatchData.open_results`; files are prefixes."""
        for name in files:
            prefix = name.removeprefix(MAYBE)
            for info in self._results(prefix, may_be_empty=name.startswith(MAYBE)):
                yield from self._read(info)

    def _results(self, prefix: str, *, may_be_empty: bool) -> list[ObjectInfo]:
        for attempt in range(_ATTEMPTS):
            found = [info for info in self._store.list(prefix) if info.uri.endswith(SUFFIX)]
            if found or may_be_empty:
                return found
            if attempt < _ATTEMPTS - 1:
                self._sleep(float(2**attempt))
        raise Permanent(
            codes.ANSWER_LOST, f"There are no results under {prefix}; were they deleted?"
        )

    def _read(self, info: ObjectInfo) -> Iterator[bytes]:
        last = b"\n"
        try:
            for piece in self._store.read(info):
                last = piece[-1:]
                yield piece
        except SourceChanged as error:
            raise Permanent(codes.ANSWER_LOST, f"{info.uri} was changed or deleted.") from error
        if last != b"\n":
            yield b"\n"

    def decode(self, line: bytes) -> ResultLine:
        """See `ports.BatchData.decode`."""
        return result(line, self._model)

    def delete_files(self, run: Run) -> None:
        """See `ports.BatchData.delete_files`."""
        if run.staging.is_config_map:
            return
        self._store.delete_prefix(inputs_uri(run))
        self._store.delete_prefix(outputs_uri(run))
