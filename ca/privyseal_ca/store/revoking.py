"""Statements on what is to be revoked: selections of certificates, jobs, and blocked keys with what they still have."""

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, bindparam, exists, func, insert, literal_column, select, update

from privyseal_ca.store.certificates import CertificateRow
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import BlockedKey, Certificate, Revocation, RevocationJob

_certificate = Certificate.__table__  # type: ignore[attr-defined]
_revocation = Revocation.__table__  # type: ignore[attr-defined]
_job = RevocationJob.__table__  # type: ignore[attr-defined]
_blocked = BlockedKey.__table__  # type: ignore[attr-defined]

#: The requester of the authority's own certificates.
OWN_REQUESTER = "service"

_same_certificate = (_revocation.c.issuer_id == _certificate.c.issuer_id) & (
    _revocation.c.serial == _certificate.c.serial
)
_not_revoked = ~exists().where(_same_certificate).correlate(_certificate)

_ALIVE_WITH_KEY = Statement(
    select(_certificate)
    .where(
        _certificate.c.spki_sha256 == bindparam("spki_sha256"),
        _certificate.c.not_after > bindparam("now"),
        _not_revoked,
    )
    .order_by(_certificate.c.serial)
    .limit(bindparam("count"))
)
_COUNT_ALIVE_WITH_KEY = Statement(
    select(func.count())
    .select_from(_certificate)
    .where(
        _certificate.c.spki_sha256 == bindparam("spki_sha256"),
        _certificate.c.not_after > bindparam("now"),
        _not_revoked,
    )
)
_COUNT_BLOCKED = Statement(select(func.count()).select_from(_blocked))
_BLOCKED_PAGE = Statement(
    select(_blocked.c.spki_sha256)
    .where(_blocked.c.spki_sha256 > bindparam("after"))
    .order_by(_blocked.c.spki_sha256)
    .limit(bindparam("count"))
)
_BLOCKED_AND_ALIVE = Statement(
    select(_blocked.c.spki_sha256).where(
        _blocked.c.spki_sha256 > bindparam("after"),
        _blocked.c.spki_sha256 <= bindparam("last"),
        exists()
        .where(
            _certificate.c.spki_sha256 == _blocked.c.spki_sha256,
            _certificate.c.not_after > bindparam("now"),
            _not_revoked,
        )
        .correlate(_blocked),
    )
)
_ISSUED_TO_BLOCKED = Statement(
    select(_certificate.c.spki_sha256)
    .join(_blocked, _blocked.c.spki_sha256 == _certificate.c.spki_sha256)
    .where(_certificate.c.ledger_index >= bindparam("first"), _certificate.c.ledger_index < bindparam("end"))
    .distinct()
)

_INSERT_JOB = Statement(insert(_job))
_JOB = Statement(select(_job).where(_job.c.id == bindparam("wanted")))
_JOBS = Statement(select(_job).order_by(_job.c.created.desc(), _job.c.id).limit(bindparam("count")))
_ADVANCE = Statement(
    update(_job)
    .values(position=bindparam("new_position"))
    .where(_job.c.id == bindparam("wanted"), _job.c.state == "running", _job.c.position == bindparam("old_position"))
)
_COUNT_REVOKED = Statement(
    update(_job).values(revoked=_job.c.revoked + bindparam("more")).where(_job.c.id == bindparam("wanted"))
)
_END = Statement(
    update(_job).values(state=bindparam("new_state")).where(_job.c.id == bindparam("wanted"), _job.c.state == "running")
)


class MatchRow(NamedTuple):
    """What a preview shows of a certificate that a selection names, whatever became of it."""

    serial: str
    names: str
    profile: str
    requester: str
    not_after: int
    #: When it was revoked, or None.
    revoked_at: int | None


class Candidates:
    """The certificates that some columns select, in the order of their serials."""

    def __init__(
        self,
        *,
        requester: str | None,
        issuer_id: str | None,
        profile: str | None,
        spki_sha256: bytes | None,
        name_part: str,
        first: int,
        end: int,
    ) -> None:
        """``name_part``, in lower case, stands somewhere in the names; their entries are from ``first`` to before ``end``."""
        equal = {"requester": requester, "issuer_id": issuer_id, "profile": profile, "spki_sha256": spki_sha256}
        self._parameters: dict[str, Any] = {name: value for name, value in equal.items() if value is not None}
        conditions: list[ColumnElement[bool]] = [
            _certificate.c[name] == bindparam(name) for name, value in equal.items() if value is not None
        ]
        # Not by the ledger's index: that would sort everything in it for each page.
        ledger_index = _certificate.c.ledger_index + literal_column("0")
        conditions += [
            ledger_index >= bindparam("first"),
            ledger_index < bindparam("end"),
            _certificate.c.serial > bindparam("after"),
        ]
        self._parameters |= {"first": first, "end": end}
        if name_part:
            escaped = name_part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            conditions.append(func.lower(_certificate.c.names).like(bindparam("pattern"), escape="\\"))
            self._parameters["pattern"] = f"%{escaped}%"
        self._matching = Statement(
            select(
                _certificate.c.serial,
                _certificate.c.names,
                _certificate.c.profile,
                _certificate.c.requester,
                _certificate.c.not_after,
                _revocation.c.revoked_at,
            )
            .select_from(_certificate.outerjoin(_revocation, _same_certificate))
            .where(*conditions)
            .order_by(_certificate.c.serial)
            .limit(bindparam("count"))
        )
        if requester != OWN_REQUESTER:
            conditions.append(_certificate.c.requester != OWN_REQUESTER)
        self._due = Statement(
            select(_certificate.c.serial, _certificate.c.names)
            .where(*conditions, _certificate.c.not_after > bindparam("now"), _not_revoked)
            .order_by(_certificate.c.serial)
            .limit(bindparam("count"))
        )

    def matching(self, transaction: Transaction, *, after: str, count: int) -> list[MatchRow]:
        """Up to ``count`` of them after serial ``after``, the expired, the revoked and the authority's own included."""
        rows = transaction.all(self._matching, after=after, count=count, **self._parameters)
        return [MatchRow(*row) for row in rows]

    def due(self, transaction: Transaction, *, after: str, now: int, count: int) -> list[tuple[str, str]]:
        """Serial and names of up to ``count`` that can still be revoked, the authority's own only when asked for."""
        rows = transaction.all(self._due, after=after, now=now, count=count, **self._parameters)
        return [(row[0], row[1]) for row in rows]


class JobRow(NamedTuple):
    """A revocation of many; the fields are those of the table."""

    id: str
    created: int
    actor: str
    correlation: str
    reason: int
    selection: str
    state: str
    position: str
    total: int
    revoked: int


def add_job(transaction: Transaction, row: JobRow) -> None:
    """Record a job."""
    transaction.execute(_INSERT_JOB, **row._asdict())


def find_job(transaction: Transaction, job_id: str) -> JobRow | None:
    """The job with the id."""
    row = transaction.one(_JOB, wanted=job_id)
    return JobRow(*row) if row else None


def list_jobs(transaction: Transaction, *, count: int) -> list[JobRow]:
    """Up to ``count`` jobs, the newest first."""
    return [JobRow(*row) for row in transaction.all(_JOBS, count=count)]


def advance_job(transaction: Transaction, row: JobRow, position: str) -> bool:
    """Move a running job on to ``position``; False when it is not where ``row`` says any more, or has ended."""
    return transaction.execute(_ADVANCE, wanted=row.id, old_position=row.position, new_position=position) == 1


def count_revoked(transaction: Transaction, job_id: str, more: int) -> None:
    """Add to what a job has revoked."""
    transaction.execute(_COUNT_REVOKED, wanted=job_id, more=more)


def end_job(transaction: Transaction, job_id: str, state: str) -> bool:
    """End a running job as ``finished`` or ``cancelled``; False when it had ended before."""
    return transaction.execute(_END, wanted=job_id, new_state=state) == 1


def alive_with_key(transaction: Transaction, spki_sha256: bytes, *, now: int, count: int) -> list[CertificateRow]:
    """Up to ``count`` certificates for the key that are neither expired nor revoked."""
    rows = transaction.all(_ALIVE_WITH_KEY, spki_sha256=spki_sha256, now=now, count=count)
    return [CertificateRow(*row) for row in rows]


def count_alive_with_key(transaction: Transaction, spki_sha256: bytes, *, now: int) -> int:
    """How many certificates for the key are neither expired nor revoked."""
    row = transaction.one(_COUNT_ALIVE_WITH_KEY, spki_sha256=spki_sha256, now=now)
    return int(row[0]) if row else 0


def count_blocked_keys(transaction: Transaction) -> int:
    """How many keys are blocked. It only grows, so that an equal number means the same keys."""
    row = transaction.one(_COUNT_BLOCKED)
    return int(row[0]) if row else 0


def blocked_keys_with_certificates(
    transaction: Transaction, *, after: bytes, now: int, count: int
) -> tuple[bytes, list[bytes]] | None:
    """Of the next ``count`` blocked keys, the last one and those with a certificate that is alive; None after the last."""
    page = transaction.all(_BLOCKED_PAGE, after=after, count=count)
    if not page:
        return None
    last = bytes(page[-1][0])
    return last, [bytes(row[0]) for row in transaction.all(_BLOCKED_AND_ALIVE, after=after, last=last, now=now)]


def blocked_keys_certified(transaction: Transaction, *, first: int, end: int) -> list[bytes]:
    """The blocked keys in certificates whose entries are from ``first`` to before ``end``."""
    return [bytes(row[0]) for row in transaction.all(_ISSUED_TO_BLOCKED, first=first, end=end)]
