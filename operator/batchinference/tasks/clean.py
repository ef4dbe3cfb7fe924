"""CLEAN and RELEASE: remove what is ours to remove. Both may be run again at any point."""

from __future__ import annotations

from contextlib import suppress

from batchinference.errors import Fault
from batchinference.model.run import Run
from batchinference.model.work import Cleaned
from batchinference.ports import ResultPlace
from batchinference.tasks.admit import claim_of
from batchinference.tasks.layout import layout
from batchinference.tasks.places import UnfinishedParts
from batchinference.tasks.workbench import Workbench


def clean(run: Run, bench: Workbench) -> Cleaned:
    """After the manifest stands: the provider's files, then staging. What another installation has
    taken over, or had finished before, is not this one's to delete.
    """
    if _is_taken(run, bench.output):
        return Cleaned()
    bench.data.delete_files(run)
    bench.staging.delete_prefix(layout(run).prefix)
    _tidy(run, bench.output)
    _clear_left(run, bench)
    return Cleaned()


def _is_taken(run: Run, place: ResultPlace) -> bool:
    """Whether another installation goes on with the run, or a later life of it. Where that can't be
    read any more, nobody does: its manifest stood there, and whoever takes such a place adopts the
    end.
    """
    try:
        return _is_anothers(run, place)
    except Fault:
        return False


def _is_anothers(run: Run, place: ResultPlace) -> bool:
    # A later life is at work where an operator was stopped with this task under way, and another
    # one did it meanwhile.
    claim = claim_of(run)
    return bool(place.taken_by(claim)) or place.has_later(claim)


def _clear_left(run: Run, bench: Workbench) -> None:
    """Staging where the provider led before: with the credentials of now, so as far as they go."""
    for prefix in run.left:
        if prefix.partition("://")[0] == run.staging.uri.partition("://")[0]:
            with suppress(Fault):
                bench.staging.delete_prefix(prefix)


def _tidy(run: Run, place: ResultPlace) -> None:
    """Parts that a dead worker began. The results stand, and nobody reads these: no trouble with
    them is worth telling.
    """
    with suppress(Fault):
        if isinstance(place, UnfinishedParts) and place.holds(claim_of(run)):
            place.abort_parts()


def release(run: Run, bench: Workbench) -> Cleaned:
    """Of a run that never submitted: the claim first, so that the place is free whatever fails
    afterwards; then staging; then uploads that were never used, of which the journal may know
    nothing: a process that dies may have been a few steps ahead of it. Nothing of what another
    installation has taken over, or a later life of the run.
    """
    if _is_anothers(run, bench.output):
        return Cleaned()
    bench.output.release(claim_of(run))
    bench.staging.delete_prefix(layout(run).prefix)
    bench.data.delete_files(run)
    _clear_left(run, bench)
    return Cleaned()
