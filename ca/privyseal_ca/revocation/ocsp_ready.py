"""OCSP responses made before anybody asks, in the order in which they are missed.

1. Certificates that were revoked: what is kept for them is wrong, and is replaced before anything else.
2. Responses at half of their life.
3. New certificates, once they are some seconds old.

How far 1 and 3 have come is kept in the database together with what was made, for each issuer, so that a token that is away
holds up its own issuer only, and neither an outage nor the end of the process loses anything.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, TypeVar

import structlog

from privyseal_ca.clock import Clock
from privyseal_ca.errors import SignerError
from privyseal_ca.ledger.log import size
from privyseal_ca.revocation.ocsp_signing import ResponseMaker, Wanted
from privyseal_ca.revocation.responders import Responder, Responders
from privyseal_ca.sections import StatusSettings
from privyseal_ca.store.certificates import RevocationRow, find_revocation
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact, set_fact
from privyseal_ca.store.ocsp import (
    contradicted_responses,
    count_due,
    drop_response,
    due_responses,
    find_not_after,
    find_response,
    issued_between,
    old_responses,
    wants_responses,
)
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

_log = structlog.get_logger("ocsp")

T = TypeVar("T")

#: Signatures in one job of the token: an issuance waits for some milliseconds at most.
_BATCH: Final = 64
#: Rows of each kind that one call looks at, for each issuer. With SQLite that happens on the event loop: 2 to 4 ms.
_ROUND: Final = 128
#: Responses of issuers that cannot answer any more go this many seconds after they were due.
_FORGOTTEN: Final = 30 * 86400
#: How many samples of the ledger's size are taken while a certificate becomes old enough.
_SAMPLES: Final = 60
_COUNTED: Final = 10_000


class ReadyResponses:
    """Keeps responses ready. ``announce`` is told the serials of certificates whose responses said otherwise before."""

    def __init__(
        self,
        *,
        store: Store,
        responders: Responders,
        clock: Clock,
        settings: StatusSettings,
        metrics: Metrics,
        announce: Callable[[Iterable[str]], None],
    ) -> None:
        self._store = store
        self._responders = responders
        self._clock = clock
        self._hashes = settings.ocsp_hashes
        self._delay = settings.ocsp_delay
        self._metrics = metrics
        self._announce = announce
        self._maker = ResponseMaker(store=store, clock=clock, settings=settings, metrics=metrics)
        #: When the ledger had which size: what lies below a size is at least as old as its sample.
        self._sizes: deque[tuple[float, int]] = deque()
        #: Up to which refresh time nothing is due any more, by issuer.
        self._refreshed: dict[str, int] = {}

    async def prepare_due(self) -> int:
        """Make what is missing, a bounded number; how many pieces of work are known to wait still, so that 0 means to rest.

        What cannot be signed now waits for the next call.

        Raises:
            StoreError: the database failed; nothing is lost.
        """
        settled = await self._settled()
        waiting = 0
        for work in (self._replace_revoked, self._refresh, lambda responder: self._begin(responder, settled)):
            for responder in self._responders.usable():
                try:
                    waiting += await work(responder)
                except SignerError as error:
                    _log.warning("OCSP responses wait", issuer=responder.issuer.identity.name, error=str(error))
        await self._forget_old()
        now = int(self._clock.now())
        self._metrics.ocsp_due.set(await self._store.read(lambda tx: count_due(tx, now=now, most=_COUNTED)))
        return waiting

    async def _replace_revoked(self, responder: Responder) -> int:
        issuer_id = responder.issuer.id
        fact = f"ocsp-revoked:{issuer_id}"

        def read(transaction: Transaction) -> tuple[bool, list[tuple[int, Wanted | None]]]:
            after = int(find_fact(transaction, fact) or 0)
            rows = contradicted_responses(transaction, after, count=_ROUND)
            full = len(rows) == _ROUND
            if full:  # the last revocation may have one more row
                rows = [row for row in rows if row[0].ledger_index < rows[-1][0].ledger_index]
            # The last stands for all that want nothing: those of other issuers, and those that nobody asked about.
            found: list[tuple[int, Wanted | None]] = [(revocation.ledger_index, None) for revocation, _ in rows[-1:]]
            wanted: dict[Wanted, None] = {}
            for revocation, hash_name in rows:
                if revocation.issuer_id == issuer_id:
                    if hash_name:
                        wanted[Wanted(revocation.serial, hash_name, revocation)] = None
                    wanted.update(dict.fromkeys(self._missing(transaction, revocation)))
            found += [(each.revocation.ledger_index, each) for each in wanted if each.revocation is not None]
            return full, sorted(found, key=lambda row: row[0])

        full, found = await self._store.read(read)
        for batch, through in _batches(found):
            wanted = [each for _, each in batch if each is not None]
            await self._maker.make(
                responder,
                wanted,
                reason="revoked",
                together=partial(_advance, fact, through),
            )
            if wanted:
                self._announce({each.serial for each in wanted})
        return int(full)

    def _missing(self, transaction: Transaction, revocation: RevocationRow) -> list[Wanted]:
        """The responses that a revoked certificate is to have and never had: those who cannot sign know it by them alone."""
        if revocation.not_after < self._clock.now() or not wants_responses(transaction, revocation.serial):
            return []
        return [
            Wanted(revocation.serial, hash_name, revocation)
            for hash_name in self._hashes
            if find_response(transaction, revocation.serial, hash_name) is None
        ]

    async def _refresh(self, responder: Responder) -> int:
        issuer_id, now = responder.issuer.id, int(self._clock.now())
        after = self._refreshed.get(issuer_id, 0)

        def read(transaction: Transaction) -> tuple[int, list[Wanted], list[tuple[str, str]]]:
            rows = due_responses(transaction, issuer_id, after=after, now=now, count=_ROUND)
            alive: list[Wanted] = []
            ended: list[tuple[str, str]] = []
            for serial, hash_name, _ in rows:
                revocation = find_revocation(transaction, issuer_id, serial)
                not_after = revocation.not_after if revocation else find_not_after(transaction, serial) or 0
                if not_after < now:
                    ended.append((serial, hash_name))
                else:
                    alive.append(Wanted(serial, hash_name, revocation))
            return len(rows), alive, ended

        count, alive, ended = await self._store.read(read)
        if ended:
            await self._store.write(lambda tx: _drop(tx, ended))
        for begin in range(0, len(alive), _BATCH):
            await self._maker.make(responder, alive[begin : begin + _BATCH], reason="ready")
        if count < _ROUND:
            self._refreshed[issuer_id] = now
        return int(count == _ROUND)

    async def _begin(self, responder: Responder, settled: int) -> int:
        """The first responses of certificates below ledger index ``settled``."""
        issuer_id, now = responder.issuer.id, self._clock.now()
        fact = f"ocsp-begun:{issuer_id}"

        def read(transaction: Transaction) -> tuple[bool, list[tuple[int, Wanted | None]]]:
            first = int(find_fact(transaction, fact) or -1) + 1
            rows = issued_between(transaction, first=first, end=settled, count=_ROUND)
            found: list[tuple[int, Wanted | None]] = [(row.ledger_index, None) for row in rows[-1:]]
            for row in rows:
                if row.issuer_id != issuer_id or not row.ocsp or row.not_after < now:
                    continue
                revocation = find_revocation(transaction, issuer_id, row.serial)
                for hash_name in self._hashes:
                    if find_response(transaction, row.serial, hash_name) is None:
                        found.append((row.ledger_index, Wanted(row.serial, hash_name, revocation)))  # noqa: PERF401
            return len(rows) == _ROUND, sorted(found, key=lambda row: row[0])

        full, found = await self._store.read(read)
        for batch, through in _batches(found):
            await self._maker.make(
                responder,
                [each for _, each in batch if each is not None],
                reason="ready",
                together=partial(_advance, fact, through),
            )
        return int(full)

    async def _settled(self) -> int:
        """The size that the ledger had when the newest certificates that are due were issued."""
        now, newest = self._clock.now(), await self._store.read(size)
        if self._sizes and now - self._sizes[-1][0] < self._delay / _SAMPLES:
            # Not worth a sample of its own: what is a moment younger counts as old as the rest.
            self._sizes[-1] = self._sizes[-1][0], newest
        else:
            self._sizes.append((now, newest))
        while len(self._sizes) > 1 and now - self._sizes[1][0] >= self._delay:
            self._sizes.popleft()
        sampled, settled = self._sizes[0]
        return settled if now - sampled >= self._delay else 0

    async def _forget_old(self) -> None:
        before = int(self._clock.now()) - _FORGOTTEN
        old = await self._store.read(lambda tx: old_responses(tx, before=before, count=_ROUND))
        if old:
            await self._store.write(lambda tx: _drop(tx, old))


def _advance(fact: str, through: int, transaction: Transaction) -> None:
    set_fact(transaction, fact, str(through))


def _batches(found: Sequence[tuple[int, T]]) -> Iterable[tuple[Sequence[tuple[int, T]], int]]:
    """``found``, in order of ledger index, in pieces; with each up to which index all is done when that piece is."""
    for begin in range(0, len(found), _BATCH):
        end = begin + _BATCH
        yield found[begin:end], found[-1][0] if end >= len(found) else found[end][0] - 1


def _drop(transaction: Transaction, keys: Iterable[tuple[str, str]]) -> None:
    for serial, hash_name in keys:
        drop_response(transaction, serial, hash_name)
