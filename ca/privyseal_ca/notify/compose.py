"""Messages from what is to be told: grouped by owner and team, the most critical first, and bounded. Pure."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from privyseal_ca.clock import rfc3339
from privyseal_ca.fleet.advice import advise
from privyseal_ca.fleet_sections import CRITICALITIES
from privyseal_ca.notification_sections import KINDS
from privyseal_ca.store.fleet import LineageRow

#: Workloads that one message names at most; the others are counted.
MOST_NAMED: Final = 20
#: Names of one workload that are written out.
_MOST_NAMES: Final = 3
#: Characters of a title and of a body.
MOST_TITLE: Final = 200
MOST_BODY: Final = 24_000
#: Characters of the workloads in a message: what comes after them is not cut off, whatever they are called.
_MOST_TOLD: Final = 16_000

#: In the words of chats: calls of everybody or of somebody, and links (`<http://a|b>`, `[a](b)`, HTML).
_MARKUP: Final = re.compile(r"@(?:everyone|here|channel)|(?<!\w)@all\b|<(?=[!@#&/a-z])|\](?=[(\[])", re.IGNORECASE)

_DONE: Final = "Nothing: it is well again."


@dataclass(frozen=True, slots=True)
class Entry:
    """A workload in a message. Texts are plain, in one line each."""

    id: str
    kind: str
    name: str
    profile: str
    service: str
    environment: str
    criticality: str
    #: The reason, what it is known by, and the next step.
    what: str
    seen: str
    do: str


@dataclass(frozen=True, slots=True)
class Group:
    """What one owner and team are told."""

    owner: str
    team: str
    entries: tuple[Entry, ...]

    @property
    def whose(self) -> str:
        """Both in words."""
        owner = self.owner or "nobody is known to own these"
        return f"{owner} ({self.team})" if self.team else owner


@dataclass(frozen=True, slots=True)
class FailingJob:
    """Work of the service that fails. ``since`` is RFC 3339 text; empty when it never went well."""

    name: str
    problem: str
    since: str
    failures: int


@dataclass(frozen=True, slots=True)
class Content:
    """What templates are given."""

    kind: str
    authority: str
    now: str
    #: Workloads by kind of news (in a digest: by what is wrong with them).
    counts: Mapping[str, int] = field(default_factory=dict)
    groups: Sequence[Group] = ()
    #: Workloads that are counted and not named.
    rest: int = 0
    jobs: Sequence[FailingJob] = ()
    recovered_jobs: Sequence[str] = ()
    #: Messages that are not delivered yet, and those given up in the last day.
    waiting: int = 0
    given_up: int = 0
    route: str = ""

    @property
    def total(self) -> int:
        """All workloads."""
        return sum(self.counts.values())

    @property
    def summary(self) -> str:
        """The counts in words, such as ``2 renewals missed, 1 recovered``."""
        said = [_COUNTED[kind](self.counts[kind]) for kind in KINDS if self.counts.get(kind) and kind in _COUNTED]
        return ", ".join(said)

    def variables(self) -> dict[str, Any]:
        """By name, for a template."""
        names = (*self.__dataclass_fields__, "total", "summary")
        return {name: getattr(self, name) for name in names}


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


_COUNTED: Final[Mapping[str, Callable[[int], str]]] = {
    "missed": lambda count: _plural(count, "renewal missed", "renewals missed"),
    "failing": lambda count: _plural(count, "workload failing", "workloads failing"),
    "unowned": lambda count: _plural(count, "workload without an owner", "workloads without an owner"),
    "recovered": lambda count: _plural(count, "workload recovered", "workloads recovered"),
}


def entry_of(kind: str, row: LineageRow, now: float) -> Entry:
    """What is told of a workload."""
    advice = advise(row, now)
    what, seen, do = advice.what, advice.seen, advice.do
    if kind == "recovered":
        do = _DONE
    elif kind == "unowned":
        what, seen = "Nobody is known to own it.", f"Its certificates are issued to {row.requester}."
        do = (
            "Say whose it is: by a rule in fleet.rules, or with `privyseal account describe` or `privyseal eab describe`; "
            f"`privyseal fleet show {row.id}` shows where it comes from."
        )
    return Entry(
        id=row.id,
        kind=kind,
        name=names_of(row.names),
        profile=row.profile,
        service=plain(row.service),
        environment=plain(row.environment),
        criticality=row.criticality,
        what=plain(what),
        seen=plain(seen),
        do=plain(do),
    )


def fitting(entries: Iterable[tuple[Entry, LineageRow]]) -> Iterable[tuple[Entry, LineageRow]]:
    """The first of ``entries``, at least one, that there is room for in a message."""
    left = _MOST_TOLD
    for entry, row in entries:
        texts = (entry.name, entry.service, entry.environment, entry.what, entry.seen, entry.do, row.owner, row.team)
        length = sum(map(len, texts))
        if length > left:
            break
        left -= length
        yield entry, row


def group(entries: Iterable[tuple[Entry, LineageRow]]) -> tuple[Group, ...]:
    """By owner and team, each group as urgent as the first of it; ``entries`` come in the order of their urgency."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry, row in entries:
        found.setdefault((plain(row.owner), plain(row.team)), []).append(entry)
    return tuple(Group(owner, team, tuple(members)) for (owner, team), members in found.items())


def most_urgent(kinds: Iterable[str]) -> str:
    """The kind that a message with news of ``kinds`` is of."""
    return min(kinds, key=KINDS.index)


def names_of(names: str) -> str:
    """A workload's names for people: the first few, without their type, and how many there are more."""
    found = [str(name).partition(":")[2] or str(name) for name in orjson.loads(names)] if names else []
    said = ", ".join(plain(name) for name in found[:_MOST_NAMES])
    more = len(found) - _MOST_NAMES
    return f"{said} and {more} more" if more > 0 else said or "(no name)"


def plain(text: str) -> str:
    """``text`` in one line without control characters, and with nothing that chats take for a call of somebody or a link.

    Strangers choose names. What looks like an address stays one; that a word hides another address is what is prevented.
    """
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    line = " ".join(text.split())
    return _MARKUP.sub(lambda found: f"{found[0][0]} {found[0][1:]}", line)


def sample(kind: str) -> Content:
    """Content with something of everything, by which templates are tried."""
    entries = tuple(
        Entry("sample", news, "web.corp.example", "mtls", "shop", "production", criticality, "What.", "Seen.", "Do.")
        for news, criticality in zip(("missed", "failing", "unowned", "recovered"), CRITICALITIES, strict=True)
    )
    return Content(
        kind=kind,
        authority="https://ca.corp.example",
        now=rfc3339(0),
        counts={"missed": 1, "failing": 1, "unowned": 1, "recovered": 1},
        groups=(Group("ann@corp.example", "web", entries[:2]), Group("", "", entries[2:])),
        rest=3,
        jobs=(FailingJob("backup", "The disk is full.", rfc3339(0), 3), FailingJob("expiring", "It failed.", "", 9)),
        recovered_jobs=("intents",),
        waiting=1,
        given_up=2,
        route="sample",
    )
