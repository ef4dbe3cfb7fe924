"""What staging knows of an input, and how far it came; parts of the journal.

Frozen like the rest of it: no record contents, and every field added later needs a default.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InputSnapshot:
    """What the input was at the first look.

    Attributes:
        source: where, for people.
        fingerprint: sha256 over every object's name, version, ETag and size.
    """

    source: str
    objects: int
    size: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that is never sent: its line (1-based), a stable code, and what is wrong with it.

    `is_row`: of a table; it has no line of its own, and `line` counts the rows behind the header.
    """

    line: int
    code: str
    message: str
    source: str = ""
    is_row: bool = False

    @property
    def place(self) -> str:
        """Where it is, for people."""
        at = f"{self.source} " if self.source else ""
        return f"{at}{'row' if self.is_row else 'line'} {self.line}"


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where staging goes on: the state after the last finished shard.

    Attributes:
        object_index, offset: the byte in the n-th object of the input where the next line starts.
        line: lines read of that object; row: rows numbered so far (bad ones included).
        item: rows of the next line that are in a shard already: a record that becomes several.
        bad: bad records so far.
        fingerprint: of the input as this pass reads it; another one makes the pass start again.
        native: the records so far are in the provider's own format.
    """

    object_index: int
    offset: int
    line: int
    row: int
    bad: int
    fingerprint: str = ""
    native: bool = False
    item: int = 0


@dataclass(frozen=True, slots=True)
class Staged:
    """What staging found.

    Attributes:
        rows: as many as were numbered, bad ones included; bad: records that are never sent.
        several: rows besides the first of records that go to the provider as several.
        size, tokens: of the encoded shards; tokens are an estimate.
        first_bad: the first ten bad ones.
        native: the records are in the provider's own format (Bedrock's `modelInput`).
    """

    rows: int
    bad: int
    size: int
    tokens: int
    first_bad: tuple[BadRecord, ...] = ()
    native: bool = False
    several: int = 0

    @property
    def records(self) -> int:
        """Records of the input, bad ones included."""
        return self.rows - self.several
