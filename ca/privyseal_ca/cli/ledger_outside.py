"""``privyseal ledger audit``: a look at a log from another machine, over HTTP only. ``monitor`` is beside it."""

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from privyseal_ca.ceremony.files import write_file
from privyseal_ca.ceremony.imports import read_certificates
from privyseal_ca.cli.frame import FAILURE, Command, Invocation, pass_invocation
from privyseal_ca.cli.home import run
from privyseal_ca.cli.ledger_proofs import key_text
from privyseal_ca.cli.text import duration
from privyseal_ca.clock import SystemClock
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.ledger.cosignatures import CosignatureVerifier
from privyseal_ca.ledger.note import MAX_NOTE, NoteVerifier
from privyseal_ca.outside.audit import Asked, Audited, OutsideAudit
from privyseal_ca.outside.certificates import Held
from privyseal_ca.outside.findings import Finding
from privyseal_ca.outside.signed import LogKeys
from privyseal_ca.outside.source import HttpLedger
from privyseal_ca.private_file import read_private_line
from privyseal_ca.web.fetching import new_session

_TOLD_EVERY: Final = 50_000
_SHOWN: Final = 20
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the log is and whose signatures count, as the options say."""

    url: str
    keys: LogKeys
    token: bytes | None
    also: tuple[str, ...]
    trust: ssl.SSLContext | None
    #: Whether entries have to be given; None to take them when they are.
    entries: bool | None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[HttpLedger, list[HttpLedger]]]:
        """The log, and the other places where it is shown."""
        async with new_session(agent="privyseal-auditor", trust=self.trust) as session:
            yield HttpLedger(self.url, session, token=self.token), [HttpLedger(url, session) for url in self.also]


def _seconds(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    return None if text is None else duration(text)


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `audit` and `monitor` share: the URL and whom to trust."""
    for option in reversed(
        (
            click.argument("url", metavar="URL"),
            click.option(
                "--vkey",
                "verifier_key",
                required=True,
                metavar="VKEY|@FILE",
                help="The log's verification key, from a source that you trust, or a file with it.",
            ),
            click.option(
                "--token-file", type=_FILE, metavar="FILE", help="A file with the access token for the entries."
            ),
            click.option(
                "--require-entries",
                is_flag=True,
                help="Fail when the server does not give the entries. Implied by --token-file.",
            ),
            click.option(
                "--witness",
                "witness_keys",
                multiple=True,
                metavar="VKEY|@FILE",
                help="The verification key of a witness that cosigns the log's checkpoints. Repeatable.",
            ),
            click.option(
                "--quorum",
                type=click.IntRange(min=0),
                help="How many of these witnesses have to have cosigned. Default: all of them.",
            ),
            click.option(
                "--also",
                multiple=True,
                metavar="URL",
                help="Another place where the log is shown: a mirror, or the same address by another way. Repeatable.",
            ),
            click.option(
                "--freshness",
                callback=_seconds,
                metavar="TIME",
                help="How old the cosignatures of the quorum may be, such as 24h. Needs --witness.",
            ),
            click.option(
                "--trust",
                type=_FILE,
                metavar="FILE",
                help="Roots for https, in PEM. Default: those that this machine trusts.",
            ),
        )
    ):
        command = option(command)
    return command


def places(
    invocation: Invocation,
    url: str,
    verifier_key: str,
    token_file: Path | None,
    witness_keys: Sequence[str],
    quorum: int | None,
    also: Sequence[str],
    trust: Path | None,
    require_entries: bool,
) -> Places:
    """What these options say.

    Raises:
        ConfigurationError, LedgerError: a file or a key that cannot be used.
    """
    witnesses = tuple(CosignatureVerifier.parse(key_text(text)) for text in witness_keys)
    if len({each.name for each in witnesses}) < len(witnesses):
        raise ConfigurationError("A witness is named twice.", hint="Name each witness once: a quorum counts them.")
    keys = LogKeys(NoteVerifier.parse(key_text(verifier_key)), witnesses, len(witnesses) if quorum is None else quorum)
    token = None if token_file is None else read_private_line(token_file, what="the access token", shortest=1)
    if token is not None and not url.lower().startswith("https:"):
        invocation.progress("warning: the access token is sent without encryption; use an https address")
    return Places(
        url,
        keys,
        token,
        tuple(also),
        None if trust is None else _trust(trust),
        require_entries or token is not None or None,
    )


@click.command("audit", cls=Command)
@place_options
@click.option(
    "--since",
    type=_FILE,
    metavar="FILE",
    help="A checkpoint from an earlier audit (--save): the log has to continue it.",
)
@click.option(
    "--certificate",
    "certificates",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="A certificate that has to be in the log (the first one in the file). Repeatable.",
)
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the checkpoint to this file when nothing was found, for the next --since.",
)
@pass_invocation
def audit(
    invocation: Invocation,
    since: Path | None,
    certificates: Sequence[Path],
    save: Path | None,
    freshness: int | None,
    **options: Any,
) -> None:
    """Check a log from another machine, over HTTP only.

    URL is the address that has /ledger/ below it. Needs no home and no database: signature, consistency, every tile, every
    entry where they are given, the CRLs, and the certificates that are given. What could not be checked is said. The exit code
    is 0 only when nothing was found.
    """
    where = places(invocation, **options)
    if freshness is not None:
        where.keys.require_witnesses()
    held = [Held(str(path), read_certificates(path)[0]) for path in certificates]
    kept = None if since is None else where.keys.open(_read(since, MAX_NOTE), str(since))

    async def work() -> Audited:
        async with where.opened() as (source, also):
            asked = Asked(
                where.keys, since=kept, also=also, certificates=held, freshness=freshness, entries=where.entries
            )
            return await OutsideAudit(source, asked, clock=SystemClock(), progress=Teller(invocation)).run()

    report = run(work())
    if save is not None and report.seen is not None and not report.findings:
        write_file(save, report.seen.note, mode=0o644)
    document, lines = _shown(report)
    tell_findings(invocation, report.findings)
    invocation.result(document, "\n".join(lines))
    if report.findings:
        click.get_current_context().exit(FAILURE)


def tell_findings(invocation: Invocation, findings: Sequence[Finding]) -> None:
    """Each on a line of standard error."""
    for finding in findings:
        invocation.progress(f"found ({finding.code}): {finding.message}")


def _shown(report: Audited) -> tuple[dict[str, Any], list[str]]:
    checkpoint = None if report.seen is None else report.seen.checkpoint
    document: dict[str, Any] = {
        "ok": not report.findings,
        "origin": None if checkpoint is None else checkpoint.origin,
        "size": None if checkpoint is None else checkpoint.size,
        "root": None if checkpoint is None else checkpoint.root.hex(),
        "entries_checked": report.contents,
        "issued": report.issued,
        "revoked": report.revoked,
        "abandoned": report.abandoned,
        "in_flight": [{"index": index, "serial": serial} for index, serial in report.open[:_SHOWN]],
        "crls": report.crls,
        "certificates": report.certificates,
        "views": report.views,
        "cosigned": None if report.seen is None else dict(report.seen.cosigned),
        "unchecked": report.unchecked,
        "findings": [finding.document() for finding in report.findings],
    }
    lines = [
        f"{name.replace('_', ' '):<16} {value}"
        for name, value in document.items()
        if name not in {"certificates", "cosigned", "findings", "in_flight", "ok", "unchecked"} and value is not None
    ]
    lines += [f"{'in flight':<16} serial {serial} (entry {index})" for index, serial in report.open[:_SHOWN]]
    lines += [f"{'certificate':<16} {name}: entry {index}" for name, index in report.certificates.items()]
    lines += [f"{'cosigned':<16} {name}" for name in (report.seen.cosigned if report.seen else ())]
    lines += [f"{'NOT CHECKED':<16} {what}" for what in report.unchecked]
    lines.append(f"{len(report.findings)} found" if report.findings else "ok")
    return document, lines


class Teller:
    """Tells now and then how far a reading is, when it takes long enough for somebody to wonder."""

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation
        self._told = 0

    def __call__(self, done: int, of: int) -> None:
        """``done`` entries of ``of`` were read."""
        if done - self._told >= _TOLD_EVERY:
            self._told = done
            self._invocation.progress(f"{done} of {of} entries checked")


def _trust(path: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(path))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"{path} holds no certificates in PEM.", hint="Give the roots of the server."
        ) from error


def _read(path: Path, most: int) -> bytes:
    """What a file of at most ``most`` bytes holds.

    Raises:
        ConfigurationError: it cannot be read or is bigger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}.", hint="Check its name and mode."
        ) from error
    if len(content) > most:
        raise ConfigurationError(f"{path} is too big to be what it should be.", hint="Look at what is in it.")
    return content
