"""Private keys of the cryptography interfaces whose signatures are made in a token (promise P1).

cryptography's certificate, CRL and OCSP builders take them like any other private key. Hashing is done here, so that a
long CRL does not travel to the token; the private half is not reachable by any method.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Never

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from privyseal_ca.errors import SignerError
from privyseal_ca.hsm.signer import PrivateKey, PublicKey


class Scheme(Enum):
    """What the token is asked to do with the bytes it is given."""

    ECDSA = auto()
    """A digest; the answer is r and s, each as long as the curve's order."""
    EDDSA = auto()
    """The message itself (Ed25519 of RFC 8032)."""
    RSA_PKCS1 = auto()
    """A DigestInfo, padded by the token (RFC 8017 section 8.2)."""
    RSA_PSS_SHA256 = auto()
    """A SHA-256 digest; the salt is as long as the digest (RFC 8017 section 8.1)."""
    RSA_PSS_SHA384 = auto()
    """A SHA-384 digest; the salt is as long as the digest."""
    RSA_PSS_SHA512 = auto()
    """A SHA-512 digest; the salt is as long as the digest."""


Sign = Callable[[Scheme, bytes], bytes]

_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
# RFC 8017 section 9.2, note 1: DigestInfo up to the digest.
_DIGEST_INFO = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
_DIGEST_INFO_LENGTH = 19
_PSS = {"sha256": Scheme.RSA_PSS_SHA256, "sha384": Scheme.RSA_PSS_SHA384, "sha512": Scheme.RSA_PSS_SHA512}


class _Unreadable:
    """The methods that would give away or use the private half otherwise than by signing."""

    def private_bytes(self, *_: Any, **__: Any) -> Never:
        raise _never_leaves()

    def private_bytes_raw(self) -> Never:
        raise _never_leaves()

    def private_numbers(self) -> Never:
        raise _never_leaves()

    def exchange(self, *_: Any, **__: Any) -> Never:
        raise _only_signs()

    def decrypt(self, *_: Any, **__: Any) -> Never:
        raise _only_signs()

    def __copy__(self) -> Never:
        raise _never_leaves()

    def __deepcopy__(self, memo: dict[int, Any]) -> Never:
        raise _never_leaves()

    def __reduce__(self) -> Never:
        raise _never_leaves()


class TokenEllipticCurveKey(_Unreadable, ec.EllipticCurvePrivateKey):
    """An ECDSA key in a token."""

    def __init__(self, public_key: ec.EllipticCurvePublicKey, sign: Sign) -> None:
        self._public_key = public_key
        self._sign = sign

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self._public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        """The key's curve."""
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        """Bits of the curve's order."""
        return self._public_key.key_size

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """An ECDSA signature over ``data`` as DER (RFC 3279 section 2.2.3).

        Raises:
            SignerError: not ECDSA, or a hash other than SHA-256, SHA-384 and SHA-512; or as ``SigningKey.run``.
        """
        if not isinstance(signature_algorithm, ec.ECDSA):
            raise _unsupported("an elliptic curve key signs with ECDSA only")
        return _ecdsa_der(self._sign(Scheme.ECDSA, _digest(data, signature_algorithm.algorithm)))


class TokenRsaKey(_Unreadable, rsa.RSAPrivateKey):
    """An RSA key in a token: PKCS #1 v1.5 and PSS (RFC 8017 section 8)."""

    def __init__(self, public_key: rsa.RSAPublicKey, sign: Sign) -> None:
        self._public_key = public_key
        self._sign = sign

    def public_key(self) -> rsa.RSAPublicKey:
        """The public half."""
        return self._public_key

    @property
    def key_size(self) -> int:
        """Bits of the modulus."""
        return self._public_key.key_size

    def sign(
        self,
        data: Any,
        padding: padding.AsymmetricPadding,
        algorithm: Any,
    ) -> bytes:
        """A signature over ``data``.

        Raises:
            SignerError: a padding or hash that is not offered; or as ``SigningKey.run``.
        """
        digest = _digest(data, algorithm)
        hash_ = _hash_of(algorithm)
        if _is_pkcs1(padding):
            return self._sign(Scheme.RSA_PKCS1, _DIGEST_INFO[hash_.name] + digest)
        _check_pss(padding, hash_)
        return self._sign(_PSS[hash_.name], digest)


class TokenEd25519Key(_Unreadable, ed25519.Ed25519PrivateKey):
    """An Ed25519 key in a token (RFC 8032)."""

    def __init__(self, public_key: ed25519.Ed25519PublicKey, sign: Sign) -> None:
        self._public_key = public_key
        self._sign = sign

    def public_key(self) -> ed25519.Ed25519PublicKey:
        """The public half."""
        return self._public_key

    def sign(self, data: Any) -> bytes:
        """A signature over ``data``. Raises the errors of ``SigningKey.run``."""
        return self._sign(Scheme.EDDSA, bytes(data))


def private_key(public_key: PublicKey, sign: Sign) -> PrivateKey:
    """The private key whose public half is ``public_key`` and whose signatures ``sign`` makes."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return TokenEllipticCurveKey(public_key, sign)
    if isinstance(public_key, rsa.RSAPublicKey):
        return TokenRsaKey(public_key, sign)
    return TokenEd25519Key(public_key, sign)


def verifies(public_key: PublicKey, scheme: Scheme, data: bytes, signature: bytes) -> bool:
    """Whether the token's ``signature`` over ``data``, both as :class:`Scheme` says, is one of ``public_key``."""
    try:
        if isinstance(public_key, ed25519.Ed25519PublicKey):
            public_key.verify(signature, data)
            return True
        digest = data[_DIGEST_INFO_LENGTH:] if scheme is Scheme.RSA_PKCS1 else data
        hash_ = next(each for each in _HASHES if each.digest_size == len(digest))()
        if isinstance(public_key, ec.EllipticCurvePublicKey):
            public_key.verify(_ecdsa_der(signature), digest, ec.ECDSA(Prehashed(hash_)))
        elif scheme is Scheme.RSA_PKCS1:
            public_key.verify(signature, digest, padding.PKCS1v15(), Prehashed(hash_))
        else:
            pss = padding.PSS(padding.MGF1(hash_), padding.PSS.DIGEST_LENGTH)
            public_key.verify(signature, digest, pss, Prehashed(hash_))
    except (InvalidSignature, ValueError):
        return False
    return True


def _ecdsa_der(raw: bytes) -> bytes:
    """An ECDSA signature as DER (RFC 3279 section 2.2.3) from r and s as the token gives them."""
    half = len(raw) // 2
    return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))


def _hash_of(algorithm: Any) -> hashes.HashAlgorithm:
    """The hash itself, where ``algorithm`` may say that it was done before."""
    # cryptography offers no other way to read which hash a digest is of, and a DigestInfo names it.
    hash_: hashes.HashAlgorithm = algorithm._algorithm if isinstance(algorithm, Prehashed) else algorithm  # noqa: SLF001
    return hash_


def _digest(data: Any, algorithm: Any) -> bytes:
    if not isinstance(_hash_of(algorithm), _HASHES):
        raise _unsupported("only SHA-256, SHA-384 and SHA-512 are signed")
    if isinstance(algorithm, Prehashed):
        if len(data) != algorithm.digest_size:
            raise SignerError(
                f"A digest of {len(data)} bytes was given as one of {algorithm.digest_size}.",
                hint="Hash with the algorithm that Prehashed names.",
            )
        return bytes(data)
    digest = hashes.Hash(algorithm)
    digest.update(data)
    return digest.finalize()


def _is_pkcs1(scheme: padding.AsymmetricPadding) -> bool:
    return isinstance(scheme, padding.PKCS1v15)


def _check_pss(scheme: padding.AsymmetricPadding, algorithm: hashes.HashAlgorithm) -> None:
    """Refuse what the token would not do: the parameters must be those of the AlgorithmIdentifier (RFC 4055 section 3.1)."""
    if not isinstance(scheme, padding.PSS):
        raise _unsupported("an RSA key signs with PKCS #1 v1.5 or PSS only")
    # cryptography offers no other way to read what its own builders put into the AlgorithmIdentifier.
    if scheme.mgf._algorithm.name != algorithm.name:  # noqa: SLF001
        raise _unsupported("PSS needs MGF1 with the hash of the signature")
    if scheme._salt_length not in {padding.PSS.DIGEST_LENGTH, algorithm.digest_size}:  # noqa: SLF001
        raise _unsupported("PSS needs a salt as long as the digest")


def _never_leaves() -> SignerError:
    return SignerError("This private key never leaves its token (promise P1).", hint="Use it where it is.")


def _only_signs() -> SignerError:
    return SignerError("This private key only signs.", hint="Make another key for encryption or key agreement.")


def _unsupported(reason: str) -> SignerError:
    return SignerError(f"The signature is refused: {reason}.", hint="Use SHA-256 or stronger, as the profile says.")
