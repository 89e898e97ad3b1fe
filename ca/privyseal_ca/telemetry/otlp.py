"""Spans of OpenTelemetry, handed to a collector by OTLP over HTTP.

The loop only puts finished spans into a queue. A thread of the SDK sends them in batches; what finds the queue full, or
what the collector did not take, is counted and forgotten.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar, Token
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, Final

import requests
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from privyseal_ca.errors import ConfigurationError
from privyseal_ca.sections import TelemetrySettings
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.telemetry.tracing import TRACE_ID, Span, Tracing, Value

_log = structlog.get_logger("tracing")

CORRELATION: Final = "privyseal.correlation"

#: Spans in one request to the collector, seconds between two, and seconds that one may take with its repetitions.
_BATCH, _PAUSE, _PATIENCE = 512, 2.0, 5.0
#: How long the end of the service waits for the last batch, in seconds.
_LAST = 3.0
#: Octets of an answer that are read; nobody looks at them.
_MOST = 65_536
#: W3C Trace Context section 3.2: a header of version 00 has 55 characters; later versions may append to it.
_TRACEPARENT = 256

#: Others are a client's own words; semantic conventions of HTTP spans call them all the same.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_Current = tuple[Context, str]
#: The span that the running task is in, and its correlation id.
_current: ContextVar[_Current | None] = ContextVar("span", default=None)


class OtlpTracing(Tracing):
    """Makes spans for a collector."""

    __slots__ = ("_clients", "_processor", "_propagator", "_provider", "_tracer")

    def __init__(self, settings: TelemetrySettings, metrics: Metrics) -> None:
        authorities = settings.otlp_ca_file
        if authorities is not None and not authorities.is_file():
            raise ConfigurationError(
                f"telemetry.otlp_ca_file names {authorities}, which is no file.",
                hint="Name a PEM file with the certificates that vouch for the collector, by its absolute path.",
            )
        # What these say of a collector that is away is told once, and without its answers, by _Exporter.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        exporter = OTLPSpanExporter(
            endpoint=settings.otlp_endpoint,
            certificate_file=None if authorities is None else str(authorities),
            timeout=_PATIENCE,
            compression=Compression.Gzip,
            session=_Session(),
        )
        self._clients = settings.client_traces
        self._propagator = TraceContextTextMapPropagator()
        self._processor = _Bounded(_Exporter(exporter), settings.otlp_queue, metrics)
        self._provider = TracerProvider(
            # A client's own decision counts only where its trace is continued.
            sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
            resource=Resource.create(_this_program()),
            span_limits=SpanLimits(max_attributes=32, max_attribute_length=256, max_events=0, max_links=1),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("privyseal")

    @property
    def on(self) -> bool:
        """See :attr:`Tracing.on`."""
        return True

    def request(self, method: str, correlation: str, traceparent: str | None) -> Span:
        """See :meth:`Tracing.request`."""
        parent, links = Context(), []
        if traceparent is not None and self._clients != "ignore" and len(traceparent) <= _TRACEPARENT:
            theirs = self._propagator.extract({"traceparent": traceparent}, Context())
            context = trace.get_current_span(theirs).get_span_context()
            if context.is_valid and self._clients == "parent":
                parent = theirs
            elif context.is_valid:
                links = [Link(context)]
        return self._begin(
            "request",
            SpanKind.SERVER,
            parent,
            correlation,
            links,
            {"http.request.method": method if method in _METHODS else "_OTHER"},
        )

    def span(self, name: str, correlation: str = "") -> Span:
        """See :meth:`Tracing.span`."""
        current = _current.get()
        context, inherited = current if current is not None else (Context(), "")
        return self._begin(name, SpanKind.INTERNAL, context, correlation or inherited)

    def waits(self) -> object | None:
        """See :meth:`Tracing.waits`. Work of the service itself, outside of any span, is nobody's wait."""
        current = _current.get()
        if current is None or not trace.get_current_span(current[0]).is_recording():
            return None
        return current, time.time_ns()

    def committed(self, waited: Sequence[Any], seconds: float, *, failed: bool) -> None:
        """See :meth:`Tracing.committed`."""
        for (context, correlation), since in waited:
            span = self._tracer.start_span(
                "database",
                context,
                SpanKind.INTERNAL,
                {CORRELATION: correlation, "privyseal.commit_seconds": seconds},
                start_time=since,
            )
            if failed:
                span.set_status(Status(StatusCode.ERROR))
            span.end()

    async def close(self) -> None:
        """See :meth:`Tracing.close`."""
        ended: Future[None] = Future()

        def end() -> None:
            # Not a thread of the loop's pool, whose end the process would wait for: the collector may be slow.
            self._provider.shutdown()
            ended.set_result(None)

        threading.Thread(target=end, name="tracing-end", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST):
                await asyncio.shield(asyncio.wrap_future(ended))
        self._processor.give_up()

    def _begin(
        self,
        name: str,
        kind: SpanKind,
        parent: Context,
        correlation: str,
        links: Sequence[Link] = (),
        attributes: dict[str, Value] | None = None,
    ) -> Span:
        span = self._tracer.start_span(
            name, parent, kind, {CORRELATION: correlation, **(attributes or {})}, links=list(links)
        )
        return _Span(span, parent, correlation)


class _Span:
    """A span that the running task is in while it is entered. One that is not sampled still tells its children so."""

    __slots__ = ("_correlation", "_parent", "_resets", "_span")

    def __init__(self, span: trace.Span, parent: Context, correlation: str) -> None:
        self._span = span
        self._parent = parent
        self._correlation = correlation
        self._resets: tuple[Token[_Current | None], Token[str]] | None = None

    def __enter__(self) -> "_Span":
        context = trace.set_span_in_context(self._span, self._parent)
        shown = trace.format_trace_id(self._span.get_span_context().trace_id) if self._span.is_recording() else ""
        self._resets = _current.set((context, self._correlation)), TRACE_ID.set(shown)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del error, traceback  # they may hold names
        if self._resets is not None:
            _current.reset(self._resets[0])
            TRACE_ID.reset(self._resets[1])
        if kind is not None:
            self._span.set_attribute("error.type", kind.__name__)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def note(self, key: str, value: Value) -> None:
        """See :meth:`Span.note`."""
        self._span.set_attribute(key, value)


class _Bounded(SpanProcessor):
    """Lets as many spans wait as the settings say, those that are being sent among them, and counts the others."""

    def __init__(self, exporter: "_Exporter", limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._exported = metrics.trace_spans.labels("exported")
        self._dropped = metrics.trace_spans.labels("dropped")
        self._waiting = 0
        self._given_up = False
        self._lock = threading.Lock()
        exporter.on_end(self._settled)
        self._batches = BatchSpanProcessor(
            exporter,
            max_queue_size=limit,
            schedule_delay_millis=_PAUSE * 1000,
            max_export_batch_size=min(_BATCH, limit),
        )

    def on_end(self, span: ReadableSpan) -> None:
        """Take a finished span, if there is room."""
        with self._lock:
            if full := self._given_up or self._waiting >= self._limit:
                self._dropped.inc()
            else:
                self._waiting += 1
        if not full:
            self._batches.on_end(span)

    def shutdown(self) -> None:
        """Send what waits."""
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits now."""
        return self._batches.force_flush(timeout_millis)

    def give_up(self) -> None:
        """Count what still waits as dropped; nothing is taken any more."""
        with self._lock:
            self._given_up = True
            self._dropped.inc(self._waiting)
            self._waiting = 0

    def _settled(self, count: int, taken: bool) -> None:
        with self._lock:
            if not self._given_up:
                self._waiting -= count
                (self._exported if taken else self._dropped).inc(count)


class _Exporter(SpanExporter):
    """Tells how many spans the collector took, and logs when it begins and when it ceases to take them."""

    def __init__(self, exporter: OTLPSpanExporter) -> None:
        self._exporter = exporter
        self._settled: Any = None
        self._away = False

    def on_end(self, settled: Any) -> None:
        """Have ``settled(count, taken)`` called for each batch."""
        self._settled = settled

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send one batch, on the SDK's thread."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            taken = result is SpanExportResult.SUCCESS
            self._settled(len(spans), taken)
            if self._away and taken:
                _log.info("the collector takes traces again")
            elif not self._away and not taken:
                _log.warning("the collector does not take traces; they are dropped until it does")
            self._away = not taken
        return result

    def shutdown(self) -> None:
        """Stop sending."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _this_program() -> dict[str, str]:
    facts = {"service.name": "privyseal"}
    with suppress(PackageNotFoundError):  # a checkout that was not installed
        facts["service.version"] = version("privyseal")
    return facts


class _Session(requests.Session):
    """Believes nothing of a collector: little of its answer is read, and it cannot send spans elsewhere.

    Proxies and ``.netrc`` of the environment are not looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False

    def request(self, *args: Any, **options: Any) -> requests.Response:
        """As the base class has it."""
        response = super().request(*args, **{**options, "stream": True, "allow_redirects": False})
        with response:
            response.raw.read(_MOST, decode_content=False)
        if response.is_redirect or response.status_code in range(300, 400):
            raise requests.exceptions.TooManyRedirects("the collector answers with a redirect")
        return response
