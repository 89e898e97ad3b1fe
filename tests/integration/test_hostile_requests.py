"""What a stranger, or an account that turned bad, can get out of the service by requests (promises P10, P11, P12)."""

import json
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import bindparam, update

from fakes.acme_client import JOSE, AcmeClient, Response, challenge_of, make_csr
from fakes.service import NewClient, RunningService, StartService
from privyseal_acme.store import accounts, orders
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.store.certificates import blocked_key_reason, find_certificate
from privyseal_ca.store.statement import Statement
from privyseal_ca.store.tables import Certificate

_SET_NAMES = Statement(
    update(Certificate.__table__)  # type: ignore[attr-defined]
    .values(names=bindparam("new_names"))
    .where(Certificate.__table__.c.serial == bindparam("wanted"))  # type: ignore[attr-defined]
)


def csr_for(*names: str) -> bytes:
    return make_csr(names, ec.generate_private_key(ec.SECP256R1()))


def count(service: RunningService, kind: Kind) -> int:
    """Entries of the ledger of that kind."""
    return [entry["kind"] for entry in service.ledger()].count(kind)


# Requests that break off


@contextmanager
def raw(client: AcmeClient) -> Iterator[ssl.SSLSocket]:
    """A TLS connection without HTTP."""
    url = urlsplit(client.directory_url)
    context = ssl.create_default_context(cafile=client.roots)
    with (
        socket.create_connection((url.hostname, url.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=url.hostname) as tls,
    ):
        yield tls


def head(client: AcmeClient, *fields: str) -> bytes:
    url = urlsplit(client.directory["newAccount"])
    lines = [f"POST {url.path} HTTP/1.1", f"Host: {url.netloc}", f"Content-Type: {JOSE}", "Connection: close", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize(
    "body", [b"zz\r\n{}\r\n0\r\n\r\n", b"2\r\n{}xx0\r\n\r\n", b"-1\r\n\r\n", b"ffffffffffffffffff\r\n{}"]
)
def test_a_body_in_broken_chunks(service: RunningService, client: AcmeClient, body: bytes) -> None:
    with service.unchanged(), structlog.testing.capture_logs() as logs, raw(client) as tls:
        tls.sendall(head(client, "Transfer-Encoding: chunked") + body)
        status = tls.recv(65_536).split(b" ")[1]
    assert status == b"400"
    assert not [entry for entry in logs if entry["log_level"] in {"error", "critical"}]


def test_a_body_that_breaks_off_is_no_fault_of_the_server(client: AcmeClient) -> None:
    with structlog.testing.capture_logs() as logs:
        with raw(client) as tls:
            tls.sendall(head(client, "Content-Length: 100") + b"{")
        while not (seen := [entry for entry in logs if entry.get("status") == 400]):
            client.fresh_nonce()
    assert seen[0]["problem"] == "malformed"
    assert not [entry for entry in logs if entry["log_level"] in {"error", "critical"}]


# Names that a policy does not allow any more (P11)


def again(start_service: StartService, first: RunningService, **sections: dict[str, Any]) -> RunningService:
    """The service of ``first`` after a restart with other settings."""
    first.stop()
    settings = first.settings
    return start_service(
        database={"url": settings.database.url},
        server={"https": settings.server.https, "http": settings.server.http},
        **sections,
    )


@pytest.mark.parametrize(
    ("policy", "refusal"),
    [
        ({"deny_dns": ("late.test",)}, (400, "rejectedIdentifier")),
        ({"allow_dns": ("other.test",)}, (400, "rejectedIdentifier")),
        ({"profiles": ("client",)}, (400, "invalidProfile")),
    ],
)
def test_a_policy_that_was_narrowed_after_the_order(
    start_service: StartService, new_client: NewClient, policy: dict[str, Any], refusal: tuple[int, str]
) -> None:
    first = start_service()
    client = new_client(first)
    order = client.ready_order("late.test")
    client.close()

    second = again(start_service, first, policy={"default": policy})
    client.nonce = None
    issued = count(second, Kind.ISSUED)
    assert client.finalize(order, csr_for("late.test")).refusal == refusal
    assert count(second, Kind.ISSUED) == issued
    # It is the policy's word, not the order's end: with the old policy it can be finalized.
    client.close()
    third = again(start_service, second)
    client.nonce = None
    issued = count(third, Kind.ISSUED)
    assert client.finalize(order, csr_for("late.test")).status == 200
    assert count(third, Kind.ISSUED) == issued + 1


def test_an_account_whose_policy_was_removed(start_service: StartService, new_client: NewClient) -> None:
    first = start_service(policy={"team": {"allow_dns": ("team.test",)}})
    key = first.eab_key(policy="team")
    client = new_client(first, registered=False)
    client.register(externalAccountBinding=client.binding(key.row.kid, key.secret))
    order = client.ready_order("a.team.test")
    client.close()

    again(start_service, first)
    client.nonce = None
    assert client.finalize(order, csr_for("a.team.test")).refusal == (403, "unauthorized")


def test_an_order_that_waits_ends_with_its_account(fresh_service: RunningService, fresh_client: AcmeClient) -> None:
    """Deactivated while the token was away: what waits is not issued when the token is back."""
    order = fresh_client.ready_order("parked.test")
    order_id = order.headers["Location"].rpartition("/")[2]
    account_id = (fresh_client.account or "").rpartition("/")[2]

    def unit(transaction: Any) -> None:
        assert accounts.deactivate_account(transaction, account_id)
        assert orders.begin_processing(transaction, order_id, csr=csr_for("parked.test"), correlation="tests")

    fresh_service.write(unit)
    before = count(fresh_service, Kind.ISSUED)
    while (row := fresh_service.read(lambda tx: orders.find_order(tx, order_id))) and row.state == "processing":
        pass
    assert row is not None
    assert row.state == "invalid"
    assert orjson.loads(row.error or "")["type"].endswith(":unauthorized")
    assert count(fresh_service, Kind.ISSUED) == before


# Revocation by others


def test_who_holds_the_names_does_not_speak_for_the_key(
    service: RunningService, client: AcmeClient, new_client: NewClient
) -> None:
    issued = client.issue("shared.test")
    other = new_client(service)
    other.ready_order("shared.test")
    with service.unchanged():
        assert other.revoke(issued.der, reason=1).refusal == (400, "badRevocationReason")
    assert other.revoke(issued.der, reason=4).status == 200

    def unit(transaction: Any) -> str | None:
        row = find_certificate(transaction, serial_text(issued.certificate.serial_number))
        assert row is not None
        return blocked_key_reason(transaction, row.spki_sha256)

    assert service.read(unit) is None


def test_a_certificate_without_names_belongs_to_its_requester(
    service: RunningService, client: AcmeClient, new_client: NewClient
) -> None:
    issued = client.issue("nameless.test")
    serial = serial_text(issued.certificate.serial_number)
    assert service.write(lambda tx: tx.execute(_SET_NAMES, new_names="[]", wanted=serial)) == 1
    other = new_client(service)
    with service.unchanged():
        assert other.revoke(issued.der).refusal == (403, "unauthorized")
    assert client.revoke(issued.der).status == 200


# Races


def test_a_key_for_one_account_binds_one_however_many_meet(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(acme={"external_account_required": True})
    key = service.eab_key(max_uses=1)
    clients = [new_client(service, registered=False) for _ in range(12)]
    for client in clients:
        client.fresh_nonce()

    def register(client: AcmeClient) -> Response:
        return client.new_account(externalAccountBinding=client.binding(key.row.kid, key.secret))

    with ThreadPoolExecutor(len(clients)) as threads:
        answers = list(threads.map(register, clients))
    assert sorted(answer.status for answer in answers) == [201] + [403] * 11
    assert count(service, Kind.ACCOUNT_CREATED) == 1


def test_one_nonce_in_fifty_requests(client: AcmeClient) -> None:
    nonce = client.fresh_nonce()
    clients = [client.twin() for _ in range(50)]
    for twin in clients:
        twin.request("GET", twin.directory_url)
    with ThreadPoolExecutor(len(clients)) as threads:
        answers = list(threads.map(lambda twin: twin.post(client.account or "", nonce=nonce), clients))
    for twin in clients:
        twin.close()
    assert sorted(answer.status for answer in answers) == [200] + [400] * 49
    assert {answer.problem for answer in answers if answer.status == 400} == {"badNonce"}


# What accumulates


def test_changes_of_an_account_are_limited(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(limits={"account_changes": 3, "account_changes_period": 60})
    client = new_client(service)
    for number in range(3):
        assert client.post(client.account or "", {"contact": [f"mailto:{number}@a.test"]}).status == 200
    entries = len(service.ledger())
    refused = client.post(client.account or "", {"contact": ["mailto:4@a.test"]})
    assert refused.refusal == (429, "rateLimited")
    assert int(refused.headers["Retry-After"]) <= 20
    assert refused.links["help"] == [f"{service.settings.server.public_https}/acme/limits"]
    assert len(service.ledger()) == entries
    # Reading goes on, another account is free, and time heals.
    assert client.post(client.account or "").status == 200
    other = new_client(service)
    assert other.post(other.account or "", {"contact": ["mailto:4@a.test"]}).status == 200
    service.clock.advance(20)
    assert client.post(client.account or "", {"contact": ["mailto:4@a.test"]}).status == 200


def test_authorizations_ahead_of_orders_are_limited_as_orders_are(
    start_service: StartService, new_client: NewClient
) -> None:
    service = start_service(limits={"new_orders": 2, "new_orders_period": 60})
    client = new_client(service)

    def new_authorization(name: str) -> Response:
        return client.post(client.directory["newAuthz"], {"identifier": {"type": "dns", "value": name}})

    assert new_authorization("a.test").status == 201
    assert client.new_order("b.test").status == 201
    assert new_authorization("c.test").refusal == (429, "rateLimited")
    assert client.new_order("d.test").refusal == (429, "rateLimited")


def respond(client: AcmeClient, name: str) -> tuple[str, Response]:
    """Respond to the http-01 challenge of a new order; the authorization's URL and the answer."""
    url = client.order(name).json["authorizations"][0]
    authorization = client.post(url).json
    challenge = challenge_of(authorization, "http-01")
    client.prepare(name, challenge)
    return url, client.post(challenge["url"], {})


def test_names_that_never_answer_hold_up_their_own_account_only(
    start_service: StartService, new_client: NewClient
) -> None:
    service = start_service(validation={"concurrency": 4, "queue": 16, "timeout": 50})
    port = service.settings.validation.http_port
    bad, good = new_client(service), new_client(service)
    silent = [f"127.0.0.{number}" for number in range(2, 6)]
    sockets = [socket.create_server((address, port)) for address in silent]
    try:
        pending = [respond(bad, address) for address in silent]
        assert {answer.json["status"] for _, answer in pending} == {"processing"}
        # Its share of the queue is used up; nothing is lost by asking again later.
        _, refused = respond(bad, "127.0.0.6")
        assert refused.refusal == (503, "serverInternal")
        assert int(refused.headers["Retry-After"]) >= 1
        url, _ = respond(good, "prompt.test")
        assert good.poll(url).json["status"] == "valid"
        assert {bad.post(each).json["status"] for each, _ in pending} == {"pending"}
    finally:
        for each in sockets:
            each.close()


def test_a_payload_of_nothing_but_faults_is_refused_at_the_first(client: AcmeClient) -> None:
    for resource, payload in (("newOrder", {"identifiers": [{}] * 12_000}), ("newAccount", {"contact": [1] * 12_000})):
        header: dict[str, Any] = {"jwk": client.key.jwk} if resource == "newAccount" else {}
        answer = client.post(client.directory[resource], json.dumps(payload).encode(), **header)
        assert answer.refusal == (400, "malformed")
        assert ".0" in answer.json["detail"]


def test_a_compressed_request_is_not_read(client: AcmeClient) -> None:
    answer = client.request(
        "POST", client.directory["newAccount"], b"hello", {"Content-Type": JOSE, "Content-Encoding": "gzip"}
    )
    assert answer.refusal == (400, "malformed")
