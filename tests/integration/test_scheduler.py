"""Schedulers on one database: one leads, another follows, nothing is done twice where that would matter, all of it is shown."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import insert, select
from structlog.testing import capture_logs

from fakes.service import FakeClock
from privyseal_acme import scheduler as module
from privyseal_acme.leases import Leadership
from privyseal_acme.scheduler import PROCESS, Job, Scheduler
from privyseal_ca.errors import LeaseLostError, SignerUnavailableError, StoreUnavailableError
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.scheduling import JobRow, all_jobs, ask_for_job, find_job, find_lease, report_jobs
from privyseal_ca.store.statement import Statement
from privyseal_ca.store.tables import Fact
from privyseal_ca.telemetry.metrics import Metrics

_LEASE = 30.0
_PATIENCE = 10.0
_fact = Fact.__table__  # type: ignore[attr-defined]
_ADD = Statement(insert(_fact))
_NAMES = Statement(select(_fact.c.name))

Work = Callable[[], Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers look about themselves often."""
    monkeypatch.setattr(module, "_TICK_SECONDS", 0.02)


async def until(true: Callable[[], Any]) -> None:
    """Wait until ``true()``, which may be a coroutine, is so."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        found = true()
        if found if not asyncio.iscoroutine(found) else await found:
            return
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


class Runs:
    """Work that counts its runs and ends as it is told."""

    def __init__(self, *outcomes: Exception) -> None:
        self.count = 0
        self.outcomes = list(outcomes)

    async def __call__(self) -> None:
        self.count += 1
        if self.outcomes:
            raise self.outcomes.pop(0)


class World:
    """One database, one clock on the wall, and processes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = FakeClock()
        self.stores: list[Store] = []
        self.stack = contextlib.AsyncExitStack()

    async def store(self) -> Store:
        store = Store(backend_for(self.url, durable=False, timeout=5), queue=256)
        await store.open()
        self.stores.append(store)
        return store

    async def scheduler(self, holder: str, jobs: Iterable[Job], *, store: Store | None = None) -> Scheduler:
        store = store or await self.store()
        leadership = Leadership(store, self.clock, holder=holder, seconds=_LEASE)
        return Scheduler(jobs, leadership, store, self.clock, Metrics(), random=lambda: 0.5)

    async def start(self, holder: str, jobs: Iterable[Job], *, store: Store | None = None) -> Scheduler:
        scheduler = await self.scheduler(holder, jobs, store=store)
        await self.stack.enter_async_context(scheduler.running())
        return scheduler

    async def row(self, name: str) -> JobRow:
        row = await self.stores[0].read(lambda tx: find_job(tx, name))
        assert row is not None
        return row

    async def holder(self) -> str:
        row = await self.stores[0].read(find_lease)
        return row.holder if row else ""


@pytest_asyncio.fixture
async def world(migrated_url: str) -> AsyncIterator[World]:
    world = World(migrated_url)
    yield world
    await world.stack.aclose()
    for store in world.stores:
        await store.close()


def halt(scheduler: Scheduler) -> None:
    """What SIGKILL leaves of a scheduler: nothing runs on, nothing is given up."""
    scheduler._timer.pause()
    for task in list(scheduler._tasks):
        task.cancel()


def metric(scheduler: Scheduler, name: str, **labels: str) -> float | None:
    return scheduler._metrics.registry.get_sample_value(name, labels)


async def test_one_leads_and_the_other_follows_when_it_was_killed(world: World) -> None:
    short, long, own = Runs(), Runs(), Runs()
    jobs = [Job("short", 0.02, short), Job("long", 3600, long)]
    first = await world.start("first", jobs)
    await until(lambda: short.count > 2 and long.count == 1)
    theirs = Runs(), Runs()
    second = await world.start(
        "second", [Job("short", 0.02, theirs[0]), Job("long", 3600, theirs[1]), Job("own", 0.02, own, PROCESS)]
    )
    await until(lambda: own.count > 5)
    assert (theirs[0].count, theirs[1].count) == (0, 0)
    assert metric(first, "privyseal_scheduler_leader") == 1
    assert metric(second, "privyseal_scheduler_leader") == 0

    halt(first)
    world.clock.advance(_LEASE - 2)
    seen = own.count
    await until(lambda: own.count > seen + 5)
    assert theirs[0].count == 0
    world.clock.advance(3)
    await until(lambda: theirs[0].count > 2)
    assert metric(second, "privyseal_scheduler_leader") == 1
    assert await world.holder() == "second"
    # It was done not an hour ago.
    assert theirs[1].count == 0


async def test_who_stops_gives_the_lease_up(world: World) -> None:
    first = await world.scheduler("first", [])
    async with first.running():
        await until(world.holder)
    assert await world.holder() == ""
    work = Runs()
    await world.start("second", [Job("work", 3600, work)])
    await until(lambda: work.count)


async def test_a_paused_leader_wakes_and_its_writes_are_refused(world: World) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    refused: list[Exception] = []
    store = await world.store()

    async def work() -> None:
        begun.set()
        await go_on.wait()
        try:
            await store.write(lambda tx: tx.execute(_ADD, name="of the first", value=""))
        except LeaseLostError as error:
            refused.append(error)
            raise

    first = await world.start("first", [Job("work", 3600, work)], store=store)
    await begun.wait()
    (looking,) = [task for task in first._tasks if "repeat" in repr(task)]
    looking.cancel()
    other = Runs()
    world.clock.advance(_LEASE + 1)
    second = await world.start("second", [Job("work", 3600, other)])
    await until(lambda: other.count == 1)
    await until(lambda: not second._states["work"].changed)

    with capture_logs() as logs:
        go_on.set()
        await until(lambda: refused)
        await first._tick()
    assert first._leadership.fence is None
    names = await store.read(lambda tx: {name for (name,) in tx.all(_NAMES)})
    assert "of the first" not in names
    # That is no failure of the work, neither here nor in what the leader shows.
    assert "background work failed" not in {line["event"] for line in logs}
    assert metric(first, "privyseal_job_failures_total", job="work") == 0
    assert metric(first, "privyseal_job_last_success_seconds", job="work") is None
    assert (await world.row("work")).failures == 0


async def test_a_leader_whose_lease_was_taken_follows(world: World) -> None:
    mine = Runs()
    first = await world.start("first", [Job("work", 0.02, mine)])
    await until(lambda: mine.count)
    thief = Leadership(await world.store(), world.clock, holder="thief", seconds=_LEASE)
    assert await thief.take(sole=True)
    first._leadership._renewed = float("-inf")
    await until(lambda: first._leadership.fence is None)
    seen = mine.count
    await asyncio.sleep(0.1)
    assert mine.count <= seen + 1
    await thief.release()
    await until(lambda: mine.count > seen + 1)


async def test_what_is_overdue_after_downtime_is_done_once_at_once(world: World) -> None:
    store = await world.store()
    now = int(world.clock.now())
    rows = [
        JobRow("overdue", "leader", 60_000, last_succeeded=now - 90_000, failures=3, next_due=now - 86_400),
        JobRow("later", "leader", 3_600_000, last_succeeded=now - 60, next_due=now + 3540),
        JobRow("ahead", "leader", 60_000, last_succeeded=now - 60, next_due=now + 86_400),
        JobRow("gone", "leader", 60_000),
    ]
    await store.write(lambda tx: report_jobs(tx, rows))
    overdue, later, ahead, new = Runs(), Runs(), Runs(), Runs()
    jobs = [Job("overdue", 60, overdue), Job("later", 3600, later), Job("ahead", 60, ahead), Job("new", 60, new)]
    scheduler = await world.start("first", jobs, store=store)
    await until(lambda: overdue.count and ahead.count and new.count)
    await until(lambda: not any(state.changed for state in scheduler._states.values()))
    await asyncio.sleep(0.2)
    assert (overdue.count, later.count, ahead.count, new.count) == (1, 0, 1, 1)
    assert (await world.row("overdue")).failures == 3
    assert (await world.row("overdue")).next_due == now + 63
    assert (await world.row("later")).next_due == now + 3540
    assert [row.name for row in await store.read(all_jobs)] == ["ahead", "later", "new", "overdue"]


@pytest.mark.parametrize("step", [365 * 86_400, 7200, -7200, -365 * 86_400])
async def test_a_clock_that_steps_makes_work_due_once(world: World, step: float) -> None:
    work, own = Runs(), Runs()
    await world.start("first", [Job("work", 3600, work), Job("own", 3600, own, PROCESS)])
    await until(lambda: work.count == 1)
    assert own.count == 0
    world.clock.advance(step)
    await until(lambda: work.count == 2 and own.count == 1)
    await asyncio.sleep(0.2)
    assert (work.count, own.count) == (2, 1)


async def test_a_clock_that_steps_while_the_database_is_away(world: World) -> None:
    """What a process does for itself goes on, and nobody says that it leads whose lease has ended."""
    store, own = await world.store(), Runs()
    scheduler = await world.start("first", [Job("own", 3600, own, PROCESS)], store=store)
    assert metric(scheduler, "privyseal_scheduler_leader") == 1
    store.refusal = lambda: StoreUnavailableError("The disk is full.")
    scheduler._leadership._renewed = scheduler._leadership._sure_until = float("-inf")
    world.clock.advance(-7200)
    await until(lambda: own.count == 1)
    await until(lambda: metric(scheduler, "privyseal_scheduler_leader") == 0)
    store.refusal = None
    await until(lambda: metric(scheduler, "privyseal_scheduler_leader") == 1)


async def test_a_clock_that_steps_a_little_changes_nothing(world: World) -> None:
    work = Runs()
    await world.start("first", [Job("work", 3600, work)])
    await until(lambda: work.count == 1)
    for step in (-60, 30, 100):
        world.clock.advance(step)
        await asyncio.sleep(0.1)
    assert work.count == 1


async def test_failing_work_is_shown_and_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY", 0.5)
    work = Runs(SignerUnavailableError("The token is away."), RuntimeError("a secret detail"))
    scheduler = await world.start("first", [Job("work", 3600, work)])

    async def shown(problem: str, in_row: int) -> bool:
        row = await world.row("work")
        return (row.problem, row.failures_in_row) == (problem, in_row)

    await until(lambda: shown("The token is away.", 1))
    await until(lambda: shown("RuntimeError", 2))
    await until(lambda: shown("", 0))
    row = await world.row("work")
    assert (row.failures, row.last_succeeded) == (2, int(world.clock.now()))
    assert metric(scheduler, "privyseal_job_failures_total", job="work") == 2
    assert metric(scheduler, "privyseal_job_last_success_seconds", job="work") == int(world.clock.now())


async def test_a_problem_that_no_database_takes_costs_nobody_the_lease(world: World) -> None:
    work = Runs(SignerUnavailableError("The token \0\udcff is away."))
    scheduler = await world.start("first", [Job("work", 3600, work)])

    async def shown() -> bool:
        return (await world.row("work")).problem == "The token ?? is away."

    await until(shown)
    await until(lambda: not any(state.urgent for state in scheduler._states.values()))
    assert scheduler._leadership.leads


async def test_work_that_was_cut_short_from_inside_is_done_again(world: World) -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            gone = asyncio.get_running_loop().create_future()
            gone.cancel()
            await gone

    scheduler = await world.start("first", [Job("work", 0.02, work)])
    await until(lambda: runs > 2)
    assert metric(scheduler, "privyseal_job_failures_total", job="work") == 1


async def test_work_that_does_not_end_is_stopped_and_shown(world: World) -> None:
    forever = asyncio.Event()
    await world.start("first", [Job("work", 3600, forever.wait, limit=0.05)])

    async def stopped() -> bool:
        return "was stopped" in (await world.row("work")).problem

    await until(stopped)


async def test_who_asks_gets_a_run_and_its_outcome(world: World) -> None:
    store = await world.store()
    work = Runs()
    await world.start("first", [Job("work", 3600, work), Job("own", 3600, work, PROCESS)], store=store)
    await until(lambda: work.count == 1)
    assert await store.write(lambda tx: ask_for_job(tx, "nothing")) is None

    async def answered(name: str, ticket: int) -> bool:
        return (await world.row(name)).answered >= ticket

    for name in ("work", "own"):
        work.outcomes = [SignerUnavailableError("The token is away.")]
        ticket = await store.write(lambda tx, name=name: ask_for_job(tx, name))
        assert ticket == 1
        await until(lambda name=name: answered(name, 1))
        row = await world.row(name)
        assert row.answer == row.problem == "The token is away."
        assert await store.write(lambda tx, name=name: ask_for_job(tx, name)) == 2
        await until(lambda name=name: answered(name, 2))
        assert (await world.row(name)).answer == ""


async def test_what_was_asked_of_a_leader_that_was_killed_is_done_by_the_next(world: World) -> None:
    store = await world.store()
    stuck, work = asyncio.Event(), Runs()
    first = await world.start("first", [Job("work", 3600, stuck.wait)], store=store)
    await until(first._states["work"].running.locked)
    assert await store.write(lambda tx: ask_for_job(tx, "work")) == 1
    halt(first)
    world.clock.advance(_LEASE + 1)
    await world.start("second", [Job("work", 3600, work)])

    async def answered() -> bool:
        return (await world.row("work")).answered == 1

    await until(answered)
    assert work.count >= 1


async def test_never_two_runs_of_one_job_at_once(world: World) -> None:
    store = await world.store()
    inside, most = 0, 0

    async def work() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.03)
        inside -= 1

    await world.start("first", [Job("work", 0.01, work)], store=store)
    await until(lambda: most)
    for _ in range(5):
        await store.write(lambda tx: ask_for_job(tx, "work"))
        await asyncio.sleep(0.02)

    async def answered() -> bool:
        return (await world.row("work")).answered == 5

    await until(answered)
    assert most == 1


async def test_short_work_does_not_write_each_time(world: World) -> None:
    work = Runs()
    store = await world.store()
    scheduler = await world.start("first", [Job("work", 0.001, work)], store=store)
    await until(lambda: not scheduler._states["work"].urgent)
    commits, seen = store._commits, work.count
    await until(lambda: work.count > seen + 30)
    assert store._commits - commits <= 2
