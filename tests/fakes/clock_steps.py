"""A wall clock that steps on command, under a real program: ``tests/native/clock_steps.c``, preloaded into it.

::

    clock = SteppingClock(folder)
    server = ServerProcess(home, command=clock.command(PRIVYSEAL, "serve"))
    clock.step(-3600)
"""

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path

from fakes.native import preloaded

_LIBRARY = "clock_steps"
_AHEAD = struct.Struct("=q")


class SteppingClock:
    """The wall clock of every program that is started in :attr:`environment`; right until it is stepped."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock-steps"
        self._file.write_bytes(_AHEAD.pack(0))
        with self._file.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _AHEAD.size)

    @property
    def environment(self) -> dict[str, str]:
        """What puts a program on this clock."""
        return {"LD_PRELOAD": str(preloaded(_LIBRARY)), "CLOCK_STEPS": str(self._file)}

    def command(self, *command: str | Path) -> Sequence[str | Path]:
        """``command`` on this clock, beside what is preloaded already."""
        preload = f"LD_PRELOAD={preloaded(_LIBRARY)}${{LD_PRELOAD:+:$LD_PRELOAD}}"
        script = f'export CLOCK_STEPS="$1" {preload}; shift; exec "$@"'
        return ["/bin/sh", "-c", script, "sh", self._file, *command]

    def step(self, ahead: int) -> None:
        """Be ``ahead`` seconds before the right time from now on, or behind it where that is negative."""
        self._memory[:] = _AHEAD.pack(ahead)
