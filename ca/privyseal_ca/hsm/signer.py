"""What the rest of the authority knows of a token: keys that can be put to work, and never read.

One implementation ships (:mod:`privyseal_ca.hsm.pkcs11`); the conformance suite in ``tests/integration`` is what any
other would have to pass.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

T = TypeVar("T")

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


def as_public_key(key: object) -> PublicKey | None:
    """``key``, when it is of a kind that tokens sign with here."""
    return key if isinstance(key, PublicKey) else None


class SigningKey(Protocol):
    """One private key in a token (promise P1)."""

    @property
    def uri(self) -> str:
        """The key's RFC 7512 URI, without any PIN."""
        ...

    @property
    def public_key(self) -> PublicKey:
        """The public half, known from the token since the key was opened."""
        ...

    @property
    def available(self) -> bool:
        """Whether a request made now is expected to reach the token. Never blocks; readiness is derived from it."""
        ...

    async def run(self, work: Callable[[PrivateKey], T]) -> T:
        """Run ``work`` on the token's signing thread with a private key of the cryptography interfaces, and give its result.

        ``work`` may sign any number of times, directly or through cryptography's builders, and must not block on anything
        but the token. It runs at most once, unless a first run ended without a signature because its token failed, and
        another token has the key: then it runs anew there.

        Raises:
            SignerUnavailableError: the token was not reached or the queue is full; ``work`` made no signature.
            SignatureUncertainError: the token failed while signing.
            SignerMisconfiguredError: wrong PIN, key gone, or attributes that break promise P1.
        """
        ...


class WrappingKey(Protocol):
    """A secret AES key in a token that encrypts what must be stored (promise P10)."""

    @property
    def uri(self) -> str:
        """The key's RFC 7512 URI, without any PIN."""
        ...

    async def wrap(self, secret: bytes, context: bytes) -> bytes:
        """``secret`` encrypted and authenticated together with ``context``, which must be given again to unwrap.

        Raises the errors of :meth:`SigningKey.run`.
        """
        ...

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """The secret that :meth:`wrap` was given.

        Raises:
            SignerError: ``wrapped`` was not made by this key with this ``context``, or as :meth:`SigningKey.run`.
        """
        ...
