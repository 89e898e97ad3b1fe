"""Certificates of compromised keys that outlived the blocking of their key.

There are some when a key had more certificates than fit into the transaction that blocked it, or when one was being issued
at that moment.
"""

from functools import partial

import structlog

from privyseal_ca.clock import Clock
from privyseal_ca.ledger.entries import SERVICE_ACTOR
from privyseal_ca.ledger.log import lock_head, size
from privyseal_ca.revocation.revoke import revoke_alive_with_key
from privyseal_ca.store.engine import Store
from privyseal_ca.store.revoking import blocked_keys_certified, blocked_keys_with_certificates, count_blocked_keys
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

_log = structlog.get_logger("revocation")

#: How many revocations make one transaction.
BATCH = 200
_KEYS = 500
_INDEXES = 2000


async def revoke_rest(store: Store, clock: Clock, spki_sha256: bytes, *, actor: str, correlation: str) -> int:
    """Revoke everything alive with a blocked key, a batch in each transaction; how many there were.

    Raises:
        StoreUnavailableError: the database failed; what was done stays done.
    """

    def unit(transaction: Transaction) -> int:
        lock_head(transaction)
        now = clock.now()
        return len(
            revoke_alive_with_key(transaction, spki_sha256, actor=actor, correlation=correlation, now=now, count=BATCH)
        )

    total = 0
    while count := await store.write(unit):
        total += count
    return total


async def revoke_rest_of_all(store: Store, clock: Clock, *, actor: str, correlation: str) -> int:
    """The same for every blocked key. Without a correlation of their own, entries have the first half of the key's hash.

    Raises:
        StoreUnavailableError: as before.
    """
    total = 0
    after = b""
    while True:
        page = partial(blocked_keys_with_certificates, after=after, now=int(clock.now()), count=_KEYS)
        found = await store.read(page)
        if found is None:
            return total
        after, keys = found
        for key in keys:
            total += await revoke_rest(store, clock, key, actor=actor, correlation=correlation or key[:16].hex())


class CompromisedKeys:
    """Revokes what blocked keys still have."""

    def __init__(self, store: Store, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        #: How many keys were blocked when all of them had nothing left.
        self._clean = -1
        #: The index up to which certificates were looked at since.
        self._through = 0

    async def sweep(self) -> int:
        """Revoke what there is; how many certificates. One short read when nothing was blocked or issued since the last time.

        Raises:
            StoreUnavailableError: the database failed; the next sweep goes on.
        """
        count, end = await self._store.read(lambda tx: (count_blocked_keys(tx), size(tx)))
        if count != self._clean:
            revoked = await revoke_rest_of_all(self._store, self._clock, actor=SERVICE_ACTOR, correlation="")
        else:
            # Only certificates that were recorded after their key was blocked can be left.
            revoked = await self._revoke_new(end) if count else 0
        self._clean, self._through = count, end
        if revoked:
            self._metrics.revoked.inc(revoked)
            _log.warning("certificates of compromised keys revoked", count=revoked)
        return revoked

    async def _revoke_new(self, end: int) -> int:
        revoked = 0
        for first in range(self._through, end, _INDEXES):
            page = partial(blocked_keys_certified, first=first, end=min(end, first + _INDEXES))
            for key in await self._store.read(page):
                revoked += await revoke_rest(
                    self._store, self._clock, key, actor=SERVICE_ACTOR, correlation=key[:16].hex()
                )
        return revoked
