"""A listening socket with an aiohttp application behind it, and time limits that a stranger cannot stretch."""

import asyncio
import ssl
from typing import Final, Self

from aiohttp import web

from privyseal_ca.errors import ConfigurationError

_BACKLOG: Final = 1024
_HANDSHAKE_SECONDS: Final = 10
_KEEPALIVE_SECONDS: Final = 75


class Listener:
    """Serves ``app`` at ``host:port`` inside its context; leaving it waits up to ``grace`` seconds for what is in flight."""

    def __init__(
        self, app: web.Application, host: str, port: int, *, grace: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=_KEEPALIVE_SECONDS,
            shutdown_timeout=grace,
        )
        self._host = host
        self.port = port
        self._tls = tls
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        if self._runner.server is None:
            raise RuntimeError("the runner has no server after setup")
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._runner.server,
                self._host,
                self.port,
                backlog=_BACKLOG,
                ssl=self._tls,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS if self._tls else None,
            )
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigurationError(
                f"{self._host}:{self.port} cannot be listened on: {error.strerror}.",
                hint="Another program may have the port; set server.https or server.http to another one.",
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()
