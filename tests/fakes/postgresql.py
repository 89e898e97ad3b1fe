"""A real PostgreSQL for the tests that need one: a cluster of the run's own on a free port, a database for each test.

The server refuses to run as root, so that it runs as the user ``postgres`` when the tests do. It does not sync to the disk:
that is only missed when the machine loses power, not when the server is killed.

Use the marker ``postgresql`` and the fixture ``postgresql``; ``database_url`` and ``migrated_url`` run a test on SQLite too.
"""

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, delete, insert, select
from sqlmodel import SQLModel

from fakes.dns import LOOPBACK, free_port
from privyseal_ca.store.migrate import migrate

_USER = "privyseal"
_OPTIONS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "fsync": "off",
    "synchronous_commit": "on",
    "full_page_writes": "off",
    "max_connections": "50",
    "shared_buffers": "32MB",
    "log_min_messages": "fatal",
}
_databases = itertools.count(1)


def binaries() -> Path:
    """The newest server of the machine's packages."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    assert found, "install postgresql"
    return found[-1].parent


def _identity() -> dict[str, int]:
    """Who runs the server, as arguments of :class:`subprocess.Popen`."""
    if os.geteuid():
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid}


class Postgresql:
    """One cluster. May be stopped, killed, frozen and started again."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self._environment = dict(environment or {})
        self._data = folder / "data"
        self._bin = binaries()

    def create(self) -> None:
        """Make the cluster."""
        self._run(
            "initdb", "--pgdata", self._data, "--username", _USER, "--auth", "trust", "--encoding", "UTF8",
            "--locale", "C", "--no-sync",
        )  # fmt: skip

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = {**_OPTIONS, "port": str(self.port)}
        self._run(
            *("pg_ctl", "start", "--pgdata", self._data, "--wait", "--silent", "--log", self._log, "--options"),
            " ".join(f"-c {name}={value or repr(value)}" for name, value in settings.items()),
        )

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server; ``immediate`` is what a crash looks like, ``fast`` rolls back and disconnects."""
        self._run("pg_ctl", "stop", "--pgdata", self._data, "--wait", "--silent", "--mode", mode)

    def restart(self) -> None:
        """A crash, then a start."""
        self.stop()
        self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop every process of the server where it stands, as a machine does whose disk does not answer."""
        processes = self._processes()
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    def new_database(self, template: str = "template1") -> str:
        """The URL of a fresh database: empty, or like the one at the URL ``template``."""
        name = f"test_{next(_databases)}"
        self.administer(f"CREATE DATABASE {name} TEMPLATE {template.rpartition('/')[2]}")
        return self.url(name)

    def url(self, database: str) -> str:
        """The URL of a database."""
        return f"postgresql://{_USER}@{LOOPBACK}:{self.port}/{database}"

    def administer(self, statement: str) -> None:
        """Run a statement as the owner of the cluster."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    @property
    def _log(self) -> Path:
        return self._data.with_name("log")

    def _processes(self) -> list[int]:
        """The server and its children."""
        main = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        return [main, *map(int, children)]

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [self._bin / program, *map(str, arguments)],
            cwd=self._data.parent,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", **self._environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if program == "initdb" else subprocess.DEVNULL,
            check=False,
            timeout=60,
            **_identity(),  # type: ignore[call-overload]
        )
        if done.returncode:
            log = self._log.read_text() if self._log.exists() else (done.stdout or b"").decode()
            raise AssertionError(f"{program} ended with {done.returncode}\n{log}")


@contextlib.contextmanager
def cluster(environment: Mapping[str, str] | None = None) -> Iterator[Postgresql]:
    """A cluster that runs inside the block, with more in its ``environment``."""
    folder = Path(tempfile.mkdtemp(prefix="privyseal-postgresql-"))
    identity = _identity()
    if identity:
        os.chown(folder, identity["user"], identity["group"])
    server = Postgresql(folder, environment)
    try:
        server.create()
        server.start()
        yield server
    finally:
        with contextlib.suppress(AssertionError):
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgresql]:
    """The cluster of the run."""
    with cluster() as server:
        yield server


_BOTH = ("sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql))


@pytest.fixture(params=_BOTH)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    server: Postgresql = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture(scope="session", params=_BOTH)
def _template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of each kind that is never used itself."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('template') / 'store.db'}"
    else:
        server: Postgresql = request.getfixturevalue("postgresql")
        url = server.new_database()
    migrate(url)
    return url


@pytest.fixture
def migrated_url(_template: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database of each kind, with the schema and nothing else."""
    if _template.startswith("sqlite:///"):
        return f"sqlite:///{shutil.copy(_template.removeprefix('sqlite:///'), tmp_path)}"
    server: Postgresql = request.getfixturevalue("postgresql")
    return server.new_database(_template)


def copy_to_postgresql(sqlite_url: str, server: Postgresql) -> str:
    """The URL of a fresh PostgreSQL database that holds what the SQLite database at ``sqlite_url`` does."""
    url = server.new_database()
    migrate(url)
    source = create_engine(sqlite_url)
    target = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with source.connect() as reader, target.begin() as writer:
        for table in SQLModel.metadata.sorted_tables:
            writer.execute(delete(table))
            if rows := [row._asdict() for row in reader.execute(select(table))]:
                writer.execute(insert(table), rows)
    source.dispose()
    target.dispose()
    return url
