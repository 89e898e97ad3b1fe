"""Appending to the ledger, inside the transaction of the change that the entry records (promise P3)."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import bindparam, insert, select, update

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import LedgerEntry, LedgerHead

_head = LedgerHead.__table__  # type: ignore[attr-defined]
_entry = LedgerEntry.__table__  # type: ignore[attr-defined]

_CLAIM_INDEX = Statement(update(_head).values(size=_head.c.size + 1).where(_head.c.id == 1).returning(_head.c.size))
_TAKE_BACK = Statement(update(_head).values(size=_head.c.size - 1).where(_head.c.id == 1))
_APPEND = Statement(insert(_entry))
_SIZE = Statement(select(_head.c.size).where(_head.c.id == 1))
_RANGE = Statement(
    select(_entry.c.idx, _entry.c.leaf_hash, _entry.c.entry)
    .where(_entry.c.idx >= bindparam("first"))
    .order_by(_entry.c.idx)
    .limit(bindparam("count"))
)


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """One row of the ledger."""

    index: int
    leaf_hash: bytes
    entry: bytes


def append(transaction: Transaction, entry: bytes) -> int:
    """Add ``entry`` and give its index, which no other entry ever gets.

    The head's row is locked from here to the commit, so indexes have no gaps and commit in their order.
    """
    row = transaction.one(_CLAIM_INDEX)
    if row is None:
        raise LedgerError("The ledger has no head.", hint="The database was not made by `privyseal init`.")
    index = int(row[0]) - 1
    transaction.execute(_APPEND, idx=index, leaf_hash=leaf_hash(entry), entry=entry)
    return index


def lock_head(transaction: Transaction) -> bool:
    """Do what an append does to the head, down to the disk, without appending; False when there are no entries.

    The head is changed and changed back: SQLite writes no page for a change that changes nothing.
    """
    row = transaction.one(_CLAIM_INDEX)
    transaction.execute(_TAKE_BACK)
    return row is not None and int(row[0]) > 1


def size(transaction: Transaction) -> int:
    """The number of entries."""
    row = transaction.one(_SIZE)
    return int(row[0]) if row else 0


def entries(transaction: Transaction, *, first: int = 0, count: int = 1000) -> Iterator[StoredEntry]:
    """Up to ``count`` entries from index ``first`` on, in their order."""
    return (StoredEntry(*row) for row in transaction.all(_RANGE, first=first, count=count))
