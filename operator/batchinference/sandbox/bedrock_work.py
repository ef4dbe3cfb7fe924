"""Validation and execution of Bedrock batch records, line by line in constant memory.

Owns the checks Bedrock makes before a job runs and the lines it writes. Works on local files;
must not know S3, HTTP, states or time.
"""

from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

import msgspec

from . import dialects, spells
from .lines import Lines
from .refusals import Refusal
from .work import CheckBedrock, CheckedBedrock, Ran, RunBedrock

_BUFFER = 1 << 20
_ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_NULL_ALTERNATIVES = dict.fromkeys(
    ("image", "document", "video", "toolUse", "toolResult", "guardContent", "reasoningContent")
)


def check(task: CheckBedrock) -> CheckedBedrock:
    """Hold the input files against the quotas and read every line as a record."""
    if not task.paths:
        return CheckedBedrock(0, "The input location has no object that ends with .jsonl.")
    total_bytes = records = 0
    for path, key in zip(task.paths, task.keys, strict=True):
        size = Path(path).stat().st_size
        total_bytes += size
        if size > task.max_file_bytes:
            return CheckedBedrock(
                0,
                f"Input file {key} has {size} bytes, more than the allowed maximum of: "
                f"{task.max_file_bytes}",
            )
        in_file, problem = _check_file(path, key)
        if problem is not None:
            return CheckedBedrock(0, problem)
        if in_file > task.max_records_per_file:
            return CheckedBedrock(
                0,
                f"Input file {key} contains more records ({in_file}) than the allowed maximum "
                f"per file of: {task.max_records_per_file}",
            )
        records += in_file
    if total_bytes > task.max_job_bytes:
        return CheckedBedrock(
            records,
            f"Batch job: {task.job_arn} has {total_bytes} bytes of input, more than the allowed "
            f"maximum of: {task.max_job_bytes}",
        )
    if records < task.min_records:
        return CheckedBedrock(
            records,
            f"Batch job: {task.job_arn} contains less records ({records}) than the required "
            f"minimum of: {task.min_records}",
        )
    if records > task.max_records:
        return CheckedBedrock(
            records,
            f"Batch job: {task.job_arn} contains more records ({records}) than the allowed "
            f"maximum of: {task.max_records}",
        )
    return CheckedBedrock(records)


def _check_file(path: str, key: str) -> tuple[int, str | None]:
    records = 0
    with Path(path).open("rb", buffering=_BUFFER) as file:
        for number, raw in enumerate(file, start=1):
            if raw.isspace():
                continue
            try:
                line = _decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError):
                line = None
            if not isinstance(line, dict):
                return 0, f"Input file {key} is not valid JSONL: line {number} is not a JSON object"
            if not isinstance(line.get("modelInput"), dict):
                return 0, f"Input file {key}: line {number} has no modelInput object"
            if not isinstance(line.get("recordId", ""), str):
                return 0, f"Input file {key}: recordId of line {number} is not a string"
            records += 1
    return records, None


class _Run:
    """One execution: the counts and how a line is written."""

    def __init__(self, task: RunBedrock) -> None:
        self.task = task
        self.completed = self.failed = self.output_lines = self.error_lines = 0
        self.input_tokens = self.output_tokens = 0
        self.expired = False
        self.spent: set[str] = set()
        self.used = frozenset(task.used)

    def answer(self, position: int, raw: bytes, out: BinaryIO) -> None:
        line = _decode(raw)
        asked = spells.read(raw, self.used, self.spent)
        record = {
            "recordId": line.get("recordId") or _invented_id(self.task.seed, position),
            "modelInput": line["modelInput"],
        }
        if "expire" in asked:
            self.expired = True
            self.leave(record, out)
            return
        if "missing" in asked:
            self.completed += 1
            return
        tag = f"{self.task.seed & 0xFFFFFFFF:08x}{position:08x}"
        request = dialects.Request(
            line["modelInput"], self.task.model_id, tag, self.task.moment, asked
        )
        if "status-0" in asked:
            self._refuse(record, Refusal(0, ""), out)
            return
        try:
            served = dialects.serve(request, self.task.invocation_type)
        except Refusal as refusal:
            self._refuse(record, refusal, out)
            return
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            # A member of a wrong shape, met while the body was read.
            self._refuse(record, Refusal(400, f"Malformed input request: {error!r}"), out)
            return
        self.completed += 1
        self.input_tokens += served.input_tokens
        self.output_tokens += served.output_tokens
        data = _encode({**record, "modelOutput": self._shown(served.body)})
        if "broken-json" in asked:
            data = data[: len(data) // 2]
        elif "broken-utf8" in asked:
            data = data.replace(b'"text":"', b'"text":"\xff\xfe').replace(
                b'"content":"', b'"content":"\xff\xfe'
            )
        for _ in range(2 if "duplicate" in asked else 1):
            self.output_lines += 1
            out.write(data + b"\n")
        if "stranger" in asked:
            self.output_lines += 1
            stranger = {**record, "recordId": f"stranger{tag}"}
            out.write(_encode({**stranger, "modelOutput": served.body}) + b"\n")

    def leave(self, record: dict[str, Any], out: BinaryIO) -> None:
        """Record that the job ended before this record was reached."""
        if self.task.unreached == "expired-line":
            error = {"errorCode": 408, "errorMessage": "The job expired.", "expired": True}
            self.error_lines += 1
            out.write(_encode({**record, "error": error}) + b"\n")

    def _refuse(self, record: dict[str, Any], refusal: Refusal, out: BinaryIO) -> None:
        self.failed += 1
        self.error_lines += 1
        code: int | str = str(refusal.status) if self.task.code_as_string else refusal.status
        error = {"errorCode": code, "errorMessage": refusal.message}
        out.write(_encode({**record, "error": error}) + b"\n")

    def _shown(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.task.converse_nulls and self.task.invocation_type == "Converse":
            message = body["output"]["message"]
            message["content"] = [{**_NULL_ALTERNATIVES, **block} for block in message["content"]]
            body["trace"] = body["performanceConfig"] = body["additionalModelResponseFields"] = None
        return body


def run(task: RunBedrock) -> Ran:
    """Answer the first `done` records in shuffled order, one output file per input file."""
    with ExitStack() as stack:
        files = [stack.enter_context(Lines(path)) for path in task.paths]
        outs = [
            stack.enter_context(Path(path).open("wb", buffering=_BUFFER))
            for path in task.output_paths
        ]
        order = [
            (which, number)
            for which, lines in enumerate(files)
            for number in range(len(lines))
            if lines[number].strip()
        ]
        if task.shuffle:
            Random(task.seed).shuffle(order)  # noqa: S311  # repeatable on purpose
        state = _Run(task)
        for position, (which, number) in enumerate(order[: task.done]):
            state.answer(position, files[which][number], outs[which])
        for position, (which, number) in enumerate(order[task.done :], start=task.done):
            if task.unreached == "absent":
                break
            line = _decode(files[which][number])
            record = {
                "recordId": line.get("recordId") or _invented_id(task.seed, position),
                "modelInput": line["modelInput"],
            }
            state.leave(record, outs[which])
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


def _invented_id(seed: int, position: int) -> str:
    """Return the 11-character id that Bedrock gives a record without one."""
    random = Random(seed * 1_000_003 + position)  # noqa: S311  # repeatable on purpose
    return "".join(random.choices(_ID_LETTERS, k=11))
