"""The plain HTTP listener: trust anchors, issuers, health, metrics. Read-only; needs neither token nor PIN to answer."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import orjson
from aiohttp import web

from privyseal_ca.telemetry.metrics import Metrics

_CACHED: Final = {"Cache-Control": "public, max-age=3600"}
_FRESH: Final = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether each part of the service is usable, with the reason where it is not."""

    parts: Mapping[str, str]

    @property
    def ready(self) -> bool:
        """Whether all of them are."""
        return not any(self.parts.values())


@dataclass(frozen=True, slots=True)
class Anchors:
    """What relying parties fetch: the roots, and each CA certificate by its id."""

    roots_pem: bytes
    #: DER and PEM with chain, by issuer id.
    issuers: Mapping[str, tuple[bytes, bytes]]


def status_app(anchors: Anchors, metrics: Metrics, readiness: Callable[[], Awaitable[Readiness]]) -> web.Application:
    """The application that serves ``/roots.pem``, ``/issuers/``, ``/metrics``, ``/healthz`` and ``/readyz``."""

    async def roots(_: web.Request) -> web.Response:
        return web.Response(body=anchors.roots_pem, content_type="application/x-pem-file", headers=_CACHED)

    async def issuer(request: web.Request) -> web.Response:
        found = anchors.issuers.get(request.match_info["id"])
        if found is None:
            raise web.HTTPNotFound(text="There is no such issuer.\n")
        der, pem = found
        if request.match_info["form"] == "cer":
            # AIA caIssuers: one certificate in DER (RFC 5280 section 4.2.2.1).
            return web.Response(body=der, content_type="application/pkix-cert", headers=_CACHED)
        return web.Response(body=pem, content_type="application/x-pem-file", headers=_CACHED)

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n", headers=_FRESH)

    async def readyz(_: web.Request) -> web.Response:
        state = await readiness()
        document = {"ready": state.ready, "parts": {part: reason or "ok" for part, reason in state.parts.items()}}
        return web.Response(
            status=200 if state.ready else 503,
            body=orjson.dumps(document),
            content_type="application/json",
            headers=_FRESH,
        )

    app = web.Application(client_max_size=1024)
    app.add_routes(
        [
            web.get("/roots.pem", roots),
            web.get(r"/issuers/{id:[0-9a-f]{1,64}}.{form:cer|pem}", issuer),
            web.get("/metrics", show_metrics),
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
        ]
    )
    return app
