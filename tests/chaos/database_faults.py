"""What befalls the database: SQLite's file and its disk, and PostgreSQL's server."""

import contextlib
import os
import random
import signal
import sqlite3

import psycopg

from chaos.record import Record
from chaos.world import World
from fakes.disk import Mode
from fakes.postgresql import Postgresql
from fakes.process import CommandFailedError

# SQLite.


class WriteLock:
    """Another process holds SQLite's write lock, longer than the service waits for it."""

    name = "another process holds the write lock"
    lasts = (0.5, 3.0)

    def __init__(self) -> None:
        self._holder: sqlite3.Connection | None = None

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        path = world.rows.url.removeprefix("sqlite:///")
        self._holder = sqlite3.connect(path, timeout=30, isolation_level=None)
        self._holder.execute("BEGIN IMMEDIATE")

    def lift(self, world: World) -> None:
        if self._holder is not None:
            self._holder.execute("ROLLBACK")
            self._holder.close()
            self._holder = None


class Disk:
    """The disk below the database fails every change, or every sync."""

    lasts = (0.2, 2.0)

    def __init__(self, mode: Mode, name: str) -> None:
        self.name = name
        self._mode = mode

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        world.disk.fail(self._mode)

    def lift(self, world: World) -> None:
        world.disk.heal()


# PostgreSQL.


class PostgresqlCrash:
    """The server ends as in a crash, and starts again from its write-ahead log."""

    name = "PostgreSQL crashes"
    lasts = (0.0, 2.0)

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        _server(world).stop("immediate")

    def lift(self, world: World) -> None:
        _server(world).start()


class PostgresqlRestart(PostgresqlCrash):
    """The server is restarted in order: transactions are rolled back and connections closed."""

    name = "PostgreSQL is restarted"

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        _server(world).stop("fast")


class PostgresqlFrozen:
    """The server answers nothing for a while, and no connection breaks."""

    name = "PostgreSQL does not answer"
    lasts = (0.5, 3.0)

    def __init__(self) -> None:
        self._frozen = contextlib.ExitStack()

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        self._frozen.enter_context(_server(world).frozen())

    def lift(self, world: World) -> None:
        self._frozen.close()


class BackendsTerminated:
    """An administrator ends every connection, whatever it is doing."""

    name = "connections are terminated"
    lasts = (0.0, 0.0)

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        _terminate(world)

    def lift(self, world: World) -> None:
        pass


class BackendKilled:
    """SIGKILL for one process of the server: the postmaster throws everybody out and recovers."""

    name = "a server process is killed"
    lasts = (0.0, 0.0)

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        processes = [
            pid
            for (pid,) in world.rows.all(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        ]
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(processes), signal.SIGKILL)

    def lift(self, world: World) -> None:
        pass


class ReadOnlyDatabase:
    """The database takes no changes, as a standby does that somebody failed over to by mistake."""

    name = "database is read-only"
    lasts = (0.5, 2.0)

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        self._set(world, "on")

    def lift(self, world: World) -> None:
        self._set(world, "off")

    @staticmethod
    def _set(world: World, value: str) -> None:
        name = world.rows.url.rpartition("/")[2]
        _server(world).administer(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
        # It is a default of new sessions.
        _terminate(world)


def _server(world: World) -> Postgresql:
    if world.postgresql is None:
        raise CommandFailedError("this fault needs PostgreSQL")
    return world.postgresql


def _terminate(world: World) -> None:
    name = world.rows.url.rpartition("/")[2]
    with contextlib.suppress(psycopg.OperationalError):
        _server(world).administer(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608
        )
