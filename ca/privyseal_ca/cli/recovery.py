"""``privyseal recovery``: what a database lacks after a restore, and how it goes on."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from privyseal_ca.cli.frame import FAILURE, Command, Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.ledger_proofs import key_text
from privyseal_ca.config import Settings
from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.log import size
from privyseal_ca.recovery.facts import restored_fact
from privyseal_ca.recovery.guard import Evidence, Settled, require_continuation, settle
from privyseal_ca.recovery.outside import Found, log_identity, look_outside

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _key(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    return None if text is None else key_text(text)


def evidence_options(command: Any) -> Any:
    """What an operator can show of what the database was: the options that :func:`evidence_of` takes."""
    for option in reversed(
        (
            click.option(
                "--checkpoint",
                "checkpoints",
                multiple=True,
                metavar="FILE|FOLDER|URL",
                help="The newest checkpoint that anybody has. Repeatable.",
            ),
            click.option(
                "--vkey",
                "verifier_key",
                callback=_key,
                metavar="VKEY|@FILE",
                help="The key that verifies it, kept elsewhere. Default: the ledger's own.",
            ),
            click.option(
                "--entries",
                default="",
                metavar="URL|FOLDER|FILE",
                help="Where the missing entries are: a published ledger, or a file of `privyseal ledger export`.",
            ),
            click.option("--token-file", type=_FILE, metavar="FILE", help="The access token for entries at a URL."),
            click.option(
                "--crl",
                "crls",
                multiple=True,
                metavar="FILE|URL",
                help="The newest CRL that anybody has; `none` when there never was one. Repeatable.",
            ),
            click.option(
                "--accept-loss",
                is_flag=True,
                help="Go on although entries are missing that nobody has. The log gets another name and key.",
            ),
        )
    ):
        command = option(command)
    return command


def evidence_of(
    *,
    checkpoints: tuple[str, ...],
    verifier_key: str | None,
    entries: str,
    token_file: Path | None,
    crls: tuple[str, ...],
    accept_loss: bool,
) -> Evidence:
    """What those options say."""
    return Evidence(checkpoints, verifier_key, entries, token_file, crls, accept_loss)


@click.group("recovery", cls=Group)
def recovery() -> None:
    """Show and settle what a restored database lacks."""


@recovery.command("status", cls=Command)
@pass_invocation
def status(invocation: Invocation) -> None:
    """Show whether this database continues what is kept of it outside.

    The exit code is 1 while it does not, or while a restore is not settled: then the service does not start.
    """
    settings = settings_of(invocation)

    async def work() -> tuple[int, dict[str, Any] | None, Found, LedgerError | None]:
        async with opened_store(settings, settling=True) as store:
            fact, entries = await store.read(lambda tx: (restored_fact(tx), size(tx)))
            found = await look_outside(settings, await store.read(log_identity))
            try:
                await require_continuation(store, found)
            except LedgerError as error:
                return entries, fact, found, error
            return entries, fact, found, None

    entries, fact, found, wrong = run(work())
    ok = fact is None and wrong is None
    newest = max((seen.checkpoint.size for seen in found.seen), default=None)
    document = {
        "ok": ok,
        "size": entries,
        "restored": fact,
        "newest_outside": newest,
        "seen": [{"place": seen.place, "size": seen.checkpoint.size} for seen in found.seen],
        "silent": [{"place": place, "reason": reason} for place, reason in found.silent],
        "problem": None if wrong is None else wrong.message,
        "hint": None if wrong is None else wrong.hint,
    }
    lines = [f"{'entries':<10} {entries}"]
    lines += [f"{'outside':<10} {seen.checkpoint.size} at {seen.place}" for seen in found.seen]
    lines += [f"{'silent':<10} {place} {reason}" for place, reason in found.silent]
    if fact is not None:
        lines.append(f"{'restored':<10} up to entry {fact.get('size')}, at {fact.get('at')}, and not settled")
    if wrong is not None:
        lines += [wrong.message, f"hint: {wrong.hint}"]
    elif fact is not None:
        lines.append("hint: privyseal recovery settle --entries URL|FOLDER|FILE --checkpoint FILE|URL")
    else:
        lines.append("nothing is known to be missing")
    invocation.result(document, "\n".join(lines))
    if not ok:
        click.get_current_context().exit(FAILURE)


@recovery.command("settle", cls=Command)
@evidence_options
@click.option("--yes", is_flag=True, help="Do not ask before entries are given up.")
@pass_invocation
def settle_command(invocation: Invocation, *, yes: bool, **options: Any) -> None:
    """Bring a restored database to where it was, so that the service may start.

    Entries that it lacks are fetched, verified against the newest checkpoint, appended as they were, and applied to the
    tables. It may be interrupted and run again. Places of `ledger.outside` and witnesses are asked as well.
    """
    evidence = evidence_of(**options)
    if evidence.token_file is not None and not evidence.entries:
        raise click.UsageError("--token-file is for entries at a URL: give --entries too.")
    if evidence.accept_loss and not evidence.entries:
        invocation.confirm("Give up what happened since the backup, and begin another log?", yes=yes)
    show_settled(invocation, settled_with(invocation, settings_of(invocation), evidence))


def settled_with(invocation: Invocation, settings: Settings, evidence: Evidence) -> Settled:
    """Settle the database of ``settings`` with ``evidence``. Raises as :func:`privyseal_ca.recovery.guard.settle`."""
    surroundings = surroundings_of(invocation)

    async def work() -> Settled:
        async with opened_store(settings, settling=True) as store:
            return await settle(
                store,
                evidence,
                settings,
                actor=surroundings.actor,
                correlation=surroundings.correlation,
                clock=surroundings.clock,
                progress=invocation.progress,
            )

    return run(work())


def show_settled(invocation: Invocation, settled: Settled) -> None:
    """Write what was done, and what is left for people to do."""
    invocation.result(document_of(settled), "\n".join(lines_of(settled)))


def document_of(settled: Settled) -> dict[str, Any]:
    """What was done, as documents have it."""
    summary = asdict(settled.summary)
    summary.pop("crls")
    return {
        "settled": settled.index is not None,
        "index": settled.index,
        "from_size": settled.from_size,
        "to_size": settled.to_size,
        "root": settled.root.hex(),
        "missing": settled.missing,
        "lost": settled.lost,
        "imported": settled.imported,
        "unproved": settled.unproved,
        "unproved_revocations": settled.unproved_revocations,
        "new_origin": settled.new_origin or None,
        "crls": [{"issuer": issuer, "scope": scope, "above": number} for issuer, scope, number in settled.crls],
        "seen": settled.seen,
        "silent": settled.silent,
        **summary,
        "to_do": to_do(settled),
    }


def lines_of(settled: Settled) -> list[str]:
    """What was done, for people."""
    if settled.index is None:
        return [f"nothing to settle: {settled.to_size} entries, and nothing is known to be missing"]
    summary = settled.summary
    if settled.new_origin:
        known = "an unknown number of" if settled.missing is None else str(settled.missing)
        lines = [
            f"entries that are given up: {known}; the log is {settled.new_origin} from now on, with a new key",
            f"revocations that were taken from CRLs: {settled.imported}",
        ]
    else:
        lines = [
            f"entries that are back: {settled.to_size - settled.from_size}, from {settled.from_size} to {settled.to_size}",
            f"among them: certificates {summary.certificates}, revocations {summary.revoked}",
        ]
    lines.append(f"certificates that are known by their entries only: {settled.lost}")
    lines.append(f"CRLs that are made anew when the service starts, with higher numbers: {len(settled.crls)}")
    return [*lines, *(f"to do: {each}" for each in to_do(settled))]


def to_do(settled: Settled) -> list[str]:
    """What only people can do."""
    summary, found = settled.summary, list[str]()
    if settled.index is None:
        return found
    if summary.accounts_lost:
        found.append(
            f"{summary.accounts_lost} ACME accounts are gone: their clients register again (`certbot register`); "
            "external account keys for a single use are used up, make others (`privyseal eab create`)"
        )
    if summary.accounts_ended:
        found.append(f"ended, for their keys had been changed: {', '.join(summary.accounts_ended)}")
    if summary.eab_lost:
        found.append(f"make external account keys anew (`privyseal eab create`): {', '.join(summary.eab_lost)}")
    if summary.issuers_lost:
        found.append(f"CAs that the backup does not have, revoke or import them: {', '.join(summary.issuers_lost)}")
    if summary.changed:
        found.append(
            f"changed since the backup, look whether the restored files are right: {', '.join(summary.changed)}"
        )
    if settled.unproved:
        found.append(
            f"{settled.unproved} entries came after the newest checkpoint and were not taken, for nothing proves them: look "
            "through them"
        )
    if settled.unproved_revocations:
        found.append(
            f"revoke again what they revoked (`privyseal cert revoke`): {', '.join(settled.unproved_revocations)}"
        )
    if settled.crls:
        found.append(
            "look whether `privyseal crl list` has the root's CRL; if not: privyseal crl root where the root is here, else "
            "privyseal crl import FILE"
        )
    if settled.new_origin:
        found.append(
            "hand over the new key (`privyseal ledger vkey`) to witnesses, auditors and monitors; keep the former log"
        )
        found.append(
            "accounts, external account keys and CAs are as they were in the backup: what was ended, revoked or retired since is "
            "usable again. Look through `privyseal account list`, `privyseal eab list` and `privyseal issuer list`"
        )
        found.append("block keys again that were blocked since: privyseal cert revoke --private-key FILE")
        found.append("move the folder of `privyseal status publish` away: the former ledger in it is evidence")
    return found
