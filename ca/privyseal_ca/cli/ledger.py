"""``privyseal ledger``."""

import json
import re

import click

from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of
from privyseal_ca.cli.ledger_proofs import proof, verify_proof, vkey
from privyseal_ca.issuance.record import issued_entry
from privyseal_ca.ledger.audit import Auditor, AuditReport, Expected
from privyseal_ca.ledger.entries import decode_entry
from privyseal_ca.ledger.log import StoredEntry, entries

_MAX_SHOWN = 10_000
_EXPECTED = re.compile(r"(?P<size>[0-9]{1,15}):(?P<root>[0-9a-f]{64})")


def _expected(text: str) -> Expected:
    match = _EXPECTED.fullmatch(text)
    if match is None:
        raise click.BadParameter("give SIZE:ROOT as an earlier `ledger verify` printed them")
    return Expected(int(match["size"]), bytes.fromhex(match["root"]))


@click.group("ledger", cls=Group)
def ledger() -> None:
    """Show and verify the ledger."""


@ledger.command("show")
@click.option("--from", "first", type=click.IntRange(min=0), default=0, show_default=True, help="First index.")
@click.option(
    "--count", type=click.IntRange(1, _MAX_SHOWN), default=100, show_default=True, help="How many entries at most."
)
@pass_invocation
def show(invocation: Invocation, first: int, count: int) -> None:
    """Show entries in their order."""

    async def work() -> list[StoredEntry]:
        async with opened_store(settings_of(invocation)) as store:
            return await store.read(lambda tx: list(entries(tx, first=first, count=count)))

    decoded = [(stored, decode_entry(stored.entry)) for stored in run(work())]
    invocation.result(
        [{"index": stored.index, "leaf_hash": stored.leaf_hash.hex(), **members} for stored, members in decoded],
        "\n".join(
            f"{stored.index}  {members['time']}  {members['kind']}  {members['actor']}  {json.dumps(members['payload'])}"
            for stored, members in decoded
        ),
    )


@ledger.command("verify")
@click.option(
    "--expect",
    type=_expected,
    metavar="SIZE:ROOT",
    help="Size and root of an earlier check: the ledger must still begin with those entries.",
)
@pass_invocation
def verify(invocation: Invocation, expect: Expected | None) -> None:
    """Check every entry, every certificate and every revocation.

    Keep the size and the root that it prints in another place: given to a later check with --expect, they show whether the
    ledger was rewritten meanwhile.
    """

    async def work() -> AuditReport:
        async with opened_store(settings_of(invocation)) as store:
            auditor = Auditor(store, issued_entry=issued_entry, expected=expect, progress=_Teller(invocation))
            return await auditor.run()

    report = run(work())
    document = {
        "size": report.size,
        "root": report.root.hex(),
        "certificates": report.certificates,
        "ca_certificates": report.ca_certificates,
        "revoked": report.revoked,
        "crls": report.crls,
        "abandoned": report.abandoned,
        "in_flight": report.in_flight,
    }
    invocation.result(
        document, "\n".join(f"{name.replace('_', ' '):<16} {value}" for name, value in document.items()) + "\nok"
    )


for _command in (vkey, proof, verify_proof):
    ledger.add_command(_command)


class _Teller:
    """Tells now and then how far the check is, when it takes long enough for somebody to wonder."""

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation
        self._told = 0

    def __call__(self, done: int, of: int) -> None:
        if done - self._told >= 50_000:
            self._told = done
            self._invocation.progress(f"{done} of {of} entries checked")
