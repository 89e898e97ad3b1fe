"""A witness over HTTP: submissions, the newest cosigned checkpoint of each log, its own key, health and metrics."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from hashlib import sha256
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import hdrs, web

from privyseal_ca.errors import PrivySealError
from privyseal_ca.telemetry.metrics import WitnessMetrics
from privyseal_ca.web.caching import FRESH, PUBLIC, not_modified, unchanged
from privyseal_ca.witness.protocol import MAX_SUBMISSION, SIZE_TYPE
from privyseal_ca.witness.state import WitnessState
from privyseal_ca.witness.witness import Witness

_log = structlog.get_logger("witness")

_TEXT: Final = "text/plain; charset=utf-8"
_CHECKPOINT_SECONDS: Final = 2
_RETRY_SECONDS: Final = "1"
#: How long a submission may take to arrive, in seconds.
_BODY_SECONDS: Final = 10.0
#: Submissions whose bodies are in memory at the same time: 16 MiB of them.
_AT_ONCE: Final = 64
_ID: Final = re.compile("[0-9a-f]{64}")


def witness_app(witness: Witness, state: WitnessState, metrics: WitnessMetrics) -> web.Application:
    """What a witness serves. Submission and monitoring prefix are both its root."""
    routes = _Routes(witness, state, metrics)
    app = web.Application(client_max_size=MAX_SUBMISSION)
    app.add_routes(
        [
            web.post("/add-checkpoint", _guarded(routes.add_checkpoint)),
            web.get("/{id:[0-9a-f]{64}}/checkpoint", _guarded(routes.checkpoint)),
            web.get("/vkey", routes.vkey),
            web.get("/healthz", routes.health),
            web.get("/metrics", _guarded(routes.metrics)),
        ]
    )
    return app


class _Routes:
    def __init__(self, witness: Witness, state: WitnessState, metrics: WitnessMetrics) -> None:
        self._witness = witness
        self._state = state
        self._metrics = metrics
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def add_checkpoint(self, request: web.Request) -> web.StreamResponse:
        """POST /add-checkpoint (C2SP tlog-witness)."""
        if self._places.locked():
            return self._counted(
                HTTPStatus.SERVICE_UNAVAILABLE, "Too many submissions at once. Try again in a moment.\n"
            )
        async with self._places:
            try:
                async with asyncio.timeout(_BODY_SECONDS):
                    body = await request.read()
            except TimeoutError:
                return self._counted(HTTPStatus.REQUEST_TIMEOUT, "The submission did not arrive in time.\n")
            except web.HTTPRequestEntityTooLarge:
                text = f"A submission has at most {MAX_SUBMISSION} bytes.\n"
                return self._counted(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
            answer = await self._witness.submit(body)
        return self._counted(answer.status, answer.text)

    def _counted(self, status: HTTPStatus, text: str) -> web.Response:
        self._metrics.answers.labels(str(int(status))).inc()
        headers = {**FRESH, hdrs.CONTENT_TYPE: SIZE_TYPE if status == HTTPStatus.CONFLICT else _TEXT}
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers[hdrs.RETRY_AFTER] = _RETRY_SECONDS
        return web.Response(status=status, body=text.encode(), headers=headers)

    async def checkpoint(self, request: web.Request) -> web.StreamResponse:
        """The newest checkpoint of a log with this witness's cosignature."""
        note = await asyncio.to_thread(self._state.published, request.match_info["id"])
        if note is None:
            raise web.HTTPNotFound(text="No checkpoint of this log was cosigned here.\n", headers={**FRESH, **PUBLIC})
        digest = sha256(note).digest()
        headers = web.Response(
            headers={
                hdrs.CONTENT_TYPE: _TEXT,
                hdrs.CACHE_CONTROL: f"public, max-age={_CHECKPOINT_SECONDS}",
                hdrs.ETAG: f'"{digest.hex()}"',
                **PUBLIC,
            }
        ).headers
        if unchanged(request, sha256=digest, last_modified=None):
            return not_modified(headers)
        return web.Response(body=note, headers=headers)

    async def vkey(self, _: web.Request) -> web.StreamResponse:
        """The key that verifies this witness's cosignatures, for those who have another way to compare it."""
        return web.Response(
            body=f"{self._witness.verifier.vkey()}\n".encode(), headers={hdrs.CONTENT_TYPE: _TEXT, **FRESH}
        )

    async def health(self, _: web.Request) -> web.StreamResponse:
        """200 while the token can be reached."""
        if self._witness.available:
            return web.Response(text="ok\n", headers=FRESH)
        return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE, text="The token is away.\n", headers=FRESH)

    async def metrics(self, _: web.Request) -> web.StreamResponse:
        """Prometheus metrics."""
        logs, proven, unproven = await asyncio.to_thread(self._count)
        self._metrics.logs.set(logs)
        self._metrics.conflicts.labels("proven").set(proven)
        self._metrics.conflicts.labels("unproven").set(unproven)
        return web.Response(
            body=self._metrics.render(), headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4", **FRESH}
        )

    def _count(self) -> tuple[int, int, int]:
        origins = self._state.origins()
        conflicts = [conflict for origin in origins for conflict in self._state.conflicts(origin)]
        proven = sum(conflict.proven for conflict in conflicts)
        return len(origins), proven, len(conflicts) - proven


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _guarded(handler: _Handler) -> _Handler:
    """``handler``, which answers 503 when the witness's own files or token fail."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except PrivySealError as error:
            _log.error("the witness cannot answer", path=request.path, error=str(error))
        return web.Response(
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            text="The witness cannot answer now.\n",
            headers={**FRESH, hdrs.RETRY_AFTER: _RETRY_SECONDS},
        )

    return guarded
