"""The full CRLs of every CA as one PEM file over plain HTTP, for servers that read CRLs from a file."""

from collections.abc import AsyncIterator
from typing import Final

import structlog
from aiohttp import web
from multidict import CIMultiDict

from privyseal_ca.clock import Clock
from privyseal_ca.errors import StatusUnavailableError
from privyseal_ca.revocation.crl_bundle import BUNDLE, CrlBundle
from privyseal_ca.revocation.published import CrlSource
from privyseal_ca.web.caching import FRESH, PUBLIC, cached_headers, max_age, not_modified, unchanged
from privyseal_ca.web.streaming import send_stream, unavailable

_log = structlog.get_logger("crl")

#: So much is read before anything is sent: what is not longer is whole or not there at all.
_AHEAD: Final = 1 << 20
_ATTEMPTS: Final = 3


class CrlBundleRoutes:
    """Answers ``/crls.pem`` from ``source``. Caches may keep it for ``limit`` seconds, never past the first nextUpdate in it."""

    def __init__(self, source: CrlSource, *, limit: int, clock: Clock) -> None:
        self._source = source
        self._limit = limit
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        """GET and HEAD."""
        return [web.get(f"/{BUNDLE}", self._get)]

    async def _get(self, request: web.Request) -> web.StreamResponse:
        bundle = self._find()
        # Only the tag decides: a member that is new here may be older than what the client has of another CA.
        if unchanged(request, sha256=bundle.sha256, last_modified=None):
            return not_modified(self._headers(bundle))
        if request.method == "HEAD":
            return web.Response(headers=self._headers(bundle))
        bundle, first, rest = await self._open()
        return await send_stream(request, self._headers(bundle), size=bundle.size, first=first, rest=rest)

    def _headers(self, bundle: CrlBundle) -> CIMultiDict[str]:
        return cached_headers(
            "application/x-pem-file",
            size=bundle.size,
            sha256=bundle.sha256,
            this_update=bundle.this_update,
            next_update=bundle.next_update,
            seconds=max_age(self._limit, bundle.next_update, self._clock.now()),
        )

    def _find(self) -> CrlBundle:
        """What there is now.

        Raises:
            web.HTTPNotFound: there is no CRL yet.
        """
        bundle = CrlBundle.of(self._source.published())
        if not bundle.members:
            raise web.HTTPNotFound(text="There is no CRL yet.\n", headers={**FRESH, **PUBLIC})
        return bundle

    async def _open(self) -> tuple[CrlBundle, bytes, AsyncIterator[bytes]]:
        """What there is now, its beginning and the rest. It begins anew when a CRL in the beginning was replaced meanwhile.

        Raises:
            web.HTTPNotFound: there is no CRL any more.
            web.HTTPServiceUnavailable: it cannot be read.
        """
        for _ in range(_ATTEMPTS):
            bundle = self._find()
            pieces = aiter(bundle.read(self._source))
            first = bytearray()
            try:
                while len(first) < min(_AHEAD, bundle.size):
                    first += await anext(pieces)
            except StatusUnavailableError as error:
                _log.info("bundle of CRLs begun anew", error=str(error))
            else:
                return bundle, bytes(first), pieces
        raise unavailable("The CRLs cannot be read now. Try again.\n")
