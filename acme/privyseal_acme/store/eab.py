"""Statements on keys for external account binding (RFC 8555 section 7.3.4)."""

from typing import NamedTuple

from sqlalchemy import bindparam, insert, or_, select, update

from privyseal_acme.store.tables import EabKey
from privyseal_ca.store.statement import Statement, Transaction

_key = EabKey.__table__  # type: ignore[attr-defined]

_INSERT = Statement(insert(_key))
_BY_KID = Statement(select(_key).where(_key.c.kid == bindparam("wanted")))
_LIST = Statement(select(_key).where(_key.c.kid > bindparam("after")).order_by(_key.c.kid).limit(bindparam("count")))
_USE = Statement(
    update(_key)
    .values(uses=_key.c.uses + 1)
    .where(
        _key.c.kid == bindparam("wanted"),
        _key.c.revoked.is_(None),
        or_(_key.c.expires.is_(None), _key.c.expires > bindparam("moment")),
        or_(_key.c.max_uses.is_(None), _key.c.uses < _key.c.max_uses),
    )
)
_REVOKE = Statement(
    update(_key).values(revoked=bindparam("moment")).where(_key.c.kid == bindparam("wanted"), _key.c.revoked.is_(None))
)
_SET_ATTRIBUTES = Statement(
    update(_key).values(attributes=bindparam("new_attributes")).where(_key.c.kid == bindparam("wanted"))
)


class EabKeyRow(NamedTuple):
    """A key for external account binding; the fields are those of the table."""

    kid: str
    wrapped: bytes
    label: str
    policy: str
    narrowing: str | None
    max_uses: int | None
    uses: int
    created: int
    expires: int | None
    revoked: int | None
    attributes: str | None = None


def add_eab_key(transaction: Transaction, row: EabKeyRow) -> None:
    """Keep a new key."""
    transaction.execute(_INSERT, **row._asdict())


def find_eab_key(transaction: Transaction, kid: str) -> EabKeyRow | None:
    """The key called ``kid``, whatever its state."""
    row = transaction.one(_BY_KID, wanted=kid)
    return EabKeyRow(*row) if row else None


def list_eab_keys(transaction: Transaction, *, after: str = "", count: int = 100) -> list[EabKeyRow]:
    """Up to ``count`` keys whose kid is after ``after``."""
    return [EabKeyRow(*row) for row in transaction.all(_LIST, after=after, count=count)]


def use_eab_key(transaction: Transaction, kid: str, now: int) -> bool:
    """Count one use; False, and nothing is counted, when the key is revoked, expired, used up or not there."""
    return transaction.execute(_USE, wanted=kid, moment=now) == 1


def revoke_eab_key(transaction: Transaction, kid: str, now: int) -> bool:
    """Make the key unusable from now on; False when it is not there or was revoked before."""
    return transaction.execute(_REVOKE, wanted=kid, moment=now) == 1


def set_eab_attributes(transaction: Transaction, kid: str, attributes: str | None) -> bool:
    """Say whose the workloads of the accounts are that the key binds; False when it is not there."""
    return transaction.execute(_SET_ATTRIBUTES, wanted=kid, new_attributes=attributes) == 1
