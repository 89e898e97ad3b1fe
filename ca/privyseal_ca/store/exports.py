"""Statements on the exports of the ledger: one row for each, which only the export itself changes."""

from typing import Final, NamedTuple

from sqlalchemy import bindparam, delete, func, insert, select, update

from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import LedgerExport

#: How many exports there can be: their names are labels of metrics.
MAX_EXPORTS: Final = 16

_export = LedgerExport.__table__  # type: ignore[attr-defined]
_NAMED = _export.c.name == bindparam("wanted")
_INSERT = Statement(insert(_export))
_COUNT = Statement(select(func.count()).select_from(_export))
_ALL = Statement(select(_export).order_by(_export.c.name).limit(MAX_EXPORTS))
_FIND = Statement(select(_export).where(_NAMED))
#: Changes nothing, but shows whether something could be.
_KEEP = Statement(update(_export).values(next=_export.c.next).where(_NAMED))
_SET = Statement(update(_export).values(next=bindparam("to"), updated_at=bindparam("at"), problem=None).where(_NAMED))
_MOVE = Statement(
    update(_export)
    .values(next=bindparam("to"), updated_at=bindparam("at"), problem=None)
    .where(_NAMED, _export.c.next == bindparam("expected"))
)
_PROBLEM = Statement(update(_export).values(problem=bindparam("text")).where(_NAMED))
_REMOVE = Statement(delete(_export).where(_NAMED))


class ExportRow(NamedTuple):
    """An export; the fields are those of the table."""

    name: str
    next: int
    updated_at: int
    problem: str | None


def all_exports(transaction: Transaction) -> list[ExportRow]:
    """Every export, by name."""
    return [ExportRow(*row) for row in transaction.all(_ALL)]


def find_export(transaction: Transaction, name: str) -> ExportRow | None:
    """The export called ``name``."""
    row = transaction.one(_FIND, wanted=name)
    return ExportRow(*row) if row else None


def add_export(transaction: Transaction, row: ExportRow) -> bool:
    """Add an export; whether there was room for it."""
    count = transaction.one(_COUNT)
    if count is not None and int(count[0]) >= MAX_EXPORTS:
        return False
    transaction.execute(_INSERT, **row._asdict())
    return True


def keep_export(transaction: Transaction, name: str) -> None:
    """Write the export's row as it is: what cannot be written now could not be later."""
    transaction.execute(_KEEP, wanted=name)


def set_export(transaction: Transaction, name: str, to: int, at: int) -> None:
    """Let the export go on at the index ``to``, wherever it was."""
    transaction.execute(_SET, wanted=name, to=to, at=at)


def move_export(transaction: Transaction, name: str, expected: int, to: int, at: int) -> bool:
    """Move the export from the index ``expected`` to ``to``, without a problem; whether it was there."""
    return transaction.execute(_MOVE, wanted=name, expected=expected, to=to, at=at) > 0


def set_export_problem(transaction: Transaction, name: str, text: str) -> None:
    """Record why the export does not go on."""
    transaction.execute(_PROBLEM, wanted=name, text=text)


def remove_export(transaction: Transaction, name: str) -> bool:
    """Forget an export; whether there was one."""
    return transaction.execute(_REMOVE, wanted=name) > 0
