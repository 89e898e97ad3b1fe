"""Orders: newOrder, reading, and the list (RFC 8555 section 7.4)."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from privyseal_acme.flow.context import Context
from privyseal_acme.flow.fleet_notes import Subject, names_of, printable
from privyseal_acme.flow.objects import order_object
from privyseal_acme.protocol.ari import parse_certificate_id
from privyseal_acme.protocol.encoding import decode, encode
from privyseal_acme.protocol.messages import IdentifierMessage, NewOrder
from privyseal_acme.protocol.problems import (
    Problem,
    Subproblem,
    malformed,
    problem_for,
    rate_limited,
    unauthorized,
)
from privyseal_acme.protocol.transitions import AuthorizationStatus, OrderStatus, authorization_status, order_status
from privyseal_acme.protocol.urls import new_resource_id
from privyseal_acme.store import authorizations, orders
from privyseal_acme.store.accounts import AccountRow
from privyseal_acme.store.authorizations import AuthorizationRow
from privyseal_acme.store.orders import OrderRow
from privyseal_ca.errors import IssuerNotValidError, NameRefusedError, PolicyError, PrivySealError, UnsupportedNameError
from privyseal_ca.identifiers import Identifier, parse_identifier
from privyseal_ca.issuance.constraints import check_constraints
from privyseal_ca.issuance.profile import Profile
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.issuance.template import check_validity
from privyseal_ca.policy.names import NamePolicy
from privyseal_ca.store.certificates import find_certificate
from privyseal_ca.store.statement import Transaction

#: Identifier types that can be proved by ACME challenges.
_PROVABLE = frozenset({"dns", "ip"})
_AFTER_EVERYTHING = (2**62, "")
#: Only the newest order that replaces a certificate can be anything else than invalid; of one second there may be some.
_REPLACING = 32


@dataclass(frozen=True, slots=True)
class OrderView:
    """An order with what its status depends on."""

    row: OrderRow
    statuses: tuple[AuthorizationStatus, ...]


@dataclass(frozen=True, slots=True)
class OrdersPage:
    """One page of an account's orders."""

    ids: tuple[str, ...]
    #: The cursor of the next page, or None on the last.
    cursor: str | None


class OrderFlow:
    """What can be done with orders, apart from finalizing them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def create(self, account: AccountRow, message: NewOrder, correlation: str) -> OrderView:
        """NewOrder: identifiers are checked before anything is stored; order and authorizations are born together."""
        try:
            return await self._create(account, message, correlation)
        except (Problem, PrivySealError) as error:
            subject = Subject(
                requester=account.actor,
                profile=printable(message.profile or self._usual_profile(self._allowed_profiles(account))),
                names=names_of(message.identifiers),
                replaces=message.replaces,
            )
            problem = error if isinstance(error, Problem) else problem_for(error)
            self._context.fleet.failed(subject, problem, self._context.clock.now(), stage="order")
            raise

    async def _create(self, account: AccountRow, message: NewOrder, correlation: str) -> OrderView:
        context = self._context
        self._check_limits(account)
        profile = self._profile(message.profile, account)
        names = self._names(message.identifiers, account, profile)
        not_before = message.not_before.timestamp() if message.not_before else None
        not_after = message.not_after.timestamp() if message.not_after else None
        self._check_issuers(profile, names, not_before, not_after)
        now = int(context.clock.now())

        def unit(transaction: Transaction) -> OrderView:
            if message.replaces is not None:
                self._check_replaces(transaction, message.replaces, account, names, now)
            rows = [self._authorization(transaction, account, name, now, correlation) for name in names]
            order = OrderRow(
                id=new_resource_id(now, context.random_bytes(12)),
                account_id=account.id,
                state="open",
                created=now,
                expires=now + context.settings.acme.order_lifetime,
                identifiers=orjson.dumps([(name.type, name.value) for name in names]).decode(),
                authorizations=orjson.dumps([row.id for row in rows]).decode(),
                profile=profile.name,
                not_before=None if not_before is None else int(not_before),
                not_after=None if not_after is None else int(not_after),
                replaces=message.replaces,
                csr=None,
                serial=None,
                error=None,
                correlation=correlation,
            )
            orders.add_order(transaction, order)
            return OrderView(order, tuple(_status(row.state, row.expires, now) for row in rows))

        view = await context.store.write(unit)
        context.limits.new_orders.count(account.id)
        return view

    async def read(self, account: AccountRow, order_id: str) -> OrderView:
        """An order of ``account``.

        Raises:
            Problem: malformed with status 404 when it does not exist, unauthorized when it is somebody else's.
        """
        now = self._context.clock.now()

        def unit(transaction: Transaction) -> OrderView | None:
            row = orders.find_order(transaction, order_id)
            return None if row is None else view_of(transaction, row, now)

        view = await self._context.store.read(unit)
        if view is None:
            raise malformed("There is no such order.", status=404)
        if view.row.account_id != account.id:
            raise unauthorized("The order belongs to another account.")
        return view

    async def page(self, account: AccountRow, account_id: str, cursor: str | None) -> OrdersPage:
        """One page of the account's orders, the newest first (section 7.1.2.1). Invalid orders are left out."""
        if account.id != account_id:
            raise unauthorized("The list belongs to another account.")
        count = self._context.settings.acme.orders_page
        before = _AFTER_EVERYTHING if cursor is None else _parse_cursor(cursor)
        now = self._context.clock.now()

        def unit(transaction: Transaction) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
            rows = orders.page_of_orders(transaction, account.id, before=before, count=count + 1)
            return rows, tuple(order_id for order_id, _ in rows[:count] if _is_alive(transaction, order_id, now))

        rows, alive = await self._context.store.read(unit)
        cursor = None
        if len(rows) > count:
            order_id, created = rows[count - 1]
            cursor = encode(f"{created}:{order_id}".encode())
        return OrdersPage(alive, cursor)

    def document(self, view: OrderView) -> dict[str, Any]:
        """The order as its client sees it."""
        return order_object(view.row, view.statuses, self._context.urls, self._context.clock.now())

    def _check_limits(self, account: AccountRow) -> None:
        limits, urls = self._context.limits, self._context.urls
        if seconds := limits.new_orders.wait(account.id):
            raise rate_limited(
                "Too many new orders of this account.", limit="new_orders", seconds=seconds, help_url=urls.limits
            )
        if seconds := limits.failed_validations.wait(account.id):
            raise rate_limited(
                "Too many failed validations of this account.",
                limit="failed_validations",
                seconds=seconds,
                help_url=urls.limits,
            )

    def _allowed_profiles(self, account: AccountRow) -> Sequence[str]:
        """The profiles that ``account`` may use; none are named when it may use all of them."""
        policy = self._context.policy_of(account)
        return policy.profiles if policy is not None else ()

    def _usual_profile(self, allowed: Sequence[str]) -> str:
        """The name of the profile where a client asks for none."""
        default = self._context.settings.issuance.default_profile
        # The server picks one that the account may use (profiles draft section 4).
        return default if not allowed or default in allowed else allowed[0]

    def _profile(self, requested: str | None, account: AccountRow) -> Profile:
        context, allowed = self._context, self._allowed_profiles(account)
        name = self._usual_profile(allowed) if requested is None else requested
        profile = context.profiles.get(name)
        if profile is None or (allowed and name not in allowed):
            raise Problem(
                "invalidProfile",
                "There is no such profile for this account; the directory lists the profiles under meta.profiles.",
            )
        return profile

    def _names(
        self, identifiers: Sequence[IdentifierMessage], account: AccountRow, profile: Profile
    ) -> tuple[Identifier, ...]:
        """The identifiers in canonical form, each once, all of them allowed (P11)."""
        limit = self._context.settings.acme.max_identifiers
        if not 0 < len(identifiers) <= limit:
            raise malformed(f"An order has 1 to {limit} identifiers.")
        policy = self._context.policy_of(account)
        if policy is None:
            raise unauthorized("The policy of this account does not exist any more; ask the operators.")
        names: dict[Identifier, None] = {}
        refusals: list[Subproblem] = []
        for identifier in identifiers:
            try:
                names[check_name(identifier, policy)] = None
            except NameRefusedError as error:
                problem = problem_for(error)
                refusals.append(Subproblem(problem.type, problem.detail, identifier.type, identifier.value))
        if refusals:
            raise _refusal(refusals)
        profile.check_names(tuple(names))
        return tuple(names)

    def _check_issuers(
        self, profile: Profile, names: Sequence[Identifier], not_before: float | None, not_after: float | None
    ) -> None:
        """Some issuer of the profile must be able to certify the names for the time asked for (section 7.4)."""
        now = self._context.clock.now()
        refusal: PolicyError | None = None
        not_valid: IssuerNotValidError | None = None
        for issuer in self._context.authority.issuers.allowed(profile):
            try:
                for name in names:
                    check_constraints(name, issuer.identity.name_constraints)
                check_validity(profile, issuer.identity, not_before=not_before, not_after=not_after, now=now)
            except PolicyError as error:
                refusal = error
            except IssuerNotValidError as error:
                not_valid = error
            else:
                return
        if isinstance(refusal, NameRefusedError) or refusal is None:
            raise refusal or not_valid or Problem("invalidProfile", "No issuer of the profile is active.")
        raise malformed(str(refusal))

    def _check_replaces(
        self, transaction: Transaction, replaces: str, account: AccountRow, names: Sequence[Identifier], now: int
    ) -> None:
        """The predecessor must be this account's, share a name, and not be replaced yet (RFC 9773 section 5)."""
        key_id, serial = parse_certificate_id(replaces)
        row = find_certificate(transaction, serial_text(serial))
        if row is None or row.issuer_id != key_id.hex():
            raise malformed("The certificate to be replaced was not issued here.")
        if row.requester != account.actor:
            raise unauthorized("The certificate to be replaced belongs to another account.")
        if not {f"{name.type}:{name.value}" for name in names} & set(orjson.loads(row.names)):
            raise malformed("The order shares no name with the certificate to be replaced.")
        # An order whose authorization failed is invalid without its row saying so: its client may try again.
        replacing = orders.replacing_orders(transaction, replaces, count=_REPLACING)
        if any(_order_status(view_of(transaction, order, now), now) != "invalid" for order in replacing):
            raise Problem("alreadyReplaced", "Another order replaces this certificate already.")

    def _authorization(
        self, transaction: Transaction, account: AccountRow, name: Identifier, now: int, correlation: str
    ) -> AuthorizationRow:
        """A valid authorization that serves the order, or a new one."""
        settings = self._context.settings.acme
        usable = authorizations.find_usable(
            transaction,
            account.id,
            identifier_type=name.type,
            value=name.base,
            wildcard=name.wildcard,
            until=now + 60,
            only_reusable=not settings.reuse_authorizations,
        )
        if usable is not None:
            return usable
        row = new_authorization(self._context, account, name, now=now, reusable=False, correlation=correlation)
        authorizations.add_authorization(transaction, row)
        return row


def check_name(identifier: IdentifierMessage, policy: NamePolicy) -> Identifier:
    """An identifier of a request in canonical form, when ACME can prove it and ``policy`` allows it.

    Raises:
        NameRefusedError: it is malformed, of a type that ACME cannot prove, or not allowed.
    """
    if identifier.type not in _PROVABLE:
        raise UnsupportedNameError(
            identifier.type[:64],
            identifier.value[:256],
            "Only identifiers of type dns and ip can be ordered by ACME.",
        )
    name = parse_identifier(identifier.type, identifier.value)
    policy.check(name)
    return name


def new_authorization(
    context: Context, account: AccountRow, name: Identifier, *, now: int, reusable: bool, correlation: str
) -> AuthorizationRow:
    """A pending authorization for ``name``."""
    return AuthorizationRow(
        id=new_resource_id(now, context.random_bytes(12)),
        account_id=account.id,
        identifier_type=name.type,
        value=name.base,
        wildcard=int(name.wildcard),
        state="pending",
        created=now,
        expires=now + context.settings.acme.order_lifetime,
        reusable=int(reusable),
        seed=context.random_bytes(16),
        attempted=None,
        validated=None,
        error=None,
        correlation=correlation,
    )


def view_of(transaction: Transaction, row: OrderRow, now: float) -> OrderView:
    """``row`` with the statuses of its authorizations, which matter only while the order is open."""
    if row.state != "open":
        return OrderView(row, ())
    states = (
        authorizations.authorization_state(transaction, authorization_id)
        for authorization_id in orjson.loads(row.authorizations)
    )
    return OrderView(row, tuple(_status(state, expires, now) for state, expires in states))


def _is_alive(transaction: Transaction, order_id: str, now: float) -> bool:
    """Whether the order is anything but invalid; its authorizations or the time may have made it so since it was written."""
    row = orders.find_order(transaction, order_id)
    return row is not None and _order_status(view_of(transaction, row, now), now) != "invalid"


def _order_status(view: OrderView, now: float) -> OrderStatus:
    return order_status(view.row.state, view.row.expires, view.statuses, now)  # type: ignore[arg-type]


def _status(state: str, expires: int, now: float) -> AuthorizationStatus:
    return authorization_status(state, expires, now)  # type: ignore[arg-type]


def _refusal(refusals: Sequence[Subproblem]) -> Problem:
    """One problem for all identifiers that were refused (section 6.7.1)."""
    if len(refusals) == 1:
        only = refusals[0]
        return Problem(only.type, only.detail, subproblems=refusals)
    kinds = {refusal.type for refusal in refusals}
    kind = kinds.pop() if len(kinds) == 1 else "compound"
    return Problem(kind, f"{len(refusals)} identifiers were refused; the subproblems say why.", subproblems=refusals)


def _parse_cursor(cursor: str) -> tuple[int, str]:
    created, order_id = -1, ""
    with suppress(ValueError):
        time, _, order_id = decode(cursor[:128]).decode().partition(":")
        created = int(time)
    if not 0 <= created <= _AFTER_EVERYTHING[0] or not order_id.isprintable():
        raise malformed("The cursor is not one that this server made.")
    return created, order_id
