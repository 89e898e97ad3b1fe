"""Anti-replay nonces (RFC 8555 section 6.5): minted without a trace, remembered once seen.

A nonce is the second it was minted in, eight random octets and a MAC under a key that every process of the service shares.
Any process can therefore tell a nonce that was minted from one that was not, and the table of used nonces tells one that was
seen from one that was not; it holds no more than the requests of one lifetime.

What was swept is not accepted again, however far a clock steps back: the table remembers up to when it is swept, in a row
that is no nonce and is there before anything goes, and what is minted after such a step carries that time. Should that stay in the future, it moves on by a second
with each lifetime, so that the table is swept all the same; what was minted before then is refused, and clients try again.

The MAC covers the kernel's boot id: with SQLite the table need not survive the loss of power to be right.
"""

import asyncio
import hmac
from collections.abc import Callable

from sqlalchemy import bindparam, delete, func, insert, select
from sqlalchemy.schema import CreateTable

from privyseal_acme.protocol.encoding import decode, encode
from privyseal_acme.protocol.problems import Problem, malformed
from privyseal_acme.store.tables import UsedNonce
from privyseal_ca.clock import Clock
from privyseal_ca.errors import StoreConflictError
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Statement, Transaction

_used = UsedNonce.__table__  # type: ignore[attr-defined]
_USE = Statement(insert(_used))
_FORGET = Statement(delete(_used).where(_used.c.nonce == bindparam("nonce")))
_SWEEP = Statement(delete(_used).where(_used.c.nonce < bindparam("end")))
# The first that a batch leaves, where more than a batch are old.
_END_OF_BATCH = Statement(
    select(_used.c.nonce)
    .where(_used.c.nonce < bindparam("oldest"))
    .order_by(_used.c.nonce)
    .limit(1)
    .offset(bindparam("count"))
)

# Nothing is below it but what a sweep is about to remove: found at once, however many there are.
_SWEPT = Statement(
    select(_used.c.nonce).where(func.length(_used.c.nonce) == bindparam("octets")).order_by(_used.c.nonce).limit(1)
)

_CREATE = Statement(CreateTable(_used, if_not_exists=True))

_TIME, _RANDOM, _MAC = 4, 8, 12
_SIZE = _TIME + _RANDOM + _MAC
#: Nonces that one unit of work forgets: whoever makes a request waits for no more than that.
_BATCH = 500


def create_nonce_table(transaction: Transaction) -> None:
    """Make the table, for a database that has nothing else in it."""
    transaction.execute(_CREATE)


def swept_until(transaction: Transaction) -> int:
    """The second before which nonces have been forgotten; 0 when none has."""
    (found,) = transaction.one(_SWEPT, octets=_TIME) or (None,)
    return int.from_bytes(bytes(found), "big") if found is not None else 0


class Nonces:
    """Mints and redeems nonces. ``swept`` is what :func:`swept_until` said when it was opened."""

    def __init__(
        self,
        *,
        store: Store,
        key: bytes,
        lifetime: int,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        swept: int = 0,
    ) -> None:
        self._store = store
        self._key = key
        self._lifetime = lifetime
        self._clock = clock
        self._random_bytes = random_bytes
        self._swept = swept
        self._swept_at = clock.now()

    def mint(self) -> str:
        """A fresh nonce."""
        time = max(int(self._clock.now()), self._swept)
        message = time.to_bytes(_TIME, "big") + self._random_bytes(_RANDOM)
        return encode(message + self._mac(message))

    async def redeem(self, text: str | None) -> None:
        """Take a nonce from a request; whatever becomes of the request, the nonce is used.

        Raises:
            Problem: malformed when it is not base64url (section 6.5.2), badNonce when it is absent, unknown, old or used.
            StoreUnavailableError: the database failed.
        """
        if text is None:
            raise Problem("badNonce", "The request has no nonce.")
        try:
            nonce = decode(text)
        except ValueError:
            raise malformed("The nonce is not base64url without padding.") from None
        message, mac = nonce[: _TIME + _RANDOM], nonce[_TIME + _RANDOM :]
        if len(nonce) != _SIZE or not hmac.compare_digest(mac, self._mac(message)):
            raise Problem("badNonce", "This server did not make the nonce, or not since it was last started.")
        minted = int.from_bytes(message[:_TIME], "big")
        if minted < self._swept or self._clock.now() >= minted + self._lifetime:
            raise Problem("badNonce", "The nonce is too old.")

        def use(transaction: Transaction) -> None:
            transaction.execute(_USE, nonce=nonce)

        try:
            await self._store.write(use)
        except StoreConflictError:
            raise Problem("badNonce", "The nonce was used before.") from None

    async def sweep(self) -> int:
        """Forget used nonces that are too old to be accepted anyway; how many there were."""
        now = int(self._clock.now())
        until = now - self._lifetime
        if until <= self._swept:
            self._swept_at = min(self._swept_at, now)
            if self._swept <= now or now - self._swept_at < self._lifetime:
                return 0
            until = self._swept + 1

        mark = until.to_bytes(_TIME, "big")

        def remember(transaction: Transaction) -> None:
            if (before := swept_until(transaction)) < until:
                transaction.execute(_FORGET, nonce=before.to_bytes(_TIME, "big"))
                transaction.execute(_USE, nonce=mark)

        def forget(transaction: Transaction) -> int:
            (end,) = transaction.one(_END_OF_BATCH, oldest=mark, count=_BATCH) or (mark,)
            return transaction.execute(_SWEEP, end=bytes(end))

        await self._store.write(remember)
        # From here on all of them are refused: it does not matter when they go.
        self._swept, self._swept_at = until, now
        forgotten = batch = await self._store.write(forget)
        while batch == _BATCH:
            await asyncio.sleep(0)  # a write that nobody else waits for lets nobody else go first
            batch = await self._store.write(forget)
            forgotten += batch
        return forgotten

    def _mac(self, message: bytes) -> bytes:
        return hmac.digest(self._key, message, "sha256")[:_MAC]
