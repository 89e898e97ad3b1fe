"""The routes of RFC 8555 and what authenticates each."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from privyseal_acme.flow.accounts import AccountFlow
from privyseal_acme.flow.authorizations import AuthorizationFlow
from privyseal_acme.flow.certificates import CertificateFlow
from privyseal_acme.flow.context import Context
from privyseal_acme.flow.finalize import IssuanceDesk
from privyseal_acme.flow.objects import account_object
from privyseal_acme.flow.orders import OrderFlow, OrderView
from privyseal_acme.protocol.messages import (
    AccountUpdate,
    AuthorizationUpdate,
    ChallengeResponse,
    Finalize,
    NewAccount,
    NewAuthz,
    NewOrder,
    RevokeCert,
    parse_message,
)
from privyseal_acme.protocol.problems import malformed, unauthorized
from privyseal_acme.web.authenticate import Authenticated, Authenticator
from privyseal_acme.web.middleware import CORRELATION, note
from privyseal_acme.web.replies import PEM_CHAIN, Headers, Reply, link, retry_after
from privyseal_ca.renewal.page import PAGE_POLICY

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
#: How long a client waits before it asks again for what is being worked on, in seconds.
_POLL = 1
_NO_STORE: Headers = (("Cache-Control", "no-store"),)
_PAGE: Headers = (
    ("Cache-Control", "public, max-age=300"),
    ("Content-Security-Policy", PAGE_POLICY),
    ("X-Content-Type-Options", "nosniff"),
)
_ID = "[A-Za-z0-9_-]{22}"
_CHALLENGE = "[a-z0-9-]{1,32}"


class Routes:
    """The handlers. Each takes an authenticated request apart, calls one flow, and says it in HTTP."""

    def __init__(
        self,
        context: Context,
        authenticator: Authenticator,
        *,
        account_flow: AccountFlow,
        order_flow: OrderFlow,
        authorization_flow: AuthorizationFlow,
        certificate_flow: CertificateFlow,
        desk: IssuanceDesk,
    ) -> None:
        self._context = context
        self._urls = context.urls
        self._authenticator = authenticator
        self._accounts = account_flow
        self._orders = order_flow
        self._authorizations = authorization_flow
        self._certificates = certificate_flow
        self._desk = desk
        self._directory = self._make_directory()

    def table(self) -> list[web.RouteDef]:
        """Path, handler and what authenticates it."""
        account, key = self._authenticator.by_account, self._authenticator.by_key
        either = self._authenticator.by_account_or_key
        signed = [
            ("/acme/directory", account, self.read_directory),
            ("/acme/new-nonce", account, self.read_nonce),
            ("/acme/new-account", key, self.new_account),
            ("/acme/new-order", account, self.new_order),
            ("/acme/new-authz", account, self.new_authz),
            ("/acme/revoke-cert", either, self.revoke_cert),
            ("/acme/key-change", account, self.key_change),
            (f"/acme/account/{{id:{_ID}}}", account, self.account),
            (f"/acme/account/{{id:{_ID}}}/orders", account, self.orders),
            (f"/acme/order/{{id:{_ID}}}", account, self.order),
            (f"/acme/order/{{id:{_ID}}}/finalize", account, self.finalize),
            (f"/acme/authz/{{id:{_ID}}}", account, self.authorization),
            (f"/acme/authz/{{id:{_ID}}}/{{type:{_CHALLENGE}}}", account, self.challenge),
            ("/acme/certificate/{serial:[0-9a-f]{32}}", account, self.certificate),
            ("/acme/certificate/{serial:[0-9a-f]{32}}/{chain:[1-9][0-9]?}", account, self.certificate),
        ]
        unsigned = [
            web.get("/acme/directory", self.get_directory, allow_head=True),
            web.get("/acme/new-nonce", self.get_nonce, allow_head=False),
            web.head("/acme/new-nonce", self.head_nonce),
            web.get("/acme/renewal-info/{id:[A-Za-z0-9_.=-]{1,128}}", self.renewal_info, allow_head=False),
            web.get("/acme/renewal-explained/{id:[A-Za-z0-9_.=-]{1,128}}", self.explanation, allow_head=False),
            web.get("/acme/limits", self.get_limits, allow_head=False),
        ]
        return unsigned + [web.post(path, _signed(authenticate, handler)) for path, authenticate, handler in signed]

    # Directory and nonces (sections 7.1.1 and 7.2)

    async def get_directory(self, _: web.Request) -> web.StreamResponse:
        """The directory, for everybody."""
        return Reply(self._directory).response()

    async def read_directory(self, _: web.Request, signed: Authenticated) -> Reply:
        """The directory by POST-as-GET (section 6.3)."""
        _require_post_as_get(signed)
        return Reply(self._directory)

    async def head_nonce(self, _: web.Request) -> web.StreamResponse:
        """A nonce by HEAD: 200; the middleware adds the nonce itself."""
        return Reply(headers=_NO_STORE).response()

    async def get_nonce(self, _: web.Request) -> web.StreamResponse:
        """A nonce by GET: 204."""
        return Reply(status=204, headers=_NO_STORE).response()

    async def read_nonce(self, _: web.Request, signed: Authenticated) -> Reply:
        """A nonce by POST-as-GET."""
        _require_post_as_get(signed)
        return Reply(status=204, headers=_NO_STORE)

    async def get_limits(self, _: web.Request) -> web.StreamResponse:
        """What the ``help`` link of a rate limit points to."""
        limits = self._context.settings.limits
        return Reply(limits.model_dump()).response()

    # Accounts (section 7.3)

    async def new_account(self, request: web.Request, signed: Authenticated) -> Reply:
        """Make an account, or find it."""
        message = parse_message(NewAccount, signed.payload)
        result = await self._accounts.create(
            signed.key,
            message,
            url=signed.url,
            address=request.remote or "",
            correlation=request[CORRELATION],
        )
        note(request, account=result.account.id)
        return Reply(
            account_object(result.account, self._urls),
            201 if result.created else 200,
            (("Location", self._urls.account(result.account.id)),),
        )

    async def account(self, request: web.Request, signed: Authenticated) -> Reply:
        """Read or change an account. Its Location stands in newAccount's answer only: some clients stumble over it here."""
        account = signed.require_account()
        if account.id != request.match_info["id"]:
            raise unauthorized("The account is another one.")
        if not signed.is_post_as_get:
            message = parse_message(AccountUpdate, signed.payload)
            account = await self._accounts.update(account, message, request[CORRELATION])
        return Reply(account_object(account, self._urls))

    async def orders(self, request: web.Request, signed: Authenticated) -> Reply:
        """The account's orders, a page at a time (section 7.1.2.1)."""
        _require_post_as_get(signed)
        account_id = request.match_info["id"]
        page = await self._orders.page(signed.require_account(), account_id, request.query.get("cursor"))
        headers: Headers = ()
        if page.cursor is not None:
            headers = (link(f"{self._urls.orders(account_id)}?cursor={page.cursor}", "next"),)
        return Reply({"orders": [self._urls.order(order_id) for order_id in page.ids]}, headers=headers)

    async def key_change(self, request: web.Request, signed: Authenticated) -> Reply:
        """Give the account another key (section 7.3.5)."""
        account = await self._accounts.change_key(
            signed.require_account(), signed.payload, url=signed.url, correlation=request[CORRELATION]
        )
        return Reply(
            account_object(account, self._urls),
            headers=(("Location", self._urls.account(account.id)),),
        )

    # Orders (section 7.4)

    async def new_order(self, request: web.Request, signed: Authenticated) -> Reply:
        """Make an order."""
        message = parse_message(NewOrder, signed.payload)
        view = await self._orders.create(signed.require_account(), message, request[CORRELATION])
        note(request, order=view.row.id)
        return self._order_reply(view, 201)

    async def order(self, request: web.Request, signed: Authenticated) -> Reply:
        """Read an order."""
        _require_post_as_get(signed)
        view = await self._orders.read(signed.require_account(), request.match_info["id"])
        return self._order_reply(view)

    async def finalize(self, request: web.Request, signed: Authenticated) -> Reply:
        """Hand in the CSR."""
        message = parse_message(Finalize, signed.payload)
        order_id = request.match_info["id"]
        note(request, order=order_id)
        view = await self._desk.finalize(signed.require_account(), order_id, message, request[CORRELATION])
        note(request, serial=view.row.serial)
        return self._order_reply(view)

    def _order_reply(self, view: OrderView, status: int = 200) -> Reply:
        document = self._orders.document(view)
        headers = [("Location", self._urls.order(view.row.id))]
        if document["status"] == "processing":
            headers.append(retry_after(_POLL))
        return Reply(document, status, headers)

    # Authorizations and challenges (sections 7.4.1 and 7.5)

    async def new_authz(self, request: web.Request, signed: Authenticated) -> Reply:
        """Make an authorization ahead of an order."""
        message = parse_message(NewAuthz, signed.payload)
        row = await self._authorizations.create(signed.require_account(), message, request[CORRELATION])
        return Reply(
            self._authorizations.document(row),
            201,
            (("Location", self._urls.authorization(row.id)),),
        )

    async def authorization(self, request: web.Request, signed: Authenticated) -> Reply:
        """Read or deactivate an authorization."""
        account, authorization_id = signed.require_account(), request.match_info["id"]
        if signed.is_post_as_get:
            row = await self._authorizations.read(account, authorization_id)
        else:
            parse_message(AuthorizationUpdate, signed.payload)
            row = await self._authorizations.deactivate(account, authorization_id, request[CORRELATION])
        headers = (retry_after(_POLL),) if row.state == "processing" else ()
        return Reply(self._authorizations.document(row), headers=headers)

    async def challenge(self, request: web.Request, signed: Authenticated) -> Reply:
        """Read a challenge, or say that it can be validated now."""
        account, challenge_type = signed.require_account(), request.match_info["type"]
        authorization_id = request.match_info["id"]
        if signed.is_post_as_get:
            row = await self._authorizations.challenge(account, authorization_id, challenge_type)
        else:
            parse_message(ChallengeResponse, signed.payload)
            row = await self._authorizations.respond(account, authorization_id, challenge_type, request[CORRELATION])
        headers = [link(self._urls.authorization(authorization_id), "up")]
        if row.state == "processing":
            headers.append(retry_after(_POLL))
        return Reply(self._authorizations.challenge_document(row, challenge_type), headers=headers)

    # Certificates (sections 7.4.2 and 7.6, RFC 9773)

    async def certificate(self, request: web.Request, signed: Authenticated) -> Reply:
        """Download a certificate with one of its chains."""
        _require_post_as_get(signed)
        serial, index = request.match_info["serial"], int(request.match_info.get("chain", "0"))
        chain = await self._certificates.chain(signed.require_account(), serial, index)
        headers = [
            link(self._urls.certificate(serial, other), "alternate") for other in range(chain.count) if other != index
        ]
        return Reply(chain.pem.encode(), headers=headers, content_type=PEM_CHAIN)

    async def revoke_cert(self, request: web.Request, signed: Authenticated) -> Reply:
        """Revoke a certificate; an empty answer says that it is done."""
        message = parse_message(RevokeCert, signed.payload)
        await self._certificates.revoke(
            message,
            account=signed.account,
            key=None if signed.account else signed.key,
            correlation=request[CORRELATION],
        )
        return Reply()

    async def renewal_info(self, request: web.Request) -> web.StreamResponse:
        """When to renew a certificate; unauthenticated (RFC 9773 section 4.1)."""
        document, seconds = await self._certificates.renewal.info(request.match_info["id"])
        return Reply(document, headers=(retry_after(seconds),)).response()

    async def explanation(self, request: web.Request) -> web.StreamResponse:
        """The page behind explanationURL (RFC 9773 section 4.2)."""
        page = await self._certificates.renewal.explanation(request.match_info["id"])
        return Reply(page.encode(), headers=_PAGE, content_type="text/html; charset=utf-8").response()

    def _make_directory(self) -> dict[str, Any]:
        settings = self._context.settings
        meta: dict[str, Any] = {
            "externalAccountRequired": settings.acme.external_account_required,
            "profiles": {name: profile.description for name, profile in self._context.profiles.items()},
        }
        if settings.acme.terms_of_service:
            meta["termsOfService"] = settings.acme.terms_of_service
        if settings.acme.website:
            meta["website"] = settings.acme.website
        if settings.validation.caa:
            meta["caaIdentities"] = list(settings.validation.caa_identities)
        urls = self._urls
        return {
            "newNonce": urls.new_nonce,
            "newAccount": urls.new_account,
            "newOrder": urls.new_order,
            "newAuthz": urls.new_authz,
            "revokeCert": urls.revoke_cert,
            "keyChange": urls.key_change,
            "renewalInfo": urls.renewal_info,
            "meta": meta,
        }


def _signed(
    authenticate: Callable[[web.Request], Awaitable[Authenticated]],
    handler: Callable[[web.Request, Authenticated], Awaitable[Reply]],
) -> Handler:
    async def run(request: web.Request) -> web.StreamResponse:
        signed = await authenticate(request)
        if signed.account is not None:
            note(request, account=signed.account.id)
        return (await handler(request, signed)).response()

    return run


def _require_post_as_get(signed: Authenticated) -> None:
    if not signed.is_post_as_get:
        raise malformed("The resource is read by POST-as-GET, whose payload is empty (RFC 8555 section 6.3).")
