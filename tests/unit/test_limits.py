"""Rate limits: no more than so many events in a period, whatever the order of requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.service import FakeClock
from privyseal_acme.flow import limits
from privyseal_acme.flow.limits import RateLimit


def test_a_burst_and_then_a_steady_rate() -> None:
    clock = FakeClock(1_000_000)
    limit = RateLimit(events=3, period=60, clock=clock)
    for _ in range(3):
        assert limit.wait("a") == 0
        limit.count("a")
    assert limit.wait("a") == 20
    assert limit.wait("b") == 0
    clock.advance(20)
    assert limit.wait("a") == 0
    limit.count("a")
    assert limit.wait("a") == 20


def test_none() -> None:
    limit = RateLimit(events=0, period=60, clock=FakeClock(0))
    for _ in range(1_000):
        limit.count("a")
    assert limit.wait("a") == 0


def test_waiting_counts_nothing() -> None:
    limit = RateLimit(events=1, period=60, clock=FakeClock(0))
    assert [limit.wait("a") for _ in range(10)] == [0.0] * 10


@given(st.integers(1, 6), st.lists(st.integers(0, 30), max_size=60))
def test_never_more_than_allowed(events: int, pauses: list[int]) -> None:
    period = 60
    clock = FakeClock(1_000_000)
    limit = RateLimit(events=events, period=period, clock=clock)
    taken: list[float] = []
    for pause in pauses:
        clock.advance(pause)
        if limit.wait("a") <= 0:
            limit.count("a")
            taken.append(clock.now())
    for start in taken:
        # A burst and what is paid back while the period lasts.
        assert sum(start <= moment < start + period for moment in taken) <= 2 * events


def test_the_wait_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(1_000_000)
    limit = RateLimit(events=7, period=60, clock=clock)
    for _ in range(7):
        limit.count("a")
    seconds = limit.wait("a")
    clock.advance(seconds)
    assert limit.wait("a") == pytest.approx(0, abs=1e-6)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_KEYS", 10)
    limit = RateLimit(events=1, period=60, clock=FakeClock(0))
    for number in range(1_000):
        limit.count(str(number))
    assert len(limit._paid) == 10
    assert limit.wait("999") > 0
    assert limit.wait("0") == 0


def test_a_clock_that_steps_back_locks_nobody_out() -> None:
    clock = FakeClock(1_000_000)
    limit = RateLimit(events=3, period=60, clock=clock)
    limit.count("a")
    clock.advance(-3600)
    for _ in range(2):
        assert limit.wait("a") == 0
        limit.count("a")
    assert limit.wait("a") == 20
    clock.advance(20)
    assert limit.wait("a") == 0


def test_who_did_more_than_is_allowed_owes_it() -> None:
    """Failures count when they come, and many may be on their way when the limit is reached."""
    limit = RateLimit(events=3, period=60, clock=FakeClock(1_000_000))
    for number in range(1, 10):
        limit.count("a")
        assert limit.wait("a") == max(0, 20 * (number - 2))
