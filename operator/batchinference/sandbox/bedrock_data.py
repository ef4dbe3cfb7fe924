"""A job's bytes: input from S3 to local files, results from local files to S3.

Owns the layout under the output prefix. Talks to S3 over HTTP with boto3, streaming. Must not
know states or records.
"""

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SUFFIX = ".jsonl"


class InputUnreadable(Exception):
    """S3 refused what the job needs; the text is the job's message."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Input objects as local files. `relative` is the key below the input location."""

    keys: list[str]
    relative: list[str]
    paths: list[Path]


class JobData:
    """Moves jobs' bytes with the service role's own identity."""

    def __init__(self, s3_url: str, access_key: str, folder: Path) -> None:
        self._s3_url = s3_url
        self._access_key = access_key
        self._folder = folder

    @cached_property
    def _s3(self) -> "S3Client":
        import boto3  # noqa: PLC0415  # most of a second, only where a job runs
        from botocore.config import Config  # noqa: PLC0415  # comes with boto3

        return boto3.client(
            "s3",
            endpoint_url=self._s3_url,
            region_name="us-east-1",
            aws_access_key_id=self._access_key,
            aws_secret_access_key="unchecked",  # noqa: S106  # loopback, not a secret
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}),
        )

    def folder_of(self, job_id: str) -> Path:
        """Make the job's local folder."""
        folder = self._folder / job_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop(self, folder: Path) -> None:
        """Remove a job's local folder."""
        shutil.rmtree(folder, ignore_errors=True)

    def fetch(self, folder: Path, request: dict[str, Any], account: str) -> Inputs:
        """Bring a job's input to local files.

        Raises:
            InputUnreadable: the bucket or object cannot be read, or is not a .jsonl file.
        """
        from botocore.exceptions import ClientError  # noqa: PLC0415  # comes with boto3

        config = request["inputDataConfig"]["s3InputDataConfig"]
        bucket, _, key = config["s3Uri"].removeprefix("s3://").partition("/")
        _check_owner(config, account, "GetObject", bucket, key)
        output = request["outputDataConfig"]["s3OutputDataConfig"]
        output_bucket, _, output_key = output["s3Uri"].removeprefix("s3://").partition("/")
        _check_owner(output, account, "PutObject", output_bucket, output_key)
        try:
            self._s3.head_bucket(Bucket=output_bucket)
        except ClientError as error:
            raise _denied("PutObject", output_bucket, output_key) from error
        try:
            keys = self._keys(bucket, key)
        except ClientError as error:
            raise _denied("GetObject", bucket, key) from error
        paths = []
        for number, one in enumerate(keys):
            path = folder / f"{number:05d}{_SUFFIX}"
            try:
                body = self._s3.get_object(Bucket=bucket, Key=one)["Body"]
                with path.open("wb") as file:
                    shutil.copyfileobj(body, file, 1 << 20)
            except ClientError as error:
                raise _denied("GetObject", bucket, one) from error
            paths.append(path)
        base = key.rpartition("/")[0] if keys == [key] else key.rstrip("/")
        relative = [one[len(base) :].lstrip("/") for one in keys]
        return Inputs(keys, relative, paths)

    def _keys(self, bucket: str, key: str) -> list[str]:
        """List the input objects: one file, or every .jsonl file under a folder."""
        if key.endswith(_SUFFIX):
            self._s3.head_object(Bucket=bucket, Key=key)
            return [key]
        prefix = f"{key.rstrip('/')}/" if key else ""
        found: list[str] = []
        for page in self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=prefix
        ):
            found += [one["Key"] for one in page.get("Contents", ())]
        return sorted(one for one in found if one.endswith(_SUFFIX))

    def store(
        self,
        prefix: str,
        inputs: Inputs,
        outputs: list[Path],
        manifest: dict[str, int] | None,
    ) -> None:
        """Write the results below `prefix`: one .out per input file, the manifest last.

        Raises:
            InputUnreadable: the bucket cannot be written.
        """
        from boto3.exceptions import S3UploadFailedError  # noqa: PLC0415  # comes with boto3
        from botocore.exceptions import ClientError  # noqa: PLC0415  # comes with boto3

        bucket, _, key = prefix.removeprefix("s3://").partition("/")
        try:
            for relative, path in zip(inputs.relative, outputs, strict=True):
                self._s3.upload_file(str(path), bucket, f"{key}{relative}.out")
            if manifest is not None:
                self._s3.put_object(
                    Bucket=bucket, Key=f"{key}manifest.json.out", Body=json.dumps(manifest).encode()
                )
        except (ClientError, S3UploadFailedError) as error:
            raise _denied("PutObject", bucket, key) from error


def _check_owner(config: dict[str, Any], account: str, action: str, bucket: str, key: str) -> None:
    if config.get("s3BucketOwner", account) != account:
        raise _denied(action, bucket, key)


def _denied(action: str, bucket: str, key: str) -> InputUnreadable:
    return InputUnreadable(
        f"Could not validate {action} permissions to access Amazon S3 bucket: {bucket} "
        f"at key location: {key}."
    )
