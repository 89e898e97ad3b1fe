"""The disk under the database fails as disks do: issuance stops, status goes on, nothing is lost, nobody has to help (P3, P7).

The real command with the real kernel's errors in its database's files, of which some come after the work was done.
"""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from fakes.acme_client import AcmeClient
from fakes.disk import FaultyDisk, Mode
from fakes.dns import Knot
from fakes.http01 import Http01
from fakes.outages import readiness
from fakes.process import PRIVYSEAL, ServerProcess
from fakes.retrying import Retrying, check_issued, check_try_again
from fakes.status_client import ask, crl_url, eventually, fetch_crl, get, issuer_of

#: Where files cannot grow SQLite goes on as long as there is room in its log: that is tried with PostgreSQL.
_MODES = [mode for mode in Mode if mode not in {Mode.HEALTHY, Mode.CANNOT_GROW}]


class Scene:
    """A service, its disk and a client, and what was issued."""

    def __init__(self, server: ServerProcess, disk: FaultyDisk, client: Retrying) -> None:
        self.server = server
        self.disk = disk
        self.client = client
        self.issued: dict[str, x509.Certificate] = {}

    def issue(self) -> x509.Certificate:
        """A certificate, however often the client has to ask."""
        order_id, certificate = self.client.issue()
        self.issued[order_id] = certificate
        return certificate

    def require_status(self, certificate: x509.Certificate, issuer: x509.Certificate) -> None:
        """Relying parties get what they need."""
        assert ask(certificate, issuer).certificate_status is ocsp.OCSPCertStatus.GOOD
        assert fetch_crl(crl_url(certificate)).issuer == issuer.subject
        assert get(f"{self.server.http_url}/roots.pem")

    def require_stop(self, kind: str) -> None:
        """Nothing is issued, and everybody who asks is told why."""
        for _ in range(3):
            answer = self.client.client.post(
                self.client.client.directory["newOrder"], {"identifiers": [{"type": "dns", "value": f"{kind}.test"}]}
            )
            check_try_again(answer)
        document = readiness(self.server.http_url)
        assert not document["ready"]
        assert document["parts"]["database"] != "ok"
        metrics = get(f"{self.server.http_url}/metrics")[0].decode()
        assert 'privyseal_ready{part="database"} 0.0' in metrics


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, dns_server: Knot, http01: Http01) -> Iterator[Scene]:
    """One service for all faults: it is never started again between them."""
    folder = tmp_path_factory.mktemp("disk")
    disk = FaultyDisk(folder, "privyseal.db")
    settings = {
        "VALIDATION__RESOLVERS": f'["{dns_server.address}"]',
        "VALIDATION__HTTP_PORT": str(http01.port),
        "STATUS__OCSP_DELAY": "0",
        "STATUS__INTERVAL": "0.5",
    }
    server = ServerProcess(folder / "home", settings, command=disk.command(PRIVYSEAL, "serve"))
    try:
        server.init()
        server.start()
        client = Retrying(AcmeClient(server.directory, server.roots, http01=http01))
        client.client.register()
        scene = Scene(server, disk, client)
        yield scene
        client.client.close()
        assert server.stop() == 0
        server.command("ledger", "verify")
        check_issued(f"sqlite:///{server.home / 'privyseal.db'}", scene.issued)
    finally:
        disk.heal()
        server.close()


@pytest.mark.parametrize("mode", _MODES, ids=lambda mode: mode.name.lower())
def test_a_disk_that_fails_until_it_is_mended(scene: Scene, mode: Mode) -> None:
    certificate = scene.issue()
    issuer = issuer_of(certificate)
    eventually(lambda: ask(certificate, issuer).response_status is ocsp.OCSPResponseStatus.SUCCESSFUL)
    before = scene.disk.injected
    with scene.disk.failing(mode):
        scene.require_stop(mode.name.lower().replace("_", "-"))
        scene.require_status(certificate, issuer)
    assert scene.disk.injected > before
    scene.issue()
    eventually(lambda: readiness(scene.server.http_url)["ready"])


@pytest.mark.parametrize("mode", _MODES, ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_disk_that_fails_now_and_then(scene: Scene, mode: Mode, times: int) -> None:
    """Whatever is under way meets it: the client tries again, and has its certificate."""
    scene.disk.fail(mode, times=times)
    scene.issue()
    deadline = monotonic() + 10
    while scene.disk.injected < times and monotonic() < deadline:
        sleep(0.02)
    scene.disk.heal()
    scene.issue()
    eventually(lambda: readiness(scene.server.http_url)["ready"])


@pytest.mark.parametrize("table", ["ledger_head", "intent", "certificate", "acme_order"])
def test_a_page_that_was_corrupted(scene: Scene, table: str) -> None:
    """Found by those who use it; with the page as it was the service goes on by itself, and the client has waited."""
    certificate = scene.issue()
    issuer = issuer_of(certificate)
    eventually(lambda: ask(certificate, issuer).response_status is ocsp.OCSPResponseStatus.SUCCESSFUL)
    path = scene.server.home / "privyseal.db"
    with ThreadPoolExecutor(1) as pool, corrupted(path, table):
        waiting = pool.submit(scene.issue)
        eventually(lambda: not readiness(scene.server.http_url)["ready"] or scene.client.refused)
        scene.require_status(certificate, issuer)
        assert not waiting.done()
    waiting.result()
    scene.issue()
    eventually(lambda: readiness(scene.server.http_url)["ready"])


@contextmanager
def corrupted(path: Path, table: str) -> Iterator[None]:
    """Inside the block the first page of ``table`` is not one, for everybody who reads it from the disk."""
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection, path.open("r+b") as file:
        (number,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        place = (number - 1) * size
        # Nobody writes meanwhile, and what was written is in the file itself, where it is found again.
        while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            sleep(0.01)
        connection.execute("BEGIN IMMEDIATE")
        file.seek(place)
        good = file.read(size)
        file.seek(place)
        file.write(b"\xff" * size)
        file.flush()
        # What a process remembers is right until somebody else changes the database.
        connection.execute("CREATE TABLE elsewhere (x)")
        connection.execute("COMMIT")
        try:
            yield
        finally:
            file.seek(place)
            file.write(good)
            file.flush()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DROP TABLE elsewhere")
            connection.execute("COMMIT")
