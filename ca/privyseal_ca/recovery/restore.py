"""Putting a backup into an empty home and an empty database.

1. The home is marked, and the settings are written, for they say which database it is.
2. Everything else goes into one transaction, which is committed only when the last byte of the backup was compared. With
   SQLite the file has another name until step 5.
3. The audit of the ledger looks at what is in the database now.
4. The other files are written.
5. The database counts: the SQLite file gets its name, the fact ``ceremony`` its value. Then the mark is removed.

Whatever ends it before step 5 leaves what no command takes for an authority, and the same call begins anew. What is there in
the end has the fact ``restore``: nothing is issued or published until it is settled what happened after the backup (P8).
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urlsplit

import orjson

from privyseal_ca.ceremony.files import SECRETS_DIRECTORY, write_file
from privyseal_ca.ceremony.transcript import CEREMONY_FACT, FINISHED
from privyseal_ca.clock import Clock, rfc3339
from privyseal_ca.config import SETTINGS_FILE, Settings, load_settings
from privyseal_ca.errors import BackupError
from privyseal_ca.hsm.softhsm_guard import COPIES_DIRECTORY
from privyseal_ca.issuance.record import issued_entry
from privyseal_ca.ledger.audit import Auditor, AuditReport
from privyseal_ca.recovery.archive import Identity
from privyseal_ca.recovery.contents import Head, Manifest
from privyseal_ca.recovery.facts import RESTORE_FACT
from privyseal_ca.recovery.home_files import WRITTEN_LAST, clear_home, with_database, write_home
from privyseal_ca.recovery.unpacking import Expected, Progress, unpack
from privyseal_ca.sections import LedgerSettings
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.dumping import Loading, Table, loading, put_in_place, require_known_revision, tables_in
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact, set_fact
from privyseal_ca.store.statement import Row

#: The file that marks a home whose restore is not finished.
MARK: Final = ".restoring"
#: What stands in it when files of the home besides the settings are being written.
_FILES: Final = b"files\n"
#: The value of the fact ``ceremony`` as long.
RESTORING: Final = "restoring"
#: What may be in the home before: PINs that were put back, the newest checkpoint, what file systems put into their root.
_WELCOME: Final = frozenset({SECRETS_DIRECTORY, COPIES_DIRECTORY, str(LedgerSettings().kept_checkpoint), "lost+found"})
_SQLITE: Final = "sqlite:///"


@dataclass(frozen=True, slots=True)
class Restored:
    """A restore that is complete, and not settled yet."""

    settings: Settings
    manifest: Manifest
    manifest_sha256: str
    audit: AuditReport


class Restore:
    """One restore into ``home``. ``database`` is the URL of the database; None for the one that the settings name."""

    def __init__(self, home: Path, *, database: str | None, clock: Clock, actor: str, progress: Progress) -> None:
        self._home = home
        self._database = database
        self._clock = clock
        self._actor = actor
        self._progress = progress
        self._claim, self._stack = ExitStack(), ExitStack()
        self._files: Mapping[str, bytes] = {}
        self._settings: Settings
        self._loading: Loading

    def run(self, source: BinaryIO, identities: Sequence[Identity], expected: Expected) -> Restored:
        """Restore the backup in ``source``.

        Raises:
            BackupError: the backup, the home or the database is not what it must be. Nothing counts as restored.
            ConfigurationError: the settings in the backup are not valid, or a file cannot be written.
            DatabaseInUseError: a service uses the database.
            LedgerError: what was restored does not pass the audit.
            StoreError: the database failed.
        """
        self._look_at_home()
        with self._claim:
            with self._stack:
                unpacked = unpack(source, identities, self, expected=expected, progress=self._progress)
                self._progress("everything was compared; finishing the database")
                self._finish(unpacked.manifest, unpacked.manifest_sha256)
            report = asyncio.run(self._audit())
            write_file(self._home / MARK, _FILES, mode=0o600)
            write_home(self._home, self._files, self._settings)
            self._let_count()
        return Restored(self._settings, unpacked.manifest, unpacked.manifest_sha256, report)

    # What unpacking hands over.

    def begin(self, head: Head, files: Mapping[str, bytes]) -> Mapping[str, Table]:
        """Take the files; begin to fill the database."""
        require_known_revision(head.revision)
        self._files = files
        self._prepare_home()
        self._settings = self._write_settings(files.get(SETTINGS_FILE))
        backend = backend_for(self._url, durable=True, timeout=self._timeout)
        self._claim.enter_context(closing(backend.lock_service()))
        left = self._prepare_database()
        self._progress(f"restoring the backup of {head.made} into {self._shown}")
        self._loading = self._stack.enter_context(
            loading(self._draft, head.revision, timeout=self._timeout, discard=left)
        )
        return self._loading.tables

    def rows(self, table: Table, rows: Sequence[Row]) -> None:
        """Take rows of a table."""
        self._loading.add(table, rows)

    # The home.

    def _look_at_home(self) -> bool:
        """Whether an interrupted restore left it. Refuses a home that something else uses."""
        try:
            names = {path.name for path in self._home.iterdir()} if os.path.lexists(self._home) else set()
        except OSError as error:
            raise BackupError(
                f"The home {self._home} cannot be read: {error.strerror}.", hint="Choose another with --home."
            ) from error
        foreign = sorted(names - _WELCOME)
        if MARK in names:
            # Files are written last. Those that are there before were put there by hand, such as tokens with the keys.
            foreign = [] if self._wrote_files() else sorted(names & WRITTEN_LAST)
        if foreign:
            raise BackupError(
                f"{self._home} is not empty: it has {_listed(foreign)}.",
                hint="Restore into a new folder (--home). What is there may be worth keeping: it is not touched.",
            )
        return MARK in names

    def _wrote_files(self) -> bool:
        try:
            return (self._home / MARK).read_bytes() == _FILES
        except OSError:
            return False

    def _prepare_home(self) -> None:
        try:
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._home.stat().st_uid != os.geteuid():
                raise BackupError(
                    f"{self._home} belongs to another user.", hint="Restore as the user that will run the service."
                )
            if self._look_at_home():
                clear_home(self._home)
            self._home.chmod(0o700)
        except OSError as error:
            raise BackupError(
                f"The home {self._home} cannot be made: {error.strerror}.", hint="Choose another with --home."
            ) from error
        write_file(self._home / MARK, rfc3339(self._clock.now()).encode() + b"\n", mode=0o600)

    def _write_settings(self, content: bytes | None) -> Settings:
        if self._database is not None or content is not None:
            try:
                text = (content or b"").decode()
            except UnicodeDecodeError:
                raise BackupError(f"{SETTINGS_FILE} in the backup is not text.", hint="Use another backup.") from None
            if self._database is not None:
                text = with_database(text, self._database)
            write_file(self._home / SETTINGS_FILE, text.encode(), mode=0o600)
        return load_settings(self._home)

    # The database.

    @property
    def _url(self) -> str:
        return self._settings.database_url

    @property
    def _draft(self) -> str:
        return f"{self._url}{MARK}" if self._url.startswith(_SQLITE) else self._url

    @property
    def _timeout(self) -> float:
        return self._settings.database.timeout

    @property
    def _shown(self) -> str:
        """The database without a password."""
        if self._url.startswith(_SQLITE):
            return self._url.removeprefix(_SQLITE)
        parts = urlsplit(self._url)
        return f"{parts.hostname or ''}{parts.path}"

    def _prepare_database(self) -> bool:
        """Whether tables of an interrupted restore have to go. Refuses a database that somebody else uses."""
        names, state = tables_in(self._url, CEREMONY_FACT, timeout=self._timeout)
        if names and state != RESTORING:
            raise BackupError(
                f"The database {self._shown} is not empty: it has "
                + ("an authority." if state is not None else f"the tables {_listed(names)}."),
                hint="Restore into a new database (--database, or PRIVYSEAL_DATABASE__URL). It is not touched. If an earlier "
                "restore ended here, it is complete: see `privyseal recovery status`.",
            )
        if self._url.startswith(_SQLITE):
            draft = Path(self._draft.removeprefix(_SQLITE))
            for path in (draft, *(draft.with_name(draft.name + end) for end in ("-wal", "-shm", "-journal"))):
                path.unlink(missing_ok=True)
        return bool(names)

    def _finish(self, manifest: Manifest, digest: str) -> None:
        self._loading.finish()
        transaction = self._loading.transaction
        if find_fact(transaction, CEREMONY_FACT) != FINISHED:
            raise BackupError("The backup is not of a finished authority.", hint="Use another backup.")
        fact = {
            "at": rfc3339(self._clock.now()),
            "by": self._actor,
            "manifest_sha256": digest,
            "root": manifest.root,
            "size": manifest.size,
        }
        set_fact(transaction, CEREMONY_FACT, RESTORING)
        set_fact(transaction, RESTORE_FACT, orjson.dumps(fact).decode())

    async def _audit(self) -> AuditReport:
        self._progress("checking what was restored")
        store = Store(backend_for(self._draft, durable=True, timeout=self._timeout), queue=16)
        await store.open()
        try:
            return await Auditor(store, issued_entry=issued_entry, progress=_every(self._progress)).run()
        finally:
            await store.close()

    def _let_count(self) -> None:
        asyncio.run(self._set_finished())
        if self._url.startswith(_SQLITE):
            put_in_place(Path(self._draft.removeprefix(_SQLITE)), Path(self._url.removeprefix(_SQLITE)))
        (self._home / MARK).unlink()

    async def _set_finished(self) -> None:
        store = Store(backend_for(self._draft, durable=True, timeout=self._timeout), queue=16)
        await store.open()
        try:
            await store.write(lambda tx: set_fact(tx, CEREMONY_FACT, FINISHED))
        finally:
            await store.close()


def _every(progress: Progress) -> Callable[[int, int], None]:
    told = 0

    def tell(done: int, of: int) -> None:
        nonlocal told
        if done - told >= 50_000:
            told = done
            progress(f"{done} of {of} entries checked")

    return tell


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
