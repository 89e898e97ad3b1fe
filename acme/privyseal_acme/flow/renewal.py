"""Renewal information: when a certificate is to be renewed, and why then (RFC 9773)."""

import asyncio
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final

from privyseal_acme.flow.context import Context
from privyseal_acme.protocol.ari import parse_certificate_id
from privyseal_acme.protocol.problems import malformed
from privyseal_ca.clock import Clock, rfc3339
from privyseal_ca.closed_periods import parse_closed_periods
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.renewal.due import DueCounts, Issued
from privyseal_ca.renewal.page import explanation_page
from privyseal_ca.renewal.windows import (
    COUNTED_EVERY,
    Reason,
    Shape,
    Window,
    due_now,
    poll_interval,
    window_of,
)
from privyseal_ca.store.certificates import CertificateRow, find_certificate, find_revocation
from privyseal_ca.store.engine import Store
from privyseal_ca.store.fleet import LineageRow, lineage_of
from privyseal_ca.store.renewals import NEWEST, blocked_since, is_retired, issued_after, issued_before
from privyseal_ca.store.statement import Transaction

#: Rows read at a time: a few milliseconds.
_BATCH: Final = 5000
#: Batches of new certificates that one answer waits for at most; the others are for the next one.
_BATCHES: Final = 4
#: Seconds that one call of :meth:`RenewalFlow.count` takes at most, and those of a pause between two batches.
_LONGEST: Final = 10.0
_LONGEST_PAUSE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The window of one certificate, and how long until asking again, in seconds."""

    serial: str
    certificate: Issued
    window: Window
    retry_after: int


class RenewalFlow:
    """The windows of all certificates."""

    def __init__(self, context: Context) -> None:
        self._context = context
        settings = context.settings.renewal
        self._shape = Shape(settings.spread, settings.margin, parse_closed_periods(settings.closed, settings.time_zone))
        self._counter = _Counter(context.store, context.clock)

    async def count(self, seconds: float = _LONGEST) -> bool:
        """Bring what windows are spread by up to date, for about ``seconds`` at most; whether nothing is left for the next call.

        Answers do a piece of that by themselves. After a start, when many clients ask at once, that would be late: the first
        of them would be told windows by their serials' hashes, and others by few of those who fall due with them.

        Raises:
            StoreUnavailableError: the database is away. What was counted stays.
        """
        return await self._counter.catch_up(seconds)

    async def info(self, certificate_id: str) -> tuple[dict[str, Any], int]:
        """The renewal information object (section 4.2), and how many seconds until asking again (section 4.3).

        Raises:
            Problem: malformed, with status 404 when the certificate was not issued here.
        """
        found = await self.suggest(certificate_id)
        self._context.fleet.polled(found.serial, self._context.clock.now())
        self._context.metrics.renewal_polls.inc()
        window = {"start": rfc3339(found.window.start), "end": rfc3339(found.window.end)}
        url = self._context.urls.explanation(certificate_id)
        return {"suggestedWindow": window, "explanationURL": url}, found.retry_after

    async def explanation(self, certificate_id: str) -> str:
        """The page for people, as HTML.

        Raises:
            Problem: as :meth:`info`.
        """
        found = await self.suggest(certificate_id)
        return explanation_page(certificate_id, found.certificate, found.window)

    async def suggest(self, certificate_id: str) -> Suggestion:
        """The window of the certificate with the identifier of section 4.1.

        Raises:
            Problem: as :meth:`info`.
        """
        key_id, number = parse_certificate_id(certificate_id)
        serial, issuer_id = serial_text(number), key_id.hex()

        counts = await self._counter.counts()

        def unit(transaction: Transaction) -> Suggestion:
            row = find_certificate(transaction, serial)
            if row is None or row.issuer_id != issuer_id:
                raise malformed("The certificate was not issued here.", status=404)
            lineage = lineage_of(transaction, serial)
            return self.suggestion(transaction, row, counts, critical=lineage is not None and is_critical(lineage))

        return await self._context.store.read(unit)

    async def counts(self) -> DueCounts:
        """What windows are spread by, as it is now."""
        return await self._counter.counts()

    def suggestion(
        self, transaction: Transaction, row: CertificateRow, counts: DueCounts, *, critical: bool
    ) -> Suggestion:
        """The window of a certificate inside of a unit of work; ``critical`` ones are renewed earlier than others."""
        settings, certificate = self._context.settings.renewal, Issued(row.not_before, row.not_after)
        window = _urgent(transaction, row) or window_of(
            row.serial,
            certificate,
            around=counts.around(certificate),
            capacity=settings.capacity or counts.capacity,
            shape=self._shape,
            now=self._context.clock.now(),
            critical=critical,
        )
        return Suggestion(row.serial, certificate, window, poll_interval(row.serial, certificate, settings.poll))


def is_critical(lineage: LineageRow) -> bool:
    """Whether the workload is to be renewed earlier than others."""
    return lineage.criticality == "critical"


def _urgent(transaction: Transaction, row: CertificateRow) -> Window | None:
    """The window of what is to be renewed at once (section 4.2), or None. It stays where it is from poll to poll."""
    since = blocked_since(transaction, row.spki_sha256)
    if since is not None:
        return due_now(since, Reason.KEY)
    revocation = find_revocation(transaction, row.issuer_id, row.serial)
    if revocation is not None:
        return due_now(revocation.revoked_at, Reason.REVOKED)
    if is_retired(transaction, row.issuer_id):
        return due_now(row.not_before, Reason.ISSUER)
    return None


class _Counter:
    """Keeps the counts of what falls due, from the certificates' table, a bounded piece of it at a time.

    What is new is counted once a minute at most. What was there at the start is counted backwards until a whole batch has
    expired: by :meth:`catch_up`, and a batch with each answer; windows that need it are answered by the serial's hash meanwhile.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._counts = DueCounts()
        #: The ledger indexes between which everything is counted; nothing yet while the second is None.
        self._oldest = NEWEST
        self._newest: int | None = None
        self._complete = False
        self._counted_at = -float("inf")
        #: Held by whoever reads: nothing is to be counted twice.
        self._reading = asyncio.Lock()

    async def counts(self) -> DueCounts:
        """The counts, at most a minute old unless much is still to be read. Who comes while they are read gets what is there."""
        now = self._clock.now()
        due = abs(now - self._counted_at) >= COUNTED_EVERY
        if not self._reading.locked() and (due or not self._complete):
            async with self._reading:
                if not self._complete:
                    await self._count_back(now)
                for _ in range(_BATCHES if due else 0):
                    if await self._count_new(now):
                        break
        return self._counts

    async def catch_up(self, seconds: float) -> bool:
        """Count what was there and what is new, for about ``seconds`` and at least a batch of each; whether that was all."""
        end = perf_counter() + seconds
        async with self._reading:
            while True:
                begun, now = perf_counter(), self._clock.now()
                if not self._complete:
                    await self._count_back(now)
                if await self._count_new(now) and self._complete:
                    return True
                if perf_counter() >= end:
                    return False
                # Half of the time is everybody else's.
                await asyncio.sleep(min(perf_counter() - begun, _LONGEST_PAUSE))

    async def _count_back(self, now: float) -> None:
        """Count one more batch of what was there at the start."""
        rows = await self._store.read(partial(issued_before, index=self._oldest, count=_BATCH))
        if self._newest is None:
            self._newest = rows[0][0] if rows else -1
        if rows:
            self._oldest = rows[-1][0]
            self._counts.add(Issued(begin, end) for _, begin, end in rows)
        self._complete = len(rows) < _BATCH or all(end <= now for _, _, end in rows)

    async def _count_new(self, now: float) -> bool:
        """Count one more batch of what came since the start; whether it was the last."""
        if self._newest is None:
            return True
        rows = await self._store.read(partial(issued_after, index=self._newest, count=_BATCH))
        if rows:
            self._newest = rows[-1][0]
            self._counts.add(Issued(begin, end) for _, begin, end in rows)
        if len(rows) == _BATCH:
            return False
        self._counts.forget(now)
        self._counted_at = now
        return True
