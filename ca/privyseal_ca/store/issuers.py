"""Statements on issuers, their chains, wrapped secrets and facts."""

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, insert, select, update

from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import Fact, Issuer, IssuerChain, Secret

_issuer = Issuer.__table__  # type: ignore[attr-defined]
_chain = IssuerChain.__table__  # type: ignore[attr-defined]
_secret = Secret.__table__  # type: ignore[attr-defined]
_fact = Fact.__table__  # type: ignore[attr-defined]

_INSERT = Statement(insert(_issuer))
_ALL = Statement(select(_issuer).order_by(_issuer.c.preference, _issuer.c.name))
_BY_NAME = Statement(select(_issuer).where(_issuer.c.name == bindparam("wanted")))
_SET_STATE = Statement(
    update(_issuer).values(state=bindparam("new_state")).where(_issuer.c.id == bindparam("issuer_id"))
)
_SET_ID = Statement(update(_issuer).values(id=bindparam("new_id")).where(_issuer.c.id == bindparam("old_id")))
_INSERT_CHAIN = Statement(insert(_chain))
_CHAINS = Statement(
    select(_chain.c.pem).where(_chain.c.issuer_id == bindparam("issuer_id")).order_by(_chain.c.position)
)
_INSERT_SECRET = Statement(insert(_secret))
_SECRET = Statement(select(_secret.c.wrapped).where(_secret.c.name == bindparam("wanted")))
_INSERT_FACT = Statement(insert(_fact))
_FACT = Statement(select(_fact.c.value).where(_fact.c.name == bindparam("wanted")))
_DELETE_FACT = Statement(delete(_fact).where(_fact.c.name == bindparam("wanted")))


@dataclass(frozen=True, slots=True)
class IssuerRow:
    """A CA key; the fields are those of the table."""

    id: str
    name: str
    state: str
    key_uri: str
    algorithm: str
    attestation: str
    csr: bytes | None
    preference: int
    created: int


def add_issuer(transaction: Transaction, row: IssuerRow) -> None:
    """Record a CA key."""
    transaction.execute(
        _INSERT,
        id=row.id,
        name=row.name,
        state=row.state,
        key_uri=row.key_uri,
        algorithm=row.algorithm,
        attestation=row.attestation,
        csr=row.csr,
        preference=row.preference,
        created=row.created,
    )


def all_issuers(transaction: Transaction) -> list[IssuerRow]:
    """Every CA key, the preferred first."""
    return [IssuerRow(*row) for row in transaction.all(_ALL)]


def find_issuer(transaction: Transaction, name: str) -> IssuerRow | None:
    """The CA key called ``name``."""
    row = transaction.one(_BY_NAME, wanted=name)
    return IssuerRow(*row) if row else None


def set_issuer_state(transaction: Transaction, issuer_id: str, state: str) -> None:
    """Change the state of an issuer: ``pending``, ``active`` or ``retired``."""
    transaction.execute(_SET_STATE, issuer_id=issuer_id, new_state=state)


def set_issuer_id(transaction: Transaction, old_id: str, new_id: str) -> None:
    """Give a pending issuer, which no chain and no certificate refers to yet, the id that its certificate says."""
    transaction.execute(_SET_ID, old_id=old_id, new_id=new_id)


def add_chain(transaction: Transaction, issuer_id: str, pem: str) -> int:
    """Add a chain after those that the issuer has; its position."""
    position = len(chains(transaction, issuer_id))
    transaction.execute(_INSERT_CHAIN, issuer_id=issuer_id, position=position, pem=pem)
    return position


def chains(transaction: Transaction, issuer_id: str) -> list[str]:
    """The issuer's chains as PEM, the default first; each begins with the issuer's certificate and ends with a root."""
    return [str(row[0]) for row in transaction.all(_CHAINS, issuer_id=issuer_id)]


def add_secret(transaction: Transaction, name: str, wrapped: bytes) -> None:
    """Keep a wrapped secret."""
    transaction.execute(_INSERT_SECRET, name=name, wrapped=wrapped)


def find_secret(transaction: Transaction, name: str) -> bytes | None:
    """The wrapped secret called ``name``."""
    row = transaction.one(_SECRET, wanted=name)
    return bytes(row[0]) if row else None


def set_fact(transaction: Transaction, name: str, value: str) -> None:
    """Record a fact, in place of an earlier one of that name."""
    transaction.execute(_DELETE_FACT, wanted=name)
    transaction.execute(_INSERT_FACT, name=name, value=value)


def find_fact(transaction: Transaction, name: str) -> str | None:
    """The fact called ``name``."""
    row = transaction.one(_FACT, wanted=name)
    return str(row[0]) if row else None
