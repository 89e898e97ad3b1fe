"""``privyseal status --watch``: the state again and again, in place on a terminal, one after the other elsewhere."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Final

import click

from privyseal_ca.cli.status_text import matters, status_lines
from privyseal_ca.clock import rfc3339
from privyseal_ca.errors import ConfigurationError, PrivySealError

Document = Mapping[str, Any]

#: Another screen without a cursor, and back to the one that there was.
_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_BOLD: Final = "\x1b[1m"
_NOT_BOLD: Final = "\x1b[0m"
#: Clears the rest of the line, and of the screen.
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"


async def watch_status(look: Callable[[], Document], every: float, *, now: Callable[[], float], as_json: bool) -> None:
    """Show what ``look`` gives every ``every`` seconds until SIGINT, SIGTERM or SIGHUP.

    ``look`` runs in a thread, one call at a time. What it raises is shown in place of the state, and it is asked again.

    Raises:
        ConfigurationError: there was no authority when it was asked first.
    """
    live = sys.stdout.isatty() and not as_json
    stop, changed = asyncio.Event(), asyncio.Event()
    last: tuple[Document | None, PrivySealError | None] = (None, None)
    with _screen(live) as resumed, _told(stop, changed, resumed):
        while not stop.is_set():
            begun = monotonic()
            looking = asyncio.ensure_future(asyncio.to_thread(look))
            # Nobody who presses Ctrl-C waits for a database that does not answer.
            if not await _done(looking, stop):
                looking.cancel()
                return
            try:
                last = (looking.result(), None)
            except PrivySealError as error:
                # At first another home was meant; later on the database is not what it was.
                if isinstance(error, ConfigurationError) and last[0] is None:
                    raise
                last = (last[0], error)
            _show(*last, now=now(), live=live, as_json=as_json)
            while not stop.is_set() and (left := every - (monotonic() - begun)) > 0:
                if await _one_of(stop, changed, seconds=left) and changed.is_set():
                    changed.clear()
                    if live:
                        _show(*last, now=now(), live=True, as_json=False)


def frame(lines: list[str], *, columns: int, rows: int) -> str:
    """What redraws a screen of this size with ``lines`` and nothing else: those that fit, each cut to what fits.

    There is at least one line; the first is bold.
    """
    fits = max(1, rows - 1)
    if len(lines) > fits:
        lines = [*lines[: fits - 1], f"... and {len(lines) - fits + 1} more lines: the window is too small"]
    cut = [line if len(line) <= columns else f"{line[: max(0, columns - 3)]}..."[:columns] for line in lines]
    cut[0] = f"{_BOLD}{cut[0]}{_NOT_BOLD}"
    return _HOME + "".join(f"{line}{_REST_OF_LINE}\n" for line in cut) + _REST_OF_SCREEN


def view(document: Document | None, error: PrivySealError | None, now: float) -> list[str]:
    """What is to be seen: how it is in a line, and the figures. With an error the figures are those of before it."""
    if error is not None:
        # A driver's text may have several lines.
        head = [f"{rfc3339(now)}  NO ANSWER: {' '.join(error.message.split())}", f"  {' '.join(error.hint.split())}"]
    else:
        found = matters(document) if document else []
        head = [f"{rfc3339(now)}  {'ATTENTION: ' + ', '.join(found) if found else 'all is well'}"]
    if document is None:
        return head
    before = [f"as it was at {document['at']}:"] if error is not None else []
    return [*head, "", *before, *status_lines(document)]


def _show(document: Document | None, error: PrivySealError | None, *, now: float, live: bool, as_json: bool) -> None:
    if as_json:
        shown = document if error is None else {"at": rfc3339(now), "error": error.message, "hint": error.hint}
        click.echo(json.dumps(shown))
    elif live:
        # Not what the shell said in COLUMNS when this began: windows change.
        size = os.get_terminal_size(sys.stdout.fileno())
        _write(frame(view(document, error, now), columns=size.columns, rows=size.lines))
    else:
        # Whoever reads a log of it need not read the old figures again.
        click.echo("\n".join([*view(document if error is None else None, error, now), ""]))
    sys.stdout.flush()


@contextmanager
def _screen(live: bool) -> Iterator[Callable[[], None]]:
    """The other screen, and the one of before at the end, whatever happens; gives what stops the process for a while."""

    def pause() -> None:
        _write(_LEAVE)
        os.kill(os.getpid(), signal.SIGSTOP)
        _write(_ENTER)

    if not live:
        yield lambda: None
        return
    try:
        _write(_ENTER)
        yield pause
    finally:
        # A terminal that is gone needs no restoring.
        with suppress(OSError):
            _write(_LEAVE)


@contextmanager
def _told(stop: asyncio.Event, changed: asyncio.Event, pause: Callable[[], None]) -> Iterator[None]:
    """Have signals set ``stop``, or ``changed`` when the window has changed or the process was stopped for a while."""
    loop = asyncio.get_running_loop()

    def stopped() -> None:
        pause()
        changed.set()

    handlers: dict[signal.Signals, Callable[[], None]] = {
        signal.SIGINT: stop.set,
        signal.SIGTERM: stop.set,
        signal.SIGHUP: stop.set,
    }
    if sys.stdout.isatty():
        handlers |= {signal.SIGWINCH: changed.set, signal.SIGTSTP: stopped}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


async def _done(future: "asyncio.Future[Document]", stop: asyncio.Event) -> bool:
    """Whether the future came to its end before ``stop``."""
    stopped = asyncio.ensure_future(stop.wait())
    both: set[asyncio.Future[Any]] = {future, stopped}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
    return future.done()


async def _one_of(*events: asyncio.Event, seconds: float) -> bool:
    """Whether one of the events is set within ``seconds``."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()
    return bool(done)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
