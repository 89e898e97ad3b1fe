"""Units of work on SQLite and PostgreSQL: the same promises on both (P3, P5, P7, P12)."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import bindparam, insert, select

from fakes.postgresql import Postgresql
from fakes.store_faults import FaultyBackend, once, open_faulty, raising
from privyseal_ca.errors import LedgerError, ServiceLockLostError, StoreConflictError, StoreError, StoreUnavailableError
from privyseal_ca.ledger.log import append
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import Fact

_fact = Fact.__table__  # type: ignore[attr-defined]
_ADD = Statement(insert(_fact))
_FIND = Statement(select(_fact.c.value).where(_fact.c.name == bindparam("name")))
_NAMES = Statement(select(_fact.c.name))


def add(name: str, value: str = "v") -> Callable[[Transaction], str]:
    def unit(transaction: Transaction) -> str:
        transaction.execute(_ADD, name=name, value=value)
        return name

    return unit


def names(transaction: Transaction) -> set[str]:
    return {row[0] for row in transaction.all(_NAMES)}


@pytest.fixture
def url(migrated_url: str) -> str:
    return migrated_url


@pytest.fixture
def backend(url: str) -> FaultyBackend:
    return FaultyBackend(url)


@pytest_asyncio.fixture
async def store(backend: FaultyBackend) -> AsyncIterator[Store]:
    store = open_faulty(backend)
    await store.open()
    yield store
    await store.close()


def stored(url: str) -> set[str]:
    """What somebody else sees: a connection of its own."""
    backend: Any = backend_for(url, durable=True, timeout=5)
    with contextlib.closing(backend.connect(writing=False)) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM fact").fetchall()}


@contextlib.contextmanager
def locked(url: str) -> Iterator[None]:
    """Another process's transaction that nothing can be written beside."""
    backend: Any = backend_for(url, durable=True, timeout=5)
    with contextlib.closing(backend.connect(writing=True)) as connection:
        connection.execute(backend.begin)
        if not backend.inline:
            connection.execute("LOCK TABLE fact IN EXCLUSIVE MODE")
        yield
        connection.execute("ROLLBACK")


async def settle(*coroutines: Any) -> list[Any]:
    """The results or errors of all."""
    return await asyncio.gather(*coroutines, return_exceptions=True)


async def test_units_that_arrive_together_share_a_commit(store: Store, backend: FaultyBackend, url: str) -> None:
    results = await settle(*(store.write(add(f"n{number}")) for number in range(200)))
    assert results == [f"n{number}" for number in range(200)]
    assert backend.counts["COMMIT"] <= 2
    assert stored(url) == set(results)


async def test_units_that_arrive_during_a_commit_share_the_next(store: Store, backend: FaultyBackend) -> None:
    late: list[asyncio.Task[str]] = []
    gate = threading.Event()
    loop = asyncio.get_running_loop()

    def more() -> None:
        late.extend(loop.create_task(store.write(add(f"late{number}"))) for number in range(50))
        loop.call_soon(gate.set)

    def in_commit() -> None:
        loop.call_soon_threadsafe(more)
        assert gate.wait(10)

    backend.before["COMMIT"] = once(in_commit)
    await store.write(add("first"))
    await asyncio.gather(*late)
    assert len(late) == 50
    assert backend.counts["COMMIT"] == 2


async def test_a_unit_that_fails_spoils_no_other(store: Store, url: str) -> None:
    await store.write(add("taken"))

    def refuses(transaction: Transaction) -> None:
        transaction.execute(_ADD, name="half", value="v")
        raise LedgerError("no")

    def breaks(transaction: Transaction) -> None:
        transaction.execute(_ADD, name="broken", value="v")
        raise ZeroDivisionError

    units = [add("a"), refuses, add("b"), add("taken", "secret"), add("c"), breaks, add("d")]
    results = await settle(*(store.write(unit) for unit in units))
    assert [results[0], results[2], results[4], results[6]] == ["a", "b", "c", "d"]
    assert isinstance(results[1], LedgerError)
    assert isinstance(results[3], StoreConflictError)
    assert isinstance(results[5], ZeroDivisionError)
    assert "secret" not in str(results[3])
    assert stored(url) == {"taken", "a", "b", "c", "d"}


async def test_two_units_of_a_group_that_want_the_same(store: Store, url: str) -> None:
    results = await settle(*(store.write(add("same", str(number))) for number in range(5)))
    assert [isinstance(result, StoreConflictError) for result in results] == [False, True, True, True, True]
    assert stored(url) == {"same"}


@pytest.mark.parametrize("error", [LedgerError("no"), ZeroDivisionError()])
async def test_a_lone_unit_that_fails_is_undone(store: Store, url: str, error: Exception) -> None:
    def unit(transaction: Transaction) -> None:
        transaction.execute(_ADD, name="half", value="v")
        raise error

    with pytest.raises(type(error)) as raised:
        await store.write(unit)
    assert raised.value is error
    with pytest.raises(StoreConflictError):
        await asyncio.gather(store.write(add("x")), store.write(add("x")))
    assert stored(url) == {"x"}
    assert store.available


async def test_reads_see_what_write_has_returned_for(store: Store) -> None:
    async def one(name: str) -> None:
        await store.write(add(name))
        assert await store.read(lambda tx: tx.one(_FIND, name=name)) == ("v",)

    await asyncio.gather(*(one(f"n{number}") for number in range(40)))


async def test_a_read_sees_one_state(store: Store, url: str) -> None:
    """However many statements it has: what another process commits meanwhile shows in the next."""
    seen: list[set[str]] = []

    def unit(transaction: Transaction) -> None:
        seen.append(names(transaction))
        other: Any = backend_for(url, durable=True, timeout=5)
        with contextlib.closing(other.connect(writing=True)) as connection:
            connection.execute("INSERT INTO fact VALUES ('between', 'v')")
        seen.append(names(transaction))

    await store.read(unit)
    assert seen == [set(), set()]
    assert await store.read(names) == {"between"}


async def test_an_exception_from_a_read_passes_through(store: Store) -> None:
    def unit(transaction: Transaction) -> None:
        raise LedgerError("no")

    for _ in range(5):
        with pytest.raises(LedgerError):
            await store.read(unit)
    assert await store.read(names) == set()


async def test_the_queue_is_bounded(backend: FaultyBackend, url: str) -> None:
    store = open_faulty(backend, queue=16)
    await store.open()
    with locked(url):
        first = asyncio.ensure_future(store.write(add("first")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the writer has taken it out of the queue
        waiting = [asyncio.ensure_future(store.write(add(f"n{number}"))) for number in range(16)]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailableError, match="Too many"):
            await store.write(add("refused"))
    assert await first == "first"
    assert len(await asyncio.gather(*waiting)) == 16
    assert "refused" not in stored(url)
    await store.close()


async def test_a_lock_of_another_process_is_waited_for_off_the_loop(store: Store, url: str) -> None:
    """The loop's turns go on while a write waits, and so do reads."""
    gaps: list[float] = []
    with locked(url):
        writing = asyncio.ensure_future(store.write(add("patient")))
        last = monotonic()
        while len(gaps) < 150:
            await asyncio.sleep(0.001)
            gaps.append(monotonic() - last)
            last = monotonic()
        assert await store.read(names) == set()
        assert not writing.done()
    assert await writing == "patient"
    assert max(gaps) < 0.25


async def test_a_lock_that_outlasts_the_time_limit(url: str) -> None:
    backend = FaultyBackend(url, timeout=0.3)
    store = open_faulty(backend)
    await store.open()
    with locked(url):
        begun = monotonic()
        first = asyncio.ensure_future(store.write(add("first")))
        await asyncio.sleep(0.05)
        others = await settle(*(store.write(add(f"n{number}")) for number in range(600)))
        # Three groups' worth of units: each group does not wait for a time limit of its own.
        assert monotonic() - begun < 2
        assert {type(error) for error in [*others, *(await settle(first))]} == {StoreUnavailableError}
        assert len(set(map(id, others))) == len(others)
        assert not store.available
    assert await store.write(add("after")) == "after"
    assert store.available
    assert stored(url) == {"after"}
    await store.close()


async def test_a_commit_that_fails_fails_every_unit_of_its_group(
    store: Store, backend: FaultyBackend, url: str
) -> None:
    backend.before["COMMIT"] = raising(backend.errors("the disk is gone"))
    results = await settle(*(store.write(add(f"n{number}")) for number in range(10)))
    assert all(isinstance(error, StoreUnavailableError) for error in results)
    assert not store.available
    assert stored(url) == set()
    assert await store.write(add("after")) == "after"
    assert store.available
    assert stored(url) == {"after"}


async def test_a_commit_that_fails_after_it_was_written(store: Store, backend: FaultyBackend, url: str) -> None:
    """Nobody is told of success, and whoever looks finds it."""
    backend.after["COMMIT"] = raising(backend.errors("the answer was lost"))
    with pytest.raises(StoreUnavailableError):
        await store.write(add("uncertain"))
    assert await store.read(names) == {"uncertain"}
    with pytest.raises(StoreConflictError):
        await store.write(add("uncertain"))
    assert await store.write(add("after")) == "after"


async def test_a_driver_that_raises_what_it_should_not(store: Store, backend: FaultyBackend) -> None:
    """The writer lives on, whatever is thrown at it."""
    for hooks in (backend.before, backend.after):
        hooks["COMMIT"] = raising(RuntimeError("never seen before"))
        with pytest.raises(StoreError):
            await store.write(add("lost"))
        del hooks["COMMIT"]
    assert await store.write(add("after")) == "after"


async def test_a_connection_that_cannot_be_had_again_at_once(store: Store, backend: FaultyBackend, url: str) -> None:
    backend.before["COMMIT"] = raising(backend.errors("gone"))
    backend.before["CONNECT"] = raising(StoreUnavailableError("still gone"))
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            await store.write(add("lost"))
        assert not store.available
    assert await store.write(add("after")) == "after"
    assert stored(url) == {"after"}


async def test_a_connection_that_died_idle_costs_nobody_anything(store: Store, backend: FaultyBackend) -> None:
    def dead() -> None:
        if backend.counts["CONNECT"] == 1:
            raise backend.errors("died in its sleep")

    backend.before["BEGIN"] = dead
    assert await store.write(add("first")) == "first"
    assert backend.counts["CONNECT"] == 2


async def test_closing_waits_for_what_is_queued(backend: FaultyBackend, url: str) -> None:
    store = open_faulty(backend)
    await store.open()
    assert store.available
    writes = [asyncio.ensure_future(store.write(add(f"n{number}"))) for number in range(300)]
    await asyncio.sleep(0)
    await store.close()
    assert all(write.done() for write in writes)
    assert len(stored(url)) == 300
    assert not store.available
    with pytest.raises(StoreUnavailableError, match="stopping"):
        await store.write(add("late"))


async def test_a_waiter_that_is_cancelled(store: Store, backend: FaultyBackend, url: str) -> None:
    """Its unit runs all the same, and the others of the group hear of their ends."""
    loop = asyncio.get_running_loop()
    writes = [asyncio.ensure_future(store.write(add(f"n{number}"))) for number in range(3)]

    def cancel() -> None:
        loop.call_soon_threadsafe(writes[1].cancel)

    backend.before["COMMIT"] = once(cancel)
    results = await settle(*writes)
    assert results[0] == "n0"
    assert results[2] == "n2"
    assert stored(url) == {"n0", "n1", "n2"}
    assert await store.write(add("after")) == "after"


async def test_one_service_for_one_database(url: str) -> None:
    first, second = (open_faulty(FaultyBackend(url)) for _ in range(2))
    held = first.lock_service()
    with pytest.raises(StoreUnavailableError, match="Another privyseal service"):
        second.lock_service()
    held.close()
    second.lock_service().close()


async def test_the_claim_of_a_service_holds(url: str) -> None:
    lock = open_faulty(FaultyBackend(url)).lock_service()
    try:
        lock.keep()
        lock.keep()
    finally:
        lock.close()


_WRITER = """
import asyncio, os, signal, sys
sys.path[:0] = sys.argv[2:]
from test_store_engine import *
async def main():
    store = open_faulty(FaultyBackend(sys.argv[1]))
    await store.open()
    for number in range(20):
        for name in await asyncio.gather(*(store.write(add(f"n{number}-{each}")) for each in range(10))):
            print(name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def test_what_was_acknowledged_outlives_the_process(url: str) -> None:
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    done = subprocess.run([sys.executable, "-c", _WRITER, url, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(done.stdout.split()) == 200
    assert stored(url) == set(done.stdout.split())


@pytest.mark.postgresql
class TestPostgresqlOutages:
    """The server goes away and comes back; nothing here is started again."""

    @pytest.fixture
    def url(self, postgresql: Postgresql) -> str:
        url = postgresql.new_database()
        migrate(url)
        return url

    async def test_a_restart_between_two_requests(self, postgresql: Postgresql, store: Store) -> None:
        await store.write(add("before"))
        await asyncio.gather(*(store.read(names) for _ in range(8)))
        postgresql.restart()
        assert await asyncio.gather(*(store.read(names) for _ in range(8))) == [{"before"}] * 8
        assert await store.write(add("after")) == "after"
        assert await store.read(names) == {"before", "after"}

    async def test_the_claim_of_a_service_is_renewed_after_a_restart(self, postgresql: Postgresql, url: str) -> None:
        first, second = backend_for(url, durable=True, timeout=5), backend_for(url, durable=True, timeout=5)
        lock = first.lock_service()
        postgresql.stop()
        with pytest.raises(StoreUnavailableError):
            lock.keep()
        postgresql.start()
        lock.keep()
        with pytest.raises(StoreUnavailableError, match="Another privyseal service"):
            second.lock_service()
        lock.close()

    async def test_the_claim_of_a_service_is_lost_to_a_faster_one(self, postgresql: Postgresql, url: str) -> None:
        first, second = backend_for(url, durable=True, timeout=5), backend_for(url, durable=True, timeout=5)
        lock = first.lock_service()
        postgresql.restart()
        other = second.lock_service()
        for _ in range(2):
            with pytest.raises(ServiceLockLostError, match="Another privyseal service"):
                lock.keep()
        lock.close()
        other.keep()
        other.close()

    async def test_away_and_back(self, postgresql: Postgresql, store: Store) -> None:
        await store.write(add("before"))
        postgresql.stop()
        for _ in range(2):
            for attempt in (store.write(add("lost")), store.read(names)):
                with pytest.raises(StoreUnavailableError) as raised:
                    await attempt
                assert "\n" not in str(raised.value)
        assert not store.available
        postgresql.start()
        assert await store.write(add("after")) == "after"
        assert await store.read(names) == {"before", "after"}
        assert store.available

    async def test_killed_in_the_middle_of_a_transaction(self, postgresql: Postgresql, store: Store, url: str) -> None:
        def unit(transaction: Transaction) -> None:
            transaction.execute(_ADD, name="half", value="v")
            postgresql.administer(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'privyseal'"
            )

        results = await settle(store.write(add("beside")), store.write(unit), store.write(add("too")))
        assert all(isinstance(error, StoreUnavailableError) for error in results)
        assert await store.write(add("after")) == "after"
        assert stored(url) == {"after"}

    async def test_a_server_that_does_not_answer(self, postgresql: Postgresql, url: str) -> None:
        """No packet comes back, not even a reset: only a time limit of our own ends that."""
        store = open_faulty(FaultyBackend(url, timeout=0.2))
        await store.open()
        await store.write(add("before"))
        await store.read(names)
        with postgresql.frozen():
            begun = monotonic()
            results = await settle(store.write(add("lost")), store.read(names))
            assert monotonic() - begun < 10
            assert all(isinstance(error, StoreUnavailableError) for error in results)
        assert await store.write(add("after")) == "after"
        assert await store.read(names) >= {"before", "after"}
        await store.close()

    async def test_a_value_that_it_cannot_hold(self, store: Store) -> None:
        """A unit's own fault: trying again would be of no use, and the others are not concerned."""
        results = await settle(store.write(add("a")), store.write(add("n\0l")), store.write(add("b")))
        assert results[0::2] == ["a", "b"]
        assert type(results[1]) is StoreError
        assert store.available

    async def test_a_server_that_is_read_only(self, postgresql: Postgresql, store: Store, url: str) -> None:
        name = url.rsplit("/", 1)[1]
        postgresql.administer(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        postgresql.restart()
        with pytest.raises(StoreUnavailableError, match="read-only"):
            await store.write(add("lost"))
        assert not store.available
        assert await store.read(names) == set()
        postgresql.administer(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
        postgresql.restart()
        assert await store.write(add("after")) == "after"

    async def test_a_lock_in_the_middle_of_a_group(self, url: str) -> None:
        """Locks are met one by one, and a group does not wait once for each of its units."""
        backend = FaultyBackend(url, timeout=0.3)
        store = open_faulty(backend)
        await store.open()
        with locked(url):
            begun = monotonic()
            units: list[Callable[[Transaction], Any]] = [names, *(add(f"n{number}") for number in range(20))]
            results = await settle(*(store.write(unit) for unit in units))
            assert monotonic() - begun < 2
        assert all(isinstance(error, StoreUnavailableError) for error in results)
        assert await store.write(add("after")) == "after"
        await store.close()


async def test_sqlites_log_is_written_back_while_the_store_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    migrate(f"sqlite:///{path}")
    store = Store(backend_for(f"sqlite:///{path}", durable=True, timeout=5), queue=1000)
    await store.open()
    try:
        largest = 0
        for _ in range(1500):
            await store.write(lambda tx: append(tx, b"x" * 2000))
            largest = max(largest, path.with_name("log.db-wal").stat().st_size)
    finally:
        await store.close()
    # Each commit logs some pages of 4 KiB; without writing back, 1,500 of them would log more than twelve megabytes.
    assert largest < 8 * 1024 * 1024
    assert not path.with_name("log.db-wal").exists()
