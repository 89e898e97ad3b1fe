"""Renewal information: when a certificate is to be renewed, and why then (RFC 9773)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from privyseal_ca.store.renewals import NEWEST, blocked_since, is_retired, issued_after, issued_before
from privyseal_ca.store.statement import Transaction

#: Rows read at a time: a few milliseconds.
_BATCH: Final = 5000
#: Batches of new certificates that one answer waits for at most; the others are for the next one.
_BATCHES: Final = 4


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The window of one certificate, and how long until asking again, in seconds."""

    serial: str
    certificate: Issued
    window: Window
    retry_after: int


class RenewalFlow:
    """Windows. ``critical`` says of a certificate whether its workload is to be renewed earlier than others."""

    def __init__(self, context: Context, critical: Callable[[CertificateRow], bool] = lambda _: False) -> None:
        self._context = context
        self._critical = critical
        settings = context.settings.renewal
        self._shape = Shape(settings.spread, settings.margin, parse_closed_periods(settings.closed, settings.time_zone))
        self._counter = _Counter(context.store, context.clock)

    async def info(self, certificate_id: str) -> tuple[dict[str, Any], int]:
        """The renewal information object (section 4.2), and how many seconds until asking again (section 4.3).

        Raises:
            Problem: malformed, with status 404 when the certificate was not issued here.
        """
        found = await self.suggest(certificate_id)
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

        def unit(transaction: Transaction) -> tuple[CertificateRow, Window | None]:
            row = find_certificate(transaction, serial)
            if row is None or row.issuer_id != issuer_id:
                raise malformed("The certificate was not issued here.", status=404)
            return row, _urgent(transaction, row)

        row, window = await self._context.store.read(unit)
        certificate = Issued(row.not_before, row.not_after)
        if window is None:
            counts = await self._counter.counts()
            window = window_of(
                serial,
                certificate,
                around=counts.around(certificate),
                capacity=self._context.settings.renewal.capacity or counts.capacity,
                shape=self._shape,
                now=self._context.clock.now(),
                critical=self._critical(row),
            )
        return Suggestion(
            serial, certificate, window, poll_interval(serial, certificate, self._context.settings.renewal.poll)
        )


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

    What is new is counted once a minute at most. What was there at the start is counted backwards, a batch with each answer,
    until a whole batch has expired; windows that need it are answered by the serial's hash meanwhile.
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
        self._busy = False

    async def counts(self) -> DueCounts:
        """The counts, at most a minute old unless much is still to be read. Who comes while they are read gets what is there."""
        now = self._clock.now()
        due = abs(now - self._counted_at) >= COUNTED_EVERY
        if not self._busy and (due or not self._complete):
            self._busy = True
            try:
                if not self._complete:
                    await self._count_back(now)
                if due and self._newest is not None:
                    await self._count_new(self._newest, now)
            finally:
                self._busy = False
        return self._counts

    async def _count_back(self, now: float) -> None:
        rows = await self._store.read(partial(issued_before, index=self._oldest, count=_BATCH))
        if self._newest is None:
            self._newest = rows[0][0] if rows else -1
        if rows:
            self._oldest = rows[-1][0]
            self._counts.add(Issued(begin, end) for _, begin, end in rows)
        self._complete = len(rows) < _BATCH or all(end <= now for _, _, end in rows)

    async def _count_new(self, newest: int, now: float) -> None:
        for _ in range(_BATCHES):
            rows = await self._store.read(partial(issued_after, index=newest, count=_BATCH))
            if rows:
                self._newest = newest = rows[-1][0]
                self._counts.add(Issued(begin, end) for _, begin, end in rows)
            if len(rows) < _BATCH:
                self._counts.forget(now)
                self._counted_at = now
                break
