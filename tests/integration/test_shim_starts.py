"""Starts that meet a token which hangs or fails once, and queues that are shorter than what waits: nobody has to lend a hand."""

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException

import pytest

from fakes.acme_client import AcmeClient
from fakes.dns import Knot
from fakes.http01 import Http01
from fakes.promises import check_promises
from fakes.shim import CKR
from fakes.shim_server import ISSUING_KEY, Order, ShimServer, wait_until
from privyseal_ca.issuance.record import serial_text

_QUEUE = 4
_WAITING = 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, dns_server: Knot, http01: Http01) -> Iterator[ShimServer]:
    """A home that each test starts."""
    settings = {
        "VALIDATION__RESOLVERS": f'["{dns_server.address}"]',
        "VALIDATION__HTTP_PORT": str(http01.port),
        "HSM__QUEUE": str(_QUEUE),
        "HSM__TIMEOUT": "0.5",
        "SERVER__SHUTDOWN_GRACE": "1",
    }
    made = ShimServer(tmp_path_factory.mktemp("starts"), settings)
    try:
        made.init()
        made.start()
        assert made.stop() == 0
        yield made
    finally:
        made.shim.lift()
        made.close()


@pytest.mark.parametrize("function", ["C_OpenSession", "C_Initialize"])
def test_a_start_while_the_token_hangs(server: ShimServer, function: str) -> None:
    """The start is begun again and again in the same process, which has to be able to use the module in the end."""
    before = server.log.count("waits to start")
    with server.shim.hanging(function):
        server.start(wait=False)
        wait_until("it tries again", lambda: server.log.count("waits to start") > before + 1)
        wait_until("status is served", lambda: _served(server))
    server.wait_until_ready()
    assert server.stop() == 0


def test_a_start_whose_first_signature_fails(server: ShimServer) -> None:
    """The server's own certificate is the first thing that is signed, and each try costs a serial."""
    log = len(server.log)
    server.shim.fail("C_Sign", CKR.DEVICE_ERROR, after=True, times=2, key=ISSUING_KEY)
    server.start()
    assert not server.shim.pending("C_Sign")
    assert server.stop() == 0
    pauses = [json.loads(line)["seconds"] for line in server.log[log:].splitlines() if "waits to start" in line]
    assert pauses == [2.0, 4.0]
    check_promises(server.database_url)


def test_more_orders_wait_than_the_queue_holds(server: ShimServer, http01: Http01) -> None:
    """What has waited for the token goes on as fast as the queue lets it, and no serial is spent on a queue that is full."""
    server.start()
    client = AcmeClient(server.directory, server.roots, http01=http01)
    client.register()
    orders = [Order(client, f"order{number}.test") for number in range(_WAITING)]
    server.shim.take_away()
    for order in orders:
        while order.finalize().status == 503:
            pass
    server.shim.delay("C_Sign", 0.02)
    server.shim.bring_back()
    assert len({order.finish().serial_number for order in orders}) == _WAITING
    server.shim.lift()
    client.close()
    assert server.stop() == 0
    report, _ = check_promises(server.database_url)
    spent = sum(entry["kind"] == "certificate.abandoned" for entry in server.entries())
    assert report.abandoned == spent
    # The one that found the token gone, and those of the starts before.
    assert spent <= 4


def test_a_stop_while_the_token_hangs(server: ShimServer, http01: Http01) -> None:
    """What was asked of it may be signed when it goes on, with nobody there: the next process issues under another serial."""
    server.start()
    client = AcmeClient(server.directory, server.roots, http01=http01)
    client.register()
    order = Order(client, "stopped.test")
    with server.shim.hanging("C_Sign", key=ISSUING_KEY):
        threading.Thread(target=lambda: suppressed(order.finalize), daemon=True).start()
        server.shim.wait_until_hanging("C_Sign")
        assert server.stop() == 0
    server.start()
    client.close()
    certificate = order.finish()
    client.close()
    assert server.stop() == 0
    _, histories = check_promises(server.database_url)
    assert len(histories[order.id].abandoned) == 1
    assert serial_text(certificate.serial_number) not in histories[order.id].abandoned


def suppressed(work: Callable[[], object]) -> None:
    """Its connection may be closed under it."""
    with suppress(OSError, HTTPException):
        work()


def _served(server: ShimServer) -> bool:
    try:
        with urllib.request.urlopen(f"{server.http_url}/crls.pem", timeout=10) as answer:  # noqa: S310 (plain, loopback)
            return bool(answer.read())
    except OSError:
        return False
