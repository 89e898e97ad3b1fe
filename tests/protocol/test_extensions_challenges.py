"""RFC 8737 (tls-alpn-01), RFC 8738 (addresses), dns-account-01 and CAA, as an ACME client meets them."""

import base64
import hashlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509

from fakes.acme_client import AcmeClient, b64, challenge_of, identifier
from fakes.challenge_servers import challenge_certificate, server_tls
from fakes.dns import LOOPBACK, Knot
from fakes.service import NewClient, RunningService, StartService


@contextmanager
def tls_responder(context: ssl.SSLContext, port: int) -> Iterator[None]:
    """Shakes hands with whoever comes to ``port``."""
    with socket.create_server((LOOPBACK, port)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.settimeout(5)
                    with suppress(OSError, ssl.SSLError), context.wrap_socket(connection, server_side=True) as tls:
                        tls.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def validate_by_tls(
    service: RunningService,
    client: AcmeClient,
    folder: Path,
    name: str,
    *,
    protocols: list[str] | None,
    certified: str | None = None,
    key_authorization: str | None = None,
    names_seen: list[str | None] | None = None,
) -> tuple[str, str]:
    """How tls-alpn-01 ends, and the type of its error."""
    url = client.order(name).json["authorizations"][0]
    challenge = challenge_of(client.post(url).json, "tls-alpn-01")
    certificate, key = challenge_certificate(
        certified or name, key_authorization or client.key_authorization(challenge)
    )
    context = server_tls(folder, certificate, key, protocols, names_seen)
    with tls_responder(context, service.settings.validation.tls_port):
        assert client.post(challenge["url"], {}).status == 200
        ended = client.poll(url).json
    error = challenge_of(ended, "tls-alpn-01").get("error", {"type": ""})
    return ended["status"], error["type"].rpartition(":")[2]


@pytest.mark.parametrize("name", ["alpn.test", "ALPN.test"])
def test_rfc8737_tls_alpn_01(service: RunningService, client: AcmeClient, tmp_path: Path, name: str) -> None:
    seen: list[str | None] = []
    ended = validate_by_tls(service, client, tmp_path, name, protocols=["http/1.1", "acme-tls/1"], names_seen=seen)
    assert ended == ("valid", "")
    assert seen == ["alpn.test"]
    assert service.ledger()[-1]["payload"]["challenge"] == "tls-alpn-01"


def test_rfc8737_the_protocol_must_be_negotiated(service: RunningService, client: AcmeClient, tmp_path: Path) -> None:
    for protocols in (None, ["http/1.1"]):
        status, problem = validate_by_tls(service, client, tmp_path, "alpn.test", protocols=protocols)
        assert status == "invalid"
        assert problem in {"tls", "unauthorized", "incorrectResponse", "connection"}


def test_rfc8737_a_wrong_certificate(service: RunningService, client: AcmeClient, tmp_path: Path) -> None:
    for wrong in ({"certified": "other.test"}, {"key_authorization": "x.y"}):
        status, problem = validate_by_tls(
            service,
            client,
            tmp_path,
            "alpn.test",
            protocols=["acme-tls/1"],
            **wrong,  # type: ignore[arg-type]
        )
        assert status == "invalid"
        assert problem in {"tls", "unauthorized", "incorrectResponse"}


def test_rfc8737_is_not_for_wildcards(client: AcmeClient) -> None:
    authorization = client.post(client.order("*.alpn.test").json["authorizations"][0]).json
    assert all(item["type"] != "tls-alpn-01" for item in authorization["challenges"])


# Addresses


def test_rfc8738_an_address(client: AcmeClient) -> None:
    order = client.order("127.0.0.1")
    assert order.json["identifiers"] == [{"type": "ip", "value": "127.0.0.1"}]
    authorization = client.post(order.json["authorizations"][0]).json
    assert authorization["identifier"] == {"type": "ip", "value": "127.0.0.1"}
    assert {item["type"] for item in authorization["challenges"]} == {"http-01", "tls-alpn-01"}


def test_rfc8738_http_01_names_the_address(client: AcmeClient) -> None:
    issued = client.issue("127.0.0.1")
    assert client.http01 is not None
    assert client.http01.requests[-1][0].partition(":")[0] == "127.0.0.1"
    names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.IPAddress(ip_address("127.0.0.1"))]


def test_rfc8738_tls_alpn_01_names_the_reverse(service: RunningService, client: AcmeClient, tmp_path: Path) -> None:
    seen: list[str | None] = []
    ended = validate_by_tls(service, client, tmp_path, "127.0.0.1", protocols=["acme-tls/1"], names_seen=seen)
    assert ended == ("valid", "")
    assert seen == ["1.0.0.127.in-addr.arpa"]


@pytest.mark.parametrize(
    ("given", "canonical"), [("FD00:0:0::1", "fd00::1"), ("fd00:0000::0001", "fd00::1"), ("10.0.0.1", "10.0.0.1")]
)
def test_rfc8738_addresses_in_canonical_form(client: AcmeClient, given: str, canonical: str) -> None:
    answer = client.post(client.directory["newOrder"], {"identifiers": [{"type": "ip", "value": given}]})
    # RFC 8738 section 3 wants the form of RFC 5952: another one is put right or refused.
    if answer.status == 201:
        assert answer.json["identifiers"] == [{"type": "ip", "value": canonical}]
    else:
        assert answer.refusal == (400, "malformed")
    assert client.order(canonical).json["identifiers"] == [{"type": "ip", "value": canonical}]


@pytest.mark.parametrize(
    "value",
    [
        "", "a.test", "127.1", "127.0.0.01", "0x7f.0.0.1", "2130706433", "127.0.0.1/32", "[::1]", "fe80::1%eth0", "1.2.3.4.5",
        "127.0.0.1\n", " 127.0.0.1", "127.0.0.1:80", "::ffff:127.0.0.1::", "\u0661.2.3.4", "*.127.0.0.1", "1.0.0.127.in-addr.arpa",
    ],
)  # fmt: skip
def test_rfc8738_text_that_is_no_address(service: RunningService, client: AcmeClient, value: str) -> None:
    payload = {"identifiers": [{"type": "ip", "value": value}]}
    with service.unchanged():
        assert client.post(client.directory["newOrder"], payload).refusal == (400, "malformed")


@pytest.mark.parametrize(
    "value", ["8.8.8.8", "169.254.169.254", "0.0.0.1", "255.255.255.255", "2001:db8::1", "ff02::1"]
)
def test_rfc8738_addresses_outside_the_policy(service: RunningService, client: AcmeClient, value: str) -> None:
    with service.unchanged():
        answer = client.post(client.directory["newOrder"], {"identifiers": [identifier(value)]})
    assert answer.status == 400
    assert answer.problem in {"rejectedIdentifier", "malformed"}


# dns-account-01


def test_dns_account_01(service: RunningService, client: AcmeClient, new_client: NewClient) -> None:
    name = "account.test"
    url = client.order(name).json["authorizations"][0]
    challenge = challenge_of(client.post(url).json, "dns-account-01")
    label = base64.b32encode(hashlib.sha256((client.account or "").encode()).digest()[:10]).decode().lower()
    digest = b64(hashlib.sha256(client.key_authorization(challenge).encode()).digest())
    assert client.set_txt is not None
    client.set_txt(f"_{label}._acme-challenge.{name}", digest)
    client.post(challenge["url"], {})
    assert client.poll(url).json["status"] == "valid"

    other = new_client(service)
    url = other.order(name).json["authorizations"][0]
    other.post(challenge_of(other.post(url).json, "dns-account-01")["url"], {})
    assert other.poll(url).json["status"] == "invalid"


# CAA


def test_caa_is_checked_when_it_is_asked_for(
    start_service: StartService, new_client: NewClient, dns_server: Knot
) -> None:
    service = start_service(validation={"caa": True, "caa_identities": ("ca.test",)})
    client = new_client(service)
    for name, issuer in (("ours.caa.test", "ca.test"), ("theirs.caa.test", "other.test")):
        dns_server.set(name, "A", "127.0.0.1")
        dns_server.set(name, "CAA", f'0 issue "{issuer}"')
    assert client.authorize(client.order("ours.caa.test").json["authorizations"][0]).json["status"] == "valid"
    refused = client.authorize(client.order("theirs.caa.test").json["authorizations"][0]).json
    assert refused["status"] == "invalid"
    assert challenge_of(refused, "http-01")["error"]["type"] == "urn:ietf:params:acme:error:caa"
