"""``privyseal status`` and ``privyseal status publish``."""

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import click

from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import run, settings_of, surroundings_of
from privyseal_ca.cli.status_figures import status_document
from privyseal_ca.cli.status_text import status_lines
from privyseal_ca.cli.status_watch import watch_status
from privyseal_ca.cli.text import duration
from privyseal_ca.clock import Clock
from privyseal_ca.config import Settings
from privyseal_ca.errors import ConfigurationError, LedgerError, StatusUnavailableError, StoreError
from privyseal_ca.fleet.survey import FleetFigures
from privyseal_ca.fleet.survey_store import survey_fleet
from privyseal_ca.recovery.facts import restored_fact, unsettled
from privyseal_ca.recovery.guard import behind_home
from privyseal_ca.revocation.folder_publisher import FolderPublisher
from privyseal_ca.revocation.folder_writer import FolderWriter
from privyseal_ca.store.engine import Store
from privyseal_ca.store.readonly import reading

#: How often everything is compared, for what `follow` cannot see and for what is to be removed.
_SWEEP_SECONDS: Final = 300.0
#: How much longer than a survey of the fleet it is until the next, with --watch.
_SURVEY_REST: Final = 19


@click.group("status", cls=Group, invoke_without_command=True)
@click.option("--watch", is_flag=True, help="Go on showing it until Ctrl-C: in place on a terminal.")
@click.option("--every", type=duration, default="2s", show_default=True, help="How often, with --watch.")
@pass_invocation
def status(invocation: Invocation, watch: bool, every: int) -> None:
    """Show the state of this authority.

    That is its service, its jobs, the workloads, and what is published. With --watch and --json there is a document in one line
    each time. A database that goes away is shown, and asked again.
    """
    if (subcommand := click.get_current_context().invoked_subcommand) is not None:
        if watch:
            raise click.UsageError(f"--watch has to come after {subcommand}.")
        return
    if not watch:
        _show(invocation)
        return
    clock = surroundings_of(invocation).clock
    look = _Look(settings_of(invocation), clock)
    run(watch_status(look, every, now=clock.now, as_json=invocation.json))


@status.command("publish")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--watch", is_flag=True, help="Go on until SIGTERM or SIGINT, and take over what changes.")
@pass_invocation
def publish(invocation: Invocation, folder: Path, watch: bool) -> None:
    """Write CRLs, OCSP responses, certificates and the ledger into a folder.

    The folder is for a web server, or for `privyseal serve --role status --folder`. What is in it comes from the database
    alone, which is only read: neither the token nor the service is needed. What is older never replaces what is newer.
    """
    settings = settings_of(invocation)
    folder = folder.absolute()
    clock = surroundings_of(invocation).clock

    async def work() -> FolderPublisher:
        async with reading(settings) as store:
            fact = await store.read(restored_fact)
            wrong = unsettled(fact) if fact is not None else await behind_home(store, settings)
            if wrong is not None:
                raise wrong
            with FolderWriter(folder) as writer:
                publisher = FolderPublisher(
                    store=store, writer=writer, settings=settings, clock=clock, progress=invocation.progress
                )
                with closing(publisher):
                    await publisher.publish()
                    if watch:
                        invocation.progress(f"published into {folder}; watching for changes")
                        await _until_told(publisher, settings.status.interval, invocation.progress)
                return publisher

    publisher = run(work())
    counts = publisher.counts
    written = {"certificates": counts.certificates, "crls": counts.crls, "responses": counts.responses}
    written["tiles"] = publisher.ledger.counts.tiles
    if publisher.ledger.problem:
        raise LedgerError(
            f"{folder}: everything but the ledger was published. {publisher.ledger.problem}",
            hint="docs/ledger.md says what to do.",
        )
    document = {
        "folder": str(folder),
        "certificates": len(publisher.manifest.issuers),
        "crls": len(publisher.manifest.crls),
        "responses": publisher.responses,
        "ledger": publisher.ledger.size,
        "written": written,
        "removed": counts.removed + publisher.ledger.counts.removed,
        "kept_newer": counts.kept,
    }
    shown = ", ".join(f"{count} {what}" for what, count in written.items())
    invocation.result(
        document,
        f"{folder}: {document['crls']} CRLs, {document['responses']} OCSP responses, {document['certificates']} CAs, "
        f"{document['ledger']} entries of the ledger\n"
        f"written: {shown}; removed: {document['removed']}; newer ones kept: {counts.kept}",
    )


async def _until_told(publisher: FolderPublisher, interval: float, progress: Callable[[str], None]) -> None:
    """Take over changes every ``interval`` seconds until SIGTERM or SIGINT; look at everything now and then."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    problem = ""
    swept_at = loop.time()
    while not await _is_set(stop, interval):
        try:
            await publisher.follow()
            # A sweep of many pages goes on where it was; changes come first.
            until = loop.time() + interval
            while loop.time() - swept_at >= _SWEEP_SECONDS and loop.time() < until and not stop.is_set():
                if await publisher.sweep():
                    swept_at = loop.time()
        except (StoreError, StatusUnavailableError, ConfigurationError) as error:
            if error.message != problem:
                progress(f"not published: {error}")
            problem = error.message
        else:
            if problem:
                progress("published again")
            problem = ""


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """Whether ``event`` is set within ``seconds``."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


def _show(invocation: Invocation) -> None:
    settings = settings_of(invocation)
    now = surroundings_of(invocation).clock.now()
    document = run(status_document(settings, now))
    invocation.result(document, "\n".join(status_lines(document)))


class _Look:
    """Looks at the authority of ``settings``, and at its whole fleet so seldom that it takes a twentieth of the time."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._figures: FleetFigures | None = None
        self._survey_again = 0.0

    def __call__(self) -> dict[str, Any]:
        return asyncio.run(status_document(self._settings, self._clock.now(), survey=self._survey))

    async def _survey(self, store: Store, now: float) -> FleetFigures:
        begun = time.monotonic()
        if self._figures is None or begun >= self._survey_again:
            self._figures = await survey_fleet(store, now)
            ended = time.monotonic()
            self._survey_again = ended + _SURVEY_REST * (ended - begun)
        return self._figures
