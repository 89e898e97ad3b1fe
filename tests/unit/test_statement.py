"""Statements that are compiled once: what is bound by name and what stands in them."""

import sqlite3

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, bindparam, select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateTable

from privyseal_ca.store.statement import Statement, Transaction

_things = Table(
    "things", MetaData(), Column("id", Integer, primary_key=True), Column("state", Text), Column("note", Text)
)


@pytest.fixture
def transaction() -> Transaction:
    one = Transaction(sqlite3.connect(":memory:").cursor(), sqlite.dialect(paramstyle="named"))
    one.execute(Statement(CreateTable(_things)))
    insert = Statement(_things.insert().values(id=bindparam("new_id"), state=bindparam("new_state"), note="new"))
    for number, state in enumerate(["pending", "valid", "invalid"]):
        one.execute(insert, new_id=number, new_state=state)
    return one


def test_literals_lists_and_parameters_together(transaction: Transaction) -> None:
    end = Statement(
        update(_things)
        .where(_things.c.id >= bindparam("first"), _things.c.state.in_(["pending", "valid"]))
        .values(state="ended", note=None)
    )
    every = Statement(select(_things.c.id, _things.c.state, _things.c.note).order_by(_things.c.id))
    assert transaction.execute(end, first=1) == 1
    assert transaction.execute(end, first=0) == 1, "a second run has its own parameters"
    assert transaction.all(every) == [(0, "ended", None), (1, "ended", None), (2, "invalid", "new")]


def test_null_is_a_value(transaction: Transaction) -> None:
    change = Statement(update(_things).where(_things.c.id == bindparam("wanted")).values(note=bindparam("new_note")))
    assert transaction.execute(change, wanted=0, new_note=None) == 1
    assert transaction.one(Statement(select(_things.c.note).where(_things.c.id == 0))) == (None,)
