"""Statements on what decides when certificates are to be renewed."""

from typing import Final

from sqlalchemy import bindparam, select

from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import BlockedKey, Certificate, Issuer

_certificate = Certificate.__table__  # type: ignore[attr-defined]
_blocked = BlockedKey.__table__  # type: ignore[attr-defined]
_issuer = Issuer.__table__  # type: ignore[attr-defined]

#: Above every index of the ledger.
NEWEST: Final = 1 << 62

_LIFE = (_certificate.c.ledger_index, _certificate.c.not_before, _certificate.c.not_after)
_AFTER = Statement(
    select(*_LIFE)
    .where(_certificate.c.ledger_index > bindparam("index"))
    .order_by(_certificate.c.ledger_index)
    .limit(bindparam("count"))
)
_BEFORE = Statement(
    select(*_LIFE)
    .where(_certificate.c.ledger_index < bindparam("index"))
    .order_by(_certificate.c.ledger_index.desc())
    .limit(bindparam("count"))
)
_BLOCKED_SINCE = Statement(select(_blocked.c.created).where(_blocked.c.spki_sha256 == bindparam("spki_sha256")))
_ISSUER_STATE = Statement(select(_issuer.c.state).where(_issuer.c.id == bindparam("issuer_id")))

#: Ledger index, notBefore and notAfter of a certificate.
Life = tuple[int, int, int]


def issued_after(transaction: Transaction, index: int, *, count: int) -> list[Life]:
    """The first ``count`` certificates after ledger index ``index``, in order."""
    return [(row[0], row[1], row[2]) for row in transaction.all(_AFTER, index=index, count=count)]


def issued_before(transaction: Transaction, index: int, *, count: int) -> list[Life]:
    """The last ``count`` certificates before ledger index ``index``, the newest first."""
    return [(row[0], row[1], row[2]) for row in transaction.all(_BEFORE, index=index, count=count)]


def blocked_since(transaction: Transaction, spki_sha256: bytes) -> int | None:
    """When the key with this SubjectPublicKeyInfo hash was blocked, or None when it is not."""
    row = transaction.one(_BLOCKED_SINCE, spki_sha256=spki_sha256)
    return int(row[0]) if row else None


def is_retired(transaction: Transaction, issuer_id: str) -> bool:
    """Whether the issuer no longer issues, because another took its place or because it was revoked."""
    row = transaction.one(_ISSUER_STATE, issuer_id=issuer_id)
    return row is not None and row[0] == "retired"
