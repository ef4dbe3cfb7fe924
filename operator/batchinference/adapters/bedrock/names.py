"""How a Bedrock job says which submission it is (protocol 1.3), and where its data lies.

Pure. Names and places are found again by later releases: never change their form.
"""

from __future__ import annotations

import hashlib
import re

from batchinference.model.batch import SubmissionID
from batchinference.model.run import Owner, Run

NAME_LIMIT = 63
LABEL_LIMIT = 20
_HASH_LENGTH = 12

INPUT_FILE = "records.jsonl"
"""The one file in a submission's input folder."""

_NAME = re.compile(
    r".+-(?P<tag>[0-9a-zA-Z]+)-s(?P<shard>[0-9]{1,9})-o(?P<ordinal>[0-9]{1,9})-(?P<hash>[0-9a-f]{1,12})"
)
_NOT_IN_LABEL = re.compile(r"[^a-z0-9]+")


def job_name(owner: Owner, submission: SubmissionID) -> str:
    """`<namespace>-<name>-<tag>-s<shard>-o<ordinal>-<hash>`, its front cut to what fits.

    Unique per submission: Bedrock refuses a name in use, and a listing is searched by it.
    """
    identity = (
        f"-{submission.tag}-s{submission.shard}-o{submission.ordinal}"
        f"-{submission.content_hash[:_HASH_LENGTH]}"
    )
    room = min(LABEL_LIMIT, NAME_LIMIT - len(identity))
    wanted = f"{owner.namespace}-{owner.generate_name or owner.name}".lower()
    label = _NOT_IN_LABEL.sub("-", wanted).strip("-")[:room].rstrip("-")
    return f"{label or 'job'[:room]}{identity}"


def submission_of(name: str) -> SubmissionID | None:
    """The submission that a job's name holds; None for a job that is not ours."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return SubmissionID(found["tag"], int(found["shard"]), int(found["ordinal"]), found["hash"])


def request_token(submission: SubmissionID) -> str:
    """The token by which Bedrock knows a repeated create call."""
    parts = (
        submission.tag,
        str(submission.shard),
        str(submission.ordinal),
        submission.content_hash,
    )
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


def input_uri(run: Run, submission: SubmissionID) -> str:
    """The input file of one ordinal; its folder holds nothing else."""
    return f"{inputs_uri(run)}{submission.shard:05d}-{submission.ordinal}/{INPUT_FILE}"


def output_uri(run: Run, submission: SubmissionID) -> str:
    """The prefix under which Bedrock makes a folder named after the job's id."""
    return f"{outputs_uri(run)}{submission.shard:05d}-{submission.ordinal}/"


def inputs_uri(run: Run) -> str:
    """Everything of the run that Bedrock reads."""
    return f"{run.staging.uri}submit/"


def outputs_uri(run: Run) -> str:
    """Everything of the run that Bedrock writes."""
    return f"{run.staging.uri}out/"


def job_id(arn: str) -> str:
    """The last part of a job's ARN: the name of its output folder."""
    return arn.rsplit("/", 1)[-1]


def results_prefix(output: str, arn: str) -> str:
    """Where a job's result files are, from the output URI that it was created with."""
    return f"{output.rstrip('/')}/{job_id(arn)}/"
