"""The end of an intent that has no certificate (promise P4)."""

from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.certificates import IntentRow, RevocationRow, add_revocation, close_intent
from privyseal_ca.store.statement import Transaction

#: The requester of CA certificates. A ceremony closes what it leaves behind by itself, for it runs in a process of its own.
CEREMONY_REQUESTER = "ceremony"

#: CRLReason of serials that were abandoned (RFC 5280 section 5.3.1): cessationOfOperation.
_ABANDONED_REASON = 5


def abandon_intent(transaction: Transaction, row: IntentRow, *, actor: str, reason: str, now: float) -> bool:
    """Close ``row``: its serial goes on the revocation list, for a signature may exist, with a ledger entry.

    False when it was closed before.
    """
    if not close_intent(transaction, row.serial):
        return False
    index = append(
        transaction,
        encode_entry(
            Kind.ABANDONED,
            time=now,
            actor=actor,
            correlation=row.correlation,
            payload={
                "issuer": row.issuer_id,
                "not_after": row.not_after,
                "reason": reason,
                "serial": row.serial,
                "tbs_sha256": row.tbs_sha256.hex(),
            },
        ),
    )
    add_revocation(
        transaction,
        RevocationRow(
            issuer_id=row.issuer_id,
            serial=row.serial,
            revoked_at=int(now),
            reason=_ABANDONED_REASON,
            not_after=row.not_after,
            crl_shard=row.crl_shard,
            ledger_index=index,
        ),
    )
    return True
