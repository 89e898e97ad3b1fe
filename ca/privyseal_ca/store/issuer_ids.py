"""Giving an issuer that has issued nothing yet the id that its certificate says."""

from sqlalchemy import bindparam, update

from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import Issuer

_issuer = Issuer.__table__  # type: ignore[attr-defined]
_SET_ID = Statement(update(_issuer).values(id=bindparam("new_id")).where(_issuer.c.id == bindparam("old_id")))


def set_issuer_id(transaction: Transaction, old_id: str, new_id: str) -> None:
    """Change the id of a pending issuer, which no chain and no certificate refers to yet."""
    transaction.execute(_SET_ID, old_id=old_id, new_id=new_id)
