"""A listening socket with an aiohttp application behind it, and bounds that a stranger cannot stretch (promise P12).

A connection is either waited for, which goes from its acceptance over the TLS handshake to the end of a request and begins
again after the answer, or it is being answered. Both end: aiohttp closes a connection that is idle for too long, the kernel
one whose peer takes nothing of what it is sent, and the listener one that never gets to its first request. When there is no
room for another connection, the one that has been waited for longest has to go.
"""

import asyncio
import resource
import socket
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final, Self

import structlog
from aiohttp import web

from privyseal_ca.errors import ConfigurationError

_log = structlog.get_logger("listener")

_BACKLOG: Final = 1024
#: How long a TLS connection that is closed here waits for its peer to close it as well.
_TLS_SHUTDOWN_SECONDS: Final = 5
#: How long to let others finish when the machine has no file descriptor or memory for one more connection.
_SHORTAGE_SECONDS: Final = 0.5
#: A request's head. aiohttp bounds its parts, so that this is at most 200 KiB.
_MAX_LINE, _MAX_FIELDS = 4096, 48


@dataclass(frozen=True, slots=True)
class Bounds:
    """What strangers may cost one listener. Times are seconds."""

    #: Connections at the same time; no more than a quarter of the file descriptors that the process may have.
    connections: int = 4096
    #: From acceptance to the end of the first request's head, the TLS handshake included.
    head: float = 15
    #: From an answer to the end of the next request's head.
    idle: float = 75
    #: How long the peer may take nothing of what it is sent.
    unread: float = 30
    #: How long a connection is waited for at least, however many others want its place.
    patience: float = 2


class _Connection(web.RequestHandler):
    """aiohttp's side of a connection; it knows when its first request has come, and tells when it is lost."""

    __slots__ = ("_ended", "_transport", "begun")

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        idle: float,
        ended: "Callable[[_Connection], None]",
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # as aiohttp's own runners turn it off
            keepalive_timeout=idle,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_LINE,
            max_headers=_MAX_FIELDS,
            # No ACME client compresses what it sends, and 64 KiB can hold sixty megabytes.
            auto_decompress=False,
        )
        self._ended = ended
        self._transport: asyncio.BaseTransport | None = None
        #: Set once the head of a request is complete, or the connection lost.
        self.begun = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands, TLS included."""
        self._transport = transport
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""
        super().connection_lost(exc)
        self._transport = None
        self.begun.set()
        self._ended(self)

    def abort(self) -> None:
        """End it at once, whatever was still to be sent."""
        if self._transport is not None:
            # uvloop's transports are no subclasses of asyncio's.
            self._transport.abort()  # type: ignore[attr-defined]

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP or met a fault. Neither it nor the log repeats what a stranger sent."""
        del message
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("unexpected error", exc_info=exc)
        else:
            _log.info("no request", status=status, reason=type(exc).__name__, remote=request.remote)
        if request.writer.output_size:
            raise ConnectionError("the answer has begun already")
        response = web.Response(status=status, text=f"{HTTPStatus(status).phrase}\n")
        response.force_close()
        return response


class Listener:
    """Serves ``app`` at ``host:port`` inside its context; leaving it waits up to ``grace`` seconds for what is in flight."""

    def __init__(
        self,
        app: web.Application,
        host: str,
        port: int,
        *,
        grace: float,
        tls: ssl.SSLContext | None = None,
        bounds: Bounds = Bounds(),
    ) -> None:
        self._runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=grace)
        self._host = host
        self.port = port
        self._tls = tls
        self._bounds = bounds
        self._limit = bounds.connections
        self._server: web.Server
        self._handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
        self._loop: asyncio.AbstractEventLoop
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._beginning: dict[_Connection, asyncio.Task[None]] = {}
        self._open: set[_Connection] = set()
        #: Those that are waited for and since when, the longest first.
        self._waited: OrderedDict[_Connection, float] = OrderedDict()
        #: Set when there may be room again.
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._limit = min(self._bounds.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        await self._runner.setup()
        if self._runner.server is None:
            raise RuntimeError("the runner has no server after setup")
        self._server = self._runner.server
        self._handle, self._server.request_handler = self._server.request_handler, self._answer
        try:
            await self._listen()
        except OSError as error:
            await self.__aexit__()
            raise ConfigurationError(
                f"{self._host}:{self.port} cannot be listened on: {error.strerror}.",
                hint="Another program may have the port; set server.https or server.http to another one.",
            ) from error
        self.port = self._sockets[0].getsockname()[1]
        self._accepting = [self._loop.create_task(self._accept(listening)) for listening in self._sockets]
        return self

    async def __aexit__(self, *_: object) -> None:
        # Who has not asked for anything yet is not waited for.
        tasks = [*self._accepting, *self._beginning.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
        await self._runner.cleanup()

    async def _listen(self) -> None:
        """Open a socket for each address of the host."""
        found = await self._loop.getaddrinfo(self._host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((family, address[:2]) for family, *_, address in found):
            listening = socket.create_server((str(address[0]), int(address[1])), family=family, backlog=_BACKLOG)
            self._sockets.append(listening)
            listening.setblocking(False)
            # Accepted sockets inherit it.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._bounds.unread * 1000))

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                accepted, _ = await self._loop.sock_accept(listening)
            except OSError as error:
                _log.warning("connection not accepted", error=error.strerror)
                await asyncio.sleep(_SHORTAGE_SECONDS)
                continue
            try:
                await self._make_room()
            except asyncio.CancelledError:
                accepted.close()
                raise
            connection = _Connection(self._server, loop=self._loop, idle=self._bounds.idle, ended=self._forget)
            self._open.add(connection)
            self._wait_for(connection)
            task = self._beginning[connection] = self._loop.create_task(self._begin(connection, accepted))
            task.add_done_callback(partial(self._has_begun, connection))

    async def _make_room(self) -> None:
        """Return when one more connection may be taken."""
        while len(self._open) >= self._limit:
            pause = None
            if self._waited:
                connection, since = next(iter(self._waited.items()))
                pause = since + self._bounds.patience - self._loop.time()
                if pause <= 0:
                    self._give_up(connection)
                    continue
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    async def _begin(self, connection: _Connection, accepted: socket.socket) -> None:
        """Bring a connection to its first request, as far as its peer lets it come in time."""
        times = {"ssl_handshake_timeout": self._bounds.head, "ssl_shutdown_timeout": _TLS_SHUTDOWN_SECONDS}
        # A handshake that fails or is broken off is everyday life.
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._bounds.head):
                await self._loop.connect_accepted_socket(
                    lambda: connection, accepted, ssl=self._tls, **(times if self._tls else {})
                )
                await connection.begun.wait()

    def _has_begun(self, connection: _Connection, _: "asyncio.Task[None]") -> None:
        """The beginning of ``connection`` is over; without a request it was the end as well."""
        del self._beginning[connection]
        if not connection.begun.is_set():
            connection.abort()
            self._forget(connection)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The application's answer to ``request``, whose connection is safe meanwhile unless its body is not here yet."""
        connection = request.protocol
        if not isinstance(connection, _Connection):
            raise TypeError(connection)
        connection.begun.set()
        if request.content.is_eof():
            self._waited.pop(connection, None)
        else:
            self._wait_for(connection)
        try:
            return await self._handle(request)
        finally:
            self._wait_for(connection)
            self._changed.set()

    def _wait_for(self, connection: _Connection) -> None:
        if connection in self._open:
            self._waited[connection] = self._loop.time()
            self._waited.move_to_end(connection)

    def _give_up(self, connection: _Connection) -> None:
        """End ``connection``, however far it has come."""
        if (task := self._beginning.get(connection)) is not None:
            task.cancel()
        connection.abort()
        self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        self._open.discard(connection)
        self._waited.pop(connection, None)
        self._changed.set()
