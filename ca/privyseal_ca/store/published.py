"""Statements of who publishes a copy of what the database holds on revocation: kept OCSP responses, page by page."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import and_, bindparam, exists, literal_column, select, tuple_

from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import OcspResponse, Revocation

#: How many rows a page has.
PAGE: Final = 500

_response = OcspResponse.__table__  # type: ignore[attr-defined]
_revocation = Revocation.__table__  # type: ignore[attr-defined]

_IS_REVOKED = exists(
    select(literal_column("1")).where(
        _revocation.c.issuer_id == _response.c.issuer_id, _revocation.c.serial == _response.c.serial
    )
)
_RESPONSE = select(
    _response.c.serial,
    _response.c.hash,
    _response.c.issuer_id,
    _response.c.this_update,
    _response.c.next_update,
    _response.c.refresh_at,
    _response.c.der,
    _response.c.revoked,
    # Not what is to be told any more: it says good, and the certificate is revoked.
    and_(_response.c.revoked == 0, _IS_REVOKED).label("outdated"),
)
_BY_SERIAL = Statement(
    _RESPONSE.where(tuple_(_response.c.serial, _response.c.hash) > tuple_(bindparam("serial"), bindparam("hash")))
    .order_by(_response.c.serial, _response.c.hash)
    .limit(PAGE)
)
_BY_REFRESH = Statement(
    _RESPONSE.where(
        tuple_(_response.c.refresh_at, _response.c.serial, _response.c.hash)
        > tuple_(bindparam("refresh_at"), bindparam("serial"), bindparam("hash"))
    )
    .order_by(_response.c.refresh_at, _response.c.serial, _response.c.hash)
    .limit(PAGE)
)
_OF_SERIAL = Statement(
    _RESPONSE.where(_response.c.issuer_id == bindparam("issuer_id"), _response.c.serial == bindparam("serial"))
)
_REVOKED_SINCE = Statement(
    select(_revocation.c.ledger_index, _revocation.c.issuer_id, _revocation.c.serial)
    .where(_revocation.c.ledger_index >= bindparam("index"))
    .order_by(_revocation.c.ledger_index)
    .limit(PAGE)
)


class ResponseRow(NamedTuple):
    """A response that is kept ready. Times are seconds since the epoch."""

    serial: str
    hash: str
    issuer_id: str
    this_update: int
    next_update: int
    refresh_at: int
    der: bytes
    revoked: int
    """Whether it says that the certificate is revoked."""
    outdated: int
    """Whether it says good of a certificate that is revoked."""


class RevokedRow(NamedTuple):
    """A serial that is revoked, and the index of the ledger's entry on that."""

    ledger_index: int
    issuer_id: str
    serial: str


def responses_after(transaction: Transaction, serial: str, hash_name: str) -> list[ResponseRow]:
    """The page of responses after that of ``serial`` and ``hash_name``, by serial."""
    return _rows(transaction.all(_BY_SERIAL, serial=serial, hash=hash_name))


def responses_refreshed_after(
    transaction: Transaction, refresh_at: int, serial: str = "", hash_name: str = ""
) -> list[ResponseRow]:
    """The page of responses after that position which are to be replaced last, which are those that were made last."""
    return _rows(transaction.all(_BY_REFRESH, refresh_at=refresh_at, serial=serial, hash=hash_name))


def responses_of(transaction: Transaction, issuer_id: str, serial: str) -> list[ResponseRow]:
    """The responses for one serial, at most one for each hash."""
    return _rows(transaction.all(_OF_SERIAL, issuer_id=issuer_id, serial=serial))


def revoked_since(transaction: Transaction, index: int) -> list[RevokedRow]:
    """The page of revocations whose entry has ``index`` or a later one."""
    return [RevokedRow(*row) for row in transaction.all(_REVOKED_SINCE, index=index)]


def _rows(rows: Sequence[Sequence[object]]) -> list[ResponseRow]:
    return [ResponseRow(*row) for row in rows]  # type: ignore[arg-type]
