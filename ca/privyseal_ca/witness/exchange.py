"""One request to a witness: bounded in octets and seconds, and never redirected (promise P12)."""

import asyncio
from dataclasses import dataclass
from typing import Final

from aiohttp import ClientConnectionError, ClientError, ClientSession, DummyCookieJar
from yarl import URL

_PIECE: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of whatever status, or why there is none."""

    #: What a person is told when there is no answer; the fields below are then empty.
    failure: str = ""
    status: int = 0
    body: bytes = b""
    #: Without parameters, in lower case.
    content_type: str = ""


def new_session() -> ClientSession:
    """A session that takes nothing from the environment and remembers nothing. Connections are kept open between requests."""
    return ClientSession(
        trust_env=False,
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "privyseal-ledger"},
    )


async def exchange(session: ClientSession, url: str, *, seconds: float, most: int, post: bytes | None = None) -> Reply:
    """GET ``url``, or POST ``post`` to it, within ``seconds`` and with an answer of at most ``most`` octets.

    Never raises for what the other side does.
    """
    try:
        async with (
            asyncio.timeout(seconds),
            session.request(
                "GET" if post is None else "POST",
                URL(url, encoded=True),
                data=post,
                headers={} if post is None else {"Content-Type": "text/plain; charset=utf-8"},
                allow_redirects=False,
            ) as response,
        ):
            body = bytearray()
            async for piece in response.content.iter_chunked(_PIECE):
                body += piece
                if len(body) > most:
                    response.close()
                    return Reply(f"answers with more than {most} octets")
            content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            return Reply("", response.status, bytes(body), content_type)
    except (TimeoutError, ClientError, ValueError) as error:
        return Reply(_failure(error, seconds))


def _failure(error: Exception, seconds: float) -> str:
    """What a person is told. Never the error's text, which may repeat what the other side sent (promise P10)."""
    match error:
        case TimeoutError():
            return f"does not answer within {seconds:g} seconds"
        case ClientConnectionError():
            return f"cannot be reached ({type(error).__name__})"
        case _:
            return f"does not answer as it should ({type(error).__name__})"
