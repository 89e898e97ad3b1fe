"""CRLs over plain HTTP (RFC 5280 section 4.2.1.13, RFC 2585 section 3), at the paths of
:func:`~privyseal_ca.issuance.pointers.crl_path`."""

import re
from collections.abc import AsyncIterator
from itertools import islice
from typing import Final

import structlog
from aiohttp import web
from multidict import CIMultiDict

from privyseal_ca.clock import Clock
from privyseal_ca.errors import StatusUnavailableError
from privyseal_ca.issuance.pointers import crl_path
from privyseal_ca.revocation.published import CrlSource, PublishedCrl
from privyseal_ca.web.caching import FRESH, PUBLIC, cached_headers, conditional, max_age, not_modified, unchanged
from privyseal_ca.web.streaming import send_stream, unavailable

_log = structlog.get_logger("crl")

_PATH: Final = re.compile(r"([0-9a-f]{1,64})(?:/(0|[1-9][0-9]{0,5})(-delta)?)?\.crl")
#: How many of what exists a refusal names.
_NAMED: Final = 20
_LOOKED_AT: Final = 10_000


class CrlRoutes:
    """Answers below ``/crl/`` from ``source``. Caches may keep a CRL for ``limit`` seconds, never past its nextUpdate."""

    def __init__(self, source: CrlSource, *, limit: int, clock: Clock) -> None:
        self._source = source
        self._limit = limit
        self._clock = clock
        #: thisUpdate and number of the CRL that was first served with that thisUpdate, by scope.
        self._dated: dict[tuple[str, int | None, bool], tuple[int, int]] = {}

    def routes(self) -> list[web.RouteDef]:
        """GET and HEAD."""
        return [web.get("/crl/{path:.*}", self._get)]

    async def _get(self, request: web.Request) -> web.StreamResponse:
        crl = self._find(request)
        last_modified = self._last_modified(crl)
        if conditional(request) and unchanged(request, sha256=crl.sha256, last_modified=last_modified):
            return not_modified(self._headers(crl))
        if request.method == "HEAD":
            return web.Response(headers=self._headers(crl))
        crl, first, rest = await self._open(request)
        return await send_stream(request, self._headers(crl), size=crl.size, first=first, rest=rest)

    def _last_modified(self, crl: PublishedCrl) -> int | None:
        """thisUpdate, unless a CRL before this one had the same second: then no date tells a client's copy from it."""
        scope = crl.issuer_id, crl.shard, crl.delta
        this_update, number = self._dated.get(scope, (0, 0))
        if this_update != crl.this_update:
            self._dated[scope] = crl.this_update, crl.number
            return crl.this_update
        return crl.this_update if number == crl.number else None

    def _headers(self, crl: PublishedCrl) -> CIMultiDict[str]:
        return cached_headers(
            "application/pkix-crl",
            size=crl.size,
            sha256=crl.sha256,
            this_update=crl.this_update,
            next_update=crl.next_update,
            seconds=max_age(self._limit, crl.next_update, self._clock.now()),
        )

    def _find(self, request: web.Request) -> PublishedCrl:
        """The newest CRL of the scope that is asked for, also when it is past its nextUpdate: the relying party decides.

        Raises:
            web.HTTPNotFound: there is none, with a text that says what there is.
        """
        asked = _PATH.fullmatch(request.match_info["path"])
        if asked is not None:
            issuer_id, shard, delta = asked.groups()
            crl = self._source.find(issuer_id, None if shard is None else int(shard), delta=delta is not None)
            if crl is not None:
                return crl
        raise web.HTTPNotFound(text=self._offer(asked[1] if asked else None), headers={**FRESH, **PUBLIC})

    def _offer(self, issuer_id: str | None) -> str:
        """What there is instead, of ``issuer_id`` when it is known."""
        published = list(islice(self._source.published(), _LOOKED_AT))
        paths = [
            crl_path(crl.issuer_id, crl.shard, delta=crl.delta) for crl in published if crl.issuer_id == issuer_id
        ] or [crl_path(crl.issuer_id, crl.shard) for crl in published if crl.shard is None]
        if not paths:
            return "There is no such CRL, and no other yet.\n"
        more = f"and {len(paths) - _NAMED} more\n" if len(paths) > _NAMED else ""
        return "There is no such CRL. There are:\n" + "".join(f"{path}\n" for path in paths[:_NAMED]) + more

    async def _open(self, request: web.Request) -> tuple[PublishedCrl, bytes, AsyncIterator[bytes]]:
        """The CRL that is asked for, its first piece and the others. One that was replaced meanwhile is found again, once.

        Raises:
            web.HTTPServiceUnavailable: it cannot be read.
        """
        for attempts_left in (1, 0):
            crl = self._find(request)
            pieces = aiter(self._source.read(crl))
            try:
                first = await anext(pieces, b"")
                if 0 < len(first) <= crl.size:
                    return crl, first, pieces
                raise StatusUnavailableError(f"Its first piece has {len(first)} octets.")
            except StatusUnavailableError as error:
                if not attempts_left:
                    _log.warning("CRL cannot be read", issuer=crl.issuer_id, number=crl.number, error=str(error))
        raise unavailable("The CRL cannot be read now. Try again.\n")
