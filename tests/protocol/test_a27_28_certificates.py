"""STANDARDS A 27 and 28: finalize and download (RFC 8555 sections 7.4, 7.4.2, 9.1 and 11.1)."""

import json
import sqlite3
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.verification import PolicyBuilder, Store

from fakes.acme_client import AcmeClient, b64, make_csr, unb64
from fakes.home import MakeSettings
from fakes.service import NewClient, RunningService, StartService, serving

PEM = serialization.Encoding.PEM


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key for a certificate."""
    return ec.generate_private_key(ec.SECP256R1())


# 27: finalize


@pytest.mark.parametrize("ready", [False, True])
def test_a27_only_ready_orders(service: RunningService, client: AcmeClient, ready: bool) -> None:
    order = client.ready_order("a27.test") if ready else client.order("a27.test")
    csr = make_csr(["a27.test"], new_key())
    if ready:
        answer = client.finalize(order, csr)
        assert answer.status == 200
        assert answer.headers["Location"] == order.headers["Location"]
        assert answer.json["status"] in {"processing", "valid"}
    else:
        with service.unchanged():
            assert client.finalize(order, csr).refusal == (403, "orderNotReady")


def _rsa(bits: int = 2048, exponent: int = 65537) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(exponent, bits)


def _broken_signature(names: list[str]) -> bytes:
    csr = bytearray(make_csr(names, new_key()))
    csr[-1] ^= 1
    return bytes(csr)


def _foreign_signature(names: list[str]) -> bytes:
    """The request of one key with the signature of another's: the same octets up to the key."""
    first, second = make_csr(names, new_key()), make_csr(names, new_key())
    request = x509.load_der_x509_csr(first)
    return first[: -len(request.signature)] + x509.load_der_x509_csr(second).signature[: len(request.signature)]


def _sha1(names: list[str]) -> bytes:
    """A request whose signature holds, with SHA-1: cryptography does not make one, so its octets are put together here."""
    key = _rsa()
    request = x509.load_der_x509_csr(make_csr(names, key)).tbs_certrequest_bytes
    signature = key.sign(request, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303 (what is refused)
    algorithm = bytes.fromhex("300d06092a864886f70d0101050500")
    content = request + algorithm + b"\x03\x82\x01\x01\x00" + signature
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


def _with_names(*general_names: x509.GeneralName) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName(general_names), False)
    return builder.sign(new_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


_KEY_USAGE = dict.fromkeys(
    ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"],
    False,
) | {"encipher_only": False, "decipher_only": False, "key_cert_sign": True}
_NAME = "a27.test"
_BAD_CSRS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no DER": lambda: b"hello",
    "an empty sequence": lambda: b"0\0",
    "PEM": lambda: x509.load_der_x509_csr(make_csr([_NAME], new_key())).public_bytes(PEM),
    "a certificate": lambda: b"0\x82" + bytes(100),
    "truncated": lambda: make_csr([_NAME], new_key())[:-5],
    "more behind it": lambda: make_csr([_NAME], new_key()) + b"\0",
    "too large": lambda: b"0\x83\xff\xff\xff" + bytes(33_000),
    "another name": lambda: make_csr(["b27.test"], new_key()),
    "one name more": lambda: make_csr([_NAME, "b27.test"], new_key()),
    "no name": lambda: make_csr([], new_key()),
    "a wildcard": lambda: make_csr(["*.a27.test"], new_key()),
    "a subdomain": lambda: make_csr(["www.a27.test"], new_key()),
    "an address": lambda: make_csr(["127.0.0.1"], new_key()),
    "the name and an address": lambda: make_csr([_NAME, "127.0.0.1"], new_key()),
    "another common name": lambda: make_csr([_NAME], new_key(), common_name="b27.test"),
    "an odd common name": lambda: make_csr([_NAME], new_key(), common_name="My Server!"),
    "the name and a mail address": lambda: _with_names(x509.DNSName(_NAME), x509.RFC822Name("a@a27.test")),
    "the name and a URI": lambda: _with_names(
        x509.DNSName(_NAME), x509.UniformResourceIdentifier("spiffe://a27.test/x")
    ),
    "the name and a directory name": lambda: _with_names(x509.DNSName(_NAME), x509.DirectoryName(x509.Name([]))),
    "the name and another kind": lambda: _with_names(
        x509.DNSName(_NAME), x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\0")
    ),
    "the address as a name": lambda: _with_names(x509.DNSName("127.0.0.1")),
    "many names": lambda: make_csr([f"{number}.test" for number in range(900)], new_key()),
    "a broken signature": lambda: _broken_signature([_NAME]),
    "another's signature": lambda: _foreign_signature([_NAME]),
    "SHA-1": lambda: _sha1([_NAME]),
    "RSA of 1024 bits": lambda: make_csr([_NAME], _rsa(1024)),
    "RSA with the exponent 3": lambda: make_csr([_NAME], _rsa(exponent=3)),
    "P-192": lambda: make_csr([_NAME], ec.generate_private_key(ec.SECP192R1())),
    "secp256k1": lambda: make_csr([_NAME], ec.generate_private_key(ec.SECP256K1())),
    "a CA": lambda: make_csr([_NAME], new_key(), extensions=[x509.BasicConstraints(ca=True, path_length=None)]),
    "certificate signing": lambda: make_csr([_NAME], new_key(), extensions=[x509.KeyUsage(**_KEY_USAGE)]),
    "name constraints": lambda: make_csr(
        [_NAME], new_key(), extensions=[x509.NameConstraints([x509.DNSName("test")], None)]
    ),
    "many extensions": lambda: make_csr(
        [_NAME],
        new_key(),
        extensions=[
            x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.{number}"), b"\5\0") for number in range(40)
        ],
    ),
}


@pytest.mark.parametrize("kind", _BAD_CSRS)
def test_a27_a_bad_csr_leaves_the_order_ready(service: RunningService, client: AcmeClient, kind: str) -> None:
    order = client.ready_order(_NAME)
    csr = _BAD_CSRS[kind]()
    with service.unchanged():
        answer = client.finalize(order, csr)
        assert answer.refusal == (400, "badCSR")
        assert len(answer.body) < 1000
        assert client.post(order.headers["Location"]).json["status"] == "ready"
    assert client.finalize(order, make_csr([_NAME], new_key())).status == 200
    assert client.poll(order.headers["Location"], ("processing",)).json["status"] == "valid"


@pytest.mark.parametrize("payload", [{}, {"csr": None}, {"csr": 5}, {"csr": ["MAA"]}, {"csr": "MAA="}, [], b"x"])
def test_a27_a_payload_without_csr(service: RunningService, client: AcmeClient, payload: object) -> None:
    order = client.ready_order(_NAME)
    with service.unchanged():
        assert client.post(order.json["finalize"], payload).refusal == (400, "malformed")


@pytest.mark.parametrize("common_name", [None, _NAME, _NAME.upper()])
@pytest.mark.parametrize("in_san", [True, False])
def test_a27_the_names_are_common_name_and_san_together(
    client: AcmeClient, common_name: str | None, in_san: bool
) -> None:
    order = client.ready_order(_NAME)
    answer = client.finalize(order, make_csr([_NAME] if in_san else [], new_key(), common_name=common_name))
    if in_san or common_name:
        assert answer.status == 200
    else:
        assert answer.refusal == (400, "badCSR")


@pytest.mark.parametrize("key", ["ec-p256", "ec-p384", "rsa", "ed25519"])
def test_a27_keys(client: AcmeClient, key: str) -> None:
    keys: dict[str, Callable[[], Any]] = {
        "ec-p256": new_key,
        "ec-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "rsa": _rsa,
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }
    private = keys[key]()
    order = client.ready_order(_NAME)
    answer = client.finalize(order, make_csr([_NAME], private))
    if answer.status == 400:
        # The profile may leave a kind out; then it says so.
        assert answer.problem in {"badCSR", "invalidProfile"}
        assert key == "ed25519"
        return
    certificate = client.download(client.poll(order.headers["Location"], ("processing",)).json["certificate"])[0]
    assert certificate.public_key() == private.public_key()


def test_a27_no_account_key_is_certified(service: RunningService, client: AcmeClient, new_client: NewClient) -> None:
    others = [client, new_client(service), new_client(service, alg="RS256"), new_client(service, alg="ES384")]
    gone = new_client(service)
    gone.post(gone.account or "", {"status": "deactivated"})
    order = client.ready_order(_NAME)
    with service.unchanged():
        for other in [*others, gone]:
            answer = client.finalize(order, make_csr([_NAME], other.key.private))
            assert answer.refusal == (400, "badCSR")
            assert "account" in answer.json["detail"]


def test_a27_no_compromised_key_is_certified(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue(_NAME)
    assert client.revoke(issued.der, reason=1).status == 200
    order = client.ready_order(_NAME)
    with service.unchanged():
        assert client.finalize(order, make_csr([_NAME], issued.key)).refusal == (400, "badCSR")


def test_a27_a_key_that_was_only_superseded_may_come_again(client: AcmeClient) -> None:
    issued = client.issue(_NAME)
    assert client.revoke(issued.der, reason=4).status == 200
    assert client.issue(_NAME, key=issued.key).certificate != issued.certificate


def test_a27_no_key_that_the_world_knows(service: RunningService, client: AcmeClient) -> None:
    # The P-256 key of RFC 7515 appendix A.3.
    number = int.from_bytes(unb64("jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"), "big")
    order = client.ready_order(_NAME)
    with service.unchanged():
        answer = client.finalize(order, make_csr([_NAME], ec.derive_private_key(number, ec.SECP256R1())))
    assert answer.refusal == (400, "badCSR")


def test_a27_the_same_finalize_again_gives_the_same_order(service: RunningService, client: AcmeClient) -> None:
    order = client.ready_order(_NAME)
    csr = make_csr([_NAME], new_key())
    client.finalize(order, csr)
    final = client.poll(order.headers["Location"], ("processing",))
    with service.unchanged():
        again = client.finalize(order, csr)
        other = client.finalize(order, make_csr([_NAME], new_key()))
    assert again.status == 200
    assert again.json == final.json
    assert other.refusal == (403, "orderNotReady")


def issued_for(service: RunningService, order_url: str) -> list[str]:
    """The serials that the ledger has for an order: every intent, closed or not."""
    purpose = f"order:{order_url.rpartition('/')[2]}"
    return [entry["payload"]["serial"] for entry in service.ledger() if entry["payload"].get("purpose") == purpose]


@pytest.mark.parametrize("same_csr", [False, True])
def test_a27_finalizes_that_meet_give_one_certificate(
    service: RunningService, client: AcmeClient, same_csr: bool
) -> None:
    for _ in range(3):
        order = client.ready_order(_NAME)
        key = new_key()
        csrs = [make_csr([_NAME], key if same_csr else new_key()) for _ in range(6)]
        if same_csr:
            csrs = csrs[:1] * 6
        twins = [client.twin() for _ in csrs]
        for twin in twins:
            assert twin.fresh_nonce()
        with ThreadPoolExecutor(len(twins)) as threads:
            answers = list(
                threads.map(lambda pair, order=order: pair[0].finalize(order, pair[1]), zip(twins, csrs, strict=True))
            )
        if same_csr:
            assert {answer.status for answer in answers} == {200}
        else:
            assert sorted(answer.status for answer in answers) == [200] + [403] * 5
            assert {answer.problem for answer in answers if answer.status == 403} == {"orderNotReady"}
        final = client.poll(order.headers["Location"], ("processing",)).json
        assert final["status"] == "valid"
        assert len(issued_for(service, order.headers["Location"])) == 1
        certificate = client.download(final["certificate"])[0]
        winner = csrs[next(index for index, answer in enumerate(answers) if answer.status == 200)]
        assert certificate.public_key() == x509.load_der_x509_csr(winner).public_key()
        for twin in twins:
            twin.close()


def test_a27_a_busy_database_promises_nothing(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(acme={"finalize_wait": 1})
    client = new_client(service)
    order = client.ready_order(_NAME)
    csr = make_csr([_NAME], new_key())
    path = service.settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        answer = client.finalize(order, csr)
        assert answer.refusal == (503, "serverInternal")
        assert int(answer.headers["Retry-After"]) >= 1
        assert client.post(order.headers["Location"]).json["status"] == "ready"
        database.execute("ROLLBACK")
    assert client.finalize(order, csr).status == 200
    assert client.poll(order.headers["Location"], ("processing",)).json["status"] == "valid"
    assert len(issued_for(service, order.headers["Location"])) == 1


def test_a27_the_ledger_has_intent_and_certificate(service: RunningService, client: AcmeClient) -> None:
    before = len(service.ledger())
    issued = client.issue(_NAME)
    entries = [entry for entry in service.ledger()[before:] if entry["kind"].startswith("certificate.")]
    assert [entry["kind"] for entry in entries] == ["certificate.intent", "certificate.issued"]
    serial = f"{issued.certificate.serial_number:032x}"
    assert entries[0]["payload"]["serial"] == serial
    digest = hashes.Hash(hashes.SHA256())
    digest.update(issued.certificate.tbs_certificate_bytes)
    assert entries[0]["payload"]["tbs_sha256"] == digest.finalize().hex()


# 28: download


def test_a28_the_chain(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue(_NAME, "127.0.0.1")
    answer = client.post(issued.order.json["certificate"])
    assert answer.headers["Content-Type"] == "application/pem-certificate-chain"
    text = answer.body.decode("ascii")
    # Strict PEM (RFC 7468): lines of 64 characters, nothing between or around the certificates.
    assert text == "".join(item.public_bytes(PEM).decode() for item in issued.chain)
    assert all(len(line) <= 64 for line in text.splitlines())

    leaf, *above = issued.chain
    roots = x509.load_pem_x509_certificates(service.roots.read_bytes())
    assert not set(above) & set(roots)
    leaf.verify_directly_issued_by(above[0])
    above[-1].verify_directly_issued_by(roots[0])
    now = datetime.fromtimestamp(service.clock.now(), UTC)
    for name in (x509.DNSName(_NAME), x509.IPAddress(ip_address("127.0.0.1"))):
        PolicyBuilder().store(Store(roots)).time(now).build_server_verifier(name).verify(leaf, above)
    PolicyBuilder().store(Store(roots)).time(now).build_client_verifier().verify(leaf, above)


def test_a28_the_issuers_certificate_is_at_its_address(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue(_NAME)
    access = issued.certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    url = next(item.access_location.value for item in access if item.access_method.dotted_string.endswith("48.2"))
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 (plain HTTP is what RFC 5280 wants)
        assert x509.load_der_x509_certificate(answer.read()) == issued.chain[1]


@pytest.mark.parametrize("accept", ["application/pem-certificate-chain", "application/pkix-cert", "*/*", ""])
def test_a28_accept_is_not_negotiated(client: AcmeClient, accept: str) -> None:
    url = client.issue(_NAME).order.json["certificate"]
    body = json.dumps(client.sign(url, None)).encode()
    headers = {"Content-Type": "application/jose+json", "Accept": accept}
    answer = client.request("POST", url, body, headers)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/pem-certificate-chain")


def cross_signed(chain: list[x509.Certificate]) -> str:
    """The issuing CA's certificate once more, by another root, as PEM up to that root."""
    root_key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Older Root")])
    issuing = chain[1]
    now = datetime.now(UTC)

    def build(subject: x509.Name, public_key: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        )

    root = build(name, root_key.public_key()).sign(root_key, hashes.SHA256())
    key_id = issuing.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    cross = (
        build(issuing.subject, issuing.public_key())
        .add_extension(key_id, critical=False)
        .sign(root_key, hashes.SHA256())
    )
    return (cross.public_bytes(PEM) + root.public_bytes(PEM)).decode()


def test_a28_alternate_chains(
    make_settings: MakeSettings, client: AcmeClient, new_client: NewClient, http01: Any, dns_server: Any
) -> None:
    settings = make_settings(validation={"http_port": http01.port, "resolvers": (dns_server.address,)})
    pem = cross_signed(client.issue(_NAME).chain)
    with closing(sqlite3.connect(settings.database_url.removeprefix("sqlite:///"))) as database, database:
        database.execute("INSERT INTO issuer_chain SELECT id, 1, ? FROM issuer WHERE state = 'active'", (pem,))
    with serving(settings) as service:
        other = new_client(service)
        issued = other.issue(_NAME)
        url = issued.order.json["certificate"]
        default = other.post(url)
        assert default.links["alternate"] == [f"{url}/1"]
        alternate = other.post(default.links["alternate"][0])
        assert alternate.headers["Content-Type"] == "application/pem-certificate-chain"
        assert alternate.links["alternate"] == [url]
        chain = x509.load_pem_x509_certificates(alternate.body)
        assert chain[0] == issued.certificate
        assert chain[1] == x509.load_pem_x509_certificates(pem.encode())[0]
        assert len(chain) == 2
        chain[0].verify_directly_issued_by(chain[1])
        assert other.post(f"{url}/2").refusal == (404, "malformed")
        assert other.post(f"{url}/0").refusal == (404, "malformed")
        stranger = new_client(service)
        assert stranger.post(f"{url}/1").refusal == (403, "unauthorized")


def test_a28_without_alternates_there_is_no_link(client: AcmeClient) -> None:
    url = client.issue(_NAME).order.json["certificate"]
    assert "alternate" not in client.post(url).links
    assert client.post(f"{url}/1").refusal == (404, "malformed")


@pytest.mark.parametrize("tail", ["0" * 31, "0" * 33, "G" * 32, "", "x"])
def test_a28_odd_certificate_urls(client: AcmeClient, tail: str) -> None:
    base = client.directory_url.removesuffix("directory")
    assert client.post(f"{base}certificate/{tail}").refusal == (404, "malformed")


def test_a28_the_paging_of_orders(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(acme={"orders_page": 3})
    client = new_client(service)
    made = []
    for number in range(7):
        made.append(client.order(f"{number}.a28.test").headers["Location"])
        if number % 2:
            service.clock.advance(1)
    pages, url = [], f"{client.account}/orders"
    while url:
        answer = client.post(url)
        assert answer.status == 200
        pages.append(answer.json["orders"])
        url = answer.links.get("next", [""])[0]
    assert [len(page) for page in pages] == [3, 3, 1]
    found = [item for page in pages for item in page]
    assert len(found) == len(set(found))
    assert set(found) == set(made)


def test_a28_orders_that_became_invalid_are_not_listed(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(acme={"order_lifetime": 3600})
    client = new_client(service)
    client.order("old.a28.test")
    service.clock.advance(3601)
    client.nonce = None
    given_up = client.order("given-up.a28.test")
    client.post(given_up.json["authorizations"][0], {"status": "deactivated"})
    alive = client.order("alive.a28.test")
    assert client.post(f"{client.account}/orders").json["orders"] == [alive.headers["Location"]]


@pytest.mark.parametrize(
    "cursor",
    [
        "", "x", "AAAA", "AA==", b64(b"1"), b64(b"x:y"), b64(b":"), b64(b"9" * 30 + b":x"), b64(b"-" + b"9" * 30 + b":x"),
        b64(b"1" * 90 + b":x"), b64("\u00b2:x".encode()), b64(b"\xff\xff:x"), "%00", "A" * 3000,
    ],
)  # fmt: skip
def test_a28_cursors_of_nobody(service: RunningService, client: AcmeClient, cursor: str) -> None:
    with service.unchanged():
        answer = client.post(f"{client.account}/orders?cursor={cursor}")
    if answer.status != 200:
        assert answer.refusal == (400, "malformed")
