"""The JWS reader: whatever comes, it gives a Jws or raises a Problem."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.acme_client import JwsKey, b64, make_jws, unb64
from privyseal_acme.protocol.jws import Jws, parse_jws, parse_object
from privyseal_acme.protocol.keys import ALGORITHMS, load_jwk, parse_jwk
from privyseal_acme.protocol.problems import Problem

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "jws.json").read_text(encoding="utf-8"))
KEY = JwsKey()
URL = "https://ca.test/acme/new-order"


def good(payload: object = None, **header: Any) -> dict[str, Any]:
    """A request as clients make it."""
    return make_jws(KEY, payload, {"alg": "ES256", "url": URL, "nonce": "AAAA", "jwk": KEY.jwk, **header})


def read(body: bytes) -> Jws | Problem:
    """What the reader makes of ``body``; any other exception than Problem fails the test."""
    result: Jws | Problem
    try:
        result = parse_jws(body)
    except Problem as problem:
        result = problem
    if isinstance(result, Problem):
        assert result.type in {"malformed", "badSignatureAlgorithm", "badPublicKey"}
        assert result.status == 400
        assert json.dumps(result.document())
    else:
        assert isinstance(result.url, str)
        assert (result.jwk is None) != (result.kid is None)
        assert result.algorithm in ALGORITHMS
        assert isinstance(result.payload, bytes)
    return result


def test_a_good_one() -> None:
    jws = read(json.dumps(good({"a": 1})).encode())
    assert isinstance(jws, Jws)
    assert (jws.algorithm, jws.url, jws.nonce, jws.kid) == ("ES256", URL, "AAAA", None)
    assert json.loads(jws.payload) == {"a": 1}
    parse_jwk(jws.jwk or {}).verify(jws.algorithm, jws.signature, jws.signing_input)


@given(st.binary(max_size=300))
def test_any_octets(body: bytes) -> None:
    assert isinstance(read(body), Problem)


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(_ANYTHING)
def test_any_json(value: object) -> None:
    assert isinstance(read(json.dumps(value).encode()), Problem)


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from(["protected", "payload", "signature", "signatures", "header"]), _ANYTHING),
    st.dictionaries(st.sampled_from(["alg", "url", "nonce", "jwk", "kid", "crit", "b64"]), _ANYTHING),
)
def test_any_change_of_a_member(members: dict[str, Any], header: dict[str, Any]) -> None:
    jws = good(**header)
    read(json.dumps({**jws, **members}).encode())
    read(json.dumps(jws).encode())


@settings(max_examples=200)
@given(st.data())
def test_any_change_of_an_octet(data: st.DataObject) -> None:
    body = bytearray(json.dumps(good({"a": 1})).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(body) - 1))
        body[position] = data.draw(st.integers(0, 255))
    read(bytes(body))


@given(st.data())
def test_any_part_of_a_request(data: st.DataObject) -> None:
    body = json.dumps(good()).encode()
    end = data.draw(st.integers(0, len(body) - 1))
    assert isinstance(read(body[:end]), Problem)


@settings(max_examples=150)
@given(
    st.dictionaries(st.sampled_from(["kty", "crv", "x", "y", "n", "e", "d", "k", "other"]), _ANYTHING),
    st.sampled_from(["EC", "OKP", "RSA"]),
)
def test_any_key(members: dict[str, Any], kty: str) -> None:
    for jwk in (members, {**KEY.jwk, "kty": kty, "n": b64(b"\xc5" * 256), "e": "AQAB", **members}):
        try:
            key = parse_jwk(jwk)
        except Problem as problem:
            refused = problem.type
        else:
            refused = ""
            assert load_jwk(key.jwk).thumbprint == key.thumbprint
        assert refused in {"", "badPublicKey"}


@given(st.text(max_size=30), st.binary(max_size=140), st.binary(max_size=40))
def test_any_signature(algorithm: str, signature: bytes, message: bytes) -> None:
    key = parse_jwk(KEY.jwk)
    for name in (algorithm, "ES256"):
        with pytest.raises(Problem):
            key.verify(name, signature, message)


def test_deep_json() -> None:
    for depth in (100, 300, 1_000, 5_000):
        nested = "[" * depth + "]" * depth
        assert isinstance(read(nested.encode()), Problem)
        for member in ("alg", "url", "nonce", "kid", "x5c"):
            header = f'{{"alg":"ES256","url":"{URL}","kid":"x","{member}":{nested}}}'
            read(json.dumps({"protected": b64(header.encode()), "payload": "", "signature": ""}).encode())


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b'"x"', b"null", b"{", b"\xff", b'{"a":NaN}'])
def test_what_is_no_object(body: bytes) -> None:
    with pytest.raises(Problem) as refused:
        parse_object(body, "request body")
    assert refused.value.type == "malformed"


def test_other_algorithms_may_be_asked_for() -> None:
    with pytest.raises(Problem) as refused:
        parse_jws(good(), algorithms=("HS256",))
    assert refused.value.document()["algorithms"] == ["HS256"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["source"])
def test_published_signatures(vector: dict[str, Any]) -> None:
    key = parse_jwk(vector["jwk"])
    signature, message = unb64(vector["signature"]), vector["signing_input"].encode()
    key.verify(vector["alg"], signature, message)
    for wrong_signature, wrong_message in (
        (signature[:-1] + bytes([signature[-1] ^ 1]), message),
        (signature, message + b"x"),
        (signature + b"\0", message),
        (signature[:-1], message),
        (b"", message),
    ):
        with pytest.raises(Problem) as refused:
            key.verify(vector["alg"], wrong_signature, wrong_message)
        assert refused.value.type == "malformed"
