"""What a witness remembers: the logs that it watches, the newest checkpoint of each, and what contradicted one.

Each log has files of its own in the home, called by the SHA-256 of its origin:

=========================== ===========================================================================================
``logs/ID.keys``            its verification keys, one on a line: the log is watched while the file is there
``logs/ID.newest``          the newest checkpoint that this witness agreed to cosign: written before the token is asked
``logs/ID.checkpoint``      the newest checkpoint with this witness's cosignature: what is served
``evidence/ID/SIZE-ROOT``   a checkpoint that the log has signed and that contradicts what was seen, with what was seen
=========================== ===========================================================================================

Every file is replaced as a whole and durably. ``ID.newest`` decides, and stays when a log is not watched any more: a log that
comes back cannot begin anew. One process at a time serves (``serving.lock``), and one request of a log at a time.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from privyseal_ca.clock import rfc3339
from privyseal_ca.errors import LedgerError, WitnessError
from privyseal_ca.ledger.note import MAX_NOTE, Checkpoint, NoteVerifier, split_note
from privyseal_ca.witness.files import read_file, replace_file, sync_folder
from privyseal_ca.witness.monitoring import log_id

#: Keys of one log: it has a second one while it changes them.
MAX_KEYS: Final = 8
#: Logs of one witness.
MAX_LOGS: Final = 10_000
#: Contradictions of one log that are kept: as many that are proven, and as many that are not. The first says it all, and
#: whoever makes up proofs must leave room for it.
MAX_EVIDENCE: Final = 16

_LOGS: Final = "logs"
_EVIDENCE: Final = "evidence"
_KEYS: Final = ".keys"
_KEYS_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Conflict:
    """A checkpoint that contradicts, or may contradict, what this witness has cosigned."""

    #: Whether the two checkpoints alone prove it: one size, two roots. Otherwise a consistency proof was wrong.
    proven: bool
    size: int
    #: In lower-case hex.
    root: str
    #: When it was submitted, RFC 3339.
    time: str
    #: The file with both notes.
    file: Path


class WitnessState:
    """The state in ``home``."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._logs = home / _LOGS

    def prepare(self) -> None:
        """Make the folders. Raises WitnessError when that cannot be done."""
        try:
            for name in (_LOGS, _EVIDENCE):
                (self._home / name).mkdir(mode=0o700, exist_ok=True)
            # What is synced inside of them later must not be lost with them.
            sync_folder(self._home)
        except OSError as error:
            raise WitnessError(
                f"{self._home} cannot be written: {error.strerror}.", hint="Make the home writable for this user."
            ) from error

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Be the one process that serves this home.

        Raises:
            WitnessError: another one does.
        """
        self.prepare()
        with _locked(self._home / "serving.lock") as free:
            if not free:
                raise WitnessError(f"Another process serves the witness in {self._home}.", hint="Stop that one first.")
            yield

    # Logs.

    def add(self, vkey: str) -> NoteVerifier:
        """Watch the log whose verification key ``vkey`` is; its name is the log's origin. Twice does no harm.

        Raises:
            WitnessError: there is no place for it.
            LedgerError: the key is malformed.
        """
        verifier = NoteVerifier.parse(vkey)
        self.prepare()
        with self._changing():
            known = self.keys(verifier.name)
            if verifier in known:
                return verifier
            if len(known) >= MAX_KEYS or (not known and len(self.origins()) >= MAX_LOGS):
                raise WitnessError(
                    f"A witness has at most {MAX_LOGS} logs with {MAX_KEYS} keys each.",
                    hint="Remove one with `privyseal witness remove`.",
                )
            self._write_keys(verifier.name, [*known, verifier])
        return verifier

    def remove(self, origin: str) -> None:
        """Watch the log ``origin`` no more. What was cosigned of it is remembered, should it come back.

        Raises:
            WitnessError: it is not watched, or its file cannot be removed.
        """
        self.prepare()
        path = self._path(origin, _KEYS)
        with self._changing():
            try:
                path.unlink()
                sync_folder(self._logs)
            except FileNotFoundError as error:
                raise WitnessError(
                    f"No log {origin} is watched here.", hint="`privyseal witness list` shows those that are."
                ) from error
            except OSError as error:
                raise WitnessError(
                    f"{path} cannot be removed: {error.strerror}.", hint="Make the home writable for this user."
                ) from error

    def origins(self) -> list[str]:
        """The origins of the logs that are watched, sorted. Raises WitnessError or LedgerError for files that cannot be read."""
        if not self._logs.is_dir():
            return []
        return sorted(_read_keys(path)[0].name for path in self._logs.glob(f"*{_KEYS}") if path.name[0] != ".")

    def keys(self, origin: str) -> list[NoteVerifier]:
        """The keys of a log; none when it is not watched. Raises as :meth:`origins`."""
        return _read_keys(self._path(origin, _KEYS))

    # Checkpoints.

    def newest(self, origin: str) -> Checkpoint | None:
        """The newest checkpoint that this witness has agreed to; None when there was none.

        Raises:
            WitnessError: the file cannot be read. Nothing may be cosigned then.
        """
        note = self.newest_note(origin)
        if note is None and not self._path(origin, ".checkpoint").exists():
            return None
        try:
            return Checkpoint.parse(split_note(note or b"")[0])
        except LedgerError as error:
            raise WitnessError(
                f"The state of the log {origin} is damaged.", hint="Bring the witness's home back as it was."
            ) from error

    def newest_note(self, origin: str) -> bytes | None:
        """The note of :meth:`newest`, as the log submitted it. Raises as it."""
        return read_file(self._path(origin, ".newest"), MAX_NOTE)

    def agree(self, origin: str, note: bytes) -> None:
        """Make durable that ``note`` is the newest. Raises WitnessError when it is not."""
        replace_file(self._path(origin, ".newest"), note)

    def publish(self, origin: str, note: bytes) -> None:
        """Keep the cosigned ``note`` to be served. Raises WitnessError."""
        replace_file(self._path(origin, ".checkpoint"), note)

    def published(self, identifier: str) -> bytes | None:
        """The cosigned note of the log with this id (64 lower-case hex digits); None when there is none. Raises WitnessError."""
        return read_file(self._logs / f"{identifier}.checkpoint", MAX_NOTE)

    # Contradictions.

    def record(self, origin: str, note: bytes, *, proven: bool, now: float) -> bool:
        """Keep ``note``, which contradicts the newest one, beside that one; whether it was not kept before.

        What is proven takes the place of the same checkpoint unproven, and never lacks one because of others unproven.

        Raises:
            WitnessError: it cannot be written.
        """
        found = Checkpoint.parse(split_note(note)[0])
        folder = self._home / _EVIDENCE / log_id(origin)
        path = folder / f"{found.size}-{found.root.hex()}.json"
        kept = {conflict.file: conflict.proven for conflict in self.conflicts(origin)}
        if path in kept and (kept[path] or not proven):
            return False
        if list(kept.values()).count(proven) >= MAX_EVIDENCE:
            return False
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(folder.parent)
        except OSError as error:
            raise WitnessError(f"{folder} cannot be made: {error.strerror}.", hint="Check the disk.") from error
        newest = self.newest_note(origin) or b""
        document = {
            "origin": origin,
            "time": rfc3339(now),
            "proven": proven,
            "size": found.size,
            "root": found.root.hex(),
            "cosigned": newest.decode(),
            "submitted": note.decode(),
        }
        replace_file(path, json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")
        return True

    def conflicts(self, origin: str) -> list[Conflict]:
        """What contradicted this log, the smallest size first. Raises WitnessError for files that cannot be read."""
        folder = self._home / _EVIDENCE / log_id(origin)
        paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
        return sorted(
            (_read_conflict(path) for path in paths if path.name[0] != "."), key=lambda conflict: conflict.size
        )

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Be the one process that changes which logs are watched. Raises WitnessError while another one does."""
        with _locked(self._home / "changing.lock") as free:
            if not free:
                raise WitnessError(
                    f"Another command changes the logs of the witness in {self._home}.", hint="Try again in a moment."
                )
            yield

    def _path(self, origin: str, suffix: str) -> Path:
        return self._logs / f"{log_id(origin)}{suffix}"

    def _write_keys(self, origin: str, keys: list[NoteVerifier]) -> None:
        replace_file(self._path(origin, _KEYS), "".join(f"{key.vkey()}\n" for key in keys).encode())


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock at ``path``; False when another process does. Raises WitnessError when there can be none."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise WitnessError(
            f"{path} cannot be opened: {error.strerror}.", hint="Make the home writable for this user."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _read_keys(path: Path) -> list[NoteVerifier]:
    content = read_file(path, _KEYS_BYTES)
    if content is None:
        return []
    try:
        keys = [NoteVerifier.parse(line) for line in content.decode().splitlines()]
    except (LedgerError, UnicodeDecodeError) as error:
        raise WitnessError(f"{path} is damaged.", hint="Write its keys anew with `privyseal witness add`.") from error
    if not keys or len({key.name for key in keys}) != 1:
        raise WitnessError(f"{path} is damaged.", hint="Delete it, and use `privyseal witness add`.")
    return keys


def _read_conflict(path: Path) -> Conflict:
    content = read_file(path, 8 * MAX_NOTE)
    try:
        document: dict[str, Any] = json.loads(content or b"")
        return Conflict(bool(document["proven"]), int(document["size"]), document["root"], document["time"], path)
    except (ValueError, KeyError, TypeError) as error:
        raise WitnessError(f"{path} is damaged.", hint="Keep what is left of it, and move it away.") from error
