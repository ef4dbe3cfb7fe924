"""Validation and execution of OpenAI batch files, line by line in constant memory.

Owns the provider's checks of lines and the lines it writes. Must not know HTTP, states or time.
"""

from pathlib import Path
from random import Random
from typing import Any, BinaryIO

import msgspec

from . import openai_endpoints, spells
from .lines import Lines
from .refusals import Refusal
from .work import CheckedOpenAI, CheckOpenAI, LineProblem, Ran, RunOpenAI

_MAX_PROBLEMS = 1000
_BUFFER = 1 << 20
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_EXPIRED_TEXT = "This request could not be executed before the completion window expired."
_CANCELLED_TEXT = "This request was not executed because the batch was cancelled."


def check(task: CheckOpenAI) -> CheckedOpenAI:
    """Hold every line against what OpenAI checks before it runs a batch."""
    problems: list[LineProblem] = []
    seen: set[str] = set()
    model: str | None = None
    tokens = records = inputs = 0
    with Path(task.path).open("rb", buffering=_BUFFER) as file:
        for number, raw in enumerate(file, start=1):
            records = number
            if number > task.max_requests:
                continue  # only the count matters now
            if len(problems) >= _MAX_PROBLEMS:
                continue
            try:
                line = _decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError):
                line = None
            if not isinstance(line, dict):
                problems.append(
                    LineProblem(
                        "invalid_json_line", "This line is not parseable as valid JSON.", number
                    )
                )
                continue
            problem = _wrong_with(line, task.endpoint, number)
            if problem is None:
                problem = _repeated(line["custom_id"], seen, number)
            if problem is None:
                body = line["body"]
                if model is None:
                    model = body["model"]
                elif body["model"] != model:
                    problem = LineProblem(
                        "mismatched_model",
                        f"The model `{body['model']}` of this request differs from the batch's "
                        f"model `{model}`. All requests of a batch must use the same model.",
                        number,
                        "body.model",
                    )
                tokens += openai_endpoints.input_tokens(task.endpoint, body)
                given = body.get("input")
                inputs += len(given) if isinstance(given, list) else 1
            if problem is not None:
                problems.append(problem)
    if records == 0:
        problems = [LineProblem("empty_file", "The input file is empty.")]
    elif records > task.max_requests:
        problems = [
            LineProblem(
                "too_many_tasks",
                f"The input file has {records} requests; at most {task.max_requests} are allowed.",
            )
        ]
    elif task.endpoint == "/v1/embeddings" and inputs > task.max_requests:
        problems.append(
            LineProblem(
                "too_many_tasks",
                f"The input file has {inputs} embedding inputs across all requests; "
                f"at most {task.max_requests} are allowed.",
            )
        )
    return CheckedOpenAI(records, model, tokens, problems)


def _wrong_with(line: dict[str, Any], endpoint: str, number: int) -> LineProblem | None:
    for key in ("custom_id", "method", "url", "body"):
        if line.get(key) is None:
            return LineProblem(
                "missing_required_parameter", f"Missing required parameter: '{key}'.", number, key
            )
    if not isinstance(line["custom_id"], str) or not line["custom_id"]:
        return LineProblem(
            "invalid_type", "Invalid type for 'custom_id': expected a string.", number, "custom_id"
        )
    if line["method"] != "POST":
        return LineProblem(
            "invalid_method", f"Invalid method '{line['method']}': use POST.", number, "method"
        )
    if line["url"] != endpoint:
        return LineProblem(
            "invalid_url",
            f"The URL '{line['url']}' provided for this request does not match the batch "
            f"endpoint '{endpoint}'.",
            number,
            "url",
        )
    body = line["body"]
    if not isinstance(body, dict):
        return LineProblem("invalid_request", "Invalid type for 'body': expected an object.",
                           number, "body")  # fmt: skip
    for key in ("model", *_REQUIRED.get(endpoint, ())):
        if body.get(key) is None:
            return LineProblem(
                "invalid_request", f"Missing required parameter: '{key}'.", number, f"body.{key}"
            )
    if body.get("stream"):
        return LineProblem(
            "streaming_unsupported", "Streaming is not supported in batches.", number, "body.stream"
        )
    model = body["model"]
    if not isinstance(model, str) or not openai_endpoints.is_known_model(model):
        return LineProblem(
            "model_not_found",
            f"The provided model '{model}' is not supported by the Batch API.",
            number,
            "body.model",
        )
    return None


_REQUIRED = {
    "/v1/chat/completions": ("messages",),
    "/v1/completions": ("prompt",),
    "/v1/embeddings": ("input",),
    "/v1/moderations": ("input",),
    "/v1/responses": ("input",),
}


def _repeated(custom_id: str, seen: set[str], number: int) -> LineProblem | None:
    if custom_id in seen:
        return LineProblem(
            "duplicate_custom_id",
            f"The custom_id '{custom_id}' of this request is a duplicate of another request.",
            number,
            "custom_id",
        )
    seen.add(custom_id)
    return None


class _Run:
    """One execution: the two files and the counts."""

    def __init__(self, task: RunOpenAI, output: BinaryIO, errors: BinaryIO) -> None:
        self.task = task
        self.output = output
        self.errors = errors
        self.completed = self.failed = self.output_lines = self.error_lines = 0
        self.input_tokens = self.output_tokens = 0
        self.expired = False
        self.spent: set[str] = set()
        self.used = frozenset(task.used)

    def answer(self, position: int, raw: bytes) -> None:
        line = _decode(raw)
        asked = spells.read(raw, self.used, self.spent)
        tag = f"{self.task.seed & 0xFFFFFFFF:08x}{position:08x}"
        custom_id: str = line["custom_id"]
        if "expire" in asked:
            self.expired = True
            self._unreached(tag, custom_id, "batch_expired")
            return
        if "missing" in asked:
            self.completed += 1  # the counts of the real service do not always fit its files
            return
        if "status-0" in asked:
            self.failed += 1
            broken = {"status_code": 0, "request_id": "", "body": {}}
            self._write_error(tag, custom_id, broken, None)
            return
        try:
            served = openai_endpoints.serve(
                self.task.endpoint, line["body"], tag, self.task.moment, asked
            )
        except Refusal as refusal:
            self.failed += 1
            if self.task.error_style == "error":
                error = {"code": refusal.code or str(refusal.status), "message": refusal.message}
                self._write_error(tag, custom_id, None, error)
            else:
                self._write_error(
                    tag, custom_id, self._response(refusal.status, tag, refusal.openai_body()), None
                )
            return
        self.completed += 1
        self.input_tokens += served.input_tokens
        self.output_tokens += served.output_tokens
        data = self._line(tag, custom_id, self._response(200, tag, served.body), None)
        if "broken-json" in asked:
            data = data[: len(data) // 2]
        elif "broken-utf8" in asked:
            data = data.replace(b'"content":"', b'"content":"\xff\xfe', 1)
        self._write_output(data)
        if "duplicate" in asked:
            self._write_output(data)
        if "stranger" in asked:
            self._write_output(
                self._line(tag, f"stranger-{tag}", self._response(200, tag, served.body), None)
            )

    def leave(self, position: int, raw: bytes) -> None:
        """Record that a batch ended before this record was reached."""
        code = self.task.unreached_code
        if code is not None:
            tag = f"{self.task.seed & 0xFFFFFFFF:08x}{position:08x}"
            self._unreached(tag, _decode(raw)["custom_id"], code)

    def _unreached(self, tag: str, custom_id: str, code: str) -> None:
        self.failed += 1
        text = _CANCELLED_TEXT if code == "batch_cancelled" else _EXPIRED_TEXT
        self._write_error(tag, custom_id, None, {"code": code, "message": text})

    def _response(self, status: int, tag: str, body: dict[str, Any]) -> dict[str, Any]:
        shown: Any = _encode(body).decode() if self.task.body_as_string else body
        return {"status_code": status, "request_id": f"req_{tag}", "body": shown}

    def _line(self, tag: str, custom_id: str, response: Any, error: Any) -> bytes:
        return _encode(
            {
                "id": f"batch_req_{tag}",
                "custom_id": custom_id,
                "response": response,
                "error": error,
            }
        )

    def _write_output(self, data: bytes) -> None:
        self.output_lines += 1
        self.output.write(data)
        self.output.write(b"\n")

    def _write_error(self, tag: str, custom_id: str, response: Any, error: Any) -> None:
        self.error_lines += 1
        self.errors.write(self._line(tag, custom_id, response, error))
        self.errors.write(b"\n")


def run(task: RunOpenAI) -> Ran:
    """Answer the first `done` records in shuffled order and write both result files."""
    with (
        Lines(task.path) as lines,
        Path(task.output_path).open("wb", buffering=_BUFFER) as output,
        Path(task.error_path).open("wb", buffering=_BUFFER) as errors,
    ):
        order = list(range(len(lines)))
        if task.shuffle:
            Random(task.seed).shuffle(order)  # noqa: S311  # repeatable on purpose
        state = _Run(task, output, errors)
        for position in order[: task.done]:
            state.answer(position, lines[position])
        for position in order[task.done :]:
            state.leave(position, lines[position])
    return Ran(
        total=len(order),
        completed=state.completed,
        failed=state.failed,
        output_lines=state.output_lines,
        error_lines=state.error_lines,
        input_tokens=state.input_tokens,
        output_tokens=state.output_tokens,
        expired=state.expired,
        spent=sorted(state.spent),
    )
