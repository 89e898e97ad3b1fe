"""What HTTP caches are told about signed status, and when a cache's copy is still the current one (RFC 9110, RFC 9919)."""

from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from typing import Final

from aiohttp import hdrs, web
from multidict import CIMultiDict

#: For what is true now and need not be a moment later.
FRESH: Final = {"Cache-Control": "no-store"}
#: Public data may be read by scripts of every origin.
PUBLIC: Final = {"Access-Control-Allow-Origin": "*"}


@lru_cache(4096)
def http_date(seconds: int) -> str:
    """``seconds`` since the epoch as HTTP writes a date (RFC 9110 section 5.6.7)."""
    return formatdate(seconds, usegmt=True)


def max_age(limit: int, next_update: int, now: float) -> int:
    """How many seconds a cache may keep what is valid until ``next_update``: at most ``limit``, and 0 when that is past."""
    return max(0, min(limit, int(next_update - now)))


def cached_headers(
    content_type: str, *, size: int, sha256: bytes, this_update: int, next_update: int, seconds: int
) -> CIMultiDict[str]:
    """The headers of a signed answer of ``size`` octets that caches may keep for ``seconds`` (RFC 9919)."""
    return CIMultiDict(
        {
            hdrs.CONTENT_TYPE: content_type,
            hdrs.CACHE_CONTROL: f"max-age={seconds}, public, no-transform, must-revalidate",
            hdrs.LAST_MODIFIED: http_date(this_update),
            hdrs.EXPIRES: http_date(next_update),
            hdrs.ETAG: f'"{sha256.hex()}"',
            hdrs.CONTENT_LENGTH: str(size),
            **PUBLIC,
        }
    )


def conditional(request: web.Request) -> bool:
    """Whether the client says what it has already."""
    headers = request.headers
    return hdrs.IF_NONE_MATCH in headers or hdrs.IF_MODIFIED_SINCE in headers


def unchanged(request: web.Request, *, sha256: bytes, last_modified: int | None) -> bool:
    """Whether the client has the current answer (RFC 9110 section 13.2.2): If-None-Match decides alone when it is there.

    Without ``last_modified`` only the tag tells answers apart.
    """
    tags = request.if_none_match
    if tags is not None:
        current = sha256.hex()
        return any(tag.value in {current, "*"} for tag in tags)
    if last_modified is None:
        return False
    try:
        since = request.if_modified_since
    except OverflowError:  # a year that no date has
        return False
    return since is not None and since >= datetime.fromtimestamp(last_modified, UTC)


def not_modified(headers: CIMultiDict[str]) -> web.Response:
    """304 with the headers that the whole answer would have (RFC 9110 section 15.4.5)."""
    kept = headers.copy()
    kept.pop(hdrs.CONTENT_LENGTH, None)
    return web.Response(status=304, headers=kept)
