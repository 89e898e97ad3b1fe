"""The wrapping key that ships: :class:`~privyseal_ca.hsm.signer.WrappingKey` as AES-256-GCM in a token."""

from collections.abc import Callable
from typing import TypeVar

from privyseal_ca.errors import SignerError
from privyseal_ca.hsm import cryptoki
from privyseal_ca.hsm.faults import reaction_to
from privyseal_ca.hsm.held import HeldKey

T = TypeVar("T")

# version (1 octet) || nonce (12) || ciphertext || tag (16)
_VERSION = b"\x01"
_NONCE = 12
_TAG = 16
_MAX_SECRET = 65536


class TokenWrappingKey:
    """A secret key in a token. ``random`` gives that many random octets; ``timeout`` is in seconds."""

    def __init__(self, held: HeldKey, *, random: Callable[[int], bytes], timeout: float, limit: int) -> None:
        self._held = held
        self._random = random
        self._timeout = timeout
        self._limit = limit

    @property
    def uri(self) -> str:
        """The key's RFC 7512 URI, without any PIN."""
        return str(self._held.uri)

    async def wrap(self, secret: bytes, context: bytes, *, begin: float | None = None) -> bytes:
        """See :meth:`privyseal_ca.hsm.signer.WrappingKey.wrap`. A secret has at most 65,536 octets.

        Given up as unavailable when the token has not begun within ``begin`` seconds.
        """
        if len(secret) > _MAX_SECRET:
            raise SignerError(f"A secret of {len(secret)} octets is not wrapped.", hint=f"{_MAX_SECRET} are the most.")
        nonce = self._random(_NONCE)
        sealed = await self._ask(lambda key: cryptoki.encrypt(key, nonce, secret, _VERSION + context), begin)
        return _VERSION + nonce + sealed

    async def unwrap(self, wrapped: bytes, context: bytes, *, begin: float | None = None) -> bytes:
        """See :meth:`privyseal_ca.hsm.signer.WrappingKey.unwrap`, and :meth:`wrap` for ``begin``."""
        if wrapped[:1] != _VERSION or not 1 + _NONCE + _TAG <= len(wrapped) <= 1 + _NONCE + _TAG + _MAX_SECRET:
            raise _not_ours(self.uri)
        nonce, sealed = wrapped[1 : 1 + _NONCE], wrapped[1 + _NONCE :]
        return await self._ask(lambda key: self._decrypt(key, nonce, sealed, _VERSION + context), begin)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.uri}>"

    async def _ask(self, operation: Callable[[cryptoki.Key], T], begin: float | None) -> T:
        self._held.refuse_if_unusable()
        worker = self._held.token.module.worker
        return await worker.call(
            lambda _: self._held.use(operation), patience=self._timeout, limit=self._limit, begin=begin
        )

    def _decrypt(self, key: cryptoki.Key, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
        try:
            return cryptoki.decrypt(key, nonce, sealed, associated)
        except cryptoki.CryptokiError as error:
            if reaction_to(error).again:
                raise
            # Tokens tell a wrong tag in many ways, SoftHSM as a general error. Whether the token or the data is at fault
            # shows in whether it can decrypt what it encrypts; when it cannot, that error goes up.
            other = self._random(_NONCE)
            cryptoki.decrypt(key, other, cryptoki.encrypt(key, other, _VERSION, _VERSION), _VERSION)
        raise _not_ours(self.uri)


def _not_ours(uri: str) -> SignerError:
    return SignerError(
        f"What is to be unwrapped was not wrapped by {uri} for this purpose, or was changed since.",
        hint="Restore the stored value, or make the secret anew.",
    )
