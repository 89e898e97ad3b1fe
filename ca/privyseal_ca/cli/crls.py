"""``privyseal crl``."""

from pathlib import Path
from typing import Any

import click

from privyseal_ca.ceremony.certificates import fingerprint
from privyseal_ca.ceremony.crl_import import ImportedCrl, import_crl, read_crl
from privyseal_ca.ceremony.files import write_file
from privyseal_ca.ceremony.root_crl import renew_root_crl
from privyseal_ca.cli.crl_files import bundle_of, read_der
from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.roots import opened_root, root_pin_option
from privyseal_ca.cli.text import moment, table, when
from privyseal_ca.errors import ConfigurationError, StatusUnavailableError
from privyseal_ca.issuance.pointers import crl_path
from privyseal_ca.revocation.crl_bundle import pem_of
from privyseal_ca.revocation.published import scope_name, scope_shard
from privyseal_ca.store.crls import CrlRow, all_crls, find_crl
from privyseal_ca.store.issuers import all_issuers, find_issuer
from privyseal_ca.store.statement import Transaction

_FILE = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)
_MAX_SHARD = 255


@click.group("crl", cls=Group)
def crl() -> None:
    """List, show, bundle and import CRLs, and sign the root's."""


@crl.command("list")
@pass_invocation
def list_command(invocation: Invocation) -> None:
    """List the current CRLs: those of all an issuer has revoked, and their parts."""
    settings = settings_of(invocation)

    async def work() -> list[tuple[CrlRow, str | None]]:
        async with opened_store(settings) as store:
            return await store.read(_published)

    found = run(work())
    now = surroundings_of(invocation).clock.now()
    invocation.result(
        [_document(row, name, settings.server.public_http, now) for row, name in found],
        table(
            ("ISSUER", "SCOPE", "NUMBER", "ENTRIES", "THIS UPDATE", "NEXT UPDATE", "AGE", "SIZE"),
            [
                (
                    name or row.issuer_id,
                    row.scope,
                    str(row.number),
                    str(row.entries),
                    when(row.this_update),
                    when(row.next_update) + (" (passed)" if row.next_update <= now else ""),
                    _age(now - row.this_update),
                    str(row.size),
                )
                for row, name in found
            ],
        ),
    )


@crl.command("show")
@click.argument("issuer")
@click.option("--shard", type=click.IntRange(0, _MAX_SHARD), help="The part with this number. Default: all of it.")
@click.option("--delta", is_flag=True, help="The delta CRL of the part.")
@click.option("--out", metavar="FILE", help="Write the CRL itself to this file, or to standard output with -.")
@click.option("--pem/--der", "as_pem", default=False, help="Form of what is written. Default: DER.")
@pass_invocation
def show(invocation: Invocation, issuer: str, shard: int | None, out: str | None, **options: bool) -> None:
    """Show a CRL, or write it to a file. ISSUER is a name or an id."""
    if options["delta"] and shard is None:
        raise click.UsageError("--delta needs --shard: only parts have delta CRLs.")
    if out == "-" and invocation.json:
        raise click.UsageError("--out - and --json both write to standard output.")
    settings = settings_of(invocation)

    async def work() -> tuple[CrlRow, bytes]:
        async with opened_store(settings) as store:
            issuer_id = await store.read(lambda tx: _issuer_id(tx, issuer))
            if out is not None:
                return await read_der(store, issuer_id, scope_name(shard), delta=options["delta"])
            row = await store.read(lambda tx: find_crl(tx, issuer_id, scope_name(shard)))
            if row is None or not (row.delta_size if options["delta"] else row.number):
                raise StatusUnavailableError(
                    "There is no such CRL.", hint="`privyseal crl list` shows those there are."
                )
            return row, b""

    row, der = run(work())
    document = _document(row, issuer, settings.server.public_http, surroundings_of(invocation).clock.now())
    if out is None:
        invocation.result(document, "\n".join(f"{key:<14} {_text(value)}" for key, value in document.items()))
        return
    content = pem_of(der) if options["as_pem"] else der
    if out == "-":
        click.echo(content, nl=False)
        return
    write_file(Path(out), content, mode=0o644)
    invocation.result(document | {"file": out}, f"CRL {row.number} is in {out}.")


@crl.command("bundle")
@click.option("--out", metavar="FILE", help="The file, replaced as a whole. Default: standard output.")
@pass_invocation
def bundle(invocation: Invocation, out: str | None) -> None:
    """Write the CRLs of the root and of every issuer together as PEM, as nginx and HAProxy take them.

    The running service has the same at /crls.pem. Nothing is written as long as a CA in a chain that is in use has none: a server would then refuse every client.
    """
    if out is None and invocation.json:
        raise click.UsageError("--json needs --out: both would write to standard output.")
    now = surroundings_of(invocation).clock.now()

    async def work() -> tuple[list[CrlRow], bytes]:
        async with opened_store(settings_of(invocation)) as store:
            return await bundle_of(store)

    rows, content = run(work())
    for row in rows:
        if row.next_update <= now:
            invocation.progress(
                f"warning: the CRL of {row.issuer_id} should have been replaced by {when(row.next_update)}."
            )
    if out is None:
        click.echo(content, nl=False)
        return
    write_file(Path(out), content, mode=0o644)
    invocation.result(
        {"file": out, "crls": [{"issuer_id": row.issuer_id, "number": row.number} for row in rows]},
        f"{len(rows)} CRLs are in {out}.",
    )


@crl.command("root")
@root_pin_option
@pass_invocation
def root_command(invocation: Invocation, root_pin_file: Path | None) -> None:
    """Sign the root's CRL anew. The root's token and PIN must be here; a running service serves it within a moment."""

    async def work() -> CrlRow:
        async with opened_root(invocation, root_pin_file) as opened:
            return await renew_root_crl(opened.transcript, opened.root)

    row = run(work())
    settings = settings_of(invocation)
    invocation.result(
        _document(row, "root", settings.server.public_http, surroundings_of(invocation).clock.now()),
        f"The root's CRL {row.number} lists {row.entries} and is valid until {when(row.next_update)}.",
    )


@crl.command("import")
@click.argument("file", type=_FILE)
@pass_invocation
def import_command(invocation: Invocation, file: Path) -> None:
    """Take the CRL of a root whose key is elsewhere, to be served beside our own."""
    given = read_crl(file)

    async def work() -> ImportedCrl:
        async with opened_store(settings_of(invocation)) as store:
            return await import_crl(surroundings_of(invocation).transcript(store), given)

    imported = run(work())
    row = imported.row
    names = [issuer.name for issuer in imported.revoked]
    for issuer in imported.revoked:
        if issuer.state == "active":
            invocation.progress(
                f"warning: it revokes {issuer.name}, which is active: privyseal issuer retire {issuer.name}"
            )
    settings = settings_of(invocation)
    document = _document(row, None, settings.server.public_http, surroundings_of(invocation).clock.now())
    invocation.result(
        document | {"signer_sha256": fingerprint(imported.signer), "revoked_issuers": names},
        f"CRL {row.number} of {imported.signer.subject.rfc4514_string()} lists {row.entries} and is valid until "
        f"{when(row.next_update)}.",
    )


def _issuer_id(transaction: Transaction, issuer: str) -> str:
    """The id of the issuer that is named, or ``issuer`` itself when it is the id of one that has a CRL."""
    row = find_issuer(transaction, issuer)
    if row is not None:
        return row.id
    wanted = issuer.lower().replace(":", "")
    if any(wanted == stored.issuer_id for stored in all_crls(transaction)):
        return wanted
    raise ConfigurationError(
        f"There is no issuer {issuer[:64]!r} with a CRL.", hint="`privyseal crl list` shows those that there are."
    )


def _published(transaction: Transaction) -> list[tuple[CrlRow, str | None]]:
    """Every current CRL with the name of its issuer, if that has one here: in the order of the issuers, the full one first."""
    issuers = all_issuers(transaction)
    places = {row.id: place for place, row in enumerate(issuers)}
    rows = [row for row in all_crls(transaction) if row.number]

    def position(row: CrlRow) -> tuple[int, str, int]:
        shard = scope_shard(row.scope)
        return places.get(row.issuer_id, len(places)), row.issuer_id, -1 if shard is None else shard

    names = {row.id: row.name for row in issuers}
    return [(row, names.get(row.issuer_id)) for row in sorted(rows, key=position)]


def _age(seconds: float) -> str:
    """A time span in the largest unit that fits twice."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(max(seconds, 0))}s"


def _document(row: CrlRow, name: str | None, base_url: str, now: float) -> dict[str, Any]:
    document: dict[str, Any] = {
        "issuer": name,
        "issuer_id": row.issuer_id,
        "scope": row.scope,
        "number": row.number,
        "entries": row.entries,
        "this_update": moment(row.this_update),
        "next_update": moment(row.next_update),
        "age": int(now - row.this_update),
        "size": row.size,
        "sha256": row.sha256.hex(),
        "url": base_url + crl_path(row.issuer_id, scope_shard(row.scope)),
        "delta": None,
    }
    if row.delta_size:
        document["delta"] = {
            "base": row.base_number,
            "size": row.delta_size,
            "sha256": row.delta_sha256.hex(),
            "url": base_url + crl_path(row.issuer_id, scope_shard(row.scope), delta=True),
        }
    return document


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {member}" for key, member in value.items())
    return "-" if value is None else str(value)
