"""What an input object holds, by its name and by what the job says. Owns the suffixes.

A suffix of compression stands behind that of the format (`rows.csv.gz`) and counts always; that of
the format counts only where the job leaves its `format` unset.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from batchinference.model.job import InputFormat


class Compression(StrEnum):
    """How an object is packed, as its name ends."""

    NONE = ""
    GZIP = ".gz"
    ZSTD = ".zst"


@dataclass(frozen=True, slots=True)
class Encoding:
    """What an object holds."""

    format: InputFormat = InputFormat.JSONL
    compression: Compression = Compression.NONE

    @property
    def is_plain(self) -> bool:
        """Its bytes are lines of JSON as they stand."""
        return self == Encoding()

    @property
    def is_table(self) -> bool:
        """Its records are rows of a table, without lines of their own."""
        return self.format is not InputFormat.JSONL


_FORMATS = {".csv": InputFormat.CSV, ".parquet": InputFormat.PARQUET}


def encoding_of(name: str, stated: InputFormat | None = None) -> Encoding:
    """What the object of that name holds; `stated` is the job's `spec.input.format`."""
    bare = name.lower()
    compression = Compression.NONE
    for known in (Compression.GZIP, Compression.ZSTD):
        if bare.endswith(known.value):
            compression, bare = known, bare.removesuffix(known.value)
            break
    by_name = next((f for suffix, f in _FORMATS.items() if bare.endswith(suffix)), None)
    return Encoding(stated or by_name or InputFormat.JSONL, compression)
