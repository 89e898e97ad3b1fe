"""Account keys: thumbprints, canonical form, and what is no key."""

import json
from pathlib import Path
from typing import Any

import pytest

from fakes.acme_client import JwsKey, b64, unb64
from privyseal_acme.protocol.keys import ALGORITHMS, load_jwk, parse_jwk
from privyseal_acme.protocol.problems import Problem

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "thumbprints.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["source"])
def test_published_thumbprints(vector: dict[str, Any]) -> None:
    assert parse_jwk(vector["jwk"]).thumbprint == vector["thumbprint"]


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_every_kind(alg: str) -> None:
    key = JwsKey(alg)
    parsed = parse_jwk({**key.jwk, "kid": "x", "use": "sig", "key_ops": ["verify"], "x5c": []})
    assert parsed.thumbprint == key.thumbprint
    assert json.loads(parsed.jwk) == key.jwk
    again = load_jwk(parsed.jwk)
    assert (again.jwk, again.thumbprint, again.spki_der) == (parsed.jwk, parsed.thumbprint, parsed.spki_der)
    assert len(parsed.spki_sha256) == 32
    parsed.verify(alg, key.sign(b"message"), b"message")
    for other in set(ALGORITHMS) - {alg} - ({"EdDSA", "Ed25519"} if alg in {"EdDSA", "Ed25519"} else set()):
        with pytest.raises(Problem) as refused:
            parsed.verify(other, key.sign(b"message"), b"message")
        assert refused.value.type == "badSignatureAlgorithm"


@pytest.mark.parametrize("member", ["d", "p", "q", "dp", "dq", "qi", "oth", "k"])
def test_private_members(member: str) -> None:
    with pytest.raises(Problem) as refused:
        parse_jwk({**JwsKey().jwk, member: "AA"})
    assert refused.value.type == "badPublicKey"


@pytest.mark.parametrize("value", [5, None, True, 1.5, [], ["AA"], {}, {"AA": 1}])
@pytest.mark.parametrize("member", ["kty", "crv", "x", "y"])
def test_members_are_text(member: str, value: object) -> None:
    with pytest.raises(Problem) as refused:
        parse_jwk({**JwsKey().jwk, member: value})
    assert refused.value.type == "badPublicKey"


def test_a_deep_member_is_no_text() -> None:
    value: list[Any] = []
    for _ in range(400):
        value = [value]
    with pytest.raises(Problem):
        parse_jwk({**JwsKey().jwk, "x": value})


def test_a_coordinate_has_one_form() -> None:
    key = JwsKey()
    x = key.jwk["x"]
    for changed in (x + "=", b64(b"\0" + unb64(x)), x[:-1]):
        with pytest.raises(Problem):
            parse_jwk({**key.jwk, "x": changed})


def test_an_rsa_modulus_has_one_form() -> None:
    """Leading zeros would give one key two thumbprints, and with that two accounts (RFC 7518 section 6.3.1.1)."""
    key = JwsKey("RS256")
    for member in ("n", "e"):
        with pytest.raises(Problem):
            parse_jwk({**key.jwk, member: b64(b"\0" + unb64(key.jwk[member]))})
