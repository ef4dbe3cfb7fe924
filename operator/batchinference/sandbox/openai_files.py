"""OpenAI's /v1/files: upload streamed to disk, list, get, content, delete.

Owns the stored files. Must not know batches, except that a file in use is kept on disk.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from aiohttp import BodyPartReader, MultipartReader, web

from .clock import Clock
from .gateway import ApiError, Call, stream_file
from .refusals import Refusal
from .settings import InForce

PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
_BATCH_LIFE_S = 30 * 86_400
_MAX_BYTES = 512 * 1024 * 1024
_CHUNK = 1 << 18


@dataclass(slots=True)
class StoredFile:
    """A file of one project; `expires_at` in Unix seconds."""

    id: str
    project: str
    path: Path
    filename: str
    purpose: str
    size: int
    created_at: float
    expires_at: float | None
    deleted: bool = False
    readers: int = 0

    def view(self) -> dict[str, Any]:
        """Render the file object."""
        return {
            "object": "file",
            "id": self.id,
            "purpose": self.purpose,
            "filename": self.filename,
            "bytes": self.size,
            "created_at": int(self.created_at),
            "expires_at": None if self.expires_at is None else int(self.expires_at),
            "status": "processed",
            "status_details": None,
        }


@dataclass(slots=True)
class _Upload:
    path: Path
    filename: str
    size: int
    fields: dict[str, str]


class Named(Protocol):
    """What a page may hold."""

    @property
    def id(self) -> str:
        """Return the id that a cursor names."""
        ...


def refused(refusal: Refusal) -> ApiError:
    """Render a refusal as OpenAI's HTTP answer."""
    return ApiError(web.json_response(refusal.openai_body(), status=refusal.status))


def body_of(text: str) -> dict[str, Any]:
    """Parse a JSON request body.

    Raises:
        ApiError: it is not a JSON object.
    """
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise refused(Refusal(400, "We could not parse the JSON body of your request."))
    return body


def limit_of(call: Call, maximum: int, default: int) -> int:
    """Read the `limit` of a list.

    Raises:
        ApiError: it is not a number or out of bounds.
    """
    text = call.request.query.get("limit")
    if text is None:
        return default
    if not text.lstrip("-").isdigit():
        words = "Invalid type for 'limit': expected an integer, but got a string instead."
        raise refused(Refusal(400, words, "invalid_type", "limit"))
    limit = int(text)
    if limit > maximum:
        words = (
            f"Invalid 'limit': integer above maximum value. Expected a value <= {maximum}, "
            f"but got {limit} instead."
        )
        raise refused(Refusal(400, words, "integer_above_max_value", "limit"))
    if limit < 1:
        words = (
            "Invalid 'limit': integer below minimum value. Expected a value >= 1, "
            f"but got {limit} instead."
        )
        raise refused(Refusal(400, words, "integer_below_min_value", "limit"))
    return limit


def page_of(
    found: Sequence[Named], call: Call, limit: int, view: Callable[[Any], dict[str, Any]]
) -> dict[str, Any]:
    """Cut a page out of things with an `id`, after the one that `after` names.

    Raises:
        ApiError: `after` names nothing in the list.
    """
    start = 0
    if after := call.request.query.get("after"):
        for place, one in enumerate(found):
            if one.id == after:
                start = place + 1
                break
        else:
            raise refused(Refusal(400, f"Invalid cursor: no object '{after}'.", None, "after"))
    page = found[start : start + limit]
    return {
        "object": "list",
        "data": [view(one) for one in page],
        "has_more": start + limit < len(found),
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
    }


class Files:
    """The files of all projects."""

    def __init__(self, clock: Clock, folder: Path, settings: InForce) -> None:
        self._clock = clock
        self._folder = folder
        self._settings = settings
        self._files: dict[str, StoredFile] = {}

    def find(self, file_id: str, project: str) -> StoredFile | None:
        """Return a file that exists, belongs to the project and has not expired."""
        file = self._files.get(file_id)
        if file is None or file.project != project or file.deleted:
            return None
        if file.expires_at is not None and file.expires_at <= self._clock.now():
            return None
        return file

    def name_of(self, file_id: str) -> str | None:
        """Return the name a file has or had."""
        file = self._files.get(file_id)
        return None if file is None else file.filename

    def visible_to_batches(self, file: StoredFile) -> bool:
        """Tell whether a batch would find the file already."""
        return self._clock.now() >= file.created_at + self._settings.openai.file_lag_s

    def new_path(self, suffix: str) -> Path:
        """Return an unused path for a file's content."""
        return self._folder / f"{secrets.token_hex(12)}{suffix}"

    def add(
        self, project: str, path: Path, filename: str, purpose: str, lifetime_s: float | None
    ) -> StoredFile:
        """Take a local file in; it becomes the store's own."""
        now = self._clock.now()
        expires_at = None if lifetime_s is None else now + lifetime_s
        file = StoredFile(
            id=f"file-{secrets.token_urlsafe(16).replace('-', 'a').replace('_', 'b')}",
            project=project,
            path=path,
            filename=filename,
            purpose=purpose,
            size=path.stat().st_size,
            created_at=now,
            expires_at=expires_at,
        )
        self._files[file.id] = file
        return file

    def claim(self, file: StoredFile) -> None:
        """Keep a file's content on disk while a batch needs it, deleted or not."""
        file.readers += 1

    def release(self, file: StoredFile) -> None:
        """Give back what `claim` took."""
        file.readers -= 1
        self._drop_if_unused(file)

    def _drop_if_unused(self, file: StoredFile) -> None:
        if file.deleted and file.readers == 0:
            file.path.unlink(missing_ok=True)

    def all(self) -> Iterable[StoredFile]:
        """Return every file that was ever stored."""
        return self._files.values()

    def clear(self) -> None:
        """Forget all files."""
        for file in self._files.values():
            file.path.unlink(missing_ok=True)
        self._files.clear()

    async def read_upload(self, call: Call) -> str:
        """Stream the multipart body to disk; the subject of the call is the file's name."""
        if call.upload is not None:
            return str(call.upload.filename)
        if not call.request.content_type.startswith("multipart/"):
            raise refused(Refusal(400, "Missing required parameter: 'file'.",
                                  "missing_required_parameter", "file"))  # fmt: skip
        upload = _Upload(self.new_path(".upload"), "", 0, {})
        try:
            await _receive(await call.request.multipart(), upload)
        except BaseException:
            upload.path.unlink(missing_ok=True)  # the client went away in the middle
            raise
        call.upload = upload
        return upload.filename

    async def create(self, call: Call) -> web.Response:
        """POST /v1/files."""
        await self.read_upload(call)
        upload: _Upload = call.upload
        try:
            lifetime_s = self._checked(upload)
        except Refusal as refusal:
            upload.path.unlink(missing_ok=True)
            raise refused(refusal) from refusal
        file = self.add(
            call.scope, upload.path, upload.filename, upload.fields["purpose"], lifetime_s
        )
        return web.json_response(file.view())

    def _checked(self, upload: _Upload) -> float | None:
        """Check an upload and return its lifetime in seconds."""
        fields = upload.fields
        for key in fields:
            if key not in {"purpose", "expires_after[anchor]", "expires_after[seconds]"}:
                raise Refusal(400, f"Unknown parameter: '{key}'.", "unknown_parameter", key)
        if not upload.filename:
            raise _missing("file")
        if "purpose" not in fields:
            raise _missing("purpose")
        purpose = fields["purpose"]
        if purpose not in PURPOSES:
            known = ", ".join(f"'{one}'" for one in PURPOSES)
            raise Refusal(
                400,
                f"Invalid value: '{purpose}'. Supported values are: {known}.",
                "invalid_value",
                "purpose",
            )
        if upload.size > _MAX_BYTES:
            raise Refusal(413, "Maximum content size limit (536870912) exceeded.")
        if purpose == "batch":
            _check_batch_file(upload, self._settings.openai.max_batch_file_bytes)
        return _lifetime_s(fields, purpose)

    async def list(self, call: Call) -> web.Response:
        """GET /v1/files."""
        query = call.request.query
        order = query.get("order", "desc")
        if order not in {"asc", "desc"}:
            text = f"Invalid value: '{order}'. Supported values are: 'asc', 'desc'."
            raise refused(Refusal(400, text, "invalid_value", "order"))
        purpose = query.get("purpose")
        limit = limit_of(call, 10_000, 10_000)
        found = [
            file
            for file in self._files.values()
            if self.find(file.id, call.scope) and purpose in {None, file.purpose}
        ]
        if order == "desc":
            found.reverse()
        return web.json_response(page_of(found, call, limit, StoredFile.view))

    def _named(self, call: Call) -> StoredFile:
        file_id = call.request.match_info["id"]
        file = self.find(file_id, call.scope)
        if file is None:
            raise refused(Refusal(404, f"No such File object: {file_id}", None, "id"))
        return file

    async def subject(self, call: Call) -> str:
        """Return what fault rules may match: the file's id and name."""
        file_id = call.request.match_info["id"]
        return f"{file_id} {self.name_of(file_id) or ''}"

    async def retrieve(self, call: Call) -> web.Response:
        """GET /v1/files/{id}."""
        return web.json_response(self._named(call).view())

    async def content(self, call: Call) -> web.Response:
        """GET /v1/files/{id}/content; a Range header is ignored, as some servers do."""
        file = self._named(call)
        self.claim(file)
        try:
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Disposition": f'attachment; filename="{file.filename}"',
            }
            return await stream_file(call, str(file.path), file.size, headers)
        finally:
            self.release(file)

    async def delete(self, call: Call) -> web.Response:
        """DELETE /v1/files/{id}."""
        file = self._named(call)
        file.deleted = True
        self._drop_if_unused(file)
        return web.json_response({"object": "file", "id": file.id, "deleted": True})


async def _receive(reader: MultipartReader, upload: _Upload) -> None:
    """Stream the parts of a form to disk."""
    with upload.path.open("wb") as out:
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader):
                continue
            if part.name == "file":
                upload.filename = part.filename or ""
                while chunk := await part.read_chunk(_CHUNK):
                    upload.size += out.write(chunk)
            else:
                upload.fields[part.name or ""] = await part.text()


def _missing(name: str) -> Refusal:
    return Refusal(
        400, f"Missing required parameter: '{name}'.", "missing_required_parameter", name
    )


def _check_batch_file(upload: _Upload, max_bytes: int) -> None:
    if not upload.filename.endswith(".jsonl"):
        raise Refusal(400, "Invalid file format for Batch API. Must be .jsonl", None, "file")
    if upload.size > max_bytes:
        raise Refusal(
            400,
            f"The file has {upload.size} bytes; batch input files may have {max_bytes} at most.",
            "file_too_large",
            "file",
        )
    if upload.size == 0:
        raise Refusal(400, "Invalid file format. The file is empty.", None, "file")
    with upload.path.open("rb") as file:
        for line in file:
            try:
                if isinstance(json.loads(line), dict):
                    return
            except ValueError:
                continue  # some malformed lines are found in validation
    raise Refusal(400, "Invalid file format. The file must be JSONL.", None, "file")


def _lifetime_s(fields: dict[str, str], purpose: str) -> float | None:
    anchor = fields.get("expires_after[anchor]")
    seconds = fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return _BATCH_LIFE_S if purpose == "batch" else None
    return check_expiry({"anchor": anchor, "seconds": int(seconds) if seconds else None})


def check_expiry(given: dict[str, Any], name: Literal["expires_after", "output_expires_after"] =
                 "expires_after") -> float:  # fmt: skip
    """Check an expiry policy and return its seconds.

    Raises:
        Refusal: a member is missing or out of bounds.
    """
    if given.get("anchor") != "created_at":
        text = f"Invalid value: '{given.get('anchor')}'. Supported values are: 'created_at'."
        raise Refusal(400, text, "invalid_value", f"{name}.anchor")
    seconds = given.get("seconds")
    if not isinstance(seconds, int) or not 3600 <= seconds <= 2_592_000:
        text = f"Invalid '{name}.seconds': expected an integer between 3600 and 2592000."
        raise Refusal(400, text, "invalid_value", f"{name}.seconds")
    return float(seconds)
