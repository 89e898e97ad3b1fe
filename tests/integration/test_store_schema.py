"""The schema that migrations make is the one that the tables describe, on both databases; and the ledger under concurrency."""

import asyncio
import subprocess
import sys
from collections import Counter

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect
from sqlmodel import SQLModel

import privyseal_ca.store.tables  # noqa: F401 (both put their tables into the metadata)
from privyseal_ca.errors import StoreUnavailableError
from privyseal_ca.ledger.entries import Kind, decode_entry, encode_entry
from privyseal_ca.ledger.log import StoredEntry, append, entries, lock_head, size
from privyseal_ca.ledger.tree import TreeHasher, leaf_hash
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.migrate import migrate, schema_is_current

_PROCESSES, _ENTRIES = 2, 150


def _engine_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def test_migrations_make_what_the_tables_describe(migrated_url: str) -> None:
    engine = create_engine(_engine_url(migrated_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, SQLModel.metadata) == []
        described = {
            name: {column.name for column in table.columns} for name, table in SQLModel.metadata.tables.items()
        }
        found = inspect(connection)
        assert {name: {column["name"] for column in found.get_columns(name)} for name in described} == described
    engine.dispose()


def test_an_upgrade_may_be_run_again(database_url: str) -> None:
    if not database_url.startswith("sqlite"):
        assert not schema_is_current(database_url)
    migrate(database_url)
    assert schema_is_current(database_url)
    migrate(database_url)
    assert schema_is_current(database_url)


def test_a_database_of_a_newer_program_is_left_alone(migrated_url: str) -> None:
    engine = create_engine(_engine_url(migrated_url))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    assert not schema_is_current(migrated_url)
    with pytest.raises(StoreUnavailableError):
        migrate(migrated_url)


def test_an_unreachable_database_is_a_clear_error() -> None:
    with pytest.raises(StoreUnavailableError) as raised:
        migrate("postgresql://nobody:secret@127.0.0.1:1/none")
    assert "secret" not in str(raised.value)


async def test_the_head_can_be_locked_without_an_entry(migrated_url: str) -> None:
    store = Store(backend_for(migrated_url, durable=True, timeout=5), queue=64)
    await store.open()
    assert not await store.write(lock_head)
    await store.write(lambda tx: append(tx, b"entry"))
    assert await store.write(lock_head)
    assert await store.read(size) == 1
    await store.close()


_APPENDER = """
import asyncio, sys
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store

async def main(url, who, count):
    store = Store(backend_for(url, durable=True, timeout=20), queue=4096)
    await store.open()
    def unit(number):
        entry = encode_entry(Kind.SERVICE_STARTED, time=0, actor=who, correlation=str(number), payload={})
        def run(transaction):
            index = append(transaction, entry)
            if number % 7 == 3:
                raise ValueError("undone")
            return index
        return run
    for first in range(0, count, 10):
        units = [store.write(unit(number)) for number in range(first, first + 10)]
        results = await asyncio.gather(*units, return_exceptions=True)
        for number, result in enumerate(results, first):
            if not isinstance(result, ValueError):
                print(number, result)
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def test_two_processes_append_without_gaps(migrated_url: str) -> None:
    """Each acknowledged index holds that entry, each index has one, and the tree over them is what the hashes say."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _APPENDER, migrated_url, f"service:{number}", str(_ENTRIES)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(_PROCESSES)
    ]
    acknowledged: dict[int, tuple[str, str]] = {}
    for number, process in enumerate(processes):
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        for line in output.splitlines():
            correlation, given = line.split()
            assert int(given) not in acknowledged
            acknowledged[int(given)] = f"service:{number}", correlation

    stored = asyncio.run(_all_entries(migrated_url))
    kept = sum(number % 7 != 3 for number in range(_ENTRIES))
    assert sorted(acknowledged) == list(range(kept * _PROCESSES))
    assert [entry.index for entry in stored] == list(range(kept * _PROCESSES))
    tree = TreeHasher()
    whose: Counter[str] = Counter()
    for entry in stored:
        members = decode_entry(entry.entry)
        assert acknowledged[entry.index] == (members["actor"], members["correlation"])
        assert entry.leaf_hash == leaf_hash(entry.entry)
        tree.append(entry.leaf_hash)
        whose[members["actor"]] += 1
    assert set(whose.values()) == {kept}
    expected = TreeHasher()
    for index in range(len(stored)):
        actor, correlation = acknowledged[index]
        expected.append(
            leaf_hash(encode_entry(Kind.SERVICE_STARTED, time=0, actor=actor, correlation=correlation, payload={}))
        )
    assert tree.root() == expected.root()


async def _all_entries(url: str) -> list[StoredEntry]:
    store = Store(backend_for(url, durable=True, timeout=5), queue=16)
    await store.open()
    try:
        found = await store.read(lambda tx: list(entries(tx, count=10_000)))
        assert await store.read(size) == len(found)
        return found
    finally:
        await store.close()
