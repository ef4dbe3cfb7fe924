"""Parquet as lines of JSON, one object for each row. Owns which JSON value a column's value is.

    numbers, texts, booleans, lists, structs   the same
    null                                       the member is absent
    dates, times                               text, ISO 8601
    decimals                                   text, with all digits
    binary                                     text, base64
    NaN and infinities                         absent: JSON has none

Memory: some rows of one row group at a time; pages are read as they are needed.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from batchinference.errors import Permanent
from batchinference.model.status import Reason

_BATCH_ROWS = 256
_BUFFER = 1 << 20


def parquet_lines(file: Path, name: str) -> Iterator[bytes]:
    """The rows as JSON lines with their newlines, in chunks.

    Args:
        file: the whole file on local disk.
        name: of the object that it is a copy of, for messages.

    Raises:
        Permanent: InputUnreadable, it is no Parquet file.
    """
    import pyarrow as pa  # noqa: PLC0415 - tens of megabytes that only Parquet needs
    from pyarrow import parquet  # noqa: PLC0415

    encode = msgspec.json.Encoder().encode
    try:
        with parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as opened:
            schema = _readable(opened.schema_arrow)
            for batch in opened.iter_batches(batch_size=_BATCH_ROWS):
                rows = batch.cast(schema, safe=False).to_pylist()
                yield b"".join([encode(_value(row)) + b"\n" for row in rows])
    except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's, not the file's
        # Arrow's own words may quote values; the kind of error and the place are all that is told.
        raise Permanent(
            Reason.INPUT_UNREADABLE,
            f"{name} can't be read as Parquet ({type(error).__name__}); write it anew, without "
            "encryption and with columns of plain types",
        ) from error


def _readable(schema: Any) -> Any:
    """The schema with times that Python has: of nanoseconds only whole microseconds are kept."""
    import pyarrow as pa  # noqa: PLC0415

    def plain(kind: Any) -> Any:
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            return pa.timestamp("us", tz=kind.tz)
        if pa.types.is_time64(kind):
            return pa.time64("us")
        if pa.types.is_duration(kind):
            return pa.duration("us")
        return kind

    return pa.schema([field.with_type(plain(field.type)) for field in schema])


def _value(value: Any) -> Any:
    """The value as JSON has it; members without one are left out."""
    if isinstance(value, dict):
        inner = ((str(key), _value(item)) for key, item in value.items())
        return {key: item for key, item in inner if item is not None}
    if isinstance(value, list):
        return [_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple):  # the pairs of a map
        return [_value(item) for item in value]
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    return value
