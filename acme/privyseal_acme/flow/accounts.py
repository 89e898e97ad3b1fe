"""Accounts (RFC 8555 section 7.3)."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parseaddr
from typing import Any

import orjson

from privyseal_acme.flow.context import Context
from privyseal_acme.flow.limits import RateLimit, site_of
from privyseal_acme.protocol.jws import parse_jws
from privyseal_acme.protocol.keys import AccountKey, load_jwk, parse_jwk
from privyseal_acme.protocol.messages import AccountUpdate, KeyChange, NewAccount, parse_message
from privyseal_acme.protocol.problems import Problem, malformed, rate_limited, unauthorized
from privyseal_acme.protocol.urls import new_resource_id
from privyseal_acme.store import accounts, authorizations, orders
from privyseal_acme.store.accounts import AccountRow
from privyseal_acme.store.eab import EabKeyRow, find_eab_key, use_eab_key
from privyseal_ca.errors import KeyRefusedError, NameRefusedError, SignerMisconfiguredError, StoreConflictError
from privyseal_ca.identifiers import parse_email
from privyseal_ca.ledger.entries import Kind, Payload, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.certificates import blocked_key_reason
from privyseal_ca.store.statement import Transaction

_MAC_ALGORITHMS = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}
_MAX_EAB = 16_384
_TOO_MANY_CHANGES = "Too many changes of this account."


@dataclass(frozen=True, slots=True)
class NewAccountResult:
    """The account, and whether this request made it."""

    account: AccountRow
    created: bool


@dataclass(frozen=True, slots=True)
class _Binding:
    """A verified external account binding."""

    key: EabKeyRow
    jws: str


class AccountFlow:
    """What can be done with accounts."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def create(
        self, key: AccountKey, message: NewAccount, *, url: str, address: str, correlation: str
    ) -> NewAccountResult:
        """NewAccount: the account of ``key``, made when there is none (sections 7.3 and 7.3.1)."""
        context = self._context
        existing = await context.store.read(lambda tx: accounts.find_account_by_key(tx, key.thumbprint))
        if existing is not None:
            # The request's other members are ignored: the stored account is the answer.
            if existing.status != "valid":
                raise unauthorized("The account of this key was deactivated.", status=401)
            return NewAccountResult(existing, created=False)
        if message.only_return_existing:
            raise Problem("accountDoesNotExist", "There is no account for this key.")
        site = site_of(address)
        self._check_limit(
            "new_accounts", self._context.limits.new_accounts, site, "Too many new accounts from this address."
        )
        self._check_key(key)
        if context.settings.acme.terms_of_service and not message.terms_of_service_agreed:
            raise self._terms_required()
        contact = self._check_contacts(message.contact or ())
        binding = await self._check_binding(message.external_account_binding, key, url)
        row = AccountRow(
            id=new_resource_id(context.clock.now(), context.random_bytes(12)),
            status="valid",
            thumbprint=key.thumbprint,
            jwk=key.jwk,
            spki_sha256=key.spki_sha256,
            contact=orjson.dumps(contact).decode(),
            terms_agreed=int(message.terms_of_service_agreed),
            policy=binding.key.policy if binding else "default",
            narrowing=binding.key.narrowing if binding else None,
            eab_kid=binding.key.kid if binding else None,
            eab=binding.jws if binding else None,
            created=int(context.clock.now()),
        )
        try:
            await context.store.write(lambda tx: self._add(tx, row, correlation))
        except StoreConflictError:
            # Two requests with the same key met; the other one made the account.
            existing = await context.store.read(lambda tx: accounts.find_account_by_key(tx, key.thumbprint))
            if existing is None:
                raise
            return NewAccountResult(existing, created=False)
        context.limits.new_accounts.count(site)
        return NewAccountResult(row, created=True)

    async def update(self, account: AccountRow, message: AccountUpdate, correlation: str) -> AccountRow:
        """Change contacts or terms, or deactivate (sections 7.3.2, 7.3.3 and 7.3.6)."""
        if message.status is not None:
            if message.status != "deactivated":
                raise malformed("An account's status can only be changed to deactivated.")
            return await self._deactivate(account, correlation)
        if message.contact is None and not message.terms_of_service_agreed:
            return account
        self._check_limit("account_changes", self._context.limits.account_changes, account.id, _TOO_MANY_CHANGES)
        contact = account.contact
        if message.contact is not None:
            contact = orjson.dumps(self._check_contacts(message.contact)).decode()
        terms = bool(account.terms_agreed or message.terms_of_service_agreed)

        def unit(transaction: Transaction) -> AccountRow:
            if not accounts.set_contact(transaction, account.id, contact, terms_agreed=terms):
                raise unauthorized("The account was deactivated.", status=401)
            self._record(
                transaction,
                Kind.ACCOUNT_UPDATED,
                account.actor,
                correlation,
                {"contacts": len(orjson.loads(contact)), "terms_agreed": terms},
            )
            return _require(accounts.find_account(transaction, account.id))

        updated = await self._context.store.write(unit)
        self._context.limits.account_changes.count(account.id)
        return updated

    async def change_key(self, account: AccountRow, payload: bytes, *, url: str, correlation: str) -> AccountRow:
        """KeyChange (section 7.3.5). ``payload`` is the inner JWS, ``url`` that of the outer one."""
        inner = parse_jws(payload)
        if inner.jwk is None:
            raise malformed("The inner JWS of a key change must carry the new key as jwk.")
        if inner.nonce is not None:
            raise malformed("The inner JWS of a key change must not have a nonce.")
        if inner.url != url:
            raise malformed("The url of the inner JWS is not that of the outer one.")
        new_key = parse_jwk(inner.jwk)
        new_key.verify(inner.algorithm, inner.signature, inner.signing_input)
        message = parse_message(KeyChange, inner.payload)
        if message.account != self._context.urls.account(account.id):
            raise malformed("The account of the inner payload is not the account that signed the request.")
        if parse_jwk(message.old_key).thumbprint != account.thumbprint:
            raise malformed("The oldKey of the inner payload is not the account's key.")
        self._check_key(new_key)
        self._check_limit("account_changes", self._context.limits.account_changes, account.id, _TOO_MANY_CHANGES)
        changed = await self._context.store.write(lambda tx: self._set_key(tx, account, new_key, correlation))
        self._context.limits.account_changes.count(account.id)
        return changed

    def _set_key(self, transaction: Transaction, account: AccountRow, key: AccountKey, correlation: str) -> AccountRow:
        owner = accounts.find_account_by_key(transaction, key.thumbprint)
        if owner is not None:
            raise Problem(
                "malformed",
                "The new key belongs to an account already.",
                status=409,
                headers=(("Location", self._context.urls.account(owner.id)),),
            )
        changed = accounts.set_key(
            transaction,
            account.id,
            old_thumbprint=account.thumbprint,
            thumbprint=key.thumbprint,
            jwk=key.jwk,
            spki_sha256=key.spki_sha256,
        )
        if not changed:
            raise unauthorized("The account's key was changed, or the account deactivated, meanwhile.", status=401)
        self._record(
            transaction,
            Kind.ACCOUNT_KEY_CHANGED,
            account.actor,
            correlation,
            {"from_thumbprint": account.thumbprint, "to_thumbprint": key.thumbprint},
        )
        _refuse_blocked(transaction, key.spki_sha256)
        return _require(accounts.find_account(transaction, account.id))

    async def _deactivate(self, account: AccountRow, correlation: str) -> AccountRow:
        """Pending work is cancelled, certificates stay valid (section 7.3.6)."""
        reason = orjson.dumps(unauthorized("The account was deactivated.").document()).decode()

        def unit(transaction: Transaction) -> AccountRow:
            if not accounts.deactivate_account(transaction, account.id):
                raise unauthorized("The account was deactivated before.", status=401)
            cancelled = orders.cancel_open_orders(transaction, account.id, reason)
            given_up = authorizations.deactivate_all(transaction, account.id)
            self._record(
                transaction,
                Kind.ACCOUNT_DEACTIVATED,
                account.actor,
                correlation,
                {"account": account.id, "authorizations": given_up, "orders": cancelled},
            )
            return _require(accounts.find_account(transaction, account.id))

        return await self._context.store.write(unit)

    def _add(self, transaction: Transaction, row: AccountRow, correlation: str) -> None:
        if row.eab_kid is not None and not use_eab_key(transaction, row.eab_kid, row.created):
            raise unauthorized("The external account key is used up, expired or revoked.")
        accounts.add_account(transaction, row)
        self._record(
            transaction,
            Kind.ACCOUNT_CREATED,
            row.actor,
            correlation,
            {
                "eab_kid": row.eab_kid,
                "policy": row.policy,
                "spki_sha256": row.spki_sha256.hex(),
                "terms_agreed": bool(row.terms_agreed),
                "thumbprint": row.thumbprint,
            },
        )
        _refuse_blocked(transaction, row.spki_sha256)

    def _record(self, transaction: Transaction, kind: Kind, actor: str, correlation: str, payload: Payload) -> None:
        now = self._context.clock.now()
        append(transaction, encode_entry(kind, time=now, actor=actor, correlation=correlation, payload=payload))

    def _check_limit(self, name: str, limit: RateLimit, key: str, detail: str) -> None:
        if seconds := limit.wait(key):
            raise rate_limited(detail, limit=name, seconds=seconds, help_url=self._context.urls.limits)

    def _check_key(self, key: AccountKey) -> None:
        try:
            self._context.key_policy.check(key.public_key, spki_der=key.spki_der)
        except KeyRefusedError as error:
            raise Problem("badPublicKey", str(error)) from error

    def _terms_required(self) -> Problem:
        terms = self._context.settings.acme.terms_of_service
        return Problem(
            "userActionRequired",
            f"The terms of service at {terms} must be agreed to.",
            headers=(("Link", f'<{terms}>;rel="terms-of-service"'),),
            members={"instance": terms},
        )

    def _check_contacts(self, contacts: Sequence[str]) -> list[str]:
        """Contacts are mail addresses, each one alone and without header fields (section 7.3)."""
        if len(contacts) > self._context.settings.acme.max_contacts:
            raise Problem("invalidContact", f"More than {self._context.settings.acme.max_contacts} contacts.")
        for contact in contacts:
            scheme, colon, address = contact.partition(":")
            if not colon or len(contact) > 320:
                raise Problem("invalidContact", "A contact is not a mailto URL of reasonable length.")
            if scheme.lower() != "mailto":
                raise Problem("unsupportedContact", "Only mailto contacts are supported.")
            if "?" in address or "," in address or "%" in address or parseaddr(address)[1] != address:
                raise Problem("invalidContact", "A contact must be one plain mail address.")
            try:
                parse_email(address)
            except NameRefusedError as error:
                raise Problem("invalidContact", str(error)) from error
        return list(contacts)

    async def _check_binding(self, binding: dict[str, Any] | None, key: AccountKey, url: str) -> _Binding | None:
        """Verify an externalAccountBinding (section 7.3.4); None when there is none and none is needed."""
        context = self._context
        if binding is None:
            if context.settings.acme.external_account_required:
                raise Problem(
                    "externalAccountRequired",
                    "A new account needs an external account key. Ask the operators of this authority for one.",
                )
            return None
        encoded = orjson.dumps(binding)
        if len(encoded) > _MAX_EAB:
            raise malformed("The externalAccountBinding is too long.")
        jws = parse_jws(binding, algorithms=tuple(_MAC_ALGORITHMS))
        if jws.kid is None:
            raise malformed("The externalAccountBinding must name its key as kid.")
        if jws.nonce is not None:
            raise malformed("The externalAccountBinding must not have a nonce.")
        if jws.url != url:
            raise malformed("The url of the externalAccountBinding is not that of the request.")
        bound = _load_bound_key(jws.payload)
        if bound.thumbprint != key.thumbprint:
            raise malformed("The externalAccountBinding is for another key than the one that signed the request.")
        kid = jws.kid
        # PostgreSQL has no text with NUL in it, and no kid of ours has control characters.
        row = await context.store.read(lambda tx: find_eab_key(tx, kid)) if kid.isprintable() else None
        refused = unauthorized("The external account key is not known, or its MAC does not verify.")
        if row is None:
            raise refused
        try:
            secret = await context.wrapping_key.unwrap(row.wrapped, row.kid.encode())
        except SignerMisconfiguredError as error:
            raise Problem("serverInternal", "The external account key cannot be read.") from error
        mac = hmac.digest(secret, jws.signing_input, _MAC_ALGORITHMS[jws.algorithm])
        if not hmac.compare_digest(mac, jws.signature):
            raise refused
        return _Binding(row, encoded.decode())


def _refuse_blocked(transaction: Transaction, spki_sha256: bytes) -> None:
    """Looked at after the entry was appended: until the commit nobody else can block a key unseen."""
    if (reason := blocked_key_reason(transaction, spki_sha256)) is not None:
        raise Problem("badPublicKey", f"The key is blocked ({reason}). Make a new key.")


def _load_bound_key(payload: bytes) -> AccountKey:
    try:
        members = orjson.loads(payload)
    except orjson.JSONDecodeError:
        members = None
    if not isinstance(members, dict):
        raise malformed("The payload of the externalAccountBinding is not a JWK.")
    return parse_jwk(members)


def _require(row: AccountRow | None) -> AccountRow:
    if row is None:
        raise malformed("The account does not exist.")
    return row


def account_key(row: AccountRow) -> AccountKey:
    """The parsed key of an account."""
    return load_jwk(row.jwk)
