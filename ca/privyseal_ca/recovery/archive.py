"""The outside of a backup: members in a ustar archive, compressed by gzip, encrypted by age to one or more X25519 recipients.

Each of the three is a format that other programs read: ``age -d -i KEY FILE | tar xz`` unpacks a backup by hand. All is
streamed both ways, so that memory does not grow with the database. Reading trusts nothing: anybody who knows a recipient can
encrypt to it, so what comes out of the decryption is a stranger's until its contents are compared with what was signed.

age (https://age-encryption.org/v1) authenticates every 64 KiB and the end; a file that was changed or cut is found here.
"""

import gzip
import io
import os
import re
import tarfile
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Final, NamedTuple, TypeAlias

import pyrage  # type: ignore[import-untyped]

from privyseal_ca.errors import BackupError

#: What one member may hold, in bytes. The longest are rows: pieces of a CRL, 256 KiB, and entries, 64 KiB.
MAX_MEMBER: Final = 16 << 20
_BLOCK: Final = tarfile.BLOCKSIZE
_END: Final = bytes(2 * _BLOCK)
#: zlib: fast, since hashes and signatures do not shrink; and with gzip's header.
_LEVEL, _GZIP = 3, 31
#: What the header of an encrypted file may have, in bytes: a recipient takes about 150.
_MAX_HEADER: Final = 64 << 10
#: The last line of an age header.
_HEADER_END: Final = re.compile(rb"\n--- [^\n]*\n")
_AGE: Final = b"age-encryption.org/v1\n"
#: Seconds.
_PATIENCE: Final = 1.0
_DAMAGED: Final = "Use another copy of this backup, or an earlier backup. Nothing was restored from this one."

#: What age calls so, of its kind X25519. The library has no types.
Recipient: TypeAlias = Any
Identity: TypeAlias = Any


class Member(NamedTuple):
    """A file in the archive."""

    name: str
    content: bytes


def encrypt(members: Iterable[Member], target: BinaryIO, recipients: Sequence[Recipient]) -> None:
    """Write ``members`` as an archive to ``target``; they are asked for one after the other, as they are written.

    Raises:
        BackupError: ``target`` cannot be written.
        Exception: whatever ``members`` raises.
    """
    source = _Pulled(_packed(members))
    sink = _Sink(target)
    try:
        pyrage.encrypt_io(source, sink, list(recipients))
    except Exception as error:
        if source.error is not None:
            raise source.error from None
        if sink.error is None:
            raise BackupError(f"The backup cannot be encrypted: {error}.", hint="Check the recipients.") from error
        raise BackupError(
            f"The backup cannot be written: {sink.error.strerror or sink.error}.", hint="Check the disk, or the reader."
        ) from sink.error


def _packed(members: Iterable[Member]) -> Iterator[bytes]:
    """The archive, compressed, in pieces."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    for name, content in members:
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(content), 0o600
        yield packer.compress(header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
        yield packer.compress(content)
        yield packer.compress(bytes(-len(content) % _BLOCK))
    yield packer.compress(_END)
    yield packer.flush()


class _Pulled(io.RawIOBase):
    """What an iterator gives, as a file. Remembers its error, which the library in between would make text of."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        try:
            while not self._rest:
                self._rest = next(self._pieces)
        except StopIteration:
            return b""
        except BaseException as error:
            self.error = error
            raise
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


class _Sink:
    """A file that is written, whose error is remembered."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all of ``data``."""
        try:
            return self._target.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Hand on what is buffered."""
        try:
            self._target.flush()
        except OSError as error:
            self.error = error
            raise


@contextmanager
def decrypted(source: BinaryIO, identities: Sequence[Identity]) -> Iterator[Iterator[Member]]:
    """The members of the archive that ``source`` holds. Only who reads to the end knows that it is whole.

    Raises:
        BackupError: it is not encrypted to one of the identities, is damaged or cut, or is no archive of this program.
    """
    reading, writing = os.pipe()
    worker = _Decryption(_bounded(source), identities, writing)
    worker.start()
    try:
        with os.fdopen(reading, "rb") as pipe:
            try:
                yield _members(pipe, worker)
            except (zlib.error, gzip.BadGzipFile, EOFError) as error:
                worker.finish(pipe)
                raise BackupError(f"The backup's compression is broken: {error}.", hint=_DAMAGED) from error
    finally:
        # Its writes fail from here on, now that nobody reads. It may wait for more of a source that is a pipe.
        worker.join(_PATIENCE)


def _bounded(source: BinaryIO) -> BinaryIO:
    """``source`` from its beginning on, when its header has an end: the library would read one without to any length."""
    head = b""
    while not _HEADER_END.search(head):
        if not _AGE.startswith(head[: len(_AGE)]) and not head.startswith(_AGE):
            raise BackupError(
                "This is no backup: it is not encrypted by age.", hint="Look whether it is the right file."
            )
        piece = source.read(4096) if len(head) < _MAX_HEADER else b""
        if not piece:
            raise BackupError("The header of the backup has no end.", hint=_DAMAGED)
        head += piece
    return _Prefixed(head, source)  # type: ignore[return-value]


class _Prefixed(io.RawIOBase):
    """Some bytes, then a file."""

    def __init__(self, head: bytes, source: BinaryIO) -> None:
        self._head = head
        self._source = source

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        if self._head:
            piece, self._head = self._head[:size], self._head[size:]
            return piece
        return self._source.read(size)


class _Decryption(threading.Thread):
    """Decrypts into a pipe, which holds it up when the other side is slower."""

    def __init__(self, source: BinaryIO, identities: Sequence[Identity], writing: int) -> None:
        super().__init__(name="backup-decryption", daemon=True)
        self._source = source
        self._identities = identities
        self._writing = writing
        self._error: Exception | None = None

    def run(self) -> None:
        """Decrypt to the end, or to the first piece that is not what it was."""
        with os.fdopen(self._writing, "wb") as sink:
            try:
                pyrage.decrypt_io(self._source, sink, list(self._identities))
            except Exception as error:  # noqa: BLE001 (told to whoever reads)
                self._error = error
            with suppress(BrokenPipeError):
                sink.flush()

    def finish(self, pipe: BinaryIO) -> None:
        """Read what is left and say whether the decryption went well.

        Raises:
            BackupError: it did not.
        """
        with suppress(OSError):
            while pipe.read(1 << 16):
                pass
        self.join()
        if isinstance(self._error, pyrage.DecryptError):
            wrong = "No matching keys" in str(self._error)
            raise BackupError(
                "The backup is not encrypted to this identity."
                if wrong
                else f"The backup cannot be decrypted: {self._error}.",
                hint="Give the identity of one of its recipients with --identity." if wrong else _DAMAGED,
            )
        if self._error is not None:
            raise BackupError("The backup was changed or cut: its encryption does not hold to the end.", hint=_DAMAGED)


def _members(pipe: BinaryIO, worker: _Decryption) -> Iterator[Member]:
    """Each member of the archive. Accepts what :func:`_packed` writes and nothing else: no links, no folders, no extensions."""
    try:
        with gzip.GzipFile(fileobj=pipe, mode="rb") as plain:
            while (header := _exactly(plain, _BLOCK)) != bytes(_BLOCK):
                info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
                if info.type != tarfile.REGTYPE or not 0 <= info.size <= MAX_MEMBER:
                    raise BackupError("The backup holds something else than files of this program.", hint=_DAMAGED)
                content = _exactly(plain, info.size)
                _exactly(plain, -info.size % _BLOCK)
                yield Member(info.name, content)
            if _exactly(plain, _BLOCK) != bytes(_BLOCK) or plain.read(1):
                raise BackupError("The backup does not end where it should.", hint=_DAMAGED)
    except (tarfile.HeaderError, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        # An encryption that broke off looks like that as well, and says more.
        worker.finish(pipe)
        raise BackupError("The backup is not an archive of this program, or was cut.", hint=_DAMAGED) from error
    worker.finish(pipe)


def _exactly(plain: gzip.GzipFile, size: int) -> bytes:
    content = plain.read(size)
    if len(content) != size:
        raise EOFError
    return content
