"""Decisions of people, told by annotations: what nobody can find out, somebody has to say.

A step that is stuck on such a thing asks a question: what an annotation must name, and what follows
from each answer. Whoever may annotate the job answers, or the journal where no object is left. A
value names exactly one thing, and once only: a shard's ordinal of one run, or a batch. So an
annotation that lingers in Git settles nothing a second time, and needs no removing. What names
nothing that is asked is told and left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from batchinference.core.effects import Announce
from batchinference.core.keys import journal_name
from batchinference.core.transitions import ShardInput, step_shard
from batchinference.model.metadata import GROUP
from batchinference.model.run import (
    Run,
    Settlement,
    Shard,
    Submission,
    SubmissionState,
)
from batchinference.model.status import Reason
from batchinference.model.work import Holder

if TYPE_CHECKING:
    from batchinference.core.draft import Draft

RESUBMIT = f"{GROUP}/resubmit"
"""It was not accepted: the records go again."""

GIVE_UP = f"{GROUP}/give-up"
"""It was accepted, or nobody can tell: its records are never sent again."""

TAKE_OVER = f"{GROUP}/take-over"
"""The installation that has the run gives it up: it goes on here."""

GONE = f"{GROUP}/object-gone"
"""On a journal: the object with this uid was deleted on purpose, with however many others."""

ANNOTATIONS = (RESUBMIT, GIVE_UP, TAKE_OVER)

Answer = Callable[[Run, datetime], Run]
"""What follows from an answer that is given at a time."""


@dataclass(frozen=True, slots=True)
class Question:
    """Something that a person has to decide.

    Attributes:
        about: what the annotation's value must be.
        what: the same in words.
        answers: by annotation.
        not_before: an answer takes effect then at the earliest.
    """

    about: str
    what: str
    answers: Mapping[str, Answer]
    not_before: datetime | None = None


def named(run: Run, shard: int, ordinal: int) -> str:
    """A submission, as annotations name it."""
    return f"{run.key[:12]}/{shard}/{ordinal}"


def values(annotations: Mapping[str, str], annotation: str) -> tuple[str, ...]:
    """What an annotation names: several things with commas between."""
    found = (value.strip() for value in annotations.get(annotation, "").split(","))
    return tuple(dict.fromkeys(value for value in found if value))


def command(draft: Draft, annotation: str, value: str) -> str:
    """What to type."""
    job = draft.observed.job
    if job is not None:
        where = f"batchinferencejob/{job.metadata.name} -n {job.metadata.namespace}"
    else:
        where = f"configmap/{journal_name(draft.run.key)} -n {draft.observed.journal_namespace}"
    return f"kubectl annotate {where} --overwrite {annotation}={value}"


# ---------------------------------------------------------------- questions


def ask_of_submission(draft: Draft, shard: Shard, made: Submission) -> str:
    """Ask whether a submission was accepted; returns what to do, for the reader of the condition.

    Until a settle time after the claim, the create call itself may still arrive.
    """
    about = named(draft.run, shard.index, made.ordinal)

    def resubmitted(run: Run, now: datetime) -> Run:
        return run.with_shard(not_accepted(run.shards[shard.index], now))

    def given_up(run: Run, now: datetime) -> Run:
        return run.with_shard(_written_off(run.shards[shard.index], now))

    draft.questions.append(
        Question(
            about,
            f"shard {shard.index}, ordinal {made.ordinal}",
            {RESUBMIT: resubmitted, GIVE_UP: given_up},
            made.claimed_at + timedelta(seconds=draft.timing.settle_s),
        )
    )
    return (
        "Find out at the provider whether there is a batch of it. If there is none, and none can "
        f"come: `{command(draft, RESUBMIT, about)}`. If there was one, or nobody can tell, give up "
        f"its answers, and nothing of it is sent again: `{command(draft, GIVE_UP, about)}`"
    )


def ask_of_absence(draft: Draft, shard: int, made: Submission) -> str:
    """Ask whether it is certain that something that was given up is not there; as above."""
    about = named(draft.run, shard, made.ordinal)

    def resubmitted(run: Run, now: datetime) -> Run:
        held = run.shards[shard]
        marked = tuple(
            replace(s, settled=Settlement.RESUBMIT, settled_at=now)
            if s.ordinal == made.ordinal
            else s
            for s in held.submissions
        )
        return run.with_shard(replace(held, submissions=marked))

    draft.questions.append(
        Question(about, f"shard {shard}, ordinal {made.ordinal}", {RESUBMIT: resubmitted})
    )
    return (
        "If there is no batch of it at the provider, and none can come: "
        f"`{command(draft, RESUBMIT, about)}`"
    )


def ask_of_batch(draft: Draft, shard: Shard, live: Submission) -> str:
    """Ask whether to go on waiting for a batch; returns what to do, for the reader."""

    def given_up(run: Run, now: datetime) -> Run:
        marked = run.shards[shard.index].with_batch(
            live.batch_id, settled=Settlement.GIVE_UP, settled_at=now
        )
        return run.with_shard(marked)

    draft.questions.append(Question(live.batch_id, f"batch {live.batch_id}", {GIVE_UP: given_up}))
    return (
        "It is asked again as long as nobody decides. To give up the answers that it still owes, "
        f"which are never sent again: `{command(draft, GIVE_UP, live.batch_id)}`"
    )


def ask_of_holder(draft: Draft, holder: Holder) -> str:
    """Ask whether this very run is handed over by the installation that has it; returns what to do,
    for the reader.
    """
    about = holder.installation

    def taken(run: Run, _now: datetime) -> Run:
        return replace(run, taken_from=about)

    draft.questions.append(Question(about, f"the run of installation {about}", {TAKE_OVER: taken}))
    return (
        "If that one is gone for good, or leaves the run to this one: "
        f"`{command(draft, TAKE_OVER, about)}`. What it has at the provider is followed here then"
    )


def ask_of_earlier_life(draft: Draft) -> str:
    """Ask whether all that an earlier life of the run has at the provider is found; returns what to
    do, for the reader.
    """
    about = journal_named(draft.run)

    def complete(run: Run, _now: datetime) -> Run:
        return replace(run, earlier=run.earlier and replace(run.earlier, certain=True))

    question = Question(about, "what the provider has of the run", {RESUBMIT: complete})
    draft.questions.append(question)
    return (
        "If there is nothing of it at the provider but what is listed, and nothing can come: "
        f"`{command(draft, RESUBMIT, about)}`"
    )


def ask_of_strange(draft: Draft, batches: Iterable[str]) -> str:
    """Ask whether what batches of an earlier life hold may be paid for again; as above."""
    for batch_id in batches:
        answers = {RESUBMIT: _aside(batch_id)}
        draft.questions.append(Question(batch_id, f"batch {batch_id}", answers))
    named = ",".join(batches)
    return f"If what they hold may be paid for again: `{command(draft, RESUBMIT, named)}`"


def _aside(batch_id: str) -> Answer:
    def left_aside(run: Run, _now: datetime) -> Run:
        assert run.earlier is not None, "only what an earlier life left behind is asked about"
        left = tuple(known for known in run.earlier.strange if known != batch_id)
        return replace(run, earlier=replace(run.earlier, strange=left) if left else None)

    return left_aside


def journal_named(run: Run) -> str:
    """This journal of the run, and no other of it, as annotations name it."""
    return f"{run.key[:12]}/{int(run.created_at.timestamp())}"


def not_accepted(shard: Shard, now: datetime) -> Shard:
    """Somebody said for certain that the newest submission was not accepted: its input is deleted,
    in case that is wrong, and it is given up without another look.
    """
    fencing = step_shard(shard, ShardInput.FENCE) or shard
    return fencing.with_last(settled=Settlement.RESUBMIT, settled_at=now)


def _written_off(shard: Shard, now: datetime) -> Shard:
    """Whatever became of the newest submission, its answers are not waited for."""
    stepped = step_shard(shard, ShardInput.WRITE_OFF)
    assert stepped is not None, "only what nobody knows the outcome of is asked about"
    return stepped.with_last(
        state=SubmissionState.ENDED,
        settled=Settlement.GIVE_UP,
        settled_at=now,
        ended_at=now,
        request={},
    )


# ---------------------------------------------------------------- answers


def answer(draft: Draft) -> None:
    """Do what the annotations decide, and say so; say too what they don't."""
    asked = {question.about: question for question in draft.questions}
    said = {name: values(draft.observed.annotations, name) for name in ANNOTATIONS}
    for name, about in ((name, about) for name, found in said.items() for about in found):
        question = asked.get(about)
        if [about in found for found in said.values()].count(True) > 1:
            _ignore(draft, about, f"'{about}' stands in several annotations: take all but one away")
        elif question is None or name not in question.answers:
            if not _is_settled(draft.run, about):
                _ignore(draft, about, _no_question(name, about, asked.values()))
        elif question.not_before is not None and draft.observed.now < question.not_before:
            draft.wake(question.not_before)
        else:
            draft.run = question.answers[name](draft.run, draft.observed.now)
            text = f"Annotation {name}={about} decided what becomes of {question.what}"
            draft.effects.append(Announce(Reason.DECIDED, text))
            draft.wake(draft.observed.now)


def _is_settled(run: Run, about: str) -> bool:
    """Whether that was decided already: the annotation has done its work."""
    if about in {run.taken_from, journal_named(run)}:
        return True
    return any(
        made.settled is not None and about in {named(run, shard.index, made.ordinal), made.batch_id}
        for shard in run.shards
        for made in shard.made
    )


def _no_question(name: str, about: str, asked: Iterable[Question]) -> str:
    open_ones = ", ".join(question.about for question in asked if name in question.answers)
    waits = f"This does: {open_ones}" if open_ones else "Nothing does"
    return f"Annotation {name} names '{about}', which does not wait for that decision. {waits}"


def _ignore(draft: Draft, about: str, text: str) -> None:
    """Say it once."""
    key = f"decision:{about}"
    if key not in draft.notes.told:
        draft.notes = replace(draft.notes, told=draft.notes.told | {key})
        draft.effects.append(Announce(Reason.DECISION_IGNORED, text, warning=True))
