"""Statements on CRLs: what goes into them, the pieces they are kept in, and which of them is current.

Pieces are written under a number that no CRL has yet; one compare-and-set on the number of the current one makes them
what is served (promise P3). The primary key of the first piece is what two writers of one number cannot both have.
"""

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import bindparam, delete, func, insert, select, tuple_, update

from privyseal_ca.errors import StoreConflictError
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import Crl, CrlPart, Revocation

_crl = Crl.__table__  # type: ignore[attr-defined]
_part = CrlPart.__table__  # type: ignore[attr-defined]
_revocation = Revocation.__table__  # type: ignore[attr-defined]

_LISTED = (
    _revocation.c.serial,
    _revocation.c.revoked_at,
    _revocation.c.reason,
    _revocation.c.not_after,
    _revocation.c.ledger_index,
)
_OF_SHARD = _revocation.c.crl_shard == bindparam("shard")
_KNOWN = _revocation.c.ledger_index < bindparam("through")
_IN_ORDER_OF_EXPIRY = (
    select(*_LISTED)
    .where(
        _revocation.c.issuer_id == bindparam("issuer_id"),
        _KNOWN,
        tuple_(_revocation.c.not_after, _revocation.c.serial) > tuple_(bindparam("not_after"), bindparam("serial")),
    )
    .order_by(_revocation.c.not_after, _revocation.c.serial)
    .limit(bindparam("count"))
)
_ALL_OF_ISSUER = Statement(_IN_ORDER_OF_EXPIRY)
_ALL_OF_SHARD = Statement(_IN_ORDER_OF_EXPIRY.where(_OF_SHARD))
_LATE = select(*_LISTED).where(
    _revocation.c.ledger_index >= bindparam("since"),
    _KNOWN,
    # Expressions, not columns: else SQLite would walk through all that has expired, by the index on notAfter.
    _revocation.c.issuer_id.concat("") == bindparam("issuer_id"),
    _revocation.c.not_after + 0 < bindparam("expired"),
)
_LATE_OF_ISSUER = Statement(_LATE)
_LATE_OF_SHARD = Statement(_LATE.where(_revocation.c.crl_shard + 0 == bindparam("shard")))
_SINCE = Statement(
    select(_revocation.c.issuer_id, _revocation.c.crl_shard, _revocation.c.ledger_index)
    .where(_revocation.c.ledger_index >= bindparam("since"), _KNOWN)
    .order_by(_revocation.c.ledger_index)
    .limit(bindparam("count"))
)

_CRLS = Statement(select(_crl))
_OF_SCOPE = (_crl.c.issuer_id == bindparam("issuer_id"), _crl.c.scope == bindparam("scope"))
_CRL = Statement(select(_crl).where(*_OF_SCOPE))
_INSERT_CRL = Statement(insert(_crl))
_NUMBER = Statement(select(_crl.c.number).where(*_OF_SCOPE))
_REPLACE = Statement(
    update(_crl)
    .values({column.name: bindparam(f"new_{column.name}") for column in _crl.columns if not column.primary_key})
    .where(*_OF_SCOPE, _crl.c.number == bindparam("old_number"))
)

_PARTS_OF_SCOPE = (_part.c.issuer_id == bindparam("issuer_id"), _part.c.scope == bindparam("scope"))
_INSERT_PART = Statement(insert(_part))
_NEWEST_PART = Statement(select(func.max(_part.c.number)).where(*_PARTS_OF_SCOPE))
_OF_NUMBER = (*_PARTS_OF_SCOPE, _part.c.number == bindparam("number"))
_OF_CRL = (*_OF_NUMBER, _part.c.delta == bindparam("delta"))
_PART = Statement(select(_part.c.der).where(*_OF_CRL, _part.c.position == bindparam("position")))
_POSITIONS = Statement(select(func.count()).select_from(_part).where(*_OF_CRL))
_OTHERS = Statement(
    select(_part.c.number, _part.c.delta, _part.c.position)
    .where(
        *_PARTS_OF_SCOPE,
        _part.c.number >= bindparam("first"),
        _part.c.number < bindparam("below"),
        _part.c.number != bindparam("kept"),
    )
    .limit(bindparam("count"))
)
_DELETE_PART = Statement(delete(_part).where(*_OF_CRL, _part.c.position == bindparam("position")))


class CrlRow(NamedTuple):
    """The current CRL of one scope; the fields are those of the table."""

    issuer_id: str
    scope: str
    number: int
    this_update: int
    next_update: int
    entries: int
    through: int
    size: int
    sha256: bytes
    delta_size: int
    delta_sha256: bytes
    base_number: int
    base_through: int
    next_base_number: int
    next_base_through: int
    next_base_at: int


class Part(NamedTuple):
    """A piece of a CRL that is not current yet; the fields are those of the table."""

    issuer_id: str
    scope: str
    number: int
    delta: int
    position: int
    der: bytes


class ListedRow(NamedTuple):
    """A revocation as CRLs need it."""

    serial: str
    revoked_at: int
    reason: int | None
    not_after: int
    ledger_index: int


class Change(NamedTuple):
    """That something was revoked since: whose, in which part of the CRL, and its entry."""

    issuer_id: str
    crl_shard: int | None
    ledger_index: int


def unpublished(issuer_id: str, scope: str) -> CrlRow:
    """The row of a scope whose first CRL is still to be made."""
    return CrlRow(issuer_id, scope, 0, 0, 0, 0, 0, 0, b"", 0, b"", 0, 0, 0, 0, 0)


def all_crls(transaction: Transaction) -> list[CrlRow]:
    """Every scope's row, those included that are unpublished (number 0). As many as issuers times parts."""
    return [CrlRow(*row) for row in transaction.all(_CRLS)]


def find_crl(transaction: Transaction, issuer_id: str, scope: str) -> CrlRow | None:
    """The current CRL of a scope."""
    row = transaction.one(_CRL, issuer_id=issuer_id, scope=scope)
    return CrlRow(*row) if row else None


def reserve_crls(transaction: Transaction, scopes: Iterable[tuple[str, str]]) -> None:
    """Give each scope (issuer id and scope) that has none a row with number 0, so that it is never forgotten."""
    for issuer_id, scope in scopes:
        if transaction.one(_NUMBER, issuer_id=issuer_id, scope=scope) is None:
            transaction.execute(_INSERT_CRL, **unpublished(issuer_id, scope)._asdict())


def listed_from(
    transaction: Transaction,
    issuer_id: str,
    shard: int | None,
    *,
    through: int,
    after: tuple[int, str],
    count: int,
) -> list[ListedRow]:
    """Up to ``count`` revocations of a scope whose certificate's notAfter and serial come after ``after``, in that order.

    Only those with an entry in the first ``through`` of the ledger: what is revoked meanwhile changes no page.
    """
    not_after, serial = after
    named = {"issuer_id": issuer_id, "through": through, "not_after": not_after, "serial": serial, "count": count}
    rows = (
        transaction.all(_ALL_OF_ISSUER, **named)
        if shard is None
        else transaction.all(_ALL_OF_SHARD, **named, shard=shard)
    )
    return [ListedRow(*row) for row in rows]


def listed_late(
    transaction: Transaction, issuer_id: str, shard: int | None, *, since: int, through: int, expired: int
) -> list[ListedRow]:
    """The revocations of a scope with entries from ``since`` up to ``through`` whose certificates ended before ``expired``.

    At most as many as there are entries between the two.
    """
    named = {"issuer_id": issuer_id, "since": since, "through": through, "expired": expired}
    rows = (
        transaction.all(_LATE_OF_ISSUER, **named)
        if shard is None
        else transaction.all(_LATE_OF_SHARD, **named, shard=shard)
    )
    return [ListedRow(*row) for row in rows]


def revoked_since(transaction: Transaction, *, since: int, through: int, count: int) -> list[Change]:
    """Up to ``count`` revocations with entries from ``since`` up to ``through``, in their order."""
    return [Change(*row) for row in transaction.all(_SINCE, since=since, through=through, count=count)]


def newest_part(transaction: Transaction, issuer_id: str, scope: str) -> int:
    """The highest number under which pieces of a scope are kept, be they in use or left behind; 0 when there are none."""
    row = transaction.one(_NEWEST_PART, issuer_id=issuer_id, scope=scope)
    return int(row[0] or 0) if row else 0


def add_part(transaction: Transaction, part: Part) -> None:
    """Keep a piece.

    A driver's integrity error, which ``Store.write`` turns into StoreConflictError, says that another has this number.
    """
    transaction.execute(_INSERT_PART, **part._asdict())


def find_part(
    transaction: Transaction, issuer_id: str, scope: str, number: int, *, delta: bool, position: int
) -> bytes | None:
    """One piece of a CRL; None when it is not there, or no longer."""
    row = transaction.one(_PART, issuer_id=issuer_id, scope=scope, number=number, delta=int(delta), position=position)
    return bytes(row[0]) if row else None


def count_parts(transaction: Transaction, issuer_id: str, scope: str, number: int, *, delta: bool) -> int:
    """How many pieces there are of a CRL."""
    row = transaction.one(_POSITIONS, issuer_id=issuer_id, scope=scope, number=number, delta=int(delta))
    return int(row[0]) if row else 0


def replace_crl(transaction: Transaction, row: CrlRow, *, old_number: int) -> None:
    """Make ``row`` the current CRL of its scope in place of number ``old_number``.

    Raises:
        StoreConflictError: another was published meanwhile.
    """
    values = row._asdict()
    scope = {name: values.pop(name) for name in ("issuer_id", "scope")}
    new = {f"new_{name}": value for name, value in values.items()}
    if transaction.execute(_REPLACE, **scope, **new, old_number=old_number) != 1:
        raise StoreConflictError(
            f"Another CRL than number {old_number} of scope {row.scope} is current.",
            hint="Only one service may publish CRLs from a database.",
        )


def remove_parts(
    transaction: Transaction, issuer_id: str, scope: str, *, first: int, below: int, kept: int, count: int
) -> int:
    """Remove up to ``count`` pieces of the numbers from ``first`` to before ``below``, other than ``kept``; how many were."""
    found = transaction.all(_OTHERS, issuer_id=issuer_id, scope=scope, first=first, below=below, kept=kept, count=count)
    for number, delta, position in found:
        transaction.execute(
            _DELETE_PART, issuer_id=issuer_id, scope=scope, number=number, delta=delta, position=position
        )
    return len(found)
