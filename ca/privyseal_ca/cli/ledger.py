"""``privyseal ledger``."""

import json
import re
from functools import partial
from typing import BinaryIO

import click

from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of
from privyseal_ca.cli.ledger_export import export, exports
from privyseal_ca.cli.ledger_monitor import monitor
from privyseal_ca.cli.ledger_outside import audit
from privyseal_ca.cli.ledger_proofs import key_text, proof, verify_proof, vkey
from privyseal_ca.issuance.record import issued_entry
from privyseal_ca.ledger.audit import Auditor, AuditReport, Expected
from privyseal_ca.ledger.audit_checkpoints import opened_since
from privyseal_ca.ledger.cosignatures import CosignatureVerifier
from privyseal_ca.ledger.entries import decode_entry
from privyseal_ca.ledger.log import StoredEntry, entries
from privyseal_ca.ledger.note import MAX_NOTE, Checkpoint

_MAX_SHOWN = 10_000
_EXPECTED = re.compile(r"(?P<size>[0-9]{1,15}):(?P<root>[0-9a-f]{64})")


def _expected(text: str) -> Expected:
    match = _EXPECTED.fullmatch(text)
    if match is None:
        raise click.BadParameter("give SIZE:ROOT as an earlier `ledger verify` printed them")
    return Expected(int(match["size"]), bytes.fromhex(match["root"]))


def _key(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    return None if text is None else key_text(text)


@click.group("ledger", cls=Group)
def ledger() -> None:
    """Show, verify, prove, audit, watch and export the ledger."""


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
@click.option(
    "--since",
    type=click.File("rb"),
    metavar="FILE",
    help="A checkpoint that was kept elsewhere, - for standard input: the ledger must continue it.",
)
@click.option(
    "--vkey",
    "verifier_key",
    callback=_key,
    metavar="VKEY|@FILE",
    help="The key that verifies the checkpoint of --since, or a file with it. Default: the ledger's own.",
)
@pass_invocation
def verify(invocation: Invocation, expect: Expected | None, since: BinaryIO | None, verifier_key: str | None) -> None:
    """Check every entry, certificate, key, revocation, CRL, checkpoint and tile.

    Keep checkpoints (/ledger/checkpoint), or the size and the root that it prints, in another place: given to a later check
    with --since or --expect, they show whether the ledger was rewritten meanwhile.
    """
    if verifier_key is not None and since is None:
        raise click.UsageError("--vkey verifies the checkpoint of --since: give both.")
    note = None if since is None else since.read(MAX_NOTE + 1)

    async def work() -> AuditReport:
        settings = settings_of(invocation)
        witnesses = [CosignatureVerifier.parse(witness.vkey) for witness in settings.ledger.witnesses]
        async with opened_store(settings) as store:
            kept: Checkpoint | None = None
            if note is not None:
                kept = await store.read(partial(opened_since, note=note, vkey=verifier_key))
            auditor = Auditor(
                store,
                issued_entry=issued_entry,
                expected=expect,
                since=kept,
                progress=_Teller(invocation),
                witnesses=witnesses,
            )
            return await auditor.run()

    report = run(work())
    document = {
        "size": report.size,
        "root": report.root.hex(),
        "certificates": report.certificates,
        "ca_certificates": report.ca_certificates,
        "keys": report.keys,
        "revoked": report.revoked,
        "crls": report.crls,
        "abandoned": report.abandoned,
        "in_flight": report.in_flight,
        "checkpoints": report.checkpoints,
        "tiles": report.tiles,
        "lost": report.lost,
    }
    lines = [f"{name.replace('_', ' '):<16} {value}" for name, value in document.items()]
    kept = report.since
    if kept is not None:
        document["since"] = {"origin": kept.origin, "size": kept.size, "root": kept.root.hex()}
        lines.append(f"{'since':<16} {kept.size}: continues the checkpoint that was given")
    invocation.result(document, "\n".join([*lines, "ok"]))


for _command in (vkey, proof, verify_proof, export, exports, audit, monitor):
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
