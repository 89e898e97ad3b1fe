"""A private key that is none: it lets cryptography's builder make a complete certificate before anything is signed.

Its signature is constant, well-formed and worthless, so what it "signs" can be parsed and linted but never used.
"""

from typing import Any, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from privyseal_ca.hsm.signer import PrivateKey
from privyseal_ca.policy.keys import CertifiableKey

# SEQUENCE { INTEGER 1, INTEGER 1 }: the smallest Ecdsa-Sig-Value (RFC 3279 section 2.2.3).
_ECDSA_SIGNATURE = bytes.fromhex("3006020101020101")


class _NoPrivateKey:
    """What cryptography's interfaces ask for and a stand-in never has."""

    def private_numbers(self) -> NoReturn:
        raise TypeError("a stand-in has no private key")

    def private_bytes(self, *_arguments: Any, **_options: Any) -> NoReturn:
        raise TypeError("a stand-in has no private key")

    def private_bytes_raw(self) -> NoReturn:
        raise TypeError("a stand-in has no private key")

    def exchange(self, *_arguments: Any) -> NoReturn:
        raise TypeError("a stand-in has no private key")

    def decrypt(self, *_arguments: Any) -> NoReturn:
        raise TypeError("a stand-in has no private key")


class _EllipticCurveStandIn(_NoPrivateKey, ec.EllipticCurvePrivateKey):
    def __init__(self, public_key: ec.EllipticCurvePublicKey) -> None:
        self._public_key = public_key

    def __copy__(self) -> "_EllipticCurveStandIn":
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> "_EllipticCurveStandIn":
        return self

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        return self._public_key.key_size

    def sign(self, *_arguments: Any) -> bytes:
        return _ECDSA_SIGNATURE


class _RsaStandIn(_NoPrivateKey, rsa.RSAPrivateKey):
    def __init__(self, public_key: rsa.RSAPublicKey) -> None:
        self._public_key = public_key

    def __copy__(self) -> "_RsaStandIn":
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> "_RsaStandIn":
        return self

    def public_key(self) -> rsa.RSAPublicKey:
        return self._public_key

    @property
    def key_size(self) -> int:
        return self._public_key.key_size

    def sign(self, *_arguments: Any) -> bytes:
        return bytes(self._public_key.key_size // 8)


class _Ed25519StandIn(_NoPrivateKey, ed25519.Ed25519PrivateKey):
    def __init__(self, public_key: ed25519.Ed25519PublicKey) -> None:
        self._public_key = public_key

    def __copy__(self) -> "_Ed25519StandIn":
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> "_Ed25519StandIn":
        return self

    def public_key(self) -> ed25519.Ed25519PublicKey:
        return self._public_key

    def sign(self, *_arguments: Any) -> bytes:
        return bytes(64)


def stand_in_for(public_key: CertifiableKey) -> PrivateKey:
    """Something that the builders take for the private key of ``public_key``."""
    match public_key:
        case ec.EllipticCurvePublicKey():
            return _EllipticCurveStandIn(public_key)
        case rsa.RSAPublicKey():
            return _RsaStandIn(public_key)
        case _:
            return _Ed25519StandIn(public_key)
