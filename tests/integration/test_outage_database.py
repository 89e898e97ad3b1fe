"""While the database is away clients are told to try again, and those who do lose nothing (P3, P5, P7)."""

import contextlib
import itertools
import resource
import sqlite3
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fakes.acme_client import AcmeClient
from fakes.dns import Knot
from fakes.home import MakeSettings
from fakes.http01 import Http01
from fakes.outages import FailingStore, readiness
from fakes.postgresql import Postgresql, copy_to_postgresql
from fakes.process import ServerProcess, served
from fakes.retrying import Retrying, check_issued, check_try_again
from fakes.service import NewClient, RunningService, StartService, serving, txt_setter
from fakes.store_faults import raising
from privyseal_acme.flow import finalize as finalize_flow
from privyseal_ca.config import Settings

_PATIENCE = 20.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finalize_flow, "_DRAIN_PAUSE", 0.1)


@pytest.fixture
def failing() -> FailingStore:
    return FailingStore()


@pytest.mark.parametrize("persisted", [False, True], ids=["lost", "stored"])
@pytest.mark.parametrize("commit", range(1, 8))
def test_each_commit_of_an_order_may_fail(
    start_service: StartService, new_client: NewClient, failing: FailingStore, commit: int, persisted: bool
) -> None:
    """The nth commit fails, before or after it was written (CommitUncertain): the client tries again, and nothing else."""
    service = start_service(parts=failing.parts)
    client = Retrying(new_client(service))
    left = itertools.count(1)
    error = failing.backend.errors("the disk failed")

    def fail() -> None:
        if next(left) == commit:
            raise error

    (failing.backend.after if persisted else failing.backend.before)["COMMIT"] = fail
    order_id, certificate = client.issue()
    client.issue()
    client.client.close()
    service.stop()
    assert check_issued(service.settings.database_url, {order_id: certificate}) <= 1


def test_locked_by_another_process(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(database={"timeout": 0.3})
    client = Retrying(new_client(service))
    path = service.settings.database_url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        order = {"identifiers": [{"type": "dns", "value": "locked.test"}]}
        begun = monotonic()
        check_try_again(client.client.post(client.client.directory["newOrder"], order))
        assert monotonic() - begun < 3
        assert not readiness(service.status)["ready"]
        # Status and whatever only reads go on.
        assert client.client.post(client.client.account or "").status == 200
        assert urllib.request.urlopen(f"{service.status}/roots.pem", timeout=5).status == 200  # noqa: S310
        connection.execute("ROLLBACK")
    assert readiness(service.status)["ready"]
    order_id, certificate = client.issue()
    client.client.close()
    service.stop()
    assert check_issued(service.settings.database_url, {order_id: certificate}) == 0


def test_a_full_disk(tmp_path: Path, dns_server: Knot, http01: Http01) -> None:
    """The service's files cannot grow any more: the real command under a limit of the kernel's."""
    settings = {"VALIDATION__RESOLVERS": f'["{dns_server.address}"]', "VALIDATION__HTTP_PORT": str(http01.port)}
    with served(tmp_path / "home", settings) as server:
        client = Retrying(AcmeClient(server.directory, server.roots, http01=http01))
        client.client.register()
        issued = dict([client.issue()])
        with files_limited(server):
            for _ in range(3):
                answer = client.client.post(
                    client.client.directory["newOrder"], {"identifiers": [{"type": "dns", "value": "full.test"}]}
                )
                check_try_again(answer)
            assert not readiness(server.http_url)["ready"]
        issued |= dict([client.issue()])
        assert readiness(server.http_url)["ready"]
        client.client.close()
        assert server.stop() == 0
        server.command("ledger", "verify")
        assert check_issued(f"sqlite:///{server.home / 'privyseal.db'}", issued) <= 1


@contextlib.contextmanager
def files_limited(server: ServerProcess) -> Iterator[None]:
    """No file of the process grows past its first page."""
    before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before)


@pytest.fixture
def on_postgresql(
    make_settings: MakeSettings, dns_server: Knot, http01: Http01, postgresql: Postgresql
) -> Callable[..., Settings]:
    """Settings of the run's authority on PostgreSQL."""

    def make(**database: object) -> Settings:
        settings = make_settings(validation={"resolvers": (dns_server.address,), "http_port": http01.port})
        url = copy_to_postgresql(settings.database_url, postgresql)
        section = settings.database.model_copy(update={"url": url, **database})
        return settings.model_copy(update={"database": section})

    return make


def connect(service: RunningService, http01: Http01, dns_server: Knot) -> Retrying:
    client = AcmeClient(service.directory, service.roots, http01=http01, set_txt=txt_setter(dns_server))
    client.register()
    return Retrying(client)


@pytest.mark.postgresql
def test_postgresql_restarts_under_load(
    on_postgresql: Callable[..., Settings], postgresql: Postgresql, http01: Http01, dns_server: Knot
) -> None:
    settings = on_postgresql(timeout=5)
    issued: dict[str, x509.Certificate] = {}
    stop = threading.Event()

    def work(client: Retrying) -> int:
        while not stop.is_set():
            order_id, certificate = client.issue()
            issued[order_id] = certificate
        client.client.close()
        return client.refused

    with serving(settings) as service, ThreadPoolExecutor(3) as pool:
        try:
            clients = [connect(service, http01, dns_server) for _ in range(3)]
            working = [pool.submit(work, client) for client in clients]
            for _ in range(3):
                seen = len(issued)
                postgresql.restart()
                deadline = monotonic() + _PATIENCE
                while len(issued) < seen + 5:
                    assert monotonic() < deadline
                    assert not any(future.done() for future in working)
                    sleep(0.01)
        finally:
            stop.set()
        refused = sum(future.result() for future in working)
        assert readiness(service.status)["ready"]
    assert len(issued) >= 15
    assert refused >= 1
    check_issued(settings.database_url, issued)


@pytest.mark.postgresql
def test_a_commit_that_is_made_after_it_was_given_up(
    on_postgresql: Callable[..., Settings], postgresql: Postgresql, http01: Http01, dns_server: Knot
) -> None:
    """The server freezes with the last commit of an order on its way to it, and thaws when nobody waits any more."""
    settings = on_postgresql(timeout=0.3)
    failing = FailingStore()
    with serving(settings, **failing.parts) as service:
        client = connect(service, http01, dns_server)
        client.issue()
        frozen = contextlib.ExitStack()
        authority = service.service.context.authority
        real = authority._finish

        def finish(*arguments: object) -> object:
            result = real(*arguments)  # type: ignore[arg-type]
            authority._finish = real  # type: ignore[method-assign]
            failing.backend.before["COMMIT"] = once_frozen
            return result

        def once_frozen() -> None:
            del failing.backend.before["COMMIT"]
            frozen.enter_context(postgresql.frozen())

        authority._finish = finish  # type: ignore[method-assign,assignment]
        thaw = threading.Timer(4, frozen.close)
        thaw.start()
        order_id, certificate = client.issue()
        thaw.join()
        assert client.refused >= 1
        assert client.issue()
        client.client.close()
    # The commit was made or was not; either way there is one certificate.
    assert check_issued(settings.database_url, {order_id: certificate}) <= 1


@pytest.mark.postgresql
def test_the_whole_way_on_postgresql(tmp_path: Path, postgresql: Postgresql, dns_server: Knot, http01: Http01) -> None:
    """``init``, ``serve``, a certificate, a second service that is refused, and the ledger's check."""
    url = postgresql.new_database()
    settings = {
        "DATABASE__URL": url,
        "VALIDATION__RESOLVERS": f'["{dns_server.address}"]',
        "VALIDATION__HTTP_PORT": str(http01.port),
    }
    with served(tmp_path / "home", settings) as server:
        client = Retrying(AcmeClient(server.directory, server.roots, http01=http01))
        client.client.register()
        issued = dict(client.issue() for _ in range(3))
        first = next(iter(issued.values()))
        assert client.client.revoke(first.public_bytes(Encoding.DER), reason=4).status == 200
        second = server.command("serve", expect=None)
        assert second.returncode == 1
        assert "Another privyseal service" in second.stderr
        client.client.close()
        assert server.stop() == 0
        assert server.json("ledger", "verify")["in_flight"] == 0
        assert not list(server.home.glob("*.db*"))
    assert check_issued(url, issued) == 0


def test_the_error_of_a_commit_is_nobody_elses(
    start_service: StartService, new_client: NewClient, failing: FailingStore
) -> None:
    """Many clients whose orders share the commit that fails: each is told, each tries again, each has its certificate."""
    service = start_service(parts=failing.parts)
    clients = [Retrying(new_client(service)) for _ in range(4)]
    for hooks in (failing.backend.before, failing.backend.after):
        hooks["COMMIT"] = raising(failing.backend.errors("the disk failed"))
    with ThreadPoolExecutor(4) as pool:
        issued = dict(pool.map(lambda client: client.issue(), clients))
    for client in clients:
        client.client.close()
    service.stop()
    check_issued(service.settings.database_url, issued)
