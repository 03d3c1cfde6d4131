"""The circuit breaker, on a manual clock."""

from __future__ import annotations

import pytest

from kvstore.node.pull.breaker import (
    FIRST_PAUSE_S,
    MAX_FAILURES,
    MAX_PAUSE_S,
    BreakerState,
    CircuitBreaker,
)
from kvstore.testing.clock import ManualClock


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(clock)


def test_failures_in_a_row_open_it(breaker):
    for _ in range(MAX_FAILURES - 1):
        breaker.failed(timed_out=False)
    breaker.succeeded()
    for _ in range(MAX_FAILURES - 1):
        breaker.failed(timed_out=False)
    assert breaker.state is BreakerState.CLOSED
    breaker.failed(timed_out=False)
    assert breaker.state is BreakerState.OPEN
    assert not breaker.admit()


def test_one_timeout_opens_it(breaker):
    assert breaker.admit()
    breaker.failed(timed_out=True)
    assert breaker.state is BreakerState.OPEN


def test_after_the_pause_one_caller_probes(breaker, clock):
    breaker.failed(timed_out=True)
    clock.advance(FIRST_PAUSE_S * 0.99)
    assert not breaker.admit()
    clock.advance(FIRST_PAUSE_S * 0.01)
    assert breaker.admit()
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.admit()
    breaker.succeeded()
    assert breaker.admit()
    assert breaker.admit()


def test_the_pause_doubles_up_to_its_bound_and_a_success_resets_it(breaker, clock):
    pause_s = FIRST_PAUSE_S
    breaker.failed(timed_out=True)
    for _ in range(12):
        clock.advance(pause_s * 0.99)
        assert not breaker.admit()
        clock.advance(pause_s * 0.02)
        assert breaker.admit()
        breaker.failed(timed_out=False)
        pause_s = min(2 * pause_s, MAX_PAUSE_S)
    assert pause_s == MAX_PAUSE_S
    clock.advance(MAX_PAUSE_S)
    assert breaker.admit()
    breaker.succeeded()
    breaker.failed(timed_out=True)
    clock.advance(FIRST_PAUSE_S)
    assert breaker.admit()


def test_calls_admitted_before_it_opened_do_not_lengthen_the_pause(breaker, clock):
    for _ in range(10):
        assert breaker.admit()
    for _ in range(10):
        breaker.failed(timed_out=True)
    clock.advance(FIRST_PAUSE_S)
    assert breaker.admit()


def test_a_late_success_closes_it(breaker):
    breaker.failed(timed_out=True)
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED


def test_a_probe_that_is_given_up_lets_another_try(breaker, clock):
    breaker.failed(timed_out=True)
    clock.advance(FIRST_PAUSE_S)
    assert breaker.admit()
    breaker.given_up()
    clock.advance(FIRST_PAUSE_S)
    assert breaker.admit()


def test_giving_up_says_nothing_of_a_peer_that_does_well(breaker):
    for _ in range(2 * MAX_FAILURES):
        assert breaker.admit()
        breaker.given_up()
    assert breaker.state is BreakerState.CLOSED
