"""The survey of the fleet, against a plain computation of the same figures."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.lineages import DAY, NOW, attempt
from privyseal_ca.fleet.survey import PERIODS, STATES, TIMELINE, FleetFigures, Survey
from privyseal_ca.fleet.survival import DIMENSIONS, OTHER, Survival
from privyseal_ca.fleet_sections import CRITICALITIES
from privyseal_ca.store.fleet_survey import SurveyRow

_PROBLEMS = ("dns", "connection", "rateLimited")


def row(**columns: Any) -> SurveyRow:
    usual: dict[str, Any] = {
        "id": "w",
        "issuer_id": "i1",
        "profile": "mtls",
        "owner": "ops",
        "criticality": "normal",
        "renews": 1,
        "not_before": NOW - DAY,
        "not_after": NOW + DAY,
        "certificates": 2,
        "renewed_at": NOW - DAY // 2,
        "attempt": "",
        "state": "current",
        "missed_at": 0,
        "revoked_at": 0,
        "retired_at": 0,
    }
    return SurveyRow(**{**usual, **columns})


def figures(rows: Sequence[SurveyRow], *, most: int = 32, page: int = 7, now: float = NOW) -> FleetFigures:
    survey = Survey(now, most=most)
    for first in range(0, len(rows), page):
        survey.add(rows[first : first + page])
    return survey.figures()


#: Moments around now, many of them the same and some at the edges of what is counted.
_near = st.one_of(
    st.integers(NOW - 8 * DAY, NOW + 100 * DAY),
    st.sampled_from([NOW - 7 * DAY, NOW - DAY, NOW - 1, NOW, NOW + 1, *(NOW + until for _, until in TIMELINE)]),
    st.integers(NOW, NOW + 3),
)


@st.composite
def workloads(draw: st.DrawFn) -> SurveyRow:
    state = draw(st.sampled_from(STATES))
    retired = state == "retired"
    return row(
        issuer_id=draw(st.sampled_from(["i1", "i2"])),
        profile=draw(st.sampled_from(["mtls", "server"])),
        owner=draw(st.sampled_from(["", "a", "b", "c", "d", "e"])),
        criticality=draw(st.sampled_from(CRITICALITIES)),
        renews=draw(st.sampled_from([1, 1, 1, 0])),
        not_before=draw(st.sampled_from([NOW - 9 * DAY, NOW - 9 * DAY, NOW, NOW + 1])),
        not_after=draw(st.one_of(_near, st.just(0))),
        certificates=draw(st.integers(0, 3)),
        renewed_at=draw(_near.map(lambda moment: min(moment, NOW))),
        attempt=attempt("order", draw(st.sampled_from(_PROBLEMS))) if state == "failing" else "",
        state=state,
        missed_at=0 if retired else draw(st.one_of(st.just(0), _near.map(lambda moment: min(moment, NOW)))),
        revoked_at=draw(st.sampled_from([0, 0, NOW - 5])),
        retired_at=NOW - 5 if retired else 0,
    )


def plain_survival(rows: Sequence[SurveyRow], by: str, group: str) -> Survival:
    """The definition, word by word: the moment when at least that share has no valid certificate."""
    ends = [each.not_after for each in rows]

    def moment(share: float) -> int:
        return min(end for end in ends if sum(other <= end for other in ends) >= share * len(ends))

    return Survival(by, group, len(ends), min(ends), moment(0.1), moment(0.5), moment(0.9))


@settings(max_examples=60)
@given(st.lists(workloads(), max_size=40), st.integers(1, 4), st.integers(1, 50))
def test_the_survival_clock_is_what_it_says(rows: list[SurveyRow], most: int, page: int) -> None:
    found = figures(rows, most=most, page=page).survival
    alive = [
        each
        for each in rows
        if each.state != "retired" and each.renews and not each.revoked_at and each.not_before <= NOW < each.not_after
    ]
    wanted = [plain_survival(alive, "all", "")] if alive else []
    for by, column in zip(DIMENSIONS, ("issuer_id", "profile", "owner", "criticality"), strict=True):
        groups: dict[str, list[SurveyRow]] = {}
        for each in alive:
            groups.setdefault(getattr(each, column), []).append(each)
        largest = sorted(groups, key=lambda name, groups=groups: (-len(groups[name]), name))  # type: ignore[misc]
        shown = {name: groups[name] for name in largest[:most]}
        if rest := [each for name in largest[most:] for each in groups[name]]:
            shown[OTHER] = rest
        wanted += [plain_survival(shown[name], by, name) for name in sorted(shown)]
    assert list(found) == wanted


@settings(max_examples=60)
@given(st.lists(workloads(), max_size=40), st.integers(1, 50))
def test_the_counts_are_what_they_say(rows: list[SurveyRow], page: int) -> None:
    found = figures(rows, page=page)
    living = [each for each in rows if each.state != "retired"]
    assert found.workloads == len(living)
    assert found.states == {
        state: {
            criticality: sum(each.state == state and each.criticality == criticality for each in rows)
            for criticality in CRITICALITIES
        }
        for state in STATES
    }
    assert found.missed == {
        criticality: sum(bool(each.missed_at) and each.criticality == criticality for each in rows)
        for criticality in CRITICALITIES
    }
    assert found.unowned == sum(not each.owner for each in living)
    assert sum(found.failing.values()) == sum(each.state == "failing" and bool(each.not_after) for each in living)
    assert found.failing.keys() <= set(_PROBLEMS)
    by_owner = {
        owner: (
            {state: sum(each.owner == owner and each.state == state for each in rows) for state in STATES},
            sum(each.owner == owner and bool(each.missed_at) for each in rows),
        )
        for owner in {each.owner for each in rows}
    }
    assert {each.owner: (dict(each.states), each.missed) for each in found.owners} == by_owner
    order = [(-each.missed, -each.workloads, each.owner) for each in found.owners]
    assert order == sorted(order)


@settings(max_examples=60)
@given(st.lists(workloads(), max_size=40), st.integers(1, 50))
def test_the_timeline_and_the_renewals_are_what_they_say(rows: list[SurveyRow], page: int) -> None:
    found = figures(rows, page=page)
    living = [each for each in rows if each.state != "retired"]
    bounds = [-(2**62), 0, *(until for _, until in TIMELINE), 2**62]
    for place, span in enumerate(found.timeline):
        there = [
            each for each in living if each.not_after and bounds[place] < each.not_after - NOW <= bounds[place + 1]
        ]
        assert (span.workloads, span.missed) == (len(there), sum(bool(each.missed_at) for each in there)), span
    for renewals, (period, seconds) in zip(found.renewals, PERIODS, strict=True):
        missed = [each for each in living if each.missed_at > NOW - seconds]
        renewed = [
            each for each in living if each not in missed and each.certificates > 1 and each.renewed_at > NOW - seconds
        ]
        assert (renewals.period, renewals.renewed, renewals.missed) == (period, len(renewed), len(missed))


def test_an_example() -> None:
    """Ten workloads that end an hour apart: the clock in numbers that can be checked by hand."""
    rows = [row(id=f"w{each}", not_after=NOW + each * 3600, owner="ab"[each > 8]) for each in range(1, 11)]
    found = figures([*rows, row(revoked_at=NOW - 1, state="revoked", not_after=NOW + 5), row(renews=0, owner="a")])
    overall = found.survival[0]
    assert (overall.by, overall.workloads) == ("all", 10)
    hours = {name: (moment - NOW) / 3600 for name, moment in overall.moments.items()}
    assert hours == {"first": 1, "10": 1, "50": 5, "90": 9}
    of_b = next(each for each in found.survival if (each.by, each.group) == ("owner", "b"))
    assert (of_b.workloads, of_b.first, of_b.ninety) == (2, NOW + 9 * 3600, NOW + 10 * 3600)
    assert found.renewals[0].success == 1
    document = found.document()
    assert document["survival"][0]["50"] == {"at": "2026-11-21T15:00:00Z", "seconds": 5 * 3600}
    assert document["states"]["revoked"] == {"total": 1, "critical": 0, "high": 0, "normal": 1, "low": 0}
    assert document["timeline"][1] == {"within": "1h", "until": 3600, "workloads": 2, "missed": 0}


def test_an_empty_fleet_has_figures() -> None:
    found = figures([])
    assert (found.workloads, found.unowned, found.survival, found.owners) == (0, 0, (), ())
    assert found.renewals[0].success is None
    assert found.document()["missed"] == {"total": 0, "critical": 0, "high": 0, "normal": 0, "low": 0}


def test_owners_beyond_the_largest_are_together() -> None:
    rows = [row(owner=f"o{number % 40:02d}") for number in range(60)]
    found = figures(rows, most=32)
    assert len(found.owners) == 33
    assert next(each for each in found.owners if each.owner == OTHER).workloads == 8
    assert {each.group for each in found.survival if each.by == "owner"} == {each.owner for each in found.owners}


@pytest.mark.parametrize("attempt_text", ["", "{", "[]", '{"type": 5}', "null", '{"type": {"a": 1}}'])
def test_an_attempt_that_says_nothing_is_of_no_known_problem(attempt_text: str) -> None:
    assert figures([row(state="failing", attempt=attempt_text)]).failing in ({"": 1}, {"5": 1})


def test_twenty_thousand_ends_within_one_minute_are_put_in_order() -> None:
    """As after a rush of renewals: more ends in one hour than it has seconds."""
    ends = [NOW + DAY + number * 7919 % 60 for number in range(20_000)]
    found = figures([row(not_after=end) for end in ends], page=500).survival[0]
    ends.sort()
    ranks = [1, *(ceil(len(ends) * share / 100) for share in (10, 50, 90))]
    assert list(found.moments.values()) == [ends[rank - 1] for rank in ranks]
