"""Statements that bring tables to what entries of the ledger say: for a database that was restored and lacks these entries.

Those on the ACME server's tables name them by hand. There is one schema, which the migrations here make, and a restore must
apply what ended an account whatever program asks for it.
"""

from typing import Final

from sqlalchemy import bindparam, column, delete, func, select, table, update

from privyseal_ca.store.crls import Part, add_part, reserve_crls
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import Certificate, Crl, CrlPart, Fact, LedgerCheckpoint, Revocation

_certificate = Certificate.__table__  # type: ignore[attr-defined]
_checkpoint = LedgerCheckpoint.__table__  # type: ignore[attr-defined]
_crl = Crl.__table__  # type: ignore[attr-defined]
_part = CrlPart.__table__  # type: ignore[attr-defined]
_fact = Fact.__table__  # type: ignore[attr-defined]
_revocation = Revocation.__table__  # type: ignore[attr-defined]
_account = table("acme_account", column("id"), column("status"), column("thumbprint"))
_order = table("acme_order", column("id"), column("account_id"), column("state"), column("error"))
_authorization = table("acme_authorization", column("id"), column("account_id"), column("state"))
_eab = table("eab_key", column("kid"), column("revoked"), column("uses"))

_NO_DER: Final = b""

_END_ACCOUNT = Statement(
    update(_account)
    .values(status="deactivated")
    .where(_account.c.id == bindparam("wanted"), _account.c.status == "valid")
)
_THUMBPRINT = Statement(
    select(_account.c.thumbprint).where(_account.c.id == bindparam("wanted"), _account.c.status == "valid")
)
_UNFINISHED = _order.c.state.in_(["open", "processing"])
_FAIL_ORDERS = Statement(
    update(_order)
    .values(state="invalid", error=bindparam("new_error"))
    .where(_order.c.account_id == bindparam("wanted"), _UNFINISHED)
)
_FAIL_ORDER = Statement(
    update(_order)
    .values(state="invalid", error=bindparam("new_error"))
    .where(_order.c.id == bindparam("wanted"), _UNFINISHED)
)
_LIVING = _authorization.c.state.in_(["pending", "processing", "valid"])
_END_AUTHORIZATIONS = Statement(
    update(_authorization)
    .values(state="deactivated")
    .where(_authorization.c.account_id == bindparam("wanted"), _LIVING)
)
_END_AUTHORIZATION = Statement(
    update(_authorization).values(state="deactivated").where(_authorization.c.id == bindparam("wanted"), _LIVING)
)
_REVOKE_EAB = Statement(
    update(_eab).values(revoked=bindparam("moment")).where(_eab.c.kid == bindparam("wanted"), _eab.c.revoked.is_(None))
)
_USE_EAB = Statement(update(_eab).values(uses=_eab.c.uses + 1).where(_eab.c.kid == bindparam("wanted")))

_OF_SCOPE = (_crl.c.issuer_id == bindparam("issuer_id"), _crl.c.scope == bindparam("scope"))
_FORGET_CRL = Statement(delete(_crl).where(*_OF_SCOPE))
_FORGET_PARTS = Statement(
    delete(_part).where(_part.c.issuer_id == bindparam("issuer_id"), _part.c.scope == bindparam("scope"))
)
_FORGET_CHECKPOINTS = Statement(delete(_checkpoint))
_FORGET_FACT = Statement(delete(_fact).where(_fact.c.name == bindparam("wanted")))

_COUNT_LOST = Statement(select(func.count()).select_from(_certificate).where(_certificate.c.der == bindparam("none")))
_ADOPT = Statement(
    update(_certificate)
    .values(der=bindparam("new_der"), crl_shard=bindparam("new_shard"), ocsp=bindparam("new_ocsp"))
    .where(_certificate.c.serial == bindparam("wanted"), _certificate.c.der == bindparam("none"))
)
_MOVE = Statement(
    update(_revocation)
    .values(crl_shard=bindparam("new_shard"))
    .where(_revocation.c.issuer_id == bindparam("of_issuer"), _revocation.c.serial == bindparam("wanted"))
)


def end_account(transaction: Transaction, account_id: str, error: str) -> bool:
    """Deactivate an account with its authorizations, its orders invalid with ``error``; False when there was none to end."""
    ended = transaction.execute(_END_ACCOUNT, wanted=account_id) == 1
    if ended:
        transaction.execute(_FAIL_ORDERS, wanted=account_id, new_error=error)
        transaction.execute(_END_AUTHORIZATIONS, wanted=account_id)
    return ended


def account_thumbprint(transaction: Transaction, account_id: str) -> str | None:
    """The thumbprint of the key of a valid account (RFC 7638); None when there is no such account."""
    row = transaction.one(_THUMBPRINT, wanted=account_id)
    return str(row[0]) if row else None


def fail_order(transaction: Transaction, order_id: str, error: str) -> bool:
    """Make an order that is open or being worked on invalid; False when there is none."""
    return transaction.execute(_FAIL_ORDER, wanted=order_id, new_error=error) == 1


def end_authorization(transaction: Transaction, authorization_id: str) -> bool:
    """Deactivate an authorization; False when there was none to end."""
    return transaction.execute(_END_AUTHORIZATION, wanted=authorization_id) == 1


def revoke_eab_key(transaction: Transaction, kid: str, now: int) -> bool:
    """Revoke a key for external account binding; False when there was none to revoke."""
    return transaction.execute(_REVOKE_EAB, wanted=kid, moment=now) == 1


def count_eab_use(transaction: Transaction, kid: str) -> bool:
    """Count that a key for external account binding has bound an account; False when there is no such key."""
    return transaction.execute(_USE_EAB, wanted=kid) == 1


def withdraw_crl(transaction: Transaction, issuer_id: str, scope: str, number: int) -> None:
    """Serve no CRL of a scope until the next is made, which gets a number above ``number``.

    The scope is unpublished again, and an empty piece has the number, above which every builder goes.
    """
    transaction.execute(_FORGET_CRL, issuer_id=issuer_id, scope=scope)
    transaction.execute(_FORGET_PARTS, issuer_id=issuer_id, scope=scope)
    reserve_crls(transaction, [(issuer_id, scope)])
    add_part(transaction, Part(issuer_id, scope, number, 0, 0, b""))


def forget_crl(transaction: Transaction, issuer_id: str, scope: str) -> None:
    """Remove a scope's CRL and every piece, so that another can be put in their place."""
    transaction.execute(_FORGET_CRL, issuer_id=issuer_id, scope=scope)
    transaction.execute(_FORGET_PARTS, issuer_id=issuer_id, scope=scope)


def forget_checkpoints(transaction: Transaction) -> None:
    """Remove what a log signed that is given up."""
    transaction.execute(_FORGET_CHECKPOINTS)


def forget_fact(transaction: Transaction, name: str) -> None:
    """Remove a fact, if it is there."""
    transaction.execute(_FORGET_FACT, wanted=name)


def count_lost(transaction: Transaction) -> int:
    """How many certificates are known by their entries only. Looks at every certificate."""
    row = transaction.one(_COUNT_LOST, none=_NO_DER)
    return int(row[0]) if row else 0


def adopt_der(
    transaction: Transaction, serial: str, issuer_id: str, der: bytes, *, crl_shard: int | None, ocsp: bool
) -> bool:
    """Give a certificate that was lost its DER, and what that says of CRL and OCSP; False when it was not lost."""
    if (
        transaction.execute(_ADOPT, wanted=serial, none=_NO_DER, new_der=der, new_shard=crl_shard, new_ocsp=int(ocsp))
        != 1
    ):
        return False
    transaction.execute(_MOVE, of_issuer=issuer_id, wanted=serial, new_shard=crl_shard)
    return True
