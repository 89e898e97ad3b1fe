"""Backups that the service makes by itself: when they are due, what is kept, what is refused, and that they can be restored."""

import asyncio
import fcntl
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from pydantic import ValidationError

from fakes.backups import Vault
from fakes.home import MakeSettings
from fakes.postgresql import copy_to_postgresql
from fakes.service import FakeClock, NewClient, RunningService
from privyseal_acme.opening import open_store
from privyseal_ca.config import Settings
from privyseal_ca.errors import BackupError, ConfigurationError, LeaseLostError, StoreUnavailableError
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.recovery import scheduled
from privyseal_ca.recovery.apart import Apart
from privyseal_ca.recovery.scheduled import ScheduledBackups
from privyseal_ca.store.engine import Store
from privyseal_ca.store.guards import guarding
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.upkeep_sections import BackupSettings

_HOUR = 3600
_DAY = 24 * _HOUR
_PATIENCE = 20.0


class Folder:
    """A folder for backups, what makes them, and who opens them."""

    def __init__(self, path: Path, settings: Settings, store: Store, clock: FakeClock, **more: Any) -> None:
        self.path = path / "backups"
        self.path.mkdir(exist_ok=True)
        self.vault = Vault(path)
        self.clock = clock
        self.metrics = Metrics()
        self.settings = settings
        self.store = store
        self.seconds = 0.0
        self.backups = self.made_by(**more)

    def made_by(self, **more: Any) -> ScheduledBackups:
        """Another process's part, which knows nothing of this one's."""
        given = {"folder": self.path, "recipients": (self.vault.recipient,), "every": _DAY, "keep": 3, **more}
        return ScheduledBackups(
            self.settings,
            BackupSettings(**given),
            store=self.store,
            clock=self.clock,
            metrics=self.metrics,
            program="0.0",
            correlation=lambda: "tests",
            monotonic=lambda: self.seconds,
        )

    @property
    def names(self) -> list[str]:
        """What is in the folder, the oldest first."""
        return sorted(each.name for each in self.path.iterdir())

    def put(self, sample: "Sample", time: str) -> str:
        """A backup as if it had been made at ``time``; its name."""
        name = f"{sample.begin}{time}.age"
        (self.path / name).write_bytes(sample.content)
        return name

    @property
    def last_success(self) -> float | None:
        return self.metrics.registry.get_sample_value("privyseal_backup_last_success_seconds")


@pytest.fixture
def served(service: RunningService, tmp_path: Path) -> Folder:
    """A folder of the module's service, with a clock of its own."""
    return Folder(tmp_path, service.settings, service.service.context.store, FakeClock(service.clock.now()))


@asynccontextmanager
async def opened(path: Path, settings: Settings, **more: Any) -> AsyncIterator[Folder]:
    """The same without a service: only the database is open."""
    store = open_store(settings)
    await store.open()
    try:
        yield Folder(path, settings, store, FakeClock(), **more)
    finally:
        await store.close()


class Sample(NamedTuple):
    """A backup that was made by itself: the beginning of its name up to the time, and its octets."""

    begin: str
    content: bytes


@pytest.fixture(scope="module")
def sample(service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    path = tmp_path_factory.mktemp("sample")
    folder = Folder(path, service.settings, service.service.context.store, FakeClock(service.clock.now()))
    service.call(folder.backups.run())
    (name,) = folder.names
    return Sample(name.removesuffix(name.rpartition("-")[2]), (folder.path / name).read_bytes())


# One that is made.


def test_one_is_made_beside_the_service_and_restored(
    service: RunningService, served: Folder, new_client: NewClient, tmp_path: Path
) -> None:
    issued = new_client(service).issue("kept.test")
    service.call(served.backups.run())
    (name,) = served.names
    backup = served.path / name
    assert backup.stat().st_mode & 0o777 == 0o600
    assert served.last_success == served.clock.now()

    recorded = [entry for entry in service.ledger() if entry["kind"] == Kind.BACKUP_MADE][-1]
    assert recorded["actor"] == "service"
    assert recorded["payload"]["recipients"] == [sha256(served.vault.recipient.encode()).hexdigest()]
    assert recorded["payload"]["tokens"] is False

    manifest = recorded["payload"]["manifest_sha256"]
    home = tmp_path / "restored"
    document = served.vault.restore(
        backup, home, "--manifest", manifest, "--database", f"sqlite:///{tmp_path / 'restored.db'}"
    )
    assert document["size"] == recorded["payload"]["size"]
    assert (home / "roots.pem").read_bytes() == service.roots.read_bytes()
    with closing(sqlite3.connect(tmp_path / "restored.db")) as database:
        serial = serial_text(issued.certificate.serial_number)
        (der,) = database.execute("SELECT der FROM certificate WHERE serial = ?", (serial,)).fetchone()
    assert sha256(der).digest() == issued.certificate.fingerprint(SHA256())


@pytest.mark.postgresql
async def test_of_postgresql(request: pytest.FixtureRequest, make_settings: MakeSettings, tmp_path: Path) -> None:
    made = make_settings()
    url = copy_to_postgresql(made.database_url, request.getfixturevalue("postgresql"))
    settings = made.model_copy(update={"database": made.database.model_copy(update={"url": url})})
    async with opened(tmp_path, settings) as folder:
        await folder.backups.run()
        (name,) = folder.names
    verified = folder.vault.json("backup", "verify", folder.path / name, "--identity", folder.vault.key)
    assert verified["verified"] is True


# When one is due.


def test_the_folder_says_when_one_is_due(service: RunningService, served: Folder, sample: Sample) -> None:
    """Whoever looks, and whatever became of the files; once after a downtime, however long."""
    first = served.put(sample, "20260101T030000Z")
    served.clock.advance(datetime(2026, 1, 2, 2, 59, 59, tzinfo=UTC).timestamp() - served.clock.now())
    service.call(served.backups.run())
    service.call(served.made_by().run())
    assert served.names == [first], "not yet"
    assert served.last_success == served.clock.now() - (_DAY - 1)

    served.clock.advance(10 * _DAY)
    for _ in range(3):
        service.call(served.made_by().run())
    assert served.names == [first, f"{sample.begin}20260112T025959Z.age"], "once"
    assert served.last_success == served.clock.now()

    (served.path / served.names[-1]).unlink()
    served.clock.advance(60)
    service.call(served.backups.run())
    assert served.names == [first, f"{sample.begin}20260112T030059Z.age"], "the newest was lost"


def test_a_file_that_is_no_backup_and_one_of_a_wrong_clock_say_nothing(
    service: RunningService, served: Folder, sample: Sample
) -> None:
    old = served.put(sample, "20250101T000000Z")
    served.put(sample, "20990101T000000Z")
    empty = served.put(Sample(sample.begin, b""), "20260101T000000Z")
    served.clock.advance(datetime(2026, 1, 1, 1, tzinfo=UTC).timestamp() - served.clock.now())
    service.call(served.made_by(keep=2).run())
    # Neither of them was the newest backup; the empty one and that of the wrong clock go before the old one does.
    assert served.names == [old, f"{sample.begin}20260101T010000Z.age"]
    assert empty not in served.names
    assert served.last_success == served.clock.now()


# What is kept.


def test_old_ones_go_and_others_stay(service: RunningService, served: Folder, sample: Sample) -> None:
    own = [served.put(sample, f"2026010{day}T000000Z") for day in range(1, 6)]
    begin = sample.begin
    others = [
        "privyseal-0123456789ab-20250101T000000Z.age",
        f"{begin}20250101T000000Z.age.sha256",
        f"{begin}20259901T000000Z.age",
        f"{begin}20250101T000000Z.age~",
        "README",
        f"{begin}20250102T000000Z.age.part",
    ]
    for name in others:
        (served.path / name).write_bytes(sample.content)
    (served.path / f"{begin}20250103T000000Z.age").mkdir()
    (served.path / f"{begin}20250104T000000Z.age").symlink_to(served.path / "README")
    others += [f"{begin}20250103T000000Z.age", f"{begin}20250104T000000Z.age"]
    (served.path / f"{begin}20250105T000000Z.age.part").write_bytes(b"left over")
    with (served.path / f"{begin}20250102T000000Z.age.part").open("rb") as somebody:
        fcntl.flock(somebody, fcntl.LOCK_EX)
        service.call(served.backups.run())
    (new,) = set(served.names) - set(own) - set(others)
    assert new > own[-1]
    assert set(served.names) == {new, *own[-2:], *others}, "three, the new one among them"


def test_one_that_cannot_be_removed_is_not_forgotten(
    service: RunningService, served: Folder, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest is new enough from then on, and they would become more and more."""
    own = [served.put(sample, f"2026010{day}T000000Z") for day in range(1, 6)]
    unlink = Path.unlink

    def kept(path: Path, **options: Any) -> None:
        if path.name == own[0]:
            raise PermissionError(1, "Operation not permitted")
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", kept)
        for _ in range(3):
            with pytest.raises(BackupError, match=f"{own[0]} cannot be removed"):
                service.call(served.backups.run())
            served.clock.advance(60)
    service.call(served.backups.run())
    assert own[0] not in served.names
    assert len(served.names) == 3


def test_what_is_left_over_and_no_file_is_in_nobody_s_way(
    service: RunningService, served: Folder, sample: Sample
) -> None:
    (served.path / f"{sample.begin}20250101T000000Z.age.part").symlink_to("/nonexistent")
    (served.path / f"{sample.begin}20250102T000000Z.age.part").mkdir()
    service.call(served.backups.run())
    assert len(served.names) == 3


# What goes wrong.


def test_a_folder_with_more_than_is_looked_at_is_refused(
    service: RunningService, served: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One would be made every minute, as the newest may be among those that are not seen."""
    monkeypatch.setattr(scheduled, "_MOST_FILES", 3)
    for number in range(4):
        (served.path / f"{number}").touch()
    with pytest.raises(BackupError, match="more than 3 files"):
        service.call(served.backups.run())
    assert len(served.names) == 4


def test_a_disk_that_hangs_keeps_nobody_from_starting_or_ending(
    service: RunningService, served: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, resolve = threading.Event(), Path.resolve

    def hang(path: Path, **options: Any) -> Path:
        if path == served.path:
            assert answers.wait(_PATIENCE)
        return resolve(path, **options)

    monkeypatch.setattr(Path, "resolve", hang)
    monkeypatch.setattr(scheduled, "_PATIENCE", 0.2)
    begun = time.monotonic()
    backups = served.made_by()
    for _ in range(2):
        with pytest.raises(BackupError, match="does not answer"):
            service.call(backups.run())
    assert time.monotonic() - begun < _PATIENCE / 2
    # Threads of another kind are waited for at the end of the process.
    (thread,) = [thread for thread in threading.enumerate() if thread.name.startswith("backup")]
    assert thread.daemon
    answers.set()
    thread.join(_PATIENCE)


def test_a_folder_that_cannot_be_used(service: RunningService, served: Folder) -> None:
    served.path.rmdir()
    with pytest.raises(BackupError, match="No such file"):
        service.call(served.backups.run())
    served.path.write_text("")
    with pytest.raises(BackupError, match="Not a directory"):
        service.call(served.backups.run())
    served.path.unlink()
    served.path.symlink_to(service.settings.home)
    with pytest.raises(BackupError, match="leads into the home"):
        service.call(served.backups.run())
    with pytest.raises(ConfigurationError, match="inside of the home"):
        served.made_by(folder=service.settings.home / "backups")
    served.path.unlink()
    served.path.mkdir()
    service.call(served.backups.run())
    assert len(served.names) == 1, "it is tried again at once"


def test_recipients_in_a_file_that_is_not_there(service: RunningService, served: Folder, tmp_path: Path) -> None:
    named = tmp_path / "recipients"
    backups = served.made_by(recipients=(f"@{named}",))
    with pytest.raises(BackupError, match="cannot be read"):
        service.call(backups.run())
    named.write_text("age1nobody\n")
    with pytest.raises(BackupError, match="none of age's"):
        service.call(backups.run())
    named.write_text(f"# who may open it\n{served.vault.recipient}\n")
    service.call(backups.run())
    (name,) = served.names
    assert served.vault.members(served.path / name)


async def test_a_damaged_ledger_is_not_backed_up_and_not_read_all_the_time(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings()
    put = "UPDATE ledger_entry SET entry = ? WHERE idx = 2"
    async with opened(tmp_path, settings) as folder:
        runs = []
        run = Apart.run

        def slow(apart: Apart) -> Any:
            folder.seconds += 60
            runs.append(apart)
            return run(apart)

        with (
            closing(sqlite3.connect(settings.database_url.removeprefix("sqlite:///"))) as database,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(Apart, "run", slow)
            (entry,) = database.execute("SELECT entry FROM ledger_entry WHERE idx = 2").fetchone()
            database.execute(put, (entry.replace(b"operator", b"nobody"),))
            database.commit()
            for _ in range(3):
                with pytest.raises(BackupError, match="privyseal ledger verify"):
                    await folder.backups.run()
            assert len(runs) == 1, "it failed after a minute, and rests for ten"
            assert folder.names == []
            assert folder.last_success == 0
            database.execute(put, (entry,))
            database.commit()
            folder.seconds += 601
            # That the ledger cannot say so is one more reason to have it.
            folder.store.refusal = lambda: StoreUnavailableError("The disk is full.")
            await folder.backups.run()
            assert len(folder.names) == 1
            assert folder.last_success == folder.clock.now()


async def test_the_service_is_stopped_meanwhile(make_settings: MakeSettings, tmp_path: Path) -> None:
    """What was written so far is gone, nothing waits for the rest, and the loop was free all the time."""
    settings = make_settings()
    with closing(sqlite3.connect(settings.database_url.removeprefix("sqlite:///"))) as database:
        database.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400000) "
            "INSERT INTO fact SELECT 'tests-' || i, hex(randomblob(60)) FROM n"
        )
        database.commit()
    async with opened(tmp_path, settings) as folder:
        making = asyncio.create_task(folder.backups.run())
        await _written(folder)
        assert await folder.store.read(lambda _: 1) == 1
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(making, _PATIENCE)
        assert folder.names == []
        assert folder.last_success == 0


async def test_the_process_that_makes_it_is_killed(make_settings: MakeSettings, tmp_path: Path) -> None:
    async with opened(tmp_path, make_settings()) as folder:

        def run(apart: Apart) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("privyseal_ca.recovery.apart.sys.executable", "/bin/false")
                return original(apart)

        original = Apart.run
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Apart, "run", run)
            with pytest.raises(BackupError, match="ended with code 1 and said nothing"):
                await folder.backups.run()
        assert folder.names == []


async def test_another_process_leads_meanwhile(make_settings: MakeSettings, tmp_path: Path) -> None:
    """The file is good, the ledger is not written, and the next look finds that nothing is due."""

    def lost(_: Transaction) -> None:
        raise LeaseLostError("Another process leads now.")

    async with opened(tmp_path, make_settings()) as folder:
        with guarding(lost), pytest.raises(LeaseLostError):
            await folder.backups.run()
        await folder.backups.run()
        assert len(folder.names) == 1


async def _written(folder: Folder) -> None:
    """Wait until a backup is being written."""
    async with asyncio.timeout(_PATIENCE):
        while not any(each.endswith(".part") for each in folder.names):  # noqa: ASYNC110 (another process writes)
            await asyncio.sleep(0.01)


# Settings.


def test_none_are_made_unless_a_folder_is_set(make_settings: MakeSettings, tmp_path: Path) -> None:
    assert BackupSettings().folder is None
    assert BackupSettings(folder="").folder is None
    with pytest.raises(ConfigurationError, match="No folder"):
        Folder(tmp_path, make_settings(), None, FakeClock(), folder=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"folder": "backups"}, "absolute"),
        ({"folder": "/backup", "recipients": ()}, "must name somebody"),
        ({"recipients": ("AGE-SECRET-KEY-1",)}, "begin with age1"),
        ({"recipients": ("@recipients",)}, "absolute path of a file"),
        ({"every": 3599}, "3600"),
        ({"keep": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_are_refused(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        BackupSettings(**{"recipients": ("age1x",), **said})
