"""Which changes of a run must stand in its journal before anything follows from them.

Pure. Until something is claimed nothing is paid for, and every step is made again at no cost but
time: such changes may wait a few seconds for each other, so that a small run is not written for
each of its steps.
"""

from __future__ import annotations

from dataclasses import replace

from batchinference.model.run import Run, RunPhase

_UNPAID = {RunPhase.ADMITTING, RunPhase.STAGING, RunPhase.RUNNING}


def must_stand(stored: Run, run: Run) -> bool:
    """Whether the run as it is now must be written at once, where the journal has `stored`.

    May wait: that the output place is claimed (claiming it again finds it ours), what the input
    was, how far staging came, that its shards ask for places, what was found out of an earlier life
    of it, what its model costs. Everything else must not: claims and whatever follows them,
    cancelling, ends, whose the run is, its last-seen spec, and that the output place is claimed no
    more.
    """
    given_up = stored.output.claimed and not run.output.claimed
    return given_up or _lasting(stored) != _lasting(run)


def _lasting(run: Run) -> Run:
    """The run without what is found out again."""
    claimed = run.was_submitted or any(shard.submissions for shard in run.shards)
    if claimed or run.phase not in _UNPAID:
        return run
    return replace(
        run,
        phase=RunPhase.ADMITTING,
        start_time=None,
        output=replace(run.output, claimed=False),
        input=None,
        cursor=None,
        staged=None,
        shards=(),
        earlier=None,
        price=None,
    )
