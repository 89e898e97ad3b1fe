"""``privyseal account``."""

import json
from typing import Any

import click

from privyseal_acme.cli.attributes import described, description_of, description_options
from privyseal_acme.flow.administration import deactivate_account, describe_account, require_account
from privyseal_acme.store.accounts import AccountRow, list_accounts
from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.text import moment, table, when
from privyseal_ca.fleet.attributes import parse_attributes

_MAX_LISTED = 10_000


@click.group("account", cls=Group)
def account() -> None:
    """List, show, describe and deactivate ACME accounts."""


@account.command("list")
@click.option("--after", default="", metavar="ID", help="Begin after this account, for the next page.")
@click.option("--count", type=click.IntRange(1, _MAX_LISTED), default=100, show_default=True, help="How many at most.")
@pass_invocation
def list_command(invocation: Invocation, after: str, count: int) -> None:
    """List accounts in the order of their ids."""

    async def work() -> list[AccountRow]:
        async with opened_store(settings_of(invocation)) as store:
            return await store.read(lambda tx: list_accounts(tx, after=after, count=count))

    rows = run(work())
    invocation.result(
        [_document(row) for row in rows],
        table(
            ("ID", "STATUS", "POLICY", "CREATED", "CONTACT"),
            [(row.id, row.status, row.policy, when(row.created), " ".join(json.loads(row.contact))) for row in rows],
        ),
    )


@account.command("show")
@click.argument("account_id", metavar="ID")
@pass_invocation
def show(invocation: Invocation, account_id: str) -> None:
    """Show an account."""

    async def work() -> AccountRow:
        async with opened_store(settings_of(invocation)) as store:
            return await store.read(lambda tx: require_account(tx, account_id))

    row = run(work())
    invocation.result(_document(row), _text(row))


@account.command("describe")
@click.argument("account_id", metavar="ID")
@description_options
@pass_invocation
def describe(invocation: Invocation, account_id: str, **options: Any) -> None:
    """Say whose the workloads of an account are, in place of all that was said before.

    It counts before what the account's external account key says, and after the rules of the settings (`fleet.rules`).
    """
    surroundings, attributes = surroundings_of(invocation), description_of(options)

    async def work() -> AccountRow:
        async with opened_store(settings_of(invocation)) as store:
            return await store.write(
                lambda tx: describe_account(
                    tx,
                    account_id,
                    attributes,
                    actor=surroundings.actor,
                    correlation=surroundings.correlation,
                    now=surroundings.clock.now(),
                )
            )

    row = run(work())
    invocation.result(_document(row), f"id            {account_id}\n{described(attributes)}")


@account.command("deactivate")
@click.argument("account_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_invocation
def deactivate(invocation: Invocation, account_id: str, **options: bool) -> None:
    """End an account, for good. Its open orders are cancelled, its certificates stay valid."""
    invocation.confirm(f"Deactivate the account {account_id}?", yes=options["yes"])
    surroundings = surroundings_of(invocation)

    async def work() -> AccountRow:
        async with opened_store(settings_of(invocation)) as store:
            return await store.write(
                lambda tx: deactivate_account(
                    tx,
                    account_id,
                    actor=surroundings.actor,
                    correlation=surroundings.correlation,
                    now=surroundings.clock.now(),
                )
            )

    run(work())
    invocation.result({"id": account_id, "status": "deactivated"}, f"The account {account_id} is deactivated.")


def _text(row: AccountRow) -> str:
    members = _document(row)
    attributes = parse_attributes(row.attributes)
    shown = {
        **members,
        "contact": " ".join(members["contact"]) or "-",
        "terms_agreed": "yes" if members["terms_agreed"] else "no",
        "narrowing": json.dumps(members["narrowing"]) if members["narrowing"] else "-",
        "eab_kid": members["eab_kid"] or "-",
    }
    del shown["attributes"]
    lines = [f"{key:<13} {value}" for key, value in shown.items()]
    return "\n".join([*lines, described(attributes)] if attributes else lines)


def _document(row: AccountRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "status": row.status,
        "thumbprint": row.thumbprint,
        "contact": json.loads(row.contact),
        "terms_agreed": bool(row.terms_agreed),
        "policy": row.policy,
        "narrowing": json.loads(row.narrowing) if row.narrowing else None,
        "eab_kid": row.eab_kid,
        "created": moment(row.created),
        "attributes": parse_attributes(row.attributes).document(),
    }
