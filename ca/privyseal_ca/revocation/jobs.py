"""The revocation of many certificates as a job, which may be interrupted at any moment and resumed.

Candidates are looked for outside of the transaction that revokes them, so that the database is held for milliseconds only.
Each transaction moves the job's position on by compare-and-set and revokes what lies before it: whoever else works on the same
job finds the position moved, and goes on from there.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import TypeVar

import orjson

from privyseal_ca.clock import Clock
from privyseal_ca.errors import PolicyError, StoreConflictError, StoreUnavailableError
from privyseal_ca.ledger.entries import Kind, Payload, encode_entry
from privyseal_ca.ledger.log import append, lock_head
from privyseal_ca.revocation.compromise import BATCH, revoke_rest_of_all
from privyseal_ca.revocation.revoke import (
    KEY_COMPROMISE,
    MAX_WITH_KEY,
    block_compromised_key,
    record_revocation,
    revoke_alive_with_key,
)
from privyseal_ca.revocation.selection import Selection
from privyseal_ca.store.certificates import CertificateRow, find_certificate, find_revocation
from privyseal_ca.store.engine import Store
from privyseal_ca.store.revoking import (
    JobRow,
    add_job,
    advance_job,
    count_revoked,
    end_job,
    find_job,
)
from privyseal_ca.store.statement import Transaction

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[object]]

RUNNING, FINISHED, CANCELLED = "running", "finished", "cancelled"
#: Seconds between tries while the database is busy or away.
_WAITS = (0.25, 0.5, 1, 2, 4, 8, 15)
#: Between batches others get the database for as long as the batch took, within these bounds in seconds.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5
#: How many candidates are looked for at a time: more than a batch, since finding them can mean sorting all that there are.
_PAGE = 5000


def skipped(job: JobRow) -> int:
    """How many of its certificates a job that has ended did not revoke: they expired, were revoked by others, or were left."""
    return max(0, job.total - job.revoked)


def require_job(transaction: Transaction, job_id: str) -> JobRow:
    """The job with the id.

    Raises:
        PolicyError: there is none.
    """
    row = find_job(transaction, job_id)
    if row is None:
        raise PolicyError(f"There is no job {job_id[:64]!r}.", hint="`privyseal cert jobs` lists them.")
    return row


async def start_job(
    store: Store,
    selection: Selection,
    *,
    job_id: str,
    reason: int,
    total: int,
    actor: str,
    correlation: str,
    now: float,
) -> JobRow:
    """Record that everything in ``selection`` is to be revoked; :func:`run_job` does it. ``total`` is what it names now.

    Raises:
        StoreError: the database failed.
    """
    row = JobRow(
        id=job_id,
        created=int(now),
        actor=actor,
        correlation=correlation,
        reason=reason,
        selection=orjson.dumps(selection.document()).decode(),
        state=RUNNING,
        position="",
        total=total,
        revoked=0,
    )
    payload: Payload = {"job": job_id, "selection": selection.document(), "reason": reason, "total": total}

    def unit(transaction: Transaction) -> None:
        add_job(transaction, row)
        append(
            transaction,
            encode_entry(Kind.REVOCATION_STARTED, time=now, actor=actor, correlation=correlation, payload=payload),
        )

    await store.write(unit)
    return row


async def cancel_job(store: Store, job_id: str, *, actor: str, correlation: str, now: float) -> JobRow:
    """End a job that runs, or would run again; what it has revoked stays revoked.

    Raises:
        PolicyError: there is none, or it has ended.
        StoreError: the database failed.
    """

    def unit(transaction: Transaction) -> JobRow:
        row = require_job(transaction, job_id)
        if not _end(transaction, job_id, CANCELLED, actor=actor, correlation=correlation, now=now):
            raise PolicyError(f"The job {job_id} is {row.state} already.")
        return require_job(transaction, job_id)

    return await store.write(unit)


async def run_job(
    store: Store,
    clock: Clock,
    job_id: str,
    *,
    progress: Callable[[JobRow], None] = lambda _: None,
    sleep: Sleep = asyncio.sleep,
) -> JobRow:
    """Do what is left of a job, until it has ended by this or another process; how it ended.

    Raises:
        PolicyError: there is no such job, or it was cancelled before.
        StoreUnavailableError: the database stayed away. The job can be resumed.
    """
    job = await _patiently(lambda: store.read(lambda tx: require_job(tx, job_id)), job_id, sleep)
    if job.state == CANCELLED:
        raise PolicyError(f"The job {job_id} was cancelled.", hint="Select what is left anew.")
    run = _Run(store, clock, Selection.load(job.selection))
    while job.state == RUNNING:
        progress(job)
        begun = perf_counter()
        job = await _patiently(partial(run.step, job), job_id, sleep)
        await sleep(min(max(perf_counter() - begun, _SHORTEST_PAUSE), _LONGEST_PAUSE))
    progress(job)
    return job


class _Run:
    """One process at work on one job."""

    def __init__(self, store: Store, clock: Clock, selection: Selection) -> None:
        self._store = store
        self._clock = clock
        self._selection = selection
        #: Candidates in the order of their serials.
        self._found: deque[tuple[str, str]] = deque()
        #: The job's position before the first of them.
        self._before: str | None = None

    async def step(self, job: JobRow) -> JobRow:
        """One batch, or the end; the job as it is then."""
        # After a failure it may be further than the caller knows: a commit whose answer was lost.
        job = await self._store.read(lambda tx: require_job(tx, job.id))
        if job.state != RUNNING:
            return job
        serials, position = await self._next(job)
        if position != job.position:
            return await self._store.write(lambda tx: self._revoke(tx, job, serials, position))
        if job.reason == KEY_COMPROMISE:
            more = await revoke_rest_of_all(self._store, self._clock, actor=job.actor, correlation=job.correlation)
            await self._store.write(lambda tx: count_revoked(tx, job.id, more))
        return await self._store.write(lambda tx: self._finish(tx, job))

    async def _next(self, job: JobRow) -> tuple[list[str], str]:
        """The serials of the next batch, and how far they go; the job's own position when nothing is left."""
        if not self._found or self._before != job.position:
            due = partial(self._selection.candidates.due, after=job.position, now=int(self._clock.now()), count=_PAGE)
            self._found = deque(await self._store.read(due))
        serials: list[str] = []
        position = job.position
        while self._found and len(serials) < BATCH:
            position, names = self._found.popleft()
            if self._selection.has_name(names):
                serials.append(position)
        self._before = position
        return serials, position

    def _revoke(self, transaction: Transaction, job: JobRow, serials: list[str], position: str) -> JobRow:
        """The unit of work of a batch."""
        lock_head(transaction)
        if advance_job(transaction, job, position):
            budget = MAX_WITH_KEY
            revoked = 0
            for serial in serials:
                certificate = find_certificate(transaction, serial)
                if certificate is None or not self._is_due(transaction, certificate):
                    continue
                others = self._revoke_one(transaction, job, certificate, budget)
                budget -= others
                revoked += 1 + others
            count_revoked(transaction, job.id, revoked)
        return require_job(transaction, job.id)

    def _is_due(self, transaction: Transaction, certificate: CertificateRow) -> bool:
        """Whether it neither expired nor was revoked since it was found."""
        if certificate.not_after <= self._clock.now():
            return False
        return find_revocation(transaction, certificate.issuer_id, certificate.serial) is None

    def _revoke_one(self, transaction: Transaction, job: JobRow, certificate: CertificateRow, budget: int) -> int:
        """Revoke ``certificate``; how many others with its compromised key were too, of which more may be left at the end."""
        now = self._clock.now()
        key, actor, correlation = certificate.spki_sha256, job.actor, job.correlation
        if job.reason == KEY_COMPROMISE:
            block_compromised_key(transaction, key, actor=actor, correlation=correlation, now=now)
        record_revocation(transaction, certificate, reason=job.reason, actor=actor, correlation=correlation, now=now)
        if job.reason != KEY_COMPROMISE or not budget:
            return 0
        return len(revoke_alive_with_key(transaction, key, actor=actor, correlation=correlation, now=now, count=budget))

    def _finish(self, transaction: Transaction, job: JobRow) -> JobRow:
        _end(transaction, job.id, FINISHED, actor=job.actor, correlation=job.correlation, now=self._clock.now())
        return require_job(transaction, job.id)


def _end(transaction: Transaction, job_id: str, state: str, *, actor: str, correlation: str, now: float) -> bool:
    if not end_job(transaction, job_id, state):
        return False
    job = require_job(transaction, job_id)
    payload: Payload = {"job": job_id, "revoked": job.revoked, "skipped": skipped(job), "state": state}
    append(
        transaction,
        encode_entry(Kind.REVOCATION_FINISHED, time=now, actor=actor, correlation=correlation, payload=payload),
    )
    return True


async def _patiently(work: Callable[[], Awaitable[T]], job_id: str, sleep: Sleep) -> T:
    """``work``, again and again while the database is busy or away, or another process was faster."""
    for seconds in _WAITS:
        try:
            return await work()
        except (StoreUnavailableError, StoreConflictError):
            await sleep(seconds)
    try:
        return await work()
    except (StoreUnavailableError, StoreConflictError) as error:
        raise StoreUnavailableError(
            error.message, hint=f"Nothing is lost: `privyseal cert revoke --resume {job_id}` goes on."
        ) from error
