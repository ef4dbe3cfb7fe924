"""The heavy work on batches as plain messages: what to do and what came of it.

Owns the messages that go to worker processes. Must not know how the work is done.
"""

import msgspec


class LineProblem(msgspec.Struct, frozen=True):
    """One entry of a failed OpenAI batch's `errors.data`; `line` counts from one."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class CheckOpenAI(msgspec.Struct, frozen=True, tag=True):
    """Validate a batch input file of OpenAI's."""

    path: str
    endpoint: str
    max_requests: int


class CheckedOpenAI(msgspec.Struct, frozen=True, tag=True):
    """What validation found; a file without problems is run."""

    records: int
    model: str | None
    prompt_tokens: int
    problems: list[LineProblem]


class RunOpenAI(msgspec.Struct, frozen=True, tag=True):
    """Answer the records of an OpenAI batch."""

    path: str
    endpoint: str
    output_path: str
    error_path: str
    seed: int
    moment: int
    done: int  # how many records are reached, in shuffled order
    unreached_code: str | None  # error code of the others; None = they get no line
    shuffle: bool
    body_as_string: bool
    error_style: str  # body (refusals as OpenAI writes them) | error (as vLLM does)
    used: list[str]


class CheckBedrock(msgspec.Struct, frozen=True, tag=True):
    """Validate the input objects of a Bedrock job, fetched to local files."""

    paths: list[str]
    keys: list[str]
    job_arn: str
    min_records: int
    max_records: int
    max_records_per_file: int
    max_file_bytes: int
    max_job_bytes: int


class CheckedBedrock(msgspec.Struct, frozen=True, tag=True):
    """What validation found; `message` says why the job fails."""

    records: int
    message: str | None = None


class RunBedrock(msgspec.Struct, frozen=True, tag=True):
    """Answer the records of a Bedrock job."""

    paths: list[str]
    output_paths: list[str]
    model_id: str
    invocation_type: str
    seed: int
    moment: int
    done: int
    unreached: str  # absent | expired-line
    shuffle: bool
    code_as_string: bool
    converse_nulls: bool
    used: list[str]


class Ran(msgspec.Struct, frozen=True, tag=True):
    """What came of running a batch. Lines are those really written."""

    total: int
    completed: int
    failed: int
    output_lines: int
    error_lines: int
    input_tokens: int
    output_tokens: int
    expired: bool  # a record asked for its batch to expire
    spent: list[str]


Task = CheckOpenAI | RunOpenAI | CheckBedrock | RunBedrock
Outcome = CheckedOpenAI | CheckedBedrock | Ran
