"""A ledger over HTTP, as its clients see it: bounded in octets, seconds and attempts. Nothing that it gives is verified here.

The paths are those of :mod:`privyseal_ca.web.ledger` (C2SP tlog-tiles below ``/ledger``).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import ClientError, ClientSession, ClientTimeout
from yarl import URL

from privyseal_ca.errors import ConfigurationError, LedgerError, StatusUnavailableError
from privyseal_ca.ledger.entries import MAX_ENTRY
from privyseal_ca.ledger.note import MAX_NOTE
from privyseal_ca.ledger.proofs import MAX_RECEIPT, Receipt
from privyseal_ca.ledger.tiles import HASH_BYTES, WIDTH, TilePath, entry_bundle, parse_bundle
from privyseal_ca.web.fetching import REDIRECTS, Bounds, Fetched, fetch

_MAX_VKEY: Final = 8 << 10
_MAX_URL: Final = 2048
#: UTF-8 takes at most four octets for a character.
_MAX_RECEIPT_OCTETS: Final = 4 * MAX_RECEIPT
_NOT_FOUND: Final = 404
_REFUSED: Final = frozenset({401, 403})
_OK: Final = 200
_PIECE: Final = 64 * 1024
#: The form of Retry-After that this log's servers use; a date counts as none.
_SECONDS: Final = re.compile("[0-9]{1,4}")

Sleep = Callable[[float], Awaitable[None]]


class EntriesRefusedError(StatusUnavailableError):
    """The server does not give entries to whoever asks: they are closed, or need another access token."""


@dataclass(frozen=True, slots=True)
class LedgerBounds:
    """How much one answer may cost, in seconds, and how often it is asked for."""

    seconds: float = 30
    """For one attempt, from the connection to the last octet."""
    attempts: int = 4
    """What is answered with 429, 502, 503 or 504, slowly or not at all is asked for so often."""
    pause: float = 0.5
    """Before the second attempt; it doubles with each. ``Retry-After`` counts when it is longer."""
    longest_pause: float = 10
    """More is never waited between two attempts, whatever the server asks for."""


class HttpLedger:
    """The ledger below ``base_url``, which has ``/ledger/`` below it: ``http://ca.example``. As
    :class:`~privyseal_ca.ledger.served.LedgerSource` says, with

    - StatusUnavailableError for what cannot be reached or is not there, after the last attempt,
    - :class:`EntriesRefusedError` for entries that the server refuses,
    - LedgerError for what is too long or of another size than it must have.

    ``token`` is the access token for entries. It is sent for entries only, and no redirect is followed with it. ``sleep`` waits
    between attempts.
    """

    receipts = True

    def __init__(
        self,
        base_url: str,
        session: ClientSession,
        *,
        token: bytes | None = None,
        bounds: LedgerBounds | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Raises ConfigurationError for a URL or a token that cannot be one."""
        #: The prefix without a slash at its end; CRLs and certificates of CAs are below it too.
        self.base_url = _base(base_url)
        self._session = session
        self._authorization = None if token is None else {"Authorization": f"Bearer {_token(token)}"}
        self._bounds = bounds or LedgerBounds()
        self._sleep = sleep

    async def vkey(self) -> str:
        """The verification key that the server names: worth as much as the way to it."""
        url = self._url("vkey")
        try:
            return (await self._require(url, _MAX_VKEY)).decode().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise LedgerError(f"{url} is not a verification key.") from error

    async def checkpoint(self) -> bytes:
        """The newest checkpoint, whose signature nobody has verified."""
        return await self._require(self._url("checkpoint"), MAX_NOTE)

    async def tile(self, path: TilePath) -> bytes | None:
        """A tile or an entry bundle, of the size that it must have.

        A partial one that is gone is cut from the full one that took its place (C2SP tlog-tiles).
        """
        content = await self._tile(path)
        if content is not None:
            return self._cut(content, path, path.width)
        if path.width == WIDTH:
            return None
        content = await self._tile(TilePath(path.level, path.index, WIDTH))
        return None if content is None else self._cut(content, path, WIDTH)

    async def receipt(self, serial: str) -> Receipt | None:
        """The receipt that the server has for ``serial``; None also when the server has none at all, such as a folder."""
        url = self._url(f"proof/{serial}")
        content = await self._optional(url, _MAX_RECEIPT_OCTETS)
        if content is None:
            return None
        try:
            return Receipt.parse(content.decode())
        except UnicodeDecodeError as error:
            raise LedgerError(f"{url} is not a receipt.") from error

    async def file(self, path: str, most: int) -> bytes | None:
        """What is at ``path`` below the base URL, of at most ``most`` octets; None when there is no such thing."""
        return await self._optional(f"{self.base_url}/{path}", most)

    async def pieces(self, path: str, most: int, *, seconds: float) -> AsyncIterator[bytes]:
        """What is at ``path`` below the base URL, piece by piece, for what may not fit into memory. It is asked for once.

        Nothing comes when there is no such thing. The whole may take ``seconds``, the next piece as long as one attempt.

        Raises:
            StatusUnavailableError: it cannot be reached, or broke off.
            LedgerError: it is longer than ``most``.
        """
        url = f"{self.base_url}/{path}"
        timeout = ClientTimeout(total=seconds, sock_connect=self._bounds.seconds, sock_read=self._bounds.seconds)
        size = 0
        try:
            async with self._session.get(URL(url, encoded=True), max_redirects=REDIRECTS, timeout=timeout) as response:
                if response.status == _NOT_FOUND:
                    return
                if response.status != _OK:
                    raise _unavailable(url, f"is answered with HTTP status {response.status}")
                async for piece in response.content.iter_chunked(_PIECE):
                    size += len(piece)
                    if size > most:
                        raise LedgerError(f"{url} is longer than {most} octets.")
                    yield piece
        # Never the error's text, which may repeat what the other side sent (promise P10).
        except (TimeoutError, ClientError, ValueError) as error:
            raise _unavailable(url, f"cannot be fetched ({type(error).__name__})") from error

    def _url(self, path: str) -> str:
        return f"{self.base_url}/ledger/{path}"

    async def _tile(self, path: TilePath) -> bytes | None:
        url = self._url(path.path())
        if path.level is not None:
            return await self._optional(url, WIDTH * HASH_BYTES)
        return await self._optional(url, WIDTH * (2 + MAX_ENTRY), entries=True)

    def _cut(self, content: bytes, path: TilePath, width: int) -> bytes:
        """The first ``path.width`` hashes or entries of ``content``, which has to have ``width``."""
        url = self._url(path.path())
        if path.level is not None:
            if len(content) != width * HASH_BYTES:
                raise LedgerError(f"{url} does not have {width} hashes.")
            return content[: path.width * HASH_BYTES]
        try:
            entries = parse_bundle(content)
        except LedgerError as error:
            raise LedgerError(f"{url} is not a bundle of entries: {error.message}") from error
        if len(entries) != width:
            raise LedgerError(f"{url} has {len(entries)} entries, and not {width}.")
        return content if path.width == width else entry_bundle(entries[: path.width])

    async def _require(self, url: str, most: int) -> bytes:
        content = await self._optional(url, most)
        if content is None:
            raise _unavailable(url, "is not there")
        return content

    async def _optional(self, url: str, most: int, *, entries: bool = False) -> bytes | None:
        """What is at ``url``; None for 404."""
        fetched = await self._attempts(url, most, entries=entries)
        if fetched.body is not None:
            return fetched.body
        if fetched.status == _NOT_FOUND:
            return None
        if entries and fetched.status in _REFUSED:
            raise EntriesRefusedError(
                f"{url} {fetched.failure}.",
                hint="Ask the ledger's owners for the access token (`ledger.entries`), and give its file with --token-file.",
            )
        if fetched.status == _OK:
            raise LedgerError(f"{url} {fetched.failure}.")
        raise _unavailable(url, fetched.failure)

    async def _attempts(self, url: str, most: int, *, entries: bool) -> Fetched:
        bounds = Bounds(keep=most, most=most, seconds=self._bounds.seconds)
        headers = self._authorization if entries else None
        redirects = REDIRECTS if headers is None else 0
        pause = self._bounds.pause
        for left in reversed(range(self._bounds.attempts)):
            fetched = await fetch(self._session, url, bounds, headers=headers, redirects=redirects)
            if not fetched.passing or not left:
                return fetched
            asked = int(fetched.retry_after) if _SECONDS.fullmatch(fetched.retry_after) else 0
            await self._sleep(min(max(pause, asked), self._bounds.longest_pause))
            pause *= 2
        return Fetched("was not asked for: no attempt is allowed")


def _unavailable(url: str, failure: str) -> StatusUnavailableError:
    return StatusUnavailableError(
        f"{url} {failure}.", hint="Look whether the address is that of a ledger, or try later."
    )


def _base(text: str) -> str:
    """The prefix below which the ledger is.

    Raises:
        ConfigurationError: it is none.
    """
    hint = "Give the address that has /ledger/ below it, such as http://ca.example."
    try:
        url = URL(text) if len(text) <= _MAX_URL else URL()
        host = url.host
    except ValueError:
        raise ConfigurationError("The address of the ledger is malformed.", hint=hint) from None
    if url.scheme not in {"http", "https"} or not host or url.user or url.password or url.query_string or url.fragment:
        raise ConfigurationError("The address of a ledger is an http or https URL without query and user.", hint=hint)
    return str(url).rstrip("/").removesuffix("/ledger").rstrip("/")


def _token(token: bytes) -> str:
    """The access token as it stands in a header (RFC 6750 section 2.1).

    Raises:
        ConfigurationError: it cannot stand there.
    """
    text = token.decode("ascii", "replace").strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigurationError(
            "The access token is not one line of printable ASCII.", hint="Look at the file that it was read from."
        )
    return text
