"""What stands in a report, ready to be shown: texts and numbers, nothing that a template would have to work out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from math import floor
from typing import Final

import orjson

from privyseal_ca.clock import rfc3339
from privyseal_ca.fleet.advice import Advice, advise, span
from privyseal_ca.fleet.failures import clean
from privyseal_ca.fleet.states import State
from privyseal_ca.fleet.survey import ENDED, FleetFigures, OwnerFigures, Renewals, Span
from privyseal_ca.fleet.survival import Survival
from privyseal_ca.fleet_sections import CRITICALITIES
from privyseal_ca.store.fleet import LineageRow

#: Workloads that are named; the others are counted.
MOST_NAMED: Final = 200
#: Octets that the texts of all workloads may have in the page: it stays below a megabyte whatever strangers write.
MOST_OCTETS: Final = 600_000
#: Failing jobs and problem types that are named.
MOST_JOBS: Final = 20
MOST_PROBLEMS: Final = 20
MOST_ISSUERS: Final = 100
#: Names of one workload that are shown.
_NAMES: Final = 8
_NAME: Final = 120
#: The states that are shown, in the order in which people read them; retired workloads are in no figure.
SHOWN_STATES: Final = tuple(state.value for state in State if state is not State.RETIRED)
_TROUBLE: Final = (State.FAILING, State.SILENT, State.OVERDUE, State.REVOKED)
#: What the timeline calls its spans: in its table, and under a bar.
_SPANS: Final[Mapping[str, tuple[str, str]]] = {
    "ended": ("has ended", "ended"),
    "1h": ("within 1 hour", "1 hour"),
    "6h": ("within 6 hours", "6 hours"),
    "1d": ("within 1 day", "1 day"),
    "3d": ("within 3 days", "3 days"),
    "7d": ("within 7 days", "7 days"),
    "14d": ("within 14 days", "14 days"),
    "30d": ("within 30 days", "30 days"),
    "90d": ("within 90 days", "90 days"),
    "later": ("later than that", "later"),
}
#: Parts of the timeline's height that a bar has at least: one workload among many thousands is still seen.
_LEAST: Final = 0.012
_GROUPS: Final[Mapping[str, str]] = {
    "issuer": "Issuer",
    "profile": "Profile",
    "owner": "Owner",
    "criticality": "Criticality",
}


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload that somebody has to look after. Its texts have no control characters, and none that turn text around."""

    names: tuple[str, ...]
    #: How many names it has that are not shown.
    more: int
    owner: str
    team: str
    criticality: str
    state: str
    #: How long ago its renewal was missed, as text; empty when it was not.
    missed: str
    #: When its certificate ends, or what became of it, as text.
    ends: str
    #: Whether it has no valid certificate.
    down: bool
    advice: Advice

    @classmethod
    def of(cls, row: LineageRow, now: float) -> "Workload":
        """The workload of a row, at ``now``."""
        names = [str(name) for name in orjson.loads(row.names)]
        over = row.not_after <= now
        if not row.not_after:
            ends = "no certificate"
        elif row.revoked_at:
            ends = f"certificate revoked {span(now - row.revoked_at)} ago"
        elif over:
            ends = f"certificate ended {span(now - row.not_after)} ago"
        else:
            ends = f"certificate ends in {span(row.not_after - now)}"
        return cls(
            names=tuple(_short(name) for name in names[:_NAMES]),
            more=max(0, len(names) - _NAMES),
            owner=clean(row.owner),
            team=clean(row.team),
            criticality=row.criticality,
            state=row.state,
            missed=f"{span(now - row.missed_at)} ago" if row.missed_at else "",
            ends=ends,
            down=over or bool(row.revoked_at),
            advice=advise(row, now),
        )

    @property
    def octets(self) -> int:
        """How many octets its texts have as HTML."""
        texts = (*self.names, self.owner, self.team, self.advice.what, self.advice.seen, self.advice.do)
        return sum(len(escape(text).encode()) for text in texts)


@dataclass(frozen=True, slots=True)
class Clock:
    """The survival clock of one group."""

    group: str
    workloads: int
    #: The four moments as texts: how long from now, and when.
    moments: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Clocks:
    """The survival clocks by one dimension."""

    name: str
    clocks: tuple[Clock, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the timeline. ``height`` and ``missed_height`` are parts of the tallest, 0 to 1."""

    #: As a table has it, and in a word or two.
    name: str
    short: str
    workloads: int
    missed: int
    height: float
    missed_height: float


@dataclass(frozen=True, slots=True)
class Success:
    """How renewals went in a while; ``share`` is text."""

    period: str
    renewed: int
    missed: int
    share: str


@dataclass(frozen=True, slots=True)
class Issuer:
    """A CA and what it publishes."""

    name: str
    state: str
    #: When its certificate ends; empty when it has none.
    ends: str
    #: How old its CRL is and when that ends; empty when there is none.
    crl: str = ""
    #: Whether that CRL has ended while there are still those who ask for it.
    crl_over: bool = False


@dataclass(frozen=True, slots=True)
class Authority:
    """The authority itself."""

    issuers: tuple[Issuer, ...]
    #: Entries of the ledger.
    ledger: int
    #: How old the newest signed checkpoint is, as text, and how many entries it covers; empty when there is none.
    checkpoint: str
    #: The jobs that fail, each with its problem.
    failing_jobs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A report."""

    title: str
    #: When, as RFC 3339 text and as people read it.
    at: str
    moment: str
    figures: FleetFigures
    #: Whether nobody has to do anything, and that, or the worst of what is the matter, in one sentence.
    well: bool
    headline: str
    #: The rest of what is the matter, a sentence each.
    matters: tuple[str, ...]
    workloads: tuple[Workload, ...]
    #: Those in trouble that are not named.
    unnamed: int
    overall: Clock | None
    clocks: tuple[Clocks, ...]
    timeline: tuple[Bar, ...]
    #: The timeline in words.
    timeline_text: str
    owners: tuple[OwnerFigures, ...]
    #: Why workloads fail: the problem type, and how many have it, the most frequent first.
    problems: tuple[tuple[str, int], ...]
    renewals: tuple[Success, ...]
    authority: Authority


def make_report(
    figures: FleetFigures,
    troubled: Iterable[LineageRow],
    authority: Authority,
    *,
    title: str,
    issuers: Mapping[str, str],
) -> Report:
    """The report of ``figures``.

    Args:
        figures: what a survey found.
        troubled: the workloads that are to be named, the worst first; at most :data:`MOST_NAMED` of them are.
        authority: how the authority is.
        title: what the page is called.
        issuers: names of issuers by their ids.
    """
    now = figures.now
    named = _named(troubled, now)
    overall = next((each for each in figures.survival if each.by == "all"), None)
    matters = _matters(figures, authority)
    problems = sorted(figures.failing.items(), key=lambda each: (-each[1], each[0]))[:MOST_PROBLEMS]
    return Report(
        title=clean(title),
        at=rfc3339(now),
        moment=_minute(now),
        figures=figures,
        well=not matters,
        headline=matters[0] if matters else _all_well(figures),
        matters=tuple(matters[1:]),
        workloads=named,
        unnamed=max(0, count_troubled(figures) - len(named)),
        overall=_clock(overall, "all workloads", now) if overall else None,
        clocks=tuple(
            Clocks(name, tuple(_clock(each, _group(each, issuers), now) for each in found))
            for by, name in _GROUPS.items()
            if (found := _ordered([each for each in figures.survival if each.by == by]))
        ),
        timeline=_timeline(figures.timeline),
        timeline_text=_timeline_text(figures.timeline),
        owners=tuple(replace(each, owner=clean(each.owner)) for each in figures.owners),
        problems=tuple((clean(problem) or "not known", count) for problem, count in problems),
        renewals=tuple(_success(each) for each in figures.renewals),
        authority=replace(
            authority,
            issuers=tuple(replace(each, name=clean(each.name)) for each in authority.issuers[:MOST_ISSUERS]),
            failing_jobs=tuple((clean(name), clean(problem)) for name, problem in authority.failing_jobs[:MOST_JOBS]),
        ),
    )


def count_troubled(figures: FleetFigures) -> int:
    """How many workloads somebody has to look after: missed ones, and those that fail or are revoked."""
    return sum(figures.of_state(state) for state in _TROUBLE)


def urgency(row: LineageRow) -> tuple[int, bool, int, str]:
    """What puts the worst first: criticality, then those that were missed, then those that end first."""
    rank = CRITICALITIES.index(row.criticality) if row.criticality in CRITICALITIES else len(CRITICALITIES)
    return rank, not row.missed_at, row.not_after, row.id


def ago(moment: int, now: float) -> str:
    """A moment as people read it, with how far away it is."""
    distance = span(now - moment)
    return f"{_minute(moment)} ({distance} ago)" if moment <= now else f"{_minute(moment)} (in {distance})"


def _minute(moment: int) -> str:
    return rfc3339(moment)[:16].replace("T", " ") + " UTC"


def _named(troubled: Iterable[LineageRow], now: float) -> tuple[Workload, ...]:
    """The workloads that are named: as many as may be, and as have room."""
    named, left = [], MOST_OCTETS
    for row, _ in zip(troubled, range(MOST_NAMED), strict=False):
        workload = Workload.of(row, now)
        left -= workload.octets
        if left < 0:
            break
        named.append(workload)
    return tuple(named)


def _short(name: str) -> str:
    value = clean(name.partition(":")[2])
    return value if len(value) <= _NAME else f"{value[: _NAME - 1]}…"


def _group(survival: Survival, issuers: Mapping[str, str]) -> str:
    if not survival.group:
        return "nobody" if survival.by == "owner" else "not known"
    return clean(issuers.get(survival.group, survival.group) if survival.by == "issuer" else survival.group)


def _ordered(found: list[Survival]) -> list[Survival]:
    """Criticalities in their order; of other groups those first that run out first."""
    if found and found[0].by == "criticality":
        return sorted(found, key=lambda each: CRITICALITIES.index(each.group))
    return sorted(found, key=lambda each: (each.first, each.group))


def _clock(survival: Survival, group: str, now: int) -> Clock:
    moments = tuple((span(moment - now), _minute(moment)) for moment in survival.moments.values())
    return Clock(group, survival.workloads, moments)


def _timeline(spans: Sequence[Span]) -> tuple[Bar, ...]:
    most = max((each.workloads for each in spans), default=0) or 1

    def height(count: int) -> float:
        return max(_LEAST, count / most) if count else 0.0

    return tuple(
        Bar(*_SPANS[each.name], each.workloads, each.missed, height(each.workloads), height(each.missed))
        for each in spans
    )


def _timeline_text(spans: Sequence[Span]) -> str:
    parts = [
        f"{_SPANS[each.name][0]}: {each.workloads:,}" + (f", {each.missed:,} of them missed" if each.missed else "")
        for each in spans
        if each.workloads
    ]
    return (
        f"Workloads by when their certificate ends. {'; '.join(parts)}." if parts else "No workload has a certificate."
    )


def _success(renewals: Renewals) -> Success:
    # Rounded down: what was missed never looks like all of it.
    share = "nothing due" if renewals.success is None else f"{floor(renewals.success * 10_000) / 100:.2f} %"
    return Success(renewals.period, renewals.renewed, renewals.missed, share)


def _matters(figures: FleetFigures, authority: Authority) -> list[str]:
    """What somebody has to do something about, the worst first, a sentence each."""
    missed, critical = sum(figures.missed.values()), figures.missed.get("critical", 0)
    matters = []
    if missed:
        extra = f", {critical:,} of them critical" if critical else ""
        matters.append(f"{_count(missed, 'workload has', 'workloads have')} missed a renewal{extra}.")
    for state, one, many in (
        (State.FAILING, "workload asks for a certificate and does", "workloads ask for a certificate and do"),
        (
            State.SILENT,
            "workload has not been heard of since it was",
            "workloads have not been heard of since they were",
        ),
        (State.OVERDUE, "workload asks when to renew, and does", "workloads ask when to renew, and do"),
        (State.REVOKED, "workload has", "workloads have"),
    ):
        if count := figures.of_state(state):
            matters.append(f"{_count(count, one, many)} {_ENDINGS[state]}.")
    if down := next((each.missed for each in figures.timeline if each.name == ENDED), 0):
        matters.append(f"{_count(down, 'missed one has', 'missed ones have')} no valid certificate any more: it ended.")
    if over := [clean(each.name) for each in authority.issuers if each.crl_over]:
        matters.append(f"The CRL of {', '.join(over[:5])}{' and others' if len(over) > 5 else ''} has ended.")
    if authority.failing_jobs:
        matters.append(f"{_count(len(authority.failing_jobs), 'job', 'jobs')} of the authority failed.")
    return matters


_ENDINGS: Final[Mapping[str, str]] = {
    State.FAILING: "not get one",
    State.SILENT: "due",
    State.OVERDUE: "not renew",
    State.REVOKED: "only a revoked certificate",
}


def _all_well(figures: FleetFigures) -> str:
    if not figures.workloads:
        return "There are no workloads yet, and no job of the authority fails."
    return f"All is well: {_count(figures.workloads, 'workload renews', 'workloads renew')} in time."


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
