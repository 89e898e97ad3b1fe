"""Going through all accounts, page by page."""

from sqlalchemy import bindparam, select

from privyseal_acme.store.accounts import AccountRow
from privyseal_acme.store.tables import Account
from privyseal_ca.store.statement import Statement, Transaction

_account = Account.__table__  # type: ignore[attr-defined]
_LIST = Statement(
    select(_account).where(_account.c.id > bindparam("after")).order_by(_account.c.id).limit(bindparam("count"))
)


def list_accounts(transaction: Transaction, *, after: str = "", count: int = 100) -> list[AccountRow]:
    """Up to ``count`` accounts whose id is after ``after``."""
    return [AccountRow(*row) for row in transaction.all(_LIST, after=after, count=count)]
