"""What the clients do: they ask when to renew, order, prove their names, finalize, and take what they get.

They call the flows that the routes call. What a route adds, HTTP and signatures, has tests of its own.
"""

import asyncio
from contextlib import suppress
from datetime import datetime
from random import Random
from typing import Final

import orjson

from privyseal_acme.flow.orders import OrderView
from privyseal_acme.protocol.messages import Finalize, IdentifierMessage, NewOrder
from privyseal_acme.protocol.problems import Problem
from privyseal_acme.protocol.transitions import order_status
from privyseal_ca.errors import StoreError
from privyseal_ca.store.certificates import find_certificate
from simulation.process import Process
from simulation.workloads import DAY, HOUR, Habit, Held, Workload

_CORRELATION: Final = "simulation"
_CHALLENGE: Final = "http-01"


class Clients:
    """All of them. ``random`` is theirs alone."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.polls = 0
        self.refusals = 0

    async def run(self, workload: Workload, front: Process, now: float, *, whole: bool) -> None:
        """One run of a workload's client, which says when the next one is, however it ends. ``whole``: nothing of the authority
        is away.
        """
        # A client that meets nobody, or a problem, tries again some time later.
        workload.wakes = now + self._random.uniform(1, 3) * HOUR
        with suppress(StoreError):
            try:
                if workload.order is None and not await self._is_time(workload, front, now):
                    return
                held = workload.held
                if whole and held is not None and held.serial != workload.asked[0] and workload.reachable(now):
                    workload.asked = held.serial, now
                view = await self._read(workload, front) if workload.order else await self._begin(workload, front)
                await self._go_on(workload, front, view)
            except Problem as problem:
                self.refusals += 1
                self._learn(workload, problem)
                workload.wakes = now + self._random.uniform(12, 48) * HOUR
            else:
                if workload.order is None:
                    workload.wakes = self._after(workload, now)

    def _after(self, workload: Workload, now: float) -> float:
        """When a client runs next that has what it wants."""
        assert workload.held is not None
        match workload.habit:
            case Habit.OWN_CLOCK:
                return workload.held.at(self._random.uniform(0.64, 0.69))
            case Habit.STEADY:
                # Before a third of the life no window begins, so what it would be told until then changes nothing.
                return max(workload.held.at(1 / 3), workload.chosen or 0.0, workload.asks)
            case Habit.TWICE_A_DAY:
                return max(workload.held.at(1 / 2), now + 12 * HOUR)
            case Habit.SELDOM:
                return max(workload.held.at(1 / 2), now + self._random.uniform(5, 7) * DAY)

    async def _is_time(self, workload: Workload, front: Process, now: float) -> bool:
        """Whether to renew now; the algorithm of RFC 9773 section 4.2 for those who ask."""
        held = workload.held
        if held is None:
            return True
        if workload.habit is Habit.OWN_CLOCK:
            due = now >= held.at(0.64)
        elif workload.chosen is not None and now >= workload.chosen:
            due = True
        elif now < workload.asks:
            due = False
        else:
            due = await self._ask(workload, held, front, now)
        if not due:
            workload.wakes = self._next(workload, held, now)
        return due

    async def _ask(self, workload: Workload, held: Held, front: Process, now: float) -> bool:
        information, retry_after = await front.renewals.info(held.ari_id)
        self.polls += 1
        window = information["suggestedWindow"]
        start, end = (datetime.fromisoformat(window[name]).timestamp() for name in ("start", "end"))
        chosen = self._random.uniform(start, end)
        workload.asks = now + retry_after
        next_run = self._next(workload, held, now)
        workload.chosen = chosen if chosen < workload.asks else None
        # One that would come too late the next time does it now.
        return chosen <= now or (workload.habit is not Habit.STEADY and chosen < next_run)

    def _next(self, workload: Workload, held: Held, now: float) -> float:
        match workload.habit:
            case Habit.OWN_CLOCK:
                return held.at(0.64)
            case Habit.STEADY:
                return max(
                    held.at(1 / 3), workload.asks if workload.chosen is None else min(workload.chosen, workload.asks)
                )
            case Habit.TWICE_A_DAY:
                return max(held.at(1 / 2), now + 12 * HOUR)
            case Habit.SELDOM:
                return max(held.at(1 / 2), now + 7 * DAY)

    async def _begin(self, workload: Workload, front: Process) -> OrderView:
        """Order, and prove control of the names."""
        replaces = workload.held.ari_id if workload.held and workload.habit is not Habit.OWN_CLOCK else None
        message = NewOrder(
            identifiers=(IdentifierMessage(type="dns", value=workload.name),),
            replaces=replaces if workload.replaces else None,
            profile=workload.profile,
        )
        view = await front.orders.create(workload.account, message, _CORRELATION)
        workload.order = view.row.id
        for authorization in orjson.loads(view.row.authorizations):
            begun = await front.authorizations.respond(workload.account, authorization, _CHALLENGE, _CORRELATION)
            if (validation := front.validations._tasks.get(begun.id)) is not None:
                await asyncio.wait([validation])
        return await self._read(workload, front)

    async def _read(self, workload: Workload, front: Process) -> OrderView:
        return await front.orders.read(workload.account, workload.order or "")

    async def _go_on(self, workload: Workload, front: Process, view: OrderView) -> None:
        """Take an order as far as it goes now."""
        if self._status(view, front) == "ready":
            message = Finalize(csr=workload.csr)
            view = await front.desk.finalize(workload.account, view.row.id, message, _CORRELATION)
        status = self._status(view, front)
        if status == "valid":
            await self._take(workload, front, view.row.serial or "")
        elif status == "invalid":
            workload.order = None
            raise Problem("unauthorized", "The order is invalid.")

    @staticmethod
    def _status(view: OrderView, front: Process) -> str:
        now = front.context.clock.now()
        return order_status(view.row.state, view.row.expires, view.statuses, now)  # type: ignore[arg-type]

    @staticmethod
    async def _take(workload: Workload, front: Process, serial: str) -> None:
        row = await front.store.read(lambda tx: find_certificate(tx, serial))
        assert row is not None, f"the order of {workload.name} names a certificate that is not there"
        workload.renewals += workload.held is not None
        workload.held = Held.of(row)
        workload.serials.append(serial)
        workload.order, workload.chosen, workload.asks, workload.replaces = None, None, 0.0, True

    @staticmethod
    def _learn(workload: Workload, problem: Problem) -> None:
        """What a client does differently the next time."""
        if problem.type == "badCSR":
            # The order is ready still.
            workload.new_key()
        if problem.type in {"malformed", "orderNotReady"}:
            workload.order = None
        if problem.type == "alreadyReplaced":
            # RFC 9773 section 5: it orders again without.
            workload.replaces = False
