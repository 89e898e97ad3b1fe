"""Statements that find and remove orders and authorizations whose time is over, a bounded number at a time.

They say again what must hold, and pass over rows that somebody else is changing: two sweepers do each other no harm.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import bindparam, delete, func, literal, select, update

from privyseal_acme.store.tables import Authorization, Order
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import Certificate

_order = Order.__table__  # type: ignore[attr-defined]
_authorization = Authorization.__table__  # type: ignore[attr-defined]
_certificate = Certificate.__table__  # type: ignore[attr-defined]

#: The most rows that one statement removes: a statement is compiled for a number of ids, and a shorter list is padded.
BATCH: Final = 100
_IDS: Final = [f"id_{number}" for number in range(BATCH)]
_NOBODY: Final = ""

_ORDER_IS_DUE = _order.c.retained_from <= bindparam("before")
_AUTHORIZATION_IS_DUE = (
    _authorization.c.expires <= bindparam("before"),
    # Its outcome is still to be recorded, by this process or by the next.
    _authorization.c.state != "processing",
)

# Looked up for each order: a join could be made by going through all certificates, when the planner thinks them few.
_CERTIFICATE_ENDS = select(_certificate.c.not_after).where(_certificate.c.serial == _order.c.serial).scalar_subquery()
_DUE_ORDERS = Statement(
    select(_order.c.id, _order.c.state, _order.c.expires, _order.c.replaces, _CERTIFICATE_ENDS)
    .where(_ORDER_IS_DUE)
    .order_by(_order.c.retained_from)
    .limit(bindparam("count"))
    .with_for_update(skip_locked=True)
)
_RETAIN = Statement(
    update(_order).values(retained_from=bindparam("new_retained_from")).where(_order.c.id == bindparam("wanted"))
)
_REMOVE_ORDERS = Statement(
    delete(_order).where(
        _order.c.id.in_([bindparam(name) for name in _IDS]), _ORDER_IS_DUE, _order.c.state != "processing"
    )
)
_SOME_ORDERS = select(literal(1)).where(_ORDER_IS_DUE).limit(bindparam("most")).subquery()
_COUNT_ORDERS = Statement(select(func.count()).select_from(_SOME_ORDERS))

_DUE_AUTHORIZATIONS = Statement(
    select(_authorization.c.id)
    .where(*_AUTHORIZATION_IS_DUE)
    .order_by(_authorization.c.expires)
    .limit(bindparam("count"))
    .with_for_update(skip_locked=True)
)
_REMOVE_AUTHORIZATIONS = Statement(
    delete(_authorization).where(_authorization.c.id.in_([bindparam(name) for name in _IDS]), *_AUTHORIZATION_IS_DUE)
)
_SOME_AUTHORIZATIONS = select(literal(1)).where(*_AUTHORIZATION_IS_DUE).limit(bindparam("most")).subquery()
_COUNT_AUTHORIZATIONS = Statement(select(func.count()).select_from(_SOME_AUTHORIZATIONS))


class DueOrder(NamedTuple):
    """What decides whether an order goes."""

    id: str
    state: str
    expires: int
    #: The ARI identifier of the certificate that it replaces.
    replaces: str | None
    #: When its certificate ends; None where it has none.
    certificate_ends: int | None


def due_orders(transaction: Transaction, *, before: int) -> list[DueOrder]:
    """Up to :data:`BATCH` orders that are to be looked at: their ``retained_from`` is ``before`` or earlier."""
    return [DueOrder(*row) for row in transaction.all(_DUE_ORDERS, before=before, count=BATCH)]


def retain_order(transaction: Transaction, order_id: str, retained_from: int) -> None:
    """Count the time that an order is kept from ``retained_from``."""
    transaction.execute(_RETAIN, wanted=order_id, new_retained_from=retained_from)


def remove_orders(transaction: Transaction, order_ids: Sequence[str], *, before: int) -> int:
    """Remove those of up to :data:`BATCH` orders that are still due and not being worked on; how many there were."""
    return transaction.execute(_REMOVE_ORDERS, before=before, **_padded(order_ids)) if order_ids else 0


def count_due_orders(transaction: Transaction, *, before: int, most: int) -> int:
    """How many orders are due, counted up to ``most``."""
    row = transaction.one(_COUNT_ORDERS, before=before, most=most)
    return int(row[0]) if row else 0


def remove_authorizations(transaction: Transaction, *, before: int) -> int:
    """Remove up to :data:`BATCH` authorizations that expired at ``before`` or earlier; how many there were."""
    ids = [str(row[0]) for row in transaction.all(_DUE_AUTHORIZATIONS, before=before, count=BATCH)]
    return transaction.execute(_REMOVE_AUTHORIZATIONS, before=before, **_padded(ids)) if ids else 0


def count_due_authorizations(transaction: Transaction, *, before: int, most: int) -> int:
    """How many authorizations are due, counted up to ``most``."""
    row = transaction.one(_COUNT_AUTHORIZATIONS, before=before, most=most)
    return int(row[0]) if row else 0


def _padded(ids: Sequence[str]) -> dict[str, str]:
    return dict(zip(_IDS, [*ids, *[_NOBODY] * (BATCH - len(ids))], strict=True))
