"""Fetching what others may have changed: bounded in octets, redirects and seconds (promise P12)."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from aiohttp import (
    ClientConnectionError,
    ClientError,
    ClientPayloadError,
    ClientResponse,
    ClientSession,
    DummyCookieJar,
    TCPConnector,
    TooManyRedirects,
)
from yarl import URL

REDIRECTS: Final = 3
#: What a server answers that is busy, or behind a proxy that does not reach it: the same request may succeed later.
_PASSING: Final = frozenset({429, 502, 503, 504})
_PIECE: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer, or why there is none."""

    failure: str = ""
    """What a person is told when there is no body; the fields below are then empty."""
    body: bytes | None = None
    """None when it is longer than what is kept, or the same as before."""
    size: int = 0
    sha256: bytes = b""
    content_type: str = ""
    cache_control: str = ""
    etag: str = ""
    unchanged: bool = False
    """Whether it is what the ETag stands for that was sent."""
    status: int = 0
    """The HTTP status; 0 when there was none."""
    passing: bool = False
    """Whether the failure may pass: the other side was not reached, was slow, or asks to be tried again."""
    retry_after: str = ""
    """The header of that name."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much an answer may cost."""

    keep: int
    """Octets up to which the body is kept; of a longer one there is only size and hash."""
    most: int
    """Octets after which reading ends."""
    seconds: float


def new_session(*, agent: str = "privyseal-watcher", trust: ssl.SSLContext | None = None) -> ClientSession:
    """A session that takes nothing from the environment and remembers nothing.

    ``trust`` says whose certificates count for https; without it, those that the machine trusts.
    """
    return ClientSession(
        connector=TCPConnector(ssl=trust) if trust is not None else None,
        trust_env=False,
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity", "User-Agent": agent},
    )


async def fetch(
    session: ClientSession,
    url: str,
    bounds: Bounds,
    *,
    post: bytes | None = None,
    content_type: str = "",
    etag: str = "",
    headers: Mapping[str, str] | None = None,
    redirects: int = REDIRECTS,
) -> Fetched:
    """GET ``url``, which is sent as it is, or POST ``post`` to it. Never raises for what the other side does.

    ``headers`` are sent besides; whoever sends a secret follows no ``redirects``.
    """
    sent = dict(headers or {})
    if post is not None:
        sent["Content-Type"] = content_type
    if etag:
        sent["If-None-Match"] = etag
    if bounds.seconds <= 0:
        return Fetched("was not fetched: others took too long")
    try:
        async with (
            asyncio.timeout(bounds.seconds),
            session.request(
                "GET" if post is None else "POST",
                URL(url, encoded=True),
                data=post,
                headers=sent,
                allow_redirects=redirects > 0,
                max_redirects=redirects,
            ) as response,
        ):
            if response.status == 304 and etag:
                return Fetched(unchanged=True, cache_control=response.headers.get("Cache-Control", ""), etag=etag)
            if response.status != 200:
                return Fetched(
                    f"is answered with HTTP status {response.status}",
                    status=response.status,
                    passing=response.status in _PASSING,
                    retry_after=response.headers.get("Retry-After", ""),
                )
            return await _read(response, bounds)
    except (TimeoutError, ClientError, ValueError) as error:
        # An answer that broke off may come whole the next time.
        passing = isinstance(error, TimeoutError | ClientConnectionError | ClientPayloadError)
        return Fetched(_failure(error, bounds), passing=passing)


def _failure(error: Exception, bounds: Bounds) -> str:
    """What a person is told. Never the error's text, which may repeat what the other side sent (promise P10)."""
    match error:
        case TimeoutError():
            return f"does not arrive within {bounds.seconds:.0f} seconds"
        case TooManyRedirects():
            return f"is redirected more than {REDIRECTS} times"
        case ClientConnectionError():
            return f"cannot be reached ({type(error).__name__})"
        case _:
            return f"cannot be fetched ({type(error).__name__})"


async def _read(response: ClientResponse, bounds: Bounds) -> Fetched:
    digest, size, pieces = sha256(), 0, list[bytes]()
    async for piece in response.content.iter_chunked(_PIECE):
        size += len(piece)
        if size > bounds.most:
            response.close()
            return Fetched(f"is longer than {bounds.most} octets", status=response.status)
        digest.update(piece)
        if size <= bounds.keep:
            pieces.append(piece)
        else:
            pieces.clear()
    headers = response.headers
    return Fetched(
        body=b"".join(pieces) if size <= bounds.keep else None,
        size=size,
        sha256=digest.digest(),
        content_type=headers.get("Content-Type", "").partition(";")[0].strip().lower(),
        cache_control=headers.get("Cache-Control", ""),
        etag=headers.get("ETag", ""),
        status=response.status,
    )
