"""The signing key that ships: :class:`~privyseal_ca.hsm.signer.SigningKey` over PKCS#11."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from privyseal_ca.errors import (
    SignatureUncertainError,
    SignerError,
    SignerMisconfiguredError,
    SignerUnavailableError,
)
from privyseal_ca.hsm import cryptoki
from privyseal_ca.hsm.held import HeldKey
from privyseal_ca.hsm.keys import Scheme, private_key, verifies
from privyseal_ca.hsm.signer import PrivateKey, PublicKey
from privyseal_ca.hsm.worker import Start

T = TypeVar("T")


class TokenSigningKey:
    """A private key in a token. ``timeout`` is in seconds; ``limit`` is how many requests may wait."""

    def __init__(self, held: HeldKey, public_key: PublicKey, *, timeout: float, limit: int) -> None:
        self._held = held
        self._worker = held.token.module.worker
        self._uri = str(held.uri)
        self._public_key = public_key
        self._timeout = timeout
        self._limit = limit
        self._private_key = private_key(public_key, self._sign)
        self._signatures = 0
        """How many the work at hand has, or may have."""
        self._verified = -1
        """The connection of which a signature was verified."""

    @property
    def uri(self) -> str:
        """The key's RFC 7512 URI, without any PIN."""
        return self._uri

    @property
    def public_key(self) -> PublicKey:
        """The public half."""
        return self._public_key

    @property
    def available(self) -> bool:
        """Whether a request made now is expected to reach the token. Never blocks."""
        return self._held.usable and self._worker.serves(self._timeout)

    async def run(self, work: Callable[[PrivateKey], T]) -> T:
        """See :meth:`privyseal_ca.hsm.signer.SigningKey.run`."""
        return await self.attempt(work)

    async def attempt(self, work: Callable[[PrivateKey], T], *, begin: float | None = None) -> T:
        """As :meth:`run`, given up as unavailable when the token has not begun within ``begin`` seconds."""
        self._held.refuse_if_unusable()
        task = partial(self._perform, work)
        return await self._worker.call(task, patience=self._timeout, limit=self._limit, signs=True, begin=begin)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._uri}>"

    def _perform(self, work: Callable[[PrivateKey], T], start: Start) -> T:
        self._held.ready()
        start()
        self._signatures = 0
        return work(self._private_key)

    def _sign(self, scheme: Scheme, data: bytes) -> bytes:
        if not self._worker.here:
            raise SignerError(
                f"The key {self._uri} was used outside the work it was given to.", hint="Sign inside SigningKey.run."
            )
        try:
            signature = self._held.use(lambda key: self._made(key, scheme, data), signing=True)
        except SignatureUncertainError:
            self._signatures += 1
            raise
        except (SignerUnavailableError, SignerMisconfiguredError) as error:
            if not self._signatures:
                raise
            # Either would say that the whole work made none, and it might be begun anew.
            raise SignatureUncertainError(
                f"The token failed after the same work had signed, or may have, {self._signatures} times. {error.message}",
                hint="Treat what was to be signed as spent.",
            ) from error
        self._signatures += 1
        return signature

    def _made(self, key: cryptoki.Key, scheme: Scheme, data: bytes) -> bytes:
        signature = cryptoki.sign(key, scheme, data)
        connection = self._held.token.epoch
        if self._verified != connection:
            # A token keeps the public half beside the private key, which proves nothing of it: the first signature does.
            if not verifies(self._public_key, scheme, data, signature):
                raise cryptoki.codes.SignatureInvalid
            self._verified = connection
        return signature
