"""Accounts whose key is compromised are ended: whoever has the key could order in their name.

Blocked keys are looked for by themselves, not in each request: the row that a request reads anyway says that its account has
ended. Operators block keys in processes of their own, so the sweep finds theirs; what ACME blocks ends the account at once.
"""

from collections.abc import Callable
from functools import partial

import orjson
import structlog

from privyseal_acme.protocol.problems import unauthorized
from privyseal_acme.protocol.urls import new_id
from privyseal_acme.store import accounts, authorizations, orders
from privyseal_acme.store.blocked import valid_accounts_of_blocked_keys, valid_accounts_of_key
from privyseal_ca.clock import Clock
from privyseal_ca.ledger.entries import SERVICE_ACTOR, Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.engine import Store
from privyseal_ca.store.revoking import count_blocked_keys
from privyseal_ca.store.statement import Transaction

_log = structlog.get_logger("accounts")

_BATCH = 50


def end_accounts_of_key(transaction: Transaction, spki_sha256: bytes, *, correlation: str, now: float) -> None:
    """End the account that signs with a key which was just blocked, if there is one."""
    for account_id in valid_accounts_of_key(transaction, spki_sha256):
        _end(transaction, account_id, correlation=correlation, now=now)


class BlockedAccounts:
    """Ends the accounts of keys that others have blocked."""

    def __init__(self, store: Store, clock: Clock, random_bytes: Callable[[int], bytes]) -> None:
        self._store = store
        self._clock = clock
        self._random_bytes = random_bytes
        #: How many keys were blocked when none of them had an account.
        self._clean = -1

    async def sweep(self) -> int:
        """End what there is; how many accounts. One short read when no key was blocked since the last time.

        Raises:
            StoreUnavailableError: the database failed; the next sweep goes on.
        """
        count = await self._store.read(count_blocked_keys)
        if count == self._clean:
            return 0
        ended = 0
        while found := await self._store.read(lambda tx: valid_accounts_of_blocked_keys(tx, count=_BATCH)):
            correlation = new_id(self._random_bytes(16))
            ended += await self._store.write(partial(self._end_all, account_ids=found, correlation=correlation))
            _log.warning("accounts with compromised keys deactivated", accounts=found, correlation=correlation)
        self._clean = count
        return ended

    def _end_all(self, transaction: Transaction, account_ids: list[str], correlation: str) -> int:
        now = self._clock.now()
        return sum(_end(transaction, account_id, correlation=correlation, now=now) for account_id in account_ids)


def _end(transaction: Transaction, account_id: str, *, correlation: str, now: float) -> bool:
    """As the account's owner could (RFC 8555 section 7.3.6): pending work is cancelled, certificates stay valid."""
    if not accounts.deactivate_account(transaction, account_id):
        return False
    error = orjson.dumps(unauthorized("The account was deactivated: its key is compromised.").document()).decode()
    cancelled = orders.cancel_open_orders(transaction, account_id, error)
    given_up = authorizations.deactivate_all(transaction, account_id)
    append(
        transaction,
        encode_entry(
            Kind.ACCOUNT_DEACTIVATED,
            time=now,
            actor=SERVICE_ACTOR,
            correlation=correlation,
            payload={
                "account": account_id,
                "authorizations": given_up,
                "orders": cancelled,
                "reason": "keyCompromise",
            },
        ),
    )
    return True
