"""The fleet in figures: states, missed renewals, owners, the timeline of what ends, the survival clock. Pure.

Rows are fed in pages, and nothing takes longer in one go than a page does; :meth:`Survey.figures` is for a thread.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from privyseal_ca.clock import rfc3339
from privyseal_ca.fleet.failures import parse_failure
from privyseal_ca.fleet.states import State
from privyseal_ca.fleet.survival import OTHER, Ends, Survival, largest
from privyseal_ca.fleet_sections import CRITICALITIES
from privyseal_ca.store.fleet_survey import SurveyRow

_HOUR: Final = 3600
_DAY: Final = 86400
#: The states in the order in which people read them.
STATES: Final = tuple(state.value for state in State)
#: The spans of the timeline by name, each with its end in seconds from now; what is over comes before them.
TIMELINE: Final = (
    ("1h", _HOUR),
    ("6h", 6 * _HOUR),
    ("1d", _DAY),
    ("3d", 3 * _DAY),
    ("7d", 7 * _DAY),
    ("14d", 14 * _DAY),
    ("30d", 30 * _DAY),
    ("90d", 90 * _DAY),
)
ENDED: Final = "ended"
LATER: Final = "later"
#: For how long back renewals are counted, by name, in seconds.
PERIODS: Final = (("day", _DAY), ("week", 7 * _DAY))
_BOUNDS: Final = (0, *(until for _, until in TIMELINE))
_LONGEST_PERIOD: Final = max(seconds for _, seconds in PERIODS)
#: How many owners, issuers, profiles are shown by themselves; the others are ``other``.
MOST_GROUPS: Final = 32


@dataclass(frozen=True, slots=True)
class OwnerFigures:
    """The workloads of one owner; ``owner`` is empty for those without one, and ``other`` beyond those that are shown."""

    owner: str
    #: Workloads by state, every state named.
    states: Mapping[str, int]
    #: Those whose renewal was missed.
    missed: int

    @property
    def workloads(self) -> int:
        """How many there are that are not retired."""
        return sum(count for state, count in self.states.items() if state != State.RETIRED)


@dataclass(frozen=True, slots=True)
class Span:
    """A span of the timeline: the workloads whose newest certificate ends in it."""

    #: ``ended``, ``1h`` (from now to an hour from now), ``6h`` (after that, up to six hours), ... ``later``.
    name: str
    #: Its end in seconds from now; None for ``later``, 0 for ``ended``.
    until: int | None
    workloads: int
    #: Those among them whose renewal was missed.
    missed: int


@dataclass(frozen=True, slots=True)
class Renewals:
    """Renewals of the last while. Each workload counts once: as renewed, or as missed if that has not come since."""

    #: ``day`` or ``week``.
    period: str
    renewed: int
    missed: int

    @property
    def success(self) -> float | None:
        """The share that was renewed, from 0 to 1; None when nothing was due."""
        due = self.renewed + self.missed
        return self.renewed / due if due else None


@dataclass(frozen=True, slots=True)
class FleetFigures:
    """What a survey found."""

    #: When, in seconds since the epoch.
    now: int
    #: Workloads by state and criticality, every state and criticality named.
    states: Mapping[str, Mapping[str, int]]
    #: Workloads whose renewal was missed, by criticality.
    missed: Mapping[str, int]
    #: Workloads without an owner that are not retired.
    unowned: int
    #: Failing workloads that have had a certificate, by the problem type of the last attempt; the empty type is one that is
    #: not known.
    failing: Mapping[str, int]
    #: Those with most missed renewals first, then those with most workloads.
    owners: tuple[OwnerFigures, ...]
    #: Workloads that are not retired and have, or had, a certificate.
    timeline: tuple[Span, ...]
    renewals: tuple[Renewals, ...]
    #: The first is ``all``; none at all when no workload lives.
    survival: tuple[Survival, ...]

    @property
    def workloads(self) -> int:
        """How many there are that are not retired."""
        return sum(sum(by.values()) for state, by in self.states.items() if state != State.RETIRED)

    def of_state(self, state: str) -> int:
        """How many workloads have the state, of whatever criticality."""
        return sum(self.states[state].values())

    def document(self) -> dict[str, Any]:
        """As JSON has it. Times are RFC 3339 text."""
        return {
            "at": rfc3339(self.now),
            "workloads": self.workloads,
            "states": {state: {"total": self.of_state(state), **by} for state, by in self.states.items()},
            "missed": {"total": sum(self.missed.values()), **self.missed},
            "unowned": self.unowned,
            "failing": dict(self.failing),
            "owners": [
                {"owner": each.owner, "workloads": each.workloads, "missed": each.missed, "states": dict(each.states)}
                for each in self.owners
            ],
            "timeline": [
                {"within": span.name, "until": span.until, "workloads": span.workloads, "missed": span.missed}
                for span in self.timeline
            ],
            "renewals": [
                {"period": each.period, "renewed": each.renewed, "missed": each.missed, "success": each.success}
                for each in self.renewals
            ],
            "survival": [each.document(self.now) for each in self.survival],
        }


class Survey:
    """Makes figures of workloads as they are at ``now``.

    At most ``most`` issuers, profiles and owners are shown by themselves, those with most workloads; the others are
    together as ``other``.
    """

    def __init__(self, now: float, *, most: int = MOST_GROUPS) -> None:
        self._now = int(now)
        self._most = most
        #: Workloads by owner, state, criticality, and whether their renewal was missed.
        self._counts: Counter[tuple[str, str, str, bool]] = Counter()
        self._failing: Counter[str] = Counter()
        #: By position in the timeline, ``ended`` being the first, and whether the renewal was missed.
        self._spans: Counter[tuple[int, bool]] = Counter()
        self._renewals: Counter[tuple[str, bool]] = Counter()
        self._ends = Ends()
        self._retired: Counter[str] = Counter()

    def add_retired(self, counts: Mapping[str, int]) -> None:
        """Count retired workloads, of which nothing else is told, by criticality."""
        self._retired.update(counts)

    def add(self, rows: Iterable[SurveyRow]) -> None:
        """Count more workloads, each of which is to be added once."""
        now = self._now
        oldest = now - _LONGEST_PERIOD
        for row in rows:
            missed = bool(row.missed_at)
            self._counts[row.owner, row.state, row.criticality, missed] += 1
            if row.retired_at:
                continue
            # A name that never had one may be anything that a client made up.
            if row.state == State.FAILING and row.not_after:
                self._failing[parse_failure(row.attempt).type] += 1
            if row.not_after:
                self._spans[bisect_left(_BOUNDS, row.not_after - now), missed] += 1
            if lives(row, now):
                self._ends.add((row.issuer_id, row.profile, row.owner, row.criticality), row.not_after)
            if row.missed_at > oldest or row.renewed_at > oldest:
                self._add_renewal(row)

    def figures(self) -> FleetFigures:
        """What was found. It takes up to half a second for a hundred thousand workloads, in steps of milliseconds."""
        states = {state: dict.fromkeys(CRITICALITIES, 0) for state in STATES}
        missed = dict.fromkeys(CRITICALITIES, 0)
        unowned = 0
        for (owner, state, criticality, is_missed), count in self._counts.items():
            states[state][criticality] += count
            missed[criticality] += count if is_missed else 0
            unowned += count if not owner and state != State.RETIRED else 0
        for criticality, count in self._retired.items():
            states[State.RETIRED][criticality] += count
        return FleetFigures(
            now=self._now,
            states=states,
            missed=missed,
            unowned=unowned,
            failing=dict(sorted(self._failing.items())),
            owners=self._owners(),
            timeline=tuple(
                Span(name, until, self._spans[place, False] + self._spans[place, True], self._spans[place, True])
                for place, (name, until) in enumerate(((ENDED, 0), *TIMELINE, (LATER, None)))
            ),
            renewals=tuple(
                Renewals(period, self._renewals[period, True], self._renewals[period, False]) for period, _ in PERIODS
            ),
            survival=self._ends.survival(most=self._most),
        )

    def _owners(self) -> tuple[OwnerFigures, ...]:
        sizes: Counter[str] = Counter()
        for (owner, *_), count in self._counts.items():
            sizes[owner] += count
        shown = largest(sizes, self._most)
        states: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(STATES, 0))
        missed: Counter[str] = Counter()
        for (owner, state, _, is_missed), count in self._counts.items():
            name = owner if owner in shown else OTHER
            states[name][state] += count
            missed[name] += count if is_missed else 0
        found = [OwnerFigures(owner, by, missed[owner]) for owner, by in states.items()]
        return tuple(sorted(found, key=lambda each: (-each.missed, -each.workloads, each.owner)))

    def _add_renewal(self, row: SurveyRow) -> None:
        for period, seconds in PERIODS:
            since = self._now - seconds
            if row.missed_at > since:
                self._renewals[period, False] += 1
            elif row.certificates > 1 and row.renewed_at > since:
                self._renewals[period, True] += 1


def lives(row: SurveyRow, now: int) -> bool:
    """Whether the workload is expected to renew, and has a certificate that is valid at ``now``."""
    return not row.retired_at and bool(row.renews) and not row.revoked_at and row.not_before <= now < row.not_after
