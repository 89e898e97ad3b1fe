"""Secrets in files that nobody else may read, shown nowhere (promise P10)."""

import os
import stat
from pathlib import Path
from typing import Final

from privyseal_ca.errors import ConfigurationError

#: In bytes.
LONGEST: Final = 255


def read_private_line(path: Path, *, what: str, shortest: int) -> bytes:
    """The line that the file at ``path`` holds, without its end: ``shortest`` to 255 printable ASCII characters, no spaces.

    The text of an error says ``what`` was to be read, never what was.

    Raises:
        ConfigurationError: the file is not there, not private, not regular, or not such a line.
    """
    content = _read(path, LONGEST + 3, what)
    line = content.removesuffix(b"\n").removesuffix(b"\r")
    if not shortest <= len(line) <= LONGEST or not all(0x21 <= octet <= 0x7E for octet in line):
        raise ConfigurationError(
            f"The file {path} with {what} does not hold one line of {shortest} to {LONGEST} printable ASCII characters "
            "without spaces.",
            hint="Make one with: openssl rand -hex 32",
        )
    return line


def read_private_lines(path: Path, *, what: str, most: int) -> list[str]:
    """The lines of the file at ``path``, which has up to ``most`` bytes of UTF-8 text, without their ends.

    Raises:
        ConfigurationError: the file is not there, not private, not regular, too long or no text.
    """
    content = _read(path, most + 1, what)
    if len(content) > most:
        raise ConfigurationError(
            f"The file {path} with {what} has more than {most} bytes.", hint="Keep to what belongs into it."
        )
    try:
        return content.decode().splitlines()
    except UnicodeDecodeError:
        # Without its cause, which holds the content.
        raise ConfigurationError(f"The file {path} with {what} is not UTF-8 text.", hint="Write it as such.") from None


def _read(path: Path, count: int, what: str) -> bytes:
    try:
        # O_NONBLOCK: a FIFO in its place must not stop us; symbolic links are followed, as secrets are mounted with them.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigurationError(
            f"The file {path} with {what} cannot be read: {error.strerror}.",
            hint="It must exist and be readable by the user that runs privyseal.",
        ) from error
    try:
        _check(path, os.fstat(descriptor), what)
        return os.read(descriptor, count)
    finally:
        os.close(descriptor)


def _check(path: Path, status: os.stat_result, what: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"{path}, which should hold {what}, is not a regular file.", hint="Name a file.")
    if status.st_uid not in {os.geteuid(), 0}:
        raise ConfigurationError(
            f"The file {path} with {what} belongs to another user.",
            hint="Give it to the user that runs privyseal, or root.",
        )
    if status.st_mode & 0o077:
        raise ConfigurationError(
            f"The file {path} with {what} can be used by others (mode {stat.S_IMODE(status.st_mode):04o}).",
            hint=f"Run: chmod 600 {path}",
        )
