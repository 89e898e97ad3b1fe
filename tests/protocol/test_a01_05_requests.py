"""STANDARDS A 1 to 5: transport, and the shape of a request (RFC 8555 sections 5, 6.1 and 6.2)."""

import http.client
import json
import socket
import ssl
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from fakes.acme_client import ABSENT, JOSE, AcmeClient, Response, b64, unb64
from fakes.service import NewClient, RunningService

Change = Callable[[dict[str, Any]], object]


def send_changed(client: AcmeClient, change: Change) -> Response:
    """A good newOrder after ``change``, which gives what is sent instead of the JWS."""
    url = client.directory["newOrder"]
    jws = client.sign(url, {"identifiers": [{"type": "dns", "value": "a.test"}]})
    changed = change(jws)
    body = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    return client.send(url, body)


def protected(jws: dict[str, Any], **members: Any) -> dict[str, Any]:
    """``jws`` with other members in its protected header, and a signature that is wrong therefore."""
    header = {**json.loads(unb64(jws["protected"])), **members}
    return {**jws, "protected": b64(json.dumps(header).encode())}


def test_a01_acme_is_served_over_tls_only(service: RunningService) -> None:
    for name in ("http", "https"):
        parts = urlsplit(f"//{getattr(service.settings.server, name)}")
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        try:
            connection.request("GET", "/acme/directory")
            assert connection.getresponse().status == 404
        except (http.client.HTTPException, OSError):
            assert name == "https"
        finally:
            connection.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a01_tls_verifies_against_the_roots(service: RunningService, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=service.roots)
    context.minimum_version = context.maximum_version = version
    parts = urlsplit(service.directory)
    for host in (parts.hostname or "", "localhost"):
        with (
            socket.create_connection((parts.hostname, parts.port), 10) as plain,
            context.wrap_socket(plain, server_hostname=host) as tls,
        ):
            assert tls.version() == version.name.replace("_", ".")


def test_a01_tls_below_1_2_is_refused(service: RunningService) -> None:
    context = ssl.create_default_context(cafile=service.roots)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    parts = urlsplit(service.directory)
    with socket.create_connection((parts.hostname, parts.port), 10) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname=parts.hostname)


def test_a01_every_answer_can_be_read_by_a_browser(client: AcmeClient) -> None:
    answers = [
        client.request("GET", client.directory_url),
        client.request("HEAD", client.directory["newNonce"]),
        client.request("GET", client.directory["newOrder"]),
        client.request("GET", f"{client.directory['renewalInfo']}/x.y"),
        client.post(client.account or ""),
        client.new_order("not allowed.example"),
        client.request("GET", client.directory_url + "/nothing"),
    ]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        exposed = set(answer.headers["Access-Control-Expose-Headers"].split(", "))
        assert exposed >= {"Replay-Nonce", "Location", "Link", "Retry-After"}


@pytest.mark.parametrize("resource", ["newNonce", "newAccount", "newOrder", "revokeCert", "keyChange", "renewalInfo"])
def test_a01_preflight(client: AcmeClient, resource: str) -> None:
    answer = client.request(
        "OPTIONS",
        client.directory[resource],
        headers={
            "Origin": "https://console.test",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        },
    )
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert "content-type" in answer.headers["Access-Control-Allow-Headers"].lower()


def test_a01_a_user_agent_is_not_demanded(client: AcmeClient) -> None:
    # http.client sends none of itself.
    assert client.post(client.account or "").status == 200


def test_a01_requests_are_utf_8(client: AcmeClient) -> None:
    assert send_changed(client, lambda jws: json.dumps(jws).encode("utf-16")).refusal == (400, "malformed")
    url = client.directory["newOrder"]
    assert client.post(url, b'{"identifiers": [{"type": "dns", "value": "\xff.test"}]}').refusal == (400, "malformed")


@pytest.mark.parametrize("member", ["protected", "payload", "signature"])
@pytest.mark.parametrize("spoil", ["{}=", "{}==", "{}\n", " {}", "{}+", "{}/", "{}%3D", "{}\u00e9", "{}*"])
def test_a02_padding_and_other_alphabets_are_refused(
    service: RunningService, client: AcmeClient, member: str, spoil: str
) -> None:
    with service.unchanged():
        answer = send_changed(client, lambda jws: {**jws, member: spoil.format(jws[member])})
    assert answer.refusal == (400, "malformed")


@pytest.mark.parametrize("member", ["csr", "certificate"])
def test_a02_padding_inside_payloads_is_refused(client: AcmeClient, member: str) -> None:
    order = client.ready_order("a02.test")
    url = order.json["finalize"] if member == "csr" else client.directory["revokeCert"]
    assert client.post(url, {member: "MAA="}).refusal == (400, "malformed")


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/jose", "application/octet-stream", "x", ""]
)
def test_a03_other_media_types_are_refused(service: RunningService, client: AcmeClient, content_type: str) -> None:
    url = client.directory["newOrder"]
    body = json.dumps(client.sign(url, {"identifiers": [{"type": "dns", "value": "a.test"}]})).encode()
    with service.unchanged():
        assert client.send(url, body, content_type=content_type).refusal == (415, "malformed")


def test_a03_no_media_type_is_refused(client: AcmeClient) -> None:
    url = client.directory["newOrder"]
    body = json.dumps(client.sign(url, {"identifiers": [{"type": "dns", "value": "a.test"}]})).encode()
    assert client.request("POST", url, body).refusal == (415, "malformed")


@pytest.mark.parametrize("content_type", [JOSE, "application/jose+json; charset=utf-8", "Application/JOSE+JSON"])
def test_a03_the_media_type_as_rfc_9110_compares_it(client: AcmeClient, content_type: str) -> None:
    body = json.dumps(client.sign(client.account or "", None)).encode()
    assert client.send(client.account or "", body, content_type=content_type).status == 200


_SHAPES: dict[str, Change] = {
    "general serialisation": lambda jws: {
        "payload": jws["payload"],
        "signatures": [{"protected": jws["protected"], "signature": jws["signature"]}],
    },
    "flattened and general at once": lambda jws: {**jws, "signatures": []},
    "unprotected header": lambda jws: {**jws, "header": {"kid": "x"}},
    "empty unprotected header": lambda jws: {**jws, "header": {}},
    "compact serialisation": lambda jws: ".".join((jws["protected"], jws["payload"], jws["signature"])).encode(),
    "compact serialisation in JSON": lambda jws: ".".join((jws["protected"], jws["payload"], jws["signature"])),
    "list": lambda jws: [jws],
    "null": lambda _: None,
    "number": lambda _: 5,
    "nothing": lambda _: b"",
    "no JSON": lambda _: b"{",
    "JSON twice": lambda jws: json.dumps(jws).encode() * 2,
    "detached payload": lambda jws: {name: value for name, value in jws.items() if name != "payload"},
    "payload is null": lambda jws: {**jws, "payload": None},
    "payload is an object": lambda jws: {**jws, "payload": {}},
    "no protected header": lambda jws: {name: value for name, value in jws.items() if name != "protected"},
    "empty protected header": lambda jws: {**jws, "protected": ""},
    "protected header is a list": lambda jws: {**jws, "protected": b64(b"[]")},
    "protected header is an object": lambda jws: {**jws, "protected": {"alg": "ES256"}},
    "no signature": lambda jws: {name: value for name, value in jws.items() if name != "signature"},
    "signature is a number": lambda jws: {**jws, "signature": 1},
    "b64 false": lambda jws: protected(jws, b64=False, crit=["b64"]),
    "b64 without crit": lambda jws: protected(jws, b64=False),
    "unknown crit": lambda jws: protected(jws, crit=["exp"], exp=1),
    "empty crit": lambda jws: protected(jws, crit=[]),
}


@pytest.mark.parametrize("shape", _SHAPES)
def test_a04_only_the_flattened_form(service: RunningService, client: AcmeClient, shape: str) -> None:
    with service.unchanged():
        answer = send_changed(client, _SHAPES[shape])
    assert answer.refusal == (400, "malformed")


@pytest.mark.parametrize("extra", [{"b64": False, "crit": ["b64"]}, {"crit": ["exp"], "exp": 0}, {"b64": True}])
def test_a04_a_good_signature_does_not_help(client: AcmeClient, extra: dict[str, Any]) -> None:
    assert client.post(client.account or "", None, **extra).refusal == (400, "malformed")


def test_a04_unknown_header_members_are_harmless(client: AcmeClient) -> None:
    # RFC 7515 section 4: header parameters that are not understood are ignored.
    assert client.post(client.account or "", None, typ="JOSE", cty="json", x="y").status == 200


@pytest.mark.parametrize("member", ["alg", "url"])
@pytest.mark.parametrize("value", [ABSENT, None, 5, [], {}, True])
def test_a05_alg_and_url_are_needed(client: AcmeClient, member: str, value: Any) -> None:
    assert client.post(client.account or "", None, **{member: value}).refusal == (400, "malformed")


@pytest.mark.parametrize("value", [5, [], {}, True])
def test_a05_a_nonce_is_text(client: AcmeClient, value: object) -> None:
    assert client.post(client.account or "", None, nonce=value).refusal == (400, "malformed")


def test_a05_exactly_one_of_jwk_and_kid(service: RunningService, client: AcmeClient) -> None:
    url = client.directory["newAccount"]
    with service.unchanged():
        both = client.post(url, {}, jwk=client.key.jwk, kid=client.account)
        neither = client.post(url, {}, jwk=ABSENT)
        for_account = client.post(client.account or "", None, jwk=client.key.jwk, kid=client.account)
    for answer in (both, neither, for_account):
        assert answer.refusal == (400, "malformed")


def test_a05_new_account_takes_a_jwk(service: RunningService, client: AcmeClient) -> None:
    with service.unchanged():
        assert client.post(client.directory["newAccount"], {}, kid=client.account).refusal == (400, "malformed")


@pytest.mark.parametrize("resource", ["newOrder", "newAuthz", "keyChange", "account", "orders", "order", "authz"])
def test_a05_everything_else_takes_a_kid(service: RunningService, client: AcmeClient, resource: str) -> None:
    order = client.order("a05.test")
    urls = {
        **client.directory,
        "account": client.account,
        "orders": f"{client.account}/orders",
        "order": order.headers["Location"],
        "authz": order.json["authorizations"][0],
    }
    with service.unchanged():
        assert client.post(urls[resource], None, jwk=client.key.jwk).refusal == (400, "malformed")


_KIDS: dict[str, Callable[[str], object]] = {
    "the id alone": lambda url: url.rpartition("/")[2],
    "a slash more": lambda url: url + "/",
    "a query": lambda url: url + "?",
    "another host": lambda url: url.replace("127.0.0.1", "localhost"),
    "http": lambda url: url.replace("https", "http"),
    "another account's form": lambda url: url[:-22] + "A" * 22,
    "upper case": lambda url: url.upper(),
    "nothing": lambda _: "",
    "a line break": lambda url: url + "\n",
}


@pytest.mark.parametrize("kid", _KIDS)
def test_a05_the_kid_is_the_exact_account_url(client: AcmeClient, kid: str) -> None:
    account = client.account or ""
    assert client.post(account, None, kid=_KIDS[kid](account)).refusal == (400, "accountDoesNotExist")


@pytest.mark.parametrize("value", [None, 5, [], {}])
def test_a05_the_kid_is_text(client: AcmeClient, value: object) -> None:
    assert client.post(client.account or "", None, kid=value).refusal == (400, "malformed")


def test_a05_another_accounts_kid_does_not_verify(
    service: RunningService, client: AcmeClient, new_client: NewClient
) -> None:
    other = new_client(service)
    assert client.post(other.account or "", None, kid=other.account).refusal == (400, "malformed")
