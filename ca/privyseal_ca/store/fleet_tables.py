"""The tables of the fleet: workloads, their certificates over time, and what is told of them.

All of it is made from certificates, orders and revocations, apart from what operators decided (``retired_*``) and from what
clients only said in passing (polls and failed attempts). As in :mod:`privyseal_ca.store.tables`, columns hold integers (times
are seconds since the epoch), text and bytes only.
"""

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, Text, text
from sqlmodel import Field, SQLModel

_CLUSTERED = {"sqlite_with_rowid": False}


def _text() -> Column[str]:
    return Column(Text, nullable=False)


def _moment() -> Column[int]:
    return Column(BigInteger, nullable=False)


class Lineage(SQLModel, table=True):
    """A workload: the certificates that replace one another, or the attempts at a first one."""

    __tablename__ = "lineage"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    #: Who its certificates are issued to, as ``account:ID``.
    requester: str = Field(sa_column=_text())
    #: Of its newest certificate, as in the certificate's row; of the attempts before there is one.
    names: str = Field(sa_column=_text())
    profile: str = Field(sa_column=_text())
    #: SHA-256 of requester, profile and sorted names: what certificates are found by that name no predecessor.
    names_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))

    #: The newest certificate; empty and 0 before there is one.
    serial: str = Field(sa_column=_text())
    issuer_id: str = Field(sa_column=_text())
    not_before: int = Field(sa_column=_moment())
    not_after: int = Field(sa_column=_moment())
    certificates: int = Field(sa_column=_moment())
    created: int = Field(sa_column=_moment())
    #: When the newest certificate was ordered.
    renewed_at: int = Field(sa_column=_moment())
    #: After how many thousandths of a life the last renewal came; 0 while there was none.
    usual: int = Field(sa_column=Column(Integer, nullable=False))

    owner: str = Field(sa_column=_text())
    team: str = Field(sa_column=_text())
    service: str = Field(sa_column=_text())
    environment: str = Field(sa_column=_text())
    criticality: str = Field(sa_column=_text())
    #: JSON object of text by name.
    labels: str = Field(sa_column=_text())
    #: Where each of them was found, as a JSON object: ``rule:NAME``, ``account`` or ``eab:KID``.
    sources: str = Field(sa_column=_text())
    #: 0 for workloads that are not expected to renew.
    renews: int = Field(sa_column=Column(Integer, nullable=False))

    #: When renewal information was last asked for the newest certificate; 0 when it never was.
    polled_at: int = Field(sa_column=_moment())
    #: The window that clients are told of, and until when a renewal is in time; 0 while they are not known.
    window_start: int = Field(sa_column=_moment())
    window_end: int = Field(sa_column=_moment())
    deadline: int = Field(sa_column=_moment())

    #: Failed attempts since the newest certificate, when the first and the last were, and the last one as JSON.
    attempts: int = Field(sa_column=_moment())
    failing_since: int = Field(sa_column=_moment())
    attempted_at: int = Field(sa_column=_moment())
    attempt: str = Field(sa_column=_text())

    #: See :class:`privyseal_ca.fleet.states.State`.
    state: str = Field(sa_column=_text())
    state_since: int = Field(sa_column=_moment())
    #: When the renewal became overdue that is still missing; 0 while none is.
    missed_at: int = Field(sa_column=_moment())
    revoked_at: int = Field(sa_column=_moment())
    #: When and by whom it was taken out of the fleet; 0 and empty while it is in it.
    retired_at: int = Field(sa_column=_moment())
    retired_by: str = Field(sa_column=_text())
    retired_reason: str = Field(sa_column=_text())
    #: When its state may change next without anything being heard of it.
    next_look: int = Field(sa_column=_moment())
    #: What its owner was last told of; empty when there is nothing to be told.
    told: str = Field(sa_column=_text())

    __table_args__ = (
        Index("ix_lineage_names", "names_hash"),
        Index("ix_lineage_serial", "serial"),
        Index("ix_lineage_look", "next_look"),
        Index("ix_lineage_requester", "requester"),
        Index("ix_lineage_missed", "missed_at"),
        # Those that live, for whoever goes through all of them: over the years most are retired.
        Index(
            "ix_lineage_retired",
            "criticality",
            sqlite_where=text("retired_at > 0"),
            postgresql_where=text("retired_at > 0"),
        ),
        Index("ix_lineage_live", "id", sqlite_where=text("retired_at = 0"), postgresql_where=text("retired_at = 0")),
        _CLUSTERED,
    )


class LineageCertificate(SQLModel, table=True):
    """Which lineage a certificate belongs to."""

    __tablename__ = "lineage_certificate"

    serial: str = Field(sa_column=Column(Text, primary_key=True))
    lineage_id: str = Field(sa_column=_text())
    not_before: int = Field(sa_column=_moment())

    __table_args__ = (Index("ix_lineage_certificate_lineage", "lineage_id", "not_before"), _CLUSTERED)


class Notification(SQLModel, table=True):
    """A message for owners or operators, kept until it is delivered and some time after."""

    __tablename__ = "notification"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    #: The route of the settings that it goes by, and the owner's mail address where it goes to owners.
    route: str = Field(sa_column=_text())
    recipient: str = Field(sa_column=_text())
    #: ``missed``, ``failing``, ``recovered``, ``unowned``, ``system``, ``digest`` or ``test``.
    kind: str = Field(sa_column=_text())
    title: str = Field(sa_column=_text())
    body: str = Field(sa_column=_text())
    #: How many workloads it is about.
    workloads: int = Field(sa_column=Column(Integer, nullable=False))
    created: int = Field(sa_column=_moment())
    #: ``waiting``, ``delivered`` or ``given-up``.
    state: str = Field(sa_column=_text())
    attempts: int = Field(sa_column=Column(Integer, nullable=False))
    next_attempt: int = Field(sa_column=_moment())
    finished: int = Field(sa_column=_moment())
    #: Why the last attempt failed, without secrets; empty when it did not.
    problem: str = Field(sa_column=_text())

    __table_args__ = (Index("ix_notification_state", "state", "next_attempt"), _CLUSTERED)
