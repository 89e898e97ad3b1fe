"""A database that is only read: without a trace in it, under another user, on PostgreSQL without any right but SELECT."""

import asyncio
import multiprocessing
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fakes.postgresql import Postgresql
from privyseal_ca.config import Settings
from privyseal_ca.errors import PrivySealError, StoreUnavailableError
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact, set_fact
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.readonly import reading

_STRANGER = 65534


def settings_for(url: str) -> Settings:
    return Settings(database={"url": url})


async def writer_of(url: str) -> Store:
    store = Store(backend_for(url, durable=True, timeout=5), queue=16)
    await store.open()
    return store


async def fact(store: Store, name: str = "name") -> str | None:
    return await store.read(lambda tx: find_fact(tx, name))


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}


async def test_it_sees_what_others_write_and_writes_nothing(migrated_url: str) -> None:
    writer = await writer_of(migrated_url)
    async with reading(settings_for(migrated_url)) as store:
        assert store.available
        assert await fact(store) is None
        await writer.write(lambda tx: set_fact(tx, "name", "one"))
        assert await fact(store) == "one"
        with pytest.raises(StoreUnavailableError, match="only reads"):
            await store.write(lambda tx: set_fact(tx, "name", "two"))
        with pytest.raises(PrivySealError):
            await store.read(lambda tx: set_fact(tx, "name", "two"))
        assert await fact(store) == "one"
        await writer.write(lambda tx: set_fact(tx, "name", "three"))
        assert await fact(store) == "three"
    await writer.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database in a folder of its own that nobody has open."""
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder / "store.db")
    return folder / "store.db"


def make(file: Path) -> None:
    """A database in WAL mode, as every writer of ours leaves it."""
    migrate(url_of(file))
    backend_for(url_of(file), durable=True, timeout=5).connect(writing=True).close()


def url_of(file: Path) -> str:
    return f"sqlite:///{file}"


async def test_it_leaves_no_trace(file: Path) -> None:
    before = listing(file.parent)
    async with reading(settings_for(url_of(file))) as store:
        assert await fact(store) is None
        assert listing(file.parent) == before
    assert listing(file.parent) == before


async def test_it_notices_that_somebody_begins_to_write_and_ends(file: Path) -> None:
    async with reading(settings_for(url_of(file))) as store:
        assert await fact(store) is None
        for value in ("one", "two"):
            writer = await writer_of(url_of(file))
            await writer.write(lambda tx, value=value: set_fact(tx, "name", value))  # type: ignore[misc]
            assert await fact(store) == value
            await writer.close()
            assert await fact(store) == value


async def test_a_read_that_meets_a_first_change_is_made_again(file: Path) -> None:
    async with reading(settings_for(url_of(file))) as store:
        seen: list[str | None] = []

        def unit(transaction: Any) -> str | None:
            seen.append(find_fact(transaction, "name"))
            if len(seen) == 1:
                with closing(sqlite3.connect(file)) as other:
                    other.execute("INSERT INTO fact VALUES ('name', 'meanwhile')")
                    other.commit()
            return find_fact(transaction, "name")

        assert await store.read(unit) == "meanwhile"
        assert len(seen) == 2


async def test_the_service_can_start_and_stop_beside_it(file: Path) -> None:
    async with reading(settings_for(url_of(file))) as store:
        assert await fact(store) is None
        writer = await writer_of(url_of(file))
        lock = writer.lock_service()
        migrate(url_of(file))
        assert await fact(store) is None
        lock.close()
        await writer.close()


async def test_another_file_in_its_place_is_noticed(file: Path, tmp_path: Path) -> None:
    restored = tmp_path / "restored.db"
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(restored)) as target:
        source.backup(target)
        target.execute("INSERT INTO fact VALUES ('name', 'restored')")
        target.commit()
    writer = await writer_of(url_of(file))
    async with reading(settings_for(url_of(file))) as store:
        assert await fact(store) is None
        await writer.close()
        for path in file.parent.iterdir():
            if path != file:
                path.unlink()
        restored.replace(file)
        assert await fact(store) == "restored"


async def test_a_file_that_is_gone_and_comes_back(file: Path, tmp_path: Path) -> None:
    async with reading(settings_for(url_of(file))) as store:
        shutil.move(file, tmp_path / "elsewhere")
        with pytest.raises(StoreUnavailableError, match="No such file"):
            await fact(store)
        assert not store.available
        shutil.copy(tmp_path / "elsewhere", file)
        assert await fact(store) is None
        assert store.available


@pytest.mark.parametrize("content", [None, b"no database at all" * 100])
async def test_what_is_no_database_is_said_so(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "store.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreUnavailableError):
        async with reading(settings_for(url_of(path))) as store:
            await fact(store)
    assert path.exists() == (content is not None)


def _as_stranger(work: Callable[[], None]) -> None:
    """Run ``work`` in a process of a user who may read and nothing else."""

    def child() -> None:
        os.setgid(_STRANGER)
        os.setuid(_STRANGER)
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0


@pytest.fixture
def open_file() -> Iterator[Path]:
    """A database that everyone may read, and its folder, in which nobody else may write."""
    folder = Path(os.path.realpath("/tmp")) / f"privyseal-status-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        file = folder / "store.db"
        make(file)
        file.chmod(0o644)
        yield file
    finally:
        shutil.rmtree(folder)


def _read_as_stranger(file: Path, expected: str | None) -> None:
    async def look() -> None:
        async with reading(settings_for(f"sqlite:///{file}")) as store:
            found = await store.read(lambda tx: find_fact(tx, "name"))
            assert found == expected, found
            with pytest.raises(StoreUnavailableError):
                await store.write(lambda tx: set_fact(tx, "name", "x"))

    asyncio.run(look())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_another_user_reads_it_whether_or_not_it_is_in_use(open_file: Path) -> None:
    _as_stranger(lambda: _read_as_stranger(open_file, None))
    assert {path.name for path in open_file.parent.iterdir()} == {"store.db"}
    writer = await writer_of(url_of(open_file))
    await writer.write(lambda tx: set_fact(tx, "name", "one"))
    assert {path.name for path in open_file.parent.iterdir()} == {"store.db", "store.db-wal", "store.db-shm"}
    _as_stranger(lambda: _read_as_stranger(open_file, "one"))
    await writer.close()
    _as_stranger(lambda: _read_as_stranger(open_file, "one"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_another_user_reads_it_after_a_crash(open_file: Path) -> None:
    def crash() -> None:
        connection = sqlite3.connect(open_file)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.execute("INSERT INTO fact VALUES ('name', 'last')")
        connection.commit()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=crash)
    process.start()
    process.join(60)
    assert (open_file.parent / "store.db-wal").exists()
    _as_stranger(lambda: _read_as_stranger(open_file, "last"))


@pytest.mark.postgresql
async def test_select_is_the_only_right_that_it_needs(postgresql: Postgresql) -> None:
    url = postgresql.new_database()
    migrate(url)
    writer = await writer_of(url)
    await writer.write(lambda tx: set_fact(tx, "name", "one"))
    postgresql.administer("DROP ROLE IF EXISTS status_reader")
    postgresql.administer("CREATE ROLE status_reader LOGIN")
    with closing(backend_for(url, durable=True, timeout=5).connect(writing=True)) as connection:
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO status_reader")
    reader_url = url.replace("privyseal@", "status_reader@")
    assert reader_url != url
    try:
        async with reading(settings_for(reader_url)) as store:
            assert await fact(store) == "one"
            with pytest.raises(StoreUnavailableError):
                await store.write(lambda tx: set_fact(tx, "name", "two"))
    finally:
        await writer.close()
        with closing(backend_for(url, durable=True, timeout=5).connect(writing=True)) as connection:
            connection.execute("DROP OWNED BY status_reader")
        postgresql.administer("DROP ROLE status_reader")


@pytest.mark.postgresql
async def test_a_server_that_is_away_is_said_so_and_found_again(postgresql: Postgresql) -> None:
    url = postgresql.new_database()
    migrate(url)
    async with reading(settings_for(url)) as store:
        postgresql.stop()
        try:
            with pytest.raises(StoreUnavailableError):
                await fact(store)
            with pytest.raises(StoreUnavailableError):
                async with reading(settings_for(url)):
                    pass
        finally:
            postgresql.start()
        assert await fact(store) is None
