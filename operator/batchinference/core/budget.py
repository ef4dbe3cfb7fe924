"""What a run may cost at most, what of that is spent, and what `spec.budget` still allows.

Before a run is paid for, all of it must fit; once it is under way, what is spent and what may still
be billed for counts with what shall go. A bound of the input is more than its estimate
(`INPUT_MARGIN`); that of the output is what the requests themselves allow. Records that were tried
before and don't fit are not sent again; everything else that doesn't fit stalls until somebody
changes the budget or the price. Batches at the provider are never touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

from batchinference.core.draft import Draft
from batchinference.core.effects import Announce
from batchinference.core.pricing import EXACT, amount, amounts, shown, shown_bound, used
from batchinference.core.transitions import ShardInput, step_shard
from batchinference.model.job import Budget, Operation
from batchinference.model.price import Price, PriceSource
from batchinference.model.run import Run, RunPhase, Shard, ShardState, SubmissionState
from batchinference.model.status import Cost, Reason
from batchinference.model.submission import Submission

INPUT_MARGIN = 2
"""Times the estimate of the input, which is one token for every four bytes (`records.tokens`). One
for every two bytes is more than text, source code and languages of three-byte characters take.
"""

BUDGET_EXCEEDED = "BudgetExceeded"
"""The stable error code of records that are not sent again."""

_LOOK_AGAIN = timedelta(hours=1)
"""Published prices change from one day to the next without anybody's edit."""

_MAY_BILL = {SubmissionState.CLAIMED, SubmissionState.ACCEPTED, SubmissionState.ENDED}
_TO_GO = {ShardState.STAGED, ShardState.QUEUED}


# ---------------------------------------------------------------- sums


def estimate(run: Run) -> Decimal | None:
    """The most that the whole input should cost, each record once; None where the price is unknown
    or some answers have no bound.
    """
    price = price_of(run)
    if price is None or run.staged is None or run.phase is RunPhase.STAGING:
        return None
    return _total(run, [shard for shard in run.shards if not shard.sources], price)


def cost_of(run: Run) -> Cost | None:
    """What the answers that were collected cost, and what all may cost at most; None where the
    price is unknown, or there is nothing to say yet.
    """
    price = price_of(run)
    if price is None:
        return None
    most = estimate(run)
    estimated = "" if most is None else shown_bound(most)
    if not any(shard.collected for shard in run.shards):
        return Cost(price.currency, estimated) if estimated else None
    so_far = amounts(price, *used(run))
    return Cost(price.currency, estimated, shown(so_far.batch), shown(so_far.live))


def spent(run: Run) -> Decimal | None:
    """What the run has cost, with a bound in place of what is not known yet, or never will be; None
    where the price is unknown, or there is no such bound.
    """
    price = price_of(run)
    if price is None:
        return None
    total = Decimal(0)
    for shard in run.shards:
        cost = _spent(run, shard, price)
        if cost is None:
            return None
        total = EXACT.add(total, cost)
    return total


def _spent(run: Run, shard: Shard, price: Price) -> Decimal | None:
    billing = _may_bill(shard)
    found = shard.collected
    told = Decimal(0)
    if found is not None:
        told = amounts(price, found.input_tokens, found.output_tokens).batch
    if not billing:
        return told
    is_told = found is not None and not found.lost and len(billing) == 1
    if is_told and billing[0].state is SubmissionState.ENDED:
        return told
    bound = _bound(run, shard, price)
    return None if bound is None else max(told, EXACT.multiply(bound, Decimal(len(billing))))


def _may_bill(shard: Shard) -> list[Submission]:
    """What was or may have been billed. What is absent behind a fence was not; what somebody, or
    the provider object's policy, only says was not accepted may have been.
    """
    sure = [made for made in shard.made if made.state in _MAY_BILL]
    said = [gone for gone in shard.missing if gone.state is SubmissionState.FENCED and gone.settled]
    return [*sure, *said]


def _bound(run: Run, shard: Shard, price: Price) -> Decimal | None:
    """The most that a shard should cost in one batch; None where its answers have no bound."""
    output = 0 if _has_no_output(run) else shard.output
    if output is None:
        return None
    return amounts(price, shard.tokens * INPUT_MARGIN, output).batch


def _total(run: Run, shards: Iterable[Shard], price: Price) -> Decimal | None:
    """The most that these should cost; None where the answers of one have no bound."""
    total = Decimal(0)
    for shard in shards:
        bound = _bound(run, shard, price)
        if bound is None:
            return None
        total = EXACT.add(total, bound)
    return total


def _has_no_output(run: Run) -> bool:
    return run.spec.get("operation") == Operation.EMBEDDINGS


def price_of(run: Run) -> Price | None:
    """The run's price, if it holds for each of its records; None where nothing can be said."""
    return None if run.price is None or longest_above(run, run.price) else run.price


def longest_above(run: Run, price: Price) -> int:
    """The bound of the longest record's tokens where that is above what the price holds for, or may
    be; else 0.
    """
    if price.most_input is None:
        return 0
    # Shards of an older version of the operator don't tell: all of one may be one record.
    longest = max((s.longest or s.tokens for s in run.shards), default=0) * INPUT_MARGIN
    return longest if longest > price.most_input else 0


# ---------------------------------------------------------------- steps of `decide`


def take_price(draft: Draft) -> bool:
    """The run's price is what the provider object says of it now, until the results are written.
    A published one stays as it was when the run was submitted.
    """
    run, found = draft.run, draft.observed.price
    if run.phase not in {RunPhase.STAGING, RunPhase.RUNNING} or run.price == found:
        return False
    is_published = run.price is not None and run.price.source is PriceSource.LIBRARY
    has_own = found is not None and found.source is PriceSource.PROVIDER
    if is_published and not has_own and run.was_submitted:
        return False
    draft.run = replace(run, price=found)
    return False


def keep_to_budget(draft: Draft) -> bool:
    """Nothing goes to the provider that could bring the run above its budget."""
    run, budget = draft.run, draft.spec.budget
    if budget is None or run.phase is not RunPhase.RUNNING or run.cancel is not None or draft.held:
        return False
    first = [s for s in run.shards if _waits(s) and not _is_retry(s)]
    again = [s for s in run.shards if s.state in _TO_GO and _is_retry(s)]
    if not first and not again:
        return False
    limits = _checked(draft, budget)
    if limits is None:
        return False
    most, price = limits
    known, planned = spent(run), _total(run, first, price)
    if known is None or planned is None or _total(run, again, price) is None:
        _stall(draft, Reason.UNBOUNDED_OUTPUT, _UNBOUNDED)
    elif first and EXACT.add(known, planned) > most:
        _stall(draft, Reason.BUDGET_EXCEEDED, _too_much(run, budget, known, planned))
    else:
        _hold_retries(draft, again, price, EXACT.subtract(most, EXACT.add(known, planned)))
    return False


def _hold_retries(draft: Draft, again: list[Shard], price: Price, rest: Decimal) -> None:
    """Of the records that were tried before, those go that fit into the rest of the budget. Others
    wait while what is at the provider, or goes there, may turn out to cost less, and are not sent
    again when nothing does.
    """
    waiting = any(_is_under_way(s) or (_waits(s) and not _is_retry(s)) for s in draft.run.shards)
    for shard in again:
        bound = _bound(draft.run, shard, price)
        assert bound is not None, "they were added up before"
        if bound <= rest:
            rest = EXACT.subtract(rest, bound)
            waiting = True
            continue
        draft.unaffordable.add(shard.index)
        if waiting:
            continue
        left = replace(step_shard(shard, ShardInput.DROP) or shard, unsent_code=BUDGET_EXCEEDED)
        draft.run = draft.run.with_shard(left)
        text = (
            f"{shard.rows} records that were not billed are not sent again: they could cost up to "
            f"{shown_bound(bound)} {price.currency}, more than `spec.budget` leaves. Their error "
            f"code is {BUDGET_EXCEEDED}"
        )
        draft.effects.append(Announce(Reason.BUDGET_EXCEEDED, text, warning=True))


def _is_under_way(shard: Shard) -> bool:
    """Whether what it costs is not known yet."""
    return shard.state.is_live or shard.state is ShardState.ENDED


def _waits(shard: Shard) -> bool:
    """Whether it has yet to go to the provider, as it is or cut anew."""
    return shard.state in _TO_GO or (shard.state is ShardState.REGROUPED and not shard.pooled)


def _is_retry(shard: Shard) -> bool:
    """Whether its records were at the provider before, and not billed."""
    return bool(shard.sources) and shard.attempt > 1


# ---------------------------------------------------------------- what to say


def _checked(draft: Draft, budget: Budget) -> tuple[Decimal, Price] | None:
    """The budget, and the price that it can be held against; None, and the draft says why, where
    there is none.
    """
    run = draft.run
    most = amount(budget.max_cost)
    if most is None:
        text = "`spec.budget.maxCost` must be a decimal number, such as 25.00. Nothing is submitted"
        _stall(draft, Reason.INVALID_SPEC, text)
        return None
    provider = f"{run.provider.kind} '{run.provider.name}'"
    model = run.spec.get("model", "")
    if run.price is None:
        text = (
            f"No price of model '{model}' at {provider} is known, so `spec.budget` can't be kept "
            f"to. Name the price in `spec.pricing` of {provider}, or remove `spec.budget`; the run "
            "then goes on by itself"
        )
        _stall(draft, Reason.PRICE_UNKNOWN, text)
        return None
    longest = longest_above(run, run.price)
    if longest:
        text = (
            f"The published price of model '{model}' holds for requests of up to "
            f"{run.price.most_input} input tokens; the longest record may have {longest}. Name the "
            f"price that counts in `spec.pricing` of {provider}, or remove `spec.budget`"
        )
        _stall(draft, Reason.PRICE_UNKNOWN, text)
        return None
    if run.price.currency != budget.currency:
        text = (
            f"`spec.budget` is in {budget.currency}, and the price of model '{model}' at "
            f"{provider} in {run.price.currency}: they can't be compared. Give the budget in "
            f"{run.price.currency}, or the price in {budget.currency} in `spec.pricing` of the "
            "provider"
        )
        _stall(draft, Reason.BUDGET_CURRENCY, text)
        return None
    return most, run.price


_UNBOUNDED = (
    "Some requests don't say how many tokens their answers may have at most, so nobody can tell "
    "what they may cost, and `spec.budget` can't be kept to. Nothing more is submitted. Remove "
    "`spec.budget`; or create the job anew with `spec.parameters.maxOutputTokens`, or with a limit "
    "in each record, and another `runID` where this one was submitted"
)


def _too_much(run: Run, budget: Budget, known: Decimal, planned: Decimal) -> str:
    needed = shown_bound(EXACT.add(known, planned))
    limit = f"`spec.budget` of {budget.max_cost} {budget.currency}"
    if not run.was_submitted:
        assert run.staged is not None
        records = run.staged.records - run.staged.bad
        return (
            f"The {records} records could cost up to {needed} {budget.currency}, more than "
            f"{limit}. Nothing was submitted. Raise `spec.budget.maxCost` to {needed}, and the run "
            "goes on by itself; or create the job anew with fewer records or a lower "
            "`spec.parameters.maxOutputTokens`"
        )
    return (
        f"What is not submitted yet could cost up to {shown_bound(planned)} {budget.currency}, and "
        f"what is may cost {shown_bound(known)}: together more than {limit}. The former is held "
        f"back, the latter goes on. Raise `spec.budget.maxCost` to {needed}, and all of it goes; "
        "or set `spec.desiredState: Cancelled` to end the run with what it has"
    )


def _stall(draft: Draft, reason: str, text: str) -> None:
    draft.stall(reason, text)
    draft.wake(draft.observed.now + _LOOK_AGAIN)
