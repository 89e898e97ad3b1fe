"""The ledger over plain HTTP: verification key, checkpoint, tiles, entry bundles and receipts.

Paths, media types and caching are those of C2SP tlog-tiles below the prefix ``/ledger``; receipts are C2SP tlog-proofs.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from typing import Final

import structlog
from aiohttp import hdrs, web
from multidict import CIMultiDict

from privyseal_ca.errors import LedgerError, StatusUnavailableError
from privyseal_ca.ledger.access import Entries, EntriesAccess
from privyseal_ca.ledger.served import LedgerSource
from privyseal_ca.ledger.tiles import TilePath
from privyseal_ca.web.caching import FRESH, PUBLIC, not_modified, unchanged
from privyseal_ca.web.streaming import send_stream

_log = structlog.get_logger("ledger")

_PREFIX: Final = "/ledger"
_TEXT: Final = "text/plain; charset=utf-8"
_OCTETS: Final = "application/octet-stream"
#: C2SP tlog-tiles: "a short time-to-live, on the order of seconds".
_CHECKPOINT_SECONDS: Final = 2
_VKEY_SECONDS: Final = 3600
#: A receipt stays true for ever; one for a newer checkpoint takes its place in the meantime.
_RECEIPT_SECONDS: Final = 60
#: C2SP tlog-tiles: the content of a tile of a width never changes.
_FOR_EVER: Final = "max-age=31536000, immutable"
#: The next checkpoint comes within about a second.
_RETRY_SECONDS: Final = "1"
#: The longest path of a tile: a level, seven groups of an index of 64 bits, a width.
_LONGEST: Final = 64
#: What is longer goes out in pieces, so that the time limit for one holds.
_PIECE: Final = 256 * 1024
#: Octets of bundles longer than a piece that are being sent at the same time. Each is in memory until its client has taken the
#: end, and may have 16 MiB (promise P12).
_MOST: Final = 128 << 20
_SERIAL: Final = re.compile(r"[0-9a-f]{32}")
_BEARER: Final = "bearer "
_CHALLENGE: Final = 'Bearer realm="ledger entries"'


class LedgerRoutes:
    """Answers below ``/ledger/`` from ``source``. ``token`` opens entry bundles when ``entries`` is ``token``."""

    def __init__(self, source: LedgerSource, *, entries: Entries = "closed", token: bytes | None = None) -> None:
        self._source = source
        self._access = EntriesAccess(entries, token)
        self._sending = 0

    def routes(self) -> list[web.RouteDef]:
        """GET and HEAD."""
        return [
            web.get(f"{_PREFIX}/vkey", _guarded(self._vkey)),
            web.get(f"{_PREFIX}/checkpoint", _guarded(self._checkpoint)),
            web.get(f"{_PREFIX}/tile/{{path:.*}}", _guarded(self._tile)),
            web.get(f"{_PREFIX}/proof/{{serial:[^/]*}}", _guarded(self._proof)),
        ]

    async def _vkey(self, _: web.Request) -> web.StreamResponse:
        vkey = await self._source.vkey()
        return web.Response(body=f"{vkey}\n".encode(), headers=_headers(_TEXT, f"public, max-age={_VKEY_SECONDS}"))

    async def _checkpoint(self, request: web.Request) -> web.StreamResponse:
        note = await self._source.checkpoint()
        digest = sha256(note).digest()
        headers = _headers(_TEXT, f"public, max-age={_CHECKPOINT_SECONDS}")
        headers[hdrs.ETAG] = f'"{digest.hex()}"'
        if unchanged(request, sha256=digest, last_modified=None):
            return not_modified(headers)
        return web.Response(body=note, headers=headers)

    async def _tile(self, request: web.Request) -> web.StreamResponse:
        text = request.match_info["path"]
        entries = text.startswith("entries/")
        if entries:
            # Before anything else: whoever may not read entries learns nothing about them.
            self._require_access(request)
        content = await self._content(text)
        if content is None:
            raise web.HTTPNotFound(
                text="There is no such tile, or no checkpoint reaches it yet.\n", headers={**FRESH, **PUBLIC}
            )
        # Not for shared caches when it is not for everybody.
        public = not entries or self._access.entries == "open"
        headers = _headers(_OCTETS, f"{'public' if public else 'private'}, {_FOR_EVER}", public=public)
        headers[hdrs.CONTENT_LENGTH] = str(len(content))
        if request.method == hdrs.METH_HEAD:
            return web.Response(headers=headers)
        # Who takes bundles slowly keeps nobody from tiles of hashes.
        held = len(content) if len(content) > _PIECE else 0
        if held and self._sending + held > _MOST:
            raise StatusUnavailableError("Too many bundles are being sent.", hint="Try again in a moment.")
        self._sending += held
        try:
            return await send_stream(
                request, headers, size=len(content), first=content[:_PIECE], rest=_pieces(content, _PIECE)
            )
        finally:
            self._sending -= held

    async def _content(self, text: str) -> bytes | None:
        """The tile at ``tile/text``; None when there is none, or that is no path of a tile."""
        if len(text) > _LONGEST:
            return None
        try:
            path = TilePath.parse(f"tile/{text}")
        except LedgerError:
            return None
        return await self._source.tile(path)

    def _require_access(self, request: web.Request) -> None:
        """Let those pass who may read entries.

        Raises:
            web.HTTPForbidden: nobody may.
            web.HTTPUnauthorized: the client shows no token, or another one (RFC 6750 section 3).
        """
        if self._access.entries == "closed":
            raise web.HTTPForbidden(text="Entries of the ledger are not served here.\n", headers=FRESH)
        shown = _bearer_token(request)
        if not self._access.admits(shown):
            challenge = _CHALLENGE if shown is None else f'{_CHALLENGE}, error="invalid_token"'
            raise web.HTTPUnauthorized(
                text="Entries of the ledger need the access token.\n",
                headers={**FRESH, hdrs.WWW_AUTHENTICATE: challenge},
            )

    async def _proof(self, request: web.Request) -> web.StreamResponse:
        if not self._source.receipts:
            raise web.HTTPNotFound(
                text="This server has tiles only: ask the service itself, or make the proof from tiles.\n",
                headers={**FRESH, **PUBLIC},
            )
        serial = request.match_info["serial"]
        receipt = await self._source.receipt(serial) if _SERIAL.fullmatch(serial) else None
        if receipt is None:
            raise web.HTTPNotFound(
                text="There is no certificate with this serial, as 32 lower-case hex digits.\n",
                headers={**FRESH, **PUBLIC},
            )
        return web.Response(
            body=receipt.text().encode(), headers=_headers(_TEXT, f"public, max-age={_RECEIPT_SECONDS}")
        )


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _guarded(handler: _Handler) -> _Handler:
    """``handler``, which answers 503 for what it cannot read now."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except StatusUnavailableError as error:
            _log.info("not served now", path=request.path, error=str(error))
            text = f"{error.message}\n"
        except LedgerError as error:
            _log.error("the ledger is not what it must be", path=request.path, error=str(error))
            text = "The ledger cannot be served now.\n"
        raise web.HTTPServiceUnavailable(text=text, headers={**FRESH, **PUBLIC, hdrs.RETRY_AFTER: _RETRY_SECONDS})

    return guarded


def _headers(content_type: str, cache_control: str, *, public: bool = True) -> CIMultiDict[str]:
    headers = CIMultiDict({hdrs.CONTENT_TYPE: content_type, hdrs.CACHE_CONTROL: cache_control})
    headers.update(PUBLIC if public else {})
    return headers


def _bearer_token(request: web.Request) -> bytes | None:
    """The token in the request's Authorization header (RFC 6750 section 2.1); None when it has none."""
    value = request.headers.get(hdrs.AUTHORIZATION, "")
    if value[: len(_BEARER)].lower() != _BEARER:
        return None
    return value[len(_BEARER) :].strip().encode("utf-8", "surrogateescape")


async def _pieces(content: bytes, first: int) -> AsyncIterator[bytes]:
    for begin in range(first, len(content), _PIECE):
        yield content[begin : begin + _PIECE]
