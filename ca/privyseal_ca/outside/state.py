"""What a monitor keeps between its rounds, in a folder: written whole or not at all, so that it can be killed at any moment.

``state.json``      the newest checkpoint, the edge of the tree up to which was read, and how much of the journal counts
``journal``         the facts that were read, a line for each (:mod:`~privyseal_ca.outside.facts`); what is behind its end in
                    ``state.json`` was never acknowledged and is cut off
``checkpoint``      the newest checkpoint once more, for `--since` and for other programs
``evidence-*``      what shows that the log was rolled back, forked or split, until a person removes it
``lock``            held by the monitor that uses the folder
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, Self

import orjson

from privyseal_ca.errors import ConfigurationError, LedgerError
from privyseal_ca.outside.edge import TreeEdge
from privyseal_ca.outside.facts import Fact
from privyseal_ca.outside.findings import Finding
from privyseal_ca.outside.signed import LogKeys, Seen

_STATE: Final = "state.json"
_JOURNAL: Final = "journal"
_CHECKPOINT: Final = "checkpoint"
_LOCK: Final = "lock"
_EVIDENCE: Final = "evidence-"
_VERSION: Final = 1
_MAX_STATE: Final = 4 << 20
_PIECE: Final = 1 << 20
#: The end of the year 9999, in seconds since the epoch.
_LAST: Final = 253402300799
#: Files of evidence that are written: one is enough, and nobody fills a disk with more.
_MOST_EVIDENCE: Final = 64


class MonitorState:
    """The state in ``folder``, of the log with these keys."""

    def __init__(self, folder: Path, keys: LogKeys) -> None:
        self._folder = folder
        self._vkey = keys.log.vkey()
        #: The newest checkpoint whose signature and consistency were verified.
        self.kept: Seen | None = None
        #: Up to where tiles and entries were read.
        self.edge = TreeEdge()
        #: Whether entries are read; None when that is not known yet.
        self.entries: bool | None = None
        #: When the log was reached for the last time, in seconds since the epoch.
        self.contact: float | None = None
        self._bytes = 0
        self._digest = hashlib.sha256()
        self._load(keys)

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, keys: LogKeys) -> Iterator[Self]:
        """The state, for this process alone.

        Raises:
            ConfigurationError: the folder cannot be used, is used by another monitor, holds another log's state, or was changed.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(folder, error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigurationError(
                    f"Another monitor uses {folder}.", hint="Give each monitor a folder of its own with --state."
                ) from error
            yield cls(folder, keys)
        finally:
            os.close(descriptor)

    def facts(self) -> Iterator[Fact]:
        """What was read so far, in its order.

        Raises:
            ConfigurationError: the journal cannot be read, or is not what was written.
        """
        left, digest = self._bytes, hashlib.sha256()
        try:
            if not left:
                return
            with (self._folder / _JOURNAL).open("rb") as file:
                while left:
                    line = file.readline(min(left, _PIECE))
                    if not line.endswith(b"\n"):
                        raise _changed(self._folder)
                    digest.update(line)
                    left -= len(line)
                    yield Fact.parse(line)
        except OSError as error:
            raise _unusable(self._folder, error) from error
        except LedgerError as error:
            raise _changed(self._folder) from error
        if digest.digest() != self._digest.digest():
            raise _changed(self._folder)

    def commit(self, facts: Iterable[Fact]) -> None:
        """Keep the fields as they are, with ``facts`` behind those that were there. It is durable when this returns.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        added = b"".join(fact.line() for fact in facts)
        digest = self._digest.copy()
        digest.update(added)
        note = None if self.kept is None else self.kept.text()
        document = {
            "version": _VERSION,
            "vkey": self._vkey,
            "checkpoint": note,
            "edge": self.edge.document(),
            "entries": self.entries,
            "contact": self.contact,
            "journal": {"bytes": self._bytes + len(added), "sha256": digest.hexdigest()},
        }
        try:
            if added:
                how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if self._bytes else os.O_TRUNC)
                with os.fdopen(os.open(self._folder / _JOURNAL, how, 0o600), "r+b") as file:
                    _add(file, self._bytes, added)
            _write(self._folder / _STATE, orjson.dumps(document))
            if note is not None:
                _write(self._folder / _CHECKPOINT, note.encode())
        except OSError as error:
            raise _unusable(self._folder, error) from error
        self._bytes += len(added)
        self._digest = digest

    def evidence(self) -> list[Path]:
        """What shows that something was wrong with the log, and that nobody has dealt with."""
        return sorted(self._folder.glob(f"{_EVIDENCE}*"))[:_MOST_EVIDENCE]

    def keep_evidence(self, finding: Finding) -> None:
        """Write the notes of ``finding``, with what they show.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        content = orjson.dumps(finding.document(), option=orjson.OPT_INDENT_2) + b"\n"
        path = self._folder / f"{_EVIDENCE}{finding.code}-{hashlib.sha256(content).hexdigest()[:16]}.json"
        if path.exists() or len(self.evidence()) >= _MOST_EVIDENCE:
            return
        try:
            _write(path, content)
        except OSError as error:
            raise _unusable(self._folder, error) from error

    def _load(self, keys: LogKeys) -> None:
        try:
            with (self._folder / _STATE).open("rb") as file:
                content = file.read(_MAX_STATE + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unusable(self._folder, error) from error
        try:
            document: dict[str, Any] = orjson.loads(content)
            if document["version"] != _VERSION:
                raise ValueError
            vkey, note = document["vkey"], document["checkpoint"]
            self.edge = TreeEdge.parse(document["edge"])
            self.entries, self.contact = document["entries"], document["contact"]
            self._bytes, expected = document["journal"]["bytes"], document["journal"]["sha256"]
            if not isinstance(self.entries, bool | None) or not isinstance(self.contact, float | int | None):
                raise TypeError
            if type(self._bytes) is not int or self._bytes < 0 or not 0 <= (self.contact or 0) <= _LAST:
                raise TypeError
            if vkey == self._vkey and note is not None:
                self.kept = keys.open(note.encode(), f"{self._folder}")
        except (ValueError, KeyError, TypeError, AttributeError, LedgerError) as error:
            raise _changed(self._folder) from error
        if vkey != self._vkey:
            raise ConfigurationError(
                f"{self._folder} is about a log with another verification key.",
                hint="Give the key that it was made with, or another folder with --state.",
            )
        self._digest = self._read_digest()
        if self._digest.hexdigest() != expected or not self._fits():
            raise _changed(self._folder)

    def _fits(self) -> bool:
        """Whether the edge can be that of the checkpoint. A damaged one would accuse the log of a fork."""
        if self.kept is None:
            return not self.edge.size
        size, root = self.kept.checkpoint.size, self.kept.checkpoint.root
        return self.edge.size < size or (self.edge.size == size and self.edge.root() == root)

    def _read_digest(self) -> "hashlib._Hash":
        digest, left = hashlib.sha256(), self._bytes
        if left:
            try:
                with (self._folder / _JOURNAL).open("rb") as file:
                    while left and (piece := file.read(min(left, _PIECE))):
                        digest.update(piece)
                        left -= len(piece)
            except OSError as error:
                raise _unusable(self._folder, error) from error
        return digest


def _add(file: IO[bytes], at: int, content: bytes) -> None:
    """Write ``content`` at ``at``, in the place of whatever an earlier process left there."""
    file.truncate(at)
    file.seek(at)
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _write(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, whole or not at all, surviving a power cut."""
    draft = path.with_name(f".{path.name}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    draft.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unusable(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{folder} cannot be read or written: {error.strerror}.",
        hint="Check the folder, the disk and their permissions.",
    )


def _changed(folder: Path) -> ConfigurationError:
    return ConfigurationError(
        f"What is in {folder} is not what a monitor wrote there.",
        hint="Find out who changed it. Keep its checkpoint, and begin anew with an empty folder.",
    )
