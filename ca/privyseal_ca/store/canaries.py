"""Statements on canaries: of each issuer the newest, kept as a fact."""

from typing import Final, NamedTuple

import orjson
from sqlalchemy import select

from privyseal_ca.store.issuers import set_fact
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import Fact

#: More issuers than an authority has.
_LIMIT: Final = 1000
_PREFIX: Final = "canary:"

_fact = Fact.__table__  # type: ignore[attr-defined]
_CANARIES = Statement(
    select(_fact.c.name, _fact.c.value)
    .where(_fact.c.name.startswith(_PREFIX, autoescape=True))
    .order_by(_fact.c.name)
    .limit(_LIMIT)
)


class CanaryRow(NamedTuple):
    """A certificate that was revoked when it was issued. Times are seconds since the epoch."""

    issuer_id: str
    serial: str
    crl_shard: int | None
    issued_at: int
    revoked_at: int
    not_after: int


def set_canary(transaction: Transaction, row: CanaryRow) -> None:
    """Record the newest canary of an issuer, in place of the one before."""
    document = row._asdict()
    name = _PREFIX + document.pop("issuer_id")
    set_fact(transaction, name, orjson.dumps(document).decode())


def canaries(transaction: Transaction) -> list[CanaryRow]:
    """The newest canary of every issuer that ever had one."""
    return [
        CanaryRow(issuer_id=name.removeprefix(_PREFIX), **orjson.loads(value))
        for name, value in transaction.all(_CANARIES)
    ]
