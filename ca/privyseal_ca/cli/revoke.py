"""``privyseal cert revoke`` and ``privyseal cert jobs``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import orjson

from privyseal_ca.cli.frame import Command, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.issued import document_of, named, require_certificate
from privyseal_ca.cli.revoke_key import revoke_private_key
from privyseal_ca.cli.revoke_many import cancel, job_document, resume, revoke_selection
from privyseal_ca.cli.selecting import selection_options
from privyseal_ca.cli.text import table, when
from privyseal_ca.errors import AlreadyRevokedError
from privyseal_ca.revocation.compromise import revoke_rest
from privyseal_ca.revocation.jobs import skipped
from privyseal_ca.revocation.revoke import (
    ADMINISTRATOR_REASONS,
    KEY_COMPROMISE,
    MAX_WITH_KEY,
    REASONS,
    block_compromised_key,
    revoke_alive_with_key,
    revoke_with_key,
)
from privyseal_ca.revocation.selection import Selection
from privyseal_ca.store.certificates import CertificateRow, RevocationRow, blocked_key_reason
from privyseal_ca.store.revoking import JobRow, count_alive_with_key, list_jobs
from privyseal_ca.store.statement import Transaction

_MAX_LISTED = 1000


class _Way(NamedTuple):
    """One of the ways to say what is to be revoked."""

    said: bool
    name: str
    act: Callable[[], None]


@click.command("revoke", cls=Command)
@click.argument("certificate", metavar="[SERIAL|FILE]", required=False)
@selection_options
@click.option(
    "--private-key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A private key that is out: prove that, block it for good, and revoke everything with it.",
)
@click.option(
    "--reason",
    type=click.Choice([*REASONS, *(str(code) for code in sorted(ADMINISTRATOR_REASONS))]),
    help="Why (RFC 5280 section 5.3.1), by name or number; unspecified by default. keyCompromise also blocks the key for "
    "good and revokes every other certificate with it.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be revoked.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--resume", "resumed", metavar="JOB", help="Go on with an interrupted revocation of many.")
@click.option("--cancel", "cancelled", metavar="JOB", help="End an interrupted revocation of many.")
@pass_invocation
def revoke(
    invocation: Invocation,
    certificate: str | None,
    private_key: Path | None,
    reason: str | None,
    resumed: str | None,
    cancelled: str | None,
    *,
    dry_run: bool,
    yes: bool,
    **selected: Any,
) -> None:
    """Revoke a certificate, all certificates that the options select together, or all of a compromised key. For good."""
    code = None if reason is None else REASONS[reason] if reason in REASONS else int(reason)
    ways = [
        _Way(
            certificate is not None,
            "SERIAL|FILE",
            lambda: _revoke_one(invocation, str(certificate), code or 0, dry_run=dry_run, yes=yes),
        ),
        _Way(
            any(value is not None for value in selected.values()),
            "a selection",
            lambda: revoke_selection(invocation, selected, code or 0, dry_run=dry_run, yes=yes),
        ),
        _Way(
            private_key is not None,
            "--private-key",
            lambda: revoke_private_key(invocation, Path(str(private_key)), dry_run=dry_run, yes=yes),
        ),
        _Way(resumed is not None, "--resume", lambda: resume(invocation, str(resumed))),
        _Way(cancelled is not None, "--cancel", lambda: cancel(invocation, str(cancelled))),
    ]
    chosen = [way for way in ways if way.said]
    if len(chosen) != 1:
        raise click.UsageError(
            f"{' and '.join(way.name for way in chosen)} cannot stand together."
            if chosen
            else "Say what to revoke: SERIAL|FILE, options that select, --private-key, --resume or --cancel."
        )
    if private_key is not None and code not in {None, KEY_COMPROMISE}:
        raise click.UsageError("With --private-key the reason is keyCompromise.")
    if (resumed is not None or cancelled is not None) and (code is not None or dry_run):
        raise click.UsageError("A job has its reason already, and goes on or ends: no --reason, no --dry-run.")
    chosen[0].act()


def _revoke_one(invocation: Invocation, certificate: str, reason: int, *, dry_run: bool, yes: bool) -> None:
    wanted = named(certificate)
    serial = wanted.serial
    surroundings = surroundings_of(invocation)
    clock, actor, correlation = surroundings.clock, surroundings.actor, surroundings.correlation

    def look(transaction: Transaction) -> tuple[CertificateRow, RevocationRow | None, int]:
        row, before = require_certificate(transaction, wanted)
        if before is not None and not _has_open_key(transaction, row, reason):
            raise AlreadyRevokedError("The certificate is revoked already.")
        others = 0
        if reason == KEY_COMPROMISE:
            now = int(clock.now())
            others = count_alive_with_key(transaction, row.spki_sha256, now=now)
            others -= before is None and row.not_after > now
        return row, before, others

    def unit(transaction: Transaction) -> tuple[CertificateRow, list[RevocationRow]]:
        row, before = require_certificate(transaction, wanted)
        if before is not None and _has_open_key(transaction, row, reason):
            key, now = row.spki_sha256, clock.now()
            block_compromised_key(transaction, key, actor=actor, correlation=correlation, now=now)
            others = revoke_alive_with_key(
                transaction, key, actor=actor, correlation=correlation, now=now, count=MAX_WITH_KEY
            )
            return row, [before, *others]
        return row, revoke_with_key(
            transaction,
            row,
            reason=reason,
            allowed_reasons=ADMINISTRATOR_REASONS,
            actor=actor,
            correlation=correlation,
            now=clock.now(),
        )

    async def work() -> tuple[CertificateRow, RevocationRow | None, RevocationRow | None, int]:
        async with opened_store(settings_of(invocation)) as store:
            row, before, others = await store.read(look)
            if dry_run:
                return row, before, before, others
            what = f"Revoke {serial}" if before is None else f"Block the key of {serial}, which was revoked before,"
            more = f" and {'' if before is None else 'revoke '}{others} others with the same key" if others else ""
            invocation.confirm(f"{what} for {' '.join(orjson.loads(row.names))}{more}?", yes=yes)
            row, rows = await store.write(unit)
            others = len(rows) - 1
            if others:
                others += await revoke_rest(store, clock, row.spki_sha256, actor=actor, correlation=correlation)
            return row, before, rows[0], others

    row, before, revocation, others = run(work())
    members = document_of(row, revocation, revocation.revoked_at if revocation else int(clock.now()))
    verb = "would be" if dry_run else "is"
    also = f", and {others} others with the same key" if others else ""
    text = f"Certificate {serial} {verb} revoked{also}."
    if before is not None:
        text = f"Certificate {serial} was revoked before; its key {verb} blocked"
        text += f", and {others} others with it are revoked." if others else "."
    invocation.result({**members, "others_with_key": others}, text)


def _has_open_key(transaction: Transaction, row: CertificateRow, reason: int) -> bool:
    """Whether ``reason`` says of a certificate's key what is not known yet, however the certificate itself was revoked."""
    return reason == KEY_COMPROMISE and blocked_key_reason(transaction, row.spki_sha256) is None


@click.command("jobs", cls=Command)
@click.option("--count", type=click.IntRange(1, _MAX_LISTED), default=100, show_default=True, help="How many at most.")
@pass_invocation
def jobs(invocation: Invocation, count: int) -> None:
    """List revocations of many certificates, the newest first."""

    async def work() -> list[JobRow]:
        async with opened_store(settings_of(invocation)) as store:
            return await store.read(lambda tx: list_jobs(tx, count=count))

    rows = run(work())
    invocation.result(
        [job_document(row) for row in rows],
        table(
            ("JOB", "STATE", "STARTED", "REVOKED", "SKIPPED", "SELECTION"),
            [
                (
                    row.id,
                    row.state,
                    when(row.created),
                    f"{row.revoked}/{row.total}",
                    "-" if row.state == "running" else str(skipped(row)),
                    str(Selection.load(row.selection)),
                )
                for row in rows
            ],
        ),
    )
