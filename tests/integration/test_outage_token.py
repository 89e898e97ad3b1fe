"""While the token is away orders wait and everything else goes on (P5, P7); when it is back they drain by themselves."""

import itertools
import json
import shutil
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pkcs11
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.acme_client import AcmeClient, Response, b64, make_csr
from fakes.dns import Knot
from fakes.http01 import Http01
from fakes.outages import FailingToken, readiness
from fakes.process import ServerProcess, served
from fakes.promises import check_promises
from fakes.service import NewClient, RunningService, StartService, serving
from privyseal_acme import service as composition
from privyseal_acme.flow import finalize as finalize_flow
from privyseal_acme.store import orders
from privyseal_ca.errors import StoreUnavailableError
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.ledger.audit import AuditReport
from privyseal_ca.store.statement import Transaction

_PATIENCE = 20.0


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> FailingToken:
    """A token that can be made to fail, in a service that looks after it more often than usual."""
    monkeypatch.setattr(composition, "_PROBE_SECONDS", 0.1)
    monkeypatch.setattr(finalize_flow, "_DRAIN_PAUSE", 0.1)
    return FailingToken()


@pytest.fixture
def service(start_service: StartService, token: FailingToken) -> RunningService:
    return start_service(parts=token.parts, hsm={"retry_after": 0.05})


@pytest.fixture
def client(service: RunningService, new_client: NewClient) -> AcmeClient:
    return new_client(service)


class Order:
    """A ready order with its CSR."""

    def __init__(self, client: AcmeClient, name: str, **members: Any) -> None:
        self._client = client
        self.order = client.ready_order(name, **members)
        self.url = self.order.headers["Location"]
        self.id = self.url.rpartition("/")[2]
        self.csr = make_csr([name], ec.generate_private_key(ec.SECP256R1()))

    def finalize(self) -> Response:
        return self._client.finalize(self.order, self.csr)

    def park(self) -> None:
        """Finalize while the token is away: the order waits, and says for how long to."""
        for answer in (self.finalize(), self._client.post(self.url), self.finalize()):
            assert answer.status == 200, answer.body
            assert answer.json["status"] == "processing"
            assert "certificate" not in answer.json
            assert int(answer.headers["Retry-After"]) >= 1

    def finish(self) -> x509.Certificate:
        answer = self._client.poll(self.url, ("processing",))
        assert answer.json["status"] == "valid", answer.body
        return self._client.download(answer.json["certificate"])[0]


def wait_until_ready(status: str) -> None:
    deadline = monotonic() + _PATIENCE
    while not readiness(status)["ready"]:
        assert monotonic() < deadline
        sleep(0.02)


def promises(service: RunningService) -> AuditReport:
    """Stop the service and check what it left."""
    service.stop()
    report, _ = check_promises(service.settings.database_url)
    return report


def ari_id(certificate: x509.Certificate) -> str:
    key_id = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    serial = certificate.serial_number
    return f"{b64(key_id or b'')}.{b64(serial.to_bytes(serial.bit_length() // 8 + 1, 'big'))}"


def test_orders_wait_and_drain_most_urgent_first(
    service: RunningService, client: AcmeClient, token: FailingToken
) -> None:
    now = datetime.fromtimestamp(service.clock.now(), UTC)
    predecessors = {
        hours: client.issue(f"p{hours}.test", notAfter=(now + timedelta(hours=hours)).isoformat()).certificate
        for hours in (9, 3, 6)
    }
    orders = {0: Order(client, "p0.test")}
    orders |= {
        hours: Order(client, f"p{hours}.test", replaces=ari_id(certificate))
        for hours, certificate in predecessors.items()
    }
    token.take_away()
    pins = token.pins
    for order in orders.values():
        order.park()
    document = readiness(service.status)
    assert document["parts"]["token"] != "ok"
    assert document["parts"]["database"] == document["parts"]["ledger"] == "ok"

    # Everything that needs no signature goes on.
    late = Order(client, "late.test")
    assert urllib.request.urlopen(f"{service.status}/roots.pem", timeout=5).status == 200  # noqa: S310
    assert client.revoke(predecessors[9].public_bytes(serialization.Encoding.DER)).status == 200

    token.bring_back()
    certificates = {hours: order.finish() for hours, order in orders.items()}
    wait_until_ready(service.status)
    assert late.finalize().status == 200
    late.finish()
    assert token.pins - pins <= 1, "one login for one return"

    service.stop()
    report, histories = check_promises(service.settings.database_url)
    index = {}
    for hours, order in orders.items():
        certificate = histories[order.id].certificate
        assert certificate is not None
        assert certificate.serial == serial_text(certificates[hours].serial_number)
        index[hours] = certificate.ledger_index
    assert sorted(index, key=index.__getitem__) == [3, 6, 9, 0]
    # Only the order that found out that the token is away had an intent.
    assert report.abandoned <= 1


@pytest.mark.parametrize("made", [False, True], ids=["before", "after"])
def test_a_token_that_fails_in_the_middle_of_a_signature(
    service: RunningService, client: AcmeClient, token: FailingToken, made: bool
) -> None:
    """Whether or not it made one, that serial is never used, and the order gets another."""
    order = Order(client, "uncertain.test")
    signed = token.faults.calls["sign"]
    token.faults.fail("sign", pkcs11.DeviceError(), after=made)
    assert order.finalize().json["status"] == "processing"
    order.finish()
    assert token.faults.calls["sign"] - signed == 2
    report = promises(service)
    assert report.abandoned == 1


def test_a_token_that_comes_back_and_cannot_sign(
    service: RunningService, client: AcmeClient, token: FailingToken
) -> None:
    """Each return costs one serial, however many orders wait."""
    orders = [Order(client, f"canary{number}.test") for number in range(8)]
    token.take_away()
    for order in orders:
        order.park()
    tries = 3
    token.faults.fail("sign", *(pkcs11.DeviceError() for _ in range(tries)))
    token.bring_back()
    assert len({order.finish().serial_number for order in orders}) == len(orders)
    report = promises(service)
    assert tries <= report.abandoned <= tries + 1


def test_a_refused_pin_is_tried_once_and_the_orders_wait_for_a_person(
    service: RunningService, client: AcmeClient, token: FailingToken
) -> None:
    orders = [Order(client, f"pin{number}.test") for number in range(2)]
    token.faults.fail("sign", pkcs11.SessionHandleInvalid())
    token.faults.fail("open", pkcs11.PinIncorrect())
    opened = token.faults.calls["open"]
    for order in orders:
        order.park()
    document = readiness(service.status)
    assert document["parts"]["token"] != "ok"
    assert token.faults.calls["open"] == opened + 1
    service.stop()
    assert token.faults.calls["open"] == opened + 1
    client.close()
    with serving(service.settings):
        for order in orders:
            order.finish()
    report, _ = check_promises(service.settings.database_url)
    assert report.abandoned <= 1


def test_a_service_that_is_stopped_while_the_token_hangs(
    start_service: StartService, new_client: NewClient, token: FailingToken
) -> None:
    service = start_service(parts=token.parts, server={"shutdown_grace": 0.3}, acme={"finalize_wait": 0.1})
    client = new_client(service)
    order = Order(client, "hanging.test")
    reached, gate = threading.Event(), threading.Event()

    def hang() -> None:
        reached.set()
        gate.wait(_PATIENCE)

    token.faults.hook("sign", hang)
    order.park()
    assert reached.wait(_PATIENCE)
    stopping = threading.Thread(target=service.stop)
    stopping.start()
    # The grace passes while the token still hangs; then it signs what nobody waits for any more.
    stopping.join(1)
    gate.set()
    stopping.join(_PATIENCE)
    assert not stopping.is_alive()
    client.close()
    with serving(service.settings):
        order.finish()
    report, histories = check_promises(service.settings.database_url)
    assert report.abandoned == len(histories[order.id].abandoned) == 1


def test_an_order_that_ends_while_its_certificate_is_signed(
    service: RunningService, client: AcmeClient, token: FailingToken
) -> None:
    """Nobody gets the certificate, and its serial is closed at once, not with the next start."""
    order = Order(client, "ends.test")

    def end() -> None:
        token.faults.hook("sign", lambda: None)
        connection = service.service.context.store._backend.connect(writing=True)
        with connection:
            connection.execute("UPDATE acme_order SET state = 'invalid' WHERE id = ?", (order.id,))
        connection.close()

    token.faults.hook("sign", end)
    assert order.finalize().json["status"] == "invalid"
    report = promises(service)
    assert report.abandoned == 1


def test_a_database_that_fails_a_reader_does_not_end_an_order(
    service: RunningService, client: AcmeClient, token: FailingToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Order(client, "reader.test")
    token.take_away()
    order.park()
    left, real = [StoreUnavailableError("the connection died") for _ in range(3)], finalize_flow._check_key

    def check(*arguments: Any) -> None:
        if left:
            raise left.pop()
        real(*arguments)

    monkeypatch.setattr(finalize_flow, "_check_key", check)
    token.bring_back()
    order.finish()
    assert not left
    promises(service)


def test_the_work_goes_on_after_an_error_that_nobody_foresaw(
    service: RunningService, client: AcmeClient, token: FailingToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Order(client, "unforeseen.test")
    token.take_away()
    order.park()
    left, real = [ZeroDivisionError() for _ in range(2)], finalize_flow._most_urgent

    def urgent(*arguments: Any) -> list[str]:
        if left:
            raise left.pop()
        return real(*arguments)

    monkeypatch.setattr(finalize_flow, "_most_urgent", urgent)
    token.bring_back()
    order.finish()
    assert not left


def test_finalize_and_the_drain_meet(service: RunningService, client: AcmeClient, token: FailingToken) -> None:
    """Clients hand the same CSR in again, all the time, while the token comes and goes."""
    orders = [Order(client, f"meet{number}.test") for number in range(6)]
    stop = threading.Event()
    failures: list[BaseException] = []

    def insist(order: Order) -> None:
        order._client = client.twin()
        try:
            while not stop.is_set() and order.finalize().json["status"] == "processing":
                pass
            order.finish()
        except BaseException as error:  # noqa: BLE001 (raised on the test's own thread)
            failures.append(error)
        finally:
            order._client.close()

    threads = [threading.Thread(target=insist, args=(order,)) for order in orders]
    token.take_away()
    for thread in threads:
        thread.start()
    for error in (pkcs11.DeviceError, pkcs11.TokenNotPresent):
        sleep(0.1)
        token.bring_back()
        sleep(0.02)
        token.take_away(error)
    token.bring_back()
    for thread in threads:
        thread.join(_PATIENCE)
    stop.set()
    assert not failures
    client.close()
    promises(service)


def test_the_real_command_with_its_tokens_moved_away(tmp_path: Path, dns_server: Knot, http01: Http01) -> None:
    """As an operator sees it: the directory of the tokens is gone, and then it is there again."""
    settings = {
        "VALIDATION__RESOLVERS": f'["{dns_server.address}"]',
        "VALIDATION__HTTP_PORT": str(http01.port),
        "HSM__RETRY_AFTER": "0.2",
    }
    with served(tmp_path / "home", settings) as server:
        client = AcmeClient(server.directory, server.roots, http01=http01)
        client.register()
        issued = client.issue("before.test")
        orders = [Order(client, f"moved{number}.test") for number in range(3)]
        tokens = next(path for path in server.home.iterdir() if path.is_dir() and any(path.glob("*/token.object")))
        shutil.move(tokens, tmp_path / "away")
        deadline = monotonic() + _PATIENCE
        while (document := readiness(server.http_url))["ready"]:
            assert monotonic() < deadline
            sleep(0.05)
        assert document["parts"]["token"] != "ok"
        for order in orders:
            order.park()
        Order(client, "validated-meanwhile.test")
        shutil.move(tmp_path / "away", tokens)
        certificates = {order.finish().serial_number for order in orders}
        assert len(certificates | {issued.certificate.serial_number}) == 4
        wait_until_ready(server.http_url)
        client.close()
        assert server.stop() == 0
        server.command("ledger", "verify")
        assert server.json("ledger", "verify")["in_flight"] == 0


def test_finalizes_that_meet_while_the_token_is_slow(
    start_service: StartService, new_client: NewClient, token: FailingToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loser's end does not make the winner's order look as if nobody worked on it: the drain leaves it alone."""
    drains, real = itertools.count(), orders.count_processing
    enough, gate = threading.Event(), threading.Event()

    def count(transaction: Transaction) -> int:
        if reached.is_set() and next(drains) > 3:
            enough.set()
        return real(transaction)

    reached = threading.Event()

    def slow() -> None:
        reached.set()
        gate.wait(_PATIENCE)

    monkeypatch.setattr(orders, "count_processing", count)
    service = start_service(parts=token.parts, acme={"finalize_wait": 0.2})
    account = new_client(service)
    order = Order(account, "slow.test")
    clients = [account.twin() for _ in range(4)]
    for each in clients:
        each.fresh_nonce()
    token.faults.hook("sign", slow)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda each: each.finalize(order.order, order.csr), clients))
    assert {answer.json["status"] for answer in answers} == {"processing"}
    assert enough.wait(_PATIENCE)
    gate.set()
    order.finish()
    for each in (account, *clients):
        each.close()
    service.stop()
    report, histories = check_promises(service.settings.database_url)
    assert len(histories[order.id].serials) == 1
    assert report.abandoned == 0


def asked_until(server: ServerProcess, status: int) -> Any:
    """What /readyz says once it answers with ``status``."""
    deadline = monotonic() + _PATIENCE
    while True:
        assert monotonic() < deadline
        try:
            with urlopen(f"{server.http_url}/readyz", timeout=10) as answer:  # noqa: S310 (a URL of this test)
                code, body = answer.status, answer.read()
        except HTTPError as error:
            code, body = error.code, error.read()
        except OSError:
            sleep(0.05)
            continue
        if code == status:
            return json.loads(body)


def fetched(server: ServerProcess, path: str) -> bytes:
    """The body at ``path``; a listener that is being opened anew is waited for."""
    deadline = monotonic() + _PATIENCE
    while True:
        try:
            with urlopen(f"{server.http_url}{path}", timeout=10) as answer:  # noqa: S310 (a URL of this test)
                return bytes(answer.read())
        except HTTPError:
            raise
        except OSError:
            assert monotonic() < deadline
            sleep(0.05)


def test_a_start_while_the_tokens_are_away_waits_for_them(tmp_path: Path, dns_server: Knot) -> None:
    """After a restart of the machine the token may be the last to be there: nobody has to start the service again."""
    server = ServerProcess(tmp_path / "home", {"VALIDATION__RESOLVERS": f'["{dns_server.address}"]'})
    try:
        server.init()
        tokens = next(path for path in server.home.iterdir() if path.is_dir() and any(path.glob("*/token.object")))
        shutil.move(tokens, tmp_path / "away")
        server.start(wait=False)
        waited = asked_until(server, 503)
        assert waited["ready"] is False
        assert waited["parts"]["token"] != "ok"
        with urlopen(f"{server.http_url}/healthz", timeout=10) as alive:  # noqa: S310 (a URL of this test)
            assert alive.status == 200
        assert "waits to start" in server.log
        shutil.move(tmp_path / "away", tokens)
        server.wait_until_ready()
        assert server.stop() == 0
        assert server.json("ledger", "verify")["in_flight"] == 0
    finally:
        server.close()


def test_status_is_served_while_a_start_waits_for_the_tokens(tmp_path: Path) -> None:
    """What was published before holds, whoever else is away (promise P7)."""
    server = ServerProcess(tmp_path / "home")
    try:
        server.init()
        server.start()
        (listed,) = {crl["issuer_id"] for crl in server.json("crl", "list") if crl["scope"] == "0"}
        paths = [f"/crl/{listed}.crl", f"/crl/{listed}/0.crl", f"/issuers/{listed}.cer", "/roots.pem"]
        before = {path: fetched(server, path) for path in paths}
        assert server.stop() == 0
        tokens = next(path for path in server.home.iterdir() if path.is_dir() and any(path.glob("*/token.object")))
        shutil.move(tokens, tmp_path / "away")
        server.start(wait=False)
        assert asked_until(server, 503)["parts"]["token"] != "ok"
        assert {path: fetched(server, path) for path in paths} == before
        shutil.move(tmp_path / "away", tokens)
        server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


def test_a_start_that_waits_can_be_stopped(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "home")
    try:
        server.init()
        tokens = next(path for path in server.home.iterdir() if path.is_dir() and any(path.glob("*/token.object")))
        shutil.move(tokens, tmp_path / "away")
        server.start(wait=False)
        deadline = monotonic() + _PATIENCE
        while "waits to start" not in server.log:
            assert monotonic() < deadline
            sleep(0.05)
        assert server.stop() == 0
    finally:
        server.close()
