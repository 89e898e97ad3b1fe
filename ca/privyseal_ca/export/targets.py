"""Where entries go: a file or standard output. Streams over the network are in :mod:`privyseal_ca.export.streams`.

Targets block, so they run on a thread of their own, and look at :class:`Stop` several times a second.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from privyseal_ca.errors import ExportError

#: How long anything blocks before it looks whether it is to stop.
POLL: Final = 0.2
#: No line of ours is longer.
_MAX_LINE: Final = 1 << 20
_CHUNK: Final = 1 << 16
#: What a pipe takes at once when it is ready for anything at all (POSIX PIPE_BUF).
_PIPE: Final = 4096


class StoppedError(Exception):
    """The export is to end: what was going on was given up."""


class Stop:
    """Says that the export is to end. Belongs to one event loop; other threads may only ask."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._waiting = asyncio.Event()

    def set(self) -> None:
        """End the export soon."""
        self._asked.set()
        self._waiting.set()

    @property
    def asked(self) -> bool:
        """Whether it is to end."""
        return self._asked.is_set()

    def check(self) -> None:
        """Raise StoppedError when it is to end."""
        if self.asked:
            raise StoppedError

    async def wait(self, seconds: float) -> bool:
        """Wait; whether it is to end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._waiting.wait(), seconds)
        return self.asked


class Target(Protocol):
    """Where entries are handed over. Used by one thread at a time."""

    #: How long entries are collected before :meth:`confirm`, in seconds.
    pause: float

    def send(self, entries: Sequence[bytes], stop: Stop) -> None:
        """Hand entries over, waiting as long as the target takes them slowly. They may still be lost until :meth:`confirm`.

        Raises:
            ExportError: the target does not take them; the caller begins again after what was confirmed last.
            StoppedError: it is to end.
        """
        ...

    def confirm(self, stop: Stop) -> None:
        """Make sure that everything that was sent has arrived, as far as the target can tell. When it is to end, in a hurry.

        Raises:
            ExportError: it cannot be told; the caller begins again after what was confirmed last.
        """
        ...

    def close(self) -> None:
        """Let go of the target, whatever its state."""
        ...


class FileTarget:
    """A file that grows. Another program may rename it at any time: then there is a new one.

    What arrived is what was synchronised to the disk. A last line without an end, as a crash leaves it, is removed first.
    """

    pause = 1.0

    def __init__(self, path: Path, *, begins: bytes) -> None:
        """``begins`` is what every line of the format begins with: nothing else is ever removed."""
        self._path = path
        self._begins = begins
        self._handle: int | None = None
        self._written = False

    def send(self, entries: Sequence[bytes], stop: Stop) -> None:
        """Append ``entries``."""
        try:
            if self._handle is not None and self._renamed(self._handle):
                self._synchronise(self._handle)
                self.close()
            if self._handle is None:
                self._handle = self._open()
            self._written = True
            for entry in entries:
                stop.check()
                _write(self._handle, entry)
        except OSError as error:
            self.close()
            raise self._failure(error) from error

    def confirm(self, _: Stop) -> None:
        """Synchronise."""
        if self._handle is None or not self._written:
            return
        try:
            self._synchronise(self._handle)
        except OSError as error:
            self.close()
            raise self._failure(error) from error
        self._written = False

    def close(self) -> None:
        """Close the file."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(OSError):
                os.close(handle)

    def _renamed(self, handle: int) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return True
        return not os.path.samestat(there, os.fstat(handle))

    def _synchronise(self, handle: int) -> None:
        os.fsync(handle)
        if os.fstat(handle).st_nlink == 0:
            self.close()
            raise ExportError(
                f"{self._path} was removed while it was being written.",
                hint="Rename files that are full, and remove them when they are an hour old or older.",
            )

    def _open(self) -> int:
        # Without waiting for the other end, should it be a pipe.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW
        try:
            handle = os.open(self._path, flags, 0o600)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise ExportError(
                f"{self._path} is a symbolic link, which whoever may write there can turn to any other file.",
                hint="Give the file itself with --to.",
            ) from error
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ExportError(f"{self._path} is not a file.", hint="Give a file, - or a URL with --to.")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ExportError(
                    f"Another program writes to {self._path}.", hint="Give each export a file of its own."
                ) from error
            self._repair(handle)
            _synchronise_folder(self._path.parent)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _repair(self, handle: int) -> None:
        """Remove a line at the end that has no end: its entry was not confirmed, and is sent again."""
        size = os.fstat(handle).st_size
        tail = b""
        while b"\n" not in tail and len(tail) < min(size, _MAX_LINE):
            begin = max(0, size - len(tail) - _CHUNK)
            tail = os.pread(handle, size - len(tail) - begin, begin) + tail
        torn = tail[tail.rfind(b"\n") + 1 :]
        if not torn:
            return
        if torn[: len(self._begins)] != self._begins[: len(torn)] or len(torn) >= _MAX_LINE:
            raise ExportError(
                f"{self._path} ends with something that no export in this format has written.",
                hint="Give another file with --to.",
            )
        os.ftruncate(handle, size - len(torn))

    def _failure(self, error: OSError) -> ExportError:
        return ExportError(
            f"{self._path} cannot be written: {error.strerror}.",
            hint="Look whether its folder is there, may be written and has room; the export goes on where it was.",
        )


class OutputTarget:
    """Standard output. What arrived is what the other end of it has taken; where it is a file, what was synchronised."""

    pause = 1.0

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def send(self, entries: Sequence[bytes], stop: Stop) -> None:
        """Write ``entries``, waiting for the other end."""
        poll = select.poll()
        poll.register(self._handle, select.POLLOUT)
        try:
            for entry in entries:
                rest = memoryview(entry)
                while rest:
                    stop.check()
                    if poll.poll(POLL * 1000):
                        rest = rest[os.write(self._handle, rest[:_PIPE]) :]
        except OSError as error:
            raise _output_failure(error) from error

    def confirm(self, _: Stop) -> None:
        """Whoever reads it has the data or the pipe has; a file is synchronised."""
        try:
            if stat.S_ISREG(os.fstat(self._handle).st_mode):
                os.fsync(self._handle)
        except OSError as error:
            raise _output_failure(error) from error

    def close(self) -> None:
        """It is not ours to close."""


def _output_failure(error: OSError) -> ExportError:
    return ExportError(f"Standard output cannot be written: {error.strerror}.", hint="Look at what reads it.")


def _write(handle: int, entry: bytes) -> None:
    rest = memoryview(entry)
    while rest:
        written = os.write(handle, rest)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest = rest[written:]


def _synchronise_folder(folder: Path) -> None:
    """Make a new file's name durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
