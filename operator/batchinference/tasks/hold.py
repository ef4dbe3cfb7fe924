"""Whether a FINISH may still write to its output place. Knows nothing of what is written.

No store removes or writes on condition of another object, so between a look and the call after it
there is a moment left; the looks are where a task may have slept for long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from batchinference.core.holding import handed_over
from batchinference.errors import Retry, Stalled
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.ports import ObjectInfo, ObjectWriter, ResultPlace
from batchinference.tasks.admit import claim_of
from batchinference.tasks.manifest import ReadableResults


class Hold:
    """That the place is still this task's to write to. Another operator's may have finished the
    run since this one began, and even another run may have taken the place over: what they wrote
    stands.

    Attributes:
        manifest: what stood there when the task began, and is to go; None from then on.
    """

    def __init__(self, run: Run, place: ResultPlace) -> None:
        self._run = run
        self._claim = claim_of(run)
        self._place = place
        with self.writing():
            self.manifest = _standing(place)

    def is_of(self, manifest: Mapping[str, Any]) -> bool:
        """Whether the manifest that stands there is this one."""
        try:
            return self.manifest is not None and manifest == msgspec.json.decode(self.manifest[1])
        except msgspec.MsgspecError:
            return False

    def check(self) -> None:
        """Look again.

        Raises:
            Stalled: OutputConflict, the claim is gone or another's; HeldElsewhere, another
                installation has this very run by now.
            Retry: somebody else wrote a manifest.
        """
        with self.writing():
            held, standing = self._place.holds(self._claim), _standing(self._place)
            taken_by = "" if held else self._place.taken_by(self._claim)
        if taken_by:
            raise Stalled(Reason.HELD_ELSEWHERE, handed_over(self._run, taken_by))
        if not held:
            raise Stalled(
                Reason.OUTPUT_CONFLICT,
                f"The output place '{self._place.uri}' does not hold this run's claim any more: "
                "somebody has removed or replaced it. Nothing was written there since, and the "
                "answers are kept in staging; bring the claim back, and the results are written",
            )
        if standing != self.manifest:
            raise Retry(
                Reason.OUTPUT_CONFLICT,
                f"Somebody else wrote the manifest in '{self._place.uri}' at the same time",
            )

    def part(self, kind: str, number: int) -> ObjectWriter:
        """See `ports.ResultPlace.part`; checked when it is begun and when it becomes visible."""
        self.check()
        with self.writing():
            writer = self._place.part(kind, number)
        self.manifest = None  # it went before the first part
        return _Held(writer, self)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Whatever keeps the place from being used here is told as what it means for the run.

        Raises:
            Stalled, Retry: OutputUnavailable.
        """
        try:
            yield
        except (Stalled, Retry) as fault:
            if fault.reason not in _UNAVAILABLE:
                raise
            text = (
                f"The output place '{self._place.uri}' can't be used: {fault.message.rstrip('.')}. "
                "The answers are kept in staging; the results are written once it can be used"
            )
            raise type(fault)(Reason.OUTPUT_UNAVAILABLE, text, fault.after_s) from fault


_UNAVAILABLE = {
    Reason.ACCESS_DENIED,
    Reason.API_SERVER_REFUSED,
    Reason.API_SERVER_UNAVAILABLE,
    Reason.BUCKET_NOT_FOUND,
    Reason.CREDENTIALS_REJECTED,
    Reason.ENDPOINT_UNREACHABLE,
    Reason.STORAGE_UNAVAILABLE,
}


class _Held:
    """See `ports.ObjectWriter`. Checks before anything becomes visible."""

    def __init__(self, writer: ObjectWriter, hold: Hold) -> None:
        self._hold = hold
        self._writer = writer
        self.abort = writer.abort

    def write(self, data: bytes) -> None:
        with self._hold.writing():
            self._writer.write(data)

    def commit(self) -> ObjectInfo:
        self._hold.check()
        with self._hold.writing():
            return self._writer.commit()


class Nowhere:
    """See `ports.ObjectWriter`. Keeps nothing."""

    def write(self, data: bytes) -> None:
        """See `ports.ObjectWriter.write`."""

    def commit(self) -> ObjectInfo:
        """See `ports.ObjectWriter.commit`."""
        return ObjectInfo("", 0, "")

    def abort(self) -> None:
        """See `ports.ObjectWriter.abort`."""


def _standing(place: ResultPlace) -> tuple[str, bytes] | None:
    return place.manifest() if isinstance(place, ReadableResults) else None
