"""`ports.BatchData` over the synchronous client: encode, upload, download, clean up.

Runs in a worker. Constant memory: uploads are read from staging while they are sent, downloads are
handed on in pieces. What a line means is in `results`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import IO, Any, cast
from urllib.parse import quote

import httpx2
import msgspec
from openai import APIStatusError, OpenAIError, Timeout

from batchinference.adapters.openai_batch.connection import connection, sync_client
from batchinference.adapters.openai_batch.download import download
from batchinference.adapters.openai_batch.faults import fault, message_of
from batchinference.adapters.openai_batch.names import file_name, file_prefix
from batchinference.adapters.openai_batch.results import result
from batchinference.adapters.openai_batch.stored_file import StoredFile
from batchinference.adapters.openai_batch.view import count, text, time_of
from batchinference.errors import Retry, Stalled
from batchinference.model.batch import SubmissionID
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.ports import ObjectStore, ResultLine, SourceChanged, UnsupportedRequest
from batchinference.records import codes
from batchinference.records.wire import wire_id

_TIMEOUT = Timeout(120.0, connect=10.0, pool=10.0)
_RETRIES = 2
_PENDING_S = 2.0
_PENDING_POLLS = 300
_PAGE = 100
_MAX_PAGES = 200
"""Pages of files that are looked through for what a crash left behind: 20,000 files."""
_CLOCK_SKEW = timedelta(hours=1)

_FAILED = (OpenAIError, httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError)

_encode = msgspec.json.Encoder().encode


class OpenAIData:
    """See `ports.BatchData`."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        secrets: Mapping[str, Mapping[str, str]],
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Make a client; no call is made yet.

        Args:
            settings: the provider's spec as the API server has it.
            secrets: resolved Secrets by role; `apiKey` and `caBundle` are read.
            sleep: how to wait between attempts.

        Raises:
            Stalled: the settings or the Secrets can't be used.
        """
        self._client = sync_client(connection(settings, secrets), _TIMEOUT, _RETRIES)
        self._sleep = sleep

    def close(self) -> None:
        """Release connections."""
        self._client.close()

    # ------------------------------------------------------------ records

    def encode(self, row: int, request: Mapping[str, Any], model: str) -> bytes:
        """See `ports.BatchData.encode`."""
        body = request["body"]
        if body.get("stream"):
            raise UnsupportedRequest(
                codes.STREAMING_UNSUPPORTED, "`body.stream` is true: a batch can't"
            )
        if not body.get("model"):
            body = {**body, "model": model}
        line = {"custom_id": wire_id(row), "method": "POST", "url": request["url"], "body": body}
        return _encode(line)

    def encode_body(self, row: int, url: str, body: bytes) -> bytes:
        """See `ports.BodyEncoder.encode_body`."""
        return b'{"custom_id":"%b","method":"POST","url":"%b","body":%b}' % (
            wire_id(row).encode(),
            url.encode(),
            body,
        )

    def decode(self, line: bytes) -> ResultLine:
        """See `ports.BatchData.decode`."""
        return result(line)

    # ------------------------------------------------------------ files

    def upload(self, staging: ObjectStore, uri: str, run: Run, submission: SubmissionID) -> str:
        """See `ports.BatchData.upload`; the input_ref is the file's id."""
        del run  # the submission says everything that a file carries
        name = file_name(submission)
        info = staging.head(uri)
        if info is None:
            raise Stalled(Reason.STAGING_UNAVAILABLE, f"The staged shard {uri} is gone.")
        try:
            created = self._client.files.with_raw_response.create(
                file=(name, cast("IO[bytes]", StoredFile(staging, info)), "application/jsonl"),
                purpose="batch",
            )
            found = _object(created.content)
        except SourceChanged as error:
            raise Stalled(
                Reason.STAGING_UNAVAILABLE, f"The staged shard {uri} was changed by somebody."
            ) from error
        except _FAILED as error:
            raise self._upload_fault(error, name) from error
        file_id = text(found.get("id"))
        if not file_id:
            raise Retry(Reason.PROVIDER_UNAVAILABLE, f"The upload of {name} gave no file id.")
        stored = count(found.get("bytes"))
        if stored and stored != info.size:
            self._delete(file_id)
            raise Retry(
                Reason.PROVIDER_UNAVAILABLE,
                f"The server stored {stored} of {info.size} bytes of {name}.",
            )
        self._wait_while_pending(file_id, text(found.get("status")))
        return file_id

    def _upload_fault(self, error: Exception, name: str) -> Exception:
        if isinstance(error, APIStatusError) and error.status_code in {400, 402, 413}:
            message = message_of(error).lower()
            if "storage" in message and any(w in message for w in ("limit", "quota", "exceed")):
                return Stalled(
                    Reason.QUOTA_WAIT,
                    f"The provider's file storage is full ({message_of(error)}); delete files.",
                )
        return fault(error, f"upload {name}")

    def _wait_while_pending(self, file_id: str, status: str) -> None:
        """Azure checks a file before it can be used; others have no such state, or no status."""
        for _ in range(_PENDING_POLLS):
            if status not in {"pending", "running"}:
                return
            self._sleep(_PENDING_S)
            try:
                status = text(_object(self._get(f"/files/{_quoted(file_id)}", {})).get("status"))
            except _FAILED as error:
                raise fault(error, f"read the file {file_id}") from error
        raise Retry(
            Reason.PROVIDER_UNAVAILABLE, f"The file {file_id} is still being checked by the server."
        )

    def open_results(self, files: Sequence[str]) -> Iterator[bytes]:
        """See `ports.BatchData.open_results`."""
        for file_id in files:
            last = b"\n"
            for piece in download(self._client, file_id, self._sleep):
                last = piece[-1:]
                yield piece
            if last != b"\n":
                yield b"\n"

    def delete_files(self, run: Run) -> None:
        """See `ports.BatchData.delete_files`."""
        known: dict[str, None] = {}
        for shard in run.shards:
            for submission in shard.submissions:
                known |= dict.fromkeys((submission.input_ref, *submission.files))
        for file_id in filter(None, known):
            self._delete(file_id)
        # The whole listing first: it goes on behind the last id of a page, which must still exist.
        for file_id in list(self._left_behind(run)):
            if file_id not in known:
                self._delete(file_id)

    def _left_behind(self, run: Run) -> Iterator[str]:
        """Ids of uploads with this run's name on them, whoever remembers them.

        The listing is only a broom: a server without one, or with odd paging, is no error.
        """
        oldest = run.created_at - _CLOCK_SKEW
        prefix = file_prefix(run.tag)
        query: dict[str, Any] = {"purpose": "batch", "order": "desc", "limit": _PAGE}
        seen: set[str] = set()
        for _ in range(_MAX_PAGES):
            try:
                page = _object(self._get("/files", query))
            except APIStatusError as error:
                if error.status_code in {400, 404, 405, 422, 501}:
                    return
                raise fault(error, "list files") from error
            except _FAILED as error:
                raise fault(error, "list files") from error
            found = page.get("data")
            items = [f for f in found if isinstance(f, Mapping)] if isinstance(found, list) else []
            ids = [text(item.get("id")) for item in items]
            if not ids or set(ids) <= seen:
                return
            for file_id, item in zip(ids, items, strict=True):
                if (
                    file_id
                    and file_id not in seen
                    and text(item.get("filename")).startswith(prefix)
                ):
                    yield file_id
            seen.update(ids)
            times = [time_of(item.get("created_at")) for item in items]
            if page.get("has_more") is False or all(t is not None and t < oldest for t in times):
                return
            query["after"] = ids[-1]

    def _delete(self, file_id: str) -> None:
        try:
            self._client.delete(f"/files/{_quoted(file_id)}", cast_to=httpx2.Response)
        except APIStatusError as error:
            # 400: some servers say so of an id that is none, such as a batch's.
            if error.status_code not in {400, 404, 405, 410}:
                raise fault(error, f"delete the file {file_id}") from error
        except _FAILED as error:
            raise fault(error, f"delete the file {file_id}") from error

    def _get(self, path: str, query: Mapping[str, Any]) -> bytes:
        answer = self._client.get(path, cast_to=httpx2.Response, options={"params": dict(query)})
        return answer.content


def _quoted(file_id: str) -> str:
    return quote(file_id, safe="")


def _object(content: bytes) -> Mapping[str, Any]:
    """The JSON object, or an empty one for anything else."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}
