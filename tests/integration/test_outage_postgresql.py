"""PostgreSQL that is full, read-only, locked or cut off: issuance stops, status goes on, nobody has to help (P3, P7)."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import psycopg
import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from fakes.acme_client import AcmeClient
from fakes.disk import FaultyDisk, Mode
from fakes.dns import Knot
from fakes.http01 import Http01
from fakes.outages import readiness
from fakes.postgresql import Postgresql, cluster
from fakes.process import ServerProcess
from fakes.retrying import Retrying, check_issued
from fakes.status_client import ask, crl_url, eventually, fetch_crl, issuer_of

pytestmark = pytest.mark.postgresql

Fault = Callable[["Scene"], AbstractContextManager[None]]


class Scene:
    """A service on a PostgreSQL of its own."""

    def __init__(self, server: ServerProcess, database: Postgresql, disk: FaultyDisk, client: Retrying) -> None:
        self.server = server
        self.database = database
        self.disk = disk
        self.client = client
        self.url = server.settings["DATABASE__URL"]
        self.issued: dict[str, x509.Certificate] = {}

    def issue(self) -> x509.Certificate:
        order_id, certificate = self.client.issue()
        self.issued[order_id] = certificate
        return certificate

    def issue_until(self, lifted: Event) -> None:
        """Certificates, one after the other; the last is issued after the fault was lifted."""
        while not lifted.is_set():
            self.issue()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, dns_server: Knot, http01: Http01) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("postgresql-faults")
    with TemporaryDirectory(prefix="privyseal-disk-") as elsewhere, ExitStack() as stack:
        # The server runs as somebody else, who has no way into the tests' own folders.
        Path(elsewhere).chmod(0o755)
        disk = FaultyDisk(Path(elsewhere), "/base/")
        database = stack.enter_context(cluster(disk.environment))
        settings = {
            "DATABASE__URL": database.new_database(),
            "DATABASE__TIMEOUT": "2",
            "VALIDATION__RESOLVERS": f'["{dns_server.address}"]',
            "VALIDATION__HTTP_PORT": str(http01.port),
            "STATUS__OCSP_DELAY": "0",
            "STATUS__INTERVAL": "0.5",
        }
        server = ServerProcess(folder / "home", settings)
        try:
            server.init()
            server.start()
            client = Retrying(AcmeClient(server.directory, server.roots, http01=http01))
            client.client.register()
            scene = Scene(server, database, disk, client)
            yield scene
            client.client.close()
            assert server.stop() == 0
            server.command("ledger", "verify")
            check_issued(scene.url, scene.issued)
        finally:
            disk.heal()
            server.close()


@contextmanager
def full(scene: Scene) -> Iterator[None]:
    """No table grows any more."""
    before = scene.disk.injected
    with scene.disk.failing(Mode.CANNOT_GROW):
        yield
    assert scene.disk.injected > before


@contextmanager
def read_only(scene: Scene) -> Iterator[None]:
    """What a server is that was made a standby, or whose administrator says so."""
    scene.database.administer("ALTER SYSTEM SET default_transaction_read_only = on")
    scene.database.administer("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        with psycopg.connect(scene.database.url("postgres"), autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")


@contextmanager
def locked(scene: Scene) -> Iterator[None]:
    """Somebody's migration that was forgotten."""
    with psycopg.connect(scene.url) as connection:
        connection.execute("LOCK TABLE ledger_head IN ACCESS EXCLUSIVE MODE")
        yield


def disconnect(scene: Scene) -> None:
    """End every connection to the service's database."""
    with psycopg.connect(scene.database.url("postgres"), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (scene.url.rpartition("/")[2],)
        )


@contextmanager
def refusing(scene: Scene) -> Iterator[None]:
    """Every connection is ended and no other let in."""
    name = scene.url.rpartition("/")[2]
    scene.database.administer(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    disconnect(scene)
    try:
        yield
    finally:
        scene.database.administer(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest.mark.parametrize("fault", [full, read_only, locked, refusing])
def test_it_stops_and_goes_on(scene: Scene, fault: Fault) -> None:
    certificate = scene.issue()
    issuer = issuer_of(certificate)
    eventually(lambda: ask(certificate, issuer).response_status is ocsp.OCSPResponseStatus.SUCCESSFUL)
    fetch_crl(crl_url(certificate))
    scene.client.refused = 0
    lifted = Event()
    with ThreadPoolExecutor(1) as pool:
        with fault(scene):
            # A full disk is met when a table has to grow: some orders may still find room.
            waiting = pool.submit(lambda: scene.issue_until(lifted))
            try:
                eventually(lambda: scene.client.refused > 0, seconds=15)
                eventually(lambda: not readiness(scene.server.http_url)["ready"], seconds=10)
                assert ask(certificate, issuer).certificate_status is ocsp.OCSPCertStatus.GOOD
                assert fetch_crl(crl_url(certificate)).issuer == issuer.subject
                assert not waiting.done()
            finally:
                lifted.set()
        waiting.result()
        scene.issue()
    eventually(lambda: readiness(scene.server.http_url)["ready"], seconds=10)


def test_connections_that_are_ended_under_load(scene: Scene) -> None:
    """Again and again, wherever the service is just then."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: [scene.issue() for _ in range(10)])
        while not waiting.done():
            disconnect(scene)
            # The more often, the less gets through: a connection of its own takes the service some milliseconds.
            wait([waiting], timeout=0.1)
        assert len(waiting.result()) == 10
    eventually(lambda: readiness(scene.server.http_url)["ready"], seconds=10)
