"""Periods in which nothing is to be renewed, as the settings write them, and what they are in seconds.

Two forms. Weekly, with the days of RFC 5545 section 3.3.10 (BYDAY): ``FR 18:00/MO 06:00`` from one day to another, or
``MO TU WE 22:00/02:00`` on each of the days, into the next when the end is not after the begin. Once: an interval of ISO
8601, ``2026-12-20T00:00/2027-01-06T00:00``; an end of it may have an offset, else the time zone of the calendar counts.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

_DAYS: Final = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_DAY: Final = "|".join(_DAYS)
_WEEKLY: Final = re.compile(
    rf"((?:{_DAY})(?: (?:{_DAY})){{0,6}}) ([0-9]{{2}}:[0-9]{{2}})/(?:({_DAY}) )?([0-9]{{2}}:[0-9]{{2}})"
)
_ISO_LENGTH: Final = 80

#: From and until, seconds since the epoch; the end does not belong to it.
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Weekly:
    #: Days of the week on which it begins, Monday is 0.
    days: frozenset[int]
    begin: time
    #: How many days later it ends.
    later: int
    end: time

    def spans(self, zone: tzinfo, low: float, high: float) -> Iterable[Span]:
        day = datetime.fromtimestamp(low, zone).date() - timedelta(days=8)
        last = datetime.fromtimestamp(high, zone).date()
        while day <= last:
            if day.weekday() in self.days:
                yield _at(day, self.begin, zone), _at(day + timedelta(days=self.later), self.end, zone)
            day += timedelta(days=1)


@dataclass(frozen=True, slots=True)
class _Once:
    begin: datetime
    end: datetime

    def spans(self, zone: tzinfo, low: float, high: float) -> Iterable[Span]:
        del low, high
        yield _seconds(self.begin, zone), _seconds(self.end, zone)


@dataclass(frozen=True, slots=True)
class ClosedPeriods:
    """Every closed period of a calendar."""

    zone: tzinfo = UTC
    periods: Sequence[_Weekly | _Once] = ()

    def between(self, low: float, high: float) -> list[Span]:
        """The closed spans that touch ``low`` to ``high``, in order, overlapping and adjoining ones joined.

        The first may begin before ``low`` and the last end after ``high``.
        """
        found = sorted(
            (begin, end)
            for period in self.periods
            for begin, end in period.spans(self.zone, low, high)
            # An hour that daylight saving time leaves out may turn a short period round.
            if begin < end and end > low and begin < high
        )
        joined: list[Span] = []
        for begin, end in found:
            if joined and begin <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(end, joined[-1][1])
            else:
                joined.append((begin, end))
        return joined


def parse_closed_periods(texts: Iterable[str], zone: str) -> ClosedPeriods:
    """``texts`` as periods in the IANA time zone ``zone``.

    Raises:
        ValueError: one is in neither form, or there is no such zone.
    """
    found = parse_zone(zone)
    return ClosedPeriods(found, tuple(_parse(text, found) for text in texts))


def parse_zone(name: str) -> tzinfo:
    """The time zone called ``name``, such as ``Europe/Berlin``.

    Raises:
        ValueError: there is none.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise ValueError("is no time zone of the IANA database, such as Europe/Berlin") from None


def _parse(text: str, zone: tzinfo) -> _Weekly | _Once:
    weekly = _WEEKLY.fullmatch(text)
    try:
        return _weekly(weekly) if weekly else _once(text, zone)
    except (ValueError, OverflowError):
        raise ValueError(
            "must be a weekly period such as `FR 18:00/MO 06:00` or `MO TU 22:00/02:00`, or an ISO interval such as "
            "`2026-12-20T00:00/2027-01-06T00:00` that ends after it begins"
        ) from None


def _weekly(match: re.Match[str]) -> _Weekly:
    days = frozenset(_DAYS.index(day) for day in match[1].split())
    begin, end = time.fromisoformat(match[2]), time.fromisoformat(match[4])
    if match[3] is None:
        return _Weekly(days, begin, int(end <= begin), end)
    if len(days) != 1:
        raise ValueError("an end on a named day needs one day to begin with")
    later = (_DAYS.index(match[3]) - next(iter(days))) % 7
    if not later and end <= begin:
        later = 7
    return _Weekly(days, begin, later, end)


def _once(text: str, zone: tzinfo) -> _Once:
    begin, slash, end = text[:_ISO_LENGTH].partition("/")
    if not slash or len(text) > _ISO_LENGTH:
        raise ValueError("no interval")
    once = _Once(datetime.fromisoformat(begin), datetime.fromisoformat(end))
    if _seconds(once.begin, zone) >= _seconds(once.end, zone):
        raise ValueError("ends before it begins")
    return once


def _at(day: date, moment: time, zone: tzinfo) -> float:
    return datetime.combine(day, moment, zone).timestamp()


def _seconds(moment: datetime, zone: tzinfo) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()
