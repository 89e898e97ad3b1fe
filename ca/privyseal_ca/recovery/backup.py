"""Making a backup: one moment of the database and the files of the home, checked on the way out, beside a service at work."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from privyseal_ca.ceremony.initialise import ceremony_state
from privyseal_ca.ceremony.transcript import FINISHED
from privyseal_ca.clock import Clock, rfc3339
from privyseal_ca.config import Settings
from privyseal_ca.errors import BackupError, ConfigurationError
from privyseal_ca.ledger.checkpoint_rows import latest_checkpoint
from privyseal_ca.ledger.checkpoints import ORIGIN_FACT, VKEY_FACT
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.ledger.log import size as ledger_size
from privyseal_ca.recovery.archive import Member, Recipient, encrypt
from privyseal_ca.recovery.contents import FORMAT, HEAD, MANIFEST, FilePart, Head, Manifest, file_member
from privyseal_ca.recovery.facts import restored_fact, unsettled
from privyseal_ca.recovery.home_files import Files, collect
from privyseal_ca.recovery.tables import LedgerCheck, TableWriter
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.dumping import Snapshot, Table, snapshot
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.statement import Row, Transaction
from privyseal_ca.store.tables import LedgerCheckpoint

#: Rows between two words on how far it is.
_TOLD: Final = 100_000
#: Why a link cannot be made where files can: the file system has none.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be backed up for whom."""

    #: By their text.
    recipients: dict[str, Recipient]
    with_settings: bool = True
    with_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that is complete."""

    manifest: Manifest
    manifest_sha256: str
    #: Of the encrypted file.
    bytes: int
    #: What a person has to know of files that are not in it.
    left_out: list[str] = field(default_factory=list)


class _Counted:
    """A file that is written, and how much."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self.bytes = 0

    def write(self, data: bytes) -> int:
        """Write all of ``data``."""
        written = 0
        while written < len(data):
            written += self._target.write(data[written:])
        self.bytes += written
        return written

    def flush(self) -> None:
        """Hand on what is buffered."""
        self._target.flush()


class _Packing:
    """The members of one backup, in their order."""

    def __init__(self, taken: Snapshot, head: Head, files: Files, progress: Progress) -> None:
        self._taken = taken
        self._head = head
        self._files = files
        self._progress = progress
        self._rows = 0
        self.manifest: Manifest | None = None
        self.manifest_sha256 = ""

    def members(self) -> Iterator[Member]:
        """Head, files, tables, manifest."""
        ledger = LedgerCheck(
            self._head,
            hint="Find out with `privyseal ledger verify` what is wrong, and copy database and home by hand.",
        )
        yield Member(HEAD, self._head.model_dump_json(indent=1).encode())
        for path, content in self._files.items():
            yield Member(file_member(path), content)
        parts = []
        for table in self._taken.tables:
            writer = TableWriter(table)

            yield from writer.members(self._watched(table, ledger))
            parts.append(writer.part())
        ledger.finish()
        files = tuple(
            FilePart(name=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())
            for path, content in self._files.items()
        )
        self.manifest = Manifest(
            **self._head.model_dump(), size=ledger.size, root=ledger.root.hex(), files=files, tables=tuple(parts)
        )
        content = self.manifest.model_dump_json(indent=1).encode()
        self.manifest_sha256 = hashlib.sha256(content).hexdigest()
        yield Member(MANIFEST, content)

    def _watched(self, table: Table, ledger: LedgerCheck) -> Iterator[Sequence[Row]]:
        """The rows of ``table``, compared as they pass."""
        for page in self._taken.pages(table.name):
            ledger.see(table, page)
            before, self._rows = self._rows, self._rows + len(page)
            if before // _TOLD != self._rows // _TOLD:
                self._progress(f"{self._rows} rows")
            yield page


def make_backup(
    settings: Settings, plan: Plan, target: BinaryIO, *, clock: Clock, program: str, progress: Progress
) -> Made:
    """Write a backup of the authority that ``settings`` are of to ``target``. Changes nothing, and may run beside the service.

    Raises:
        BackupError: the ledger is damaged, a file cannot be in it, or ``target`` cannot be written.
        ConfigurationError: there is no finished authority.
        LedgerBehindError: a backup was restored and is not settled.
        StoreUnavailableError: the database cannot be reached, or failed meanwhile.
    """
    backend = backend_for(settings.database_url, durable=True, timeout=settings.database.timeout)
    if ceremony_state(settings, backend) != FINISHED:
        raise ConfigurationError(
            f"There is no authority in the database of {settings.home}, or its ceremony was interrupted.",
            hint="Name the home with --home, or set database.url to the database that it was made with.",
        )
    counted = _Counted(target)
    with snapshot(settings.database_url, timeout=settings.database.timeout) as taken:
        head = _head(taken, plan, settings, clock, program)
        # After the snapshot: a key is made before the database names it, so that no key of the snapshot is missing.
        collected = collect(settings, with_settings=plan.with_settings, with_tokens=plan.with_tokens)
        progress(f"backing up a ledger of {ledger_size(taken.transaction)} entries")
        packing = _Packing(taken, head, collected.files, progress)
        encrypt(packing.members(), counted, list(plan.recipients.values()))  # type: ignore[arg-type]
    assert packing.manifest is not None  # noqa: S101 (the last member was asked for)
    return Made(packing.manifest, packing.manifest_sha256, counted.bytes, collected.left_out)


def _head(taken: Snapshot, plan: Plan, settings: Settings, clock: Clock, program: str) -> Head:
    transaction = taken.transaction
    fact = restored_fact(transaction)
    if fact is not None:
        raise unsettled(fact)
    # A schema from before checkpoints is backed up as well: that is how one prepares for the migration.
    signs = any(table.name == LedgerCheckpoint.__tablename__ for table in taken.tables)
    newest = latest_checkpoint(transaction) if signs else None
    return Head(
        format=FORMAT,
        made=rfc3339(clock.now()),
        program=program,
        revision=taken.revision,
        database="sqlite" if settings.database_url.startswith("sqlite:///") else "postgresql",
        tokens=plan.with_tokens,
        origin=find_fact(transaction, ORIGIN_FACT),
        vkey=find_fact(transaction, VKEY_FACT),
        checkpoint=None if newest is None else newest.note.decode(),
    )


async def record_backup(
    store: Store, made: Made, plan: Plan, *, actor: str, correlation: str, clock: Clock
) -> int | None:
    """Append the entry ``backup.made``, and give its index; None when nothing may be appended now.

    Raises:
        StoreError: the database cannot be written.
    """
    manifest = made.manifest
    entry = encode_entry(
        Kind.BACKUP_MADE,
        time=clock.now(),
        actor=actor,
        correlation=correlation,
        payload={
            "manifest_sha256": made.manifest_sha256,
            "recipients": [hashlib.sha256(text.encode()).hexdigest() for text in plan.recipients],
            "root_sha256": manifest.root,
            "size": manifest.size,
            "tokens": manifest.tokens,
        },
    )

    def unit(transaction: Transaction) -> int | None:
        return None if restored_fact(transaction) is not None else append(transaction, entry)

    return await store.write(unit)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is at ``path`` when the block has ended well, and not at all otherwise; nothing is overwritten.

    Raises:
        BackupError: there is one already, somebody else is writing it, or it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    _require_none(path)
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _cannot(path, error) from error
    with os.fdopen(descriptor, "wb") as file:
        try:
            # What an interrupted backup left is nobody's any more.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BackupError(
                f"Another backup is writing {path}.", hint="Wait for it, or name another file."
            ) from error
        # Whoever had it may have ended since it was opened, and it may be their finished backup by now.
        if os.fstat(descriptor).st_nlink != 1 or not _is_at(part, descriptor):
            raise BackupError(f"Another backup has written {path}.", hint="Name another file.")
        try:
            os.fchmod(descriptor, 0o600)
            os.ftruncate(descriptor, 0)
            yield file
            file.flush()
            os.fsync(descriptor)
            _give_name(part, path)
        except OSError as error:
            raise _cannot(path, error) from error
        finally:
            part.unlink(missing_ok=True)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _give_name(part: Path, path: Path) -> None:
    try:
        os.link(part, path)
    except FileExistsError:
        _require_none(path)
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _require_none(path)
        part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _require_none(path: Path) -> None:
    if os.path.lexists(path):
        raise BackupError(f"{path} is there already and is not overwritten.", hint="Name another file.")


def _cannot(path: Path, error: OSError) -> BackupError:
    return BackupError(
        f"{path} cannot be written: {error.strerror}.", hint="Check the folder, the disk and their permissions."
    )
