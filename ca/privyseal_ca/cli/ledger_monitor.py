"""``privyseal ledger monitor``: the audit that goes on, and tells when something is wrong."""

import asyncio
import json
import shlex
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click

from privyseal_ca.cli.frame import FAILURE, Command, Invocation, pass_invocation
from privyseal_ca.cli.home import run
from privyseal_ca.cli.ledger_outside import Teller, place_options, places, tell_findings
from privyseal_ca.cli.text import duration
from privyseal_ca.clock import SystemClock
from privyseal_ca.outside.alerts import Alerter
from privyseal_ca.outside.monitor import Monitor, Round
from privyseal_ca.outside.state import MonitorState

_FRESHNESS: Final = 86400
#: Out of reach for so many rounds, and at least so many seconds, is told.
_ROUNDS: Final = 5
_PATIENCE: Final = 300


def _interval(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    return duration(text)


def _command(_context: click.Context, _parameter: click.Parameter, text: str | None) -> list[str]:
    try:
        words = [] if text is None else shlex.split(text)
    except ValueError as error:
        raise click.BadParameter("its quotes do not fit together") from error
    if text is not None and not words:
        raise click.BadParameter("it is empty, so that nobody would be told")
    return words


@click.command("monitor", cls=Command)
@place_options
@click.option(
    "--state",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Where it keeps what it has seen. A folder for each monitor.",
)
@click.option(
    "--interval", callback=_interval, default="60s", show_default=True, metavar="TIME", help="Time between two rounds."
)
@click.option("--once", is_flag=True, help="One round only; exit code 1 when something was found.")
@click.option(
    "--on-alert",
    "on_alert",
    callback=_command,
    metavar="COMMAND",
    help="Run this, without a shell, with the findings as JSON on its standard input: when they are new, and each hour.",
)
@pass_invocation
def monitor(
    invocation: Invocation,
    folder: Path,
    interval: int,
    once: bool,
    on_alert: Sequence[str],
    freshness: int | None,
    **options: Any,
) -> None:
    """Watch a log from another machine, over HTTP only, and tell what is wrong.

    Each round reads what is new, and compares it with all that was seen before. It goes on until SIGTERM or SIGINT. With --json
    it writes one line for each round.
    """
    where = places(invocation, **options)
    if freshness is not None:
        where.keys.require_witnesses()
    patience = 0 if once else max(_ROUNDS * interval, _PATIENCE)
    alerter = Alerter(on_alert, tell=invocation.progress)

    async def work() -> Round | None:
        with MonitorState.opened(folder, where.keys) as state:
            async with where.opened() as (source, also):
                watching = Monitor(
                    source,
                    where.keys,
                    state,
                    clock=SystemClock(),
                    freshness=_FRESHNESS if freshness is None else freshness,
                    patience=patience,
                    also=also,
                    entries=where.entries,
                    progress=Teller(invocation),
                )
                return await _rounds(invocation, watching, alerter, interval=None if once else interval)

    last = run(work())
    if once and last is not None and last.findings:
        click.get_current_context().exit(FAILURE)


async def _rounds(invocation: Invocation, monitor: Monitor, alerter: Alerter, *, interval: int | None) -> Round | None:
    """Rounds until the process is told to stop; one, without ``interval``. The last one that ended."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    last: Round | None = None
    try:
        while not stop.is_set():
            # What is told is told whole: a stop ends the looking, not the telling.
            looking = asyncio.create_task(monitor.round())
            await asyncio.wait({looking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not looking.done():
                looking.cancel()
                with suppress(asyncio.CancelledError):
                    await looking
                break
            last = looking.result()
            # Whoever reads along may be gone: that ends the monitor, but not before somebody was called.
            await alerter.judge(last)
            _tell(invocation, last)
            if interval is None:
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(stopping), interval)
    finally:
        stopping.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return last


def _tell(invocation: Invocation, done: Round) -> None:
    tell_findings(invocation, done.findings)
    for note in done.notes:
        invocation.progress(f"not yet alarming: {note}")
    if invocation.json:
        # One line for each round, for programs that read along.
        click.echo(json.dumps(done.document()))
    elif done.size is not None:
        # A round that found something has ended before it came to the entries.
        contents = "" if done.entries or done.findings else " (hashes only: entries are not given)"
        click.echo(f"{done.size} entries, {done.read} new{contents}: {len(done.findings)} found")
