"""Which of the processes on one database does the work that one does for all: the one that holds the lease.

The lease is a row that is taken and renewed by compare-and-set, and whose fence grows whenever it is taken. Times only
decide when somebody tries to take it. That two never both write is held by the fence: whatever is written for the leader
looks in its own transaction whether the fence is still its own (:meth:`Leadership.guarding`). So neither a clock that
steps nor a process that was stopped for an hour and wakes in the middle of its work can do harm.
"""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import structlog

from privyseal_ca.clock import Clock
from privyseal_ca.errors import LeaseLostError, PrivySealError, StoreConflictError
from privyseal_ca.store.engine import Store
from privyseal_ca.store.guards import guarding
from privyseal_ca.store.scheduling import (
    JobRow,
    LeaseRow,
    find_lease,
    hold_lease,
    release_lease,
    renew_lease,
    report_jobs,
    take_lease,
)
from privyseal_ca.store.statement import Transaction

_log = structlog.get_logger("scheduler")


class Leadership:
    """One process's part in the lease. ``seconds`` is how long it is held without being renewed."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        holder: str,
        seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._clock = clock
        self._holder = holder
        self._seconds = seconds
        self._monotonic = monotonic
        #: What grows with every taking of the lease; None while another leads or nobody does.
        self.fence: int | None = None
        self._sure_until = -math.inf
        self._renewed = -math.inf
        self._seen: LeaseRow | None = None
        self._seen_at = -math.inf

    @property
    def leads(self) -> bool:
        """Whether this process holds the lease, and renewed it lately enough that nobody has had a reason to take it."""
        return self.fence is not None and self._monotonic() < self._sure_until

    @property
    def renewal_due(self) -> bool:
        """Whether a third of the lease has passed since it was renewed."""
        return self._monotonic() >= self._renewed + self._seconds / 3

    def guarding(self) -> AbstractContextManager[None]:
        """Have everything that is written inside the block refused once another has the lease.

        Raises:
            LeaseLostError: this process does not lead now.
        """
        holder, fence = self._holder, self.fence
        if fence is None:
            raise LeaseLostError(
                "This process does not lead.", hint="`privyseal job list` shows which work that concerns."
            )
        return guarding(lambda tx: hold_lease(tx, holder, fence))

    async def renew(self, reports: Iterable[JobRow] = ()) -> None:
        """Hold on to the lease, and store ``reports`` in the same transaction.

        Raises:
            LeaseLostError: another has it; nothing was stored.
            StoreError: the database did not do it. The lease is held as long as it was before.
        """
        fence, rows = self.fence, list(reports)
        if fence is None:
            return
        begun, until = self._monotonic(), self._until()

        def unit(transaction: Transaction) -> None:
            renew_lease(transaction, self._holder, fence, until)
            report_jobs(transaction, rows)

        try:
            await self._store.write(unit)
        except LeaseLostError:
            self.lose()
            raise
        self._renewed, self._sure_until = begun, begun + self._seconds

    async def take(self, *, sole: bool = False) -> bool:
        """Take the lease if nobody holds it; whether this process leads now.

        Somebody holds it until the time in its row, but not longer than the row has stayed the same for as long as a lease
        lasts: where a clock was set back, that time may be far away. A row that names this process is nobody else's: its
        answer got lost, or was refused while the row was locked. ``sole`` is for who knows that no other process uses the
        database: whatever the row says is then left over.

        Raises:
            StoreError: the database did not do it.
        """
        begun, row = self._monotonic(), await self._store.read(find_lease)
        if row != self._seen or self._seen_at == -math.inf:
            self._seen, self._seen_at = row, begun
        free = row is None or row.until <= self._clock.now() or begun >= self._seen_at + self._seconds
        ours = row is not None and row.holder == self._holder
        if not (free or ours or sole):
            return False
        until = self._until()
        try:
            fence = await self._store.write(lambda tx: take_lease(tx, row, self._holder, until))
        except StoreConflictError:
            return False
        if fence is None:
            return False
        self.fence, self._renewed, self._sure_until = fence, begun, begun + self._seconds
        _log.info("this process leads", fence=fence)
        return True

    def lose(self) -> None:
        """Take note that another process leads."""
        if self.fence is not None:
            _log.warning("another process leads now", fence=self.fence)
        self.fence = None
        self._seen_at = -math.inf

    async def release(self) -> None:
        """Give the lease up, so that the next one need not wait. Where nothing can be written, it ends by itself."""
        fence, self.fence = self.fence, None
        if fence is None:
            return
        try:
            await self._store.write(lambda tx: release_lease(tx, self._holder, fence))
        except PrivySealError as error:
            _log.warning("the lease ends by itself", error=str(error))

    def _until(self) -> int:
        return math.ceil(self._clock.now() + self._seconds)
