"""Telling people: what is news becomes messages, once, and messages are delivered, at least once.

A message is stored in the transaction in which the news count as told. It is tried until its receivers have taken it, less
and less often, for a day; what was not delivered is seen in metrics, in the job's problem and by ``privyseal notify list``.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Final, Protocol

import structlog

from privyseal_acme.protocol.urls import new_id
from privyseal_ca.clock import Clock
from privyseal_ca.config import Settings
from privyseal_ca.errors import ConfigurationError, JobFailedError, NotificationError
from privyseal_ca.notification_sections import RouteSettings
from privyseal_ca.notify.checking import open_templates
from privyseal_ca.notify.deliver import deliver
from privyseal_ca.notify.newsroom import Draft, Newsroom
from privyseal_ca.notify.targets import Target, addressed, read_targets
from privyseal_ca.notify.templates import Text
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact, set_fact
from privyseal_ca.store.notifications import (
    BATCH,
    DELIVERED,
    DIGEST_FACT,
    GIVEN_UP,
    SYSTEM_FACT,
    WAITING,
    NotificationRow,
    add_notification,
    due_notifications,
    set_told,
    settle_notification,
    sweep_notifications,
    troubled_routes,
    waiting,
)
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

_log = structlog.get_logger("notifications")

#: Messages that are read at once, how often in one run, and failures by one route before the rest of its messages are left to
#: the next.
_TRIED: Final = 64
_ROUNDS: Final = 80
_FAILURES: Final = 3
#: Seconds after which nothing more is tried by one route in one run.
_LONGEST: Final = 60.0
#: Routes that are tried at the same time, and lines of each: together not more than one receiver is sent at once.
_AT_ONCE: Final = 4
_LINES_AT_ONCE: Final = 2
#: Seconds until the second attempt, which double with each, and the longest wait.
_RETRY: Final = 60
_LONGEST_RETRY: Final = 3600
#: Seconds after which a message is given up, and how long finished ones are kept.
_GIVE_UP: Final = 86_400
_KEPT: Final = 30 * 86_400
#: When so many messages wait, nothing more is told until some are delivered.
_MOST_WAITING: Final = 5000
#: Messages, and workloads told of, that one unit of work writes: a few milliseconds.
_DRAFTS: Final = 50
_TOLD: Final = 250
_SWEEPS: Final = 10
_DAY: Final = 86_400
#: Messages of which is remembered which of several receivers have them.
_REMEMBERED: Final = 1000


class Deliver(Protocol):
    """Sends a message, or raises NotificationError."""

    def __call__(self, target: Target, text: Text, *, urgent: bool) -> Awaitable[None]:
        """Send ``text`` to ``target``."""
        ...


class Notifier:
    """The job ``notifications``, done by the leader.

    Raises:
        ConfigurationError: a template of the operator's cannot be used.
    """

    def __init__(
        self,
        *,
        store: Store,
        settings: Settings,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        metrics: Metrics,
        deliver: Deliver = deliver,
    ) -> None:
        self._store = store
        self._settings = settings
        self._routes = {route.name: route for route in settings.notifications.routes}
        self._clock = clock
        self._random_bytes = random_bytes
        self._metrics = metrics
        self._deliver_to = deliver
        self._newsroom = Newsroom(store, settings, open_templates(settings))
        #: By message, the URLs whose receivers have it, while others do not.
        self._has_it: OrderedDict[str, set[str]] = OrderedDict()
        for result in ("delivered", "failed"):
            metrics.notifications.labels(result)

    async def run(self) -> None:
        """Tell what is news, deliver what waits, and remove what was finished long ago.

        Raises:
            JobFailedError: something could not be delivered, or too much waits. It says why, by route.
            StoreError: the database failed; what was done before stays.
        """
        try:
            full = await self._tell()
            problems = await self._deliver()
            await self._sweep()
        finally:
            await self._count()
        problems |= await self._store.read(troubled_routes)
        said = [f"{route}: {problem}" for route, problem in sorted(problems.items())]
        if full:
            said.append(f"{_MOST_WAITING} messages wait, and nothing more is told until some are delivered")
        if said:
            raise JobFailedError(
                f"Not everybody is told. {'; '.join(said)}",
                hint="`privyseal notify list` shows what waits; `privyseal notify test ROUTE` tries a route.",
            )

    # What is told

    async def _tell(self) -> bool:
        """Store what is news; whether too much waits for that."""
        if not self._routes:
            return False
        if (await self._store.read(waiting)).messages >= _MOST_WAITING:
            return True
        now = self._clock.now()
        edition = await self._newsroom.news(now)
        await self._store_all(edition.drafts, edition.told)
        drafts, found = await self._newsroom.system(now)
        if found is not None:
            await self._store_all(drafts, fact=(SYSTEM_FACT, found.told))
        await self._tell_daily(now)
        return False

    async def _tell_daily(self, now: float) -> None:
        """The digest, once for each day; after a time without one, one for all of it."""
        moment = int(self._newsroom.digest_moment(now))
        fact = await self._store.read(lambda tx: find_fact(tx, DIGEST_FACT))
        last = int(fact) if fact else 0
        if not 0 < last <= now + _DAY:
            # The first day, or what a clock that was wrong has left: the next is due tomorrow.
            await self._store_all((), fact=(DIGEST_FACT, str(moment)))
        elif moment > last:
            drafts = await self._newsroom.digest(now, moment=moment, since=last)
            await self._store_all(drafts, fact=(DIGEST_FACT, str(moment)))

    async def _store_all(
        self,
        drafts: Sequence[Draft],
        told: Sequence[tuple[str, str]] = (),
        fact: tuple[str, str] | None = None,
    ) -> None:
        """Store messages, and with the last of them that their news were told.

        It is one unit of work but where very much happens at once. Whoever is stopped between two of them has some told twice.
        """
        rows = [self._row(draft) for draft in drafts]
        while len(rows) > _DRAFTS:
            await self._store.write(partial(_write, rows=rows[:_DRAFTS]))
            rows = rows[_DRAFTS:]
        if rows or told or fact:
            await self._store.write(partial(_write, rows=rows, told=told[:_TOLD], fact=fact))
        for start in range(_TOLD, len(told), _TOLD):
            await self._store.write(partial(_write, told=told[start : start + _TOLD]))
            await asyncio.sleep(0)

    def _row(self, draft: Draft) -> NotificationRow:
        now = int(self._clock.now())
        return NotificationRow(
            id=new_id(self._random_bytes(16)),
            **draft._asdict(),
            created=now,
            state=WAITING,
            attempts=0,
            next_attempt=now,
            finished=0,
            problem="",
        )

    # How it is delivered

    async def _deliver(self) -> dict[str, str]:
        """Try what is due; why not all was delivered, by route."""
        problems: dict[str, str] = {}
        #: Routes that are left to the next run: what waits for them is not in the way of what others can deliver.
        left: set[str] = set()
        end = monotonic() + _LONGEST
        for _ in range(_ROUNDS):
            now = int(self._clock.now())
            due = await self._store.read(partial(due_notifications, now=now, count=_TRIED, without=sorted(left)))
            by_route: dict[str, list[NotificationRow]] = {}
            for row in due:
                by_route.setdefault(row.route, []).append(row)
            found = await self._deliver_all(by_route)
            problems |= {name: problem for name, problem in found.items() if problem}
            left |= problems.keys()
            if not due or monotonic() > end:
                break
        return problems

    async def _deliver_all(self, by_route: Mapping[str, list[NotificationRow]]) -> dict[str, str]:
        """Try messages by their routes; the last problem of each, or an empty text."""
        turns = asyncio.Semaphore(_AT_ONCE)

        async def attempt(name: str, rows: list[NotificationRow]) -> str:
            async with turns:
                return await self._deliver_by(self._routes.get(name), rows)

        # None is left alone with what it delivers where another cannot write: it would be delivered again meanwhile.
        found = await asyncio.gather(*(attempt(name, rows) for name, rows in by_route.items()), return_exceptions=True)
        problems: dict[str, str] = {}
        for name, each in zip(by_route, found, strict=True):
            if isinstance(each, BaseException):
                raise each
            problems[name] = each
        return problems

    async def _deliver_by(self, route: RouteSettings | None, rows: list[NotificationRow]) -> str:
        """Try the messages of one route; the last reason for which one was not delivered."""
        if route is None:
            for row in rows:
                await self._settle(row, "There is no route of that name in the settings any more.", over=True)
            return ""
        failures, last, end = 0, "", monotonic() + _LONGEST
        for row in rows:
            problem = await self._attempt(route, row)
            await self._settle(row, problem)
            failures, last = failures + bool(problem), problem or last
            if failures == _FAILURES or monotonic() > end:
                break
        return last

    async def _attempt(self, route: RouteSettings, row: NotificationRow) -> str:
        """Send a message to all receivers that do not have it yet; why not all have it now."""
        try:
            targets = addressed(read_targets(self._settings.home, route), row.recipient)
        except ConfigurationError as error:
            return error.message
        has_it = self._has_it.get(row.id, set())
        turns = asyncio.Semaphore(_LINES_AT_ONCE)
        text, urgent = Text(row.title, row.body), row.kind in {"missed", "system"}

        async def send(target: Target) -> str:
            async with turns:
                try:
                    await self._deliver_to(target, text, urgent=urgent)
                except NotificationError as error:
                    return error.message
                has_it.add(target.url)
                return ""

        # Each is tried, however many hang: those in the last lines are not to be the last to hear of anything.
        found = await asyncio.gather(*(send(target) for target in targets if target.url not in has_it))
        problems = [problem for problem in found if problem]
        self._has_it.pop(row.id, None)
        if problems and has_it:
            self._has_it[row.id] = has_it
            while len(self._has_it) > _REMEMBERED:
                self._has_it.popitem(last=False)
        return " ".join(problems)

    async def _settle(self, row: NotificationRow, problem: str, *, over: bool = False) -> None:
        """Store how an attempt went."""
        now = int(self._clock.now())
        self._metrics.notifications.labels("failed" if problem else "delivered").inc()
        row = row._replace(attempts=row.attempts + 1, problem=problem)
        if not problem or over or now >= row.created + _GIVE_UP:
            state = GIVEN_UP if problem else DELIVERED
            row = row._replace(state=state, finished=now, next_attempt=now)
            self._has_it.pop(row.id, None)
            if problem:
                _log.warning("a notification is given up", notification=row.id, route=row.route, error=problem)
        else:
            wait = min(_RETRY * 2 ** min(row.attempts - 1, 16), _LONGEST_RETRY)
            row = row._replace(next_attempt=min(now + wait, row.created + _GIVE_UP))
        await self._store.write(partial(settle_notification, row=row))

    async def _sweep(self) -> None:
        before = int(self._clock.now()) - _KEPT
        for _ in range(_SWEEPS):
            if await self._store.write(partial(sweep_notifications, before=before)) < BATCH:
                break
            await asyncio.sleep(0)

    async def _count(self) -> None:
        found = await self._store.read(waiting)
        self._metrics.notifications_waiting.set(found.messages)
        age = max(0.0, self._clock.now() - found.oldest) if found.messages else 0
        self._metrics.notification_age.set(age)


def _write(
    transaction: Transaction,
    *,
    rows: Sequence[NotificationRow] = (),
    told: Sequence[tuple[str, str]] = (),
    fact: tuple[str, str] | None = None,
) -> None:
    for row in rows:
        add_notification(transaction, row)
    set_told(transaction, told)
    if fact is not None:
        set_fact(transaction, *fact)
