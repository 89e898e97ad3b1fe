"""Statements on the checkpoints that this authority has signed, and on the one that it is about to sign.

Of those that were signed the newest is kept and the last of each hour (UTC): the others prove nothing that these do not,
and one a second would be some gigabytes a year.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy import bindparam, delete, insert, select, update

from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import LedgerCheckpoint

_checkpoint = LedgerCheckpoint.__table__  # type: ignore[attr-defined]

_HOUR: Final = 3600

_INSERT = Statement(insert(_checkpoint))
_NEWEST = Statement(select(_checkpoint).order_by(_checkpoint.c.size.desc()).limit(1))
_SIGNED = select(_checkpoint).where(_checkpoint.c.note.is_not(None)).order_by(_checkpoint.c.size.desc()).limit(1)
_NEWEST_SIGNED = Statement(_SIGNED)
_BEFORE = Statement(_SIGNED.where(_checkpoint.c.size < bindparam("size")))
_SET_NOTE = Statement(
    update(_checkpoint)
    .values(note=bindparam("new_note"), signed_at=bindparam("now"))
    .where(
        _checkpoint.c.size == bindparam("staged"),
        _checkpoint.c.root == bindparam("staged_root"),
        _checkpoint.c.note.is_(None),
    )
)
_REPLACE_NOTE = Statement(
    update(_checkpoint)
    .values(note=bindparam("new_note"))
    .where(_checkpoint.c.size == bindparam("signed"), _checkpoint.c.note == bindparam("old_note"))
)
_DELETE = Statement(delete(_checkpoint).where(_checkpoint.c.size == bindparam("old")))


class CheckpointRow(NamedTuple):
    """A checkpoint, signed or about to be; the fields are those of the table."""

    size: int
    root: bytes
    note: bytes | None
    signed_at: int


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A signed checkpoint: ``note`` is the signed note that is served, ``signed_at`` in seconds since the epoch."""

    size: int
    root: bytes
    note: bytes
    signed_at: int


def newest_row(transaction: Transaction) -> CheckpointRow | None:
    """The checkpoint of the greatest size, whether it is signed or not."""
    row = transaction.one(_NEWEST)
    return CheckpointRow(*row) if row else None


def latest_checkpoint(transaction: Transaction) -> StoredCheckpoint | None:
    """The signed checkpoint of the greatest size: the one that is published."""
    row = transaction.one(_NEWEST_SIGNED)
    return StoredCheckpoint(*row) if row else None


def checkpoint_covering(transaction: Transaction, index: int) -> StoredCheckpoint | None:
    """The newest signed checkpoint, when it covers the entry ``index``."""
    latest = latest_checkpoint(transaction)
    return latest if latest is not None and latest.size > index else None


def stage(transaction: Transaction, size: int, root: bytes) -> CheckpointRow:
    """Record that ``size`` and ``root`` are about to be signed."""
    row = CheckpointRow(size, root, None, 0)
    transaction.execute(_INSERT, **row._asdict())
    return row


def publish(transaction: Transaction, row: CheckpointRow, note: bytes, now: int) -> bool:
    """Give a staged checkpoint its note, and let go of the one before unless it is the last of its hour.

    False when it is not staged: another process has signed it, or it is not there.
    """
    if not transaction.execute(_SET_NOTE, new_note=note, now=now, staged=row.size, staged_root=row.root):
        return False
    before = transaction.one(_BEFORE, size=row.size)
    if before is not None and CheckpointRow(*before).signed_at // _HOUR == now // _HOUR:
        transaction.execute(_DELETE, old=before[0])
    return True


def replace_note(transaction: Transaction, size: int, old: bytes, new: bytes) -> bool:
    """Put ``new`` in the place of the note ``old`` of the checkpoint of ``size``: the same text with more signatures.

    False when the checkpoint is not there or has another note by now.
    """
    return bool(transaction.execute(_REPLACE_NOTE, new_note=new, signed=size, old_note=old))
