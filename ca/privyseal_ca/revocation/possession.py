"""Proof that a private key is out: whoever shows it has signed a fresh challenge with it.

Keys are in memory for that only. They are not stored, logged or shown (promise P10), nor is what the library says of a file
that it cannot read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from privyseal_ca.errors import KeyRefusedError

#: The largest file that is read, in bytes: the largest RSA keys in PEM, encrypted, fit many times.
MAX_KEY_FILE = 65_536
_CONTEXT = b"privyseal: this key is compromised\0"
_CHALLENGE = 32
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Possession:
    """A key that somebody has shown to have."""

    spki_sha256: bytes
    proof: dict[str, Any]
    """What the ledger says of it: ``algorithm``, ``challenge_sha256`` and ``signature_sha256``."""


def prove_possession(
    content: bytes, *, passphrase: Callable[[], str], random_bytes: Callable[[int], bytes]
) -> Possession:
    """Load the private key in ``content``, PEM or DER, sign a challenge with it, and verify that with its public half.

    ``passphrase`` is asked once, when the key is encrypted.

    Raises:
        KeyRefusedError: it is something else or of a kind that is not certified here, its passphrase is wrong, or its halves
            do not belong together.
    """
    key = _load(content, passphrase)
    challenge = _CONTEXT + random_bytes(_CHALLENGE)
    try:
        algorithm, signature = _sign_and_verify(key, challenge)
    except (InvalidSignature, *_UNREADABLE):
        raise KeyRefusedError(
            "The private key does not sign for its public key.", hint="The file is damaged; find an intact copy."
        ) from None
    return Possession(
        spki_sha256(key.public_key()),
        {
            "algorithm": algorithm,
            "challenge_sha256": sha256(challenge).hexdigest(),
            "signature_sha256": sha256(signature).hexdigest(),
        },
    )


def key_in(content: bytes) -> bytes:
    """The SHA-256 of the SubjectPublicKeyInfo in a certificate, a certificate request or a public key, PEM or DER.

    Raises:
        KeyRefusedError: it is none of these.
    """
    for load in _PUBLIC_LOADERS.values():
        try:
            return spki_sha256(load(content))
        except _UNREADABLE:
            continue
    for private in (load_pem_private_key, load_der_private_key):
        try:
            private(content, None)
        except TypeError:
            pass  # encrypted
        except (ValueError, UnsupportedAlgorithm):
            continue
        raise KeyRefusedError(
            "The file holds a private key.", hint="Give it to --private-key, which proves that it is out."
        )
    raise KeyRefusedError(
        "The file holds no public key that can be read.",
        hint="Give a certificate, a certificate request or a public key, as PEM or DER.",
    )


def spki_sha256(public_key: Any) -> bytes:
    """The hash by which the store knows ``public_key``."""
    return sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


_PUBLIC_LOADERS: dict[str, Callable[[bytes], Any]] = {
    "a certificate": lambda content: (
        x509.load_pem_x509_certificate(content) if b"-----BEGIN" in content else x509.load_der_x509_certificate(content)
    ).public_key(),
    "a certificate request": lambda content: (
        x509.load_pem_x509_csr(content) if b"-----BEGIN" in content else x509.load_der_x509_csr(content)
    ).public_key(),
    "a public key": lambda content: (load_pem_public_key if b"-----BEGIN" in content else load_der_public_key)(content),
}


def _load(content: bytes, passphrase: Callable[[], str]) -> PrivateKey:
    load = load_pem_private_key if b"-----BEGIN" in content else load_der_private_key
    try:
        key = load(content, None)
    except TypeError:  # the library's way to say that it is encrypted
        try:
            key = load(content, passphrase().encode())
        except _UNREADABLE:
            raise KeyRefusedError(
                "The private key cannot be decrypted.", hint="Try the passphrase again, or find an intact copy."
            ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeyRefusedError(
            f"The file holds {_kind_of(content)}, not a private key that can be read.",
            hint="Give the private key itself, as PEM or DER (PKCS #8, PKCS #1 or SEC 1).",
        ) from None
    if not isinstance(key, PrivateKey):
        raise KeyRefusedError(
            "Keys of this kind are never certified here: there is nothing to block.", hint="Look for another key."
        )
    return key


def _kind_of(content: bytes) -> str:
    for kind, load in _PUBLIC_LOADERS.items():
        try:
            load(content)
        except _UNREADABLE:
            continue
        return kind
    return "something else" if content else "nothing"


def _sign_and_verify(key: PrivateKey, challenge: bytes) -> tuple[str, bytes]:
    match key:
        case ec.EllipticCurvePrivateKey():
            ecdsa = ec.ECDSA(hashes.SHA256())
            signature = key.sign(challenge, ecdsa)
            key.public_key().verify(signature, challenge, ecdsa)
            return f"ecdsa-{key.curve.name}-sha256", signature
        case rsa.RSAPrivateKey():
            scheme = padding.PKCS1v15()
            signature = key.sign(challenge, scheme, hashes.SHA256())
            key.public_key().verify(signature, challenge, scheme, hashes.SHA256())
            return "rsa-pkcs1-sha256", signature
        case ed25519.Ed25519PrivateKey():
            signature = key.sign(challenge)
            key.public_key().verify(signature, challenge)
            return "ed25519", signature
