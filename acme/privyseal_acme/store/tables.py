"""The tables of the ACME server.

Columns hold integers (times are seconds since the epoch), text and bytes only; see the authority's store room.
"""

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, Text, text
from sqlmodel import Field, SQLModel

#: SQLite keeps the row in the primary key's own tree: one page to write instead of two.
_CLUSTERED = {"sqlite_with_rowid": False}


class Account(SQLModel, table=True):
    """An ACME account (RFC 8555 section 7.1.2)."""

    __tablename__ = "acme_account"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    #: ``valid`` or ``deactivated``.
    status: str = Field(sa_column=Column(Text, nullable=False))
    #: RFC 7638 thumbprint of the key, base64url. One account for one key.
    thumbprint: str = Field(sa_column=Column(Text, nullable=False, unique=True))
    jwk: str = Field(sa_column=Column(Text, nullable=False))
    #: SHA-256 of the key's SubjectPublicKeyInfo: account keys are never certified (section 11.1).
    spki_sha256: bytes = Field(sa_column=Column(LargeBinary, nullable=False, index=True))
    contact: str = Field(sa_column=Column(Text, nullable=False))
    terms_agreed: int = Field(sa_column=Column(Integer, nullable=False))
    #: Policy and narrowing, fixed by the external account binding.
    policy: str = Field(sa_column=Column(Text, nullable=False))
    narrowing: str | None = Field(sa_column=Column(Text))
    eab_kid: str | None = Field(sa_column=Column(Text))
    #: The verified externalAccountBinding as the client sent it.
    eab: str | None = Field(sa_column=Column(Text))
    created: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: Whose its workloads are, as JSON (:mod:`privyseal_ca.fleet.attributes`), or NULL when nobody said.
    attributes: str | None = Field(sa_column=Column(Text))


class EabKey(SQLModel, table=True):
    """A key for external account binding (RFC 8555 section 7.3.4), wrapped by a key in the token."""

    __tablename__ = "eab_key"

    kid: str = Field(sa_column=Column(Text, primary_key=True))
    wrapped: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    label: str = Field(sa_column=Column(Text, nullable=False))
    policy: str = Field(sa_column=Column(Text, nullable=False))
    #: JSON with ``dns``, ``ip`` and ``uri`` lists that narrow the policy, or NULL.
    narrowing: str | None = Field(sa_column=Column(Text))
    #: How many accounts it may bind; NULL for any number.
    max_uses: int | None = Field(sa_column=Column(Integer))
    uses: int = Field(sa_column=Column(Integer, nullable=False))
    created: int = Field(sa_column=Column(BigInteger, nullable=False))
    expires: int | None = Field(sa_column=Column(BigInteger))
    revoked: int | None = Field(sa_column=Column(BigInteger))
    #: Whose the workloads of the accounts are that it binds, as JSON, or NULL.
    attributes: str | None = Field(sa_column=Column(Text))

    __table_args__ = _CLUSTERED


class Order(SQLModel, table=True):
    """An order (RFC 8555 section 7.1.3). Its status is computed from this row, its authorizations and the time."""

    __tablename__ = "acme_order"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    account_id: str = Field(sa_column=Column(Text, nullable=False))
    #: ``open`` (pending or ready), ``processing``, ``valid`` or ``invalid``.
    state: str = Field(sa_column=Column(Text, nullable=False))
    created: int = Field(sa_column=Column(BigInteger, nullable=False))
    expires: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: JSON list of ``[type, value]``.
    identifiers: str = Field(sa_column=Column(Text, nullable=False))
    #: JSON list of authorization ids.
    authorizations: str = Field(sa_column=Column(Text, nullable=False))
    profile: str = Field(sa_column=Column(Text, nullable=False))
    not_before: int | None = Field(sa_column=Column(BigInteger))
    not_after: int | None = Field(sa_column=Column(BigInteger))
    #: The ARI identifier (RFC 9773) of the certificate that this order replaces.
    replaces: str | None = Field(sa_column=Column(Text))
    csr: bytes | None = Field(sa_column=Column(LargeBinary))
    serial: str | None = Field(sa_column=Column(Text))
    error: str | None = Field(sa_column=Column(Text))
    #: The request that set the last change of state in motion.
    correlation: str = Field(sa_column=Column(Text, nullable=False))
    #: From when ``retention.orders`` is counted: ``expires``, until the sweep has found that a certificate ends later. 0 in
    #: rows from before there was this column.
    retained_from: int = Field(sa_column=Column(BigInteger, nullable=False, server_default="0"))

    __table_args__ = (
        Index("ix_acme_order_account", "account_id", "created"),
        Index("ix_acme_order_retained", "retained_from"),
        # Small: only the orders whose work is not done, so that a start finds them at once.
        Index(
            "ix_acme_order_processing",
            "state",
            sqlite_where=text("state = 'processing'"),
            postgresql_where=text("state = 'processing'"),
        ),
        Index(
            "ix_acme_order_replaces",
            "replaces",
            sqlite_where=text("replaces IS NOT NULL"),
            postgresql_where=text("replaces IS NOT NULL"),
        ),
        # The order of a certificate, for what it replaces.
        Index(
            "ix_acme_order_serial",
            "serial",
            sqlite_where=text("serial IS NOT NULL"),
            postgresql_where=text("serial IS NOT NULL"),
        ),
        _CLUSTERED,
    )


class Authorization(SQLModel, table=True):
    """An authorization with its challenges (RFC 8555 sections 7.1.4 and 8).

    The challenges of one authorization share this row: their tokens are derived from ``seed``, and at most one of them, the
    ``attempted`` one, is ever anything else than pending.
    """

    __tablename__ = "acme_authorization"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    account_id: str = Field(sa_column=Column(Text, nullable=False))
    identifier_type: str = Field(sa_column=Column(Text, nullable=False))
    #: Without ``*.``.
    value: str = Field(sa_column=Column(Text, nullable=False))
    wildcard: int = Field(sa_column=Column(Integer, nullable=False))
    #: ``pending``, ``processing`` (a challenge is being validated), ``valid``, ``invalid`` or ``deactivated``.
    state: str = Field(sa_column=Column(Text, nullable=False))
    created: int = Field(sa_column=Column(BigInteger, nullable=False))
    expires: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: 1 when newAuthz made it: such an authorization serves any later order.
    reusable: int = Field(sa_column=Column(Integer, nullable=False))
    seed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    attempted: str | None = Field(sa_column=Column(Text))
    validated: int | None = Field(sa_column=Column(BigInteger))
    error: str | None = Field(sa_column=Column(Text))
    #: The request whose challenge response is being worked on.
    correlation: str = Field(sa_column=Column(Text, nullable=False))

    __table_args__ = (
        Index("ix_acme_authorization_account", "account_id", "value"),
        Index("ix_acme_authorization_expires", "expires"),
        Index(
            "ix_acme_authorization_processing",
            "state",
            sqlite_where=text("state = 'processing'"),
            postgresql_where=text("state = 'processing'"),
        ),
        _CLUSTERED,
    )


class UsedNonce(SQLModel, table=True):
    """A nonce that was seen in a request (RFC 8555 section 6.5), kept until it would have expired anyway.

    Nonces begin with the time they were made, so the key's order is that of their age.
    """

    __tablename__ = "used_nonce"

    nonce: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))

    __table_args__ = _CLUSTERED
