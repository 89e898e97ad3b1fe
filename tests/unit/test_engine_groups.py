"""Any mixture of units and failing commits on SQLite, against a model: what was acknowledged is there, and nothing else is.

A unit whose commit failed may be there or not; everything else is decided.
"""

import asyncio
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, MetaData, Table, Text, insert

from fakes.store_faults import FaultyBackend, open_faulty
from privyseal_ca.errors import StoreConflictError, StoreUnavailableError
from privyseal_ca.store.statement import Statement, Transaction

_table = Table("item", MetaData(), Column("name", Text, primary_key=True))
_ADD = Statement(insert(_table))
_NAMES = st.sampled_from("abcdefgh")
_UNITS = st.tuples(st.sampled_from(["add", "add two", "raise"]), _NAMES, _NAMES)
#: What becomes of a group's commit.
_COMMITS = st.sampled_from(["good", "good", "good", "lost", "stored"])


class RefusedError(Exception):
    """A unit's own."""


def unit(kind: str, first: str, second: str) -> Callable[[Transaction], str]:
    def run(transaction: Transaction) -> str:
        transaction.execute(_ADD, name=first)
        if kind == "add two":
            transaction.execute(_ADD, name=second)
        if kind == "raise":
            raise RefusedError
        return first

    return run


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(_UNITS, min_size=1, max_size=6), _COMMITS), max_size=6))
def test_acknowledged_and_stored_agree(groups: list[tuple[list[tuple[str, str, str]], str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE item (name TEXT PRIMARY KEY)")
        asyncio.run(_run(path, groups))


async def _run(path: Path, groups: list[tuple[list[tuple[str, str, str]], str]]) -> None:
    backend = FaultyBackend(f"sqlite:///{path}", durable=False)
    store = open_faulty(backend)
    await store.open()
    model: set[str] = set()
    fate = "good"

    def fail(wanted: str) -> Callable[[], None]:
        def hook() -> None:
            if fate == wanted:
                raise sqlite3.OperationalError("the disk failed")

        return hook

    backend.before["COMMIT"], backend.after["COMMIT"] = fail("lost"), fail("stored")
    for units, fate in groups:
        results = await asyncio.gather(*(store.write(unit(*each)) for each in units), return_exceptions=True)
        expected, after = _expected(units, set(model))
        if fate == "good":
            assert [_outcome(result) for result in results] == expected
        else:
            assert {type(result) for result in results} == {StoreUnavailableError}
        if fate != "lost":
            model = after
        assert _stored(path) == model
        assert await store.read(_names) == model
        assert store.available == (fate == "good")
    await store.close()
    assert _stored(path) == model


def _expected(units: list[tuple[str, str, str]], names: set[str]) -> tuple[list[Any], set[str]]:
    """What each unit gives after those before it, and what is stored in the end."""
    expected: list[Any] = []
    for kind, first, second in units:
        wanted = [first, second] if kind == "add two" else [first]
        if len(set(wanted)) < len(wanted) or names & set(wanted):
            expected.append(StoreConflictError)
        elif kind == "raise":
            expected.append(RefusedError)
        else:
            expected.append(first)
            names |= set(wanted)
    return expected, names


def _outcome(result: object) -> object:
    return type(result) if isinstance(result, Exception) else result


def _names(transaction: Transaction) -> set[str]:
    return {row[0] for row in transaction.all(Statement(_table.select()))}


def _stored(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM item")}
