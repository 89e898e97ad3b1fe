"""All rows of all tables out of a database, as they were at one moment, and into another one.

Which tables there are, and their columns, is asked of the database: so a table that somebody adds is in the next backup, and
a backup of an older schema goes back into that schema. Columns hold integers, text and bytes only (see
:mod:`privyseal_ca.store.statement`), which is why one kind of database gives what the other takes.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, create_engine, event, insert, inspect, select, text
from sqlalchemy import Table as SqlTable
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool, StaticPool

from privyseal_ca.errors import BackupError, StoreUnavailableError
from privyseal_ca.store.backends import PostgresqlBackend, SqliteBackend, backend_for
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.migrate import known_revisions, upgrade
from privyseal_ca.store.statement import Row, Transaction

#: Left out, for the service makes them again: nonces end with the process, a kept OCSP response that says good would
#: outlive a revocation that the backup does not know, and who leads a service, and how its jobs go, ends with it.
DERIVED: Final = frozenset({"used_nonce", "ocsp_response", "scheduler_lease", "job_run"})
_VERSION_TABLE: Final = "alembic_version"
#: The facts on how far OCSP responses are made: without responses they begin anew.
_RESPONSES_MADE: Final = "DELETE FROM fact WHERE name LIKE 'ocsp-begun:%'"
_PAGE: Final = 500
#: Seconds that one statement of a dump may take, and that whoever takes the rows may let it wait.
_PATIENCE: Final = 900

_KINDS: Final[dict[type, str]] = {str: "text", int: "integer", bytes: "bytes"}


class Column(NamedTuple):
    """A column: its name, and ``text``, ``integer`` or ``bytes``."""

    name: str
    kind: str


class Table(NamedTuple):
    """A table: its columns, in the order in which rows have them."""

    name: str
    columns: tuple[Column, ...]


class Snapshot:
    """A database as it was at one moment."""

    def __init__(self, connection: Connection, backend: SqliteBackend | PostgresqlBackend) -> None:
        self._connection = connection
        driver = connection.connection.driver_connection
        #: For statements of other modules, on the same moment.
        self.transaction = Transaction(_cursor(driver), backend.dialect)
        heads = MigrationContext.configure(connection).get_current_heads()
        #: The revision of the schema.
        self.revision = heads[0] if len(heads) == 1 else ""
        self._tables = _reflected(connection)
        #: Every table but the derived ones, in an order in which they can be filled again.
        self.tables = tuple(_described(table) for table in self._tables.values() if table.name not in DERIVED)

    def pages(self, name: str) -> Iterator[Sequence[Row]]:
        """The rows of a table, by primary key, a bounded number at a time."""
        table = self._tables[name]
        statement = select(table).order_by(*table.primary_key.columns)
        # Rows stay in the database until they are asked for; PostgreSQL would otherwise send all of them at once.
        result = self._connection.execution_options(yield_per=_PAGE).execute(statement)
        for page in result.partitions():
            yield [tuple(row) for row in page]


@contextmanager
def snapshot(url: str, *, timeout: float) -> Iterator[Snapshot]:
    """The database at ``url`` as it is now, for as long as the block takes; nobody who writes has to wait for it.

    Raises:
        StoreUnavailableError: it cannot be reached, or failed meanwhile.
    """
    backend = backend_for(url, durable=True, timeout=timeout)
    engine = _engine(backend, writing=False, begin="BEGIN")
    try:
        with engine.connect() as connection:
            yield Snapshot(connection, backend)
    except SQLAlchemyError as error:
        raise _unavailable(error) from error
    except backend.errors as error:
        raise backend.translate(error) from error
    finally:
        engine.dispose()


class Loading:
    """A database that is being filled, in one transaction: it holds all of it in the end, or what it held before."""

    def __init__(self, connection: Connection, backend: SqliteBackend | PostgresqlBackend, revision: str) -> None:
        self._connection = connection
        upgrade(connection, revision)
        self._tables = _reflected(connection)
        for table in self._tables.values():
            connection.execute(table.delete())  # the ledger's head, which a migration puts there
        #: What can be filled, by name.
        self.tables = {name: _described(table) for name, table in self._tables.items()}
        self.transaction = Transaction(_cursor(connection.connection.driver_connection), backend.dialect)

    def add(self, into: Table, rows: Sequence[Row]) -> None:
        """Add rows to a table of :attr:`tables`, with values in the order in which ``into`` has its columns.

        Raises:
            BackupError: the database does not take them.
        """
        table = self._tables[into.name]
        names = [column.name for column in into.columns]
        try:
            for begin in range(0, len(rows), _PAGE):
                values = [dict(zip(names, row, strict=True)) for row in rows[begin : begin + _PAGE]]
                self._connection.execute(insert(table), values)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            raise BackupError(
                f"The database does not take a row of the table {into.name}: {_reason(error)}.",
                hint="The backup is damaged, or was not made by this program. Nothing was restored.",
            ) from error

    def finish(self) -> None:
        """Bring the schema to the newest revision, and what counts rows up to those that are there."""
        upgrade(self._connection, "head")
        self._connection.execute(text(_RESPONSES_MADE))
        if self._connection.dialect.name == "postgresql":
            for table in _reflected(self._connection).values():
                for column in table.columns:
                    if column.identity is not None or column.server_default is not None:
                        _continue_sequence(self._connection, table.name, column.name)


@contextmanager
def loading(url: str, revision: str, *, timeout: float, discard: bool = False) -> Iterator[Loading]:
    """Fill the database at ``url``, from an empty one with the schema of ``revision`` on. It is committed at the block's end.

    With ``discard`` every table that is there is dropped first.

    Raises:
        StoreUnavailableError: it cannot be reached or changed.
    """
    backend = backend_for(url, durable=True, timeout=timeout)
    if isinstance(backend, SqliteBackend):
        # Nobody reads it before it is renamed, and after a crash it is made anew: no journal is needed.
        with closing(backend.connect(writing=True)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
    engine = _engine(backend, writing=True, begin="BEGIN")
    try:
        with engine.begin() as connection:
            if discard:
                every = MetaData()
                every.reflect(connection)
                every.drop_all(connection)
            yield Loading(connection, backend, revision)
    except SQLAlchemyError as error:
        raise _unavailable(error) from error
    except backend.errors as error:
        raise backend.translate(error) from error
    finally:
        engine.dispose()


def tables_in(url: str, fact: str, *, timeout: float) -> tuple[list[str], str | None]:
    """The names of the tables in the database at ``url``, and the value of ``fact`` where there is such a table.

    Raises:
        StoreUnavailableError: it cannot be reached.
    """
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return [], None
    backend = backend_for(url, durable=True, timeout=timeout)
    engine = _engine(backend, writing=False, begin="BEGIN")
    try:
        with engine.connect() as connection:
            names = sorted(inspect(connection).get_table_names())
            if "fact" not in names:
                return names, None
            driver = connection.connection.driver_connection
            return names, find_fact(Transaction(_cursor(driver), backend.dialect), fact)
    except SQLAlchemyError as error:
        raise _unavailable(error) from error
    finally:
        engine.dispose()


def schema_of(revision: str) -> dict[str, Table]:
    """The tables of a revision of the schema that this program knows, by name."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    try:
        with engine.begin() as connection:
            upgrade(connection, revision)
            return {name: _described(table) for name, table in _reflected(connection).items()}
    finally:
        engine.dispose()


def require_known_revision(revision: str) -> None:
    """Raises BackupError when this program has no such revision of the schema."""
    if revision not in known_revisions():
        raise BackupError(
            f"The backup's schema has the revision {revision!r}, which this program does not know.",
            hint="A newer version of this program made it: restore with that one, or a later one.",
        )


def put_in_place(draft: Path, path: Path) -> None:
    """Give a finished SQLite database that nobody has open its name; there is none of that name.

    Raises:
        StoreUnavailableError: the folder or the disk does not let it.
    """
    try:
        with closing(sqlite3.connect(draft)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for synced in (draft, path.parent):
            descriptor = os.open(synced, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        draft.rename(path)
    except (OSError, sqlite3.Error) as error:
        raise StoreUnavailableError(
            f"The restored database cannot be put to {path}: {error}.",
            hint="Check the folder and the disk; restore again.",
        ) from error


def _engine(backend: SqliteBackend | PostgresqlBackend, *, writing: bool, begin: str) -> Engine:
    """An engine over the backend's own connections, whose transactions are begun by a statement."""

    def connect() -> Any:
        if isinstance(backend, SqliteBackend):
            file = backend.connect(writing=writing)
            if writing:
                for pragma in ("journal_mode = OFF", "synchronous = OFF", "busy_timeout = 10000"):
                    file.execute(f"PRAGMA {pragma}")
            return file
        connection: Any = backend.connect(writing=writing)
        limit = _PATIENCE * 1000
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            connection.execute(f"SET {name} = {limit}")
        connection.patience = _PATIENCE
        return connection

    name = "sqlite" if isinstance(backend, SqliteBackend) else "postgresql+psycopg"
    engine = create_engine(f"{name}://", creator=connect, poolclass=NullPool, hide_parameters=True)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _cursor(driver: Any) -> Any:
    return driver.cursor()


def _reflected(connection: Connection) -> dict[str, SqlTable]:
    found = MetaData()
    found.reflect(connection)
    return {table.name: table for table in found.sorted_tables if table.name != _VERSION_TABLE}


def _described(table: SqlTable) -> Table:
    columns = []
    for column in table.columns:
        kind = _KINDS.get(column.type.python_type)
        if kind is None:
            raise BackupError(
                f"The column {column.name} of the table {table.name} holds neither text nor integers nor bytes.",
                hint="Somebody else's table is in this database: give Privy Seal one of its own.",
            )
        columns.append(Column(column.name, kind))
    return Table(table.name, tuple(columns))


def _continue_sequence(connection: Connection, table: str, column: str) -> None:
    """Let what numbers the rows of a column go on behind the greatest number that is there."""
    sequence = connection.execute(
        text("SELECT pg_get_serial_sequence(:table, :column)"), {"table": table, "column": column}
    ).scalar()
    if sequence is not None:
        quote = connection.dialect.identifier_preparer.quote
        greatest = f"(SELECT coalesce(max({quote(column)}), 0) FROM {quote(table)})"  # noqa: S608 (names of our own schema)
        connection.execute(text(f"SELECT setval(:sequence, {greatest} + 1, false)"), {"sequence": sequence})


def _unavailable(error: SQLAlchemyError) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"The database did not answer as it should: {_reason(error)}.",
        hint="Check the database and its disk; try again.",
    )


def _reason(error: SQLAlchemyError) -> str:
    """The driver's first line: later ones repeat the values of the statement."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return (str(cause).splitlines() or [type(error).__name__])[0]
