"""PostgreSQL and its clients, configured by the page for relying parties, refuse revoked certificates."""

import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fakes.dns import LOOPBACK
from fakes.postgresql import Postgresql, cluster
from fakes.relying import OWN, TRUST, Authority, Identity, Relying, adapted, blocks
from fakes.relying_programs import eventually

pytestmark = [pytest.mark.client, pytest.mark.postgresql]
pytest_plugins = ("fakes.relying_fixtures",)

SERVER, ACCESS = blocks("PostgreSQL", "conf")
(CONNECTION,) = blocks("PostgreSQL", "text")


class Database:
    """A server with the page's lines, and copies of its files that belong to its user."""

    def __init__(self, server: Postgresql, own: Identity, relying: Relying) -> None:
        self._server = server
        self._relying = relying
        self._data = Path(self._administer("SHOW data_directory"))
        self._files = self._data.parent / "files"
        self._files.mkdir()
        self._administer("CREATE DATABASE app")
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as configuration:
            configuration.write(adapted(SERVER, {OWN: self._files, TRUST: self._files}))
        access = self._data / "pg_hba.conf"
        before = access.read_text(encoding="utf-8")
        access.write_text(adapted(ACCESS, {"scram-sha-256": "trust"}) + before, encoding="utf-8")
        self.configure(own)

    def configure(self, own: Identity) -> None:
        """Have the server read ``own`` and the CRLs as they are now, as its reload does."""
        for path in (own.pem, own.key, self._relying.roots, self._relying.crls):
            copy = Path(shutil.copy(path, self._files))
            copy.chmod(0o600)
        for path in (self._files, *self._files.iterdir()):
            if not os.geteuid():
                user = pwd.getpwnam("postgres")
                os.chown(path, user.pw_uid, user.pw_gid)
        self._administer("SELECT pg_reload_conf()")

    def answers(self, client: Identity) -> str:
        """What comes of a connection of ``client`` with the page's parameters: ``ok``, or why there is none."""
        places = {
            "app.corp.example": LOOPBACK,
            f"{OWN}/job.pem": client.pem,
            f"{OWN}/job.key": client.key,
            TRUST: self._relying.folder,
        }
        client.key.chmod(0o600)
        parameters = " ".join(adapted(CONNECTION, places).split())
        try:
            with psycopg.connect(f"{parameters} port={self._server.port} user=privyseal") as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError as error:
            return str(error)
        return "ok"

    def _administer(self, statement: str) -> str:
        with psycopg.connect(self._server.url("postgres"), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return str((cursor.fetchone() or [""])[0]) if cursor.description else ""


@pytest.fixture
def database(relying: Relying, app: Identity) -> Iterator[Database]:
    """A server of the test's own."""
    with cluster() as server:
        yield Database(server, app, relying)


def test_revoked_clients_and_servers_are_refused(
    database: Database, relying: Relying, authority: Authority, app: Identity, good: Identity, bad: Identity
) -> None:
    leaver = authority.issue()
    eventually(lambda: database.answers(good) == "ok")
    assert database.answers(leaver) == "ok"
    assert "revoked" in database.answers(bad)
    authority.revoke(leaver)
    relying.refresh()
    assert database.answers(leaver) == "ok", "the file is read on reload"
    database.configure(app)
    eventually(lambda: "revoked" in database.answers(leaver))
    assert database.answers(good) == "ok"
    database.configure(bad)
    eventually(lambda: "certificate verify failed" in database.answers(good))
