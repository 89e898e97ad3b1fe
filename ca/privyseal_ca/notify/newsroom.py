"""What there is to tell now: the fleet and the jobs are read, and messages are written. Nothing is changed or sent."""

import asyncio
import heapq
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, time, timedelta
from functools import partial
from typing import Final, NamedTuple

from privyseal_ca.clock import rfc3339
from privyseal_ca.closed_periods import parse_zone
from privyseal_ca.config import Settings
from privyseal_ca.notification_sections import NotificationSettings, RouteSettings
from privyseal_ca.notify.compose import MOST_NAMED, Content, FailingJob, entry_of, fitting, group, most_urgent
from privyseal_ca.notify.news import (
    Change,
    Urgency,
    condition_of,
    fits,
    look,
    recipient_of,
    routes_for,
    takes,
    urgency,
)
from privyseal_ca.notify.system import NOTHING_TOLD, SystemNews, failing_jobs, system_news
from privyseal_ca.notify.templates import Templates
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.notifications import (
    SYSTEM_FACT,
    Noted,
    count_given_up,
    count_undelivered,
    lineages_with,
    noted_lineages,
)
from privyseal_ca.store.scheduling import all_jobs
from privyseal_ca.store.statement import Transaction

#: Workloads that are read at once: a millisecond or two.
_PAGE: Final = 250
_DAY: Final = 86400


class Draft(NamedTuple):
    """A message for one route, and one owner where it goes to owners."""

    route: str
    recipient: str
    kind: str
    title: str
    body: str
    workloads: int


@dataclass(frozen=True, slots=True)
class Edition:
    """What one look finds."""

    drafts: Sequence[Draft] = ()
    #: What is to be remembered of workloads: pairs of id and text.
    told: Sequence[tuple[str, str]] = ()


@dataclass(slots=True)
class _Heap:
    """What one message is made of."""

    counts: Counter[str] = field(default_factory=Counter)
    #: The most urgent, and some of the others.
    named: list[tuple[Urgency, str]] = field(default_factory=list)

    def add(self, kind: str, noted: Noted, *, named: bool = True) -> None:
        """Count news of a workload, and name it where it is among the most urgent."""
        self.counts[kind] += 1
        if named:
            self.named.append((urgency(kind, noted), kind))
            if len(self.named) > 10 * MOST_NAMED:
                self.named = heapq.nsmallest(MOST_NAMED, self.named)

    def first(self) -> list[tuple[str, str]]:
        """Id and kind of those that are named, the most urgent first."""
        return [(key[-1], kind) for key, kind in heapq.nsmallest(MOST_NAMED, self.named)]


_Heaps = dict[tuple[str, str], _Heap]


class _Own(NamedTuple):
    """How the service itself goes."""

    jobs: Sequence[FailingJob]
    waiting: int
    given_up: int


class Newsroom:
    """Writes the messages of one home."""

    def __init__(self, store: Store, settings: Settings, templates: Templates) -> None:
        self._store = store
        self._settings: NotificationSettings = settings.notifications
        self._templates = templates
        self._authority = settings.server.public_https

    async def news(self, now: float) -> Edition:
        """What is news of workloads, one message for each route, or for each owner where a route goes to owners.

        Raises:
            StoreError: the database cannot be read.
        """
        routes = self._settings.routes
        heaps: _Heaps = {}
        told: list[tuple[str, str]] = []
        patience = self._settings.patience
        wanted = partial(_is_wanted, routes)
        async for noted in self._noted(unowned=any(takes(route, "unowned") for route in routes)):
            change = look(noted, now, patience=patience, wanted=wanted)
            if change is not None:
                told.append((noted.id, change.told))
                _sort(routes, change, heaps)
        return Edition(await self._drafts(heaps, now), told)

    async def system(self, now: float) -> tuple[Sequence[Draft], SystemNews | None]:
        """News of the service's own work, and what they are made of; None where nothing has to be remembered.

        Raises:
            StoreError: the database cannot be read.
        """
        routes = [route for route in self._settings.routes if takes(route, "system") and not route.to_owner]
        if not routes:
            return (), None
        rows, told = await self._store.read(lambda tx: (all_jobs(tx), find_fact(tx, SYSTEM_FACT)))
        found = system_news(rows, told or "", now, patience=self._settings.patience)
        if not found:
            return (), None if found.told == (told or NOTHING_TOLD) else found
        content = Content("system", self._authority, rfc3339(now), jobs=found.failing, recovered_jobs=found.recovered)
        return [self._draft(route.name, "", content) for route in routes], found

    async def digest(self, now: float, *, moment: float, since: float) -> Sequence[Draft]:
        """The digests that were due at ``moment``, where the last ones were due at ``since``.

        Everything that is wrong is counted; of what was told before, those are named whose turn it is (``repeat``). Owners
        are written to only when there is something to name.

        Raises:
            StoreError: the database cannot be read.
        """
        routes = [route for route in self._settings.routes if takes(route, "digest")]
        if not routes:
            return ()
        heaps: _Heaps = {(route.name, ""): _Heap() for route in routes if not route.to_owner}
        async for noted in self._noted(unowned=any(not route.owners and not route.to_owner for route in routes)):
            kind, begun = condition_of(noted, now, patience=self._settings.patience)
            kinds = [kind] if kind else []
            if not noted.owner and noted.serial and not noted.retired_at:
                kinds.append("unowned")
            for route in routes if kinds else ():
                if fits(route, noted):
                    heap = heaps.setdefault((route.name, recipient_of(route, noted)), _Heap())
                    for each in kinds:
                        named = each != "unowned" and self._its_turn(begun, moment, since)
                        heap.add(each, noted, named=named)
        kept = {key: heap for key, heap in heaps.items() if heap.named or not key[1]}
        return await self._drafts(kept, now, "digest", await self._store.read(partial(self._look_at_own, now)))

    def digest_moment(self, now: float) -> float:
        """When the last digest was due by ``now``, in seconds since the epoch."""
        zone = parse_zone(self._settings.time_zone)
        today = datetime.fromtimestamp(now, zone).date()
        at = time.fromisoformat(self._settings.digest_at)
        moment = datetime.combine(today, at, zone).timestamp()
        return moment if moment <= now else datetime.combine(today - timedelta(days=1), at, zone).timestamp()

    def _its_turn(self, begun: int, moment: float, since: float) -> bool:
        """Whether a workload whose state began at ``begun`` is named: at first, then every ``repeat`` seconds."""
        repeat = self._settings.repeat
        if repeat <= _DAY or begun > since:
            return True
        return (moment - begun) // repeat > (since - begun) // repeat

    async def _noted(self, *, unowned: bool) -> AsyncIterator[Noted]:
        """The workloads that there may be something to tell of, page by page."""
        after: str | None = ""
        while after is not None:
            page = partial(noted_lineages, after=after, count=_PAGE, unowned=unowned)
            after, found = await self._store.read(page)
            for noted in found:
                yield noted
            # What is served does not wait for the whole fleet.
            await asyncio.sleep(0)

    async def _drafts(
        self, heaps: Mapping[tuple[str, str], _Heap], now: float, kind: str = "", own: _Own | None = None
    ) -> list[Draft]:
        """The messages. ``kind`` is that of all, where it is not decided by what happened; ``own`` is for operators only."""
        drafts = []
        for (route, recipient), heap in sorted(heaps.items()):
            first = heap.first()
            rows = await self._store.read(partial(lineages_with, ids=[wanted for wanted, _ in first]))
            named = list(
                fitting((entry_of(each, rows[found], now), rows[found]) for found, each in first if found in rows)
            )
            content = Content(
                kind=kind or most_urgent(heap.counts),
                authority=self._authority,
                now=rfc3339(now),
                counts=dict(heap.counts),
                groups=group(named),
                rest=heap.counts.total() - len(named),
            )
            if own is not None and not recipient:
                content = replace(content, jobs=own.jobs, waiting=own.waiting, given_up=own.given_up)
            drafts.append(self._draft(route, recipient, content))
            await asyncio.sleep(0)
        return drafts

    def _draft(self, route: str, recipient: str, content: Content) -> Draft:
        text = self._templates.render(content)
        return Draft(route, recipient, content.kind, text.title, text.body, content.total)

    def _look_at_own(self, now: float, transaction: Transaction) -> _Own:
        return _Own(
            failing_jobs(all_jobs(transaction), now, patience=self._settings.patience),
            count_undelivered(transaction),
            count_given_up(transaction, int(now) - _DAY),
        )


def _is_wanted(routes: Sequence[RouteSettings], kind: str, noted: Noted) -> bool:
    return bool(routes_for(routes, kind, noted))


def _sort(routes: Sequence[RouteSettings], change: Change, heaps: _Heaps) -> None:
    """Put news of a workload into the messages that they belong to."""
    for kind in change.kinds:
        for route in routes_for(routes, kind, change.noted):
            key = route.name, recipient_of(route, change.noted)
            heaps.setdefault(key, _Heap()).add(kind, change.noted)
