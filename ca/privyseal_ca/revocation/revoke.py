"""Revoking a certificate: the row, the blocked key and the ledger entries in one transaction.

A compromised key is blocked for good, and takes every certificate with it that was issued for it.
"""

from typing import Any

from privyseal_ca.errors import AlreadyRevokedError, RevocationReasonError
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append, lock_head
from privyseal_ca.store.certificates import (
    CertificateRow,
    RevocationRow,
    add_revocation,
    block_key,
    blocked_key_reason,
    find_revocation,
)
from privyseal_ca.store.revoking import alive_with_key
from privyseal_ca.store.statement import Transaction

KEY_COMPROMISE = 1
#: CRLReason (RFC 5280 section 5.3.1) by name, without those that nobody may give here.
REASONS = {
    "unspecified": 0,
    "keyCompromise": KEY_COMPROMISE,
    "affiliationChanged": 3,
    "superseded": 4,
    "cessationOfOperation": 5,
    "privilegeWithdrawn": 9,
}
#: What a subscriber may say: unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation.
SUBSCRIBER_REASONS = frozenset({0, 1, 3, 4, 5})
#: An administrator may add privilegeWithdrawn.
ADMINISTRATOR_REASONS = SUBSCRIBER_REASONS | {9}
#: How many certificates with a compromised key are revoked in the transaction that blocks it. What is beyond, the caller
#: goes on with, or :class:`~privyseal_ca.revocation.compromise.CompromisedKeys` finds.
MAX_WITH_KEY = 500

_BLOCKED_FOR = "keyCompromise"


def revoke_certificate(
    transaction: Transaction,
    certificate: CertificateRow,
    *,
    reason: int | None,
    allowed_reasons: frozenset[int],
    actor: str,
    correlation: str,
    now: float,
) -> RevocationRow:
    """As :func:`revoke_with_key`, for callers that need not know of the others."""
    return revoke_with_key(
        transaction,
        certificate,
        reason=reason,
        allowed_reasons=allowed_reasons,
        actor=actor,
        correlation=correlation,
        now=now,
    )[0]


def revoke_with_key(
    transaction: Transaction,
    certificate: CertificateRow,
    *,
    reason: int | None,
    allowed_reasons: frozenset[int],
    actor: str,
    correlation: str,
    now: float,
) -> list[RevocationRow]:
    """Revoke ``certificate`` for ``reason``, a CRLReason; 0 and None both leave the reason out (RFC 5280 section 5.3.1).

    keyCompromise blocks the key for good and revokes up to :data:`MAX_WITH_KEY` other certificates with it that are alive:
    they come after the certificate's own row.

    Raises:
        RevocationReasonError: ``reason`` is not one of ``allowed_reasons``.
        AlreadyRevokedError: it was revoked before.
    """
    if reason is not None and reason not in allowed_reasons:
        raise RevocationReasonError(
            f"Reason {reason} cannot be given.",
            hint=f"Allowed are {', '.join(str(code) for code in sorted(allowed_reasons))}.",
        )
    # Another process may be revoking the same: with the lock, what is looked at stays as it is.
    lock_head(transaction)
    if find_revocation(transaction, certificate.issuer_id, certificate.serial) is not None:
        raise AlreadyRevokedError("The certificate is revoked already.")
    if reason == KEY_COMPROMISE:
        block_compromised_key(transaction, certificate.spki_sha256, actor=actor, correlation=correlation, now=now)
    rows = [record_revocation(transaction, certificate, reason=reason, actor=actor, correlation=correlation, now=now)]
    if reason == KEY_COMPROMISE:
        rows += revoke_alive_with_key(
            transaction, certificate.spki_sha256, actor=actor, correlation=correlation, now=now, count=MAX_WITH_KEY
        )
    return rows


def block_compromised_key(
    transaction: Transaction,
    spki_sha256: bytes,
    *,
    actor: str,
    correlation: str,
    now: float,
    proof: dict[str, Any] | None = None,
) -> bool:
    """Never certify the key again; False when it was blocked before. A ``proof`` of its compromise is recorded anyhow."""
    known = blocked_key_reason(transaction, spki_sha256) is not None
    if known and proof is None:
        return False
    append(
        transaction,
        encode_entry(
            Kind.KEY_BLOCKED,
            time=now,
            actor=actor,
            correlation=correlation,
            payload={"spki_sha256": spki_sha256.hex(), "reason": _BLOCKED_FOR, "proof": proof},
        ),
    )
    block_key(transaction, spki_sha256, reason=_BLOCKED_FOR, now=int(now))
    return not known


def revoke_alive_with_key(
    transaction: Transaction, spki_sha256: bytes, *, actor: str, correlation: str, now: float, count: int
) -> list[RevocationRow]:
    """Revoke up to ``count`` certificates with a compromised key that are neither expired nor revoked."""
    return [
        record_revocation(
            transaction, certificate, reason=KEY_COMPROMISE, actor=actor, correlation=correlation, now=now
        )
        for certificate in alive_with_key(transaction, spki_sha256, now=int(now), count=count)
    ]


def record_revocation(
    transaction: Transaction,
    certificate: CertificateRow,
    *,
    reason: int | None,
    actor: str,
    correlation: str,
    now: float,
) -> RevocationRow:
    """The row and the entry of one revocation. The caller has made sure that the certificate is not revoked yet."""
    index = append(
        transaction,
        encode_entry(
            Kind.REVOKED,
            time=now,
            actor=actor,
            correlation=correlation,
            payload={
                "issuer": certificate.issuer_id,
                "serial": certificate.serial,
                "reason": reason or 0,
                "not_after": certificate.not_after,
                "spki_sha256": certificate.spki_sha256.hex(),
            },
        ),
    )
    row = RevocationRow(
        issuer_id=certificate.issuer_id,
        serial=certificate.serial,
        revoked_at=int(now),
        reason=reason or None,
        not_after=certificate.not_after,
        crl_shard=certificate.crl_shard,
        ledger_index=index,
    )
    add_revocation(transaction, row)
    return row
