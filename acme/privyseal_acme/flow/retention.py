"""How long what has ended is kept, and its removal while the service serves.

Nothing that decides about a certificate goes: what an order or an authorization was, who asked and what was seen is in the
ledger; certificates, revocations and accounts have tables of their own, which no sweep touches.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from privyseal_acme.protocol.ari import parse_certificate_id
from privyseal_acme.protocol.problems import Problem
from privyseal_acme.store import retention
from privyseal_acme.store.retention import BATCH, DueOrder
from privyseal_ca.clock import Clock
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.sections import RetentionSettings
from privyseal_ca.store.engine import Store
from privyseal_ca.store.ocsp import find_not_after
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

#: Batches of each kind in one sweep; the next goes on.
_BATCHES: Final = 500
#: Up to how many rows the backlog is counted.
_COUNTED: Final = 10_000
#: The longest pause between two batches, in seconds.
_LONGEST_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did: rows that it removed, by kind, and whether it came to the end of what was due."""

    orders: int
    authorizations: int
    finished: bool


@dataclass(frozen=True, slots=True)
class _Batch:
    seen: int
    removed: int


class Retention:
    """Removes what was kept for its time. One call of :meth:`sweep` a minute keeps up with 800 rows a second."""

    def __init__(self, *, store: Store, settings: RetentionSettings, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._metrics = metrics

    async def sweep(self) -> Swept:
        """Remove a bounded number of what is due, in small units of work with pauses between them.

        May be interrupted anywhere, called again, and run beside another sweep.

        Raises:
            StoreError: the database failed; what was removed before stays removed, the next sweep goes on.
        """
        now = int(self._clock.now())
        orders_before = now - self._settings.orders
        authorizations_before = now - self._settings.authorizations

        def authorizations(transaction: Transaction) -> _Batch:
            removed = retention.remove_authorizations(transaction, before=authorizations_before)
            return _Batch(removed, removed)

        removed_orders, orders_done = await self._in_batches(
            "orders", lambda tx: _sweep_orders(tx, before=orders_before, now=now)
        )
        removed_authorizations, authorizations_done = await self._in_batches("authorizations", authorizations)

        def backlog(transaction: Transaction) -> dict[str, int]:
            return {
                "orders": retention.count_due_orders(transaction, before=orders_before, most=_COUNTED),
                "authorizations": retention.count_due_authorizations(
                    transaction, before=authorizations_before, most=_COUNTED
                ),
            }

        for what, count in (await self._store.read(backlog)).items():
            self._metrics.retention_backlog.labels(what).set(count)
        return Swept(removed_orders, removed_authorizations, orders_done and authorizations_done)

    async def _in_batches(self, what: str, unit: Callable[[Transaction], _Batch]) -> tuple[int, bool]:
        """Run ``unit`` until it finds nothing more, or often enough; how many rows it removed, and whether that was all."""
        removed = 0
        for _ in range(_BATCHES):
            begun = perf_counter()
            batch = await self._store.write(unit)
            removed += batch.removed
            self._metrics.swept.labels(what).inc(batch.removed)
            if batch.seen < BATCH:
                return removed, True
            # Half of the time is everybody else's, however slow the database is.
            await asyncio.sleep(min(perf_counter() - begun, _LONGEST_PAUSE))
        return removed, False


def kept_from(state: str, *, expires: int, certificate_ends: int | None, replaced_ends: int | None, now: int) -> int:
    """From when the time is counted for which an order is kept, in seconds since the epoch.

    An order with a certificate says where that is until it ends. The one that it replaces may end later: until then the order
    is what a second one that replaces it is refused by (RFC 9773 section 5). One that is being worked on ends later than now.
    """
    if state == "processing":
        return now
    if state != "valid":
        return expires
    return max(expires, certificate_ends or 0, replaced_ends or 0)


def _sweep_orders(transaction: Transaction, *, before: int, now: int) -> _Batch:
    """Remove what was kept long enough; of the rest, remember when that will be, so that no sweep looks at it until then."""
    due = retention.due_orders(transaction, before=before)
    over = []
    for order in due:
        since = kept_from(
            order.state,
            expires=order.expires,
            certificate_ends=order.certificate_ends,
            replaced_ends=_replaced_ends(transaction, order),
            now=now,
        )
        if since > before:
            retention.retain_order(transaction, order.id, since)
        else:
            over.append(order.id)
    return _Batch(len(due), retention.remove_orders(transaction, over, before=before))


def _replaced_ends(transaction: Transaction, order: DueOrder) -> int | None:
    """When the certificate ends that the certificate of ``order`` replaced."""
    if order.replaces is None or order.certificate_ends is None:
        return None
    with suppress(Problem):
        _, serial = parse_certificate_id(order.replaces)
        return find_not_after(transaction, serial_text(serial))
    return None
