"""Ledgers with witnesses in tests: who has cosigned, what a checkpointer knows of a witness, and a database that is put back."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import bindparam, delete, update

from privyseal_ca.ledger.checkpoints import Checkpointer, latest_checkpoint
from privyseal_ca.ledger.cosignatures import CosignatureVerifier, cosignatures
from privyseal_ca.sections import WitnessSettings
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import LedgerCheckpoint, LedgerEntry, LedgerHead, LedgerTile
from privyseal_ca.witness.client import Witnesses
from privyseal_ca.witness.peer import Peer

_entry = LedgerEntry.__table__  # type: ignore[attr-defined]
_head = LedgerHead.__table__  # type: ignore[attr-defined]
_CUT = Statement(delete(_entry).where(_entry.c.idx >= bindparam("first")))
_SET_HEAD = Statement(update(_head).values(size=bindparam("first")))
_DROP = [Statement(delete(table.__table__)) for table in (LedgerTile, LedgerCheckpoint)]  # type: ignore[attr-defined]

_DEADLINE = 20.0


Signer = Callable[..., Checkpointer]


class Turned:
    """Seconds that only the test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def peer_of(signing: Checkpointer) -> Peer:
    """The first witness, as the checkpointer knows it."""
    cosigner = signing._cosigner
    assert isinstance(cosigner, Witnesses)
    return cosigner._witnesses[0]


async def cosigned(store: Store, *witnesses: WitnessSettings) -> set[str]:
    """Who has cosigned the newest checkpoint."""
    row = await store.read(latest_checkpoint)
    assert row is not None
    return set(cosignatures(row.note, [CosignatureVerifier.parse(witness.vkey) for witness in witnesses]))


async def until(work: Callable[[], Any], signing: Checkpointer) -> None:
    """Let the checkpointer go round until ``work`` gives something true."""
    deadline = time.monotonic() + _DEADLINE
    while not await work():
        assert time.monotonic() < deadline
        await signing.sign_due()
        await asyncio.sleep(0.01)


async def put_back(store: Store, first: int, *, signed: bool = False) -> None:
    """Cut the ledger at ``first``, as a restored backup would have it; with ``signed`` its checkpoints are kept."""

    def unit(transaction: Transaction) -> None:
        transaction.execute(_CUT, first=first)
        transaction.execute(_SET_HEAD, first=first)
        for statement in [] if signed else _DROP:
            transaction.execute(statement)

    await store.write(unit)
