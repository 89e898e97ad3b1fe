"""The authority's tables.

Columns hold integers (times are seconds since the epoch), text and bytes only: see :mod:`privyseal_ca.store.statement`.
Structured values are JSON text.
"""

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, Text
from sqlmodel import Field, SQLModel

#: An integer of 64 bits that SQLite can use as its row id.
_ROW_ID = BigInteger().with_variant(Integer(), "sqlite")
#: SQLite keeps the row in the primary key's own tree: one page to write instead of two.
_CLUSTERED = {"sqlite_with_rowid": False}


class LedgerHead(SQLModel, table=True):
    """The size of the ledger: one row, whose lock orders writers (promise P3)."""

    __tablename__ = "ledger_head"

    id: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    size: int = Field(sa_column=Column(BigInteger, nullable=False))


class LedgerEntry(SQLModel, table=True):
    """One leaf of the ledger. Never changed, never removed."""

    __tablename__ = "ledger_entry"

    idx: int = Field(sa_column=Column(_ROW_ID, primary_key=True, autoincrement=False))
    leaf_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    entry: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class LedgerTile(SQLModel, table=True):
    """A full tile of the ledger's tree (C2SP tlog-tiles): 256 hashes of neighbours. Never changed, never removed.

    Partial tiles are not kept: those of level 0 are leaf hashes of entries, those above are the roots of tiles below.
    """

    __tablename__ = "ledger_tile"

    level: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    idx: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    #: The hash over all of it, which is one hash of the tile above. Before the long column, so that SQLite finds it at once.
    root: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    #: 8192 octets.
    hashes: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class LedgerCheckpoint(SQLModel, table=True):
    """A size of the ledger and its root, to which this authority binds itself by a signature (C2SP tlog-checkpoint)."""

    __tablename__ = "ledger_checkpoint"

    size: int = Field(sa_column=Column(_ROW_ID, primary_key=True, autoincrement=False))
    root: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    #: The signed note; NULL in the newest row while the signature is being made, and after a crash until it is made again.
    note: bytes | None = Field(sa_column=Column(LargeBinary))
    #: When it was signed; 0 before.
    signed_at: int = Field(sa_column=Column(BigInteger, nullable=False))


class LedgerExport(SQLModel, table=True):
    """How far an export of the ledger has come. Only `privyseal ledger export` writes here."""

    __tablename__ = "ledger_export"

    name: str = Field(sa_column=Column(Text, primary_key=True))
    #: The index of the first entry that was not handed over for certain.
    next: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: When it moved last, or when it was last seen that nothing was left to hand over.
    updated_at: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: Why it does not go on; NULL while it does.
    problem: str | None = Field(sa_column=Column(Text))

    __table_args__ = _CLUSTERED


class Issuer(SQLModel, table=True):
    """A CA key: the root or an issuing intermediate. ``id`` is the hex of its subject key identifier."""

    __tablename__ = "issuer"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    name: str = Field(sa_column=Column(Text, nullable=False, unique=True))
    #: ``root``; or ``pending`` (waits for its certificate), ``active``, ``retired``.
    state: str = Field(sa_column=Column(Text, nullable=False))
    key_uri: str = Field(sa_column=Column(Text, nullable=False))
    algorithm: str = Field(sa_column=Column(Text, nullable=False))
    #: The attributes read back from the token when the key was made (promise P1), as JSON.
    attestation: str = Field(sa_column=Column(Text, nullable=False))
    csr: bytes | None = Field(sa_column=Column(LargeBinary))
    #: Lower is preferred when a profile names no issuer.
    preference: int = Field(sa_column=Column(Integer, nullable=False))
    created: int = Field(sa_column=Column(BigInteger, nullable=False))


class IssuerChain(SQLModel, table=True):
    """A chain for an issuer: its certificate, then those above it up to the root. Position 0 is the default."""

    __tablename__ = "issuer_chain"

    issuer_id: str = Field(sa_column=Column(Text, primary_key=True))
    position: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    pem: str = Field(sa_column=Column(Text, nullable=False))


class Intent(SQLModel, table=True):
    """An issuance between its durable intent and its end (promise P2). Rows here after a start are unfinished."""

    __tablename__ = "intent"

    serial: str = Field(sa_column=Column(Text, primary_key=True))
    issuer_id: str = Field(sa_column=Column(Text, nullable=False))
    tbs_sha256: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    not_after: int = Field(sa_column=Column(BigInteger, nullable=False))
    requester: str = Field(sa_column=Column(Text, nullable=False))
    correlation: str = Field(sa_column=Column(Text, nullable=False))
    #: As in :class:`Certificate`.
    crl_shard: int | None = Field(sa_column=Column(Integer))

    __table_args__ = _CLUSTERED


class Certificate(SQLModel, table=True):
    """An issued certificate. ``serial`` is 32 lower-case hex digits."""

    __tablename__ = "certificate"

    serial: str = Field(sa_column=Column(Text, primary_key=True))
    issuer_id: str = Field(sa_column=Column(Text, nullable=False))
    profile: str = Field(sa_column=Column(Text, nullable=False))
    #: Who it was issued to: ``account:ID`` or ``service``.
    requester: str = Field(sa_column=Column(Text, nullable=False))
    #: Its names, each as ``type:value``, as a JSON list.
    names: str = Field(sa_column=Column(Text, nullable=False))
    not_before: int = Field(sa_column=Column(BigInteger, nullable=False))
    not_after: int = Field(sa_column=Column(BigInteger, nullable=False))
    spki_sha256: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    ledger_index: int = Field(sa_column=Column(BigInteger, nullable=False))
    der: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    #: The part of the issuer's CRL that the certificate names; NULL when it names none.
    crl_shard: int | None = Field(sa_column=Column(Integer))
    #: Whether it names the OCSP responder, so that responses are kept ready for it.
    ocsp: int = Field(sa_column=Column(Integer, nullable=False, server_default="0"))

    __table_args__ = (
        Index("ix_certificate_requester", "requester"),
        Index("ix_certificate_spki", "spki_sha256"),
        Index("ix_certificate_ledger", "ledger_index"),
        Index("ix_certificate_expiry", "not_after"),
    )


class Revocation(SQLModel, table=True):
    """A serial that is no longer to be trusted, whether or not a certificate with it was ever handed out (P4)."""

    __tablename__ = "revocation"

    issuer_id: str = Field(sa_column=Column(Text, primary_key=True))
    serial: str = Field(sa_column=Column(Text, primary_key=True))
    revoked_at: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: CRLReason (RFC 5280 section 5.3.1), or NULL when none was given.
    reason: int | None = Field(sa_column=Column(Integer))
    not_after: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: As in :class:`Certificate`.
    crl_shard: int | None = Field(sa_column=Column(Integer))
    #: Of its entry: what comes after an index has been revoked since. 0 for those from before there was this column.
    ledger_index: int = Field(sa_column=Column(BigInteger, nullable=False, server_default="0"))

    __table_args__ = (
        Index("ix_revocation_ledger", "ledger_index"),
        Index("ix_revocation_expiry", "issuer_id", "not_after", "serial"),
        Index("ix_revocation_shard", "issuer_id", "crl_shard", "not_after", "serial"),
        _CLUSTERED,
    )


class RevocationJob(SQLModel, table=True):
    """The revocation of many certificates at once, which may be interrupted and resumed."""

    __tablename__ = "revocation_job"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    created: int = Field(sa_column=Column(BigInteger, nullable=False))
    actor: str = Field(sa_column=Column(Text, nullable=False))
    correlation: str = Field(sa_column=Column(Text, nullable=False))
    reason: int = Field(sa_column=Column(Integer, nullable=False))
    #: What it is to hit, as JSON.
    selection: str = Field(sa_column=Column(Text, nullable=False))
    #: ``running``, ``finished`` or ``cancelled``.
    state: str = Field(sa_column=Column(Text, nullable=False))
    #: The serial up to which it is done.
    position: str = Field(sa_column=Column(Text, nullable=False))
    #: How many certificates it was to hit when it began, and how many it has revoked.
    total: int = Field(sa_column=Column(BigInteger, nullable=False))
    revoked: int = Field(sa_column=Column(BigInteger, nullable=False))

    __table_args__ = _CLUSTERED


class Crl(SQLModel, table=True):
    """The current CRL of one scope: an issuer and ``full`` or the number of a part."""

    __tablename__ = "crl"

    issuer_id: str = Field(sa_column=Column(Text, primary_key=True))
    scope: str = Field(sa_column=Column(Text, primary_key=True))
    #: crlNumber (RFC 5280 section 5.2.3); it only grows. 0 until the first is published.
    number: int = Field(sa_column=Column(BigInteger, nullable=False))
    this_update: int = Field(sa_column=Column(BigInteger, nullable=False))
    next_update: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: How many certificates it lists.
    entries: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: The size of the ledger whose revocations it has.
    through: int = Field(sa_column=Column(BigInteger, nullable=False))
    size: int = Field(sa_column=Column(BigInteger, nullable=False))
    sha256: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    #: Of the delta CRL of the same number: 0 and empty when there is none.
    delta_size: int = Field(sa_column=Column(BigInteger, nullable=False))
    delta_sha256: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    #: The CRL that deltas are relative to, and the one that they will be relative to when that is old enough.
    base_number: int = Field(sa_column=Column(BigInteger, nullable=False))
    base_through: int = Field(sa_column=Column(BigInteger, nullable=False))
    next_base_number: int = Field(sa_column=Column(BigInteger, nullable=False))
    next_base_through: int = Field(sa_column=Column(BigInteger, nullable=False))
    next_base_at: int = Field(sa_column=Column(BigInteger, nullable=False))

    __table_args__ = _CLUSTERED


class CrlPart(SQLModel, table=True):
    """A piece of a CRL's DER. Pieces of another number than the one in :class:`Crl` are being written or about to go."""

    __tablename__ = "crl_part"

    issuer_id: str = Field(sa_column=Column(Text, primary_key=True))
    scope: str = Field(sa_column=Column(Text, primary_key=True))
    number: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    #: 1 for those of the delta CRL.
    delta: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    position: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    der: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class OcspResponder(SQLModel, table=True):
    """The delegated OCSP responder of an issuer (RFC 6960 section 4.2.2.2)."""

    __tablename__ = "ocsp_responder"

    issuer_id: str = Field(sa_column=Column(Text, primary_key=True))
    key_uri: str = Field(sa_column=Column(Text, nullable=False))
    #: Its current certificate; NULL until the first is issued.
    der: bytes | None = Field(sa_column=Column(LargeBinary))
    not_after: int = Field(sa_column=Column(BigInteger, nullable=False))

    __table_args__ = _CLUSTERED


class OcspResponse(SQLModel, table=True):
    """A response that is kept ready."""

    __tablename__ = "ocsp_response"

    serial: str = Field(sa_column=Column(Text, primary_key=True))
    #: The hash of its CertID: ``sha1`` or ``sha256``.
    hash: str = Field(sa_column=Column(Text, primary_key=True))
    issuer_id: str = Field(sa_column=Column(Text, nullable=False))
    #: Whether it says that the certificate is revoked.
    revoked: int = Field(sa_column=Column(Integer, nullable=False))
    this_update: int = Field(sa_column=Column(BigInteger, nullable=False))
    next_update: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: When a newer one is to take its place.
    refresh_at: int = Field(sa_column=Column(BigInteger, nullable=False))
    der: bytes = Field(sa_column=Column(LargeBinary, nullable=False))

    __table_args__ = (Index("ix_ocsp_response_refresh", "refresh_at"), _CLUSTERED)


class BlockedKey(SQLModel, table=True):
    """A public key that is never certified again, as the SHA-256 of its SubjectPublicKeyInfo."""

    __tablename__ = "blocked_key"

    spki_sha256: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    reason: str = Field(sa_column=Column(Text, nullable=False))
    created: int = Field(sa_column=Column(BigInteger, nullable=False))

    __table_args__ = _CLUSTERED


class Secret(SQLModel, table=True):
    """A secret of the service itself, wrapped by a key in the token (promise P10)."""

    __tablename__ = "secret"

    name: str = Field(sa_column=Column(Text, primary_key=True))
    wrapped: bytes = Field(sa_column=Column(LargeBinary, nullable=False))

    __table_args__ = _CLUSTERED


class Fact(SQLModel, table=True):
    """A named fact about this authority, such as the URI of its wrapping key."""

    __tablename__ = "fact"

    name: str = Field(sa_column=Column(Text, primary_key=True))
    value: str = Field(sa_column=Column(Text, nullable=False))

    __table_args__ = _CLUSTERED


class SchedulerLease(SQLModel, table=True):
    """Who does the work that one process does for all: one row, ``scheduler``, taken and renewed by compare-and-set."""

    __tablename__ = "scheduler_lease"

    name: str = Field(sa_column=Column(Text, primary_key=True))
    #: A process's own random id; empty when the last one gave it up.
    holder: str = Field(sa_column=Column(Text, nullable=False))
    #: Grows whenever it is taken, by whomever: what an earlier holder still writes is known by it.
    fence: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: Until when nobody else takes it, by the holder's clock.
    until: int = Field(sa_column=Column(BigInteger, nullable=False))

    __table_args__ = _CLUSTERED


class JobRun(SQLModel, table=True):
    """How a piece of scheduled work goes. Only whoever leads writes here, but for ``asked``."""

    __tablename__ = "job_run"

    name: str = Field(sa_column=Column(Text, primary_key=True))
    #: ``leader``, or ``process`` for what every process does: this is then how it goes in the leader's.
    place: str = Field(sa_column=Column(Text, nullable=False))
    #: Milliseconds from one end to the next beginning.
    every: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: 0 while it was not.
    last_started: int = Field(sa_column=Column(BigInteger, nullable=False))
    last_finished: int = Field(sa_column=Column(BigInteger, nullable=False))
    last_succeeded: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: Of the last run, in milliseconds.
    duration: int = Field(sa_column=Column(BigInteger, nullable=False))
    failures: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: 0 after a success.
    failures_in_row: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: Why the last run failed; empty when it did not.
    problem: str = Field(sa_column=Column(Text, nullable=False))
    next_due: int = Field(sa_column=Column(BigInteger, nullable=False))
    #: How often somebody asked for a run, and up to which of them that was done, with its problem.
    asked: int = Field(sa_column=Column(BigInteger, nullable=False))
    answered: int = Field(sa_column=Column(BigInteger, nullable=False))
    answer: str = Field(sa_column=Column(Text, nullable=False))

    __table_args__ = _CLUSTERED
