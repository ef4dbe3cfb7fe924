"""Whose an output place is, and what may become of it: protocol 3.

Pure. The claim itself is read and written by tasks; whether its run has ended, the journals say.
"""

from __future__ import annotations

from batchinference.core.decisions import ask_of_holder
from batchinference.core.draft import Draft
from batchinference.model.job import OutputPolicy
from batchinference.model.run import Run, RunPhase
from batchinference.model.status import Reason
from batchinference.model.work import Holder


def may_take_over(run: Run, holder: Holder, policy: OutputPolicy) -> bool:
    """Whether the place may be taken from that holder: from this very run of an installation that
    gives it up, or, by `outputPolicy`, from a finished run of the same namespace and installation.
    Whether that one may still go on is another question.
    """
    if holder.run_key == run.key:
        return bool(run.taken_from) and holder.installation == run.taken_from
    namespace = holder.description.partition("/")[0]
    return (
        policy is OutputPolicy.REPLACE
        and holder.finished
        and holder.installation == run.installation
        and namespace == run.owner.namespace
    )


def has_ended(holder: Holder, journal: Run | None) -> bool:
    """Whether the holder never goes on: its journal says so, or its manifest where there is none
    any more. One that was cancelled by deletion has a manifest too, and may be taken up again.
    """
    if journal is None:
        return holder.final
    return journal.phase in {RunPhase.CLEANING, RunPhase.ENDED}


def whose(run: Run, holder: Holder) -> tuple[str, str]:
    """Why an output place that is held can't be used, and what to do, as a reason and a text."""
    place, owner = f"The output place '{run.output.uri}'", holder.description or holder.run_key
    if holder.run_key == run.key:
        return Reason.HELD_ELSEWHERE, (
            f"{place} holds the claim of this very run ({owner}) by installation "
            f"'{holder.installation}', and there is no journal of it here. Leave it to the other "
            "cluster, or restore its journals, or create the job with another `spec.output`"
        )
    hint = ", best with `${runID}` in it" if run.output.uri.startswith("s3:") else ""
    another = f"create the job with another `spec.output`{hint}; or, if nobody needs what is there"
    if not holder.run_key:
        return Reason.OUTPUT_CONFLICT, f"{place} is in use: {owner}. Either {another}, remove it"
    stands = "finished" if holder.finished else "has not finished"
    if may_take_over(run, holder, OutputPolicy.REPLACE):
        cure = f"{another}, set `spec.outputPolicy: Replace`, which removes it"
    else:
        cure = f"{another} and that run is over, remove all of it"
    return Reason.OUTPUT_CONFLICT, (
        f"{place} holds the claim of another run ({owner}, run {holder.run_key[:12]}), which "
        f"{stands}. Either {cure}"
    )


def still_going(run: Run, holder: Holder) -> str:
    """That a place can't be taken over, for its run may still go on."""
    return (
        f"`spec.outputPolicy: Replace` can't take '{run.output.uri}' over: the run that holds it "
        f"({holder.description}, run {holder.run_key[:12]}) has left results there and is not over "
        "for good: it was cancelled by deletion, and goes on if its job is created again within "
        "the time for that. Wait for that to pass, or create this job with another `spec.output`"
    )


def handed_over(run: Run, installation: str) -> str:
    """That another installation has this very run by now."""
    return (
        f"The output place '{run.output.uri}' holds the claim of this very run by installation "
        f"'{installation}': it was handed over. It is submitted, cancelled and finished there, and "
        "nothing of it is done here any more. This job may be deleted"
    )


def ask_for_run(draft: Draft, holder: Holder) -> None:
    """Another installation has this very run, until somebody says that it gives it up."""
    if draft.run.taken_from != holder.installation:
        reason, text = whose(draft.run, holder)
        draft.stall(reason, f"{text}. {ask_of_holder(draft, holder)}", draft.run.created_at)
