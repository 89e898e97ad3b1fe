"""Revoking a certificate: the row, the blocked key and the ledger entry in one transaction."""

from privyseal_ca.errors import AlreadyRevokedError, RevocationReasonError
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.certificates import (
    CertificateRow,
    RevocationRow,
    add_revocation,
    block_key,
    find_revocation,
)
from privyseal_ca.store.statement import Transaction

KEY_COMPROMISE = 1
#: What a subscriber may say: unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation.
SUBSCRIBER_REASONS = frozenset({0, 1, 3, 4, 5})
#: An administrator may add privilegeWithdrawn.
ADMINISTRATOR_REASONS = SUBSCRIBER_REASONS | {9}


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
    """Revoke ``certificate`` for ``reason``, a CRLReason; 0 and None both leave the reason out (RFC 5280 section 5.3.1).

    keyCompromise blocks the key for good.

    Raises:
        RevocationReasonError: ``reason`` is not one of ``allowed_reasons``.
        AlreadyRevokedError: it was revoked before.
    """
    if reason is not None and reason not in allowed_reasons:
        raise RevocationReasonError(
            f"Reason {reason} cannot be given.",
            hint=f"Allowed are {', '.join(str(code) for code in sorted(allowed_reasons))}.",
        )
    if find_revocation(transaction, certificate.issuer_id, certificate.serial) is not None:
        raise AlreadyRevokedError("The certificate is revoked already.")
    if reason == KEY_COMPROMISE:
        block_key(transaction, certificate.spki_sha256, reason="keyCompromise", now=int(now))
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
