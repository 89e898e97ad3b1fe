"""The wrapping key that ships: :class:`~privyseal_ca.hsm.signer.WrappingKey` as AES-256-GCM in a token."""

from collections.abc import Callable
from typing import TypeVar

from privyseal_ca.errors import SignerError
from privyseal_ca.hsm import cryptoki
from privyseal_ca.hsm.held import HeldKey
from privyseal_ca.hsm.sealing import MOST, is_sealed, seal, unseal

T = TypeVar("T")


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
        if len(secret) > MOST:
            raise SignerError(f"A secret of {len(secret)} octets is not wrapped.", hint=f"{MOST} are the most.")
        return await self._ask(lambda key: seal(key, secret, context, self._random), begin)

    async def unwrap(self, wrapped: bytes, context: bytes, *, begin: float | None = None) -> bytes:
        """See :meth:`privyseal_ca.hsm.signer.WrappingKey.unwrap`, and :meth:`wrap` for ``begin``."""
        secret = None
        if is_sealed(wrapped):
            secret = await self._ask(lambda key: unseal(key, wrapped, context, self._random), begin)
        if secret is None:
            raise SignerError(
                f"What is to be unwrapped was not wrapped by {self.uri} for this purpose, or was changed since.",
                hint="Restore the stored value, or make the secret anew.",
            )
        return secret

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.uri}>"

    async def _ask(self, operation: Callable[[cryptoki.Key], T], begin: float | None) -> T:
        self._held.refuse_if_unusable()
        worker = self._held.token.module.worker
        return await worker.call(
            lambda _: self._held.use(operation), patience=self._timeout, limit=self._limit, begin=begin
        )
