"""ADMIT: the first look at the input, then the claim of the output place (protocol 3)."""

from __future__ import annotations

from batchinference.model.codec import encode_time
from batchinference.model.run import Run
from batchinference.model.work import Admitted, Holder
from batchinference.ports import Claim, Replaceable
from batchinference.tasks.manifest import earlier_end
from batchinference.tasks.sources import snapshot
from batchinference.tasks.workbench import Workbench


def admit(run: Run, bench: Workbench, replaces: Holder | None = None) -> Admitted:
    """Look, then claim: an input that isn't there claims nothing.

    `replaces` is the ended run whose place is taken over, if it still is the holder.

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
        and place.replace(own, holder)
    ):
        holder = None
    if holder is None:
        return Admitted(found)
    if _is_unfinished_life(own, holder):
        return Admitted(found, claimed_before=True)
    return Admitted(found, holder, earlier_end(run, place, holder))


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
