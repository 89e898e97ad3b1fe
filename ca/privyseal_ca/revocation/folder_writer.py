"""Writing files into a published folder so that a reader sees the old one or the new one, never half of either.

Only what ``status publish`` wrote is ever changed or removed: a folder is taken over when it is empty or has a manifest, and
files go whose paths the manifest names, which have the names that OCSP responses have, or which are the ledger's.
"""

import fcntl
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, Self

from privyseal_ca.errors import ConfigurationError, StatusUnavailableError
from privyseal_ca.revocation.manifest import MANIFEST, Manifest, read_manifest

LOCK: Final = ".privyseal-publish"

_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
#: In so many octets at its beginning a CRL names its issuer.
_HEAD: Final = 8192
_ATTEMPTS: Final = 5
_UNFINISHED: Final = re.compile(r"\.[0-9a-f]{16}\.privyseal")
#: The base64 text of an OCSP request, with folders for its slashes: it begins with two SEQUENCEs and is never so short.
_RESPONSE: Final = re.compile(r"ocsp/M[A-Za-z0-9]{4}[A-Za-z0-9+/]{55,}={0,2}_?")


class FolderWriter:
    """A folder that this process alone writes into, inside its context.

    Entering it raises:
        ConfigurationError: another process writes into the folder, it cannot be used, or holds what is not ours.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: What the folder held when it was opened, then what was written last.
        self.manifest = Manifest()
        self._lock: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            self._make_folder(self.folder)
            self._lock = (self.folder / LOCK).open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._take_over()
        except BlockingIOError as error:
            self._unlock()
            raise ConfigurationError(
                f"Another process publishes into {self.folder}.", hint="Stop it, or choose another folder."
            ) from error
        except OSError as error:
            self._unlock()
            raise _unusable(self.folder, error) from error
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._unlock()

    def put(self, path: str, content: bytes, *, time: int | None = None) -> bool:
        """Make ``content`` the file at ``path`` with ``time`` as its time; False when it was before.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        target = self.folder / path
        with suppress(OSError):
            if target.stat().st_size == len(content) and target.read_bytes() == content:
                return False
        try:
            with self._new_file(target, time) as file:
                file.write(content)
        except OSError as error:
            raise _unusable(self.folder, error) from error
        return True

    def renew(self, path: str, content: bytes, *, time: int) -> bool:
        """As :meth:`put`, but when the file before was not older than ``time``, the time is a second after that: web servers
        tell one from the other by it.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        with suppress(OSError):
            time = max(time, int((self.folder / path).stat().st_mtime) + 1)
        return self.put(path, content, time=time)

    async def stream(
        self, path: str, pieces: AsyncIterator[bytes], *, time: int, digest: bytes, subject: bytes
    ) -> None:
        """Make what ``pieces`` give the file at ``path``, when its SHA-256 is ``digest`` and it begins with an issuer's
        ``subject`` (DER).

        Raises:
            StatusUnavailableError: they give something else; the file is as it was.
            ConfigurationError: the folder cannot be written.
        """
        hashed = sha256()
        try:
            with self._new_file(self.folder / path, time) as file:
                async for piece in pieces:
                    if file.tell() == 0 and subject not in piece[:_HEAD]:
                        raise StatusUnavailableError(f"What was to become {path} is from another issuer.")
                    hashed.update(piece)
                    file.write(piece)
                if hashed.digest() != digest:
                    raise StatusUnavailableError(f"What was to become {path} is not what the database says it is.")
        except OSError as error:
            raise _unusable(self.folder, error) from error

    async def assemble(self, path: str, pieces: AsyncIterator[bytes], *, time: int) -> None:
        """Make what ``pieces`` give the file at ``path``. Its time is ``time``, or when the file before was not older, a second
        after that: web servers tell one from the other by it.

        Raises:
            StatusUnavailableError: they do not come to their end; the file is as it was.
            ConfigurationError: the folder cannot be written.
        """
        target = self.folder / path
        with suppress(OSError):
            time = max(time, int(target.stat().st_mtime) + 1)
        try:
            with self._new_file(target, time) as file:
                async for piece in pieces:
                    file.write(piece)
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def date(self, path: Path, time: int) -> None:
        """Give the file at ``path`` its ``time``.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        try:
            os.utime(path, (time, time))
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def write_manifest(self, manifest: Manifest) -> bool:
        """Say what the folder holds now; False when that was said before."""
        if manifest.model_copy(update={"written_at": self.manifest.written_at}) == self.manifest:
            return False
        self.put(MANIFEST, manifest.encode())
        self.manifest = manifest
        return True

    def remove(self, path: str) -> bool:
        """Remove a file and the folders that become empty; False when there was none.

        Raises:
            ConfigurationError: it cannot be removed.
        """
        target = self.folder / path
        try:
            target.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _unusable(self.folder, error) from error
        with suppress(OSError):
            while (target := target.parent) != self.folder:
                target.rmdir()
        return True

    def remove_below(self, path: str) -> int:
        """Remove every file below a folder, and the folders; how many files there were.

        Raises:
            ConfigurationError: one cannot be removed.
        """
        return sum(self.remove(file) for file in list(self._walk(self.folder / path)))

    def responses(self) -> Iterator[str]:
        """The path of every file that has the name of an OCSP response. What was left unfinished is removed meanwhile."""
        for path in self._walk(self.folder / "ocsp"):
            if _RESPONSE.fullmatch(path):
                yield path

    def _make_folder(self, folder: Path) -> None:
        """Make ``folder``, and those above it, readable by everyone, whatever the process's umask is."""
        if folder != self.folder and folder.is_symlink():
            raise NotADirectoryError(0, f"{folder} is a link, which leads out of it")
        if not folder.is_dir():
            if folder != self.folder:
                self._make_folder(folder.parent)
            elif not folder.parent.is_dir():
                raise NotADirectoryError(0, f"{folder.parent} is no folder")
            # Several files may be the first of a folder at the same time.
            with suppress(FileExistsError):
                folder.mkdir()
            folder.chmod(_FOLDER_MODE)

    def _take_over(self) -> None:
        try:
            manifest = read_manifest(self.folder)
        except StatusUnavailableError as error:
            raise ConfigurationError(error.message, hint="Choose another folder, or empty this one.") from error
        if manifest is None:
            if any(entry.name != LOCK and not _UNFINISHED.fullmatch(entry.name) for entry in self.folder.iterdir()):
                raise ConfigurationError(
                    f"{self.folder} is not empty, and nothing was published in it before.",
                    hint="Choose an empty folder: what else is in one would be served with it.",
                )
            self._check_names()
            # What comes next may be interrupted: the folder is known for ours from the beginning.
            self.put(MANIFEST, self.manifest.encode())
        else:
            self.manifest = manifest
        for part in ("issuers", "crl", "ledger"):
            for _ in self._walk(self.folder / part):
                pass
        for entry in self.folder.iterdir():
            if _UNFINISHED.fullmatch(entry.name):
                entry.unlink()

    def _check_names(self) -> None:
        """Base64 texts differ in case: a folder that does not tell it apart would give one certificate's answer for another's.

        Raises:
            ConfigurationError: the folder does not.
        """
        probe = self.folder / f".{secrets.token_hex(8)}.privyseal"
        probe.touch()
        try:
            if probe.with_name(probe.name.upper()).exists():
                raise ConfigurationError(
                    f"{self.folder} does not tell upper from lower case in names.", hint="Choose another file system."
                )
        finally:
            probe.unlink()

    def _walk(self, folder: Path) -> Iterator[str]:
        """Every file below ``folder``, folder by folder; unfinished ones are removed, links are not followed."""
        waiting = [folder]
        while waiting:
            current = waiting.pop()
            try:
                entries = os.scandir(current)
            except OSError:
                continue
            with entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(current / entry.name)
                    elif _UNFINISHED.fullmatch(entry.name):
                        (current / entry.name).unlink(missing_ok=True)
                    else:
                        yield str((current / entry.name).relative_to(self.folder))

    def _new_file(self, target: Path, time: int | None) -> "_NewFile":
        return _NewFile(target, time, make_folder=self._make_folder)

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()


class _NewFile:
    """A file that takes the place of ``target`` when its context ends well, durable before it is seen."""

    def __init__(self, target: Path, time: int | None, *, make_folder: Callable[[Path], None]) -> None:
        self._target = target
        self._make_folder = make_folder
        self._time = time
        self._path = target.with_name(f".{secrets.token_hex(8)}.privyseal")
        self._file: BinaryIO

    def __enter__(self) -> BinaryIO:
        for _ in range(_ATTEMPTS):
            # Whoever removes the last file of a folder removes the folder as well.
            with suppress(FileNotFoundError):
                self._make_folder(self._path.parent)
                self._file = self._path.open("xb")
                return self._file
        raise FileNotFoundError(0, f"{self._path.parent} comes and goes")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        renamed = False
        try:
            with self._file:
                if kind is None:
                    self._file.flush()
                    os.fchmod(self._file.fileno(), _FILE_MODE)
                    if self._time is not None:
                        os.utime(self._file.fileno(), (self._time, self._time))
                    os.fsync(self._file.fileno())
            if kind is None:
                self._path.rename(self._target)
                renamed = True
        finally:
            if not renamed:
                self._path.unlink(missing_ok=True)


def _unusable(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{folder} cannot be used: {error.strerror or error}.",
        hint="Check the folder, its permissions and the space on its disk.",
    )
