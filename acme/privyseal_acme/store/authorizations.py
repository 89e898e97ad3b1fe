"""Statements on authorizations. Changes of state are compare-and-set."""

from typing import NamedTuple

from sqlalchemy import bindparam, insert, select, update

from privyseal_acme.store.tables import Authorization
from privyseal_ca.store.statement import Statement, Transaction

_authorization = Authorization.__table__  # type: ignore[attr-defined]

_INSERT = Statement(insert(_authorization))
_BY_ID = Statement(select(_authorization).where(_authorization.c.id == bindparam("wanted")))
_STATE = Statement(
    select(_authorization.c.state, _authorization.c.expires).where(_authorization.c.id == bindparam("wanted"))
)
_USABLE = Statement(
    select(_authorization)
    .where(
        _authorization.c.account_id == bindparam("account"),
        _authorization.c.value == bindparam("name"),
        _authorization.c.identifier_type == bindparam("kind"),
        _authorization.c.wildcard == bindparam("is_wildcard"),
        _authorization.c.state == "valid",
        _authorization.c.expires > bindparam("until"),
        _authorization.c.reusable >= bindparam("least_reusable"),
    )
    .order_by(_authorization.c.expires.desc())
    .limit(1)
)
_BEGIN = Statement(
    update(_authorization)
    .values(state="processing", attempted=bindparam("challenge"), correlation=bindparam("new_correlation"))
    .where(
        _authorization.c.id == bindparam("wanted"),
        _authorization.c.state == "pending",
        _authorization.c.expires > bindparam("now"),
    )
)
_FINISH = Statement(
    update(_authorization)
    .values(
        state=bindparam("new_state"),
        expires=bindparam("new_expires"),
        validated=bindparam("new_validated"),
        error=bindparam("new_error"),
    )
    .where(_authorization.c.id == bindparam("wanted"), _authorization.c.state == "processing")
)
_DEACTIVATE = Statement(
    update(_authorization)
    .values(state="deactivated")
    .where(_authorization.c.id == bindparam("wanted"), _authorization.c.state.in_(["pending", "processing", "valid"]))
)
_DEACTIVATE_ALL = Statement(
    update(_authorization)
    .values(state="deactivated")
    .where(
        _authorization.c.account_id == bindparam("account"),
        _authorization.c.state.in_(["pending", "processing", "valid"]),
    )
)
_PROCESSING = Statement(
    select(_authorization).where(_authorization.c.state == "processing").order_by(_authorization.c.created)
)


class AuthorizationRow(NamedTuple):
    """An authorization; the fields are those of the table."""

    id: str
    account_id: str
    identifier_type: str
    value: str
    wildcard: int
    state: str
    created: int
    expires: int
    reusable: int
    seed: bytes
    attempted: str | None
    validated: int | None
    error: str | None
    correlation: str


def add_authorization(transaction: Transaction, row: AuthorizationRow) -> None:
    """Record a new authorization."""
    transaction.execute(_INSERT, **row._asdict())


def find_authorization(transaction: Transaction, authorization_id: str) -> AuthorizationRow | None:
    """The authorization with the id."""
    row = transaction.one(_BY_ID, wanted=authorization_id)
    return AuthorizationRow(*row) if row else None


def authorization_state(transaction: Transaction, authorization_id: str) -> tuple[str, int]:
    """State and expiry of the authorization with the id, which an order names; one that was swept had expired."""
    row = transaction.one(_STATE, wanted=authorization_id)
    return (str(row[0]), int(row[1])) if row else ("invalid", 0)


def find_usable(
    transaction: Transaction,
    account_id: str,
    *,
    identifier_type: str,
    value: str,
    wildcard: bool,
    until: int,
    only_reusable: bool,
) -> AuthorizationRow | None:
    """A valid authorization of the account for the name that lasts past ``until``."""
    row = transaction.one(
        _USABLE,
        account=account_id,
        name=value,
        kind=identifier_type,
        is_wildcard=int(wildcard),
        until=until,
        least_reusable=int(only_reusable),
    )
    return AuthorizationRow(*row) if row else None


def begin_validation(
    transaction: Transaction, authorization_id: str, *, challenge: str, correlation: str, now: int
) -> bool:
    """Pending to processing; False when it is not pending any more."""
    changed = transaction.execute(
        _BEGIN, wanted=authorization_id, challenge=challenge, new_correlation=correlation, now=now
    )
    return changed == 1


def finish_validation(
    transaction: Transaction,
    authorization_id: str,
    *,
    state: str,
    expires: int,
    validated: int | None,
    error: str | None,
) -> bool:
    """Processing to valid or invalid; False when it was deactivated meanwhile."""
    changed = transaction.execute(
        _FINISH,
        wanted=authorization_id,
        new_state=state,
        new_expires=expires,
        new_validated=validated,
        new_error=error,
    )
    return changed == 1


def deactivate(transaction: Transaction, authorization_id: str) -> bool:
    """Give an authorization up; False when it has ended already."""
    return transaction.execute(_DEACTIVATE, wanted=authorization_id) == 1


def deactivate_all(transaction: Transaction, account_id: str) -> int:
    """Give every authorization of an account up; how many there were."""
    return transaction.execute(_DEACTIVATE_ALL, account=account_id)


def processing_authorizations(transaction: Transaction) -> list[AuthorizationRow]:
    """Every authorization whose challenge is being validated, the oldest first."""
    return [AuthorizationRow(*row) for row in transaction.all(_PROCESSING)]
