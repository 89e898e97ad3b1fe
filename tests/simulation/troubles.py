"""What goes wrong in the year: outages of the token and the database, and leaders that are lost. Planned before it begins."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final

from simulation.workloads import HOUR, Period


class Loss(Enum):
    """How a leader is lost."""

    #: Killed, and started again some hours later.
    KILLED = "killed"
    #: Killed while clients wait for their certificates.
    KILLED_AT_WORK = "killed at work"
    #: Ended in order, as for an upgrade.
    STOPPED = "stopped"
    #: Stands still for hours, then goes on.
    PAUSED = "paused"
    #: Stands still in the middle of its work, then goes on.
    PAUSED_AT_WORK = "paused at work"


@dataclass(frozen=True, slots=True)
class Lost:
    """One loss: at which moment, and for how long."""

    begin: float
    end: float
    how: Loss


@dataclass(frozen=True, slots=True)
class Troubles:
    """All of it. Periods of one kind may overlap."""

    token: Sequence[Period]
    database: Sequence[Period]
    leaders: Sequence[Lost]

    def token_away(self, now: float) -> bool:
        """Whether the token is away."""
        return _within(self.token, now)

    def database_away(self, now: float) -> bool:
        """Whether the database is away."""
        return _within(self.database, now)

    def any_between(self, begin: float, end: float) -> bool:
        """Whether something was away for a while between two moments."""
        return any(first < end and begin < last for first, last in (*self.token, *self.database))


#: A CRL is made anew when a day old and lasts for five, an OCSP response half of its life before its end. Outages of token and
#: database, one after the other, and a day until everybody has seen what was published leave both fresh.
_LONGEST_TOKEN_OUTAGE: Final = 36 * HOUR
_LONGEST_DATABASE_OUTAGE: Final = 12 * HOUR
_WEEK: Final = 7 * 24 * HOUR


def make_troubles(random: Random, begin: float, end: float) -> Troubles:
    """Some of everything between two moments: an outage of the token every six weeks, of the database every eight, a leader lost
    every nine days."""
    leaders = [
        Lost(moment, moment + random.uniform(2, 40) * HOUR, how)
        for (moment, _), how in zip(
            _periods(random, begin, end, every=1.3 * _WEEK, longest=0.0),
            _in_turn(random),
            strict=False,
        )
    ]
    return Troubles(
        token=_periods(random, begin, end, every=6 * _WEEK, longest=_LONGEST_TOKEN_OUTAGE),
        database=_periods(random, begin, end, every=8 * _WEEK, longest=_LONGEST_DATABASE_OUTAGE),
        leaders=leaders,
    )


def _periods(random: Random, begin: float, end: float, *, every: float, longest: float) -> list[Period]:
    """One in each piece of the time, so that none of them wears out the patience that is meant for one."""
    count = max(1, math.floor((end - begin) / every))
    piece = (end - begin) / count
    found = []
    for number in range(count):
        length = random.uniform(0.1, 1) * longest
        first = begin + number * piece + random.random() * max(0.0, piece * 0.7 - length)
        found.append((first, first + length))
    return found


def _in_turn(random: Random) -> Iterator[Loss]:
    """Every kind as often as any other, in an order by chance."""
    while True:
        kinds = list(Loss)
        random.shuffle(kinds)
        yield from kinds


def _within(periods: Sequence[Period], now: float) -> bool:
    return any(begin <= now < end for begin, end in periods)
