"""Statements on scheduled work: the lease of whoever does it, and one row for each job.

The lease is never waited for: whoever finds its row locked by another process is refused at once. So no order of locks
can make two processes wait for each other, whatever else is in their transactions.
"""

from typing import Final, NamedTuple

from sqlalchemy import bindparam, delete, insert, select, update

from privyseal_ca.errors import LeaseLostError
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import JobRun, SchedulerLease

#: The one lease there is.
LEASE: Final = "scheduler"
#: How many jobs are listed at most; a service has about twenty.
_JOBS: Final = 200

_lease = SchedulerLease.__table__  # type: ignore[attr-defined]
_job = JobRun.__table__  # type: ignore[attr-defined]

_OURS = _lease.c.name == bindparam("wanted")
_FIND_LEASE = Statement(select(_lease).where(_OURS))
_ADD_LEASE = Statement(insert(_lease))
# SQLite has one writer at a time and knows no locks on rows: these are left out there.
_LOCK_LEASE = Statement(select(_lease).where(_OURS).with_for_update(skip_locked=True))
_HOLD_LEASE = Statement(
    select(_lease.c.fence)
    .where(_OURS, _lease.c.holder == bindparam("by"), _lease.c.fence == bindparam("at"))
    .with_for_update(read=True, skip_locked=True)
)
_SET_LEASE = Statement(
    update(_lease)
    .values(holder=bindparam("to"), fence=bindparam("next"), until=bindparam("end"))
    .where(_OURS, _lease.c.holder == bindparam("by"), _lease.c.fence == bindparam("at"))
)

_ALL_JOBS = Statement(select(_job).order_by(_job.c.name).limit(_JOBS))
_FIND_JOB = Statement(select(_job).where(_job.c.name == bindparam("wanted")))
_ADD_JOB = Statement(insert(_job))
_REMOVE_JOB = Statement(delete(_job).where(_job.c.name == bindparam("wanted")))
_REPORT = Statement(
    update(_job)
    .values(
        {
            column: bindparam(f"new_{column.name}")
            for column in _job.c
            if column.name not in {"name", "asked", "answered", "answer"}
        }
    )
    .where(_job.c.name == bindparam("wanted"))
)
_ASK = Statement(update(_job).values(asked=_job.c.asked + 1).where(_job.c.name == bindparam("wanted")))
_ANSWER = Statement(
    update(_job)
    .values(answered=bindparam("ticket"), answer=bindparam("text"))
    .where(_job.c.name == bindparam("wanted"), _job.c.answered < bindparam("ticket"))
)
_ASKED = Statement(select(_job.c.name, _job.c.asked).where(_job.c.asked > _job.c.answered).limit(_JOBS))


class LeaseRow(NamedTuple):
    """The lease; the fields are those of the table."""

    name: str
    holder: str
    fence: int
    until: int


class JobRow(NamedTuple):
    """A job; the fields are those of the table."""

    name: str
    place: str
    every: int
    last_started: int = 0
    last_finished: int = 0
    last_succeeded: int = 0
    duration: int = 0
    failures: int = 0
    failures_in_row: int = 0
    problem: str = ""
    next_due: int = 0
    asked: int = 0
    answered: int = 0
    answer: str = ""


def find_lease(transaction: Transaction) -> LeaseRow | None:
    """The lease as it stands; None before anybody took it."""
    row = transaction.one(_FIND_LEASE, wanted=LEASE)
    return LeaseRow(*row) if row else None


def take_lease(transaction: Transaction, seen: LeaseRow | None, holder: str, until: int) -> int | None:
    """Take the lease from the holder of ``seen``, or make it where there was none; its new fence.

    None when it is not as it was seen any more, or somebody changes it or writes by it just now.

    Raises:
        StoreConflictError: two made it at once, and the other was first.
    """
    if seen is None:
        if find_lease(transaction) is not None:
            return None
        transaction.execute(_ADD_LEASE, name=LEASE, holder=holder, fence=1, until=until)
        return 1
    row = transaction.one(_LOCK_LEASE, wanted=LEASE)
    if row is None or LeaseRow(*row) != seen:
        return None
    fence = seen.fence + 1
    transaction.execute(_SET_LEASE, wanted=LEASE, by=seen.holder, at=seen.fence, to=holder, next=fence, end=until)
    return fence


def renew_lease(transaction: Transaction, holder: str, fence: int, until: int) -> None:
    """Hold the lease until ``until``.

    Raises:
        LeaseLostError: another has it.
    """
    hold_lease(transaction, holder, fence)
    transaction.execute(_SET_LEASE, wanted=LEASE, by=holder, at=fence, to=holder, next=fence, end=until)


def release_lease(transaction: Transaction, holder: str, fence: int) -> None:
    """Give the lease up, where it is still held; the next one need not wait."""
    if transaction.one(_HOLD_LEASE, wanted=LEASE, by=holder, at=fence) is not None:
        transaction.execute(_SET_LEASE, wanted=LEASE, by=holder, at=fence, to="", next=fence, end=0)


def hold_lease(transaction: Transaction, holder: str, fence: int) -> None:
    """Make sure, to the end of this transaction, that nobody else has the lease.

    Raises:
        LeaseLostError: another has it, or takes it just now.
    """
    if transaction.one(_HOLD_LEASE, wanted=LEASE, by=holder, at=fence) is None:
        raise LeaseLostError(
            "Another process leads now: what this one began as the leader is not written.",
            hint="Nothing to do: the other does this work. `privyseal job list` shows it.",
        )


def all_jobs(transaction: Transaction) -> list[JobRow]:
    """Every job, by name."""
    return [JobRow(*row) for row in transaction.all(_ALL_JOBS)]


def find_job(transaction: Transaction, name: str) -> JobRow | None:
    """The job called ``name``."""
    row = transaction.one(_FIND_JOB, wanted=name)
    return JobRow(*row) if row else None


def report_jobs(transaction: Transaction, rows: list[JobRow]) -> None:
    """Store how jobs go; those that are new are added. What was asked for is left as it is."""
    for row in rows:
        fields = {f"new_{name}": value for name, value in row._asdict().items()}
        for name in ("new_name", "new_asked", "new_answered", "new_answer"):
            del fields[name]
        if not transaction.execute(_REPORT, wanted=row.name, **fields):
            transaction.execute(_ADD_JOB, **row._replace(asked=0, answered=0, answer="")._asdict())


def remove_job(transaction: Transaction, name: str) -> None:
    """Forget a job that there is no more."""
    transaction.execute(_REMOVE_JOB, wanted=name)


def ask_for_job(transaction: Transaction, name: str) -> int | None:
    """Ask for a run of ``name`` as soon as may be; the ticket to wait for, None when there is no such job."""
    if not transaction.execute(_ASK, wanted=name):
        return None
    row = find_job(transaction, name)
    return row.asked if row else None


def asked_jobs(transaction: Transaction) -> dict[str, int]:
    """The jobs that somebody asked for and that were not run since, with the newest ticket."""
    return {name: int(asked) for name, asked in transaction.all(_ASKED)}


def answer_job(transaction: Transaction, name: str, ticket: int, problem: str) -> None:
    """Tell everyone who has a ticket up to ``ticket`` how the run went; ``problem`` is empty when it went well."""
    transaction.execute(_ANSWER, wanted=name, ticket=ticket, text=problem)
