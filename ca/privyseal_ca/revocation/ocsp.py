"""OCSP answers from the database, signed when they are asked for where none is ready (RFC 6960, RFC 9919).

What is kept is handed out as long as it is true: a response that says good is never given for a serial that is revoked,
because both are read at once. ``good`` needs the row of a certificate of that very issuer.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import structlog
from cryptography import x509

from privyseal_ca.clock import CLOCK_STEP, Clock
from privyseal_ca.errors import PrivySealError, SignerError, SignerUnavailableError, StoreError, StoreUnavailableError
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.revocation.ocsp_request import CERT_ID_HASHES
from privyseal_ca.revocation.ocsp_response import Statement, issuer_hashes
from privyseal_ca.revocation.ocsp_signing import PASSING, ResponseMaker, Wanted, answer_of, status_of
from privyseal_ca.revocation.published import OcspAnswer, OcspQuery, OcspStatus
from privyseal_ca.revocation.responders import Responder, Responders
from privyseal_ca.sections import StatusSettings
from privyseal_ca.store.engine import Store
from privyseal_ca.store.ocsp import Known, ResponseRow, look_up, newest_revocation, revoked_after
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

_log = structlog.get_logger("ocsp")

#: RFC 5280 section 4.1.2.2: a serial is positive and has at most 20 octets.
_SERIALS: Final = range(1, 1 << 159)
#: How many answers about unknown serials are remembered.
_UNKNOWN_REMEMBERED: Final = 1024
#: How many serials whose answers changed are remembered; longer than any answer is on its way.
_CHANGED_REMEMBERED: Final = 8192
_BATCH: Final = 1000
#: Seconds between two lines of the log about the same kind of failure.
_QUIET: Final = 30.0
#: Seconds that an answer waits for the database to keep it.
_PATIENCE: Final = 2.0


class StoredOcsp:
    """The :class:`~privyseal_ca.revocation.published.OcspSource` of a service with a database.

    ``issuers`` are the certificates of all that are answered for, by id. Without ``responders`` nothing is signed: what is
    kept is served, and nothing else.
    """

    def __init__(
        self,
        *,
        store: Store,
        issuers: Mapping[str, x509.Certificate],
        clock: Clock,
        settings: StatusSettings,
        metrics: Metrics,
        responders: Responders | None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._responders = responders
        self._maker = ResponseMaker(store=store, clock=clock, settings=settings, metrics=metrics)
        self._issuers = {
            (name, *issuer_hashes(certificate, name)): issuer_id
            for issuer_id, certificate in issuers.items()
            for name in CERT_ID_HASHES
        }
        self._lifetime = settings.ocsp_lifetime
        self._room = max(2, settings.ocsp_queue)
        self._signing = 0
        metrics.queue_depth.labels("ocsp").set_function(lambda: self._signing)
        self._flights: dict[tuple[OcspQuery, bool], asyncio.Task[OcspAnswer]] = {}
        self._unknown: OrderedDict[OcspQuery, OcspAnswer] = OrderedDict()
        self._listeners: list[Callable[[Iterable[str]], None]] = []
        #: The number of each change that was announced lately.
        self._changed: OrderedDict[str, int] = OrderedDict()
        self._changes = 0
        #: The ledger index of the newest revocation that the listeners know of; None before anything was answered.
        self._cursor: int | None = None
        self._complained: dict[str, float] = {}

    async def answer(self, query: OcspQuery) -> OcspAnswer | OcspStatus:
        """See :meth:`privyseal_ca.revocation.published.OcspSource.answer`."""
        issuer_id = self._issuers.get((query.hash_name, query.issuer_name_hash, query.issuer_key_hash))
        if issuer_id is None or query.serial not in _SERIALS:
            return OcspStatus.UNAUTHORIZED
        try:
            while True:
                begun = self._changes
                answer = await self._answer(issuer_id, query, await self._look_up(issuer_id, query))
                # What was revoked since the look is looked up once more, before whoever asked can keep the answer.
                if self._changed.get(serial_text(query.serial), 0) <= begun:
                    return answer
        except PrivySealError as error:
            self._complain("no OCSP answer", error)
            return OcspStatus.TRY_LATER
        except Exception as error:  # noqa: BLE001 (whoever asks gets an answer in any case)
            self._complain("no OCSP answer because of a defect", error)
            return OcspStatus.INTERNAL_ERROR

    def on_change(self, forget: Callable[[Iterable[str]], None]) -> None:
        """See :meth:`privyseal_ca.revocation.published.OcspSource.on_change`."""
        self._listeners.append(forget)

    def announce(self, serials: Iterable[str]) -> None:
        """Tell the listeners that ``serials`` are revoked, and that what was answered for them before counts no more."""
        changed = list(serials)
        self._changes += 1
        for serial in changed:
            self._changed[serial] = self._changes
            self._changed.move_to_end(serial)
        while len(self._changed) > _CHANGED_REMEMBERED:
            self._changed.popitem(last=False)
        for forget in self._listeners:
            forget(changed)

    def go_on_from(self, before: "StoredOcsp") -> None:
        """Announce what was revoked since the last look of ``before``, whose listeners this one has from now on."""
        self._cursor = before._cursor  # noqa: SLF001 (another of this class)

    async def follow(self) -> None:
        """Announce what was revoked since the last call. While the database is away nothing happens, and nothing is lost."""
        try:
            if self._cursor is None:
                self._cursor = await self._store.read(newest_revocation)
            while rows := await self._store.read(self._revoked):
                self.announce(serial for _, serial in rows)
                self._cursor = rows[-1][0]
                if len(rows) < _BATCH:
                    return
                await asyncio.sleep(0)
        except StoreError as error:
            self._complain("revocations cannot be read", error)

    async def close(self) -> None:
        """Let what is being signed finish."""
        await asyncio.gather(*self._flights.values(), return_exceptions=True)

    def _revoked(self, transaction: Transaction) -> list[tuple[int, str]]:
        return revoked_after(transaction, self._cursor or 0, count=_BATCH)

    async def _look_up(self, issuer_id: str, query: OcspQuery) -> Known:
        serial, first = serial_text(query.serial), self._cursor is None

        def unit(transaction: Transaction) -> tuple[Known, int]:
            newest = newest_revocation(transaction) if first else 0
            return look_up(transaction, issuer_id, serial, query.hash_name), newest

        found, newest = await self._store.read(unit)
        if self._cursor is None:
            # From the same view of the database as the first answer: what is revoked after it will be announced.
            self._cursor = newest
        return found

    async def _answer(self, issuer_id: str, query: OcspQuery, found: Known) -> OcspAnswer | OcspStatus:
        ready = self._ready(found)
        if ready is not None and query.nonce is None:
            return ready
        if self._responders is None:
            return ready or (OcspStatus.TRY_LATER if _is_known(found) else OcspStatus.UNAUTHORIZED)
        if issuer_id not in self._responders:
            return ready or OcspStatus.UNAUTHORIZED  # a root, or a retired issuer whose key is gone
        responder = self._responders.find(issuer_id)
        if responder is None:
            return ready or OcspStatus.TRY_LATER
        try:
            return await self._sign(responder, query, found)
        except SignerError as error:
            self._complain("an OCSP response could not be signed", error)
            return ready or OcspStatus.TRY_LATER

    def _ready(self, found: Known) -> OcspAnswer | None:
        """The response that is kept, if it still holds."""
        response, now = found.response, self._clock.now()
        if response is None or response.next_update <= now or bool(response.revoked) != (found.revocation is not None):
            return None
        if self._responders is not None and response.this_update > now + CLOCK_STEP:
            return None  # a clock that was ahead made it: relying parties take it for not valid yet
        return answer_of(response, now)

    async def _sign(self, responder: Responder, query: OcspQuery, found: Known) -> OcspAnswer:
        """A new response. What nobody else can use has half the room, so that a flood of it leaves the other half."""
        if query.nonce is not None:
            with self._slot(self._room // 2):
                return await self._sign_passing(responder, query, found)
        # Who saw the revocation is not answered together with those who did not.
        flight = (query, found.revocation is not None)
        task = self._flights.get(flight)
        if task is None:
            known = _is_known(found)
            if not known and (remembered := self._remembered(query)):
                return remembered
            work = self._sign_to_keep(responder, query) if known else self._sign_unknown(responder, query, found)
            task = self._flights[flight] = asyncio.create_task(work)
            task.add_done_callback(lambda done: self._landed(flight, done))
        # One who goes away does not end it for the others.
        return await asyncio.shield(task)

    def _landed(self, flight: tuple[OcspQuery, bool], task: "asyncio.Task[OcspAnswer]") -> None:
        del self._flights[flight]
        if not task.cancelled():
            task.exception()  # whoever still waits gets it

    async def _sign_to_keep(self, responder: Responder, query: OcspQuery) -> OcspAnswer:
        """A response about a serial that is known, kept for whoever asks next."""
        serial = serial_text(query.serial)
        # Between the look and the start of this one, another may have kept what was missed.
        found = await self._look_up(responder.issuer.id, query)
        if ready := self._ready(found):
            return ready
        with self._slot(self._room):
            left = [Wanted(serial, query.hash_name, found.revocation)]
            while True:
                (row,) = await self._maker.sign(responder, left, reason="request")
                try:
                    left = await self._keep(row)
                except (StoreError, TimeoutError) as error:
                    # Nobody writes now. A look shows whether it is still true, and it is not used for long.
                    self._complain("an OCSP response could not be kept", error)
                    again = await self._look_up(responder.issuer.id, query)
                    if again.revocation is None or row.revoked:
                        soon = min(int(self._clock.now()) + PASSING, row.next_update)
                        return replace(answer_of(row, self._clock.now()), fresh_until=soon)
                    left = [Wanted(serial, query.hash_name, again.revocation)]
                if not left:
                    return answer_of(row, self._clock.now())

    async def _keep(self, row: ResponseRow) -> list[Wanted]:
        if not self._store.available:
            raise StoreUnavailableError("The database is away.", hint="What it kept before is still served.")
        async with asyncio.timeout(_PATIENCE):
            return await self._maker.keep([row])

    async def _sign_unknown(self, responder: Responder, query: OcspQuery, found: Known) -> OcspAnswer:
        """A response about a serial that nobody issued, remembered for a while."""
        with self._slot(self._room // 2):
            answer = await self._sign_passing(responder, query, found)
        self._unknown[query] = answer
        while len(self._unknown) > _UNKNOWN_REMEMBERED:
            self._unknown.popitem(last=False)
        return answer

    def _remembered(self, query: OcspQuery) -> OcspAnswer | None:
        answer = self._unknown.get(query)
        return answer if answer is not None and answer.next_update > self._clock.now() else None

    async def _sign_passing(self, responder: Responder, query: OcspQuery, found: Known) -> OcspAnswer:
        """A response that is not kept: one that repeats a nonce, or says unknown."""
        now = int(self._clock.now())
        known = _is_known(found)
        until = min(now + (self._lifetime if known else PASSING), responder.not_after)
        status = status_of(found.revocation) if known else "unknown"
        (der,) = await responder.sign([Statement(query, status, now, until)])
        self._metrics.ocsp_signed.labels("unknown" if query.nonce is None else "nonce").inc()
        return OcspAnswer(der, now, until, fresh_until=until, serial=serial_text(query.serial), keep=False)

    @contextmanager
    def _slot(self, room: int) -> Iterator[None]:
        """Room for one signature on request.

        Raises:
            SignerUnavailableError: there is none.
        """
        if self._signing >= room:
            raise SignerUnavailableError("Too many OCSP responses are being signed.", hint="Ask again in a moment.")
        self._signing += 1
        try:
            yield
        finally:
            self._signing -= 1

    def _complain(self, what: str, error: Exception) -> None:
        """Log a failure, unless one of its kind was logged a moment ago."""
        now = self._clock.now()
        if now - self._complained.get(what, 0) < _QUIET:
            return
        self._complained[what] = now
        defect = not isinstance(error, PrivySealError | TimeoutError)
        _log.log(
            logging.ERROR if defect else logging.WARNING, what, error=str(error), exc_info=error if defect else None
        )


def _is_known(found: Known) -> bool:
    """Whether there is something to say of the serial: it was issued, or given up before a certificate was handed out."""
    return found.issued or found.revocation is not None
