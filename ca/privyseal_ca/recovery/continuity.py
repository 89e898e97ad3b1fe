"""That a database which is only read goes on from what it was: it may be put back under a process that is serving from it."""

from typing import Final

import structlog

from privyseal_ca.clock import Clock
from privyseal_ca.config import Settings
from privyseal_ca.errors import LedgerBehindError
from privyseal_ca.ledger.log import size
from privyseal_ca.recovery.facts import restored_fact, unsettled
from privyseal_ca.recovery.guard import require_continuation
from privyseal_ca.recovery.outside import Found, LogIdentity, log_identity, look_outside
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Transaction

_log = structlog.get_logger("recovery")

#: Seconds that one replica of a database may be behind another one that was read before.
_LAG: Final = 10.0


class Continuity:
    """What one process knows of a ledger that it reads, for as long as it lives: give the same one to every attempt to start.

    What is kept outside is asked for once. So a replica that is always a moment behind gets to where the ledger was then, and
    a service that waits for its token does not ask again and again.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._found: tuple[tuple[str, str], Found] | None = None
        #: The most entries that were seen, and since when there are fewer.
        self._size = 0
        self._fewer_since: float | None = None

    async def begin(self, store: Store) -> None:
        """Compare the database with what is kept outside, and with what this process has seen of it.

        Raises:
            LedgerBehindError: it is behind, is another ledger, or was restored and is not settled (promise P8).
            LedgerError: a place outside shows what is no checkpoint of this log.
            StoreError: the database failed.
        """
        fact = await store.read(restored_fact)
        if fact is not None:
            raise unsettled(fact)
        identity = await store.read(log_identity)
        log = _name(identity)
        if self._found is None or self._found[0] != log:
            found = await look_outside(self._settings, identity)
            for place, reason in found.silent:
                _log.warning("a checkpoint outside cannot be read", place=place, reason=reason)
            if self._found is not None:
                self._size = 0  # another log, which was begun after a loss
            self._found = log, found
        await require_continuation(store, self._found[1])
        end = await store.read(size)
        if end < self._size:
            raise _shrank(end, self._size)
        self._size, self._fewer_since = end, None

    async def look(self, store: Store) -> str:
        """Why nothing may be served from the database as it is now; empty when it goes on from what it was.

        Raises:
            StoreError: the database failed.
        """

        def unit(transaction: Transaction) -> tuple[int, LedgerBehindError | None]:
            fact = restored_fact(transaction)
            return size(transaction), None if fact is None else unsettled(fact)

        end, wrong = await store.read(unit)
        if wrong is not None:
            return wrong.message
        if end >= self._size:
            self._size, self._fewer_since = end, None
            return ""
        now = self._clock.now()
        if self._fewer_since is None or now < self._fewer_since:
            self._fewer_since = now
        return _shrank(end, self._size).message if now - self._fewer_since >= _LAG else ""


def _name(identity: LogIdentity) -> tuple[str, str]:
    return identity.origin, "" if identity.verifier is None else identity.verifier.vkey()


def _shrank(end: int, known: int) -> LedgerBehindError:
    return LedgerBehindError(
        f"The database was put back under this process: it has {end} entries, and had {known} before.",
        hint="Settle it with `privyseal recovery settle`, then start this process anew.",
    )
