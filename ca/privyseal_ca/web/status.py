"""The plain HTTP listener: trust anchors, issuers, CRLs, OCSP, the ledger, health, metrics.

Read-only; needs neither token nor PIN to answer (promise P7).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import orjson
from aiohttp import web

from privyseal_ca.clock import Clock, SystemClock
from privyseal_ca.ledger.access import EntriesAccess
from privyseal_ca.ledger.served import LedgerSource
from privyseal_ca.revocation.published import CrlSource, OcspSource
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.web.caching import FRESH, PUBLIC
from privyseal_ca.web.crl import CrlRoutes
from privyseal_ca.web.crl_bundle import CrlBundleRoutes
from privyseal_ca.web.ledger import LedgerRoutes
from privyseal_ca.web.ocsp import OcspRoutes

_CACHED: Final = {"Cache-Control": "public, max-age=3600", **PUBLIC}


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether each part of the service is usable, with the reason where it is not."""

    parts: Mapping[str, str]
    #: Parts that are shown and do not count: the service does its work without them.
    advisory: frozenset[str] = frozenset()

    @property
    def ready(self) -> bool:
        """Whether all are that count."""
        return not any(reason for part, reason in self.parts.items() if part not in self.advisory)


@dataclass(frozen=True, slots=True)
class Anchors:
    """What relying parties fetch: the roots, and each CA certificate by its id."""

    roots_pem: bytes
    #: DER and PEM with chain, by issuer id.
    issuers: Mapping[str, tuple[bytes, bytes]]


def status_app(
    anchors: Anchors,
    metrics: Metrics,
    readiness: Callable[[], Awaitable[Readiness]],
    *,
    crls: CrlSource | None = None,
    ocsp: OcspSource | None = None,
    ledger: LedgerSource | None = None,
    entries: EntriesAccess | None = None,
    max_age: int = 60,
    clock: Clock | None = None,
) -> web.Application:
    """The application behind the plain listener. Without ``crls``, ``ocsp`` or ``ledger`` their paths do not exist.

    ``entries`` says who may read the ledger's entries: nobody unless it is given.

    HTTP caches may keep a CRL or an OCSP response for ``max_age`` seconds, never past its nextUpdate.
    """
    app = web.Application(client_max_size=1024)
    app.add_routes([*_anchor_routes(anchors), *_health_routes(metrics, readiness)])
    clock = clock or SystemClock()
    if crls is not None:
        app.add_routes(CrlRoutes(crls, limit=max_age, clock=clock).routes())
        app.add_routes(CrlBundleRoutes(crls, limit=max_age, clock=clock).routes())
    if ocsp is not None:
        OcspRoutes(ocsp, limit=max_age, clock=clock, metrics=metrics).register(app)
    if ledger is not None:
        access = entries or EntriesAccess()
        app.add_routes(LedgerRoutes(ledger, entries=access.entries, token=access.token).routes())
    return app


def _anchor_routes(anchors: Anchors) -> list[web.RouteDef]:
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

    return [web.get("/roots.pem", roots), web.get(r"/issuers/{id:[0-9a-f]{1,64}}.{form:cer|pem}", issuer)]


def _health_routes(metrics: Metrics, readiness: Callable[[], Awaitable[Readiness]]) -> list[web.RouteDef]:
    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n", headers=FRESH)

    async def readyz(request: web.Request) -> web.Response:
        state = await readiness()
        part = request.query.get("part")
        if part is not None:
            if part not in state.parts:
                raise web.HTTPNotFound(
                    text=f"There is no such part. There are: {', '.join(state.parts)}.\n", headers=FRESH
                )
            # Asked about alone, an advisory part counts.
            state = Readiness({part: state.parts[part]})
        document = {"ready": state.ready, "parts": {name: reason or "ok" for name, reason in state.parts.items()}}
        return web.Response(
            status=200 if state.ready else 503,
            body=orjson.dumps(document),
            content_type="application/json",
            headers=FRESH,
        )

    return [web.get("/metrics", show_metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)]
