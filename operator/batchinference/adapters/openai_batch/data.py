"""`ports.BatchData` over the synchronous client: encode, upload, download, clean up.

Runs in a worker. Constant memory: uploads are read from staging while they are sent, downloads are
handed on in pieces. What a line means is in `results`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import quote

import httpx2
import msgspec
from openai import APIStatusError, OpenAIError

from batchinference.adapters.openai_batch.connection import (
    UPLOADED_S,
    connection,
    sync_clients,
)
from batchinference.adapters.openai_batch.download import download
from batchinference.adapters.openai_batch.faults import fault, is_json, is_too_large, message_of
from batchinference.adapters.openai_batch.names import file_name, file_prefix
from batchinference.adapters.openai_batch.results import result
from batchinference.adapters.openai_batch.stored_file import StoredFile
from batchinference.adapters.openai_batch.view import count, text, time_of
from batchinference.adapters.transfers import TRANSFERS, Transfers
from batchinference.errors import Fault, Permanent, Retry, Stalled, Waiting
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
from batchinference.records.wire import wire_id

if TYPE_CHECKING:
    from openai._types import RequestOptions

_CHECKING = {"pending", "running"}
"""Statuses of a file that can't be used yet: Azure looks at files first."""
_CHECKING_S = 5.0
_POLLS = 6
_POLL_S = 2.0
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
        transfers: Transfers = TRANSFERS,
    ) -> None:
        """Make a client; no call is made yet.

        Args:
            settings: the provider's spec as the API server has it.
            secrets: resolved Secrets by role; `apiKey` and `caBundle` are read.
            sleep: how to wait between attempts.
            transfers: where calls and downloads are counted.

        Raises:
            Stalled: the settings or the Secrets can't be used.
        """
        self._client, self._uploading = sync_clients(connection(settings, secrets))
        self._sleep = sleep
        self._transfers = transfers

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
        # One that an earlier try sent and could not use yet, or that was sent before a crash.
        found = self._stored(name, info.size)
        if found is None:
            found = self._sent(name, staging, info)
        file_id, status = text(found.get("id")), text(found.get("status"))
        if status in _CHECKING:
            self._wait(name, info.size, file_id)
        return file_id

    def _sent(self, name: str, staging: ObjectStore, info: ObjectInfo) -> Mapping[str, Any]:
        """The file, after all of it was sent."""
        try:
            found = self._create(name, StoredFile(staging, info), info.size)
        except SourceChanged as error:
            raise Stalled(
                Reason.STAGING_UNAVAILABLE, f"The staged shard {info.uri} was changed by somebody."
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
        return found

    def _create(self, name: str, content: StoredFile, size: int) -> Mapping[str, Any]:
        file = (name, cast("IO[bytes]", content), "application/jsonl")
        with self._call(f"The upload of {name}", size):
            # Once: a later try finds the file by its name, where this one did reach the server.
            files = self._uploading.files.with_raw_response
            answer = files.create(file=file, purpose="batch", timeout=UPLOADED_S)
            return _object(answer.content)

    def _upload_fault(self, error: Exception, name: str) -> Exception:
        if isinstance(error, APIStatusError) and error.status_code in {400, 402, 413}:
            message = message_of(error).lower()
            if "storage" in message and any(w in message for w in ("limit", "quota", "exceed")):
                return Stalled(
                    Reason.QUOTA_WAIT,
                    f"The provider's file storage is full ({message_of(error)}); delete files.",
                )
        if isinstance(error, APIStatusError) and is_too_large(error):
            return Permanent(
                Reason.BATCH_TOO_LARGE,
                f"The provider takes no file of that size (HTTP {error.status_code}: "
                f"{message_of(error)}).",
            )
        return fault(error, f"upload {name}")

    def _stored(self, name: str, size: int) -> Mapping[str, Any] | None:
        """The file of that name among the newest ones, if it is whole. A name belongs to one
        ordinal and one content, so it is as good as one that is sent now. Only to save an upload:
        a server that can't list has none, and what else is wrong is told by the upload.
        """
        try:
            page = self._listing({"purpose": "batch", "order": "desc", "limit": _PAGE})
        except Fault:
            return None
        for item in _items(page):
            is_whole = count(item.get("bytes")) == size and item.get("status") != "error"
            if is_whole and text(item.get("id")) and item.get("filename") == name:
                return item
        return None

    def _wait(self, name: str, size: int, file_id: str) -> None:
        """The server still looks at the file. A later try finds it; only where it would not, for
        want of a listing, is this worker held for a moment.
        """
        if self._stored(name, size) is None:
            for _ in range(_POLLS):
                self._sleep(_POLL_S)
                try:
                    found = _object(self._get(f"/files/{_quoted(file_id)}", {}))
                except _FAILED as error:
                    raise fault(error, f"read the file {file_id}") from error
                if text(found.get("status")) not in _CHECKING:
                    return
        raise Waiting(
            Reason.PENDING, f"The server is still checking the uploaded file {name}.", _CHECKING_S
        )

    def open_results(self, files: Sequence[str]) -> Iterator[bytes]:
        """See `ports.BatchData.open_results`."""
        for file_id in files:
            last = b"\n"
            for piece in download(self._client, file_id, self._sleep, self._transfers):
                last = piece[-1:]
                yield piece
            if last != b"\n":
                yield b"\n"

    def shows(self, batch_id: str) -> bool:
        """See `ports.ShowsBatches.shows`."""
        try:
            self._get(f"/batches/{_quoted(batch_id)}", {})
        except APIStatusError as error:
            if error.status_code == 404 and is_json(error):
                return False
            raise fault(error, f"read the batch {batch_id}") from error
        except _FAILED as error:
            raise fault(error, f"read the batch {batch_id}") from error
        return True

    def delete_files(self, run: Run) -> None:
        """See `ports.BatchData.delete_files`."""
        known: dict[str, None] = {}
        for shard in run.shards:
            for submission in shard.made:
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
            page = self._listing(query)
            items = _items(page)
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

    def _listing(self, query: Mapping[str, Any]) -> Mapping[str, Any]:
        """A page of files; an empty one from a server that does not list."""
        try:
            return _object(self._get("/files", query))
        except APIStatusError as error:
            if error.status_code in {400, 404, 405, 422, 501}:
                return {}
            raise fault(error, "list files") from error
        except _FAILED as error:
            raise fault(error, "list files") from error

    def _delete(self, file_id: str) -> None:
        path = f"/files/{_quoted(file_id)}"
        try:
            with self._call(f"Deleting the file {file_id}"):
                self._client.delete(path, cast_to=httpx2.Response)
        except APIStatusError as error:
            # 400: some servers say so of an id that is none, such as a batch's.
            if error.status_code not in {400, 404, 405, 410}:
                raise fault(error, f"delete the file {file_id}") from error
        except _FAILED as error:
            raise fault(error, f"delete the file {file_id}") from error

    def _get(self, path: str, query: Mapping[str, Any]) -> bytes:
        options: RequestOptions = {"params": dict(query)}
        with self._call(f"Reading {path}"):
            return self._client.get(path, cast_to=httpx2.Response, options=options).content

    def _call(self, what: str, size: int = 0) -> AbstractContextManager[None]:
        return self._transfers.call(what, Reason.PROVIDER_UNAVAILABLE, size)


def _quoted(file_id: str) -> str:
    return quote(file_id, safe="")


def _items(page: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = page.get("data")
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []


def _object(content: bytes) -> Mapping[str, Any]:
    """The JSON object, or an empty one for anything else."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}
