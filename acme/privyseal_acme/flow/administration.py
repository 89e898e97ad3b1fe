"""What operators do with accounts, beside what the accounts' owners can do themselves."""

import orjson

from privyseal_acme.protocol.problems import unauthorized
from privyseal_acme.store import accounts, authorizations, orders
from privyseal_acme.store.accounts import AccountRow
from privyseal_ca.errors import PolicyError
from privyseal_ca.fleet.attributes import Attributes
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.fleet import look_at_requester
from privyseal_ca.store.statement import Transaction


def require_account(transaction: Transaction, account_id: str) -> AccountRow:
    """The account with the id.

    Raises:
        PolicyError: there is none.
    """
    row = accounts.find_account(transaction, account_id)
    if row is None:
        raise PolicyError(
            f"There is no account {account_id[:64]!r}.", hint="`privyseal account list` shows those that there are."
        )
    return row


def deactivate_account(
    transaction: Transaction, account_id: str, *, actor: str, correlation: str, now: float
) -> AccountRow:
    """End an account as its owner could (RFC 8555 section 7.3.6): pending work is cancelled, certificates stay valid.

    Raises:
        PolicyError: there is no such account, or it has ended before.
    """
    row = require_account(transaction, account_id)
    if not accounts.deactivate_account(transaction, account_id):
        raise PolicyError(f"The account {account_id} is deactivated already.")
    reason = orjson.dumps(unauthorized("The account was deactivated by an administrator.").document()).decode()
    cancelled = orders.cancel_open_orders(transaction, account_id, reason)
    given_up = authorizations.deactivate_all(transaction, account_id)
    entry = encode_entry(
        Kind.ACCOUNT_DEACTIVATED,
        time=now,
        actor=actor,
        correlation=correlation,
        payload={"account": account_id, "authorizations": given_up, "orders": cancelled},
    )
    append(transaction, entry)
    return row


def describe_account(
    transaction: Transaction, account_id: str, attributes: Attributes, *, actor: str, correlation: str, now: float
) -> AccountRow:
    """Say whose the workloads of an account are, in place of what was said before.

    Raises:
        PolicyError: there is no such account.
    """
    row = require_account(transaction, account_id)
    accounts.set_account_attributes(transaction, account_id, attributes.text())
    look_at_requester(transaction, row.actor)
    entry = encode_entry(
        Kind.ACCOUNT_DESCRIBED,
        time=now,
        actor=actor,
        correlation=correlation,
        payload={"account": account_id, "attributes": attributes.document()},
    )
    append(transaction, entry)
    return row._replace(attributes=attributes.text())
