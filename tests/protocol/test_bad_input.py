"""What bad input gets: a clear problem, a bounded cost, and no change of state (promise P12)."""

import gzip
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.acme_client import JOSE, AcmeClient, JwsKey, b64, make_jws
from fakes.service import NewClient, RunningService

FUZZ = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
RESOURCES = ["newAccount", "newOrder", "newAuthz", "revokeCert", "keyChange"]


def deep(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    """JSON of that depth."""
    return opening * depth + closing * depth


# Size


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize("size", [65_537, 200_000, 3_000_000])
def test_bodies_that_are_too_large(service: RunningService, client: AcmeClient, resource: str, size: int) -> None:
    with service.unchanged():
        answer = client.send(client.directory[resource], b" " * size)
    assert answer.refusal == (413, "malformed")
    assert client.post(client.account or "").status == 200


def test_a_body_of_the_largest_size_is_read(service: RunningService, client: AcmeClient) -> None:
    body = json.dumps(client.sign(client.account or "", None)).encode()
    assert client.send(client.account or "", body.ljust(service.settings.acme.max_body - 1)).status == 200


def test_a_body_without_end(service: RunningService, client: AcmeClient) -> None:
    url = urlsplit(client.directory["newOrder"])
    head = (
        f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: {JOSE}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with service.unchanged(), connection(client) as tls:
        tls.sendall(head.encode())
        chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
        answer = b""
        with suppress(OSError):
            for _ in range(100):
                tls.sendall(chunk)
        with suppress(OSError):
            answer = tls.recv(4096)
    # It is refused long before the end; whoever goes on sending may miss the answer.
    assert not answer or answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity", "x"])
def test_compressed_bodies(service: RunningService, client: AcmeClient, encoding: str) -> None:
    bomb = gzip.compress(bytes(20_000_000))
    headers = {"Content-Type": JOSE, "Content-Encoding": encoding}
    with service.unchanged():
        answer = client.request("POST", client.directory["newOrder"], bomb, headers)
    assert answer.status in {400, 413, 415}
    assert client.post(client.account or "").status == 200


@pytest.mark.parametrize("size", [20_000, 60_000])
def test_a_protected_header_that_is_too_long(service: RunningService, client: AcmeClient, size: int) -> None:
    with service.unchanged():
        assert client.post(client.account or "", None, extra="x" * (size // 2)).status in {200, 400}
        answer = client.post(client.directory["newAccount"], {}, jwk={**client.key.jwk, "x": "A" * (size // 2)})
    assert answer.status == 400
    assert answer.problem in {"malformed", "badPublicKey"}


@pytest.mark.parametrize("length", [5_000, 20_000])
def test_urls_that_are_too_long(client: AcmeClient, length: int) -> None:
    answer = client.request("GET", client.directory_url + "x" * length)
    assert answer.status in {400, 404, 414}


# Depth and types


@pytest.mark.parametrize("depth", [150, 260, 1_000, 1_500, 20_000])
@pytest.mark.parametrize("place", ["body", "protected", "payload", "jwk", "binding", "csr", "oldKey", "unknown member"])
def test_deep_json(service: RunningService, client: AcmeClient, new_client: NewClient, depth: int, place: str) -> None:
    text = deep(depth)
    newcomer = new_client(service, registered=False)
    order = client.directory["newOrder"]
    account = client.directory["newAccount"]
    requests: dict[str, Callable[[], Any]] = {
        "body": lambda: client.send(order, text),
        "protected": lambda: client.send(order, _raw(text, b"{}")),
        "payload": lambda: client.post(order, b'{"identifiers":' + text + b"}"),
        "jwk": lambda: client.send(
            account,
            _raw(
                f'{{"alg":"ES256","url":"{account}","nonce":"{client.take_nonce()}","jwk":{{"kty":"EC","crv":'.encode()
                + text
                + b"}}",
                b"{}",
            ),
        ),
        "binding": lambda: newcomer.post(
            account, b'{"externalAccountBinding":{"protected":' + text + b"}}", jwk=newcomer.key.jwk
        ),
        "csr": lambda: client.post(order, b'{"csr":' + text + b"}"),
        "oldKey": lambda: client.post(
            client.directory["keyChange"], _inner(client, b'{"account":"x","oldKey":{"x":' + text + b"}}")
        ),
        "unknown member": lambda: client.post(order, b'{"identifiers":[],"unknown":' + text + b"}"),
    }
    with service.unchanged():
        answer = requests[place]()
    assert answer.status in {400, 413}
    assert answer.problem in {"malformed", "badPublicKey"}
    assert len(answer.body) < 1000


def _raw(protected: bytes, payload: bytes) -> bytes:
    """A JWS of these octets, with a signature of nobody."""
    return json.dumps({"protected": b64(protected), "payload": b64(payload), "signature": b64(bytes(64))}).encode()


def _inner(client: AcmeClient, payload: bytes) -> dict[str, Any]:
    new = JwsKey()
    return make_jws(new, payload, {"alg": "ES256", "jwk": new.jwk, "url": client.directory["keyChange"]})


@pytest.mark.parametrize(
    "payload",
    [
        b'{"identifiers": 1e400}', b'{"identifiers": NaN}', b'{"identifiers": -Infinity}', b'{"identifiers": ' + b"9" * 5000 + b"}",
        b'{"identifiers": [{"type": "dns", "value": "\\ud800.test"}]}', b'{"identifiers": [{"type": "dns", "value": "\\u0000"}]}',
        b'{"identifiers": [{"type": "dns", "value": "a.test"}], "notAfter": ' + b"9" * 500 + b"}",
        b'{"identifiers": [{"type": "dns", "value": "a.test"}],}', b"{'identifiers': []}", b'{"identifiers": []} x',
        b"\xef\xbb\xbf{}", b"// comment\n{}", b'{"identifiers": [' + b'{"type": "dns", "value": "a.test"},' * 1000 + b"{}]}",
    ],
)  # fmt: skip
def test_odd_json(service: RunningService, client: AcmeClient, payload: bytes) -> None:
    with service.unchanged():
        answer = client.post(client.directory["newOrder"], payload)
    assert answer.status == 400
    assert len(answer.body) < 2000


def test_a_great_many_names_cost_little(service: RunningService, client: AcmeClient) -> None:
    names = [f"{number}.test" for number in range(1_200)]
    with service.unchanged():
        assert client.new_order(*names).refusal == (400, "malformed")


def test_a_great_many_bad_names_are_told_in_bounds(client: AcmeClient) -> None:
    answer = client.new_order(*["b_" * 50 for _ in range(100)])
    assert answer.status == 400
    assert len(answer.body) < 100_000


# The wire


@contextmanager
def connection(client: AcmeClient) -> Iterator[ssl.SSLSocket]:
    """A TLS connection for octets."""
    url = urlsplit(client.directory_url)
    context = ssl.create_default_context(cafile=client.roots)
    with (
        socket.create_connection((url.hostname, url.port), 10) as plain,
        context.wrap_socket(plain, server_hostname=url.hostname) as tls,
    ):
        yield tls


@pytest.mark.parametrize(
    "octets",
    [
        b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n", b"GET  /acme/directory HTTP/1.1\r\n\r\n",
        b"POST /acme/new-order HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /acme/new-order HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /acme/new-order HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /acme/directory HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 5_000 + b"\r\n",
        b"GET /acme/directory HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x00\x05hello",
    ],
)  # fmt: skip
def test_what_is_no_http(service: RunningService, client: AcmeClient, octets: bytes) -> None:
    with service.unchanged(), connection(client) as tls:
        try:
            tls.sendall(octets)
            tls.settimeout(2)
            answer = tls.recv(4096)
        except OSError:
            answer = b""
    assert not answer.startswith(b"HTTP/1.1 5")
    assert client.post(client.account or "").status == 200


def test_an_absolute_request_target(client: AcmeClient) -> None:
    url = urlsplit(client.directory_url)
    with connection(client) as tls:
        tls.sendall(f"GET https://elsewhere.example{url.path} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
        answer = tls.recv(65536)
    assert b"https://elsewhere" not in answer


# Fuzz: anything at all gets an answer that is not 5xx, and changes nothing


@FUZZ
@given(body=st.binary(max_size=2_000), resource=st.sampled_from(RESOURCES))
def test_any_octets(service: RunningService, client: AcmeClient, body: bytes, resource: str) -> None:
    with service.unchanged():
        answer = client.send(client.directory[resource], body)
    assert answer.status == 400
    assert answer.problem


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
_MEMBERS = st.sampled_from(
    [
        "identifiers",
        "identifier",
        "type",
        "value",
        "notBefore",
        "notAfter",
        "replaces",
        "profile",
        "contact",
        "status",
        "onlyReturnExisting",
        "termsOfServiceAgreed",
        "externalAccountBinding",
        "csr",
        "certificate",
        "reason",
        "account",
        "oldKey",
        "protected",
        "payload",
        "signature",
    ]
)
_PAYLOADS = st.dictionaries(_MEMBERS, _JSON, max_size=6)


@FUZZ
@given(payload=_PAYLOADS, resource=st.sampled_from([name for name in RESOURCES if name != "newAccount"]))
def test_any_payload(service: RunningService, client: AcmeClient, payload: object, resource: str) -> None:
    with service.unchanged():
        answer = client.post(client.directory[resource], payload)
    assert 400 <= answer.status < 500, answer.body
    assert answer.problem


@FUZZ
@given(
    header=st.dictionaries(
        st.sampled_from(["alg", "nonce", "url", "kid", "jwk", "crit", "b64", "typ"]), _JSON, min_size=1
    )
)
def test_any_header(service: RunningService, client: AcmeClient, header: dict[str, Any]) -> None:
    protected = {"alg": "ES256", "url": client.directory["newOrder"], "kid": client.account, **header}
    with service.unchanged():
        answer = client.send(client.directory["newOrder"], json.dumps(make_jws(client.key, {}, protected)).encode())
    assert 400 <= answer.status < 500, answer.body
    assert answer.problem


@FUZZ
@given(
    members=st.dictionaries(st.sampled_from(["kty", "crv", "x", "y", "n", "e", "d", "k"]), _JSON, max_size=6),
    kty=st.sampled_from(["EC", "OKP", "RSA", None]),
)
def test_any_key(service: RunningService, client: AcmeClient, members: dict[str, Any], kty: str | None) -> None:
    jwk = {**client.key.jwk, "n": b64(b"\xc5" * 256), "e": "AQAB", **members, **({"kty": kty} if kty else {})}
    with service.unchanged():
        answer = client.post(client.directory["newAccount"], {}, jwk=jwk)
    # The unchanged members are a known key, under which the request is a good one.
    assert answer.status in {200, 400}, answer.body


@FUZZ
@given(value=st.text(max_size=80), kind=st.sampled_from(["dns", "ip"]))
def test_any_name(service: RunningService, client: AcmeClient, value: str, kind: str) -> None:
    answer = client.post(client.directory["newOrder"], {"identifiers": [{"type": kind, "value": value}]})
    assert answer.status in {201, 400}, answer.body
    if answer.status == 400:
        assert answer.problem in {"malformed", "rejectedIdentifier"}


@FUZZ
@given(
    path=st.text(alphabet="abcdefghijklmnop/.-_%0123456789~", max_size=60),
    method=st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "DELETE"]),
)
def test_any_path(service: RunningService, client: AcmeClient, path: str, method: str) -> None:
    base = client.directory_url.removesuffix("directory")
    answer = client.request(method, base + path)
    assert answer.status < 500
