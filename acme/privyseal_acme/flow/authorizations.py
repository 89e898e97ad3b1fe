"""Authorizations and challenges (RFC 8555 sections 7.4.1 and 7.5)."""

from typing import Any

from privyseal_acme.flow.context import Context
from privyseal_acme.flow.objects import authorization_object, challenge_object, offered_challenges
from privyseal_acme.flow.orders import check_name, new_authorization
from privyseal_acme.flow.validation import ValidationQueue
from privyseal_acme.protocol.messages import NewAuthz
from privyseal_acme.protocol.problems import Problem, malformed, problem_for, rate_limited, unauthorized
from privyseal_acme.protocol.transitions import authorization_status
from privyseal_acme.store import authorizations
from privyseal_acme.store.accounts import AccountRow
from privyseal_acme.store.authorizations import AuthorizationRow
from privyseal_ca.errors import NameRefusedError
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.statement import Transaction


class AuthorizationFlow:
    """What can be done with authorizations and their challenges."""

    def __init__(self, context: Context, queue: ValidationQueue) -> None:
        self._context = context
        self._queue = queue

    async def create(self, account: AccountRow, message: NewAuthz, correlation: str) -> AuthorizationRow:
        """NewAuthz: an authorization ahead of any order (section 7.4.1). A valid one that is there already is the answer."""
        context = self._context
        if message.identifier.value.startswith("*."):
            raise malformed("An authorization cannot be made for a wildcard ahead of an order.")
        if seconds := context.limits.new_orders.wait(account.id):
            raise rate_limited(
                "Too many new orders and authorizations of this account.",
                limit="new_orders",
                seconds=seconds,
                help_url=context.urls.limits,
            )
        policy = context.policy_of(account)
        if policy is None:
            raise unauthorized("The policy of this account does not exist any more; ask the operators.")
        try:
            name = check_name(message.identifier, policy)
        except NameRefusedError as error:
            refused = problem_for(error)
            raise Problem(refused.type, refused.detail, status=403) from error
        now = int(context.clock.now())

        def unit(transaction: Transaction) -> AuthorizationRow:
            usable = authorizations.find_usable(
                transaction,
                account.id,
                identifier_type=name.type,
                value=name.base,
                wildcard=False,
                until=now + 60,
                only_reusable=True,
            )
            if usable is not None:
                return usable
            row = new_authorization(context, account, name, now=now, reusable=True, correlation=correlation)
            authorizations.add_authorization(transaction, row)
            return row

        authorization = await context.store.write(unit)
        context.limits.new_orders.count(account.id)
        return authorization

    async def read(self, account: AccountRow, authorization_id: str) -> AuthorizationRow:
        """An authorization of ``account``.

        Raises:
            Problem: malformed with status 404 when it does not exist, unauthorized when it is somebody else's.
        """
        row = await self._context.store.read(lambda tx: authorizations.find_authorization(tx, authorization_id))
        if row is None:
            raise malformed("There is no such authorization.", status=404)
        if row.account_id != account.id:
            raise unauthorized("The authorization belongs to another account.")
        return row

    async def deactivate(self, account: AccountRow, authorization_id: str, correlation: str) -> AuthorizationRow:
        """Give an authorization up (section 7.5.2)."""
        row = await self.read(account, authorization_id)
        now = self._context.clock.now()
        status = authorization_status(row.state, row.expires, now)  # type: ignore[arg-type]

        def unit(transaction: Transaction) -> AuthorizationRow:
            if status not in {"pending", "valid"} or not authorizations.deactivate(transaction, row.id):
                raise malformed("The authorization has ended already.")
            append(
                transaction,
                encode_entry(
                    Kind.AUTHORIZATION_DEACTIVATED,
                    time=now,
                    actor=account.actor,
                    correlation=correlation,
                    payload={"authorization": row.id, "identifier": f"{row.identifier_type}:{row.value}"},
                ),
            )
            changed = authorizations.find_authorization(transaction, row.id)
            return changed or row

        return await self._context.store.write(unit)

    async def challenge(self, account: AccountRow, authorization_id: str, challenge_type: str) -> AuthorizationRow:
        """The authorization with the challenge of the type."""
        row = await self.read(account, authorization_id)
        if challenge_type not in offered_challenges(row, self._context.settings.validation.challenges):
            raise malformed("The authorization has no such challenge.", status=404)
        return row

    async def respond(
        self, account: AccountRow, authorization_id: str, challenge_type: str, correlation: str
    ) -> AuthorizationRow:
        """The client is ready (section 7.5.1): validation begins in the background. A second response changes nothing."""
        context = self._context
        row = await self.challenge(account, authorization_id, challenge_type)
        now = int(context.clock.now())
        status = authorization_status(row.state, row.expires, now)  # type: ignore[arg-type]
        if row.attempted == challenge_type:
            if row.state == "processing":
                # Its first response may have been stored although it was answered with an error.
                self._queue.add(row, account)
            return row
        if status != "pending":
            raise malformed(f"The authorization is {status}; its challenges cannot be responded to.")
        if row.attempted is not None:
            raise malformed("Another challenge of the authorization is being validated.")
        if seconds := context.limits.failed_validations.wait(account.id):
            raise rate_limited(
                "Too many failed validations of this account.",
                limit="failed_validations",
                seconds=seconds,
                help_url=context.urls.limits,
            )
        self._queue.check_room(account)

        def unit(transaction: Transaction) -> AuthorizationRow:
            began = authorizations.begin_validation(
                transaction, row.id, challenge=challenge_type, correlation=correlation, now=now
            )
            current = authorizations.find_authorization(transaction, row.id)
            if current is None or (not began and current.attempted != challenge_type):
                raise malformed("Another challenge of the authorization is being validated.")
            return current

        begun = await context.store.write(unit)
        if begun.state == "processing":
            self._queue.add(begun, account)
        return begun

    def document(self, row: AuthorizationRow) -> dict[str, Any]:
        """The authorization as its client sees it."""
        context = self._context
        return authorization_object(row, context.settings.validation.challenges, context.urls, context.clock.now())

    def challenge_document(self, row: AuthorizationRow, challenge_type: str) -> dict[str, Any]:
        """The challenge as its client sees it."""
        return challenge_object(row, challenge_type, self._context.urls)
