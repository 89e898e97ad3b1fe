"""Statements on accounts whose key is blocked."""

from sqlalchemy import bindparam, select

from privyseal_acme.store.tables import Account
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import BlockedKey

_account = Account.__table__  # type: ignore[attr-defined]
_blocked = BlockedKey.__table__  # type: ignore[attr-defined]

_OF_KEY = Statement(
    select(_account.c.id).where(_account.c.spki_sha256 == bindparam("spki_sha256"), _account.c.status == "valid")
)
_BLOCKED = Statement(
    select(_account.c.id)
    .join(_blocked, _blocked.c.spki_sha256 == _account.c.spki_sha256)
    .where(_account.c.status == "valid")
    .limit(bindparam("count"))
)


def valid_accounts_of_key(transaction: Transaction, spki_sha256: bytes) -> list[str]:
    """The ids of the valid accounts that sign with the key; at most one, since thumbprints are unique."""
    return [str(row[0]) for row in transaction.all(_OF_KEY, spki_sha256=spki_sha256)]


def valid_accounts_of_blocked_keys(transaction: Transaction, *, count: int) -> list[str]:
    """The ids of up to ``count`` valid accounts that sign with a blocked key."""
    return [str(row[0]) for row in transaction.all(_BLOCKED, count=count)]
