"""Backups that the service makes by itself, into one folder (:class:`privyseal_ca.upkeep_sections.BackupSettings`).

The folder says when one was made last: not the database, which may be a restored one, and not how the job went, which is not
in a backup. So whoever leads, and whatever became of the files meanwhile, one is made when the newest that is there is old.
A file with a name of this authority's own is complete: it gets that name when all of it is on the disk.
"""

import asyncio
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from privyseal_ca.clock import Clock
from privyseal_ca.config import Settings
from privyseal_ca.errors import BackupError, ConfigurationError, LeaseLostError, LedgerError, StoreError
from privyseal_ca.ledger.entries import SERVICE_ACTOR
from privyseal_ca.ledger.log import entries
from privyseal_ca.recovery.age_keys import read_recipients
from privyseal_ca.recovery.apart import Apart, Order
from privyseal_ca.recovery.archive import Recipient
from privyseal_ca.recovery.backup import Made, Plan, record_backup
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.upkeep_sections import BackupSettings

_log = structlog.get_logger("backup")

T = TypeVar("T")

_TIME: Final = "%Y%m%dT%H%M%SZ"
#: What every age file begins with.
_AGE: Final = b"age-encryption.org/v1\n"
#: Files in the folder that are looked at.
_MOST_FILES: Final = 100_000
#: Seconds after which a folder that does not answer is given up, and after which an ended process is killed.
_PATIENCE: Final = 30.0
_ENDING: Final = 5.0
#: A file from later than this many seconds from now was made by a clock that was wrong.
_TOLERANCE: Final = 60.0
#: After a failure this many times as long as it took is waited: a large database is not read all the time for nothing.
_REST: Final = 10.0


class _File(NamedTuple):
    """A backup of this authority in the folder, whole or not, and when its name says that it was made."""

    path: Path
    made: float


@dataclass(frozen=True, slots=True)
class _Failure:
    message: str
    hint: str
    #: By the monotonic clock: until then it is not tried again.
    until: float


class ScheduledBackups:
    """The folder, and what is made and removed in it. ``correlation`` gives an id for each entry of the ledger.

    Raises:
        ConfigurationError: there is no folder, or it is inside of the home.
    """

    def __init__(
        self,
        settings: Settings,
        scheduled: BackupSettings,
        *,
        store: Store,
        clock: Clock,
        metrics: Metrics,
        program: str,
        correlation: Callable[[], str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if scheduled.folder is None:
            raise ConfigurationError("No folder is set for backups.", hint="Set backup.folder.")
        self._folder = scheduled.folder
        self._settings = settings
        self._scheduled = scheduled
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._program = program
        self._correlation = correlation
        self._monotonic = monotonic
        #: What is done on a thread, one at a time: a folder on another machine may not answer, and then holds up nobody else.
        self._waiting: Future[Any] | None = None
        self._failure: _Failure | None = None
        #: The newest backup, beside which there are too many that could not be removed.
        self._crowded: Path | None = None
        self._mark = ""
        # By the names alone: a disk that does not answer must not keep the service from starting. Each run looks where they lead.
        if Path(os.path.normpath(self._folder)).is_relative_to(os.path.normpath(settings.home.absolute())):
            raise ConfigurationError(
                f"backup.folder {self._folder} is inside of the home, and would be lost with it.",
                hint="Name a folder elsewhere, best on another disk or machine.",
            )

    async def run(self) -> None:
        """Make a backup when the newest is old enough, and remove those that are too many. To be called every minute.

        May be stopped anywhere and called again: there is a whole backup or none.

        Raises:
            BackupError: the folder cannot be used, or the backup could not be made or old ones not removed.
            StoreError: the database is away.
        """
        mark = self._mark = self._mark or await self._store.read(_mark_of)
        now = self._clock.now()
        newest = await self._threaded(lambda: _newest(_files(self._folder, self._settings.home, mark), now))
        self._metrics.backup_last_success.set(0 if newest is None else newest.made)
        if newest is not None and now - newest.made < self._scheduled.every:
            self._failure = None
            await self._remove_old(now)
            return
        if self._failure is not None and self._monotonic() < self._failure.until:
            raise BackupError(self._failure.message, hint=self._failure.hint)
        path = self._folder / f"privyseal-{mark}-{datetime.fromtimestamp(now, UTC).strftime(_TIME)}.age"
        recipients = await self._threaded(lambda: _prepared(path, self._scheduled.recipients))
        made = await self._make(path, recipients, now)
        self._metrics.backup_last_success.set(int(now))
        _log.info(
            "backup made",
            file=str(path),
            bytes=made.bytes,
            entries=made.manifest.size,
            manifest_sha256=made.manifest_sha256,
            left_out=made.left_out,
        )
        self._crowded = path
        await self._record(made, recipients)
        await self._remove_old(now)

    async def _remove_old(self, now: float) -> None:
        """Remove those that are too many since the last one was made; until that is done it is tried again."""
        made, home, keep = self._crowded, self._settings.home, self._scheduled.keep
        if made is not None:
            await self._threaded(lambda: _remove_old(made, home, keep, now))
            self._crowded = None

    async def _make(self, path: Path, recipients: dict[str, Recipient], now: float) -> Made:
        settings, begun = self._settings, self._monotonic()
        order = Order(
            home=settings.home,
            database=settings.database.model_copy(update={"url": settings.database_url}),
            issuance=settings.issuance,
            recipients=tuple(recipients),
            path=path,
            now=now,
            program=self._program,
        )
        apart = Apart(order)
        self._waiting = future = _begun(apart.run)
        making = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            for kill in (False, True):
                apart.stop(kill=kill)
                await asyncio.wait({making}, timeout=_ENDING)
                if making.done():
                    making.exception()  # whatever it is, it was stopped
                    break
            raise
        except BackupError as error:
            rest = min((self._monotonic() - begun) * _REST, self._scheduled.every)
            self._failure = _Failure(error.message, error.hint, self._monotonic() + rest)
            raise

    async def _record(self, made: Made, recipients: dict[str, Recipient]) -> None:
        try:
            await record_backup(
                self._store,
                made,
                Plan(recipients),
                actor=SERVICE_ACTOR,
                correlation=self._correlation(),
                clock=self._clock,
            )
        except LeaseLostError:
            raise
        except (StoreError, LedgerError) as error:
            # The backup is good without it; a database that cannot be written is one more reason to have it.
            _log.warning("the ledger has no entry on this backup", error=str(error))

    async def _threaded(self, work: Callable[[], T]) -> T:
        """``work`` on the thread for the folder, unless that still waits for it.

        Raises:
            BackupError: the folder does not answer.
        """
        if self._waiting is None or self._waiting.done():
            self._waiting = future = _begun(work)
            try:
                async with asyncio.timeout(_PATIENCE):
                    return await asyncio.shield(asyncio.wrap_future(future))
            except TimeoutError:
                pass
        raise BackupError(
            f"The folder {self._folder} for backups does not answer.", hint="Check the disk, or the machine it is on."
        )


def _begun(work: Callable[[], T]) -> Future[T]:
    """What ``work`` gives, on a thread that is not waited for when the process ends: it may hang for ever."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 (whoever waits is told)
            future.set_exception(error)

    threading.Thread(target=run, name="backup", daemon=True).start()
    return future


def _is_inside(folder: Path, home: Path) -> bool:
    return folder.resolve().is_relative_to(home.resolve())


def _mark_of(transaction: Transaction) -> str:
    """What tells this authority's files from those of others: the beginning of the hash of the ledger's first entry."""
    first = next(entries(transaction, count=1), None)
    if first is None:
        raise LedgerError("The ledger has no entries.", hint="The database was not made by `privyseal init`.")
    return first.leaf_hash.hex()[:12]


def _files(folder: Path, home: Path, mark: str) -> list[_File]:
    """This authority's files in the folder, the newest first.

    Raises:
        BackupError: the folder cannot be used.
    """
    if _is_inside(folder, home):
        raise BackupError(
            f"The folder {folder} for backups leads into the home, and would be lost with it.",
            hint="Name a folder elsewhere in backup.folder.",
        )
    pattern = re.compile(rf"privyseal-{mark}-([0-9]{{8}}T[0-9]{{6}}Z)\.age")
    found = []
    try:
        with os.scandir(folder) as there:
            for number, each in enumerate(there):
                if number >= _MOST_FILES:
                    raise BackupError(
                        f"The folder {folder} for backups has more than {_MOST_FILES} files, not all of which are looked at.",
                        hint="Move what is no backup elsewhere, or name another folder in backup.folder.",
                    )
                match = pattern.fullmatch(each.name)
                made = match and _time_of(match[1])
                if made and each.is_file(follow_symlinks=False):
                    found.append(_File(folder / each.name, made))
    except OSError as error:
        raise _unusable(folder, error.strerror) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unusable(folder, "no files may be made there")
    return sorted(found, key=lambda file: file.made, reverse=True)


def _unusable(folder: Path, why: str | None) -> BackupError:
    return BackupError(
        f"The folder {folder} for backups cannot be used: {why}.",
        hint="Make it, for the user of the service, or name another one in backup.folder.",
    )


def _time_of(text: str) -> float | None:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _newest(files: list[_File], now: float) -> _File | None:
    """The newest backup that is one. What was made later than now says nothing of when the next is due."""
    return next((file for file in files if file.made <= now + _TOLERANCE and _is_age(file.path)), None)


def _is_age(path: Path) -> bool:
    """Whether a file begins as a backup does: one that was copied there and cut, or lost its content, may not."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(len(_AGE)) == _AGE
    except OSError:
        return False


def _prepared(path: Path, recipients: tuple[str, ...]) -> dict[str, Recipient]:
    """Read the recipients, and remove what interrupted backups left beside ``path``.

    Raises:
        BackupError: the recipients are none, or the folder cannot be read.
    """
    found = read_recipients(recipients)
    start, _, _ = path.name.rpartition("-")
    try:
        for part in islice(path.parent.glob(f"{start}-*.age.part"), _MOST_FILES):
            # One that is no file, or somebody else's, stays: it has another name than what is written next.
            with suppress(OSError):
                _remove_part(part)
    except OSError as error:
        raise _unusable(path.parent, error.strerror) from error
    return found


def _remove_part(part: Path) -> None:
    descriptor = os.open(part, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        # Whoever still writes it has it locked.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _remove_old(made: Path, home: Path, keep: int, now: float) -> None:
    """Keep ``made`` and the newest of the others, ``keep`` in all. What is no backup, or from later than now, goes first.

    Raises:
        BackupError: one cannot be removed.
    """
    mark = made.name.split("-")[1]
    others = [file for file in _files(made.parent, home, mark) if file.path != made]
    others.sort(key=lambda file: (_is_age(file.path), file.made <= now + _TOLERANCE, file.made), reverse=True)
    for file in others[keep - 1 :]:
        try:
            file.path.unlink(missing_ok=True)
        except OSError as error:
            raise BackupError(
                f"The old backup {file.path} cannot be removed: {error.strerror}.",
                hint="Remove it by hand: the newest is there. Check the folder's permissions.",
            ) from error
        _log.info("old backup removed", file=str(file.path))
