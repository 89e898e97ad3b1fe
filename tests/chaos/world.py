"""What a trial takes place in: the real service as a process, with its token, its database, name server and http-01."""

import contextlib
import http.client
import json
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError

import psycopg

from fakes.clock_steps import SteppingClock
from fakes.disk import FaultyDisk
from fakes.dns import LOOPBACK, knot
from fakes.http01 import Http01, http01_responder
from fakes.postgresql import Postgresql, binaries, cluster
from fakes.process import PRIVYSEAL, CommandFailedError, ServerProcess, run_command
from fakes.shim import Shim
from fakes.shim_server import ISSUING_KEY, ShimServer
from fakes.status_client import get

ZONE: Final = "chaos.internal"
DATABASES: Final = ("sqlite", "postgresql")
CRL_PARTS: Final = 2

#: What somebody sees who asks a service that ends: no answer, or half of one.
GONE: Final = (OSError, http.client.HTTPException)

#: Everything waits for less time than by default, so that a fault shows its consequence while it lasts.
_SETTINGS: Final = {
    "STATUS__INTERVAL": "0.2",
    "STATUS__CRL_SHARDS": str(CRL_PARTS),
    "STATUS__WATCH_INTERVAL": "3600",
    "DATABASE__TIMEOUT": "1",
    "HSM__TIMEOUT": "1",
    "HSM__RETRY_AFTER": "0.2",
    "ACME__FINALIZE_WAIT": "1",
    "SERVER__SHUTDOWN_GRACE": "10",
}


#: In which a server of PostgreSQL has recovered from a crash, in seconds.
_PATIENCE = 60.0


class Rows:
    """The database, read by plain SQL and not by the product's code."""

    def __init__(self, url: str) -> None:
        self.url = url

    def all(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of ``query``."""
        if self.url.startswith("sqlite:///"):
            path = self.url.removeprefix("sqlite:///")
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
                return connection.execute(query).fetchall()
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with psycopg.connect(self.url) as connection:
                    return connection.execute(query.encode()).fetchall()
            except psycopg.OperationalError:
                # A server that a fault has just hit may still be recovering.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


@dataclass
class World:
    """One home and everything around it."""

    folder: Path
    server: ServerProcess
    http01: Http01
    rows: Rows
    disk: FaultyDisk
    clock: SteppingClock
    postgresql: Postgresql | None
    shim: Shim | None
    #: What the token signed with the issuing key, each with the round in which it was noticed.
    signed: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def database(self) -> str:
        """One of :data:`DATABASES`."""
        return "sqlite" if self.postgresql is None else "postgresql"

    @property
    def alive(self) -> bool:
        """Whether the service runs."""
        process = self.server._process
        return process is not None and process.poll() is None

    def kill(self) -> None:
        """End the service where it stands."""
        code = self.server.stop(signal.SIGKILL)
        if code != -signal.SIGKILL:
            raise CommandFailedError(f"the service had ended by itself with {code}\n{self.server.log[-4000:]}")

    def take_signatures(self, turn: int) -> None:
        """Note what the token has signed, and make room in the shim's log. The service must not be running."""
        if self.shim is None:
            return
        control = self.shim._control
        for each in control.log[: min(control.signatures, len(control.log))]:
            # A kill may have come between the signature and the end of its line in the log.
            if each.label.decode() == ISSUING_KEY and each.size:
                self.signed.append((turn, bytes(each.data)[: each.size]))
            each.done = each.size = 0
        control.signatures = 0

    def get(self, path: str) -> bytes:
        """What the plain listener has at ``path``.

        Raises:
            HTTPError: another status than 200.
            OSError: it does not answer.
        """
        return get(f"{self.server.http_url}/{path}")[0]

    def get_if_there(self, path: str) -> bytes | None:
        """The same; None when the listener, or what it needs, is away. A 404 is for the caller."""
        try:
            return self.get(path)
        except HTTPError as error:
            if error.code == 404:
                raise
            return None
        except GONE:
            return None

    def keep_database(self) -> None:
        """Write the database into the folder when it is not there anyway."""
        if self.postgresql is not None:
            with (self.folder / "database.sql").open("wb") as file:
                subprocess.run([binaries() / "pg_dump", self.rows.url], stdout=file, check=False, timeout=120)


@contextlib.contextmanager
def made_world(
    folder: Path, database: str, *, shim: bool = False, age: int = 0, settings: Mapping[str, str] | None = None
) -> Iterator[World]:
    """A home after its key ceremony, whose service has never run.

    With ``shim``, its token is behind the shim and the issuing key is Ed25519: CKM_EDDSA is given the whole message, so that
    the log of what was signed tells certificates from CRLs. Without, it is the P-256 key in SoftHSM of every new home, which
    is ``age`` seconds old.
    """
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(knot(folder / "names", zones=(ZONE,)))
        names.set(f"*.{ZONE}", "A", LOOPBACK)
        http01 = stack.enter_context(http01_responder())
        overrides = {
            **_SETTINGS,
            "VALIDATION__RESOLVERS": json.dumps([names.address]),
            "VALIDATION__HTTP_PORT": str(http01.port),
            **(settings or {}),
        }
        server = ShimServer(folder, overrides) if shim else ServerProcess(folder / "home", overrides)
        disk = FaultyDisk(folder, "privyseal.db")
        clock = SteppingClock(folder)
        server._command = disk.command(*clock.command(PRIVYSEAL, "serve"))
        server.settings["SERVER__HTTP_URL"] = server.http_url
        postgresql = None
        url = f"sqlite:///{server.home / 'privyseal.db'}"
        if database == "postgresql":
            postgresql = stack.enter_context(cluster())
            url = postgresql.new_database()
            server.settings["DATABASE__URL"] = url
        stack.callback(server.close)
        if shim:
            server.init("--issuing-key", "ed25519")
        else:
            clock.step(-age)
            run_command(*clock.command(PRIVYSEAL, "init"), env=server.environment)
            clock.step(0)
        made = server.shim if isinstance(server, ShimServer) else None
        yield World(folder, server, http01, Rows(url), disk, clock, postgresql, made)


def new_folder() -> Path:
    """A folder for one trial; whoever asks for it removes it, unless there is something to look at."""
    return Path(tempfile.mkdtemp(prefix="privyseal-chaos-"))
