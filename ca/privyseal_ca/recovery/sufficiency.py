"""Whether what is known outside tells what came after a backup (promise P8)."""

from collections.abc import Sequence

from privyseal_ca.errors import LedgerBehindError
from privyseal_ca.ledger.checkpoints import latest_checkpoint
from privyseal_ca.recovery.crl_evidence import ShownCrl, require_known
from privyseal_ca.recovery.outside import Found
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Transaction

_HINT = (
    "Give the newest that anybody has with --checkpoint FILE|URL: of a mirror, a witness, an auditor, or a receipt's. Without "
    "any: --accept-loss, with the newest CRL of every issuer (--crl)."
)


async def shown_by(store: Store, crls: Sequence[ShownCrl]) -> LedgerBehindError | None:
    """That the database is behind the CRLs that were given; None when it is not.

    Raises:
        StoreError: the database failed.
    """
    try:
        await require_known(store, crls, {})
    except LedgerBehindError as error:
        return error
    return None


def require_answers(found: Found, given: Sequence[str]) -> None:
    """Look whether every place has answered, unless a person has ``given`` the newest checkpoint: one that is silent may be
    the one that knows more.

    Raises:
        LedgerBehindError: one has not.
    """
    if found.silent and not given:
        place, reason = found.silent[0]
        raise LedgerBehindError(
            f"{place} {reason}, and may show more than what is known.",
            hint="Have it answer, or give the newest checkpoint that anybody has with --checkpoint FILE|URL. If it is gone for "
            "good, take it out of ledger.outside or ledger.witnesses.",
        )


def what_is_unknown(transaction: Transaction, found: Found) -> LedgerBehindError | None:
    """That nothing tells what came after the database; None when a checkpoint does.

    One from before the database's own newest says no more than that one.
    """
    newest = max(found.seen, key=lambda seen: seen.checkpoint.size, default=None)
    own = latest_checkpoint(transaction)
    if newest is None:
        return LedgerBehindError(
            "Nothing shows what the database was before: no checkpoint was given, and no place keeps one.", hint=_HINT
        )
    if own is not None and newest.checkpoint.size < own.size:
        return LedgerBehindError(
            f"What {newest.place} shows, a checkpoint of {newest.checkpoint.size} entries, is older than the backup itself, "
            f"which has one of {own.size}: it does not tell what came after.",
            hint=_HINT,
        )
    return None
