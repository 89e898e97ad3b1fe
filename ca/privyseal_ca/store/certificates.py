"""Statements on certificates, intents and revocations."""

from typing import NamedTuple

from sqlalchemy import bindparam, delete, func, insert, select

from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import BlockedKey, Certificate, Intent, Revocation

_certificate = Certificate.__table__  # type: ignore[attr-defined]
_intent = Intent.__table__  # type: ignore[attr-defined]
_revocation = Revocation.__table__  # type: ignore[attr-defined]
_blocked = BlockedKey.__table__  # type: ignore[attr-defined]

_INSERT_INTENT = Statement(insert(_intent))
_DELETE_INTENT = Statement(delete(_intent).where(_intent.c.serial == bindparam("serial")))
_INTENTS = Statement(select(_intent))
_INSERT_CERTIFICATE = Statement(insert(_certificate))
_CERTIFICATE = Statement(select(_certificate).where(_certificate.c.serial == bindparam("serial")))
_CHAIN_PART = Statement(
    select(_certificate.c.der, _certificate.c.issuer_id, _certificate.c.requester).where(
        _certificate.c.serial == bindparam("serial")
    )
)
_INSERT_REVOCATION = Statement(insert(_revocation))
_REVOCATION = Statement(
    select(_revocation).where(
        _revocation.c.issuer_id == bindparam("issuer_id"), _revocation.c.serial == bindparam("serial")
    )
)
_BLOCK_KEY = Statement(insert(_blocked))
_BLOCKED = Statement(select(_blocked.c.reason).where(_blocked.c.spki_sha256 == bindparam("spki_sha256")))
_LIST = Statement(
    select(_certificate)
    .where(
        _certificate.c.not_after > bindparam("valid_at"),
        _certificate.c.serial > bindparam("after"),
        _certificate.c.names.like(bindparam("pattern")),
    )
    .order_by(_certificate.c.serial)
    .limit(bindparam("count"))
)
#: More are not counted: the look stays short however many there are.
COUNTED = 100_000
_ENDING = Statement(
    select(func.count()).select_from(
        select(_certificate.c.not_after)
        .where(_certificate.c.not_after > bindparam("after"), _certificate.c.not_after <= bindparam("until"))
        .limit(COUNTED)
        .subquery()
    )
)


class IntentRow(NamedTuple):
    """An issuance between intent and end; the fields are those of the table."""

    serial: str
    issuer_id: str
    tbs_sha256: bytes
    not_after: int
    requester: str
    correlation: str
    crl_shard: int | None


class CertificateRow(NamedTuple):
    """An issued certificate; the fields are those of the table."""

    serial: str
    issuer_id: str
    profile: str
    requester: str
    names: str
    not_before: int
    not_after: int
    spki_sha256: bytes
    ledger_index: int
    der: bytes
    crl_shard: int | None
    ocsp: int


class RevocationRow(NamedTuple):
    """A revoked serial; the fields are those of the table."""

    issuer_id: str
    serial: str
    revoked_at: int
    reason: int | None
    not_after: int
    crl_shard: int | None
    ledger_index: int


def open_intent(transaction: Transaction, row: IntentRow) -> None:
    """Record that ``row`` is about to be signed."""
    transaction.execute(_INSERT_INTENT, **row._asdict())


def close_intent(transaction: Transaction, serial: str) -> bool:
    """Remove the intent for ``serial``; False when it was closed before."""
    return transaction.execute(_DELETE_INTENT, serial=serial) == 1


def open_intents(transaction: Transaction) -> list[IntentRow]:
    """Every issuance that has begun and not ended. As many as were in flight, which the service bounds."""
    return [IntentRow(*row) for row in transaction.all(_INTENTS)]


def add_certificate(transaction: Transaction, row: CertificateRow) -> None:
    """Record an issued certificate."""
    transaction.execute(_INSERT_CERTIFICATE, **row._asdict())


def find_certificate(transaction: Transaction, serial: str) -> CertificateRow | None:
    """The certificate with ``serial`` (32 lower-case hex digits)."""
    row = transaction.one(_CERTIFICATE, serial=serial)
    return CertificateRow(*row) if row else None


def find_der(transaction: Transaction, serial: str) -> tuple[bytes, str, str] | None:
    """DER, issuer id and requester of the certificate with ``serial``."""
    return transaction.one(_CHAIN_PART, serial=serial)


def list_certificates(
    transaction: Transaction, *, valid_at: int = 0, name: str = "", after: str = "", count: int = 100
) -> list[CertificateRow]:
    """Up to ``count`` certificates after serial ``after`` that are valid past ``valid_at`` and have ``name`` in a name."""
    escaped = name.replace("%", "").replace("_", "")
    return [
        CertificateRow(*row)
        for row in transaction.all(_LIST, valid_at=valid_at, after=after, pattern=f"%{escaped}%", count=count)
    ]


def count_ending(transaction: Transaction, *, after: int, until: int) -> int:
    """How many certificates, revoked ones too, end later than ``after`` and not later than ``until``; at most :data:`COUNTED`."""
    row = transaction.one(_ENDING, after=after, until=until)
    return int(row[0]) if row else 0


def add_revocation(transaction: Transaction, row: RevocationRow) -> None:
    """Put a serial on the revocation list."""
    transaction.execute(_INSERT_REVOCATION, **row._asdict())


def find_revocation(transaction: Transaction, issuer_id: str, serial: str) -> RevocationRow | None:
    """The revocation of ``serial``, if it is revoked."""
    row = transaction.one(_REVOCATION, issuer_id=issuer_id, serial=serial)
    return RevocationRow(*row) if row else None


def block_key(transaction: Transaction, spki_sha256: bytes, *, reason: str, now: int) -> None:
    """Never certify the key with this SubjectPublicKeyInfo hash again."""
    if transaction.one(_BLOCKED, spki_sha256=spki_sha256) is None:
        transaction.execute(_BLOCK_KEY, spki_sha256=spki_sha256, reason=reason, created=now)


def blocked_key_reason(transaction: Transaction, spki_sha256: bytes) -> str | None:
    """Why the key with this SubjectPublicKeyInfo hash is blocked, or None when it is not."""
    row = transaction.one(_BLOCKED, spki_sha256=spki_sha256)
    return str(row[0]) if row else None
