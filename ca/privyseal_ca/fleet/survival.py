"""The survival clock: if signing stopped now, until when would workloads have certificates?

Ends are put in order hour by hour: sorting a hundred thousand of them at once would hold up every other thread of the process.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from privyseal_ca.clock import rfc3339

_HOUR: Final = 3600
#: More groups than there can be workloads; an end of the year 9999 has 38 bits.
_NUMBER_BITS: Final = 24
_NUMBER: Final = (1 << _NUMBER_BITS) - 1
#: By what workloads are told apart, in the order of :class:`Group`.
DIMENSIONS: Final = ("issuer", "profile", "owner", "criticality")
#: Shares of the workloads, in per cent.
SHARES: Final = (10, 50, 90)
#: What groups beyond those that are shown by themselves are counted as.
OTHER: Final = "other"

#: Issuer, profile, owner and criticality.
Group = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Survival:
    """When workloads of one group run out. Moments are seconds since the epoch."""

    #: ``all``, ``issuer``, ``profile``, ``owner`` or ``criticality``.
    by: str
    #: The issuer's id, the profile's name, ...; empty for ``all``, and for the workloads without an owner.
    group: str
    workloads: int
    #: When the first has no valid certificate, and when at least ten, fifty, ninety per cent have none.
    first: int
    ten: int
    fifty: int
    ninety: int

    @property
    def moments(self) -> dict[str, int]:
        """The moments by the name of their share, as the metric has it."""
        return {"first": self.first, "10": self.ten, "50": self.fifty, "90": self.ninety}

    def document(self, now: int) -> dict[str, Any]:
        """As JSON has it: each moment as text and as seconds from ``now``."""
        return {
            "by": self.by,
            "group": self.group,
            "workloads": self.workloads,
            **{name: {"at": rfc3339(moment), "seconds": moment - now} for name, moment in self.moments.items()},
        }


class Ends:
    """When the certificates of workloads end, by group."""

    def __init__(self) -> None:
        #: Each end with the number of its group as one integer: no objects that a collection of garbage would go through.
        self._hours: dict[int, array[int]] = {}
        self._sizes: Counter[Group] = Counter()
        self._numbers: dict[Group, int] = {}

    def add(self, group: Group, end: int) -> None:
        """Count a workload whose certificate ends at ``end``."""
        number = self._numbers.setdefault(group, len(self._numbers))
        hour = self._hours.get(end // _HOUR)
        if hour is None:
            hour = self._hours[end // _HOUR] = array("Q")
        hour.append(end << _NUMBER_BITS | number)
        self._sizes[group] += 1

    def survival(self, *, most: int) -> tuple[Survival, ...]:
        """All together, then by each dimension: its ``most`` largest groups by name, and what is beyond them as ``other``."""
        #: The ends in order, for all workloads and for each group.
        ends: dict[tuple[str, str], list[int]] = {}
        of_group = self._places(ends, most)
        places = [of_group[group] for group in self._numbers]
        for hour in sorted(self._hours):
            for packed in _in_order(self._hours[hour]):
                end = packed >> _NUMBER_BITS
                for place in places[packed & _NUMBER]:
                    place.append(end)
        return tuple(_survival(by, name, ends[by, name]) for by, name in sorted(ends, key=_reading_order))

    def _places(self, ends: dict[tuple[str, str], list[int]], most: int) -> dict[Group, list[list[int]]]:
        """For each group the lists that its workloads are in, which are made in ``ends``."""
        if not self._sizes:
            return {}
        everything: list[int] = ends.setdefault(("all", ""), [])
        places = {group: [everything] for group in self._sizes}
        for position, by in enumerate(DIMENSIONS):
            sizes: Counter[str] = Counter()
            for group, size in self._sizes.items():
                sizes[group[position]] += size
            shown = largest(sizes, most)
            for group in self._sizes:
                name = group[position] if group[position] in shown else OTHER
                places[group].append(ends.setdefault((by, name), []))
        return places


def largest(sizes: Counter[str], most: int) -> frozenset[str]:
    """The ``most`` groups with the largest sizes; of equal ones those whose names come first."""
    if len(sizes) <= most:
        return frozenset(sizes)
    return frozenset(sorted(sizes, key=lambda name: (-sizes[name], name))[:most])


def _reading_order(key: tuple[str, str]) -> tuple[int, str]:
    by, name = key
    return (DIMENSIONS.index(by) if by in DIMENSIONS else -1), name


def _in_order(ends: Sequence[int]) -> Iterator[int]:
    """The ends of one hour by time; the seconds are sorted where there are fewer of them than there are ends."""
    if len(ends) <= _HOUR:
        yield from sorted(ends)
        return
    seconds: dict[int, array[int]] = defaultdict(lambda: array("Q"))
    for packed in ends:
        seconds[packed >> _NUMBER_BITS].append(packed)
    for second in sorted(seconds):
        yield from seconds[second]


def _survival(by: str, group: str, ends: Sequence[int]) -> Survival:
    # The first, and then the smallest number of workloads that is at least so many per cent of them.
    ranks = [1, *(-(-len(ends) * share // 100) for share in SHARES)]
    return Survival(by, group, len(ends), *(ends[rank - 1] for rank in ranks))
