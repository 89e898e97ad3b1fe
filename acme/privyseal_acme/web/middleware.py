"""What every request goes through: correlation id, nonce, links, CORS, problem documents, one log event, metrics."""

from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, Final

import structlog
from aiohttp import web

from privyseal_acme.protocol.problems import Problem, malformed, problem_for
from privyseal_acme.protocol.urls import Urls, new_id
from privyseal_acme.store.nonces import Nonces
from privyseal_acme.web.replies import problem_reply
from privyseal_ca.errors import PrivySealError
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.telemetry.tracing import Span, Tracing

_log = structlog.get_logger("http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CORRELATION: Final = web.RequestKey("correlation", str)
_EVENT: Final = web.RequestKey("event", dict[str, Any])

_EXPOSED: Final = "Replay-Nonce, Location, Link, Retry-After"
#: What a trace knows of requests: of those that were refused only what the client did not choose itself.
_TRACED: Final = frozenset({"account", "order", "problem", "serial"})
_TRACED_REFUSED: Final = frozenset({"account", "problem"})
_PREFLIGHT: Final = (
    ("Access-Control-Allow-Methods", "GET, HEAD, POST"),
    ("Access-Control-Allow-Headers", "Content-Type"),
    ("Access-Control-Max-Age", "86400"),
)


def note(request: web.Request, **facts: object) -> None:
    """Add facts to the request's one log event. Never secrets, never what a stranger may choose at length."""
    request[_EVENT].update(facts)


def observe(
    nonces: Nonces, urls: Urls, metrics: Metrics, random_bytes: Callable[[int], bytes], tracing: Tracing
) -> Any:
    """The middleware around every ACME request."""
    seconds = metrics.stage_seconds.labels("request")

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        correlation = new_id(random_bytes(16))
        request[CORRELATION] = correlation
        with tracing.request(request.method, correlation, request.headers.get("traceparent")) as span:
            return await answer(request, handler, correlation, span)

    async def answer(request: web.Request, handler: Handler, correlation: str, span: Span) -> web.StreamResponse:
        begun = perf_counter()
        event = request[_EVENT] = {}
        if request.method == "OPTIONS":
            response: web.StreamResponse = web.Response(status=204, headers=_PREFLIGHT)
        else:
            response = await _answer(request, handler, event, metrics)
        headers = response.headers
        headers["Server"] = "privyseal"
        headers["X-Request-Id"] = correlation
        headers["Access-Control-Allow-Origin"] = "*"
        headers["Access-Control-Expose-Headers"] = _EXPOSED
        if request.path != "/acme/directory":
            # RFC 8555 section 7.1: from everywhere else the directory can be found.
            headers.add(*urls.index_link)
        if request.method == "POST" or request.path == "/acme/new-nonce":
            headers["Replay-Nonce"] = nonces.mint()
            headers.setdefault("Cache-Control", "no-store")
        duration = perf_counter() - begun
        seconds.observe(duration)
        resource = request.match_info.route.resource
        route = resource.canonical if resource else "unknown"
        metrics.requests.labels(route, str(response.status)).inc()
        if tracing.on:
            _describe(span, route, response.status, event)
        _log.info(
            "request",
            method=request.method,
            route=route,
            status=response.status,
            milliseconds=round(duration * 1000, 2),
            remote=request.remote,
            correlation=correlation,
            **event,
        )
        return response

    return middleware


def _describe(span: Span, route: str, status: int, event: Mapping[str, object]) -> None:
    """What a trace may know of a request: its pattern, not its path, and ids. What a client wrote is in the log only."""
    span.note("http.route", route)
    span.note("http.response.status_code", status)
    for fact in (_TRACED if status < 400 else _TRACED_REFUSED) & event.keys():
        span.note(f"privyseal.{fact}", str(event[fact]))


async def _answer(
    request: web.Request, handler: Handler, event: dict[str, Any], metrics: Metrics
) -> web.StreamResponse:
    """The handler's answer, or the problem document for whatever it raised."""
    try:
        return await handler(request)
    except Problem as error:
        problem = error
    except PrivySealError as error:
        problem = problem_for(error)
        event["error"] = str(error)
    except web.HTTPException as error:
        problem = _http_problem(error)
    except Exception:  # noqa: BLE001 (the edge: an unknown error is serverInternal, its detail withheld)
        _log.exception("unexpected error", correlation=request[CORRELATION])
        problem = problem_for(PrivySealError("unexpected"))
    event["problem"] = problem.type
    event["detail"] = problem.detail
    metrics.problems.labels(problem.type).inc()
    if problem.denied:
        metrics.denied.labels(problem.denied).inc()
    return problem_reply(problem).response()


def _http_problem(error: web.HTTPException) -> Problem:
    """What aiohttp refuses by itself: unknown paths, wrong methods, bodies that are too large."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        problem = malformed(
            f"The method {error.method[:16]} is not allowed here; resources are read by POST-as-GET.", status=405
        )
        problem.headers = (("Allow", ", ".join(sorted(error.allowed_methods))),)
        return problem
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return malformed("The request body is too large.", status=413)
    if isinstance(error, web.HTTPNotFound):
        return malformed("There is no such resource.", status=404)
    return malformed("The request cannot be understood.", status=error.status)
