"""Sending what is too long for memory, whole or visibly not whole."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import structlog
from aiohttp import web
from multidict import CIMultiDict

from privyseal_ca.errors import StatusUnavailableError
from privyseal_ca.web.caching import FRESH, PUBLIC

_log = structlog.get_logger("crl")

_RETRY_SECONDS: Final = "5"
#: What is longer goes out piece by piece.
_SHORT: Final = 64 * 1024
#: How long a client may take over one piece of at most 256 KiB. One that reads an octet now and then would otherwise keep
#: its connection, and there are only so many (promise P12).
_PIECE_SECONDS: Final = 60.0


async def send_stream(
    request: web.Request, headers: CIMultiDict[str], *, size: int, first: bytes, rest: AsyncIterator[bytes]
) -> web.StreamResponse:
    """Answer with ``first``, then ``rest``.

    The connection is broken off when they have not ``size`` octets together, and when the client takes them too slowly.
    """
    if len(first) == size <= _SHORT:
        return web.Response(body=first, headers=headers)
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    try:
        await _send(response, size, first, rest)
    except StatusUnavailableError as error:
        # The client sees that octets are missing, and nobody takes half a list for a whole one.
        _log.warning("answer broken off", path=request.path, error=str(error))
        _break_off(request)
    except TimeoutError:
        _log.info("answer not taken in time", path=request.path, remote=request.remote)
        _break_off(request)
    except ConnectionError:
        _log.debug("answer not taken to its end", path=request.path)
    return response


def unavailable(text: str) -> web.HTTPServiceUnavailable:
    """503 for what may be there in a moment."""
    return web.HTTPServiceUnavailable(text=text, headers={**FRESH, **PUBLIC, "Retry-After": _RETRY_SECONDS})


async def _send(response: web.StreamResponse, size: int, first: bytes, rest: AsyncIterator[bytes]) -> None:
    """Send the body, never its last octets when it has not ``size`` of them.

    Raises:
        StatusUnavailableError: the source failed, or has something else than it said.
        ConnectionError: the client is gone.
        TimeoutError: the client does not take it.
    """
    await _write(response, first)
    sent = len(first)
    async for piece in rest:
        sent += len(piece)
        if sent > size:
            break
        await _write(response, piece)
    if sent != size:
        raise StatusUnavailableError(f"It has not the {size} octets that it should have.")
    async with asyncio.timeout(_PIECE_SECONDS):
        await response.write_eof()


async def _write(response: web.StreamResponse, piece: bytes) -> None:
    async with asyncio.timeout(_PIECE_SECONDS):
        await response.write(piece)


def _break_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
