"""STANDARDS A 29 and 30: authorizations ahead of orders, and revocation (RFC 8555 sections 7.4.1, 7.5.2 and 7.6)."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448

from fakes.acme_client import AcmeClient, Issued, JwsKey, b64, make_csr
from fakes.service import NewClient, RunningService, StartService

DER = serialization.Encoding.DER


def ahead(client: AcmeClient, name: str, kind: str = "dns") -> object:
    """NewAuthz."""
    return client.post(client.directory["newAuthz"], {"identifier": {"type": kind, "value": name}})


# 29


@pytest.mark.parametrize("name", ["a29.test", "127.0.0.1"])
def test_a29_an_authorization_ahead_of_an_order_serves_it(client: AcmeClient, name: str) -> None:
    kind = "ip" if name[0].isdigit() else "dns"
    answer = client.post(client.directory["newAuthz"], {"identifier": {"type": kind, "value": name}})
    assert answer.status == 201
    url = answer.headers["Location"]
    assert answer.json["identifier"] == {"type": kind, "value": name}
    assert answer.json["status"] == "pending"
    assert "wildcard" not in answer.json
    assert client.post(url).json == answer.json
    client.authorize(url)
    order = client.order(name)
    assert order.json["authorizations"] == [url]
    assert order.json["status"] == "ready"


@pytest.mark.parametrize("name", ["*.a29.test", "*", "*.*.test"])
def test_a29_no_wildcards(service: RunningService, client: AcmeClient, name: str) -> None:
    payload = {"identifier": {"type": "dns", "value": name}}
    with service.unchanged():
        answer = client.post(client.directory["newAuthz"], payload)
    assert answer.problem == "malformed"
    assert answer.status in {400, 403}


@pytest.mark.parametrize(
    ("kind", "name", "problem"),
    [
        ("dns", "a.example.com", "rejectedIdentifier"),
        ("ip", "8.8.8.8", "rejectedIdentifier"),
        ("email", "a@b.test", "unsupportedIdentifier"),
        ("dns", "a_b.test", "malformed"),
    ],
)
def test_a29_a_refusal_is_403(service: RunningService, client: AcmeClient, kind: str, name: str, problem: str) -> None:
    payload = {"identifier": {"type": kind, "value": name}}
    with service.unchanged():
        answer = client.post(client.directory["newAuthz"], payload)
    assert answer.refusal == (403, problem)
    assert "identifier" not in answer.json


@pytest.mark.parametrize(
    "payload", [{}, {"identifier": None}, {"identifier": "a.test"}, {"identifier": {"type": "dns"}}]
)
def test_a29_malformed(service: RunningService, client: AcmeClient, payload: object) -> None:
    with service.unchanged():
        assert client.post(client.directory["newAuthz"], payload).refusal == (400, "malformed")


def test_a29_a_deactivated_authorization_never_counts(service: RunningService, client: AcmeClient) -> None:
    url = client.post(client.directory["newAuthz"], {"identifier": {"type": "dns", "value": "gone.a29.test"}}).headers[
        "Location"
    ]
    client.authorize(url)
    waiting = client.order("gone.a29.test")
    assert waiting.json["status"] == "ready"
    assert client.post(url, {"status": "deactivated"}).json["status"] == "deactivated"
    assert client.post(waiting.headers["Location"]).json["status"] == "invalid"
    key = ec.generate_private_key(ec.SECP256R1())
    with service.unchanged():
        assert client.finalize(waiting, make_csr(["gone.a29.test"], key)).refusal == (403, "orderNotReady")
    again = client.order("gone.a29.test")
    assert again.json["status"] == "pending"
    assert again.json["authorizations"] != [url]


def test_a29_a_pending_authorization_can_be_given_up(client: AcmeClient) -> None:
    order = client.order("a29.test")
    url = order.json["authorizations"][0]
    assert client.post(url, {"status": "deactivated"}).json["status"] == "deactivated"
    assert client.post(order.headers["Location"]).json["status"] == "invalid"


# 30


def revocations(service: RunningService) -> list[tuple[str, int | None]]:
    """Serial and reason of everything that is revoked, as the ledger has it."""
    entries = [entry for entry in service.ledger() if entry["kind"] == "certificate.revoked"]
    return [(entry["payload"]["serial"], entry["payload"]["reason"]) for entry in entries]


def serial(issued: Issued) -> str:
    """The serial as the ledger writes it."""
    return f"{issued.certificate.serial_number:032x}"


def test_a30_by_the_account_that_ordered_it(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue("a30.test")
    answer = client.revoke(issued.der)
    assert (answer.status, answer.body) == (200, b"")
    assert revocations(service)[-1] == (serial(issued), 0)
    assert service.ledger()[-1]["actor"].startswith("account:")


def test_a30_by_an_account_with_authorizations_for_all_names(
    service: RunningService, client: AcmeClient, new_client: NewClient
) -> None:
    issued = client.issue("a30.test", "b30.test")
    other = new_client(service)
    with service.unchanged():
        assert other.revoke(issued.der).refusal == (403, "unauthorized")
    other.ready_order("a30.test")
    with service.unchanged():
        assert other.revoke(issued.der).refusal == (403, "unauthorized")
    other.ready_order("b30.test")
    assert other.revoke(issued.der, reason=4).status == 200
    assert revocations(service)[-1] == (serial(issued), 4)


def test_a30_a_wildcard_needs_the_wildcards_authorization(
    service: RunningService, client: AcmeClient, new_client: NewClient
) -> None:
    issued = client.issue("*.wild.a30.test")
    other = new_client(service)
    other.ready_order("wild.a30.test")
    with service.unchanged():
        assert other.revoke(issued.der).refusal == (403, "unauthorized")
    other.ready_order("*.wild.a30.test")
    assert other.revoke(issued.der).status == 200


@pytest.mark.parametrize("end", ["deactivated", "expired"])
def test_a30_authorizations_that_ended_do_not_count(
    start_service: StartService, new_client: NewClient, end: str
) -> None:
    service = start_service()
    client, other = new_client(service), new_client(service)
    issued = client.issue("a30.test")
    order = other.ready_order("a30.test")
    if end == "deactivated":
        other.post(order.json["authorizations"][0], {"status": "deactivated"})
    else:
        service.clock.advance(service.settings.acme.authorization_lifetime)
        other.nonce = None
    with service.unchanged():
        assert other.revoke(issued.der).refusal == (403, "unauthorized")


def test_a30_by_the_certificates_key(service: RunningService, client: AcmeClient, new_client: NewClient) -> None:
    issued = client.issue("a30.test")
    stranger = new_client(service, registered=False)
    with service.unchanged():
        assert stranger.revoke(issued.der, key=JwsKey()).refusal == (403, "unauthorized")
    assert stranger.revoke(issued.der, key=JwsKey("ES256", issued.key), reason=1).status == 200
    assert revocations(service)[-1] == (serial(issued), 1)
    assert service.ledger()[-1]["actor"] == "certificate-key"


def test_a30_by_an_rsa_certificates_key(service: RunningService, client: AcmeClient, new_client: NewClient) -> None:
    key = JwsKey("RS256")
    issued = client.issue("a30.test", key=key.private)
    assert new_client(service, registered=False).revoke(issued.der, key=key).status == 200


def test_a30_an_accounts_key_as_jwk_is_not_the_certificates(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue("a30.test")
    with service.unchanged():
        assert client.revoke(issued.der, key=client.key).refusal == (403, "unauthorized")


def test_a30_once(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue("a30.test")
    assert client.revoke(issued.der, reason=4).status == 200
    with service.unchanged():
        for reason in (None, 1, 4):
            assert client.revoke(issued.der, reason=reason).refusal == (400, "alreadyRevoked")
        assert client.revoke(issued.der, key=JwsKey("ES256", issued.key)).refusal == (400, "alreadyRevoked")


def test_a30_revocations_that_meet_are_one(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue("a30.test")
    before = len(revocations(service))
    twins = [client.twin() for _ in range(5)]
    for twin in twins:
        assert twin.fresh_nonce()
    with ThreadPoolExecutor(len(twins)) as threads:
        answers = list(threads.map(lambda twin: twin.revoke(issued.der), twins))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 4
    assert len(revocations(service)) == before + 1
    for twin in twins:
        twin.close()


@pytest.mark.parametrize("reason", [0, 1, 3, 4, 5])
def test_a30_reasons(service: RunningService, client: AcmeClient, reason: int) -> None:
    issued = client.issue("a30.test")
    assert client.revoke(issued.der, reason=reason).status == 200
    assert revocations(service)[-1] == (serial(issued), reason)


@pytest.mark.parametrize("reason", [2, 6, 7, 8, 9, 10, 11, -1, 2**40, 10**200])
def test_a30_bad_reasons(service: RunningService, client: AcmeClient, reason: int) -> None:
    issued = client.issue("a30.test")
    with service.unchanged():
        answer = client.revoke(issued.der, reason=reason)
    assert answer.refusal == (400, "badRevocationReason")
    assert len(answer.body) < 1000


@pytest.mark.parametrize("reason", ["1", 1.5, True, [], {}])
def test_a30_reasons_that_are_no_numbers(service: RunningService, client: AcmeClient, reason: object) -> None:
    issued = client.issue("a30.test")
    with service.unchanged():
        assert client.revoke(issued.der, reason=reason).refusal == (400, "malformed")


def foreign_certificate(
    issued: Issued, *, serial_number: int | None = None, key: object = None, of_a_ca: bool = False
) -> bytes:
    """A certificate that looks like one of ours and was signed by somebody else."""
    signer = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issued.certificate.issuer)
        .public_key(key or issued.key.public_key())  # type: ignore[arg-type]
        .serial_number(serial_number or issued.certificate.serial_number)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    return builder.sign(signer, hashes.SHA256()).public_bytes(DER)


def test_a30_certificates_of_others(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue("a30.test")
    lookalike, unknown = foreign_certificate(issued), foreign_certificate(issued, serial_number=4711)
    with service.unchanged():
        for der in (lookalike, unknown, issued.chain[1].public_bytes(DER)):
            assert client.revoke(der).refusal == (404, "malformed")
        assert client.revoke(lookalike, key=JwsKey("ES256", issued.key)).problem in {"malformed", "unauthorized"}


def test_a30_a_certificate_with_a_key_of_an_unknown_kind(
    service: RunningService, client: AcmeClient, new_client: NewClient
) -> None:
    issued = client.issue("a30.test")
    der = foreign_certificate(issued, key=ed448.Ed448PrivateKey.generate().public_key())
    # 1.3.101.113 is Ed448; 1.3.101.127 is nothing.
    unknown = der.replace(bytes.fromhex("06032b6571"), bytes.fromhex("06032b657f"))
    assert unknown != der
    stranger = new_client(service, registered=False)
    with service.unchanged():
        for document in (der, unknown):
            answer = stranger.revoke(document, key=JwsKey())
            assert answer.status in {400, 403, 404}
            assert answer.problem in {"malformed", "unauthorized"}


def test_a30_a_certificate_of_an_odd_version(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue("a30.test")
    # [0] { INTEGER 2 } is version 3.
    odd = issued.der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020107"), 1)
    assert odd != issued.der
    with service.unchanged():
        assert client.revoke(odd).refusal == (400, "malformed")


@pytest.mark.parametrize("octets", [b"", b"x", b"0\0", b"0\x82\xff\xff", bytes(50_000)])
def test_a30_what_is_no_certificate(service: RunningService, client: AcmeClient, octets: bytes) -> None:
    with service.unchanged():
        assert client.revoke(octets).status in {400, 413}


@pytest.mark.parametrize("payload", [{}, {"certificate": None}, {"certificate": 5}, {"certificate": "MAA="}])
def test_a30_malformed(service: RunningService, client: AcmeClient, payload: object) -> None:
    with service.unchanged():
        assert client.post(client.directory["revokeCert"], payload).refusal == (400, "malformed")


def test_a30_a_certificate_can_still_be_downloaded(client: AcmeClient) -> None:
    issued = client.issue("a30.test")
    client.revoke(issued.der)
    assert client.download(issued.order.json["certificate"])[0] == issued.certificate


def test_a30_the_certificate_is_taken_as_it_was_issued(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue("a30.test")
    pem = issued.certificate.public_bytes(serialization.Encoding.PEM)
    with service.unchanged():
        assert client.revoke(pem).refusal == (400, "malformed")
        answer = client.post(client.directory["revokeCert"], {"certificate": b64(issued.der + b"\0")})
        assert answer.refusal == (400, "malformed")
