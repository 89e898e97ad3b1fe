"""Telling somebody by a command of theirs."""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import orjson

from privyseal_ca.clock import Clock
from privyseal_ca.outside.findings import Code
from privyseal_ca.outside.monitor import Round

_SECONDS: Final = 30.0
#: What goes on is told again after this time.
_AGAIN: Final = 3600.0


class Alerter:
    """Runs ``command``, without a shell, with a round's document on its standard input, when something new was found and each hour
    as long as it is so. ``tell`` is told when the command fails; the monitor goes on.
    """

    def __init__(
        self, command: Sequence[str], *, clock: Clock, tell: Callable[[str], None], seconds: float = _SECONDS
    ) -> None:
        self._command = tuple(command)
        self._clock = clock
        self._tell = tell
        self._seconds = seconds
        self._told: frozenset[tuple[Code, int | None]] = frozenset()
        self._told_at = 0.0

    async def judge(self, done: Round) -> None:
        """Run the command if ``done`` is a reason to."""
        found = frozenset((finding.code, finding.index) for finding in done.findings)
        new = not found <= self._told or done.time - self._told_at >= _AGAIN
        self._told = found
        if not self._command or not found or not new:
            return
        self._told_at = self._clock.now()
        await self._run(orjson.dumps(done.document()) + b"\n")

    async def _run(self, content: bytes) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            self._tell(f"the alert command cannot be run: {error.strerror}")
            return
        try:
            async with asyncio.timeout(self._seconds):
                # A command that does not read what it is given has not failed for that.
                with suppress(BrokenPipeError, ConnectionResetError):
                    await process.communicate(content)
                await process.wait()
        except TimeoutError:
            self._tell(f"the alert command was ended after {self._seconds:.0f} seconds")
        finally:
            # With whatever it has started.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode:
            self._tell(f"the alert command failed with exit code {process.returncode}")
