"""How many certificates fall due around a moment: what windows are spread by.

Certificates of about the same lifetime are counted together, in buckets of a 1024th of it: those that were issued in the same
rush are due in the same rush. Memory is bounded by the buckets of certificates that have not expired.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

_TEN_DAYS: Final = 10 * 86400
#: Lifetimes between one power of two and the next are told apart in this many steps.
_STEPS: Final = 16
#: How far around a certificate others count, in buckets to each side: a quarter of the lifetime.
_REACH: Final = 256
_BUCKETS: Final = 4 * _REACH
#: After this share of its life nothing that is issued can still fall due around a certificate: a quarter for the reach, and a
#: 24th for the lifetimes that count as the same.
SETTLED: Final = 0.25 + 1 / 24
#: Certificates per second that every authority is taken to sign, before it has shown that it can do more.
LEAST_CAPACITY: Final = 16.0


def due_share(lifetime: int) -> float:
    """After which share of its life a certificate falls due: two thirds, half of lifetimes under ten days."""
    return 0.5 if lifetime < _TEN_DAYS else 2 / 3


@dataclass(frozen=True, slots=True)
class Issued:
    """What counts of a certificate; times are seconds since the epoch."""

    not_before: int
    not_after: int


@dataclass(frozen=True, slots=True)
class Around:
    """Where a certificate stands among those that fall due around it."""

    #: How many fall due before its bucket, in it and after it.
    before: int = 0
    within: int = 0
    after: int = 0
    #: How many seconds lie between the first of them and the last.
    span: float = 0.0

    @property
    def total(self) -> int:
        """All of them."""
        return self.before + self.within + self.after

    def rank(self, part: float) -> float:
        """Which part of them come earlier, 0 to 1; those of one bucket are told apart by ``part``, 0 to 1."""
        return (self.before + part * self.within) / self.total if self.within else part


_NOBODY: Final = Around()


class _Group:
    """The certificates of one step of lifetimes."""

    def __init__(self, width: float) -> None:
        #: Of a bucket, in seconds.
        self.width = width
        self.counts: dict[int, int] = {}
        #: The buckets in order, and how many certificates fall due before each; empty when they are to be made anew.
        self._buckets: list[int] = []
        self._sums: list[int] = []

    def add(self, bucket: int) -> None:
        """Count one more."""
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self._buckets = []

    def keep_from(self, oldest: float) -> None:
        """Drop the buckets before ``oldest``."""
        if any(bucket < oldest for bucket in self.counts):
            self.counts = {bucket: count for bucket, count in self.counts.items() if bucket >= oldest}
            self._buckets = []

    def around(self, bucket: int) -> Around:
        """Who falls due around a bucket."""
        if not self._buckets:
            self._buckets = sorted(self.counts)
            self._sums = [0, *accumulate(self.counts[each] for each in self._buckets)]
        buckets, sums = self._buckets, self._sums
        first, last = bisect_left(buckets, bucket - _REACH), bisect_right(buckets, bucket + _REACH)
        here, beyond = bisect_left(buckets, bucket), bisect_right(buckets, bucket)
        if first == last:
            return _NOBODY
        span = (buckets[last - 1] - buckets[first] + 1) * self.width
        return Around(sums[here] - sums[first], sums[beyond] - sums[here], sums[last] - sums[beyond], span)


class DueCounts:
    """Counts of what falls due, and the fastest minute of issuance among it. Not safe for several threads."""

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}
        self._minute = 0
        self._in_minute = 0
        self._busiest = 0

    @property
    def capacity(self) -> float:
        """Certificates per second that were issued over a whole minute, rounded down to a power of two.

        The rounding, and that it only grows, keep windows where they are.
        """
        reached = self._busiest / 60
        return max(LEAST_CAPACITY, 2.0 ** math.floor(math.log2(reached)) if reached else 0.0)

    def add(self, certificates: Iterable[Issued]) -> None:
        """Count ``certificates``; those of one minute come one after the other, as the ledger has them."""
        for each in certificates:
            lifetime = each.not_after - each.not_before
            if lifetime <= 0:
                continue
            number, width = _group_of(lifetime)
            group = self._groups.get(number)
            if group is None:
                group = self._groups[number] = _Group(width)
            group.add(_bucket(each, width))
            minute = each.not_before // 60
            self._in_minute = self._in_minute + 1 if minute == self._minute else 1
            self._minute = minute
            self._busiest = max(self._busiest, self._in_minute)

    def around(self, certificate: Issued) -> Around:
        """Who falls due within a quarter of its lifetime around ``certificate``."""
        number, width = _group_of(certificate.not_after - certificate.not_before)
        group = self._groups.get(number)
        if group is None:
            return _NOBODY
        return group.around(_bucket(certificate, width))

    def forget(self, now: float) -> None:
        """Drop the buckets that nobody who is still valid can look at."""
        for number, group in list(self._groups.items()):
            # Due at half of the life at the earliest: a lifetime later it is over for everybody around it.
            oldest = now / group.width - _BUCKETS - 2 * _REACH
            group.keep_from(oldest)
            if not group.counts:
                del self._groups[number]


def _group_of(lifetime: int) -> tuple[int, float]:
    """The step that ``lifetime`` belongs to, and the width of its buckets in seconds."""
    exponent = max(1, lifetime).bit_length() - 1
    step = (lifetime << 4 >> exponent) - _STEPS
    return exponent * _STEPS + step, max(1.0, (1 << exponent) * (1 + step / _STEPS) / _BUCKETS)


def _bucket(certificate: Issued, width: float) -> int:
    lifetime = certificate.not_after - certificate.not_before
    return int((certificate.not_before + due_share(lifetime) * lifetime) // width)
