"""A collector of traces: OTLP over HTTP as the specification has it, and as badly behaved as a test wants it."""

import asyncio
import gzip
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from fakes.dns import LOOPBACK

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    """A span as it arrived."""

    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    links: tuple[str, ...]
    begun: int
    ended: int
    failed: bool


class OtlpReceiver:
    """Takes spans until ``answer`` says otherwise."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        #: The bodies as they were sent, unpacked: for what must not be in them.
        self.bodies: list[bytes] = []
        self.requests = 0
        #: Answers in the collector's place; what it gets is then lost.
        self.answer: Answer | None = None
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/v1/traces"

    def named(self, name: str) -> list[Seen]:
        return [span for span in self.spans if span.name == name]

    async def stall(self, request: web.Request) -> web.StreamResponse:
        """An answer that does not come."""
        await self._stop.wait()
        return web.Response()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(30)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/traces", self._take)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, LOOPBACK, 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if self.answer is not None:
            return await self.answer(request)
        assert request.content_type == "application/x-protobuf"
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.bodies.append(body)
        message = ExportTraceServiceRequest.FromString(body)
        for resource in message.resource_spans:
            facts = {each.key: each.value.string_value for each in resource.resource.attributes}
            assert facts["service.name"] == "privyseal"
            for scope in resource.scope_spans:
                self.spans.extend(_seen(span) for span in scope.spans)
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )


def _seen(span: Any) -> Seen:
    return Seen(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes},
        tuple(link.trace_id.hex() for link in span.links),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == 2,
    )


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """A collector that listens."""
    receiver = OtlpReceiver()
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.close()
