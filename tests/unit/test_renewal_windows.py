"""Windows of renewal: where they lie, that they stay there, how they spread, and what moves them."""

import re
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.renewing import Fleet, fixed
from privyseal_ca.closed_periods import ClosedPeriods, parse_closed_periods
from privyseal_ca.config import load_settings
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.renewal.due import LEAST_CAPACITY, SETTLED, Around, DueCounts, Issued, due_share
from privyseal_ca.renewal.page import explanation_page
from privyseal_ca.renewal.windows import Reason, Shape, Window, due_now, poll_interval, window_of

DAY = 86400
#: A Monday, 00:00 UTC.
MONDAY = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp())

serials = st.integers(0, 2**127 - 1).map(lambda number: f"{number:032x}")
lives = st.integers(300, 400 * DAY)
moments = st.integers(1_700_000_000, 1_900_000_000)
arounds = st.builds(
    Around,
    before=st.integers(0, 10**7),
    within=st.integers(0, 10**7),
    after=st.integers(0, 10**7),
    span=st.floats(0, 100 * DAY),
)
closed_texts = st.lists(
    st.sampled_from(
        [
            "FR 18:00/MO 06:00",
            "MO TU WE TH FR SA SU 22:00/02:00",
            "MO 00:00/MO 00:00",
            "2026-12-20T00:00/2027-01-06T00:00",
        ]
    ),
    max_size=3,
)


def suggest(
    begin: int = MONDAY,
    life: int = DAY,
    serial: str = "00",
    *,
    now: float = 0,
    shape: Shape | None = None,
    **more: bool,
) -> Window:
    return window_of(
        serial,
        Issued(begin, begin + life),
        around=Around(),
        capacity=LEAST_CAPACITY,
        shape=shape or Shape(),
        now=now,
        **more,
    )


@given(
    serial=serials,
    begin=moments,
    life=lives,
    around=arounds,
    capacity=st.floats(0.1, 10_000),
    spread=st.floats(0.02, 0.3),
    margin=st.floats(0.1, 0.45),
    texts=closed_texts,
    critical=st.booleans(),
    age=st.floats(0, 1),
)
@settings(max_examples=400, deadline=None)
def test_every_window_is_inside_the_life_and_leaves_time(
    serial: str,
    begin: int,
    life: int,
    around: Around,
    capacity: float,
    spread: float,
    margin: float,
    texts: list[str],
    critical: bool,
    age: float,
) -> None:
    shape = Shape(spread, margin, parse_closed_periods(texts, "Europe/Berlin"))

    def at(now: float) -> Window:
        return window_of(
            serial,
            Issued(begin, begin + life),
            around=around,
            capacity=capacity,
            shape=shape,
            now=now,
            critical=critical,
        )

    window = at(begin + age * life)
    assert window.start < window.end
    assert window.start >= begin + int(life / 3)
    assert window.end <= begin + life * (1 - margin) + 2
    settled = begin + SETTLED * life + 60
    assert at(settled) == at(settled + 1) == at(begin + life) == at(begin + 10 * life), "it stays where it is"
    assert at(begin) == at(settled - 1)


@pytest.mark.parametrize(("life", "share"), [(DAY, 0.5), (10 * DAY - 1, 0.5), (10 * DAY, 2 / 3), (90 * DAY, 2 / 3)])
def test_windows_lie_around_half_or_two_thirds(life: int, share: float) -> None:
    assert due_share(life) == share
    windows = [suggest(life=life, serial=str(number)) for number in range(300)]
    middle = sum(window.start + window.end for window in windows) / 600 - MONDAY
    assert abs(middle / life - share) < 0.01
    first, last = min(window.start for window in windows), max(window.end for window in windows)
    assert 0.9 < (last - first) / (life / 6) <= 1.0


def test_who_was_issued_first_is_renewed_first() -> None:
    certificate, shape = Issued(MONDAY, MONDAY + DAY), Shape()
    later = certificate.not_after
    starts = [
        window_of(
            "00", certificate, around=Around(before, 10, 1000 - before), capacity=1000, shape=shape, now=later
        ).start
        for before in range(0, 1001, 100)
    ]
    assert starts == sorted(set(starts))


def test_a_rush_that_cannot_be_signed_in_the_usual_time_is_drawn_out_to_the_front() -> None:
    certificate = Issued(MONDAY, MONDAY + DAY)
    rush = Around(0, 100_000, 0, 60)

    def starts(capacity: float) -> tuple[list[int], Reason]:
        windows = [
            window_of(
                str(number), certificate, around=rush, capacity=capacity, shape=Shape(), now=certificate.not_after
            )
            for number in range(200)
        ]
        return [window.start - MONDAY for window in windows], windows[0].reason

    usual, reason = starts(1000)
    assert (min(usual) > 0.41 * DAY, reason) == (True, Reason.NORMAL)
    # Half of 10 for each second: 20,000 s are needed and a sixth of the day is 14,400 s.
    longer, reason = starts(10)
    assert reason is Reason.BUSY
    assert min(longer) < 0.38 * DAY
    assert max(longer) < 0.6 * DAY


def test_a_critical_workload_comes_a_range_earlier() -> None:
    usual, early = suggest(), suggest(critical=True)
    assert early.reason is Reason.CRITICAL
    assert early.end < usual.start


# Spread


@given(seed=st.integers(0, 2**32), count=st.sampled_from([6000, 8000]))
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_certificates_of_one_minute_renew_within_twice_the_mean(seed: int, count: int) -> None:
    """Lives of two hours, so that a minute has enough of them for chance to be small."""
    fleet = Fleet(count, 7200, begin=MONDAY, seed=seed, poll=300)
    for generation in fleet.renew(3, fleet.shaped(Shape())):
        assert generation.renewals == count
        assert generation.ratio <= 2
        assert generation.least_left >= 0.25


def test_the_same_clients_with_one_window_for_all_come_at_once() -> None:
    (generation,) = Fleet(2000, DAY, begin=MONDAY, seed=1).renew(1, fixed)
    assert generation.peak > 900


def test_an_even_load_stays_even() -> None:
    counts = DueCounts()
    issued = [Issued(MONDAY + second, MONDAY + second + DAY) for second in range(0, DAY, 60)]
    counts.add(issued)
    inner = [each for each in issued if MONDAY + DAY // 3 < each.not_before < MONDAY + DAY * 2 // 3]
    starts = [
        window_of("00", each, around=counts.around(each), capacity=16, shape=Shape(), now=each.not_after).start
        for each in inner
    ]
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert all(0 <= gap < 240 for gap in gaps)


def test_counts_forget_what_is_over() -> None:
    counts = DueCounts()
    old, new = Issued(MONDAY, MONDAY + DAY), Issued(MONDAY + 4 * DAY, MONDAY + 5 * DAY)
    counts.add([old, old, new])
    assert counts.around(old).total == 2
    counts.forget(MONDAY + DAY)
    assert counts.around(old).total == 2, "it is valid to its last second"
    counts.forget(MONDAY + 4 * DAY)
    assert counts.around(old).total == 0
    assert counts.around(new).total == 1
    counts.add([Issued(MONDAY, MONDAY), Issued(MONDAY, MONDAY - 5)])
    assert counts.around(old).total == 0, "without a life nothing falls due"


def test_other_lifetimes_are_counted_apart() -> None:
    counts = DueCounts()
    counts.add([Issued(MONDAY, MONDAY + DAY)] * 5 + [Issued(MONDAY, MONDAY + 30 * DAY)] * 7)
    assert counts.around(Issued(MONDAY, MONDAY + DAY)).total == 5
    assert counts.around(Issued(MONDAY, MONDAY + 30 * DAY)).total == 7


@pytest.mark.parametrize(("in_a_minute", "capacity"), [(1, 16), (960, 16), (1919, 16), (1920, 32), (60 * 300, 256)])
def test_capacity_is_the_busiest_minute(in_a_minute: int, capacity: float) -> None:
    counts = DueCounts()
    counts.add([Issued(MONDAY, MONDAY + DAY)] * in_a_minute + [Issued(MONDAY + 60, MONDAY + DAY)])
    assert counts.capacity == capacity


# Urgent ones, and how often to ask


@given(since=moments, reason=st.sampled_from([Reason.REVOKED, Reason.KEY, Reason.ISSUER]))
def test_what_is_urgent_has_passed_already(since: int, reason: Reason) -> None:
    window = due_now(since, reason)
    assert window.start < window.end < since


@given(serial=serials, begin=moments, life=lives, poll=st.integers(60, DAY))
def test_clients_ask_again_in_time(serial: str, begin: int, life: int, poll: int) -> None:
    seconds = poll_interval(serial, Issued(begin, begin + life), poll)
    assert 60 <= seconds <= DAY
    assert seconds == poll_interval(serial, Issued(begin, begin + life), poll)
    assert seconds <= max(60, poll * 1.25)
    assert seconds <= max(60, life / 24 * 1.25)


def test_clients_do_not_ask_in_step() -> None:
    intervals = {poll_interval(str(number), Issued(0, 90 * DAY), 21_600) for number in range(100)}
    assert len(intervals) > 90
    assert min(intervals) >= 0.75 * 21_600
    assert max(intervals) <= 1.25 * 21_600


# Maintenance


def in_any(window: Window, closed: ClosedPeriods) -> bool:
    return any(
        begin < window.end and end > window.start for begin, end in closed.between(window.start - DAY, window.end + DAY)
    )


def test_windows_move_before_a_closed_period_and_spread_there() -> None:
    closed = parse_closed_periods(["FR 18:00/MO 06:00"], "UTC")
    shape = Shape(closed=closed)
    # Twelve days: due eight days later, Saturday to Sunday.
    begin = MONDAY - 2 * DAY
    windows = [suggest(begin, 12 * DAY, str(number), shape=shape) for number in range(200)]
    plain = [suggest(begin, 12 * DAY, str(number)) for number in range(200)]
    assert any(in_any(window, closed) for window in plain)
    moved = [window for window, before in zip(windows, plain, strict=True) if window != before]
    assert moved
    assert all(window.reason is Reason.MAINTENANCE for window in moved)
    assert not any(in_any(window, closed) for window in windows)
    assert all(window.end <= before.start for window, before in zip(windows, plain, strict=True) if window != before)
    hours = [window.start // 3600 for window in moved]
    assert max(hours.count(hour) for hour in hours) < len(moved) / 4


def test_maintenance_does_not_gather_the_load() -> None:
    closed = parse_closed_periods(["MO TU WE TH FR SA SU 10:00/11:00"], "UTC")
    count = 5000
    fleet = Fleet(count, DAY, begin=MONDAY, seed=1)
    (generation,) = fleet.renew(1, fleet.shaped(Shape(closed=closed)))
    # Everybody is in the four hours around noon; an hour's share moves before ten, and chance adds to a minute's.
    assert generation.peak < 2.8 * count / 240
    assert generation.least_left >= 0.25


def test_a_closed_period_that_is_too_long_gives_way() -> None:
    """Nothing is moved behind what is safe: renewing in the period beats not renewing."""
    always = Shape(closed=parse_closed_periods(["MO 00:00/MO 00:00"], "UTC"))
    assert suggest(shape=always) == suggest()


def test_when_before_is_too_early_it_goes_behind_if_that_is_safe() -> None:
    # A day's life from Monday on: closed from before the first third to 14:00; 18:00 is the latest.
    closed = parse_closed_periods(["2026-11-23T06:00Z/2026-11-23T14:00Z"], "UTC")
    window = suggest(shape=Shape(closed=closed))
    assert MONDAY + 14 * 3600 <= window.start < window.end <= MONDAY + 18 * 3600
    assert window.reason is Reason.MAINTENANCE


def spans(text: str, zone: str = "UTC", days: int = 7) -> list[tuple[str, str]]:
    return [
        (f"{datetime.fromtimestamp(begin, UTC):%d %H:%M}", f"{datetime.fromtimestamp(end, UTC):%d %H:%M}")
        for begin, end in parse_closed_periods([text], zone).between(MONDAY, MONDAY + days * DAY)
    ]


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("FR 18:00/MO 06:00", "UTC", [("20 18:00", "23 06:00"), ("27 18:00", "30 06:00")]),
        ("TU 22:00/02:00", "UTC", [("24 22:00", "25 02:00")]),
        ("TU WE 22:00/02:00", "Europe/Berlin", [("24 21:00", "25 01:00"), ("25 21:00", "26 01:00")]),
        ("TU 08:00/TU 09:00", "UTC", [("24 08:00", "24 09:00")]),
        ("2026-11-24T08:00/2026-11-24T09:00", "America/New_York", [("24 13:00", "24 14:00")]),
        ("2026-11-24T08:00Z/2026-11-24T09:00+00:00", "America/New_York", [("24 08:00", "24 09:00")]),
        ("2020-01-01/2020-02-01", "UTC", []),
        ("SU 23:00/MO 00:00", "UTC", [("29 23:00", "30 00:00")]),
    ],
)
def test_closed_periods(text: str, zone: str, expected: list[tuple[str, str]]) -> None:
    assert spans(text, zone) == expected


def test_periods_that_meet_are_one() -> None:
    closed = parse_closed_periods(["TU 08:00/10:00", "TU 10:00/12:00", "TU 09:00/11:00"], "UTC")
    assert closed.between(MONDAY, MONDAY + 7 * DAY) == [(MONDAY + DAY + 8 * 3600, MONDAY + DAY + 12 * 3600)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "XX 10:00/11:00",
        "MO 25:00/26:00",
        "MO TU 10:00/WE 11:00",
        "MO 10:00",
        "2026-11-24/2026-11-24",
        "2026-11-25/2026-11-24",
        "2026-13-01/2027-01-01",
        "2026-11-24T00:00",
        "MO 10:00/11:00\n",
        "1" * 1000,
    ],
)
def test_periods_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="must be a weekly period"):
        parse_closed_periods([text], "UTC")


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "../../etc/passwd", "Europe", "\0"])
def test_zones_that_are_none(zone: str) -> None:
    with pytest.raises(ValueError, match="time zone"):
        parse_closed_periods([], zone)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('closed = ["every day"]', "renewal.closed"),
        ('time_zone = "Mars/Olympus"', "renewal.time_zone"),
        ("spread = 0.5", "renewal.spread"),
        ("margin = 0.9", "renewal.margin"),
        ("poll = 5", "renewal.poll"),
        ("capacity = -1", "renewal.capacity"),
        ('closed = ["2026-11-24T08:00/2026-11-24T09:00Z"]\ntime_zone = "America/New_York"', "renewal"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, line: str, key: str) -> None:
    (tmp_path / "privyseal.toml").write_text(f"[renewal]\n{line}\n")
    with pytest.raises(ConfigurationError, match=rf"not valid: {re.escape(key)}: ") as refused:
        load_settings(tmp_path)
    assert "Mars" not in str(refused.value), "values are not repeated"


# The page


@pytest.mark.parametrize("reason", list(Reason))
def test_the_page_says_why_and_what_to_do(reason: Reason) -> None:
    page = explanation_page("AAAA.AQ", Issued(MONDAY, MONDAY + DAY), Window(MONDAY + 5, MONDAY + 9, reason))
    assert page.startswith("<!doctype html>")
    assert "2026-11-23T00:00:05Z" in page
    assert "What to do" in page
    assert f"<dd>{reason}</dd>" in page


def test_the_page_holds_nothing_that_runs() -> None:
    page = explanation_page("<script>alert(1)</script>&\"'", Issued(MONDAY, MONDAY + DAY), due_now(MONDAY, Reason.KEY))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"\son\w+=|href=|src=", page)
