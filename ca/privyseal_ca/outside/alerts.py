"""Telling somebody by a command of theirs."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import orjson

from privyseal_ca.outside.findings import Code
from privyseal_ca.outside.monitor import Round

_SECONDS: Final = 30.0
#: What goes on is told again after this time.
_AGAIN: Final = 3600.0


class Alerter:
    """Runs ``command``, without a shell, with a round's document on its standard input, when something new was found and each hour
    as long as it is so. ``tell`` is told when the command fails; the monitor goes on, and tries again after the next round.
    """

    def __init__(self, command: Sequence[str], *, tell: Callable[[str], None], seconds: float = _SECONDS) -> None:
        self._command = tuple(command)
        self._tell = tell
        self._seconds = seconds
        self._told: frozenset[tuple[Code, int | None, int]] = frozenset()
        self._told_at = 0.0

    async def judge(self, done: Round) -> None:
        """Run the command if ``done`` is a reason to."""
        counts = Counter((finding.code, finding.index) for finding in done.findings)
        # A second one of the same code is news as well.
        found = frozenset((*what, number) for what, count in counts.items() for number in range(count))
        # However far a clock has stepped since.
        new = not found <= self._told or not 0 <= done.time - self._told_at < _AGAIN
        # What is over is news when it comes back.
        self._told &= found
        if self._command and found and new and await self._run(orjson.dumps(done.document()) + b"\n"):
            self._told, self._told_at = found, done.time

    async def _run(self, content: bytes) -> bool:
        """Run the command; whether it took what it was given, so that somebody may know."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            self._tell(f"the alert command cannot be run: {error.strerror}")
            return False
        try:
            async with asyncio.timeout(self._seconds):
                # A command that does not read what it is given has not failed for that.
                with suppress(BrokenPipeError, ConnectionResetError):
                    await process.communicate(content)
                await process.wait()
        except TimeoutError:
            self._tell(f"the alert command was ended after {self._seconds:.0f} seconds")
            return False
        finally:
            # With whatever it has started.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode:
            self._tell(f"the alert command failed with exit code {process.returncode}")
        return not process.returncode
