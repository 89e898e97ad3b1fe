"""The lease: at no time can two processes write for the leader, whatever their clocks say. On SQLite and PostgreSQL."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select

from fakes.postgresql import Postgresql
from fakes.service import FakeClock
from privyseal_acme.leases import Leadership
from privyseal_ca.errors import LeaseLostError, LedgerBehindError
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.scheduling import JobRow, all_jobs, find_lease
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import Fact, SchedulerLease

_SECONDS = 10.0
_fact = Fact.__table__  # type: ignore[attr-defined]
_ADD = Statement(insert(_fact))
_NAMES = Statement(select(_fact.c.name).where(_fact.c.value == "lease"))
_FORGET_FACTS = Statement(delete(_fact))
_FORGET = Statement(delete(SchedulerLease.__table__))  # type: ignore[attr-defined]


def add(name: str) -> Callable[[Transaction], object]:
    return lambda tx: tx.execute(_ADD, name=name, value="lease")


class Member:
    """A process with a clock, and a time since its start, of its own."""

    def __init__(self, store: Store, name: str, clock: FakeClock | None = None) -> None:
        self.store = store
        self.clock = clock or FakeClock(1_000_000)
        self.passed = 0.0
        self.leadership = Leadership(store, self.clock, holder=name, seconds=_SECONDS, monotonic=lambda: self.passed)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.passed += seconds

    async def write(self, name: str) -> bool:
        """Write as the leader would; whether it was let."""
        try:
            with self.leadership.guarding():
                await self.store.write(add(name))
        except LeaseLostError:
            return False
        return True


async def opened(url: str) -> Store:
    store = Store(backend_for(url, durable=False, timeout=5), queue=256)
    await store.open()
    return store


@pytest_asyncio.fixture
async def stores(migrated_url: str) -> AsyncIterator[list[Store]]:
    """Three processes' views of one database."""
    stores = [await opened(migrated_url) for _ in range(3)]
    yield stores
    for store in stores:
        await store.close()


async def test_one_of_many_gets_it(stores: list[Store]) -> None:
    for store in stores:
        assert await store.read(find_lease) is None
    members = [Member(stores[number % 3], f"m{number}") for number in range(9)]
    won = await asyncio.gather(*(member.leadership.take() for member in members))
    assert won.count(True) == 1
    (leader,) = [member for member in members if member.leadership.leads]
    assert [await member.write(f"w{number}") for number, member in enumerate(members)] == won
    row = await stores[0].read(find_lease)
    assert row is not None
    assert (f"m{members.index(leader)}", 1) == (row.holder, row.fence)


async def test_another_takes_over_after_it_has_ended_and_not_before(stores: list[Store]) -> None:
    first, second = Member(stores[0], "first"), Member(stores[1], "second")
    assert await first.leadership.take()
    for _ in range(9):
        second.pass_time(1)
        assert not await second.leadership.take()
    second.pass_time(1)
    assert await second.leadership.take()
    assert second.leadership.fence == 2


async def test_a_renewed_one_is_left_alone(stores: list[Store]) -> None:
    clock = FakeClock(1_000_000)
    first, second = Member(stores[0], "first", clock), Member(stores[1], "second", clock)
    assert await first.leadership.take()
    for _ in range(20):
        first.pass_time(_SECONDS / 3)
        second.passed += _SECONDS / 3
        assert first.leadership.renewal_due
        await first.leadership.renew()
        assert not await second.leadership.take()


async def test_one_that_was_given_up_is_taken_at_once(stores: list[Store]) -> None:
    first, second = Member(stores[0], "first"), Member(stores[1], "second")
    assert await first.leadership.take()
    await first.leadership.release()
    assert not first.leadership.leads
    assert not await first.write("late")
    assert await second.leadership.take()
    assert second.leadership.fence == 2


async def test_who_is_alone_need_not_wait(stores: list[Store]) -> None:
    killed, alone = Member(stores[0], "killed"), Member(stores[1], "alone")
    assert await killed.leadership.take()
    assert await alone.leadership.take(sole=True)
    assert not await killed.write("late")
    assert await alone.write("new")


async def test_a_paused_leader_that_wakes_writes_nothing(stores: list[Store]) -> None:
    first, second = Member(stores[0], "first"), Member(stores[1], "second")
    assert await first.leadership.take()
    with first.leadership.guarding():
        await stores[0].write(add("before"))
        second.pass_time(_SECONDS)
        assert await second.leadership.take()
        with pytest.raises(LeaseLostError):
            await stores[0].write(add("after"))
        # Nor do tasks that it begins.
        with pytest.raises(LeaseLostError):
            await asyncio.create_task(stores[0].write(add("in a task")))
    # What it writes for itself is no concern of the lease, nor what others write in the same group.
    outcomes = await asyncio.gather(first.write("grouped"), stores[0].write(add("own")))
    assert outcomes[0] is False
    with pytest.raises(LeaseLostError):
        await first.leadership.renew([JobRow("job", "leader", 1000)])
    assert first.leadership.fence is None
    assert await stores[2].read(all_jobs) == []
    names = await stores[2].read(lambda tx: {row[0] for row in tx.all(_NAMES)})
    assert names == {"before", "own"}


async def test_who_takes_it_back_does_not_revive_what_was_refused(stores: list[Store]) -> None:
    first, second = Member(stores[0], "first"), Member(stores[1], "second")
    assert await first.leadership.take()
    work_of_the_first_term = first.leadership.guarding()
    assert await second.leadership.take(sole=True)
    assert await first.leadership.take(sole=True)
    assert first.leadership.fence == 3
    with work_of_the_first_term, pytest.raises(LeaseLostError):
        await stores[0].write(add("of the first term"))


async def test_what_is_still_its_own_is_not_waited_for(stores: list[Store]) -> None:
    """The answer to a taking was lost, or the row was locked for a moment when it was renewed."""
    first, second = Member(stores[0], "first"), Member(stores[1], "second")
    assert await first.leadership.take()
    work_of_the_first_term = first.leadership.guarding()
    first.leadership.lose()
    assert not await second.leadership.take()
    assert await first.leadership.take()
    assert first.leadership.fence == 2
    with work_of_the_first_term, pytest.raises(LeaseLostError):
        await stores[0].write(add("of the first term"))


async def test_a_database_that_must_not_be_changed_keeps_nobody_from_stopping(stores: list[Store]) -> None:
    member = Member(stores[0], "first")
    assert await member.leadership.take()
    stores[0].refusal = lambda: LedgerBehindError("It was put back.")
    await member.leadership.release()
    assert member.leadership.fence is None
    row = await stores[0].read(find_lease)
    assert row is not None
    assert row.holder == "first", "nothing was written"


async def test_a_clock_that_is_ahead_costs_a_change_and_no_more(stores: list[Store]) -> None:
    right, ahead = Member(stores[0], "right"), Member(stores[1], "ahead", FakeClock(9_000_000))
    assert await right.leadership.take()
    assert await ahead.leadership.take()
    assert (await right.write("a"), await ahead.write("b")) == (False, True)
    right.leadership.lose()
    for _ in range(50):
        right.pass_time(1)
        ahead.pass_time(1)
        await ahead.leadership.renew()
        assert not await right.leadership.take()


async def test_a_lease_that_ends_in_a_far_future_is_not_waited_for(stores: list[Store]) -> None:
    ahead, right = Member(stores[0], "ahead", FakeClock(9_000_000)), Member(stores[1], "right")
    assert await ahead.leadership.take()
    assert not await right.leadership.take()
    right.pass_time(_SECONDS - 1)
    assert not await right.leadership.take()
    right.pass_time(1)
    assert await right.leadership.take()
    assert not await ahead.write("late")


async def test_a_leader_that_cannot_renew_says_that_it_does_not_lead(stores: list[Store]) -> None:
    member = Member(stores[0], "first")
    assert await member.leadership.take()
    member.passed += _SECONDS - 1
    assert member.leadership.leads
    member.passed += 1
    assert not member.leadership.leads
    await member.leadership.renew()
    assert member.leadership.leads


@pytest.mark.parametrize(
    ("lock", "shared"),
    [("SELECT * FROM scheduler_lease FOR SHARE", True), ("SELECT * FROM scheduler_lease FOR UPDATE", False)],
)
async def test_nobody_waits_for_a_lock_on_it(postgresql: Postgresql, lock: str, shared: bool) -> None:
    """Two processes whose groups hold other locks could otherwise wait for each other."""
    url = postgresql.new_database()
    migrate(url)
    store = await opened(url)
    backend: Any = backend_for(url, durable=True, timeout=5)
    first, second = Member(store, "first"), Member(store, "second")
    assert await first.leadership.take()
    with contextlib.closing(backend.connect(writing=True)) as connection:
        connection.execute("BEGIN")
        connection.execute(lock)
        async with asyncio.timeout(2):
            assert not await second.leadership.take(sole=True)
            assert await first.write("beside") is shared
        connection.execute("ROLLBACK")
    assert await first.write("after")
    await store.close()


_STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.one_of(
            st.sampled_from(["take", "take", "renew", "release"]),
            st.sampled_from([1.0, 5.0, 10.0, 40.0]),
            st.sampled_from([-3600, -7, 7, 3600]),
        ),
    ),
    min_size=5,
    max_size=40,
)


@given(_STEPS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_never_two_that_may_write(migrated_url: str, steps: list[tuple[int, str | float | int]]) -> None:
    """However times pass, clocks step and leases are taken: the only one who can write is the one who took it last."""

    asyncio.run(_play(migrated_url, steps))


async def _play(url: str, steps: list[tuple[int, str | float | int]]) -> None:
    stores = [await opened(url) for _ in range(3)]
    await stores[0].write(lambda tx: tx.execute(_FORGET))
    await stores[0].write(lambda tx: tx.execute(_FORGET_FACTS))
    members = [Member(store, f"m{number}") for number, store in enumerate(stores)]
    fences = [0]
    try:
        for number, (who, step) in enumerate(steps):
            member = members[who]
            if isinstance(step, float):
                for each in members:
                    each.pass_time(step)
            elif isinstance(step, int):
                member.clock.advance(step)
            elif step == "take":
                if member.leadership.fence is None and await member.leadership.take():
                    fences.append(member.leadership.fence or 0)
            elif step == "renew":
                with contextlib.suppress(LeaseLostError):
                    await member.leadership.renew()
            else:
                await member.leadership.release()
            assert fences == sorted(set(fences))
            written = [await each.write(f"{number}-{index}") for index, each in enumerate(members)]
            assert written.count(True) <= 1
            if True in written:
                assert members[written.index(True)].leadership.fence == fences[-1]
    finally:
        for store in stores:
            await store.close()
