"""ADMIT: the first look at the input, then the claim of the output place (protocol 3)."""

from __future__ import annotations

from dataclasses import replace

from batchinference.model.codec import encode_time
from batchinference.model.run import Run
from batchinference.model.work import Admitted, Holder
from batchinference.ports import Claim, Replaceable
from batchinference.tasks.manifest import earlier_end
from batchinference.tasks.sources import snapshot
from batchinference.tasks.workbench import Workbench


def admit(run: Run, bench: Workbench, replaces: Holder | None = None) -> Admitted:
    """Look, then claim: an input that isn't there claims nothing.

    `replaces` is whose place is taken over, if it still is the holder: an ended run, or this very
    run of an installation that gives it up.

    Raises:
        Stalled: `InputNotFound` and what else a person must mend.
    """
    found = snapshot(bench.source.objects())
    own = claim_of(run)
    holder = bench.output.claim(own)
    place = bench.output
    if (
        holder is not None
        and holder == replaces
        and isinstance(place, Replaceable)
        and place.replace(_in_place_of(own, holder), holder)
    ):
        handed_over = holder.run_key == own.run_key
        tag = holder.run_tag if handed_over else ""
        had_answers = handed_over and holder.finished
        return Admitted(found, claimed_before=handed_over, tag=tag, had_answers=had_answers)
    if holder is None:
        return Admitted(found)
    if _is_unfinished_life(own, holder):
        return Admitted(found, claimed_before=True, tag=holder.run_tag, had_answers=holder.finished)
    return Admitted(found, holder, earlier_end(run, place, holder))


def _in_place_of(own: Claim, holder: Holder) -> Claim:
    """The claim that takes the holder's place: what the provider has of this very run carries the
    tag that the old claim names.
    """
    return replace(own, run_tag=holder.run_tag) if holder.run_key == own.run_key else own


def _is_unfinished_life(own: Claim, holder: Holder) -> bool:
    """Whether the place is held by a life of this very run that may have gone on, and of which
    this journal knows nothing.
    """
    same = (holder.run_key, holder.installation) == (own.run_key, own.installation)
    return same and not holder.final


def claim_of(run: Run) -> Claim:
    """The run's claim; the description is its job's namespace and name."""
    owner = run.owner
    return Claim(
        run.key,
        run.tag,
        run.installation,
        f"{owner.namespace}/{owner.name}",
        since=encode_time(run.created_at),
    )
