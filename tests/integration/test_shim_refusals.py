"""What is never tried again: a PIN that was refused, and a key that is not what promise P1 says."""

from collections.abc import Iterator
from contextlib import suppress
from urllib.request import urlopen

import pytest

from fakes.acme_client import AcmeClient
from fakes.dns import Knot
from fakes.http01 import Http01
from fakes.promises import check_promises
from fakes.shim import CKA, CKF, CKR, Shim
from fakes.shim_server import ISSUING_KEY, Order, ShimServer, wait_until

_numbers = iter(range(1_000_000))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, dns_server: Knot, http01: Http01) -> Iterator[ShimServer]:
    """One home, whose service each test starts, as what is tested lasts as long as a process."""
    settings = {"VALIDATION__RESOLVERS": f'["{dns_server.address}"]', "VALIDATION__HTTP_PORT": str(http01.port)}
    server = ShimServer(tmp_path_factory.mktemp("refusals"), settings)
    server.init()
    yield server
    server.close()


@pytest.fixture
def server(home: ShimServer) -> Iterator[ShimServer]:
    home.start()
    try:
        yield home
        home.shim.lift()
        if home.running:
            assert home.stop() == 0
    finally:
        home.shim.lift()
        home.close()


@pytest.fixture
def shim(server: ShimServer) -> Shim:
    return server.shim


@pytest.fixture
def client(server: ShimServer, http01: Http01) -> Iterator[AcmeClient]:
    account = AcmeClient(server.directory, server.roots, http01=http01)
    account.register()
    yield account
    account.close()


def order(client: AcmeClient) -> Order:
    return Order(client, f"order{next(_numbers)}.test")


def restarted(server: ShimServer, orders: list[Order]) -> None:
    """A person has looked: the service is started anew, and the orders that waited are issued."""
    server.shim.lift()
    assert server.stop() == 0
    server.start()
    orders[0].client.close()
    for each in orders:
        each.finish()
    check_promises(server.database_url)


@pytest.mark.parametrize("code", [CKR.PIN_INCORRECT, CKR.PIN_LOCKED], ids=lambda code: code.name)
def test_a_refused_pin_is_tried_once_in_the_life_of_the_process(
    server: ShimServer, shim: Shim, client: AcmeClient, code: CKR
) -> None:
    orders = [order(client) for _ in range(3)]
    logins, signatures = shim.logins, shim.signature_count
    shim.fail("C_Login", code, times=None)
    shim.lose_sessions()
    for each in orders:
        each.park()
    wait_until("not ready", lambda: server.parts()["token"] != "ok")
    # Everything that might try it again: probes of readiness, the drain, a finalize, a token that goes and returns.
    shim.take_away()
    shim.bring_back()
    looked = shim.calls("C_GetSlotList")
    for _ in range(3):
        assert server.parts()["token"] != "ok"
        orders[0].park()
    shim.lift()
    orders[1].park()
    assert server.parts()["token"] != "ok"
    assert shim.logins == logins + 1
    assert shim.calls("C_GetSlotList") == looked
    assert shim.signature_count == signatures
    wait_until("the reason is told", lambda: "not tried again" in server.parts()["token"])
    log = server.log
    assert "not tried again, so that the token does not lock" in log
    assert "Correct the PIN, then restart" in log
    assert "user-pin-of-the-tests" not in log
    restarted(server, orders)


def _serves_crls(server: ShimServer) -> bool:
    with suppress(OSError):
        return bool(urlopen(f"{server.http_url}/crls.pem", timeout=10).status == 200)  # noqa: S310 (plain, loopback)
    return False


def _reason(server: ShimServer) -> str:
    with suppress(OSError):
        return server.parts()["token"]
    return ""


def _answers(server: ShimServer) -> bool:
    with suppress(OSError):
        return bool(server.parts())
    return False


def test_a_pin_that_is_wrong_when_the_service_starts(server: ShimServer, shim: Shim) -> None:
    """It waits after one try and says why: were it to end, whoever starts it anew would be what locks the token."""
    assert server.stop() == 0
    shim.fail("C_Login", CKR.PIN_INCORRECT, times=None)
    logins = shim.logins

    def waits(why: str) -> None:
        server.start(wait=False)
        wait_until("status is served", lambda: _answers(server))
        wait_until("it says why", lambda: _answers(server) and why in _reason(server))
        tries = server.log.count("the service waits to start")
        wait_until("it has tried to start again", lambda: server.log.count("the service waits to start") > tries + 1)
        # For a moment of each attempt nobody listens.
        wait_until("CRLs are served", lambda: _serves_crls(server))
        assert server.stop() == 0

    waits("refused the PIN")
    assert shim.logins == logins + 1
    assert "Correct the PIN, then restart" in server.log
    shim.flag(CKF.USER_PIN_COUNT_LOW | CKF.USER_PIN_FINAL_TRY)
    waits("locked, or would be by one more that is wrong")
    assert shim.logins == logins + 1
    shim.lift()
    server.start()


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        (CKA.EXTRACTABLE, True),
        (CKA.LOCAL, False),
        (CKA.SENSITIVE, False),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_key_that_is_not_what_it_was_signs_nothing(
    server: ShimServer, shim: Shim, client: AcmeClient, attribute: CKA, value: bool
) -> None:
    """Found at a reconnect, and never used again by this process, whatever it is said to be later."""
    orders = [order(client) for _ in range(2)]
    shim.lie(attribute, value)
    shim.lose_sessions()
    signatures = shim.signature_count
    for each in orders:
        each.park()
    wait_until("not ready", lambda: server.parts()["token"] != "ok")
    shim.lift()
    shim.lose_sessions()
    orders[0].park()
    assert f"refused: CKA_{attribute.name} not as promise P1 needs" in server.log
    assert [each.key for each in shim.signatures[signatures:] if each.key == ISSUING_KEY] == []
    restarted(server, orders)
