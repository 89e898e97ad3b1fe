"""Reading a SQLite database that another process writes, or none: without leaving a trace, under another user as well.

In WAL mode a reader needs the files ``-wal`` and ``-shm``. They are there while somebody has the database open, and after a
crash; the last one to close it removes them. A reader that made them again would own them, and the writer, a different user,
could not open them. So where they are missing the file is read as it stands, which is right as long as they are missing:
nobody changes the database itself without them. That is looked at before and after.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from privyseal_ca.errors import StoreUnavailableError

#: Opens the database with these URI parameters.
Connect = Callable[[str], sqlite3.Connection]

_SHARED = "mode=ro"
_STANDING = "mode=ro&immutable=1"


class LoneReader:
    """The connection of a process that only reads. Another file in the database's place, as after a restore, is noticed."""

    def __init__(self, path: Path, connect: Connect) -> None:
        self._path = path
        self._log = path.with_name(f"{path.name}-wal")
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] = (0, 0)
        self._standing = False
        self._written = 0

    def connection(self) -> sqlite3.Connection:
        """The connection to read with, a new one where the old one does not lead to what is there now.

        Raises:
            StoreUnavailableError: there is no database, or it cannot be opened.
        """
        try:
            state = self._path.stat()
        except OSError as error:
            self.close()
            raise StoreUnavailableError(
                f"The database {self._path} cannot be read: {error.strerror}.", hint="Check the file and its folder."
            ) from error
        file = (state.st_dev, state.st_ino)
        if self._connection is not None and (file != self._file or self._standing):
            self.close()
        if self._connection is None:
            self._standing = not self._log.exists()
            self._file, self._written = file, state.st_mtime_ns
            self._connection = self._connect(_STANDING if self._standing else _SHARED)
        return self._connection

    def holds(self) -> bool:
        """Whether what was read since :meth:`connection` is one state of the database."""
        if not self._standing:
            return True
        try:
            return not self._log.exists() and self._path.stat().st_mtime_ns == self._written
        except OSError:
            return False

    def close(self) -> None:
        """Let go of the connection; the next :meth:`connection` makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
