"""Where things are in a run's staging. Owns the names, and nothing of what is in them.

    shards/00000.jsonl      encoded requests of shard 0, as the provider gets them
    shards/00000.idx        its rows, offsets, lengths and token estimates (`records.index`)
    rows/00000.jsonl        the row table of the input's first segment (`records.rowtable`)
    stage.json              the pass is over: how many rows and segments there are
    answers/00000.jsonl     final answers and errors of shard 0, by row (`records.tails`)
    answers/00000.unbilled  its rows that were certainly not billed (`records.index.pack_rows`)
    answers/00000.json      what the two came to, and of which batches (`tasks.collect`)

A segment is the part of the input from one shard's first record to the next one's; only the shards
of the staging pass have one, shards of pooled records don't.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchinference.model.run import Run


@dataclass(frozen=True, slots=True)
class Layout:
    """URIs under a run's staging prefix."""

    prefix: str

    def shard(self, index: int) -> str:
        """The encoded shard; what UPLOAD hands to the provider."""
        return f"{self.prefix}shards/{index:05d}.jsonl"

    def index(self, index: int) -> str:
        """The shard's index."""
        return f"{self.prefix}shards/{index:05d}.idx"

    def rows(self, segment: int) -> str:
        """A segment of the row table."""
        return f"{self.prefix}rows/{segment:05d}.jsonl"

    @property
    def stage(self) -> str:
        """The end of the staging pass."""
        return f"{self.prefix}stage.json"

    def answers(self, index: int) -> str:
        """A collected shard's results."""
        return f"{self.prefix}answers/{index:05d}.jsonl"

    def unbilled(self, index: int) -> str:
        """A collected shard's unbilled rows."""
        return f"{self.prefix}answers/{index:05d}.unbilled"

    def collected(self, index: int) -> str:
        """What the collection of a shard came to."""
        return f"{self.prefix}answers/{index:05d}.json"


def layout(run: Run) -> Layout:
    """The layout of a run's staging."""
    uri = run.staging.uri
    return Layout(uri if uri.endswith("/") else f"{uri}/")
