"""A token that hangs, is slow, forgets its sessions or is gone for a while: orders wait, and go on by themselves (P5, P7, P12)."""

import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from time import monotonic

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from fakes.acme_client import AcmeClient, Issued, b64
from fakes.dns import Knot
from fakes.http01 import Http01
from fakes.promises import check_promises
from fakes.shim import CKR, Shim
from fakes.shim_server import ISSUING_KEY, Order, ShimServer, shim_served, wait_until
from privyseal_ca.issuance.record import serial_text

_QUEUE = 8
_TIMEOUT = 1.0
_FINALIZE_WAIT = 0.4
_numbers = iter(range(1_000_000))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, dns_server: Knot, http01: Http01) -> Iterator[ShimServer]:
    """The service of all tests here, which is never restarted."""
    settings = {
        "VALIDATION__RESOLVERS": f'["{dns_server.address}"]',
        "VALIDATION__HTTP_PORT": str(http01.port),
        "HSM__QUEUE": str(_QUEUE),
        "HSM__TIMEOUT": str(_TIMEOUT),
        "ACME__FINALIZE_WAIT": str(_FINALIZE_WAIT),
        "STATUS__OCSP_DELAY": "0",
    }
    with shim_served(tmp_path_factory.mktemp("outages"), settings) as running:
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
    wait_until("the token is ready", lambda: server.parts()["token"] == "ok")
    yield server.shim
    server.shim.lift()


def order(account: AcmeClient) -> Order:
    return Order(account, f"order{next(_numbers)}.test")


def ari_id(issued: Issued) -> str:
    """RFC 9773 section 4.1."""
    key_id = issued.certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    serial = issued.certificate.serial_number
    return f"{b64(key_id or b'')}.{b64(serial.to_bytes(serial.bit_length() // 8 + 1, 'big'))}"


def fetched(url: str, body: bytes | None = None) -> bytes:
    headers = {"Content-Type": "application/ocsp-request"} if body else {}
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310 (plain, loopback)
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 (plain, loopback)
        return bytes(answer.read())


def ocsp_status(server: ShimServer, issued: Issued) -> ocsp.OCSPCertStatus | None:
    """What is answered by OCSP for a certificate, or nothing yet."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(issued.certificate, issued.chain[1], hashes.SHA1())  # noqa: S303
    answer = ocsp.load_der_ocsp_response(fetched(f"{server.http_url}/ocsp", builder.build().public_bytes(Encoding.DER)))
    return answer.certificate_status if answer.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL else None


def test_while_the_token_hangs_orders_wait_and_status_goes_on(
    server: ShimServer, shim: Shim, account: AcmeClient
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    predecessors = {
        hours: account.issue(f"p{hours}.test", notAfter=(now + timedelta(hours=hours)).isoformat())
        for hours in (9, 3, 6)
    }
    known = predecessors[9]
    wait_until("OCSP answers", lambda: ocsp_status(server, known) is ocsp.OCSPCertStatus.GOOD)
    (crl,) = known.certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    crl_url = (crl.full_name or [])[0].value
    orders = {0: order(account)}
    orders |= {
        hours: Order(account, f"p{hours}.test", replaces=ari_id(issued)) for hours, issued in predecessors.items()
    }
    stuck = order(account)
    logins = shim.logins

    with shim.hanging("C_Sign"):
        begun = monotonic()
        stuck.park()
        assert _FINALIZE_WAIT <= monotonic() - begun < _FINALIZE_WAIT + 2
        shim.wait_until_hanging("C_Sign")
        wait_until("not ready", lambda: server.parts()["token"] != "ok")
        # Known to hang by now: everybody else is told at once.
        wait_until("known to hang", lambda: server.metric('privyseal_ready{part="token"}') == 0)
        for each in orders.values():
            each.park()
        assert server.parts()["database"] == server.parts()["ledger"] == "ok"
        # What was signed before is served, and what needs no signature goes on.
        assert x509.load_der_x509_crl(fetched(crl_url)).next_update_utc is not None
        assert ocsp_status(server, known) is ocsp.OCSPCertStatus.GOOD
        late = order(account)
        wait_until("orders are counted", lambda: server.metric("privyseal_orders_processing") >= len(orders))

    certificates = {hours: each.finish() for hours, each in orders.items()}
    stuck.finish()
    late.finalize()
    late.finish()
    wait_until("ready", lambda: server.parts()["token"] == "ok")
    assert shim.logins - logins <= 1
    _, histories = check_promises(server.database_url)
    index = {}
    for hours, each in orders.items():
        certificate = histories[each.id].certificate
        assert certificate is not None
        assert certificate.serial == serial_text(certificates[hours].serial_number)
        index[hours] = certificate.ledger_index
    assert sorted(index, key=index.__getitem__) == [3, 6, 9, 0]
    # What hung may have been signed: that serial is on the CRL that its certificate would have named.
    (spent,) = histories[stuck.id].abandoned
    issuer = crl_url.rsplit("/", 2)[-2]
    listed = f"{server.http_url}/crl/{issuer}.crl"
    wait_until(
        "the spent serial is on the CRL",
        lambda: (
            x509.load_der_x509_crl(fetched(listed)).get_revoked_certificate_by_serial_number(int(spent, 16)) is not None
        ),
    )


@pytest.mark.parametrize("after", [False, True], ids=["did-not-sign", "did-sign"])
def test_a_signature_that_comes_after_its_caller_has_gone(
    server: ShimServer, shim: Shim, account: AcmeClient, after: bool
) -> None:
    """What the token signs in the end has an intent, and is worth nothing."""
    waiting = order(account)
    before = shim.signature_count
    with shim.hanging("C_Sign", after=after, key=ISSUING_KEY):
        waiting.park()
        shim.wait_until_hanging("C_Sign")
        wait_until("given up", lambda: server.parts()["token"] != "ok")
    certificate = waiting.finish()
    _, histories = check_promises(server.database_url)
    history = histories[waiting.id]
    assert len(history.abandoned) == 1
    assert serial_text(certificate.serial_number) not in history.abandoned
    intents = {
        entry["payload"]["tbs_sha256"]: entry["payload"]["serial"]
        for entry in server.entries()
        if entry["kind"] == "certificate.intent" and entry["payload"]["purpose"] == f"order:{waiting.id}"
    }
    signed = [intents[each.data.hex()] for each in shim.signatures[before:] if each.data.hex() in intents]
    assert signed == [*history.abandoned, serial_text(certificate.serial_number)]


def test_more_orders_than_the_queue_holds(server: ShimServer, shim: Shim, account: AcmeClient) -> None:
    """Who is one too many is told to come again before anything is claimed, and loses nothing by it."""
    orders = [order(account) for _ in range(3 * _QUEUE)]
    for each in orders:
        each.client = account.twin()
        each.client.fresh_nonce()
    intents = sum(entry["kind"] == "certificate.intent" for entry in server.entries())
    with shim.hanging("C_Sign", key=ISSUING_KEY):
        with ThreadPoolExecutor(len(orders)) as pool:
            answers = list(pool.map(lambda each: each.finalize(), orders))
        taken = [each for each, answer in zip(orders, answers, strict=True) if answer.status == 200]
        shed = [(each, answer) for each, answer in zip(orders, answers, strict=True) if answer.status != 200]
        assert shed
        assert len(taken) >= _QUEUE - 1
        for each, answer in shed:
            assert answer.refusal == (503, "serverInternal")
            assert "Finalize the order again" in answer.json["detail"]
            assert int(answer.headers["Retry-After"]) >= 1
            assert each.client.post(each.url).json["status"] == "ready"
        spent = sum(entry["kind"] == "certificate.intent" for entry in server.entries()) - intents
        assert spent <= _QUEUE
    for each, _ in shed:
        while each.finalize().status == 503:
            pass
    assert len({each.finish().serial_number for each in orders}) == len(orders)
    for each in orders:
        each.client.close()
    check_promises(server.database_url)


@pytest.mark.parametrize("function", ["C_FindObjectsInit", "C_OpenSession", "C_Login", "C_Initialize", "C_Finalize"])
def test_a_reconnect_that_hangs_holds_nobody_up(
    server: ShimServer, shim: Shim, account: AcmeClient, function: str
) -> None:
    """Whatever the module is doing, the service answers; C_Finalize is the call that the library makes under its own lock."""
    waiting = order(account)
    with shim.hanging(function):
        shim.fail("C_Sign", CKR.DEVICE_ERROR, key=ISSUING_KEY)
        waiting.park()
        shim.wait_until_hanging(function)
        begun = monotonic()
        assert account.post(waiting.url).json["status"] == "processing"
        assert fetched(f"{server.http_url}/healthz")
        assert monotonic() - begun < 1
        wait_until("not ready", lambda: server.parts()["token"] != "ok")
    waiting.finish()
    check_promises(server.database_url)


def test_a_slow_token_works(server: ShimServer, shim: Shim, account: AcmeClient) -> None:
    """Slower than finalize waits, faster than it counts as away."""
    shim.delay("C_Sign", 0.6)
    slow = order(account)
    slow.park()
    slow.finish()
    shim.delay("C_Sign", 0)
    _, histories = check_promises(server.database_url)
    assert histories[slow.id].abandoned == []
    assert server.parts()["token"] == "ok"


def test_lost_sessions_are_made_anew_within_the_same_request(
    server: ShimServer, shim: Shim, account: AcmeClient
) -> None:
    lost = order(account)
    logins = shim.logins
    shim.lose_sessions()
    assert lost.finalize().json["status"] == "valid"
    assert shim.logins == logins + 1
    _, histories = check_promises(server.database_url)
    assert histories[lost.id].abandoned == []


def test_a_logout_is_made_good_within_the_same_request(server: ShimServer, shim: Shim, account: AcmeClient) -> None:
    """Somebody else in this process logged out: private objects are hidden, which is not the same as gone."""
    out = order(account)
    logins = shim.logins
    shim.log_out()
    assert out.finalize().json["status"] == "valid"
    assert shim.logins == logins + 1
    _, histories = check_promises(server.database_url)
    assert histories[out.id].abandoned == []


@pytest.mark.parametrize(
    "code",
    [CKR.DEVICE_REMOVED, CKR.TOKEN_NOT_PRESENT, CKR.SESSION_HANDLE_INVALID, CKR.DEVICE_ERROR],
    ids=lambda c: c.name,
)
def test_a_token_that_disappears_and_returns(server: ShimServer, shim: Shim, account: AcmeClient, code: CKR) -> None:
    waiting = [order(account) for _ in range(3)]
    signatures = shim.signature_count
    logins = shim.logins
    shim.take_away(code)
    for each in waiting:
        each.park()
    wait_until("not ready", lambda: server.parts()["token"] != "ok")
    assert shim.signature_count == signatures
    shim.bring_back()
    for each in waiting:
        each.finish()
    wait_until("ready", lambda: server.parts()["token"] == "ok")
    assert shim.logins == logins + 1
    _, histories = check_promises(server.database_url)
    # Only the one that found it gone has spent a serial.
    assert sum(len(histories[each.id].abandoned) for each in waiting) <= 1


def test_clients_that_insist_while_the_token_comes_and_goes(
    server: ShimServer, shim: Shim, account: AcmeClient
) -> None:
    orders = [order(account) for _ in range(4)]
    failures: list[BaseException] = []

    def insist(each: Order) -> None:
        each.client = account.twin()
        try:
            while each.finalize().json["status"] != "valid":
                pass
            each.finish()
        except BaseException as error:  # noqa: BLE001 (raised on the test's own thread)
            failures.append(error)
        finally:
            each.client.close()

    shim.take_away()
    threads = [threading.Thread(target=insist, args=(each,)) for each in orders]
    for thread in threads:
        thread.start()
    for code in (CKR.DEVICE_ERROR, CKR.TOKEN_NOT_PRESENT, CKR.SESSION_HANDLE_INVALID):
        opened = shim.calls("C_GetSlotList")
        wait_until("it was looked for", lambda opened=opened: shim.calls("C_GetSlotList") > opened + 1)
        shim.bring_back()
        shim.take_away(code)
    shim.bring_back()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)
    check_promises(server.database_url)
