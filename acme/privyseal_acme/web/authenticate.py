"""From an HTTP request to an authenticated one, in the order that gives strangers the least (STANDARDS A 11):
media type, shape, algorithm, url, nonce, key lookup, signature, account status. Ownership and payload follow in the flows.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from privyseal_acme.flow.context import Context
from privyseal_acme.protocol.jws import Jws, parse_jws
from privyseal_acme.protocol.keys import AccountKey, load_jwk, parse_jwk
from privyseal_acme.protocol.problems import Problem, malformed, unauthorized
from privyseal_acme.store.accounts import AccountRow, find_account
from privyseal_acme.store.nonces import Nonces

_MEDIA_TYPE: Final = "application/jose+json"
_BODY_SECONDS: Final = 20


@dataclass(frozen=True, slots=True)
class Authenticated:
    """A verified request: by the key of ``account``, or by ``key`` alone."""

    payload: bytes
    #: The URL that the request was made to, as the client signed it.
    url: str
    account: AccountRow | None
    key: AccountKey

    @property
    def is_post_as_get(self) -> bool:
        """Whether the payload is empty (RFC 8555 section 6.3)."""
        return not self.payload

    def require_account(self) -> AccountRow:
        """The account; routes that take no bare key have one."""
        if self.account is None:
            raise malformed("The request must name its account as kid.")
        return self.account


class Authenticator:
    """Reads and verifies requests."""

    def __init__(self, context: Context, nonces: Nonces) -> None:
        self._context = context
        self._nonces = nonces
        self._base = context.settings.server.public_https

    async def by_account(self, request: web.Request) -> Authenticated:
        """A request that an account signed (``kid``)."""
        jws = await self._read(request)
        if jws.kid is None:
            raise malformed("The request must name its account as kid, not carry a key as jwk.")
        return await self._verify_account(jws, jws.kid)

    async def by_key(self, request: web.Request) -> Authenticated:
        """A request that carries its key (``jwk``)."""
        jws = await self._read(request)
        if jws.jwk is None:
            raise malformed("The request must carry its key as jwk, not name an account as kid.")
        return self._verify_key(jws)

    async def by_account_or_key(self, request: web.Request) -> Authenticated:
        """A request that an account signed, or that carries its key."""
        jws = await self._read(request)
        if jws.kid is not None:
            return await self._verify_account(jws, jws.kid)
        return self._verify_key(jws)

    async def _read(self, request: web.Request) -> Jws:
        if request.headers.get("Content-Type") != _MEDIA_TYPE and request.content_type != _MEDIA_TYPE:
            raise malformed(f"The Content-Type must be {_MEDIA_TYPE}.", status=415)
        jws = parse_jws(await _read_body(request))
        if jws.url != self._base + request.raw_path:
            raise unauthorized("The url in the protected header is not the URL of the request.")
        await self._nonces.redeem(jws.nonce)
        return jws

    async def _verify_account(self, jws: Jws, kid: str) -> Authenticated:
        account_id = self._context.urls.account_id(kid)
        account = None
        if account_id is not None:
            account = await self._context.store.read(lambda tx: find_account(tx, account_id))
        if account is None:
            raise Problem("accountDoesNotExist", "The kid is not the URL of an account here.")
        key = load_jwk(account.jwk)
        key.verify(jws.algorithm, jws.signature, jws.signing_input)
        if account.status != "valid":
            raise unauthorized(f"The account is {account.status}.", status=401)
        return Authenticated(jws.payload, jws.url, account, key)

    def _verify_key(self, jws: Jws) -> Authenticated:
        key = parse_jwk(jws.jwk or {})
        key.verify(jws.algorithm, jws.signature, jws.signing_input)
        return Authenticated(jws.payload, jws.url, None, key)


async def _read_body(request: web.Request) -> bytes:
    """The body, of bounded size and within bounded time (promise P12)."""
    try:
        if request.content.is_eof():
            return await request.read()
        async with asyncio.timeout(_BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise malformed("The request body took too long to arrive.", status=408) from None
    except (web.RequestPayloadError, ConnectionError):
        raise malformed("The request body is broken or broke off.") from None
