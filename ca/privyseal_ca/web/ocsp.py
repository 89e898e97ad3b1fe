"""OCSP over plain HTTP: POST and GET (RFC 6960 appendix A, RFC 9919), in front of whatever has the answers.

What concerns OCSP is answered with 200 and an OCSP response, also when it is an unsigned error. What concerns HTTP alone is
answered by HTTP: 413 for a body above 2,048 octets, 414 for a path above 1,024 characters, 415 for another media type, 408
for a body that does not come, 405 for another method.
"""

import asyncio
import hashlib
from typing import Final

from aiohttp import hdrs, web
from cryptography.x509.ocsp import OCSPCertStatus, load_der_ocsp_response

from privyseal_ca.clock import Clock
from privyseal_ca.revocation.ocsp_request import MAX_REQUEST, parse_request
from privyseal_ca.revocation.ocsp_response import unsigned_response
from privyseal_ca.revocation.published import OcspAnswer, OcspSource, OcspStatus
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.web.caching import FRESH, PUBLIC, cached_headers, conditional, max_age, not_modified, unchanged
from privyseal_ca.web.ocsp_cache import AnswerCache, Prepared
from privyseal_ca.web.ocsp_path import LONGEST, request_in_path

_PATH: Final = "/ocsp"
_REQUEST_TYPE: Final = "application/ocsp-request"
_RESPONSE_TYPE: Final = "application/ocsp-response"

_UNSIGNED_HEADERS: Final = {"Content-Type": _RESPONSE_TYPE, **FRESH, **PUBLIC}
#: RFC 9919 has neither no-store nor no-cache on what is signed; this one is good for one request all the same.
_SINGLE_HEADERS: Final = {
    "Content-Type": _RESPONSE_TYPE,
    "Cache-Control": "max-age=0, no-transform, must-revalidate",
    **PUBLIC,
}
_COUNTED_AS: Final = {
    OcspStatus.MALFORMED_REQUEST: "malformed",
    OcspStatus.INTERNAL_ERROR: "error",
    OcspStatus.TRY_LATER: "try_later",
    OcspStatus.SIG_REQUIRED: "error",
    OcspStatus.UNAUTHORIZED: "unauthorized",
}


class _Below(web.PlainResource):
    """A path and everything below it, found without a pattern."""

    def _match(self, path: str) -> dict[str, str] | None:
        return {} if path.startswith(_PATH) else None


class _Counters:
    """The counters of one method, looked up once."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        labels = metrics.ocsp_requests.labels
        self.cached = labels(method, "cached")
        self.signed = labels(method, "signed")
        self.not_modified = labels(method, "not_modified")
        self.malformed = labels(method, "malformed")
        self.unsigned = {status: labels(method, name) for status, name in _COUNTED_AS.items()}


class OcspRoutes:
    """Answers at ``/ocsp`` from ``source``. HTTP caches may keep an answer for ``limit`` seconds, never past its nextUpdate."""

    def __init__(
        self,
        source: OcspSource,
        *,
        limit: int,
        clock: Clock,
        metrics: Metrics,
        cache: AnswerCache | None = None,
        patience: float = 10,
    ) -> None:
        """``patience`` is how many seconds a body may take."""
        self._source = source
        self._limit = limit
        self._now = clock.now
        self._patience = patience
        self._cache = AnswerCache() if cache is None else cache
        self._posts = _Counters(metrics, "post")
        self._gets = _Counters(metrics, "get")
        source.on_change(self._cache.forget)

    def register(self, app: web.Application) -> None:
        """Add the routes to ``app``."""
        app.router.add_post(_PATH, self._post)
        below = _Below(_PATH)
        below.add_route(hdrs.METH_GET, self._get)
        below.add_route(hdrs.METH_HEAD, self._get)
        app.router.register_resource(below)
        app.router.add_post(f"{_PATH}/", self._post)

    async def _get(self, request: web.Request) -> web.Response:
        # In the words of the request line, so that nothing is decoded for an answer that is there.
        key = request.raw_path
        prepared = self._cache.get(key, self._now())
        counter = self._gets.cached
        if prepared is None:
            path = request.rel_url.raw_path.removeprefix(_PATH)
            if len(path) > LONGEST:
                self._gets.malformed.inc()
                raise web.HTTPRequestURITooLong(text="The request in the path is too long. Use POST.\n", headers=FRESH)
            answer = await self._ask(key, request_in_path(path), self._gets)
            if isinstance(answer, web.Response):
                return answer
            prepared, counter = answer, self._gets.signed
        if conditional(request) and unchanged(request, sha256=prepared.sha256, last_modified=prepared.last_modified):
            self._gets.not_modified.inc()
            return not_modified(prepared.headers)
        counter.inc()
        return web.Response(body=prepared.body, headers=prepared.headers)

    async def _post(self, request: web.Request) -> web.Response:
        content = request.content
        if content.is_eof() and request.headers.get(hdrs.CONTENT_TYPE) == _REQUEST_TYPE:
            body = content.read_nowait()
        else:
            body = await self._body(request)
        prepared = self._cache.get(body, self._now())
        if prepared is not None:
            self._posts.cached.inc()
            return web.Response(body=prepared.body, headers=prepared.headers)
        if len(body) > MAX_REQUEST:
            self._posts.malformed.inc()
            text = f"A request has at most {MAX_REQUEST} octets.\n"
            raise web.HTTPRequestEntityTooLarge(MAX_REQUEST, text=text, headers=FRESH)
        answer = await self._ask(body, body, self._posts)
        if isinstance(answer, web.Response):
            return answer
        self._posts.signed.inc()
        return web.Response(body=answer.body, headers=answer.headers)

    async def _body(self, request: web.Request) -> bytes:
        """The body when it comes later or says of itself something else than most, up to a little more than it may have.

        Raises:
            web.HTTPException: it is no OCSP request as HTTP sees it.
        """
        kind = request.headers.get(hdrs.CONTENT_TYPE, _REQUEST_TYPE)
        if kind.partition(";")[0].strip().lower() != _REQUEST_TYPE:
            self._posts.malformed.inc()
            raise web.HTTPUnsupportedMediaType(text=f"The body has to be {_REQUEST_TYPE}.\n", headers=FRESH)
        body = bytearray()
        try:
            async with asyncio.timeout(self._patience):
                while len(body) <= MAX_REQUEST and (piece := await request.content.readany()):
                    body += piece
        except TimeoutError:
            self._posts.malformed.inc()
            raise web.HTTPRequestTimeout(text="The body did not come in time.\n", headers=FRESH) from None
        except web.RequestPayloadError:
            self._posts.malformed.inc()
            raise web.HTTPBadRequest(text="The body is not what HTTP says it is.\n", headers=FRESH) from None
        return bytes(body)

    async def _ask(self, key: str | bytes, der: bytes | None, counters: _Counters) -> Prepared | web.Response:
        """The source's answer to the request ``der``, kept for ``key`` when it may be: else the response itself."""
        query = OcspStatus.MALFORMED_REQUEST if der is None else parse_request(der)
        changes = self._cache.changes
        answer = query if isinstance(query, OcspStatus) else await self._source.answer(query)
        if isinstance(answer, OcspStatus):
            counters.unsigned[answer].inc()
            return web.Response(body=unsigned_response(answer), headers=_UNSIGNED_HEADERS)
        if not answer.keep:
            counters.signed.inc()
            return web.Response(body=answer.der, headers=_SINGLE_HEADERS)
        prepared = self._prepared(answer)
        # An answer that changed while it was made may be the old one.
        if self._cache.changes == changes:
            self._cache.put(key, prepared)
        return prepared

    def _prepared(self, answer: OcspAnswer) -> Prepared:
        now = self._now()
        seconds = max_age(self._limit, answer.next_update, now)
        sha256 = hashlib.sha256(answer.der).digest()
        # What says "revoked" may be of the same second as what said "good" before: no date tells them apart.
        status = load_der_ocsp_response(answer.der).certificate_status
        return Prepared(
            body=answer.der,
            headers=cached_headers(
                _RESPONSE_TYPE,
                size=len(answer.der),
                sha256=sha256,
                this_update=answer.this_update,
                next_update=answer.next_update,
                seconds=seconds,
            ),
            sha256=sha256,
            last_modified=answer.this_update if status is OCSPCertStatus.GOOD else None,
            # As long as the max-age in the headers is right.
            until=min(answer.fresh_until, max(answer.next_update - seconds, now + 1)),
            serial=answer.serial,
        )
