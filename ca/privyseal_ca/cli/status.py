"""``privyseal status``."""

from typing import Any

import click
from cryptography import x509

from privyseal_ca.cli.frame import Command, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.text import moment
from privyseal_ca.cli.version import program_version
from privyseal_ca.config import Settings
from privyseal_ca.doctor import service_state
from privyseal_ca.ledger.audit_tables import count_certificates
from privyseal_ca.ledger.log import size
from privyseal_ca.store.issuers import all_issuers, chains
from privyseal_ca.store.migrate import schema_is_current
from privyseal_ca.store.statement import Transaction


@click.command("status", cls=Command)
@pass_invocation
def status(invocation: Invocation) -> None:
    """Show the state of this authority."""
    settings = settings_of(invocation)
    now = surroundings_of(invocation).clock.now()

    async def work() -> dict[str, Any]:
        async with opened_store(settings) as store:
            return await store.read(lambda tx: _figures(tx, now))

    figures = run(work())
    document = _surroundings(settings) | figures
    issuers = [
        f"issuer        {issuer['name']}: {issuer['state']}"
        + (f", {issuer['days_left']} days left" if issuer["days_left"] is not None else "")
        for issuer in document["issuers"]
    ]
    lines = [f"{key:<13} {value}" for key, value in document.items() if key != "issuers"]
    invocation.result(document, "\n".join([*lines, *issuers]))


def _surroundings(settings: Settings) -> dict[str, Any]:
    return {
        "version": program_version(),
        "home": str(settings.home),
        "directory": f"{settings.server.public_https}/acme/directory",
        "service": service_state(settings) or "not running",
        "schema": "current" if schema_is_current(settings.database_url) else "outdated",
    }


def _figures(transaction: Transaction, now: float) -> dict[str, Any]:
    entries = size(transaction)
    return {
        "ledger": entries,
        "certificates": count_certificates(transaction, entries),
        "issuers": [_issuer(row.name, row.state, chains(transaction, row.id), now) for row in all_issuers(transaction)],
    }


def _issuer(name: str, state: str, pems: list[str], now: float) -> dict[str, Any]:
    not_after = x509.load_pem_x509_certificates(pems[0].encode())[0].not_valid_after_utc.timestamp() if pems else None
    return {
        "name": name,
        "state": state,
        "not_after": moment(not_after),
        "days_left": None if not_after is None else int((not_after - now) // 86400),
    }
