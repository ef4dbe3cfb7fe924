"""A BatchData made of functions: a provider's bulk data without a provider."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from batchinference.errors import Permanent
from batchinference.model.batch import SubmissionID
from batchinference.model.run import Run
from batchinference.ports import ObjectStore, ResultLine, UnsupportedRequest


def encode_openai(row: int, request: Mapping[str, Any], model: str) -> bytes:
    """As an OpenAI-compatible provider takes it."""
    return msgspec.json.encode({**request, "custom_id": f"r{row:010d}"})


def decode_openai(line: bytes) -> ResultLine:
    """As an OpenAI-compatible provider answers."""
    try:
        found = msgspec.json.decode(line)
        wire = found["custom_id"]
    except (msgspec.MsgspecError, UnicodeError, TypeError, KeyError):
        return ResultLine("", 0)
    response, error = found.get("response"), found.get("error")
    if error:
        unbilled = error["code"] in {"batch_expired", "batch_cancelled"}
        return ResultLine(
            wire, 0, error_code=error["code"], error_message=error["message"], unbilled=unbilled
        )
    status, body = response["status_code"], response["body"]
    if status != 200:
        return ResultLine(
            wire, status, body=body, error_code=f"HTTP{status}", error_message="refused"
        )
    usage = body.get("usage", {})
    return ResultLine(
        wire,
        200,
        response.get("request_id", ""),
        body,
        input_tokens=usage.get("prompt_tokens", 0),
        output_tokens=usage.get("completion_tokens", 0),
    )


@dataclass
class FunctionData:
    """See `ports.BatchData`. Result files are in `files`; an absent one is gone."""

    encoder: Callable[[int, Mapping[str, Any], str], bytes] = encode_openai
    decoder: Callable[[bytes], ResultLine] = decode_openai
    files: dict[str, bytes] = field(default_factory=dict)
    uploads: list[tuple[str, SubmissionID]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    chunk: int = 1 << 16

    def encode(self, row: int, request: Mapping[str, Any], model: str) -> bytes:
        return self.encoder(row, request, model)

    def upload(self, staging: ObjectStore, uri: str, run: Run, submission: SubmissionID) -> str:
        self.uploads.append((uri, submission))
        return f"file-{submission.shard}-{submission.ordinal}"

    def open_results(self, files: Sequence[str]) -> Iterator[bytes]:
        for name in files:
            if name not in self.files:
                raise Permanent("AnswerLost", f"the provider has no file {name} any more")
            data = self.files[name]
            for start in range(0, len(data), self.chunk):
                yield data[start : start + self.chunk]

    def decode(self, line: bytes) -> ResultLine:
        return self.decoder(line)

    def delete_files(self, run: Run) -> None:
        self.deleted.append(run.key)


@dataclass
class BodyData(FunctionData):
    """The same with the optional capability `BodyEncoder`."""

    def encode_body(self, row: int, url: str, body: bytes) -> bytes:
        head = b'{"custom_id":"r%010d","method":"POST","url":"%b","body":' % (row, url.encode())
        return head + body + b"}"


@dataclass
class SeveralData(FunctionData):
    """The same with the optional capability `SeveralEncoder`: one line for each text to embed."""

    def encode_several(self, row: int, request: Mapping[str, Any], model: str) -> list[bytes]:
        asked = request["body"]["input"]
        texts = asked if isinstance(asked, list) else [asked]
        if not texts:
            raise UnsupportedRequest("UnsupportedContent", "`body.input` must not be empty")
        return [
            msgspec.json.encode({"custom_id": f"r{row + n:010d}", "text": text})
            for n, text in enumerate(texts)
        ]
