"""Account keys: JSON Web Keys (RFC 7517, 7518, 8037) and the signatures they verify."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from josepy.errors import Error as JoseError
from josepy.jwk import JWKEC, JWKRSA

from privyseal_acme.protocol.encoding import decode, encode
from privyseal_acme.protocol.problems import Problem

#: What newAccount and every other request accept, in the order that problem documents list it.
ALGORITHMS = ("ES256", "ES384", "ES512", "EdDSA", "Ed25519", "RS256")

#: Curve name, coordinate and signature half in octets, hash (RFC 7518 section 3.4).
_EC_ALGORITHMS: Mapping[str, tuple[str, int, ec.ECDSA]] = {
    "ES256": ("P-256", 32, ec.ECDSA(hashes.SHA256())),
    "ES384": ("P-384", 48, ec.ECDSA(hashes.SHA384())),
    "ES512": ("P-521", 66, ec.ECDSA(hashes.SHA512())),
}
_COORDINATE = {"P-256": 32, "P-384": 48, "P-521": 66}
_PKCS1 = padding.PKCS1v15()
_SHA256 = hashes.SHA256()
_MIN_RSA, _MAX_RSA = 2048, 8192
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class AccountKey:
    """A parsed JWK."""

    #: Only the members that the thumbprint is made of (RFC 7638), as canonical JSON text.
    jwk: str
    #: SHA-256 thumbprint, base64url.
    thumbprint: str
    public_key: PublicKey
    spki_der: bytes
    _verifiers: Mapping[str, Callable[[bytes, bytes], None]]

    @property
    def spki_sha256(self) -> bytes:
        """SHA-256 of the key's SubjectPublicKeyInfo."""
        return hashlib.sha256(self.spki_der).digest()

    def verify(self, algorithm: str, signature: bytes, message: bytes) -> None:
        """Check a JWS signature.

        Raises:
            Problem: badSignatureAlgorithm when ``algorithm`` is not one for this key, malformed when the signature is wrong.
        """
        verifier = self._verifiers.get(algorithm)
        if verifier is None:
            raise bad_algorithm(f"The algorithm {algorithm} does not fit the key.")
        try:
            verifier(signature, message)
        except InvalidSignature:
            raise Problem("malformed", "The signature of the JWS does not verify with the key.") from None


def bad_algorithm(detail: str, algorithms: Sequence[str] = ALGORITHMS) -> Problem:
    """badSignatureAlgorithm with the algorithms that would do (RFC 8555 section 6.2)."""
    return Problem("badSignatureAlgorithm", detail, members={"algorithms": list(algorithms)})


def parse_jwk(members: Mapping[str, Any]) -> AccountKey:
    """The key in a ``jwk`` header or an ``oldKey`` member.

    Raises:
        Problem: badPublicKey.
    """
    if not _PRIVATE_MEMBERS.isdisjoint(members):
        raise Problem("badPublicKey", "The JWK holds private or symmetric members; send only the public key.")
    kept = {name: members.get(name) for name in ("kty", "crv", "x", "y", "n", "e") if name in members}
    if not all(isinstance(value, str) for value in kept.values()):
        raise Problem("badPublicKey", "A member of the JWK is not text.")
    return _key(kept)


@lru_cache(maxsize=16_384)
def load_jwk(text: str) -> AccountKey:
    """The key of an account, written as ``text``; remembered, since every request of the account needs it.

    Keys that strangers send are not remembered: they would drive out those of accounts.
    """
    return _key(orjson.loads(text))


def _key(members: Mapping[str, Any]) -> AccountKey:
    try:
        match members.get("kty"):
            case "EC":
                return _ec(members)
            case "OKP":
                return _okp(members)
            case "RSA":
                return _rsa(members)
    except (ValueError, TypeError, KeyError, UnsupportedAlgorithm, JoseError):
        raise Problem("badPublicKey", "The JWK is not a well-formed public key.") from None
    raise Problem("badPublicKey", "The JWK's kty must be EC, OKP or RSA.")


def _public_key(kind: Any, kept: Mapping[str, str]) -> object:
    """The key that josepy reads, as cryptography's own type instead of josepy's comparable wrapper."""
    wrapper = kind.from_json(dict(kept)).key
    return serialization.load_der_public_key(
        wrapper.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def _ec(members: Mapping[str, Any]) -> AccountKey:
    curve = members["crv"]
    if curve not in _COORDINATE:
        raise Problem("badPublicKey", "The JWK's crv must be P-256, P-384 or P-521.")
    # RFC 7518 section 6.2.1.2: coordinates are written in full length.
    if any(len(decode(members[name])) != _COORDINATE[curve] for name in ("x", "y")):
        raise ValueError("coordinate length")
    kept = {"kty": "EC", "crv": curve, "x": members["x"], "y": members["y"]}
    key = _public_key(JWKEC, kept)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError
    algorithm = next(name for name, row in _EC_ALGORITHMS.items() if row[0] == curve)
    _, half, ecdsa = _EC_ALGORITHMS[algorithm]

    def verify(signature: bytes, message: bytes) -> None:
        if len(signature) != 2 * half:
            raise InvalidSignature
        r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
        key.verify(encode_dss_signature(r, s), message, ecdsa)

    return _account_key(kept, key, {algorithm: verify})


def _okp(members: Mapping[str, Any]) -> AccountKey:
    if members["crv"] != "Ed25519":
        raise Problem("badPublicKey", "The JWK's crv must be Ed25519.")
    key = ed25519.Ed25519PublicKey.from_public_bytes(decode(members["x"]))
    kept = {"kty": "OKP", "crv": "Ed25519", "x": members["x"]}
    # RFC 9864 gives the algorithm its own name; RFC 8037's polymorphic one stays in use.
    return _account_key(kept, key, {"EdDSA": key.verify, "Ed25519": key.verify})


def _rsa(members: Mapping[str, Any]) -> AccountKey:
    modulus, exponent = decode(members["n"]), decode(members["e"])
    if not _MIN_RSA <= len(modulus) * 8 <= _MAX_RSA or len(exponent) > 6:
        raise Problem("badPublicKey", f"An RSA account key has {_MIN_RSA} to {_MAX_RSA} bits and a small exponent.")
    # RFC 7518 section 2: no leading zero octets, or one key would have many thumbprints.
    if not modulus[0] or not exponent[:1].strip(b"\0"):
        raise ValueError("not in the fewest octets")
    kept = {"kty": "RSA", "n": members["n"], "e": members["e"]}
    key = _public_key(JWKRSA, kept)
    if not isinstance(key, rsa.RSAPublicKey):
        raise TypeError

    def verify(signature: bytes, message: bytes) -> None:
        key.verify(signature, message, _PKCS1, _SHA256)

    return _account_key(kept, key, {"RS256": verify})


def _account_key(
    kept: Mapping[str, str], key: PublicKey, verifiers: Mapping[str, Callable[[bytes, bytes], None]]
) -> AccountKey:
    canonical = orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return AccountKey(canonical.decode(), encode(hashlib.sha256(canonical).digest()), key, spki, verifiers)
