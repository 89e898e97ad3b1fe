"""A disk that fails on command, under a real program: ``tests/native/disk_faults.c``, preloaded into it.

::

    disk = FaultyDisk(folder, "privyseal.db")
    server = ServerProcess(home, command=disk.command(PRIVYSEAL, "serve"))
    with disk.failing(Mode.FULL):
        ...
"""

import contextlib
import mmap
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path

from fakes.native import preloaded

_LIBRARY = "disk_faults"
_CONTROL = struct.Struct("=iii")


class Mode(IntEnum):
    """How the disk fails; the source says what each does."""

    HEALTHY = 0
    FULL = 1
    READ_ONLY = 2
    BROKEN = 3
    SYNC_LOST = 4
    SYNC_UNCERTAIN = 5
    CANNOT_GROW = 6


class FaultyDisk:
    """The disk under the files whose path contains ``concerned``, for every program that :meth:`command` starts."""

    def __init__(self, folder: Path, concerned: str) -> None:
        self._file = folder / "disk-faults"
        self._file.write_bytes(bytes(_CONTROL.size))
        self._file.chmod(0o666)  # a database server may run as somebody else
        self._concerned = concerned
        with self._file.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _CONTROL.size)

    @property
    def environment(self) -> dict[str, str]:
        """What puts a program on this disk."""
        return {
            "LD_PRELOAD": str(preloaded(_LIBRARY)),
            "DISK_FAULTS": str(self._file),
            "DISK_FAULTS_PATH": self._concerned,
        }

    def command(self, *command: str | Path) -> Sequence[str | Path]:
        """``command`` on this disk."""
        return ["/usr/bin/env", *(f"{name}={value}" for name, value in self.environment.items()), *command]

    @property
    def injected(self) -> int:
        """How many calls have failed so far."""
        return int(_CONTROL.unpack(self._memory[:])[2])

    def fail(self, mode: Mode, *, times: int = -1) -> None:
        """Fail from now on, or the next ``times`` times."""
        # The mode last: until then nothing fails, whatever the count says.
        self._memory[4:8] = struct.pack("=i", times)
        self._memory[0:4] = struct.pack("=i", mode)

    def heal(self) -> None:
        """Do as one is told again."""
        self._memory[0:4] = struct.pack("=i", Mode.HEALTHY)

    @contextlib.contextmanager
    def failing(self, mode: Mode) -> Iterator[None]:
        """Fails inside the block."""
        self.fail(mode)
        try:
            yield
        finally:
            self.heal()
