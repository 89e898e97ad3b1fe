"""What a check of the ledger asks of the tables."""

from collections.abc import Iterator
from typing import Any, Final

import orjson
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID
from sqlalchemy import bindparam, func, select, true

from privyseal_ca.clock import rfc3339
from privyseal_ca.ledger.entries import Kind, Payload
from privyseal_ca.store.certificates import CertificateRow, RevocationRow
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import (
    BlockedKey,
    Certificate,
    Intent,
    LedgerEntry,
    LedgerHead,
    Revocation,
    RevocationJob,
)

_head = LedgerHead.__table__  # type: ignore[attr-defined]
_entry = LedgerEntry.__table__  # type: ignore[attr-defined]
_certificate = Certificate.__table__  # type: ignore[attr-defined]
_revocation = Revocation.__table__  # type: ignore[attr-defined]
_intent = Intent.__table__  # type: ignore[attr-defined]
_job = RevocationJob.__table__  # type: ignore[attr-defined]
_blocked = BlockedKey.__table__  # type: ignore[attr-defined]

_PAGE: Final = 500

#: Issuer and serial of something on the revocation list.
Revoked = tuple[str, str]

# One statement, so that what it gives is of one moment on every database.
_END = Statement(
    select(_head.c.size, select(func.max(_entry.c.idx)).scalar_subquery(), _intent.c.serial)
    .select_from(_head.outerjoin(_intent, true()))
    .where(_head.c.id == 1)
)
_RECORDED_CERTIFICATES = Statement(
    select(func.count()).select_from(_certificate).where(_certificate.c.ledger_index < bindparam("size"))
)
_UNRECORDED_CERTIFICATE = Statement(
    select(_certificate.c.serial, _certificate.c.ledger_index, _entry.c.entry)
    .select_from(_certificate.outerjoin(_entry, _entry.c.idx == _certificate.c.ledger_index))
    .where(_certificate.c.ledger_index < bindparam("size"), _certificate.c.serial > bindparam("after"))
    .order_by(_certificate.c.serial)
    .limit(_PAGE)
)
_REVOCATIONS = Statement(
    select(_revocation.c.issuer_id, _revocation.c.serial)
    .where(
        (_revocation.c.issuer_id > bindparam("issuer"))
        | ((_revocation.c.issuer_id == bindparam("issuer")) & (_revocation.c.serial > bindparam("after")))
    )
    .order_by(_revocation.c.issuer_id, _revocation.c.serial)
    .limit(_PAGE)
)
_BLOCKED = Statement(
    select(_blocked.c.spki_sha256)
    .where(_blocked.c.spki_sha256 > bindparam("after"))
    .order_by(_blocked.c.spki_sha256)
    .limit(_PAGE)
)
_JOBS = Statement(
    select(_job.c.id, _job.c.state).where(_job.c.id > bindparam("after")).order_by(_job.c.id).limit(_PAGE)
)


def end_of_ledger(transaction: Transaction) -> tuple[int, int, set[str]] | None:
    """The size in the head, one more than the last index, and the serials in flight, all of one moment; None without a head."""
    rows = transaction.all(_END)
    if not rows:
        return None
    size, last = rows[0][0], rows[0][1]
    return size, 0 if last is None else last + 1, {row[2] for row in rows if row[2] is not None}


def count_certificates(transaction: Transaction, size: int) -> int:
    """How many certificates have their entry among the first ``size``."""
    row = transaction.one(_RECORDED_CERTIFICATES, size=size)
    return int(row[0]) if row else 0


def revocations_after(transaction: Transaction, *, last: Revoked) -> list[Revoked]:
    """A page of the revocation list."""
    return [(row[0], row[1]) for row in transaction.all(_REVOCATIONS, issuer=last[0], after=last[1])]


def blocked_keys_after(transaction: Transaction, *, last: bytes) -> list[bytes]:
    """A page of the hashes of the blocked keys."""
    return [bytes(row[0]) for row in transaction.all(_BLOCKED, after=last)]


def jobs_after(transaction: Transaction, *, last: str) -> list[tuple[str, str]]:
    """A page of the jobs that revoke many, with their state."""
    return [(row[0], row[1]) for row in transaction.all(_JOBS, after=last)]


def unrecorded_certificates(transaction: Transaction, end: int) -> Iterator[tuple[str, int]]:
    """Serial and index of certificates whose index is not that of an entry for them."""
    after = ""
    while page := transaction.all(_UNRECORDED_CERTIFICATE, size=end, after=after):
        for serial, index, entry in page:
            members = orjson.loads(entry) if entry is not None else {}
            if members.get("kind") != Kind.ISSUED or members["payload"].get("serial") != serial:
                yield serial, index
        after = page[-1][0]


def row_agrees(row: CertificateRow, payload: Payload) -> bool:
    """Whether a certificate's row has the columns that its entry says."""
    return bool(
        row.issuer_id == payload["issuer"]
        and orjson.loads(row.names) == payload["names"]
        and row.not_before == payload["not_before"]
        and row.not_after == payload["not_after"]
        and row.spki_sha256.hex() == payload["spki_sha256"]
    )


def pointers_agree(row: CertificateRow, certificate: x509.Certificate) -> bool:
    """Whether a certificate's row says where the certificate says that its revocation is told."""
    points: list[str] = []
    responders = []
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.CRLDistributionPoints):
            points += [str(name.value) for point in value for name in point.full_name or ()]
        elif isinstance(value, x509.AuthorityInformationAccess):
            responders += [access for access in value if access.access_method == AuthorityInformationAccessOID.OCSP]
    if bool(row.ocsp) != bool(responders):
        return False
    if not points:
        return row.crl_shard is None
    part = "" if row.crl_shard is None else f"/{row.crl_shard}"
    return len(points) == 1 and points[0].endswith(f"/crl/{row.issuer_id}{part}.crl")


def revocation_agrees(row: RevocationRow, members: dict[str, Any]) -> bool:
    """Whether a revocation's row has the columns that its entry says."""
    payload: Payload = members["payload"]
    return bool(
        (row.reason or 0) == payload["reason"]
        and row.not_after == payload["not_after"]
        # Entries have milliseconds, rows whole seconds.
        and rfc3339(row.revoked_at).removesuffix("Z") == members["time"].partition(".")[0]
    )
