"""Statements on accounts."""

from typing import NamedTuple

from sqlalchemy import bindparam, insert, select, update

from privyseal_acme.store.tables import Account
from privyseal_ca.store.statement import Statement, Transaction

_account = Account.__table__  # type: ignore[attr-defined]

_INSERT = Statement(insert(_account))
_BY_ID = Statement(select(_account).where(_account.c.id == bindparam("wanted")))
_BY_THUMBPRINT = Statement(select(_account).where(_account.c.thumbprint == bindparam("wanted")))
_BY_SPKI = Statement(select(_account.c.id).where(_account.c.spki_sha256 == bindparam("wanted")).limit(1))
_LIST = Statement(
    select(_account).where(_account.c.id > bindparam("after")).order_by(_account.c.id).limit(bindparam("count"))
)
_SET_CONTACT = Statement(
    update(_account)
    .values(contact=bindparam("new_contact"), terms_agreed=bindparam("new_terms"))
    .where(_account.c.id == bindparam("wanted"), _account.c.status == "valid")
)
_DEACTIVATE = Statement(
    update(_account)
    .values(status="deactivated")
    .where(_account.c.id == bindparam("wanted"), _account.c.status == "valid")
)
_SET_ATTRIBUTES = Statement(
    update(_account).values(attributes=bindparam("new_attributes")).where(_account.c.id == bindparam("wanted"))
)
_SET_KEY = Statement(
    update(_account)
    .values(thumbprint=bindparam("new_thumbprint"), jwk=bindparam("new_jwk"), spki_sha256=bindparam("new_spki"))
    .where(
        _account.c.id == bindparam("wanted"),
        _account.c.thumbprint == bindparam("old_thumbprint"),
        _account.c.status == "valid",
    )
)


class AccountRow(NamedTuple):
    """An account; the fields are those of the table."""

    id: str
    status: str
    thumbprint: str
    jwk: str
    spki_sha256: bytes
    contact: str
    terms_agreed: int
    policy: str
    narrowing: str | None
    eab_kid: str | None
    eab: str | None
    created: int
    attributes: str | None = None

    @property
    def actor(self) -> str:
        """The account as the ledger names it."""
        return f"account:{self.id}"


def add_account(transaction: Transaction, row: AccountRow) -> None:
    """Record a new account; a key that an account has already is a conflict."""
    transaction.execute(_INSERT, **row._asdict())


def find_account(transaction: Transaction, account_id: str) -> AccountRow | None:
    """The account with the id."""
    row = transaction.one(_BY_ID, wanted=account_id)
    return AccountRow(*row) if row else None


def find_account_by_key(transaction: Transaction, thumbprint: str) -> AccountRow | None:
    """The account whose key has the thumbprint."""
    row = transaction.one(_BY_THUMBPRINT, wanted=thumbprint)
    return AccountRow(*row) if row else None


def list_accounts(transaction: Transaction, *, after: str = "", count: int = 100) -> list[AccountRow]:
    """Up to ``count`` accounts whose id is after ``after``."""
    return [AccountRow(*row) for row in transaction.all(_LIST, after=after, count=count)]


def is_account_key(transaction: Transaction, spki_sha256: bytes) -> bool:
    """Whether the key with this SubjectPublicKeyInfo hash signs for any account (RFC 8555 section 11.1)."""
    return transaction.one(_BY_SPKI, wanted=spki_sha256) is not None


def set_contact(transaction: Transaction, account_id: str, contact: str, *, terms_agreed: bool) -> bool:
    """Change an account's contacts; False when it is not valid any more."""
    return transaction.execute(_SET_CONTACT, wanted=account_id, new_contact=contact, new_terms=int(terms_agreed)) == 1


def deactivate_account(transaction: Transaction, account_id: str) -> bool:
    """End an account; False when it had ended before."""
    return transaction.execute(_DEACTIVATE, wanted=account_id) == 1


def set_account_attributes(transaction: Transaction, account_id: str, attributes: str | None) -> bool:
    """Say whose the account's workloads are; False when there is no such account."""
    return transaction.execute(_SET_ATTRIBUTES, wanted=account_id, new_attributes=attributes) == 1


def set_key(
    transaction: Transaction, account_id: str, *, old_thumbprint: str, thumbprint: str, jwk: str, spki_sha256: bytes
) -> bool:
    """Replace the account's key; False when the old one is not its key any more or the account has ended."""
    changed = transaction.execute(
        _SET_KEY,
        wanted=account_id,
        old_thumbprint=old_thumbprint,
        new_thumbprint=thumbprint,
        new_jwk=jwk,
        new_spki=spki_sha256,
    )
    return changed == 1
