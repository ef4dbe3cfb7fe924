"""When calls to an account wait, and when one tries whether the provider is there again."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.circuit import Circuit
from unit.core.given import NOW, TIMING

WORD = "HTTP 503"


def opened() -> Circuit:
    circuit = Circuit()
    for _ in range(TIMING.circuit_failures):
        circuit = circuit.failed(WORD, NOW, TIMING, 0.5)
    return circuit


def test_it_opens_with_the_last_of_so_many_failures_in_a_row() -> None:
    circuit = Circuit()
    for number in range(1, TIMING.circuit_failures):
        circuit = circuit.failed(f"{WORD} {number}", NOW, TIMING, 0.5)
        assert not circuit.is_open
        assert not circuit.may_probe(NOW + timedelta(days=1)), "there is nothing to probe"
    circuit = circuit.failed("the last one", NOW, TIMING, 0.5)
    assert circuit.is_open
    assert (circuit.since, circuit.reason) == (NOW, "the last one")


def test_one_probe_at_a_time_and_not_before_its_time() -> None:
    circuit = opened()
    first = NOW + timedelta(seconds=TIMING.circuit_first_s)
    assert not circuit.may_probe(first - timedelta(seconds=1))
    assert circuit.may_probe(first)
    assert not circuit.probe().may_probe(first)


def test_probes_that_fail_come_ever_more_rarely() -> None:
    circuit, now, waits = opened(), NOW, []
    for _ in range(10):
        assert circuit.probe_at is not None
        waits.append((circuit.probe_at - now).total_seconds())
        now = circuit.probe_at
        circuit = circuit.probe().probe_failed(now, TIMING, 0.5)
    assert waits[:4] == [TIMING.circuit_first_s * 2**n for n in range(4)]
    assert waits[-1] == TIMING.circuit_most_s
    assert circuit.since == NOW, "it has been open all the time"


def test_calls_that_end_late_do_not_put_the_probe_off() -> None:
    circuit = opened()
    later = circuit.failed("an old call", NOW + timedelta(seconds=5), TIMING, 0.5)
    assert (later.probe_at, later.reason) == (circuit.probe_at, WORD)


def test_a_probe_of_a_circuit_that_was_closed_meanwhile_says_nothing() -> None:
    assert Circuit().probe_failed(NOW, TIMING, 0.5) == Circuit()


@given(st.lists(st.booleans(), max_size=60), st.floats(0, 1, exclude_max=True))
def test_it_is_open_after_a_run_of_failures_and_only_then(
    answers: list[bool], jitter: float
) -> None:
    circuit, row, was_open = Circuit(), 0, False
    for answered in answers:
        if answered:
            circuit, row, was_open = Circuit(), 0, False
        else:
            circuit, row = circuit.failed(WORD, NOW, TIMING, jitter), row + 1
            was_open = was_open or row >= TIMING.circuit_failures
        assert circuit.is_open == was_open
        assert (circuit.probe_at is not None) == circuit.is_open, "no wait without a wake-up"
