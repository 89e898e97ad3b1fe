"""Work that is due again and again: done in time, by one process or by each, and shown.

APScheduler decides when work begins that is due every few seconds or more seldom; each run plans the next, so that a clock
that leaps by a year makes work due once. What is due more often has a loop of its own, which costs nothing between its
turns. What one process does for all is done by the leader (:mod:`privyseal_acme.leases`), whose writes are refused once
another leads.

Every job is idempotent: it looks at what is there and does what is missing. Being done twice, or half, costs time only.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from privyseal_acme.background import Attempt
from privyseal_acme.leases import Leadership
from privyseal_ca.clock import Clock
from privyseal_ca.errors import JobFailedError, LeaseLostError, PrivySealError
from privyseal_ca.store.engine import Store
from privyseal_ca.store.scheduling import JobRow, all_jobs, answer_job, asked_jobs, remove_job, report_jobs
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

_log = structlog.get_logger("scheduler")

#: How often the lease, requests and the clock are looked at.
_TICK_SECONDS: Final = 1.0
#: Work that is due more often than this has a loop of its own.
_SHORT: Final = 5.0
#: The share of its interval by which work may be later, so that not everything is due at the same moment.
_JITTER: Final = 0.1
#: After a failure work is tried again after this many seconds, then after twice as many, and so on up to its interval.
_RETRY: Final = 5.0
#: So late, or so much too early, is work only where a clock was stepped or the process stood still.
_TOLERANCE: Final = 3.0
#: Characters of a problem that are kept.
_PROBLEM: Final = 500

LEADER: Final = "leader"
PROCESS: Final = "process"


@dataclass(frozen=True)
class Job:
    """A piece of work: ``every`` so many seconds, counted from its end."""

    name: str
    every: float
    work: Callable[[], Awaitable[object]]
    #: ``leader``, or ``process`` for what each process does for itself.
    place: str = LEADER
    #: After how many seconds it is stopped, to be tried again.
    limit: float = 3600.0

    @property
    def short(self) -> bool:
        """Whether it has a loop of its own."""
        return self.every < _SHORT


def _storable(problem: str) -> str:
    """``problem`` as every database takes it: what cannot be stored would be in the way of the lease's renewal as well."""
    return problem[:_PROBLEM].encode(errors="replace").decode().replace("\0", "?")


def _forget(name: str, transaction: Transaction) -> None:
    remove_job(transaction, name)


@dataclass
class _State:
    """How a job goes in this process."""

    job: Job
    row: JobRow
    attempt: Attempt
    #: One run at a time, whoever asks for it.
    running: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Whether one begins in the next turn of the loop.
    begins: bool = False
    #: Whether the row is another than what was stored last, and whether that should not wait for the next renewal.
    changed: bool = True
    urgent: bool = False
    refused: bool = False


class Scheduler:
    """The jobs of one process.

    ``random`` gives numbers from 0 to 1, ``sleep`` waits for so many seconds before the next look about, and before work
    that has a loop of its own; ``sole`` as in :meth:`Leadership.take`.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        leadership: Leadership,
        store: Store,
        clock: Clock,
        metrics: Metrics,
        *,
        random: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        sole: bool = False,
    ) -> None:
        self._leadership = leadership
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._random = random
        self._sleep = sleep
        self._sole = sole
        self._states = {job.name: self._state(job) for job in jobs}
        self._timer = AsyncIOScheduler(timezone=UTC)
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked: set[str] = set()
        #: The fence under which the leader's jobs were taken over.
        self._led: int | None = None

    def _state(self, job: Job) -> _State:
        self._metrics.job_failures.labels(job.name)
        row = JobRow(job.name, job.place, int(job.every * 1000))
        state = _State(job, row, Attempt(job.name, lambda: self._do(state)))
        return state

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Do the work inside the block. Leaving it stops what is under way, and gives the lease up."""
        self._timer.start()
        for state in self._states.values():
            if state.job.place == PROCESS:
                self._plan(state, self._delay(state))
        try:
            look = Attempt("scheduler", self._tick)
            await look()
            for state in self._states.values():
                if state.job.short:
                    self._begin(self._loop(state))
            self._begin(self._repeat(look))
            yield
        finally:
            self._timer.shutdown(wait=False)
            await asyncio.sleep(0)  # the timer ends in the next turn of the loop, and may begin something in this one
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._leadership.release()
            self._metrics.scheduler_leader.set(0)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # When work begins

    async def _repeat(self, look: Attempt) -> None:
        while True:
            await self._sleep(_TICK_SECONDS)
            await look()

    async def _loop(self, state: _State) -> None:
        while True:
            await self._sleep(state.job.every)
            if self._has(state) and not state.running.locked():
                await self._run(state)

    def _plan(self, state: _State, delay: float) -> None:
        """Have ``state``'s next run begin after ``delay`` seconds, and not at any other time that was planned before."""
        state.row = state.row._replace(next_due=int(self._clock.now() + delay))
        state.changed = True
        if not state.job.short:
            self._timer.add_job(
                self._due,
                "date",
                run_date=datetime.now(UTC) + timedelta(seconds=delay),
                args=[state],
                id=state.job.name,
                replace_existing=True,
                misfire_grace_time=None,
            )

    async def _due(self, state: _State) -> None:
        """Called by the timer, which is not to be the one who stops the work."""
        if self._has(state):
            self._start(state)

    def _start(self, state: _State) -> None:
        """Have a run begin in the next turn of the loop, unless one is under way or about to begin."""
        if not (state.begins or state.running.locked()):
            state.begins = True
            state.row = state.row._replace(next_due=int(self._clock.now()))
            state.changed = True
            self._begin(self._run_once(state))

    async def _run_once(self, state: _State) -> None:
        state.begins = False
        await self._run(state)

    def _delay(self, state: _State) -> float:
        every, failed = state.job.every, state.row.failures_in_row
        if failed:
            every = min(every, _RETRY * 2.0 ** min(failed - 1, 16))
        return every if state.job.short else every * (1 + _JITTER * self._random())

    def _has(self, state: _State) -> bool:
        """Whether the work is this process's own."""
        return state.job.place == PROCESS or self._leadership.leads

    def _misplanned(self, state: _State) -> bool:
        """Whether the next run is overdue or further away than it can be, by the clock as it is now."""
        now, due = self._clock.now(), state.row.next_due
        longest = state.job.every * (1 + _JITTER) + _TOLERANCE
        return not now - _TOLERANCE <= due <= now + longest

    # Doing it

    async def _run(self, state: _State) -> str:
        """Do the work now, or once the run that is under way has ended; its problem, or an empty text."""
        async with state.running:
            state.row = state.row._replace(last_started=int(self._clock.now()))
            begun, state.refused = time.monotonic(), False
            problem = _storable(await state.attempt())
            took = time.monotonic() - begun
            if not state.refused:
                self._note(state, problem, took)
            self._plan(state, self._delay(state))
            return problem

    def _note(self, state: _State, problem: str, took: float) -> None:
        row, now, name = state.row, int(self._clock.now()), state.job.name
        state.urgent = not state.job.short or bool(problem) != bool(row.problem)
        row = row._replace(last_finished=now, duration=int(took * 1000), problem=problem)
        if problem:
            row = row._replace(failures=row.failures + 1, failures_in_row=row.failures_in_row + 1)
            self._metrics.job_failures.labels(name).inc()
        else:
            row = row._replace(failures_in_row=0, last_succeeded=now)
            self._metrics.job_last_success.labels(name).set(now)
        self._metrics.job_duration.labels(name).set(took)
        state.row, state.changed = row, True

    async def _do(self, state: _State) -> None:
        """The work itself: for the leader refused its writes once another leads, and ended where it takes too long."""
        job = state.job
        try:
            with self._leadership.guarding() if job.place == LEADER else nullcontext():
                async with asyncio.timeout(job.limit) as limit:
                    await job.work()
        except LeaseLostError:
            # The other leader does it: nothing failed. The next look at the lease is to be soon.
            state.refused = state.urgent = True
            _log.info("work is left to the process that leads", work=job.name)
        except TimeoutError:
            if not limit.expired():
                raise
            raise JobFailedError(
                f"It was not done after {job.limit:.0f} seconds, and was stopped.", hint="It is tried again."
            ) from None

    # Who does it

    async def _tick(self) -> None:
        """Mend what a clock that stepped has put in the wrong place, renew or take the lease, and look for requests."""
        # First, and shown last in any case: neither needs the database, which may be away.
        for state in self._states.values():
            if not state.job.short and self._has(state) and self._misplanned(state):
                self._start(state)
        try:
            await self._lead()
        finally:
            self._metrics.scheduler_leader.set(self._leadership.leads)
        if self._leadership.leads:
            for name, ticket in (await self._store.read(asked_jobs)).items():
                if name in self._states and name not in self._asked:
                    self._asked.add(name)
                    self._begin(self._answer(self._states[name], ticket))

    async def _lead(self) -> None:
        if self._leadership.fence is None:
            # What another took from this one later is no leftover.
            self._sole = not await self._leadership.take(sole=self._sole) and self._sole
        elif self._leadership.renewal_due or any(state.urgent for state in self._states.values()):
            await self._report()
        if self._leadership.fence is not None and self._led != self._leadership.fence:
            await self._take_over()

    async def _report(self) -> None:
        """Renew the lease, and store what has changed."""
        changed = [(state, state.row) for state in self._states.values() if state.changed]
        try:
            await self._leadership.renew(row for _, row in changed)
        except LeaseLostError:
            self._step_down()
            return
        for state, row in changed:
            if state.row is row:
                state.changed = state.urgent = False

    def _step_down(self) -> None:
        self._led = None
        for state in self._states.values():
            if state.job.place == LEADER:
                for gauge in (self._metrics.job_last_success, self._metrics.job_duration):
                    gauge.remove(state.job.name)

    async def _take_over(self) -> None:
        """Go on where the leader before stopped: what is overdue begins at once, the rest when it is due."""
        fence = self._leadership.fence
        rows = {row.name: row for row in await self._store.read(all_jobs)}
        with self._leadership.guarding():
            for name in rows.keys() - self._states.keys():
                await self._store.write(partial(_forget, name))
        for name, state in self._states.items():
            state.changed = True
            if state.job.place != LEADER:
                continue
            before = rows.get(name)
            if before is not None:
                state.row = before._replace(place=state.row.place, every=state.row.every)
                if before.last_succeeded:
                    self._metrics.job_last_success.labels(name).set(before.last_succeeded)
            if before is None or self._misplanned(state):
                self._start(state)
            else:
                self._plan(state, max(0.0, state.row.next_due - self._clock.now()))
        self._led = fence
        await self._report()

    async def _answer(self, state: _State, ticket: int) -> None:
        """Do the work because somebody asked for it, and tell them how it went. What cannot be told is done again."""
        name = state.job.name
        try:
            problem = await self._run(state)
            if state.refused:
                return
            row = state.row

            def unit(transaction: Transaction) -> None:
                report_jobs(transaction, [row])
                answer_job(transaction, name, ticket, problem)

            with self._leadership.guarding():
                await self._store.write(unit)
        except PrivySealError as error:
            _log.warning("who asked for a job is not told how it went yet", work=name, error=str(error))
        finally:
            self._asked.discard(name)
