"""What differs between SQLite and PostgreSQL, all of it."""

import fcntl
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psycopg
from sqlalchemy.dialects.postgresql import psycopg as postgresql_dialect
from sqlalchemy.dialects.sqlite import pysqlite as sqlite_dialect
from sqlalchemy.engine import Dialect

from privyseal_ca.errors import (
    ConfigurationError,
    DatabaseInUseError,
    ServiceLockLostError,
    StoreConflictError,
    StoreError,
    StoreUnavailableError,
)
from privyseal_ca.store.lone_reader import LoneReader

# One writing service per database: the key of PostgreSQL's advisory lock, "privyse" in ASCII.
_SERVICE_LOCK = 0x70726976797365

# The server's own time limits come first by this many seconds: what it says is more than that it said nothing.
_GRACE = 1.0


class Backend(Protocol):
    """A database engine."""

    @property
    def dialect(self) -> Dialect:
        """What SQLAlchemy writes SQL for."""
        ...

    @property
    def inline(self) -> bool:
        """Whether statements are so short that they run on the event loop's own thread."""
        ...

    @property
    def begin(self) -> str:
        """Begins a writing transaction; an inline backend does not wait for another process's lock with it."""
        ...

    @property
    def errors(self) -> type[Exception]:
        """The errors of the driver."""
        ...

    def connect(self, *, writing: bool) -> Any:
        """A DB-API connection in autocommit mode: transactions are begun and ended by statements."""
        ...

    def lone_reader(self) -> LoneReader | None:
        """What an inline backend reads with in a process that never writes."""
        ...

    def begin_patiently(self, connection: Any) -> None:
        """Begin a writing transaction, waiting for another process's lock up to the time limit."""
        ...

    def checkpoint(self, connection: Any) -> None:
        """Write the log back into the database, where an inline backend leaves that to its user."""
        ...

    def is_busy(self, error: Exception) -> bool:
        """Whether ``error`` says that another process holds the lock that was wanted."""
        ...

    def translate(self, error: Exception) -> StoreError:
        """``error`` of the driver as one of ours, without the values of the statement."""
        ...

    def lock_service(self) -> "ServiceLock":
        """Claim the database for one service until the result is closed.

        Raises:
            DatabaseInUseError: another service has it.
            StoreUnavailableError: the database is away.
        """
        ...


class ServiceLock(Protocol):
    """The claim of one service on a database."""

    def keep(self) -> None:
        """Make sure that the claim still holds, and renew it where the database forgot it in a restart. May wait.

        Raises:
            ServiceLockLostError: another service has claimed the database meanwhile.
            StoreUnavailableError: the database is away; whether the claim holds is seen when it is back.
        """
        ...

    def close(self) -> None:
        """Give the claim up."""
        ...


class _FileLock:
    """A lock on a file; it ends with the process whatever happens to it, and not before."""

    def __init__(self, path: Path) -> None:
        self._handle = path.open("w")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._handle.close()
            raise

    def keep(self) -> None:
        """The kernel forgets no lock."""

    def close(self) -> None:
        """Give the claim up."""
        self._handle.close()


class _AdvisoryLock:
    """An advisory lock on a connection of its own; it ends with the connection, as in a restart of the server."""

    def __init__(self, connect: Callable[[], "psycopg.Connection[Any]"]) -> None:
        self._connect = connect
        self._connection = self._claim()

    def keep(self) -> None:
        """Ask the server through the connection that holds the lock; claim anew where that is gone."""
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            self.close()
            try:
                self._connection = self._claim()
            except DatabaseInUseError as error:
                raise ServiceLockLostError(error.message, hint="Only one service can use a database.") from error

    def close(self) -> None:
        """Give the claim up."""
        with suppress(psycopg.Error):
            self._connection.close()

    def _claim(self) -> "psycopg.Connection[Any]":
        connection = self._connect()
        try:
            row = connection.execute("SELECT pg_try_advisory_lock(%s)", (_SERVICE_LOCK,)).fetchone()
        except psycopg.Error as error:
            raise StoreUnavailableError(
                f"PostgreSQL did not answer as it should: {_first_line(error)}.",
                hint="Check database.url and the server.",
            ) from error
        if row is None or not row[0]:
            with suppress(psycopg.Error):
                connection.close()
            raise DatabaseInUseError(
                "Another privyseal service already uses this database.", hint="Stop it first, or use another database."
            )
        return connection


class SqliteBackend:
    """SQLite in WAL mode. ``durable`` commits survive power loss, others only the end of the process."""

    inline = True
    begin = "BEGIN IMMEDIATE"
    errors = sqlite3.Error

    def __init__(self, path: Path, *, durable: bool, timeout: float) -> None:
        self.dialect = sqlite_dialect.dialect(paramstyle="named")
        self._timeout = timeout
        self._path = path
        self._durable = durable

    def connect(self, *, writing: bool) -> sqlite3.Connection:
        """Open the file; a writing connection creates it, readable by its owner only."""
        try:
            if writing and not self._path.exists():
                os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            connection = self._open("" if writing else "mode=ro")
            if writing:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
                connection.execute("PRAGMA foreign_keys = ON")
                # A commit that wrote the log back as well would be the one that waits long for the disk.
                connection.execute("PRAGMA wal_autocheckpoint = 0")
                connection.execute("PRAGMA busy_timeout = 0")
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailableError(
                f"The database {self._path} cannot be opened: {error}.",
                hint="Check that the file, its folder and the disk are readable and writable.",
            ) from error
        return connection

    def lone_reader(self) -> LoneReader:
        """The file as another process leaves it."""
        return LoneReader(self._path, self._open)

    def _open(self, parameters: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?{parameters}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=self._timeout,
            cached_statements=512,
        )
        connection.execute("PRAGMA cache_size = -16384")
        return connection

    def begin_patiently(self, connection: sqlite3.Connection) -> None:
        """Begin with SQLite's busy timeout raised for this once."""
        connection.execute(f"PRAGMA busy_timeout = {int(self._timeout * 1000)}")
        try:
            connection.execute(self.begin)
        finally:
            connection.execute("PRAGMA busy_timeout = 0")

    def checkpoint(self, connection: sqlite3.Connection) -> None:
        """Write back as much as can be without waiting for readers or writers."""
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def is_busy(self, error: Exception) -> bool:
        """SQLITE_BUSY in any of its forms."""
        return isinstance(error, sqlite3.OperationalError) and (error.sqlite_errorcode & 0xFF) == sqlite3.SQLITE_BUSY

    def translate(self, error: Exception) -> StoreError:
        """Integrity errors are conflicts, data errors the unit's own fault; all else means that it is not usable now."""
        if isinstance(error, sqlite3.IntegrityError):
            return StoreConflictError(f"The database refused a change: {error}.")
        if isinstance(error, sqlite3.DataError):
            return StoreError(f"The database cannot hold a value: {error}.")
        return StoreUnavailableError(
            f"The database {self._path} did not answer as it should: {error}.",
            hint="Try again; `privyseal doctor` says more.",
        )

    def lock_service(self) -> ServiceLock:
        """A lock on a file beside the database."""
        path = self._path.with_name(self._path.name + "-service")
        try:
            return _FileLock(path)
        except BlockingIOError as error:
            raise DatabaseInUseError(
                f"Another privyseal service already uses {self._path}.", hint="Stop it first, or use another home."
            ) from error
        except OSError as error:
            raise StoreUnavailableError(
                f"The folder of the database {self._path} cannot be used: {error.strerror}.",
                hint="Run `privyseal init` first, or check the folder and its permissions.",
            ) from error


class _Connection(psycopg.Connection[Any]):
    """A connection that is given up when the server does not answer: its own time limits bind only a server that runs."""

    patience: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Wait for the server, at most ``patience`` seconds where no shorter time is asked for."""
        try:
            return super().wait(gen, interval, self.patience if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                self.pgconn.finish()
            raise


class PostgresqlBackend:
    """PostgreSQL through psycopg."""

    inline = False
    begin = "BEGIN"
    errors = psycopg.Error

    def __init__(self, url: str, *, timeout: float) -> None:
        self.dialect = postgresql_dialect.dialect()  # type: ignore[no-untyped-call]
        self._timeout = timeout
        self._url = url

    def connect(self, *, writing: bool) -> "psycopg.Connection[Any]":
        """Connect within the time limit, with statement and lock time limits set in the server."""
        limit = int(self._timeout * 1000)
        try:
            connection = _Connection.connect(
                self._url,
                autocommit=True,
                connect_timeout=max(2, int(self._timeout)),
                options=f"-c statement_timeout={limit} -c lock_timeout={limit} -c idle_in_transaction_session_timeout={limit}",
                application_name="privyseal",
            )
            connection.patience = self._timeout + _GRACE
            if not writing:
                # One read sees one state, as with SQLite, however many statements it has.
                connection.execute(
                    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
                )
        except psycopg.ProgrammingError:
            # libpq says what is wrong with a URL by repeating it, password and all (promise P10).
            raise StoreUnavailableError(
                "database.url cannot be read.", hint="Mend it; percent-encode what is special in the password."
            ) from None
        except psycopg.Error as error:
            raise StoreUnavailableError(
                f"PostgreSQL cannot be reached: {_first_line(error)}.", hint="Check database.url and the server."
            ) from error
        return connection

    def lone_reader(self) -> None:
        """Its readers are those of a process that writes as well."""

    def begin_patiently(self, connection: Any) -> None:
        """Begin; locks wait in the server, bounded by the connection's lock_timeout."""
        connection.execute(self.begin)

    def checkpoint(self, connection: Any) -> None:
        """PostgreSQL does that by itself."""

    def is_busy(self, error: Exception) -> bool:
        """What the server says when one of its time limits passed, which is what waiting for a lock ends with."""
        return isinstance(error, psycopg.errors.LockNotAvailable | psycopg.errors.QueryCanceled)

    def translate(self, error: Exception) -> StoreError:
        """Integrity errors are conflicts, data errors the unit's own fault; all else means that it is not usable now."""
        if isinstance(error, psycopg.IntegrityError):
            return StoreConflictError(f"The database refused a change: {_first_line(error)}.")
        if isinstance(error, psycopg.DataError):
            return StoreError(f"The database cannot hold a value: {_first_line(error)}.")
        return StoreUnavailableError(
            f"PostgreSQL did not answer as it should: {_first_line(error)}.",
            hint="Try again; `privyseal doctor` says more.",
        )

    def lock_service(self) -> ServiceLock:
        """An advisory lock."""
        return _AdvisoryLock(lambda: self.connect(writing=True))


def _first_line(error: Exception) -> str:
    """The server's first line: later ones (DETAIL) repeat the values of the statement."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def backend_for(url: str, *, durable: bool, timeout: float) -> SqliteBackend | PostgresqlBackend:
    """The backend that ``url`` names.

    Raises:
        ConfigurationError: neither ``sqlite:///FILE`` nor ``postgresql://``.
    """
    if url.startswith("sqlite:///"):
        return SqliteBackend(Path(url.removeprefix("sqlite:///")), durable=durable, timeout=timeout)
    if url.startswith("postgresql://"):
        return PostgresqlBackend(url, timeout=timeout)
    raise ConfigurationError(
        "database.url is neither sqlite:///FILE nor postgresql://USER@HOST/NAME.", hint="Mend database.url."
    )
