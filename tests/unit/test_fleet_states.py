"""When a workload is in which state, and until when its renewal is in time: a table, and what holds of all of them."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from privyseal_ca.fleet.states import CESSATION, NEVER, Facts, State, deadline_of, judge

DAY = 86400
BEGIN = 1_800_000_000
END = BEGIN + 30 * DAY
GONE = 14 * DAY
#: A certificate of thirty days, whose window is the twentieth day and whose deadline the end of the twenty-third.
WELL = Facts(
    not_before=BEGIN,
    not_after=END,
    window_start=BEGIN + 19 * DAY,
    window_end=BEGIN + 20 * DAY,
    deadline=BEGIN + 23 * DAY,
    polled_at=0,
    attempts=0,
    attempted_at=0,
    revoked_at=0,
    revocation_reason=None,
    retired_at=0,
    renews=True,
    missed_at=0,
)
POLLED = {"polled_at": BEGIN + 19 * DAY}
FAILED = {"attempts": 2, "attempted_at": BEGIN + 19 * DAY}
REVOKED = {"revoked_at": BEGIN + 5 * DAY, "revocation_reason": 4}
UNBORN = {
    "not_before": 0,
    "not_after": 0,
    "window_start": 0,
    "window_end": 0,
    "deadline": 0,
    "attempts": 1,
    "attempted_at": BEGIN,
}


@pytest.mark.parametrize(
    ("facts", "day", "state", "missed"),
    [
        ({}, 0, State.CURRENT, False),
        ({}, 18.999, State.CURRENT, False),
        ({}, 19, State.DUE, False),
        ({}, 22.999, State.DUE, False),
        ({}, 23, State.SILENT, True),
        ({}, 31, State.SILENT, True),
        ({}, 43.999, State.SILENT, True),
        ({}, 44, State.RETIRED, False),
        (POLLED, 18, State.CURRENT, False),
        (POLLED, 22, State.DUE, False),
        (POLLED, 23, State.OVERDUE, True),
        ({"polled_at": BEGIN + 19 * DAY - 1}, 23, State.SILENT, True),
        (FAILED, 5, State.FAILING, False),
        (FAILED, 20, State.FAILING, False),
        (FAILED, 23, State.FAILING, True),
        (FAILED | POLLED, 23, State.FAILING, True),
        (REVOKED, 6, State.REVOKED, False),
        (REVOKED | FAILED, 20, State.REVOKED, False),
        (REVOKED, 23, State.REVOKED, True),
        (REVOKED, 44, State.RETIRED, False),
        ({"revoked_at": BEGIN + 5 * DAY, "revocation_reason": CESSATION}, 5, State.RETIRED, False),
        ({"revoked_at": BEGIN + 5 * DAY, "revocation_reason": None}, 6, State.REVOKED, False),
        ({"retired_at": BEGIN + 1}, 1, State.RETIRED, False),
        ({"retired_at": BEGIN + 1} | FAILED, 25, State.RETIRED, False),
        ({"renews": False}, 25, State.CURRENT, False),
        ({"renews": False} | FAILED, 25, State.CURRENT, False),
        ({"renews": False} | REVOKED, 25, State.REVOKED, False),
        ({"renews": False}, 29.999, State.CURRENT, False),
        ({"renews": False}, 30, State.RETIRED, False),
        (UNBORN, 1, State.FAILING, False),
        (UNBORN | {"renews": False}, 1, State.FAILING, False),
        (UNBORN, 13.999, State.FAILING, False),
        (UNBORN, 14, State.RETIRED, False),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, dict) else str(value),
)
def test_the_states(facts: dict[str, Any], day: float, state: State, missed: bool) -> None:
    judgement = judge(replace(WELL, **facts), BEGIN + int(day * DAY), retire_after=GONE)
    assert judgement.state == state
    assert bool(judgement.missed_at) is missed


def test_who_retired_it_is_told_apart() -> None:
    assert judge(WELL, END + GONE, retire_after=GONE).over
    assert not judge(replace(WELL, retired_at=END), END + GONE, retire_after=GONE).over


_moments = st.integers(BEGIN - DAY, END + 20 * DAY)


@st.composite
def facts_of_any_kind(draw: st.DrawFn) -> Facts:
    begin = BEGIN + draw(st.integers(0, 30 * DAY))
    end = begin + draw(st.integers(0, 20 * DAY))
    revoked = draw(st.booleans())
    attempts = draw(st.integers(0, 3))
    return Facts(
        not_before=BEGIN,
        not_after=END,
        window_start=begin,
        window_end=end,
        deadline=end + draw(st.integers(0, 5 * DAY)),
        polled_at=draw(st.one_of(st.just(0), _moments)),
        attempts=attempts,
        attempted_at=draw(_moments) if attempts else 0,
        revoked_at=draw(_moments) if revoked else 0,
        revocation_reason=draw(st.sampled_from([None, 0, 1, 4, CESSATION])) if revoked else None,
        retired_at=draw(st.sampled_from([0, 0, 0, BEGIN + DAY])),
        renews=draw(st.sampled_from([True, True, False])),
        missed_at=0,
    )


@given(facts_of_any_kind(), _moments)
def test_what_is_missed_is_missed_from_the_deadline_on(facts: Facts, now: int) -> None:
    judgement = judge(facts, now, retire_after=GONE)
    counts = judgement.state != State.RETIRED and facts.renews
    assert judgement.missed_at == (facts.deadline if counts and now >= facts.deadline else 0)
    again = judge(replace(facts, missed_at=judgement.missed_at), now + 5, retire_after=GONE)
    if again.missed_at and judgement.missed_at:
        assert again.missed_at == judgement.missed_at


@given(facts_of_any_kind(), _moments, st.integers(0, 60 * DAY))
def test_nothing_changes_before_the_next_look(facts: Facts, now: int, later: int) -> None:
    """Who looks only when it is said to misses no state."""
    judgement = judge(facts, now, retire_after=GONE)
    assume(now + later < judgement.next_look)
    again = judge(facts, now + later, retire_after=GONE)
    assert (again.state, again.missed_at, again.next_look) == (
        judgement.state,
        judgement.missed_at,
        judgement.next_look,
    )


@given(facts_of_any_kind(), _moments)
def test_the_next_look_is_ahead_and_ends(facts: Facts, now: int) -> None:
    """Looking again and again comes to an end: at retirement, in a handful of looks."""
    looks, last = 0, now
    judgement = judge(facts, now, retire_after=GONE)
    while judgement.next_look != NEVER:
        assert judgement.next_look > last
        last = judgement.next_look
        judgement = judge(facts, last, retire_after=GONE)
        looks += 1
    assert judgement.state == State.RETIRED
    assert looks <= 3


@given(
    life=st.integers(3600, 400 * DAY),
    part=st.floats(0, 1),
    polls=st.booleans(),
    poll=st.integers(60, DAY),
    usual=st.integers(0, 1000),
    delay=st.floats(0, 0.2),
)
def test_the_deadline_is_between_the_window_and_the_end(
    life: int, part: float, polls: bool, poll: int, usual: int, delay: float
) -> None:
    window_end = BEGIN + int(life * part * 0.75)
    deadline = deadline_of(BEGIN, BEGIN + life, window_end, polls=polls, poll=poll, usual=usual, delay=delay)
    assert window_end <= deadline <= BEGIN + int(life * 0.9)
    if polls:
        assert deadline <= window_end + max(poll, life * delay)
    # Who takes longer than others has no less time.
    slower = deadline_of(
        BEGIN, BEGIN + life, window_end, polls=polls, poll=poll, usual=min(1000, usual + 50), delay=delay
    )
    assert slower >= deadline


@pytest.mark.parametrize(
    ("polls", "usual", "day"),
    [
        (True, 0, 21.5),
        (True, 990, 21.5),
        (False, 0, 24),
        (False, 660, 24),
        (False, 800, 25.5),
        (False, 990, 27),
    ],
)
def test_the_deadline_in_days(polls: bool, usual: int, day: float) -> None:
    """Thirty days, a window that ends on the twentieth, six hours between questions, a twentieth of the life as delay."""
    deadline = deadline_of(BEGIN, END, BEGIN + 20 * DAY, polls=polls, poll=6 * 3600, usual=usual, delay=0.05)
    assert deadline == pytest.approx(BEGIN + day * DAY, abs=2)


def test_who_is_to_ask_seldom_has_until_then() -> None:
    assert deadline_of(BEGIN, END, BEGIN + 20 * DAY, polls=True, poll=3 * DAY, usual=0, delay=0.05) == BEGIN + 23 * DAY
