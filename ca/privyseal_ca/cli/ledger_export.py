"""``privyseal ledger export`` and ``exports``: the ledger for those who collect security events."""

import asyncio
import hashlib
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import click

from privyseal_ca.cli.frame import Command, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of
from privyseal_ca.cli.text import moment, table
from privyseal_ca.cli.version import program_version
from privyseal_ca.clock import SystemClock
from privyseal_ca.config import Settings
from privyseal_ca.errors import ExportError
from privyseal_ca.export.exporter import DEFAULT_BATCH, MAX_BATCH, Exporter, Report, Source, listed
from privyseal_ca.export.formats import FORMATS, Sender, renderer
from privyseal_ca.export.streams import StreamTarget, TlsFiles
from privyseal_ca.export.syslog import DEFAULT_MAX_MESSAGE, MAX_MESSAGE, MIN_MESSAGE
from privyseal_ca.export.targets import FileTarget, OutputTarget, Stop, Target
from privyseal_ca.ledger.checkpoints import ORIGIN_FACT
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.store.engine import Store
from privyseal_ca.store.exports import remove_export
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.readonly import reading

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
#: What a line of each format begins with.
_BEGINS: Final = {"jsonl": b'{"index":', "ocsf": b'{"activity_id":', "syslog": b"<1"}
#: Characters of a host's or a file's name in the name of a cursor.
_NAMED: Final = 48
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Destination(NamedTuple):
    """What ``--to`` names."""

    #: ``file``, ``output``, ``tcp`` or ``tls``.
    scheme: str
    path: Path = Path()
    host: str = ""
    port: int = 0

    def name(self) -> str | None:
        """What its cursor is called unless somebody says otherwise; None for standard output, which has none by itself."""
        if self.scheme == "output":
            return None
        if self.scheme == "file":
            # Two files of one name in different folders are different files.
            return f"file-{_plain(self.path.name)[:_NAMED]}-{_short_hash(str(self.path.absolute()))}"
        plain = _plain(self.host)[:_NAMED]
        # Two receivers never share a cursor: each would lack what the other one got.
        return f"{self.scheme}-{plain}-{self.port}" + ("" if plain == self.host else f"-{_short_hash(self.host)}")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower())


def _destination(_context: click.Context, _parameter: click.Parameter, text: str) -> Destination:
    if text == "-":
        return Destination("output")
    if "://" not in text:
        return Destination("file", path=Path(text))
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise click.BadParameter(f"not a URL: {error}") from error
    if (
        url.scheme not in {"tcp", "tls"}
        or not host
        or not port
        or text != f"{url.scheme}://{url.netloc}"
        or "@" in text
    ):
        raise click.BadParameter("give a file, -, tcp://HOST:PORT or tls://HOST:PORT")
    return Destination(url.scheme, host=host, port=port)


def _cursor_name(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    if text is not None and not _NAME.fullmatch(text):
        raise click.BadParameter("at most 63 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit")
    return text


def _kinds(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    wanted = () if text is None else tuple(text.split(","))
    for kind in wanted:
        if kind not in frozenset(Kind):
            raise click.BadParameter(f"there is no kind {kind!r}; docs/ledger.md lists them")
    return wanted


@click.command("export", cls=Command)
@click.option("--format", "form", type=click.Choice(FORMATS), required=True, help="How entries are written.")
@click.option(
    "--to",
    "destination",
    required=True,
    callback=_destination,
    metavar="FILE|-|tcp://HOST:PORT|tls://HOST:PORT",
    help="Where they go; - is standard output.",
)
@click.option(
    "--name",
    callback=_cursor_name,
    help="Name of the cursor, where the next run goes on. Default: made from --to; standard output has none.",
)
@click.option("--follow", is_flag=True, help="Go on with entries as they come, until SIGTERM or SIGINT.")
@click.option(
    "--from", "first", type=click.IntRange(min=0), metavar="INDEX", help="Begin here, wherever the cursor is."
)
@click.option("--kinds", callback=_kinds, metavar="KIND,...", help="Only entries of these kinds.")
@click.option("--ca-file", type=_FILE, metavar="FILE", help="tls: roots of the receiver. Default: those of the system.")
@click.option("--client-cert", type=_FILE, metavar="FILE", help="tls: certificate and chain to show to the receiver.")
@click.option("--client-key", type=_FILE, metavar="FILE", help="tls: its key, when that is in a file of its own.")
@click.option(
    "--batch",
    type=click.IntRange(1, MAX_BATCH),
    default=DEFAULT_BATCH,
    show_default=True,
    help="How many entries are in memory at once.",
)
@click.option(
    "--max-message",
    type=click.IntRange(MIN_MESSAGE, MAX_MESSAGE),
    default=DEFAULT_MAX_MESSAGE,
    show_default=True,
    help="syslog: octets of a message; a larger entry goes without its payload.",
)
@pass_invocation
def export(
    invocation: Invocation,
    form: str,
    destination: Destination,
    name: str | None,
    follow: bool,
    first: int | None,
    kinds: tuple[str, ...],
    ca_file: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
    batch: int,
    max_message: int,
) -> None:
    """Hand entries on to a file, a collector of logs or a SIEM, at least once and in their order.

    A cursor in the database says where the next run goes on. It moves when the target has what was sent.
    """
    tls = TlsFiles(ca_file, client_cert, client_key)
    if any(tls) and destination.scheme != "tls":
        raise click.UsageError("--ca-file, --client-cert and --client-key are for tls://HOST:PORT.")
    if client_key is not None and client_cert is None:
        raise click.UsageError("--client-key belongs to --client-cert: give both.")
    settings = settings_of(invocation)
    cursor = name or destination.name()

    async def work() -> Report:
        async with _store(settings, writing=cursor is not None) as store:
            stop = Stop()
            if follow:
                loop = asyncio.get_running_loop()
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, stop.set)
            exporter = Exporter(
                Source(store, cursor, kinds, batch),
                _target(destination, form, tls),
                renderer(
                    form,
                    await _sender(store, form),
                    stream=destination.scheme in {"tcp", "tls"},
                    max_message=max_message,
                ),
                clock=SystemClock(),
                stop=stop,
                tell=invocation.progress,
            )
            return await exporter.run(follow=follow, first=first)

    report = run(work())
    text = f"{report.sent} entries exported; the next run goes on at {report.next} of {report.size}"
    if destination.scheme == "output":
        # Standard output is the entries'.
        invocation.progress(text)
    else:
        invocation.result({"name": cursor, "sent": report.sent, "next": report.next, "size": report.size}, text)


@click.command("exports", cls=Command)
@click.option("--remove", callback=_cursor_name, metavar="NAME", help="Forget this export and where it was.")
@pass_invocation
def exports(invocation: Invocation, remove: str | None) -> None:
    """List the exports: how far each is, and what keeps it from going on."""
    settings = settings_of(invocation)
    if remove is not None:
        run(_remove(settings, remove))
        invocation.result({"removed": remove}, f"removed: {remove}")
        return

    async def work() -> list[dict[str, str | int | None]]:
        async with reading(settings) as store:
            rows, size = await listed(store)
        return [
            {
                "name": row.name,
                "next": row.next,
                "behind": max(0, size - row.next),
                "updated": moment(row.updated_at),
                "problem": row.problem,
            }
            for row in rows
        ]

    found = run(work())
    lines = [
        [str(row["name"]), str(row["next"]), str(row["behind"]), str(row["updated"]), str(row["problem"] or "-")]
        for row in found
    ]
    invocation.result(found, table(("name", "next", "behind", "updated", "problem"), lines))


async def _remove(settings: Settings, name: str) -> None:
    async with opened_store(settings) as store:
        if not await store.write(lambda tx: remove_export(tx, name)):
            raise ExportError(f"There is no export called {name}.", hint="`privyseal ledger exports` lists them.")


@asynccontextmanager
async def _store(settings: Settings, *, writing: bool) -> AsyncIterator[Store]:
    """The database; without a cursor to keep, as those open it who may only look."""
    async with opened_store(settings) if writing else reading(settings) as store:
        yield store


async def _sender(store: Store, form: str) -> Sender:
    origin = await store.read(lambda tx: find_fact(tx, ORIGIN_FACT))
    if origin is None and form != "jsonl":
        raise ExportError(
            "The ledger has no name yet, by which receivers recognise its entries.",
            hint="The service gives it one when it starts first. `--format jsonl` needs none.",
        )
    return Sender(origin or "", socket.getfqdn(), program_version())


def _target(destination: Destination, form: str, tls: TlsFiles) -> Target:
    match destination.scheme:
        case "file":
            return FileTarget(destination.path, begins=_BEGINS[form])
        case "output":
            return OutputTarget(sys.stdout.fileno())
        case scheme:
            return StreamTarget(destination.host, destination.port, tls=tls if scheme == "tls" else None)
