"""``privyseal backup`` and ``privyseal restore``."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click

from privyseal_ca.cli.frame import Command, Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.ledger_proofs import key_text
from privyseal_ca.cli.recovery import document_of, evidence_of, evidence_options, lines_of, settled_with
from privyseal_ca.cli.version import program_version
from privyseal_ca.clock import SystemClock
from privyseal_ca.config import home_directory
from privyseal_ca.errors import BackupError, LedgerError, PrivySealError, StoreError
from privyseal_ca.recovery.age_keys import new_identity, read_identities, read_recipients
from privyseal_ca.recovery.backup import Made, Plan, make_backup, new_file, record_backup
from privyseal_ca.recovery.contents import Manifest
from privyseal_ca.recovery.restore import Restore, Restored
from privyseal_ca.recovery.unpacking import Expected, Looking, unpack

_STANDARD = Path("-")
_TARGET = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
_SOURCE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
_HASH = re.compile("[0-9a-f]{64}")
#: Of a file with a database's URL, in bytes.
_MAX_URL = 4096


def _hash(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    if text is not None and not _HASH.fullmatch(text):
        raise click.BadParameter("give 64 lower-case hex digits")
    return text


def _vkey(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    return None if text is None else key_text(text)


_identity = click.option(
    "--identity",
    "identity_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="File with the age identity that opens the backup.",
)
_manifest = click.option(
    "--manifest",
    "manifest_sha256",
    callback=_hash,
    metavar="SHA256",
    help="The hash that `backup create` printed, kept elsewhere: the backup must be that one.",
)


@click.group("backup", cls=Group)
def backup() -> None:
    """Make and verify backups."""


@backup.command("create", cls=Command)
@click.argument("file", type=_TARGET, metavar="FILE|-")
@click.option(
    "--recipient",
    "recipients",
    multiple=True,
    required=True,
    metavar="age1...|@FILE",
    help="Whose age identity opens the backup, or a file with one in each line. Repeatable.",
)
@click.option("--with-tokens", is_flag=True, help="With the embedded tokens and so with the keys, but never with PINs.")
@click.option("--no-settings", is_flag=True, help="Without privyseal.toml and profiles.")
@pass_invocation
def create(
    invocation: Invocation, file: Path, recipients: tuple[str, ...], *, with_tokens: bool, no_settings: bool
) -> None:
    """Write an encrypted backup of database, settings, profiles and roots to a new file, or to standard output.

    It is of one moment, may be made beside a service at work, and is checked on the way: a damaged ledger is not backed up.
    PINs are not in it. What it prints as manifest is worth keeping elsewhere.
    """
    settings, surroundings = settings_of(invocation), surroundings_of(invocation)
    plan = Plan(read_recipients(recipients), with_settings=not no_settings, with_tokens=with_tokens)
    with _opened_target(file) as target:
        made = make_backup(
            settings,
            plan,
            target,
            clock=surroundings.clock,
            program=program_version(),
            progress=invocation.progress,
        )

    async def record() -> int | None:
        async with opened_store(settings) as store:
            return await record_backup(
                store,
                made,
                plan,
                actor=surroundings.actor,
                correlation=surroundings.correlation,
                clock=surroundings.clock,
            )

    try:
        index = run(record())
    except (StoreError, LedgerError) as error:
        # The backup is good without it; a database that cannot be written, or was put back, is one more reason to have it.
        invocation.progress(f"warning: the ledger has no entry on this backup: {error.message}")
        index = None
    for left_out in made.left_out:
        invocation.progress(f"not in it: {left_out}")
    document = {
        "file": None if file == _STANDARD else str(file),
        "bytes": made.bytes,
        "manifest_sha256": made.manifest_sha256,
        **_described(made.manifest),
        "recipients": list(plan.recipients),
        "recorded": index,
        "left_out": made.left_out,
    }
    if file == _STANDARD:
        # Standard output has the backup itself.
        invocation.progress(json.dumps(document, indent=2) if invocation.json else _made_text(document, made))
    else:
        invocation.result(document, _made_text(document, made))


@backup.command("verify", cls=Command)
@click.argument("file", type=_SOURCE, metavar="FILE|-")
@_identity
@_manifest
@click.option(
    "--vkey",
    callback=_vkey,
    metavar="VKEY|@FILE",
    help="The key of the ledger, kept elsewhere: the backup must be of it.",
)
@pass_invocation
def verify(
    invocation: Invocation, file: Path, identity_file: Path, manifest_sha256: str | None, vkey: str | None
) -> None:
    """Read a backup to its end and check all of it, its ledger included, without restoring it.

    Needs no home. A backup that can be opened, and whose restore was tried, is one.
    """
    identities = read_identities(identity_file)
    expected = Expected(vkey, manifest_sha256)
    with _opened_source(file) as source:
        unpacked = unpack(source, identities, Looking(), expected=expected, progress=invocation.progress)
    document = {"verified": True, "manifest_sha256": unpacked.manifest_sha256, **_described(unpacked.manifest)}
    manifest = unpacked.manifest
    invocation.result(
        document,
        f"verified: a backup of {manifest.made} with {manifest.size} entries, manifest {unpacked.manifest_sha256}",
    )


@backup.command("identity", cls=Command)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@pass_invocation
def identity(invocation: Invocation, file: Path) -> None:
    """Make an age identity that opens backups, in a new file, and print its recipient.

    Make it on another machine, and keep it there and on paper: whoever has it reads every backup, and without it nobody does.
    """
    recipient = new_identity(file, SystemClock())
    invocation.result({"identity": str(file), "recipient": recipient}, recipient)


@click.command("restore", cls=Command)
@click.argument("file", type=_SOURCE, metavar="FILE|-")
@_identity
@_manifest
@click.option(
    "--database",
    metavar="URL|@FILE",
    help="Restore into this empty database, and write it into the settings. Default: what the settings in the backup say. "
    "For a URL with a password name a file.",
)
@evidence_options
@pass_invocation
def restore(
    invocation: Invocation,
    file: Path,
    identity_file: Path,
    manifest_sha256: str | None,
    database: str | None,
    **options: Any,
) -> None:
    """Put a backup into an empty home (--home) and an empty database.

    The service does not start from it until it is settled what happened after the backup: with --checkpoint, --entries and
    --crl at once, or later with `privyseal recovery settle`. An interrupted restore is begun anew by the same call.
    """
    evidence, surroundings = evidence_of(**options), surroundings_of(invocation)
    identities = read_identities(identity_file)
    restoring = Restore(
        home_directory(invocation.home),
        database=None if database is None else _database(database),
        clock=surroundings.clock,
        actor=surroundings.actor,
        progress=invocation.progress,
    )
    with _opened_source(file) as source:
        restored = restoring.run(source, identities, Expected(evidence.vkey, manifest_sha256))
    settings = restored.settings
    document: dict[str, Any] = {
        "home": str(settings.home),
        "manifest_sha256": restored.manifest_sha256,
        **_described(restored.manifest),
        "settlement": None,
    }
    lines = _restored_lines(restored)
    if not any((evidence.checkpoints, evidence.entries, evidence.crls, evidence.accept_loss)):
        lines += [
            "The service will not start until it is settled what happened after that entry:",
            f"privyseal recovery settle --home {settings.home} --entries URL|FOLDER|FILE --checkpoint FILE|URL",
        ]
        invocation.result(document, "\n".join(lines))
        return
    for line in lines:
        invocation.progress(line)

    try:
        settled = settled_with(invocation, settings, evidence)
    except PrivySealError:
        invocation.progress("It is restored, and not settled; go on with `privyseal recovery settle`.")
        raise
    invocation.result(document | {"settlement": document_of(settled)}, "\n".join(lines_of(settled)))


@contextmanager
def _opened_target(file: Path) -> Iterator[BinaryIO]:
    if file != _STANDARD:
        with new_file(file) as target:
            yield target
        return
    if sys.stdout.isatty():
        raise click.UsageError("A backup is nothing for a terminal: name a file, or lead it into a pipe.")
    yield sys.stdout.buffer


@contextmanager
def _opened_source(file: Path) -> Iterator[BinaryIO]:
    if file == _STANDARD:
        yield sys.stdin.buffer
        return
    try:
        source = file.open("rb")
    except OSError as error:
        raise BackupError(f"{file} cannot be read: {error.strerror}.", hint="Check the file.") from error
    with source:
        yield source


def _database(text: str) -> str:
    """The URL of ``--database``, from a file where one is named: what is secret in it stays out of lists of processes."""
    if not text.startswith("@"):
        return text
    try:
        with Path(text[1:]).open("rb") as file:
            content = file.read(_MAX_URL + 1).decode()
    except (OSError, UnicodeDecodeError):
        content = ""
    lines = content.split()
    if len(lines) != 1 or len(content) > _MAX_URL:
        raise BackupError(f"{text[1:]} does not hold one line with the URL of a database.", hint="Mend the file.")
    return lines[0]


def _described(manifest: Manifest) -> dict[str, Any]:
    return {
        "made": manifest.made,
        "program": manifest.program,
        "schema": manifest.revision,
        "origin": manifest.origin,
        "size": manifest.size,
        "root": manifest.root,
        "tokens": manifest.tokens,
        "files": [file.name for file in manifest.files],
        "rows": {table.name: table.rows for table in manifest.tables},
    }


def _made_text(document: dict[str, Any], made: Made) -> str:
    manifest = made.manifest
    rows = {
        "file": document["file"] or "standard output",
        "bytes": made.bytes,
        "entries": manifest.size,
        "root": manifest.root,
        "rows": sum(table.rows for table in manifest.tables),
        "files": len(manifest.files),
        "tokens": "yes, without their PINs" if manifest.tokens else "no",
        "recipients": len(document["recipients"]),
        "manifest": made.manifest_sha256,
    }
    return "\n".join(f"{name:<11} {value}" for name, value in rows.items())


def _restored_lines(restored: Restored) -> list[str]:
    manifest, home = restored.manifest, restored.settings.home
    lines = [
        f"restored into {home}: the backup of {manifest.made}, up to entry {manifest.size - 1}; it passes the audit"
    ]
    if manifest.tokens:
        lines.append(
            f"put the tokens' PINs back into {home / 'secrets'} (pin, and root-pin where the root is here), mode 0600"
        )
    return lines
