"""Statements on orders. Changes of state are compare-and-set: they say what the state must have been (P4)."""

from typing import NamedTuple

from sqlalchemy import bindparam, func, insert, or_, select, update

from privyseal_acme.store.tables import Order
from privyseal_ca.store.statement import Statement, Transaction

_order = Order.__table__  # type: ignore[attr-defined]
#: All but what only the sweep needs.
_COLUMNS = [column for column in _order.columns if column is not _order.c.retained_from]

_INSERT = Statement(insert(_order))
_BY_ID = Statement(select(*_COLUMNS).where(_order.c.id == bindparam("wanted")))
_BY_SERIAL = Statement(select(*_COLUMNS).where(_order.c.serial == bindparam("wanted")).limit(1))
_PAGE = Statement(
    select(_order.c.id, _order.c.created)
    .where(
        _order.c.account_id == bindparam("account"),
        # The first of both is what the index is searched by.
        _order.c.created <= bindparam("created_before"),
        or_(_order.c.created < bindparam("created_before"), _order.c.id < bindparam("id_before")),
        _order.c.state != "invalid",
    )
    .order_by(_order.c.created.desc(), _order.c.id.desc())
    .limit(bindparam("count"))
)
_from = (
    select(*_COLUMNS)
    .where(_order.c.account_id == bindparam("account"), _order.c.created >= bindparam("begun"))
    .order_by(_order.c.created)
    .limit(bindparam("count"))
    .subquery()
)
_WITH_AUTHORIZATION = Statement(select(_from).where(_from.c.authorizations.like(bindparam("pattern"))).limit(16))
_BEGIN = Statement(
    update(_order)
    .values(state="processing", csr=bindparam("new_csr"), correlation=bindparam("new_correlation"))
    .where(_order.c.id == bindparam("wanted"), _order.c.state == "open")
)
_FINISH = Statement(
    update(_order)
    .values(state="valid", serial=bindparam("new_serial"))
    .where(_order.c.id == bindparam("wanted"), _order.c.state == "processing")
)
_FAIL = Statement(
    update(_order)
    .values(state="invalid", error=bindparam("new_error"))
    .where(_order.c.id == bindparam("wanted"), _order.c.state.in_(["open", "processing"]))
)
_CANCEL_OPEN = Statement(
    update(_order)
    .values(state="invalid", error=bindparam("new_error"))
    .where(_order.c.account_id == bindparam("account"), _order.c.state == "open")
)
_PROCESSING = Statement(
    select(_order.c.id, _order.c.replaces)
    .where(_order.c.state == "processing")
    .order_by(_order.c.created)
    .limit(bindparam("count"))
)
_COUNT_PROCESSING = Statement(select(func.count()).select_from(_order).where(_order.c.state == "processing"))
_REPLACING = Statement(
    select(*_COLUMNS)
    .where(_order.c.replaces == bindparam("certificate"), _order.c.state != "invalid")
    .order_by(_order.c.created.desc())
    .limit(bindparam("count"))
)


class OrderRow(NamedTuple):
    """An order; the fields are those of the table, without what only :mod:`privyseal_acme.store.retention` needs."""

    id: str
    account_id: str
    state: str
    created: int
    expires: int
    identifiers: str
    authorizations: str
    profile: str
    not_before: int | None
    not_after: int | None
    replaces: str | None
    csr: bytes | None
    serial: str | None
    error: str | None
    correlation: str


def add_order(transaction: Transaction, row: OrderRow) -> None:
    """Record a new order."""
    transaction.execute(_INSERT, **row._asdict(), retained_from=row.expires)


def find_order(transaction: Transaction, order_id: str) -> OrderRow | None:
    """The order with the id."""
    row = transaction.one(_BY_ID, wanted=order_id)
    return OrderRow(*row) if row else None


def order_of_certificate(transaction: Transaction, serial: str) -> OrderRow | None:
    """The order whose certificate has the serial; None when it was swept, or when no order was behind it."""
    row = transaction.one(_BY_SERIAL, wanted=serial)
    return OrderRow(*row) if row else None


def page_of_orders(
    transaction: Transaction, account_id: str, *, before: tuple[int, str], count: int
) -> list[tuple[str, int]]:
    """Ids and creation times of up to ``count`` orders that are not invalid, the newest first, past ``before``."""
    created, order_id = before
    rows = transaction.all(_PAGE, account=account_id, created_before=created, id_before=order_id, count=count)
    return [(str(row[0]), int(row[1])) for row in rows]


def orders_with_authorization(
    transaction: Transaction, account_id: str, authorization_id: str, *, begun: int, count: int
) -> list[OrderRow]:
    """The orders that name an authorization, among the first ``count`` of the account since ``begun``."""
    rows = transaction.all(
        _WITH_AUTHORIZATION, account=account_id, begun=begun, count=count, pattern=f'%"{authorization_id}"%'
    )
    return [OrderRow(*row) for row in rows]


def begin_processing(transaction: Transaction, order_id: str, *, csr: bytes, correlation: str) -> bool:
    """Open to processing; False when somebody else was first."""
    return transaction.execute(_BEGIN, wanted=order_id, new_csr=csr, new_correlation=correlation) == 1


def finish(transaction: Transaction, order_id: str, serial: str) -> bool:
    """Processing to valid; False when the order is not processing."""
    return transaction.execute(_FINISH, wanted=order_id, new_serial=serial) == 1


def fail(transaction: Transaction, order_id: str, error: str) -> bool:
    """Open or processing to invalid with a problem document (JSON); False when the order has ended already."""
    return transaction.execute(_FAIL, wanted=order_id, new_error=error) == 1


def cancel_open_orders(transaction: Transaction, account_id: str, error: str) -> int:
    """Every open order of an account to invalid; how many there were."""
    return transaction.execute(_CANCEL_OPEN, account=account_id, new_error=error)


def count_processing(transaction: Transaction) -> int:
    """How many orders wait for their certificates."""
    row = transaction.one(_COUNT_PROCESSING)
    return int(row[0]) if row else 0


def processing_orders(transaction: Transaction, *, count: int) -> list[tuple[str, str | None]]:
    """Up to ``count`` orders that wait for their certificates, the oldest first: each one's id, and what it replaces."""
    return [(str(order_id), replaces) for order_id, replaces in transaction.all(_PROCESSING, count=count)]


def replacing_orders(transaction: Transaction, certificate: str, *, count: int) -> list[OrderRow]:
    """Up to ``count`` orders that replace the certificate with this ARI identifier and were not ended, the newest first."""
    return [OrderRow(*row) for row in transaction.all(_REPLACING, certificate=certificate, count=count)]
