"""``privyseal eab``: keys for external account binding."""

import json
from typing import Any

import click

from privyseal_acme.cli.attributes import (
    attribute_options,
    attributes_of,
    described,
    description_of,
    description_options,
)
from privyseal_acme.flow.eab import EabKeys, Narrowing, NewEabKey
from privyseal_acme.opening import nonce_key
from privyseal_acme.store.eab import EabKeyRow, list_eab_keys
from privyseal_ca.ceremony.keys import WRAPPING_KEY_FACT
from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import every, opened_hsm, opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.text import duration, moment, table, when
from privyseal_ca.config import Settings
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.fleet.attributes import parse_attributes
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact


@click.group("eab", cls=Group)
def eab() -> None:
    """Create, list and revoke keys that bind ACME accounts."""


@eab.command("create")
@click.option("--policy", default="default", show_default=True, help="Policy of the accounts that the key binds.")
@click.option("--allow-dns", multiple=True, metavar="SUFFIX", help="Only DNS names in this suffix. Repeatable.")
@click.option("--allow-ip", multiple=True, metavar="NETWORK", help="Only addresses in this network. Repeatable.")
@click.option("--allow-uri", multiple=True, metavar="PREFIX", help="Only URIs with this prefix. Repeatable.")
@click.option("--expires", type=duration, metavar="DURATION", help="How long it can be used, such as 30d or 12h.")
@click.option(
    "--uses", type=click.IntRange(min=1), metavar="N", help="How many accounts it binds. Default: any number."
)
@click.option("--single-use", is_flag=True, help="The same as --uses 1.")
@click.option("--label", default="", help="What people call it.")
@attribute_options
@pass_invocation
def create(invocation: Invocation, **options: Any) -> None:
    """Create a key and show its secret, this once.

    As soon as one --allow option is given, names of the other types are refused. Who owns the workloads of the accounts
    that it binds is shown by `privyseal fleet`; rules of the settings and `privyseal account describe` say it more closely.
    """
    if options["single_use"] and options["uses"] is not None:
        raise click.UsageError("--single-use and --uses exclude each other.")
    settings = settings_of(invocation)
    made = run(_create(invocation, settings, options))
    directory = f"{settings.server.public_https}/acme/directory"
    invocation.result(
        {**_document(made.row), "hmac_key": made.hmac_key, "directory": directory},
        f"kid       {made.row.kid}\n"
        f"hmac key  {made.hmac_key}\n\n"
        f"certbot register --server {directory} --eab-kid {made.row.kid} --eab-hmac-key {made.hmac_key}\n\n"
        "The secret is not shown again.",
    )


async def _create(invocation: Invocation, settings: Settings, options: dict[str, Any]) -> NewEabKey:
    async with opened_store(settings) as store, opened_hsm(settings) as hsm:
        uri = await store.read(lambda tx: find_fact(tx, WRAPPING_KEY_FACT))
        if uri is None:
            raise ConfigurationError("This authority has no wrapping key.", hint="Run `privyseal doctor`.")
        key = await hsm.open_wrapping_key(uri)
        # A token with another key under that name would wrap what the service cannot open.
        await nonce_key(store, key)
        return await _keys(invocation, settings, store).create(
            key,
            policy=options["policy"],
            narrowing=Narrowing(options["allow_dns"], options["allow_ip"], options["allow_uri"]),
            label=options["label"],
            lifetime=options["expires"],
            max_uses=1 if options["single_use"] else options["uses"],
            attributes=attributes_of(options),
        )


@eab.command("describe")
@click.argument("kid")
@description_options
@pass_invocation
def describe(invocation: Invocation, kid: str, **options: Any) -> None:
    """Say whose the workloads are of the accounts that a key bound, in place of all that was said before."""
    settings, attributes = settings_of(invocation), description_of(options)

    async def work() -> EabKeyRow:
        async with opened_store(settings) as store:
            return await _keys(invocation, settings, store).describe(kid, attributes)

    row = run(work())
    invocation.result(_document(row), f"kid           {kid}\n{described(attributes)}")


@eab.command("list")
@pass_invocation
def list_keys(invocation: Invocation) -> None:
    """List the keys, without their secrets."""

    async def work() -> list[EabKeyRow]:
        async with opened_store(settings_of(invocation)) as store:
            return await every(store, list_eab_keys, lambda row: row.kid)

    rows = run(work())
    now = surroundings_of(invocation).clock.now()
    invocation.result(
        [_document(row) for row in rows],
        table(
            ("KID", "STATE", "POLICY", "USES", "EXPIRES", "OWNER", "LABEL"),
            [
                (
                    row.kid,
                    _state(row, now),
                    row.policy,
                    f"{row.uses}/{'any' if row.max_uses is None else row.max_uses}",
                    when(row.expires),
                    parse_attributes(row.attributes).owner or "-",
                    row.label,
                )
                for row in rows
            ],
        ),
    )


@eab.command("revoke")
@click.argument("kid")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_invocation
def revoke(invocation: Invocation, kid: str, yes: bool) -> None:
    """Make a key unusable. Accounts that it bound stay."""
    invocation.confirm(f"Revoke the key {kid}?", yes=yes)
    settings = settings_of(invocation)

    async def work() -> None:
        async with opened_store(settings) as store:
            await _keys(invocation, settings, store).revoke(kid)

    run(work())
    invocation.result({"kid": kid, "revoked": True}, f"The key {kid} is revoked.")


def _keys(invocation: Invocation, settings: Settings, store: Store) -> EabKeys:
    surroundings = surroundings_of(invocation)
    return EabKeys(
        store=store,
        clock=surroundings.clock,
        random_bytes=surroundings.random_bytes,
        policies=settings.policy,
        actor=surroundings.actor,
        correlation=surroundings.correlation,
    )


def _state(row: EabKeyRow, now: float) -> str:
    if row.revoked is not None:
        return "revoked"
    if row.expires is not None and row.expires <= now:
        return "expired"
    return "used up" if row.max_uses is not None and row.uses >= row.max_uses else "usable"


def _document(row: EabKeyRow) -> dict[str, Any]:
    return {
        "kid": row.kid,
        "label": row.label,
        "policy": row.policy,
        "narrowing": json.loads(row.narrowing) if row.narrowing else None,
        "uses": row.uses,
        "max_uses": row.max_uses,
        "created": moment(row.created),
        "expires": moment(row.expires),
        "revoked": moment(row.revoked),
        "attributes": parse_attributes(row.attributes).document(),
    }
