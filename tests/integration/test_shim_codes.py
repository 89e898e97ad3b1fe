"""Every way in which a token can fail, and sign or not sign, against the real service in one long life (P1, P4, P5).

A client does nothing but ask again. Afterwards its order has one certificate, each signature that the token has made is of
an intent in the ledger, and what may have been signed for nothing is on the revocation list.
"""

from collections.abc import Iterator

import pytest

from fakes.acme_client import AcmeClient
from fakes.dns import Knot
from fakes.http01 import Http01
from fakes.promises import check_promises
from fakes.shim import CKR, Shim
from fakes.shim_server import ISSUING_KEY, Order, ShimServer, shim_served, wait_until

# STANDARDS of the token: the handle was dead before the call, so the same signature is asked for once more at once.
ASKED_AGAIN = (
    CKR.SESSION_HANDLE_INVALID,
    CKR.OBJECT_HANDLE_INVALID,
    CKR.KEY_HANDLE_INVALID,
    CKR.USER_NOT_LOGGED_IN,
    CKR.OPERATION_ACTIVE,
    CKR.OPERATION_NOT_INITIALIZED,
)
# The token says, or leaves open, that something may have been done, or that it is away: the order waits for a new serial.
NEW_SERIAL = (
    CKR.SESSION_CLOSED,
    CKR.SESSION_COUNT,
    CKR.TOKEN_NOT_PRESENT,
    CKR.TOKEN_NOT_RECOGNIZED,
    CKR.SLOT_ID_INVALID,
    CKR.DEVICE_REMOVED,
    CKR.DEVICE_ERROR,
    CKR.DEVICE_MEMORY,
    CKR.FUNCTION_FAILED,
    CKR.FUNCTION_CANCELED,
    CKR.FUNCTION_REJECTED,
    CKR.GENERAL_ERROR,
    CKR.HOST_MEMORY,
    CKR.BUFFER_TOO_SMALL,
    CKR.CRYPTOKI_NOT_INITIALIZED,
    CKR.VENDOR_DEFINED,
)
# What a reconnect needs.
CONNECTING = (
    ("C_GetSlotList", CKR.GENERAL_ERROR),
    ("C_GetTokenInfo", CKR.TOKEN_NOT_PRESENT),
    ("C_GetTokenInfo", CKR.DEVICE_ERROR),
    ("C_OpenSession", CKR.SESSION_COUNT),
    ("C_OpenSession", CKR.DEVICE_REMOVED),
    ("C_OpenSession", CKR.SLOT_ID_INVALID),
    ("C_Login", CKR.FUNCTION_FAILED),
    ("C_Login", CKR.SESSION_HANDLE_INVALID),
    ("C_FindObjectsInit", CKR.OPERATION_ACTIVE),
    ("C_FindObjects", CKR.DEVICE_ERROR),
    ("C_FindObjectsFinal", CKR.GENERAL_ERROR),
    ("C_GetAttributeValue", CKR.OBJECT_HANDLE_INVALID),
    ("C_GetAttributeValue", CKR.DEVICE_MEMORY),
    ("C_SignInit", CKR.KEY_HANDLE_INVALID),
)
_numbers = iter(range(1_000_000))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, dns_server: Knot, http01: Http01) -> Iterator[ShimServer]:
    """The service of all cases. Few CRLs are signed, so that what the intermediate signs is certificates."""
    settings = {
        "VALIDATION__RESOLVERS": f'["{dns_server.address}"]',
        "VALIDATION__HTTP_PORT": str(http01.port),
        "STATUS__INTERVAL": "60",
    }
    with shim_served(tmp_path_factory.mktemp("codes"), settings) as running:
        pid = running.pid
        yield running
        assert running.pid == pid


@pytest.fixture(scope="module")
def account(server: ShimServer, http01: Http01) -> Iterator[AcmeClient]:
    client = AcmeClient(server.directory, server.roots, http01=http01)
    client.register()
    yield client
    client.close()


@pytest.fixture
def shim(server: ShimServer) -> Iterator[Shim]:
    yield server.shim
    server.shim.lift()


@pytest.fixture
def order(account: AcmeClient) -> Order:
    return Order(account, f"order{next(_numbers)}.test")


class Signed:
    """What the intermediate's key signs from here on."""

    def __init__(self, server: ShimServer) -> None:
        self._server = server
        self._before = server.shim.signature_count

    def told(self) -> list[int]:
        """What the caller was told at each signature of a certificate, none of which lacks an intent."""
        entries = self._server.entries()
        intents = {e["payload"]["tbs_sha256"] for e in entries if e["kind"] == "certificate.intent"}
        crls = sum(entry["kind"] == "crl.published" for entry in entries)
        made = [each for each in self._server.shim.signatures[self._before :] if each.key == ISSUING_KEY]
        certificates = [each.told for each in made if each.data.hex() in intents]
        assert len(made) - len(certificates) <= 2 * crls, "a signature without an entry"
        return certificates


def abandoned(server: ShimServer, order: Order) -> int:
    """How many serials of ``order`` came to nothing, all of which are revoked; it has one certificate."""
    _, histories = check_promises(server.database_url)
    assert histories[order.id].certificate is not None
    return len(histories[order.id].abandoned)


@pytest.mark.parametrize("did_sign", [False, True], ids=["did-not-sign", "did-sign"])
@pytest.mark.parametrize("code", ASKED_AGAIN, ids=lambda code: code.name)
def test_a_dead_handle_costs_nothing(server: ShimServer, shim: Shim, order: Order, code: CKR, did_sign: bool) -> None:
    signed = Signed(server)
    shim.fail("C_Sign", code, after=did_sign, key=ISSUING_KEY)
    assert order.finalize().json["status"] == "valid"
    order.finish()
    assert not shim.pending("C_Sign")
    # The same bytes twice, where it lied about the first.
    assert signed.told() == ([code, 0] if did_sign else [0])
    assert abandoned(server, order) == 0


@pytest.mark.parametrize("did_sign", [False, True], ids=["did-not-sign", "did-sign"])
@pytest.mark.parametrize("code", NEW_SERIAL, ids=lambda code: code.name)
def test_what_may_have_been_signed_is_spent(
    server: ShimServer, shim: Shim, order: Order, code: CKR, did_sign: bool
) -> None:
    signed = Signed(server)
    shim.fail("C_Sign", code, after=did_sign, key=ISSUING_KEY)
    assert order.finalize().json["status"] in {"processing", "valid"}
    order.finish()
    assert not shim.pending("C_Sign")
    assert signed.told() == ([code, 0] if did_sign else [0])
    assert abandoned(server, order) == 1


@pytest.mark.parametrize(
    "code", [CKR.SESSION_HANDLE_INVALID, CKR.DEVICE_ERROR, CKR.GENERAL_ERROR], ids=lambda c: c.name
)
def test_a_token_that_fails_before_the_signature_is_begun(
    server: ShimServer, shim: Shim, order: Order, code: CKR
) -> None:
    signed = Signed(server)
    shim.fail("C_SignInit", code, times=3, key=ISSUING_KEY)
    order.finalize()
    order.finish()
    assert signed.told() == [0]
    assert abandoned(server, order) >= 1


def test_a_token_that_fails_again_and_again_and_signs_each_time(server: ShimServer, shim: Shim, order: Order) -> None:
    """Each try costs a serial, and none is used for two certificates."""
    signed = Signed(server)
    shim.fail("C_Sign", CKR.DEVICE_ERROR, after=True, times=3, key=ISSUING_KEY)
    assert order.finalize().json["status"] == "processing"
    order.finish()
    assert signed.told() == [CKR.DEVICE_ERROR] * 3 + [0]
    assert abandoned(server, order) == 3


@pytest.mark.parametrize(("function", "code"), CONNECTING, ids=lambda value: getattr(value, "name", value))
def test_a_reconnect_that_fails_on_its_way(
    server: ShimServer, shim: Shim, order: Order, function: str, code: CKR
) -> None:
    """Sessions are lost, and twice something fails while new ones are made: no hand is needed."""
    signed = Signed(server)
    shim.fail(function, code, times=2)
    shim.lose_sessions()
    assert order.finalize().json["status"] in {"processing", "valid"}
    order.finish()
    assert signed.told() == [0]
    assert abandoned(server, order) <= 2


@pytest.mark.parametrize("after", [False, True], ids=["not-done", "done"])
@pytest.mark.parametrize("function", ["C_Initialize", "C_Finalize"])
def test_a_module_that_cannot_be_started_anew_at_first(
    server: ShimServer, shim: Shim, order: Order, function: str, after: bool
) -> None:
    """A module says that it failed to end, and did or did not; or the same of its beginning."""
    signed = Signed(server)
    shim.fail(function, CKR.GENERAL_ERROR, after=after)
    shim.fail("C_Sign", CKR.DEVICE_ERROR, key=ISSUING_KEY)
    assert order.finalize().json["status"] == "processing"
    order.finish()
    assert not shim.pending(function)
    assert signed.told() == [0]
    assert abandoned(server, order) == 1


def test_a_token_that_refuses_the_request_ends_the_order(server: ShimServer, shim: Shim, account: AcmeClient) -> None:
    """That it does not know the mechanism is not going to change: nobody is kept waiting."""
    order, signed = Order(account, f"order{next(_numbers)}.test"), Signed(server)
    shim.fail("C_Sign", CKR.MECHANISM_INVALID, key=ISSUING_KEY)
    answer = order.finalize()
    assert answer.json["status"] == "invalid"
    assert answer.json["error"]["type"].endswith(":serverInternal")
    assert "PIN" not in answer.body.decode()
    assert signed.told() == []
    following = Order(account, f"order{next(_numbers)}.test")
    assert following.finalize().json["status"] == "valid"


def test_what_was_spent_is_told_to_everybody_who_looks(server: ShimServer, shim: Shim, order: Order) -> None:
    """The metric counts, and the service is ready all the time that it was not away."""
    before = server.metric("privyseal_intents_abandoned_total")
    shim.fail("C_Sign", CKR.DEVICE_ERROR, after=True, key=ISSUING_KEY)
    order.finalize()
    order.finish()
    assert server.metric("privyseal_intents_abandoned_total") == before + 1
    wait_until("the token is ready", lambda: server.parts()["token"] == "ok")
