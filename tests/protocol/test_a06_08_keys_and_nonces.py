"""STANDARDS A 6 to 8: algorithms and account keys, the url header, nonces (RFC 8555 sections 6.2, 6.4, 6.5 and 7.2)."""

import json
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fakes.acme_client import ABSENT, AcmeClient, JwsKey, Response, b64, unb64
from fakes.service import NewClient, RunningService, StartService, serving

ACCEPTED = ["ES256", "ES384", "ES512", "EdDSA", "Ed25519", "RS256"]


@pytest.mark.parametrize("alg", ACCEPTED)
def test_a06_algorithms(service: RunningService, new_client: NewClient, alg: str) -> None:
    client = new_client(service, alg=alg)
    assert client.post(client.account or "").json["status"] == "valid"


def test_a06_both_names_of_ed25519_are_one_key(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service, alg="EdDSA")
    assert client.post(client.account or "", None, alg="Ed25519").status == 200


@pytest.mark.parametrize("alg", ["none", "NONE", "HS256", "HS512", "PS256", "RS384", "ES256K", "es256", "", "A" * 500])
def test_a06_other_algorithms_are_refused_and_the_good_ones_listed(
    service: RunningService, client: AcmeClient, alg: str
) -> None:
    with service.unchanged():
        answers = [
            client.post(client.directory["newAccount"], {}, jwk=client.key.jwk, alg=alg),
            client.post(client.account or "", {"contact": ["mailto:a@b.test"]}, alg=alg),
        ]
    for answer in answers:
        assert answer.refusal == (400, "badSignatureAlgorithm")
        assert answer.json["algorithms"] == ACCEPTED
        assert len(answer.body) < 1000


def test_a06_none_with_an_empty_signature(service: RunningService, client: AcmeClient) -> None:
    jws = client.sign(client.account or "", {"status": "deactivated"}, alg="none")
    with service.unchanged():
        answer = client.send(client.account or "", json.dumps({**jws, "signature": ""}).encode())
    assert answer.refusal == (400, "badSignatureAlgorithm")


@pytest.mark.parametrize(
    ("alg", "header"),
    [("ES256", "ES384"), ("ES384", "ES256"), ("ES256", "RS256"), ("RS256", "ES256"), ("Ed25519", "ES256")],
)
def test_a06_the_algorithm_is_bound_to_the_key(
    service: RunningService, new_client: NewClient, alg: str, header: str
) -> None:
    client = new_client(service, alg=alg)
    with service.unchanged():
        as_account = client.post(client.account or "", {"status": "deactivated"}, alg=header)
        as_key = client.post(client.directory["newAccount"], {}, jwk=client.key.jwk, alg=header)
    for answer in (as_account, as_key):
        assert answer.refusal == (400, "badSignatureAlgorithm")
        assert answer.json["algorithms"] == ACCEPTED


class _Signs:
    """Signs with another encoding than RFC 7518 section 3.4 has."""

    def __init__(self, change: Callable[[bytes, Any, bytes], bytes], key: JwsKey) -> None:
        self._change, self._key = change, key

    def sign(self, message: bytes) -> bytes:
        return self._change(self._key.sign(message), self._key.private, message)


_SIGNATURES: dict[str, Callable[[bytes, Any, bytes], bytes]] = {
    "DER": lambda _, key, message: bytes(key.sign(message, ec.ECDSA(hashes.SHA256()))),
    "one octet short": lambda good, *_: good[:-1],
    "one octet long": lambda good, *_: good + b"\0",
    "a leading zero in each half": lambda good, *_: b"\0" + good[:32] + b"\0" + good[32:],
    "halves exchanged": lambda good, *_: good[32:] + good[:32],
    "zero": lambda *_: bytes(64),
    "r is zero": lambda good, *_: bytes(32) + good[32:],
    "all ones": lambda *_: b"\xff" * 64,
    "nothing": lambda *_: b"",
    "one bit": lambda good, *_: good[:-1] + bytes([good[-1] ^ 1]),
    "other hash": lambda _good, key, message: JwsKey("ES256", key).sign(message + b"x"),
    "huge": lambda *_: bytes(20_000),
}


@pytest.mark.parametrize("signature", _SIGNATURES)
def test_a06_an_es256_signature_has_64_octets(service: RunningService, client: AcmeClient, signature: str) -> None:
    signer = _Signs(_SIGNATURES[signature], client.key)
    with service.unchanged():
        as_account = client.post(client.account or "", {"status": "deactivated"}, key=signer)
        as_key = client.post(client.directory["newAccount"], {}, key=signer, jwk=client.key.jwk)
    assert as_account.refusal == as_key.refusal == (400, "malformed")


def _ec(**members: Any) -> dict[str, Any]:
    return {**JwsKey().jwk, **members}


def _rsa(bits: int = 2048, exponent: int = 65537) -> dict[str, Any]:
    return JwsKey("RS256", rsa.generate_private_key(exponent, bits)).jwk


def _deep(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


_KEYS: dict[str, Callable[[], object]] = {
    "nothing": dict,
    "no object": lambda: "x",
    "null": lambda: None,
    "list": lambda: [JwsKey().jwk],
    "symmetric": lambda: {"kty": "oct", "k": "AAAA"},
    "unknown kty": lambda: _ec(kty="XX"),
    "kty is a number": lambda: _ec(kty=1),
    "kty is a list": lambda: _ec(kty=["EC"]),
    "no x": lambda: {name: value for name, value in _ec().items() if name != "x"},
    "x is a number": lambda: _ec(x=5),
    "x is a list": lambda: _ec(x=["AAAA"]),
    "x is an object": lambda: _ec(x={"a": 1}),
    "x is deep": lambda: _ec(x=_deep(300)),
    "x has padding": lambda: _ec(x=b64(bytes(31)) + "="),
    "x is short": lambda: _ec(x=b64(bytes(31))),
    "x is long": lambda: _ec(x=b64(bytes(33))),
    "not on the curve": lambda: _ec(x=b64(b"\1" * 32), y=b64(b"\1" * 32)),
    "the point at zero": lambda: _ec(x=b64(bytes(32)), y=b64(bytes(32))),
    "another curve": lambda: _ec(crv="P-384"),
    "unknown curve": lambda: _ec(crv="secp256k1"),
    "curve is a list": lambda: _ec(crv=["P-256"]),
    "private": lambda: _ec(d=b64(bytes(32))),
    "X25519": lambda: {"kty": "OKP", "crv": "X25519", "x": b64(b"\x09" + bytes(31))},
    "Ed25519 of 31 octets": lambda: {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes(31))},
    "Ed25519 of small order": lambda: {"kty": "OKP", "crv": "Ed25519", "x": b64(b"\1" + bytes(31))},
    "RSA of 1024 bits": lambda: _rsa(1024),
    "RSA with the exponent 3": lambda: _rsa(exponent=3),
    "RSA with the exponent 1": lambda: {**_rsa(), "e": "AQ"},
    "RSA with an even modulus": lambda: {**_rsa(), "n": b64(b"\xff" * 255 + b"\xfe")},
    "RSA with a modulus of ones": lambda: {**_rsa(), "n": b64(b"\xff" * 256)},
    "RSA with a list": lambda: {**_rsa(), "n": ["AAAA"]},
    "RSA with an object": lambda: {**_rsa(), "n": {"AAAA": 1}},
    "RSA with an exponent that is a number": lambda: {**_rsa(), "e": 65537},
    "RSA with a huge exponent": lambda: {**_rsa(), "e": b64(b"\1" * 256)},
    "RSA of 16384 bits": lambda: {**_rsa(), "n": b64(b"\xc5" * 2048)},
    "RSA of 8192 bits": lambda: {**_rsa(), "n": b64(b"\xc5" * 1024)},
}


@pytest.mark.parametrize("kind", _KEYS)
def test_a06_bad_keys(service: RunningService, client: AcmeClient, kind: str) -> None:
    jwk = _KEYS[kind]()
    alg = "ES256"
    if isinstance(jwk, dict):
        alg = {"RSA": "RS256", "OKP": "EdDSA"}.get(str(jwk.get("kty")), "ES256")
    with service.unchanged():
        answer = client.post(client.directory["newAccount"], {}, jwk=jwk, alg=alg)
    assert answer.status == 400
    # A key that could be read but has not made the signature is not bad, the signature is.
    assert answer.problem in {"badPublicKey", "malformed"}, answer.body
    if kind not in {"Ed25519 of small order", "RSA with a modulus of ones", "RSA with the exponent 1"}:
        assert answer.problem == "badPublicKey" or "signature" in answer.json["detail"], answer.body


def test_a06_weak_keys_that_sign_well_are_bad_keys(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service, registered=False)
    for key in (rsa.generate_private_key(3, 2048), rsa.generate_private_key(65537, 1024)):  # noqa: S505 (what is refused)
        client.key = JwsKey("RS256", key)
        with service.unchanged():
            assert client.new_account().refusal == (400, "badPublicKey")


def test_a06_a_key_that_the_world_knows_is_a_bad_key(service: RunningService, new_client: NewClient) -> None:
    # The P-256 key of RFC 7515 appendix A.3.
    number = int.from_bytes(unb64("jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"), "big")
    client = new_client(service, registered=False)
    client.key = JwsKey("ES256", ec.derive_private_key(number, ec.SECP256R1()))
    with service.unchanged():
        assert client.new_account().refusal == (400, "badPublicKey")


def test_a06_members_of_no_meaning_do_not_make_another_key(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service)
    decorated = {**client.key.jwk, "kid": "x", "use": "sig", "alg": "ES256"}
    answer = client.post(client.directory["newAccount"], {}, jwk=decorated)
    assert (answer.status, answer.headers["Location"]) == (200, client.account)


_URLS: dict[str, Callable[[str], str]] = {
    "another resource": lambda url: url.replace("new-order", "new-authz"),
    "another host": lambda url: url.replace("127.0.0.1", "localhost"),
    "no port": lambda url: url.replace(":" + url.split(":")[2].split("/")[0], ""),
    "http": lambda url: url.replace("https", "http"),
    "a slash more": lambda url: url + "/",
    "a query": lambda url: url + "?a=b",
    "an escape": lambda url: url.replace("new-order", "new%2Dorder"),
    "upper case": lambda url: url.replace("https", "HTTPS"),
    "the path alone": lambda url: url[url.index("/acme") :],
    "nothing": lambda _: "",
    "a fragment": lambda url: url + "#",
}


@pytest.mark.parametrize("kind", _URLS)
def test_a07_the_url_is_compared_as_text(service: RunningService, client: AcmeClient, kind: str) -> None:
    url = client.directory["newOrder"]
    payload = {"identifiers": [{"type": "dns", "value": "a07.test"}]}
    with service.unchanged():
        assert client.post(url, payload, url=_URLS[kind](url)).refusal == (403, "unauthorized")


def test_a07_the_query_belongs_to_the_url(client: AcmeClient) -> None:
    url = f"{client.account}/orders?cursor=AAAA"
    assert client.post(url, None, url=f"{client.account}/orders").refusal == (403, "unauthorized")


def test_a07_the_host_field_decides_nothing(client: AcmeClient) -> None:
    url = client.account or ""
    body = json.dumps(client.sign(url, None)).encode()
    headers = {"Content-Type": "application/jose+json", "Host": "elsewhere.example"}
    answer = client.request("POST", url, body, headers)
    assert answer.status == 200
    assert "elsewhere" not in answer.body.decode()

    lie = json.dumps(client.sign(url, None, url=url.replace("127.0.0.1", "elsewhere.example"))).encode()
    assert client.request("POST", url, lie, headers).refusal == (403, "unauthorized")


def test_a07_urls_come_from_the_settings(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(server={"https_url": "https://ca.test:444/"})
    client = new_client(service, registered=False)
    listener = f"https://{service.settings.server.https}"
    client.directory_url = f"{listener}/acme/directory"
    directory = client.directory
    assert all(url.startswith("https://ca.test:444/acme/") for name, url in directory.items() if name != "meta")
    client.nonce = client.request("HEAD", f"{listener}/acme/new-nonce").headers["Replay-Nonce"]
    jws = client.sign(directory["newAccount"], {}, jwk=client.key.jwk)
    answer = client.send(f"{listener}/acme/new-account", json.dumps(jws).encode())
    assert answer.status == 201
    assert answer.headers["Location"].startswith("https://ca.test:444/acme/account/")


def unspent(client: AcmeClient, request: Callable[[], Response]) -> str:
    """The nonce that the answer to ``request`` carries, which the client will not use of itself."""
    nonce, client.nonce = request().headers["Replay-Nonce"], None
    assert nonce is not None
    return str(nonce)


def test_a08_a_nonce_is_good_once(client: AcmeClient) -> None:
    nonce = client.fresh_nonce()
    assert client.post(client.account or "", None, nonce=nonce).status == 200
    answer = client.post(client.account or "", None, nonce=nonce)
    assert answer.refusal == (400, "badNonce")
    assert client.post(client.account or "", None, nonce=answer.headers["Replay-Nonce"]).status == 200


def test_a08_a_nonce_that_meets_itself_is_good_once(client: AcmeClient) -> None:
    twins = [client.twin() for _ in range(8)]
    for twin in twins:
        assert twin.directory
    nonce = client.fresh_nonce()
    with ThreadPoolExecutor(len(twins)) as threads:
        answers = list(threads.map(lambda twin: twin.post(client.account or "", None, nonce=nonce), twins))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 7
    assert {answer.problem for answer in answers if answer.status == 400} == {"badNonce"}
    for twin in twins:
        twin.close()


@pytest.mark.parametrize("fault", ["signature", "payload", "kid", "ownership"])
def test_a08_a_nonce_dies_with_any_request_it_was_seen_in(client: AcmeClient, fault: str) -> None:
    nonce = client.fresh_nonce()
    url = client.directory["newOrder"] if fault == "payload" else client.account or ""
    refused = {
        "signature": lambda: client.post(url, None, nonce=nonce, key=JwsKey()),
        "payload": lambda: client.post(url, {"identifiers": 5}, nonce=nonce),
        "kid": lambda: client.post(url, None, nonce=nonce, kid="https://nobody.test/"),
        "ownership": lambda: client.post((client.account or "")[:-22] + "A" * 22, None, nonce=nonce),
    }[fault]()
    assert refused.status >= 400
    assert refused.problem != "badNonce"
    assert client.post(client.account or "", None, nonce=nonce).refusal == (400, "badNonce")


_FOREIGN: dict[str, Callable[[str], str]] = {
    "of nobody": lambda _: b64(bytes(24)),
    "too short": lambda nonce: b64(unb64(nonce)[:-1]),
    "too long": lambda nonce: b64(unb64(nonce) + b"\0"),
    "empty": lambda _: "",
    "changed": lambda nonce: b64(bytes([unb64(nonce)[0] ^ 1]) + unb64(nonce)[1:]),
    "changed at the end": lambda nonce: b64(unb64(nonce)[:-1] + bytes([unb64(nonce)[-1] ^ 1])),
    "huge": lambda _: b64(bytes(9000)),
}


@pytest.mark.parametrize("kind", _FOREIGN)
def test_a08_foreign_nonces(client: AcmeClient, kind: str) -> None:
    answer = client.post(client.account or "", None, nonce=_FOREIGN[kind](client.fresh_nonce()))
    assert answer.refusal == (400, "badNonce")
    assert client.post(client.account or "", None, nonce=answer.headers["Replay-Nonce"]).status == 200


@pytest.mark.parametrize("value", [ABSENT, None])
def test_a08_no_nonce(client: AcmeClient, value: object) -> None:
    answer = client.post(client.account or "", None, nonce=value)
    assert answer.refusal == (400, "badNonce")
    assert client.post(client.account or "", None, nonce=answer.headers["Replay-Nonce"]).status == 200


@pytest.mark.parametrize("value", ["a=", "a b", "\u00e9", "a+/", "A", "AB\n"])
def test_a08_a_badly_encoded_nonce_is_malformed(client: AcmeClient, value: str) -> None:
    assert client.post(client.account or "", None, nonce=value).refusal == (400, "malformed")


def test_a08_every_answer_to_a_post_has_a_nonce_that_works(client: AcmeClient) -> None:
    url = client.directory["newOrder"]
    requests: list[Callable[[], Response]] = [
        lambda: client.post(client.account or ""),
        lambda: client.post(url, {}),
        lambda: client.post(url, None, alg="none"),
        lambda: client.post(client.account or "", None, key=JwsKey()),
        lambda: client.send(url, b"{}", content_type="text/plain"),
        lambda: client.send(url, b"x" * 100_000),
        lambda: client.send(url + "/nothing", b"{}"),
        lambda: client.send(client.directory["renewalInfo"] + "/a.b", b"{}"),
    ]
    nonces = [unspent(client, request) for request in requests]
    assert len(set(nonces)) == len(nonces)
    for nonce in nonces:
        assert unb64(nonce)
        assert client.post(client.account or "", None, nonce=nonce).status == 200


def test_a08_new_nonce(client: AcmeClient) -> None:
    url = client.directory["newNonce"]
    head, get, post = client.request("HEAD", url), client.request("GET", url), client.post(url)
    assert [answer.status for answer in (head, get, post)] == [200, 204, 204]
    for answer in (head, get, post):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.body == b""
    requests = [lambda: client.request("HEAD", url), lambda: client.request("GET", url), lambda: client.post(url)]
    nonces = {unspent(client, request) for request in requests}
    assert len(nonces) == 3
    for nonce in nonces:
        assert client.post(client.account or "", None, nonce=nonce).status == 200


def test_a08_no_nonce_is_spent_on_cacheable_answers(client: AcmeClient) -> None:
    assert client.request("GET", client.directory_url).headers["Replay-Nonce"] is None


def test_a08_an_old_nonce(fresh_service: RunningService, fresh_client: AcmeClient) -> None:
    lifetime = fresh_service.settings.acme.nonce_lifetime
    nonces = [fresh_client.fresh_nonce() for _ in range(2)]
    fresh_service.clock.advance(lifetime - 1)
    assert fresh_client.post(fresh_client.account or "", None, nonce=nonces[0]).status == 200
    fresh_service.clock.advance(1)
    assert fresh_client.post(fresh_client.account or "", None, nonce=nonces[1]).refusal == (400, "badNonce")


def test_a08_nonces_survive_a_restart_and_so_does_their_use(start_service: StartService, new_client: NewClient) -> None:
    first = start_service()
    client = new_client(first)
    used, unused = client.fresh_nonce(), client.fresh_nonce()
    assert client.post(client.account or "", None, nonce=used).status == 200
    first.stop()
    client.close()
    with serving(first.settings):
        assert client.post(client.account or "", None, nonce=used).refusal == (400, "badNonce")
        assert client.post(client.account or "", None, nonce=unused).status == 200


def test_a08_a_nonce_of_another_authority(
    service: RunningService, client: AcmeClient, new_client: NewClient, start_service: StartService
) -> None:
    other = new_client(start_service())
    # Both have the home's secret; what another deployment minted looks like this one's with another key.
    foreign = b64(unb64(other.fresh_nonce())[:-12] + bytes(12))
    assert client.post(client.account or "", None, nonce=foreign).refusal == (400, "badNonce")


def test_a08_base64_of_the_other_alphabet(client: AcmeClient) -> None:
    assert client.post(client.account or "", None, nonce=b64encode(b"\xff" * 24).decode()).refusal == (400, "malformed")
