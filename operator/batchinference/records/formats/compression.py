"""Unpacking gzip and zstd as streams. Owns what a packed object may cost: memory and length.

Several members or frames behind each other are one stream, as the command-line tools have it.
Memory: a window of at most 32 MiB, and what one slice of packed bytes can become.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import zstandard

from batchinference.errors import Permanent
from batchinference.model.status import Reason
from batchinference.records.formats.naming import Compression

MAX_WINDOW = 32 << 20
"""Bytes that a zstd frame may look back; `zstd -20` is the highest level that stays below it."""

_OUT = 1 << 20
_ZSTD_SLICE = 1 << 10
"""Packed bytes handed to zstd at once. The densest block makes 128 KiB of four bytes, and zstd
gives back all that a slice becomes: 32 MiB at most."""

_MAGIC = {b"\x1f\x8b": ("gzip", ".gz"), b"\x28\xb5\x2f\xfd": ("zstd", ".zst")}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What unpacking may come to before it counts as an attack.

    Attributes:
        most: bytes; more than any run can hold.
        ratio: unpacked to packed bytes of the whole object. Rows of real tables stay below 100.
        free: unpacked bytes up to which the ratio does not matter.
    """

    most: int = 128 << 30
    ratio: int = 300
    free: int = 256 << 20

    def allowed(self, packed: int) -> int:
        """The bytes that an object of so many packed bytes may become."""
        return min(self.most, max(self.free, self.ratio * packed))


def unpacked(
    chunks: Iterable[bytes],
    compression: Compression,
    name: str,
    size: int,
    bounds: Bounds = Bounds(),
) -> Iterator[bytes]:
    """The unpacked bytes, in chunks of about 1 MiB.

    Args:
        chunks: the object's bytes.
        compression: not NONE.
        name: of the object, for messages.
        size: its packed bytes.
        bounds: what it may become.

    Raises:
        Permanent: InputUnreadable, it is not packed like that, is damaged or ends too early;
            InputTooLarge, it becomes more than `bounds` allow.
    """
    members = _gzip(chunks, name) if compression is Compression.GZIP else _zstd(chunks, name)
    allowed, made = bounds.allowed(size), 0
    for data in members:
        made += len(data)
        if made > allowed:
            raise Permanent(
                Reason.TOO_LARGE,
                f"{name} becomes more than {allowed} bytes when it is unpacked, out of {size}; "
                "that is no table of records. Unpack it yourself if it is meant",
            )
        yield data


def refuse_packed(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The same chunks, which are not to be packed any more.

    Raises:
        Permanent: InputUnreadable, they begin as a packed file does.
    """
    is_first = True
    for chunk in chunks:
        if is_first and chunk:
            is_first = False
            for magic, (what, suffix) in _MAGIC.items():
                if chunk.startswith(magic):
                    _unreadable(
                        f"{name} holds {what} data where text was expected; a packed input is "
                        f"packed once and its name ends in {suffix}"
                    )
        yield chunk


def _gzip(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    member = zlib.decompressobj(wbits=31)
    begun = whole = False
    for chunk in chunks:
        rest = chunk
        while rest:
            if member.eof:
                rest = rest.lstrip(b"\0")  # tapes and block devices fill up with these
                if not rest:
                    break
                member = zlib.decompressobj(wbits=31)
            begun = True
            try:
                data = member.decompress(rest, _OUT)
            except zlib.error as error:
                _damaged(name, "gzip", whole, str(error))
            rest = member.unused_data if member.eof else member.unconsumed_tail
            whole = whole or member.eof
            if data:
                yield data
    if not begun or not member.eof:
        _cut_short(name, "gzip")


def _zstd(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    context = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    frame = context.decompressobj()
    begun = whole = False
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        view = memoryview(chunk)
        for at in range(0, len(chunk), _ZSTD_SLICE):
            rest: memoryview | bytes = view[at : at + _ZSTD_SLICE]
            while rest:
                if frame.eof:
                    frame = context.decompressobj()
                begun = True
                try:
                    data = frame.decompress(rest)
                except zstandard.ZstdError as error:
                    _refuse_zstd(name, whole, str(error))
                rest = frame.unused_data if frame.eof else b""
                whole = whole or frame.eof
                held.append(data)
                size += len(data)
            if size >= _OUT:
                yield b"".join(held)
                held.clear()
                size = 0
    if size:
        yield b"".join(held)
    if not begun or not frame.eof:
        _cut_short(name, "zstd")


def _refuse_zstd(name: str, whole: bool, said: str) -> NoReturn:
    if "too much memory" in said:
        _unreadable(
            f"{name} needs a zstd window above {MAX_WINDOW >> 20} MiB; pack it with `zstd -19` "
            "or less, and without `--long` and `--ultra`"
        )
    _damaged(name, "zstd", whole, said)


def _damaged(name: str, what: str, whole: bool, said: str) -> NoReturn:
    where = " behind its first part" if whole else ""
    _unreadable(f"{name} is not valid {what} data{where} ({said}); write it anew")


def _cut_short(name: str, what: str) -> NoReturn:
    _unreadable(f"{name} ends in the middle of its {what} data; it was cut short, write it anew")


def _unreadable(message: str) -> NoReturn:
    raise Permanent(Reason.INPUT_UNREADABLE, message)
