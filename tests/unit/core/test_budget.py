"""Nothing goes to the provider that could bring a run above its budget, and what stalls says why."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.budget import INPUT_MARGIN, cost_of, estimate, spent
from batchinference.core.draft import Decision
from batchinference.core.effects import Announce, StartTask, Submit
from batchinference.core.notes import Notes
from batchinference.core.outcomes import TaskDone
from batchinference.core.view import Scene, status_of
from batchinference.model.job import Operation
from batchinference.model.price import PriceSource
from batchinference.model.run import (
    Cancel,
    CancelWhy,
    Collected,
    Results,
    Run,
    RunPhase,
    Settlement,
    Shard,
    ShardState,
    SubmissionState,
)
from batchinference.model.work import Finished, TaskKind
from builders import JobBuilder, job, shard_of, submission_of
from fakes.prices import price
from unit.core.given import (
    NOW,
    TIMING,
    decided,
    fold,
    in_state,
    observed,
    of_kind,
    run_with,
    seen,
    with_late_batch,
)

S = ShardState
A_TOKEN = price(batch_input="0", batch_output="1000000", live_input="0", live_output="2000000")
"""At which every token of an answer costs 1, and what is asked nothing."""

OWN = replace(A_TOKEN, source=PriceSource.PROVIDER)


def waiting(index: int = 0, output: int | None = 10, **members) -> Shard:
    return shard_of(index, S.QUEUED, output=output, **members)


def again(index: int, output: int, **members) -> Shard:
    return waiting(index, output, attempt=2, sources=(0,), **members)


def under_way(state: ShardState = S.SUBMITTED, index: int = 0, output: int = 10, **members):
    return in_state(state, index, output=output, **members)


def home(index: int = 0, tokens: int = 3, **members) -> Shard:
    collected = Collected(answered=1, output_tokens=tokens, **members)
    return under_way(S.COLLECTED, index, collected=collected)


def with_budget(most: str, currency: str = "USD") -> JobBuilder:
    return job().budget(most, currency)


def decided_on(run: Run, builder: JobBuilder, at=A_TOKEN, **members) -> Decision:
    notes = Notes()
    for shard in run.shards:
        for ordinal in (1, 2, 3):
            notes = notes.with_upload((shard.index, ordinal), f"file-{shard.index}")
    run = replace(run, price=at)
    return decided(run, observed(builder, price=at, **members), notes)


def sent(decision: Decision) -> list[int]:
    return [effect.shard for effect in of_kind(decision, Submit)]


# ---------------------------------------------------------------- before anything is paid


TOO_SMALL = [
    ("nothing is left of nothing", (waiting(),), "0"),
    ("by a millionth", (waiting(),), "9.999999"),
    ("all of it must fit, not only what goes first", (waiting(0), waiting(1)), "19.99"),
    ("what is to be cut anew counts", (waiting(0), shard_of(1, S.REGROUPED, output=10)), "19"),
]


@pytest.mark.parametrize(("reason", "shards", "most"), TOO_SMALL, ids=[t[0] for t in TOO_SMALL])
def test_a_budget_below_the_bound_submits_nothing(reason, shards, most) -> None:
    decision = decided_on(run_with(*shards), with_budget(most))
    assert decision.problem.reason == "BudgetExceeded", reason
    assert sent(decision) == []
    assert decision.asking == frozenset(), "no place is asked for, nothing is uploaded"
    assert decision.run.shards == shards, "it waits as it is"
    assert decision.wake_at is not None


def test_what_would_do_is_told_and_does() -> None:
    run = run_with(waiting(0, 10), waiting(1, 15))
    told = decided_on(run, with_budget("24")).problem.message
    assert "25.00 USD" in told
    assert "Raise `spec.budget.maxCost` to 25.00" in told
    assert "Nothing was submitted" in told
    assert sent(decided_on(run, with_budget("25.00"))) == [0, 1]


def test_a_bound_that_is_no_round_number_is_told_so_that_it_does() -> None:
    third = replace(A_TOKEN, batch_output="0.333333")
    run = run_with(waiting(output=1))
    told = decided_on(run, with_budget("0"), third).problem.message
    assert "Raise `spec.budget.maxCost` to 0.000001" in told
    assert sent(decided_on(run, with_budget("0.000001"), third)) == [0]


def test_without_a_budget_nothing_is_asked_of_prices() -> None:
    run = run_with(waiting(output=None))
    assert sent(decided_on(run, job(), None)) == [0]


def test_input_counts_with_a_margin() -> None:
    run = run_with(replace(waiting(output=0), tokens=500_000))
    costs = price(batch_input="1")
    assert sent(decided_on(run, with_budget("1.00"), costs)) == [0]
    told = decided_on(run, with_budget("0.99"), costs).problem.message
    assert "1.00 USD" in told
    assert INPUT_MARGIN == 2


def test_embeddings_have_no_output() -> None:
    builder = with_budget("0").with_spec(operation="Embeddings")
    run = run_with(waiting(output=None), spec={**run_with().spec, "operation": "Embeddings"})
    assert sent(decided_on(run, builder)) == [0]
    assert run.spec["operation"] == Operation.EMBEDDINGS


# ---------------------------------------------------------------- what can't be compared

LONG = replace(A_TOKEN, most_input=200)
CANNOT = [
    ("nobody knows the price", waiting(), None, "USD", "PriceUnknown", "spec.pricing"),
    (
        "the price holds for shorter records",
        waiting(longest=101),
        LONG,
        "USD",
        "PriceUnknown",
        "202",
    ),
    ("an older version did not count", waiting(), LONG, "USD", "PriceUnknown", "up to 200"),
    (
        "a record without a bound",
        waiting(output=None),
        A_TOKEN,
        "USD",
        "UnboundedOutput",
        "maxOutput",
    ),
    ("another currency", waiting(), A_TOKEN, "EUR", "BudgetCurrencyDiffers", "in EUR"),
]


@pytest.mark.parametrize(
    ("why", "shard", "at", "currency", "reason", "told"), CANNOT, ids=[c[0] for c in CANNOT]
)
def test_what_cannot_be_held_against_a_budget_stalls(
    why, shard, at, currency, reason, told
) -> None:
    run = run_with(shard)
    decision = decided_on(run, with_budget("1000", currency), at)
    assert (decision.problem.reason, sent(decision)) == (reason, []), why
    assert told in decision.problem.message
    assert sent(decided_on(run, job(), at)) == [0], "without a budget it goes"


def test_a_short_record_is_within_the_first_tier() -> None:
    assert sent(decided_on(run_with(waiting(longest=100)), with_budget("10"), LONG)) == [0]


def test_a_budget_that_is_no_number_is_told() -> None:
    decision = decided_on(run_with(waiting()), with_budget("lots"))
    assert (decision.problem.reason, sent(decision)) == ("InvalidSpec", [])


def test_without_a_price_nobody_knows_what_was_spent() -> None:
    assert spent(run_with(home())) is None


def test_unknown_shards_that_may_bill_have_no_bound_either() -> None:
    run = run_with(under_way(output=None), waiting(1))
    assert spent(replace(run, price=A_TOKEN)) is None
    assert decided_on(run, with_budget("1000")).problem.reason == "UnboundedOutput"


# ---------------------------------------------------------------- under way

FENCED = replace(submission_of(1, SubmissionState.FENCED), batch_id="")
SAID = replace(FENCED, settled=Settlement.RESUBMIT, settled_at=NOW)
TWO = (submission_of(1, SubmissionState.ENDED), submission_of(2, SubmissionState.ENDED))

SPENT = [
    ("not sent", waiting(), 0),
    ("at the provider", under_way(), 10),
    ("a claim may arrive", under_way(S.CLAIMED), 10),
    ("nobody knows", under_way(S.UNKNOWN), 10),
    ("being fenced", under_way(S.FENCING), 10),
    ("over, and not read", under_way(S.ENDED), 10),
    ("read", home(tokens=3), 3),
    ("more than was thought", home(tokens=30), 30),
    ("answers that are lost may have cost something", home(tokens=3, lost=1), 10),
    ("lost, and more than was thought", home(tokens=30, lost=1), 30),
    ("refused", waiting(submissions=(submission_of(1, SubmissionState.REFUSED),)), 0),
    ("void", waiting(submissions=(submission_of(1, SubmissionState.VOID),)), 0),
    ("absent behind a fence", waiting(submissions=(FENCED,)), 0),
    ("somebody says that it was not accepted", waiting(submissions=(SAID,)), 10),
    ("a second batch besides", with_late_batch(under_way()), 20),
    ("a second batch of what was read", with_late_batch(home(tokens=3)), 20),
    ("two batches that were read as one", replace(home(tokens=3), submissions=TWO), 20),
    ("dropped", shard_of(0, S.DROPPED, output=10), 0),
]


@pytest.mark.parametrize(("reason", "shard", "want"), SPENT, ids=[s[0] for s in SPENT])
def test_what_was_or_may_have_been_spent(reason, shard, want) -> None:
    assert spent(run_with(shard, price=A_TOKEN)) == want, reason


def test_a_lowered_budget_holds_back_what_is_not_submitted() -> None:
    run = run_with(under_way(), waiting(1))
    decision = decided_on(run, with_budget("15"))
    assert decision.problem.reason == "BudgetExceeded"
    assert "could cost up to 10.00 USD, and what is may cost 10.00" in decision.problem.message
    assert "maxCost` to 20.00" in decision.problem.message
    assert decision.effects == ()
    assert decision.run.shards == run.shards


def test_it_goes_on_by_itself_when_the_rest_turns_out_to_cost_less() -> None:
    assert sent(decided_on(run_with(home(tokens=5), waiting(1)), with_budget("15"))) == [1]


def test_a_claim_whose_answer_was_lost_is_not_repeated_above_the_budget() -> None:
    run = run_with(under_way(S.UNKNOWN), waiting(1))
    decision = decided_on(run, with_budget("15"))
    assert sent(decision) == []


@pytest.mark.parametrize(
    "state", [S.SUBMITTED, S.COLLECTED, S.ENDED], ids=["at the provider", "collected", "ended"]
)
def test_a_budget_says_nothing_of_what_is_submitted(state) -> None:
    members = {"collected": Collected(answered=1)} if state is S.COLLECTED else {}
    assert decided_on(run_with(under_way(state, **members)), with_budget("0")).problem is None


def test_a_run_that_is_held_or_cancelled_is_not_stalled_by_its_budget() -> None:
    run = run_with(waiting())
    assert decided_on(run, with_budget("0").suspended()).problem is None
    cancelled = replace(run, cancel=Cancel(CancelWhy.DELETED, NOW))
    assert decided_on(cancelled, with_budget("0")).problem is None


# ---------------------------------------------------------------- records that go again


def test_a_retry_within_the_budget_goes() -> None:
    run = run_with(home(tokens=5, unbilled=1), again(1, 5))
    assert sent(decided_on(run, with_budget("10"))) == [1]


def test_a_retry_above_the_budget_is_not_sent_again_and_says_so() -> None:
    run = run_with(replace(home(tokens=6, unbilled=1), pooled=True), again(1, 5))
    decision = decided_on(run, with_budget("10"))
    assert sent(decision) == []
    left = decision.run.shards[1]
    assert (left.state, left.unsent_code) == (S.DROPPED, "BudgetExceeded")
    (said,) = of_kind(decision, Announce)
    assert (said.reason, said.warning) == ("BudgetExceeded", True)
    assert decision.problem is None, "the run ends with what it has"
    finishing = decided(decision.run, observed(with_budget("10"), price=A_TOKEN))
    assert [t.kind for t in of_kind(finishing, StartTask)] == [TaskKind.FINISH]


def test_a_retry_waits_while_what_is_under_way_may_cost_less() -> None:
    run = run_with(replace(home(tokens=1), pooled=True), under_way(index=1), again(2, 5))
    decision = decided_on(run, with_budget("12"))
    assert (sent(decision), decision.run.shards[2].state) == ([], S.QUEUED)
    assert decision.problem is None
    assert decision.asking == frozenset()


def test_of_several_retries_those_go_that_fit() -> None:
    run = run_with(home(tokens=1), again(1, 5), again(2, 7), again(3, 2))
    decision = decided_on(run, with_budget("8"))
    assert sent(decision) == [1, 3]
    assert decision.run.shards[2].state is S.QUEUED, "those may cost less"


def test_a_retry_without_a_bound_stalls() -> None:
    run = run_with(home(), replace(again(1, 5), output=None))
    assert decided_on(run, with_budget("1000")).problem.reason == "UnboundedOutput"


def test_a_batch_that_was_void_is_no_retry_of_its_records() -> None:
    """It cost nothing and nobody has its records: a budget that is lowered meanwhile holds it."""
    void = submission_of(1, SubmissionState.VOID)
    run = run_with(waiting(attempt=2, submissions=(void,)))
    decision = decided_on(run, with_budget("5"))
    assert decision.problem.reason == "BudgetExceeded"
    assert decision.run.shards[0].state is S.QUEUED


def test_what_was_not_sent_again_goes_when_the_run_is_taken_up_with_more_money() -> None:
    left = again(1, 5, unsent_code="BudgetExceeded")
    run = run_with(replace(home(tokens=6), pooled=True), replace(left, state=S.DROPPED))
    cancel = Cancel(CancelWhy.DELETED, NOW)
    parked = replace(run, phase=RunPhase.PARKED, cancel=cancel, completion_time=NOW)
    decision = decided_on(parked, with_budget("11"))
    assert sent(decision) == [1]
    assert decision.run.shards[1].unsent_code == ""


shards_of = st.lists(
    st.builds(
        lambda make, output, tokens: make(output, tokens),
        st.sampled_from(
            [
                lambda output, _: lambda n: waiting(n, output),
                lambda output, _: lambda n: again(n, output),
                lambda output, _: lambda n: under_way(S.SUBMITTED, n, output),
                lambda output, _: lambda n: under_way(S.ENDED, n, output),
                lambda _, tokens: lambda n: home(n, tokens),
                lambda output, _: lambda n: waiting(n, output, submissions=(SAID,)),
            ]
        ),
        st.integers(1, 9),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=6,
)


@given(shards_of, st.integers(0, 40))
def test_no_decision_brings_a_run_above_its_budget(made, most) -> None:
    """By the estimate's own arithmetic, done here a second time."""
    shards = [make(n) for n, make in enumerate(made)]
    decision = decided_on(run_with(*shards), with_budget(str(most)))
    total = sum(shard.output for shard in shards if shard.index in sent(decision))
    for shard in shards:
        if shard.state in {S.SUBMITTED, S.ENDED}:
            total += shard.output
        elif shard.state is S.COLLECTED:
            total += shard.collected.output_tokens
        elif SAID in shard.submissions:
            total += shard.output
    assert not sent(decision) or total <= most
    after = spent(decision.run)
    assert not sent(decision) or after <= most, "nor by what is written"


# ---------------------------------------------------------------- which price counts


def take(run: Run, found, *, submitted: bool = False):
    shard = under_way() if submitted else waiting()
    run = replace(run_with(shard), price=run)
    return decided(run, observed(price=found)).run.price


CHEAPER = replace(A_TOKEN, batch_output="1")
OTHER = replace(OWN, batch_output="1")
TAKEN = [
    ("the first that is known", None, A_TOKEN, False, A_TOKEN),
    ("also later", None, A_TOKEN, True, A_TOKEN),
    ("a published one may change before anything is paid", A_TOKEN, CHEAPER, False, CHEAPER),
    ("and not after that", A_TOKEN, CHEAPER, True, A_TOKEN),
    ("nor be forgotten", A_TOKEN, None, True, A_TOKEN),
    ("the provider object's counts at any time", A_TOKEN, OWN, True, OWN),
    ("as it is now", OWN, OTHER, True, OTHER),
    ("and not when it is taken back", OWN, None, True, None),
    ("for a published one", OWN, A_TOKEN, True, A_TOKEN),
]


@pytest.mark.parametrize(
    ("reason", "known", "found", "submitted", "want"), TAKEN, ids=[t[0] for t in TAKEN]
)
def test_the_price_of_a_run(reason, known, found, submitted, want) -> None:
    assert take(known, found, submitted=submitted) == want, reason


@pytest.mark.parametrize("phase", [RunPhase.FINISHING, RunPhase.CLEANING])
def test_results_keep_the_price_that_they_are_written_with(phase) -> None:
    run = replace(run_with(home()), phase=phase, price=OWN)
    assert decided(run, observed(price=OTHER)).run.price == OWN


# ---------------------------------------------------------------- what is shown


def shown(run: Run):
    return status_of(Scene(seen(job()), run, Notes(), None, False, NOW, TIMING)).cost


def test_the_estimate_is_shown_once_all_is_staged() -> None:
    run = run_with(waiting(0, 10), waiting(1, 5), price=A_TOKEN)
    assert (shown(run).currency, shown(run).estimated) == ("USD", "15.00")
    assert (shown(run).actual, shown(run).on_demand) == ("", "")
    assert shown(replace(run, phase=RunPhase.STAGING)) is None


@pytest.mark.parametrize("shard", [waiting(output=None)])
def test_what_has_no_bound_has_no_estimate(shard) -> None:
    assert shown(run_with(shard, price=A_TOKEN)) is None
    assert shown(run_with(waiting())) is None, "nor what has no price"
    assert shown(run_with(waiting(longest=101), price=LONG)) is None, "nor what may have another"


def test_the_cost_so_far_is_shown_while_batches_are_collected() -> None:
    found = shown(run_with(home(0, 4), waiting(1, 10), price=A_TOKEN))
    assert (found.estimated, found.actual, found.on_demand) == ("20.00", "4.00", "8.00")


def test_records_that_go_again_are_estimated_once() -> None:
    run = run_with(home(0, 4), again(1, 10), price=A_TOKEN)
    assert estimate(run) == Decimal(10)


def test_nothing_of_an_unstaged_run_is_estimated() -> None:
    assert cost_of(replace(run_with(), staged=None, price=A_TOKEN)) is None


def test_a_run_ends_with_its_estimate_and_its_cost() -> None:
    run = replace(run_with(home(0, 4), price=A_TOKEN), phase=RunPhase.FINISHING)
    done = TaskDone(TaskKind.FINISH, None, None, Finished(Results(completed=1, output_tokens=4)))
    ended = fold(run, done)
    assert (ended.results.estimated, ended.results.cost) == ("10.00", "4.00")
    found = shown(ended)
    assert (found.estimated, found.actual, found.on_demand) == ("10.00", "4.00", "8.00")


def test_a_run_without_a_bound_ends_with_its_cost_alone() -> None:
    shard = replace(home(0, 4), output=None)
    run = replace(run_with(shard, price=A_TOKEN), phase=RunPhase.FINISHING)
    done = TaskDone(TaskKind.FINISH, None, None, Finished(Results(completed=1, output_tokens=4)))
    ended = fold(run, done)
    assert (ended.results.estimated, ended.results.cost) == ("", "4.00")
