"""SQL statements that are compiled once and run on the driver.

SQLAlchemy writes the SQL for the dialect at hand; the driver's cursor runs it. That leaves out result processing, so
columns hold integers, text and bytes only. It is what keeps the database a small part of a certificate's cost.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ClauseElement

Row = tuple[Any, ...]


class Statement:
    """A Core statement whose bind parameters are given by name when it runs."""

    __slots__ = ("_clause", "_compiled")

    def __init__(self, clause: ClauseElement) -> None:
        self._clause = clause
        self._compiled: dict[str, tuple[str, dict[str, Any]]] = {}

    def prepare(self, dialect: Dialect, parameters: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """The SQL for ``dialect`` and ``parameters`` joined with the literals of the statement."""
        try:
            sql, literals = self._compiled[dialect.name]
        except KeyError:
            compiled = self._clause.compile(dialect=dialect)
            sql, literals = str(compiled), {}
            if isinstance(compiled, SQLCompiler):
                # Lists in IN become single parameters here, which takes a value for each of the others.
                expanded = compiled.construct_expanded_state(parameters)
                sql = expanded.statement
                literals = {name: value for name, value in expanded.parameters.items() if name not in parameters}
            self._compiled[dialect.name] = sql, literals
        return sql, ({**literals, **parameters} if literals else parameters)


class Transaction:
    """What a unit of work runs its statements on. Valid only inside the unit."""

    __slots__ = ("_cursor", "_dialect")

    def __init__(self, cursor: Any, dialect: Dialect) -> None:
        self._cursor = cursor
        self._dialect = dialect

    def execute(self, statement: Statement, **parameters: Any) -> int:
        """Run ``statement``; the number of rows it touched."""
        self._cursor.execute(*statement.prepare(self._dialect, parameters))
        return int(self._cursor.rowcount)

    def one(self, statement: Statement, **parameters: Any) -> Row | None:
        """The first row that ``statement`` gives, or None."""
        self._cursor.execute(*statement.prepare(self._dialect, parameters))
        row: Row | None = self._cursor.fetchone()
        return row

    def all(self, statement: Statement, **parameters: Any) -> list[Row]:
        """Every row that ``statement`` gives. The statement bounds their number."""
        self._cursor.execute(*statement.prepare(self._dialect, parameters))
        rows: list[Row] = self._cursor.fetchall()
        return rows
