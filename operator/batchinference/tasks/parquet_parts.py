"""Result lines as Parquet. Owns the columns.

    row            int64, not null
    id, custom_id  string
    status_code    int32, null without a response
    request_id     string, null without a response
    body           string, the response's body as JSON text, null without a response
    error_code     string, null for an answer
    error_message  string, null for an answer

The same lines give the same bytes with the same release of pyarrow. Memory: the lines of one row
group, some megabytes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from batchinference.ports import ResultPlace
from batchinference.tasks.parts import LineParts, Opener


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct):
    code: str
    message: str


class _Line(msgspec.Struct):
    id: str
    custom_id: str | None
    response: _Response | None
    error: _Error | None
    row: int


_decode = msgspec.json.Decoder(_Line).decode


class _Sink:
    """What a Parquet file is written to; it is taken away piece by piece."""

    closed = False

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._size = 0

    def write(self, data: Any) -> int:
        self._held.append(bytes(data))
        self._size += len(self._held[-1])
        return len(self._held[-1])

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """What was written stays to be taken."""

    def taken(self) -> bytes:
        data = b"".join(self._held)
        self._held.clear()
        return data


class ParquetParts(LineParts):
    """Parts of Parquet; every flush is a row group."""

    def __init__(self, place: ResultPlace, kind: str, part_bytes: int, part: Opener) -> None:
        """See `LineParts`."""
        import pyarrow as pa  # noqa: PLC0415 - tens of megabytes that only Parquet needs
        from pyarrow import parquet  # noqa: PLC0415

        super().__init__(place, kind, part_bytes, part)
        self._arrow, self._parquet = pa, parquet
        self._schema = pa.schema(
            [
                pa.field("row", pa.int64(), nullable=False),
                ("id", pa.string()),
                ("custom_id", pa.string()),
                ("status_code", pa.int32()),
                ("request_id", pa.string()),
                ("body", pa.string()),
                ("error_code", pa.string()),
                ("error_message", pa.string()),
            ]
        )
        self._sink = _Sink()
        self._file: Any = None

    def _encoded(self, lines: list[bytes]) -> bytes:
        if self._file is None:
            self._sink = _Sink()
            self._file = self._parquet.ParquetWriter(
                self._arrow.PythonFile(self._sink, mode="w"), self._schema, compression="zstd"
            )
        rows = [_values(_decode(line)) for line in lines]
        self._file.write_table(self._arrow.Table.from_pylist(rows, schema=self._schema))
        return self._sink.taken()

    def _end(self) -> bytes:
        self._file.close()
        self._file = None
        return self._sink.taken()


def _values(line: _Line) -> dict[str, Any]:
    response, error = line.response, line.error
    return {
        "row": line.row,
        "id": line.id,
        "custom_id": line.custom_id,
        "status_code": response.status_code if response else None,
        "request_id": response.request_id if response else None,
        "body": bytes(response.body).decode() if response else None,
        "error_code": error.code if error else None,
        "error_message": error.message if error else None,
    }
