"""A restore cannot un-revoke (promise P8): nothing is issued or published from a database that is behind what others have seen.

:func:`check_outside` is asked at every start, before anything is appended. :func:`settle` is how an operator goes on after a
restore: with the missing entries, or without them and openly so.
"""

from collections.abc import Callable
from functools import partial

import structlog

from privyseal_ca.clock import Clock
from privyseal_ca.config import Settings
from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.checkpoints import StoredTiles
from privyseal_ca.ledger.log import size
from privyseal_ca.ledger.note import Checkpoint
from privyseal_ca.ledger.tiles import root_of
from privyseal_ca.recovery.facts import restored_fact, unsettled
from privyseal_ca.recovery.outside import (
    Evidence,
    Found,
    Seen,
    behind,
    forked,
    log_identity,
    look_at_home,
    look_outside,
)
from privyseal_ca.recovery.settling import Settled, Settling
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Transaction

__all__ = ["Evidence", "Settled", "behind_home", "check_outside", "require_continuation", "settle", "unsettled"]

_log = structlog.get_logger("recovery")


async def check_outside(store: Store, settings: Settings, *, clock: Clock) -> Checkpoint | None:
    """The newest checkpoint that is kept outside, which the ledger has grown from; None when nobody has one.

    To be called at a start, before anything is appended. Places that do not answer are passed over with a warning.

    Raises:
        LedgerBehindError: the database lacks what a place shows, is another ledger, or was restored and not settled.
        LedgerError: a place shows what is no checkpoint of this log.
        StoreError: the database failed.
    """
    begun = clock.now()
    fact = await store.read(restored_fact)
    if fact is not None:
        raise unsettled(fact)
    found = await look_outside(settings, await store.read(log_identity))
    for place, reason in found.silent:
        _log.warning("a checkpoint outside cannot be read", place=place, reason=reason)
    await require_continuation(store, found)
    newest = max(found.seen, key=lambda seen: seen.checkpoint.size, default=None)
    if newest is None:
        return None
    _log.info(
        "the database continues what is kept outside",
        place=newest.place,
        size=newest.checkpoint.size,
        places=len(found.seen),
        seconds=round(clock.now() - begun, 3),
    )
    return newest.checkpoint


async def behind_home(store: Store, settings: Settings) -> LedgerError | None:
    """That the database is behind the checkpoint that the home keeps; None when it is not. Asks nobody over the network.

    Raises:
        StoreError: the database failed.
    """
    try:
        await require_continuation(store, await look_at_home(settings, await store.read(log_identity)))
    except LedgerError as error:
        return error
    return None


async def require_continuation(store: Store, found: Found) -> None:
    """Look whether the ledger has grown from every checkpoint that was found.

    Raises:
        LedgerBehindError: it has not: of several, the one that shows most is named.
        LedgerError: the database lacks what it must have itself.
        StoreError: the database failed.
    """
    for seen in sorted(found.seen, key=lambda seen: -seen.checkpoint.size):
        await store.read(partial(_compare, seen))


def _compare(seen: Seen, transaction: Transaction) -> None:
    end = size(transaction)
    if seen.checkpoint.size > end:
        raise behind(seen, end)
    if root_of(StoredTiles(transaction), seen.checkpoint.size) != seen.checkpoint.root:
        raise forked(seen)


async def settle(
    store: Store,
    evidence: Evidence,
    settings: Settings,
    *,
    actor: str,
    correlation: str,
    clock: Clock,
    progress: Callable[[str], None],
) -> Settled:
    """Bring a database that was restored to where ``evidence``, and what is kept outside by setting, say that it was.

    The missing entries are appended as they were, and applied to the tables in the same transactions. May be killed at any
    moment and called again: what was appended is part of what the outside checkpoint covers. Nobody else may use the database
    meanwhile: the service's claim on it is held. With nothing to settle, nothing is changed.

    Raises:
        LedgerBehindError: entries are missing that the evidence does not have, or the database is another ledger.
        LedgerError: the evidence is not what it should be: another log, a wrong key, entries that do not lead to the root.
        BackupError: evidence that is needed is missing or cannot be read.
        DatabaseInUseError: a service runs.
        StoreError: the database failed.
    """
    lock = store.lock_service()
    try:
        return await Settling(
            store, evidence, settings, actor=actor, correlation=correlation, clock=clock, progress=progress
        ).run()
    finally:
        lock.close()
