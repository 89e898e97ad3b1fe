"""Statements on OCSP responders and the responses that are kept ready."""

from typing import Any, NamedTuple

from sqlalchemy import and_, bindparam, delete, func, insert, literal, select, update

from privyseal_ca.clock import CLOCK_STEP
from privyseal_ca.store.certificates import RevocationRow, find_revocation
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import Certificate, LedgerHead, OcspResponder, OcspResponse, Revocation

_certificate = Certificate.__table__  # type: ignore[attr-defined]
_head = LedgerHead.__table__  # type: ignore[attr-defined]
_responder = OcspResponder.__table__  # type: ignore[attr-defined]
_response = OcspResponse.__table__  # type: ignore[attr-defined]
_revocation = Revocation.__table__  # type: ignore[attr-defined]

_KEY = and_(_response.c.serial == bindparam("serial"), _response.c.hash == bindparam("hash"))

_INSERT_RESPONDER = Statement(insert(_responder))
_RESPONDERS = Statement(select(_responder).order_by(_responder.c.issuer_id))
_CERTIFY_RESPONDER = Statement(
    update(_responder)
    .values(der=bindparam("new_der"), not_after=bindparam("new_not_after"))
    .where(_responder.c.issuer_id == bindparam("of_issuer"), _responder.c.key_uri == bindparam("of_key"))
)
_RESPONSE = Statement(select(_response).where(_KEY))
_INSERT_RESPONSE = Statement(insert(_response))
_DELETE_RESPONSE = Statement(delete(_response).where(_KEY))
_ISSUER_OF = Statement(select(_certificate.c.issuer_id).where(_certificate.c.serial == bindparam("serial")))
# Waits for whoever is appending, and is waited for: SQLite has one writer anyway and ignores it.
_HOLD_HEAD = Statement(select(_head.c.size).where(_head.c.id == 1).with_for_update(read=True))
_NEWEST_REVOCATION = Statement(select(func.max(_revocation.c.ledger_index)))
_REVOKED_AFTER = Statement(
    select(_revocation.c.ledger_index, _revocation.c.serial)
    .where(_revocation.c.ledger_index > bindparam("after"))
    .order_by(_revocation.c.ledger_index)
    .limit(bindparam("count"))
)
_WANTS = Statement(select(_certificate.c.ocsp).where(_certificate.c.serial == bindparam("serial")))
_CONTRADICTED = Statement(
    select(*_revocation.c, _response.c.hash)
    .select_from(
        _revocation.outerjoin(
            _response,
            and_(
                _response.c.serial == _revocation.c.serial,
                _response.c.issuer_id == _revocation.c.issuer_id,
                _response.c.revoked == 0,
            ),
        )
    )
    # Of every issuer: with one in the condition, SQLite would walk through all that it ever revoked, and sort that.
    .where(_revocation.c.ledger_index > bindparam("after"))
    .order_by(_revocation.c.ledger_index)
    .limit(bindparam("count"))
)
_DUE = Statement(
    select(_response.c.serial, _response.c.hash, _response.c.refresh_at)
    .where(
        _response.c.refresh_at > bindparam("after"),
        _response.c.refresh_at <= bindparam("now"),
        _response.c.issuer_id == bindparam("issuer_id"),
    )
    .order_by(_response.c.refresh_at)
    .limit(bindparam("count"))
)
_OLD = Statement(
    select(_response.c.serial, _response.c.hash)
    .where(_response.c.refresh_at <= bindparam("before"))
    .limit(bindparam("count"))
)
_SOME_DUE = select(literal(1)).where(_response.c.refresh_at <= bindparam("now")).limit(bindparam("most")).subquery()
_COUNT_DUE = Statement(select(func.count()).select_from(_SOME_DUE))
_ISSUED_AFTER = Statement(
    select(
        _certificate.c.ledger_index,
        _certificate.c.serial,
        _certificate.c.issuer_id,
        _certificate.c.not_after,
        _certificate.c.ocsp,
    )
    .where(_certificate.c.ledger_index >= bindparam("first"), _certificate.c.ledger_index < bindparam("end"))
    .order_by(_certificate.c.ledger_index)
    .limit(bindparam("count"))
)
_NOT_AFTER = Statement(select(_certificate.c.not_after).where(_certificate.c.serial == bindparam("serial")))


class ResponderRow(NamedTuple):
    """The delegated responder of an issuer; the fields are those of the table."""

    issuer_id: str
    key_uri: str
    der: bytes | None
    not_after: int


class ResponseRow(NamedTuple):
    """A response that is kept ready; the fields are those of the table."""

    serial: str
    hash: str
    issuer_id: str
    revoked: int
    this_update: int
    next_update: int
    refresh_at: int
    der: bytes


class IssuedRow(NamedTuple):
    """What pre-production needs to know of a certificate."""

    ledger_index: int
    serial: str
    issuer_id: str
    not_after: int
    ocsp: int


class Known(NamedTuple):
    """What is known of one serial of one issuer."""

    response: ResponseRow | None
    revocation: RevocationRow | None
    issued: bool


def add_responder(transaction: Transaction, issuer_id: str, key_uri: str) -> None:
    """Record the key of an issuer's responder, which has no certificate yet."""
    transaction.execute(_INSERT_RESPONDER, issuer_id=issuer_id, key_uri=key_uri, der=None, not_after=0)


def all_responders(transaction: Transaction) -> list[ResponderRow]:
    """The responder of every issuer that has one."""
    return [ResponderRow(*row) for row in transaction.all(_RESPONDERS)]


def certify_responder(transaction: Transaction, row: ResponderRow) -> bool:
    """Put the certificate in ``row`` in place of the one before; False when the responder has another key by now."""
    values = {"new_der": row.der, "new_not_after": row.not_after, "of_issuer": row.issuer_id, "of_key": row.key_uri}
    return transaction.execute(_CERTIFY_RESPONDER, **values) == 1


def find_response(transaction: Transaction, serial: str, hash_name: str) -> ResponseRow | None:
    """The response that is kept for a serial and the hash of its CertID."""
    row = transaction.one(_RESPONSE, serial=serial, hash=hash_name)
    return ResponseRow(*row) if row else None


def look_up(transaction: Transaction, issuer_id: str, serial: str, hash_name: str) -> Known:
    """What is known of ``serial`` as one of ``issuer_id``; what is known of it as another issuer's does not count."""
    response = find_response(transaction, serial, hash_name)
    if response is not None and response.issuer_id != issuer_id:
        response = None
    revocation = find_revocation(transaction, issuer_id, serial)
    issued = transaction.one(_ISSUER_OF, serial=serial)
    return Known(response, revocation, issued is not None and issued[0] == issuer_id)


def keep_response(transaction: Transaction, row: ResponseRow) -> RevocationRow | None:
    """Keep a response in place of the one before, unless ``row`` says good of what is revoked: then the revocation.

    No revocation can become durable between the look at it here and the end of the transaction.
    """
    transaction.one(_HOLD_HEAD)
    revocation = find_revocation(transaction, row.issuer_id, row.serial)
    if revocation is not None and not row.revoked:
        return revocation
    kept = find_response(transaction, row.serial, row.hash)
    if kept is None or _is_newer(row, kept):
        drop_response(transaction, row.serial, row.hash)
        transaction.execute(_INSERT_RESPONSE, **row._asdict())
    return None


def _is_newer(row: ResponseRow, kept: ResponseRow) -> bool:
    if row.revoked != kept.revoked:
        return row.revoked > kept.revoked
    # A clock that was ahead made what seems to be much newer: relying parties take it for not valid yet.
    return row.this_update >= kept.this_update or kept.this_update > row.this_update + CLOCK_STEP


def drop_response(transaction: Transaction, serial: str, hash_name: str) -> None:
    """Keep a response no longer."""
    transaction.execute(_DELETE_RESPONSE, serial=serial, hash=hash_name)


def newest_revocation(transaction: Transaction) -> int:
    """The ledger index of the newest revocation; 0 when there is none."""
    row = transaction.one(_NEWEST_REVOCATION)
    return int(row[0] or 0) if row else 0


def revoked_after(transaction: Transaction, index: int, *, count: int) -> list[tuple[int, str]]:
    """Ledger index and serial of up to ``count`` revocations after ``index``, the oldest first."""
    return [(row[0], row[1]) for row in transaction.all(_REVOKED_AFTER, after=index, count=count)]


def contradicted_responses(
    transaction: Transaction, index: int, *, count: int
) -> list[tuple[RevocationRow, str | None]]:
    """Up to ``count`` revocations after ledger index ``index``, the oldest first.

    With each the hash of a response that is kept and says otherwise, or None; a revocation with two has two rows.
    """
    return [_split(row) for row in transaction.all(_CONTRADICTED, after=index, count=count)]


def due_responses(
    transaction: Transaction, issuer_id: str, *, after: int, now: int, count: int
) -> list[tuple[str, str, int]]:
    """Serial, hash and refresh time of up to ``count`` responses of an issuer that are due ``after`` and not beyond ``now``."""
    rows = transaction.all(_DUE, issuer_id=issuer_id, after=after, now=now, count=count)
    return [(row[0], row[1], row[2]) for row in rows]


def old_responses(transaction: Transaction, *, before: int, count: int) -> list[tuple[str, str]]:
    """Serial and hash of up to ``count`` responses that were due at or before ``before``."""
    return [(row[0], row[1]) for row in transaction.all(_OLD, before=before, count=count)]


def count_due(transaction: Transaction, *, now: int, most: int) -> int:
    """How many responses are due at ``now``, counted up to ``most``."""
    row = transaction.one(_COUNT_DUE, now=now, most=most)
    return int(row[0]) if row else 0


def issued_between(transaction: Transaction, *, first: int, end: int, count: int) -> list[IssuedRow]:
    """Up to ``count`` certificates with a ledger index from ``first`` on and below ``end``, the oldest first."""
    return [IssuedRow(*row) for row in transaction.all(_ISSUED_AFTER, first=first, end=end, count=count)]


def wants_responses(transaction: Transaction, serial: str) -> bool:
    """Whether there is a certificate with ``serial`` for which responses are kept ready."""
    row = transaction.one(_WANTS, serial=serial)
    return row is not None and bool(row[0])


def find_not_after(transaction: Transaction, serial: str) -> int | None:
    """When the certificate with ``serial`` ends, in seconds since the epoch."""
    row = transaction.one(_NOT_AFTER, serial=serial)
    return int(row[0]) if row else None


def _split(row: tuple[Any, ...]) -> tuple[RevocationRow, str | None]:
    return RevocationRow(*row[:-1]), row[-1]
