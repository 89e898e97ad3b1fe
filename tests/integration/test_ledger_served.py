"""The ledger from a database and from a published folder: what is served is what was signed, and nothing beyond it."""

import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from fakes.ledgers import Log, OverHttp, Tiles, check, entries_of, log_in
from fakes.service import FakeClock
from fakes.status_rows import StatusRows
from fakes.status_sources import exchange
from privyseal_acme.status_role import status_running
from privyseal_ca.config import Settings
from privyseal_ca.errors import ConfigurationError, LedgerError, StatusUnavailableError
from privyseal_ca.ledger.log import entries
from privyseal_ca.ledger.note import NoteVerifier
from privyseal_ca.ledger.proofs import inclusion_proof, verify_inclusion, verify_receipt
from privyseal_ca.ledger.served import StoredLedger
from privyseal_ca.ledger.tiles import WIDTH, TilePath, entry_bundle, parse_bundle
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.revocation.folder_ledger import FolderLedger, LedgerPublisher, files_between, ledger_file
from privyseal_ca.revocation.folder_publisher import FolderPublisher
from privyseal_ca.revocation.folder_writer import FolderWriter
from privyseal_ca.store.readonly import reading


@pytest_asyncio.fixture
async def log(migrated_url: str) -> AsyncIterator[Log]:
    async with log_in(migrated_url) as log:
        yield log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "published"


# From a database.


async def test_a_ledger_without_a_checkpoint_serves_nothing(log: Log) -> None:
    await log.append(3)
    serial = await log.issue(1)
    for ask in (log.source.vkey, log.source.checkpoint, lambda: log.source.receipt(serial)):
        with pytest.raises(StatusUnavailableError):
            await ask()
    assert await log.source.tile(TilePath(0, 0, 1)) is None
    assert await log.source.receipt("00" * 16) is None


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 600])
async def test_what_is_served_is_what_was_signed(log: Log, size: int) -> None:
    await log.grow(size)
    assert (await check(log.source)).size == size
    assert await log.source.vkey() == log.vkey


async def test_nothing_beyond_the_checkpoint_is_served(log: Log) -> None:
    await log.grow(300)
    await log.append(300)
    for path in (TilePath(0, 1), TilePath(0, 1, 45), TilePath(0, 2, 1), TilePath(1, 0, 2), TilePath(2, 0, 1)):
        assert await log.source.tile(path) is None, path
        if path.level == 0:
            assert await log.source.tile(TilePath(None, path.index, path.width)) is None
    assert await log.source.tile(TilePath(63, 0)) is None
    assert await log.source.tile(TilePath(0, 2**40)) is None
    assert (await check(log.source)).size == 300


async def test_partial_tiles_never_change(log: Log) -> None:
    """They are served with the word `immutable`."""
    seen: dict[TilePath, bytes] = {}
    for before, size in pairwise((0, 5, 17, 255, 256, 300, 513)):
        await log.grow(size - before)
        for path in files_between(0, size, entries=True):
            content = await log.source.tile(path)
            assert content is not None
            assert seen.setdefault(path, content) == content
        for path, content in seen.items():
            assert await log.source.tile(path) == content


async def test_a_receipt_verifies_without_the_database(log: Log) -> None:
    await log.grow(290)
    first = await log.issue(1)
    with pytest.raises(StatusUnavailableError, match="covers"):
        await log.source.receipt(first)
    await log.sign()
    await log.grow(400)
    receipt = await log.source.receipt(first)
    assert receipt is not None
    (stored,) = await log.store.read(lambda tx: list(entries(tx, first=receipt.index, count=1)))
    verifier = NoteVerifier.parse(log.vkey)
    assert verify_receipt(receipt, stored.entry, [verifier]).size == 692
    with pytest.raises(LedgerError):
        verify_receipt(receipt, stored.entry + b" ", [verifier])
    assert await log.source.receipt("ff" * 16) is None


async def test_a_database_that_only_reads_serves_the_same(log: Log, migrated_url: str) -> None:
    await log.grow(270)
    serial = await log.issue(9)
    await log.sign()
    async with reading(Settings(database={"url": migrated_url})) as store:
        source = StoredLedger(store)
        assert await check(source) == await check(log.source)
        assert await source.receipt(serial) == await log.source.receipt(serial)


async def test_a_database_that_was_changed_gives_no_receipt(log: Log, migrated_url: str) -> None:
    serial = await log.issue(4)
    await log.grow(5)
    engine = create_engine(migrated_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE ledger_entry SET entry = :entry WHERE idx = 1"), {"entry": b"{}"})
    engine.dispose()
    with pytest.raises(LedgerError):
        await log.source.receipt(serial)


async def test_a_database_without_the_tables_is_away(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE other (id INTEGER)"))
    engine.dispose()
    async with reading(Settings(database={"url": url})) as store:
        source = StoredLedger(store)
        for ask in (source.vkey, source.checkpoint, lambda: source.tile(TilePath(0, 0)), lambda: source.receipt("0")):
            with pytest.raises(StatusUnavailableError, match="cannot be read"):
                await ask()


# What a folder holds.


@given(st.integers(0, 200_000), st.integers(0, 200_000), st.booleans())
@hypothesis_settings(deadline=None)
def test_files_between_two_sizes_are_those_that_the_larger_needs(one: int, other: int, with_entries: bool) -> None:
    old, new = sorted((one, other))
    before = set(files_between(0, old, entries=with_entries))
    whole = set(files_between(0, new, entries=with_entries))
    between = list(files_between(old, new, entries=with_entries))
    assert len(set(between)) == len(between)
    assert whole - before <= set(between) <= whole
    assert {path for path in whole if path.width == WIDTH} <= before | set(between)
    if old == new:
        assert between == []


@asynccontextmanager
async def publishing(
    log: Log, folder: Path, *, with_entries: bool = True, said: list[str] | None = None
) -> AsyncIterator[LedgerPublisher]:
    with FolderWriter(folder) as writer:
        yield LedgerPublisher(
            store=log.store,
            writer=writer,
            entries=with_entries,
            clock=log.clock,
            progress=(said if said is not None else []).append,
        )


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Inode and content of every file of the ledger."""
    return {
        str(path.relative_to(folder / "ledger")): (path.stat().st_ino, path.read_bytes())
        for path in (folder / "ledger").rglob("*")
        if path.is_file()
    }


async def test_an_empty_ledger_leaves_the_folder_alone(log: Log, folder: Path) -> None:
    await log.append(5)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
        assert (publisher.problem, publisher.size) == ("", 0)
    assert not (folder / "ledger").exists()


@pytest.mark.parametrize("with_entries", [True, False])
async def test_the_folder_has_what_the_checkpoint_needs_and_no_more(log: Log, folder: Path, with_entries: bool) -> None:
    await log.grow(600)
    async with publishing(log, folder, with_entries=with_entries) as publisher:
        await publisher.publish()
    needed = {ledger_file(path) for path in files_between(0, 600, entries=with_entries)}
    assert set(files(folder)) == {path.removeprefix("ledger/") for path in needed} | {"vkey", "checkpoint"}
    assert (folder / "ledger/vkey").read_text() == f"{log.vkey}\n"
    assert (folder / "ledger/checkpoint").read_bytes() == await log.source.checkpoint()
    assert (folder / "ledger/tile/0/001").stat().st_mode & 0o777 == 0o644
    assert (await check(FolderLedger(folder), with_entries=with_entries)).size == 600
    assert (await FolderLedger(folder).tile(TilePath(None, 0)) is not None) == with_entries


async def test_it_follows_and_writes_full_tiles_once(log: Log, folder: Path) -> None:
    await log.grow(250)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
        assert publisher.counts.tiles == 2
        for size, new in ((252, 2), (252, 0), (256, 3), (257, 2), (520, 5)):
            before, counted = files(folder), publisher.counts.tiles
            await log.grow(size - publisher.size)
            assert await publisher.advance()
            # A full tile at level 0 is a hash at level 1, whose partial tile is new as well.
            assert publisher.counts.tiles - counted == new
            after = files(folder)
            for path in before.keys() & after.keys() - {"checkpoint"}:
                assert before[path] == after[path]
            assert (await check(FolderLedger(folder))).size == size
        assert sorted(path for path in files(folder) if ".p/" in path) == [
            "tile/0/002.p/8", "tile/1/000.p/1", "tile/1/000.p/2", "tile/entries/002.p/8",
        ]  # fmt: skip


async def test_partial_tiles_go_when_the_full_one_is_there(log: Log, folder: Path) -> None:
    async with publishing(log, folder) as publisher:
        for count in (10, 20, 30):
            await log.grow(count)
            await publisher.advance()
        assert {path for path in files(folder) if ".p/" in path} == {
            f"tile/{kind}/000.p/{width}" for kind in ("0", "entries") for width in (10, 30, 60)
        }
        await log.grow(200)
        await publisher.advance()
        assert publisher.counts.removed == 6
    served = FolderLedger(folder)
    assert not (folder / "ledger/tile/0/000.p").exists()
    # Who has an old checkpoint gets the same out of the full tile.
    for path in (TilePath(0, 0, 30), TilePath(None, 0, 30)):
        assert await served.tile(path) == await log.source.tile(path)


async def test_the_second_time_nothing_happens(log: Log, folder: Path) -> None:
    await log.grow(300)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
    before = files(folder)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
        assert (publisher.counts.tiles, publisher.counts.checkpoints, publisher.counts.removed) == (0, 0, 0)
        assert publisher.size == 300
    assert files(folder) == before


async def test_what_is_missing_is_written_again(log: Log, folder: Path) -> None:
    await log.grow(600)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
    before = {path: content for path, (_, content) in files(folder).items()}
    (folder / "ledger/tile/0/001").unlink()
    (folder / "ledger/tile/0/000").write_bytes(b"half")
    (folder / "ledger/tile/entries/002.p/88").unlink()
    async with publishing(log, folder) as publisher:
        await publisher.publish()
        assert publisher.counts.tiles == 3
    assert {path: content for path, (_, content) in files(folder).items()} == before


async def test_a_folder_that_is_emptied_meanwhile_is_filled_again(log: Log, folder: Path) -> None:
    await log.grow(300)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
        shutil.rmtree(folder / "ledger")
        await log.grow(1)
        await publisher.advance()
    assert (await check(FolderLedger(folder))).size == 301


async def test_a_crash_at_any_file_leaves_a_checkpoint_that_holds(
    log: Log, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint in the folder never says more than the folder has, and the next run ends what was begun."""
    await log.grow(250)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
    await log.grow(300)

    class KilledError(BaseException):
        pass

    put, left = FolderWriter.put, 0

    def killed(self: FolderWriter, path: str, content: bytes, *, time: int | None = None) -> bool:
        nonlocal left
        if path.startswith("ledger/"):
            left -= 1
            if left < 0:
                raise KilledError
        return put(self, path, content, time=time)

    for allowed in range(12):
        left = allowed
        with monkeypatch.context() as patched:
            patched.setattr(FolderWriter, "put", killed)
            try:
                async with publishing(log, folder) as publisher:
                    await publisher.publish()
                    break
            except KilledError:
                assert (await check(FolderLedger(folder))).size == 250
    else:
        pytest.fail("it never came to its end")
    assert (await check(FolderLedger(folder))).size == 550


async def test_a_ledger_that_is_new_to_the_folder_is_taken_over_in_steps(
    log: Log, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privyseal_ca.revocation.folder_ledger._STEP", 3)
    await log.grow(1100)
    steps = 0
    async with publishing(log, folder) as publisher:
        while not await publisher.advance():
            steps += 1
            # What comes meanwhile is for the next time.
            await log.grow(1)
            assert not (folder / "ledger/checkpoint").exists()
        assert steps >= 3
        assert (await check(FolderLedger(folder))).size == 1100
        await publisher.publish()
        assert (await check(FolderLedger(folder))).size == 1100 + steps


async def test_entries_that_are_closed_again_go(log: Log, folder: Path) -> None:
    await log.grow(600)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
    assert (folder / "ledger/tile/entries").exists()
    async with publishing(log, folder, with_entries=False) as publisher:
        await publisher.publish()
        assert publisher.counts.removed == 3
    assert not (folder / "ledger/tile/entries").exists()
    async with publishing(log, folder) as publisher:
        await publisher.publish()
    assert (await check(FolderLedger(folder))).size == 600


# A ledger that is not the one that was published.


async def refused(log: Log, folder: Path) -> str:
    """What is told when the folder is kept as it was."""
    before, said = files(folder), list[str]()
    async with publishing(log, folder, said=said) as publisher:
        for _ in range(3):
            await publisher.publish()
        assert publisher.problem
        assert publisher.counts.tiles == publisher.counts.checkpoints == publisher.counts.removed == 0
    assert files(folder) == before
    (only,) = said
    return only


async def test_an_older_ledger_does_not_replace_a_newer_one(
    log: Log, folder: Path, tmp_path: Path, make_migrated: Callable[[str], str]
) -> None:
    await log.grow(300)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
    async with log_in(make_migrated("older")) as older:
        await older.grow(200)
        assert "nothing goes back" in await refused(older, folder)
        # As large again, with other entries.
        await older.grow(99, label="y")
        await older.grow(1, label="y")
        assert "rewritten" in await refused(older, folder)
        await older.grow(1, label="y")
        assert "rewritten" in await refused(older, folder)


@pytest.fixture
def make_migrated(tmp_path: Path) -> Callable[[str], str]:
    def make(name: str) -> str:
        url = f"sqlite:///{tmp_path / name}.db"
        StatusRows(url).close()
        return url

    return make


async def test_another_log_does_not_replace_this_one(
    log: Log, folder: Path, make_migrated: Callable[[str], str]
) -> None:
    await log.grow(30)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
    async with log_in(make_migrated("other"), key="another") as other:
        await other.grow(40)
        assert "another verification key" in await refused(other, folder)


async def test_it_goes_on_when_the_ledger_is_right_again(
    log: Log, folder: Path, make_migrated: Callable[[str], str]
) -> None:
    await log.grow(30)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
        note = (folder / "ledger/checkpoint").read_bytes()
        async with log_in(make_migrated("ahead")) as ahead:
            await ahead.grow(50)
            (folder / "ledger/checkpoint").write_bytes(await ahead.source.checkpoint())
        await log.grow(1)
        await publisher.advance()
        assert "nothing goes back" in publisher.problem
        (folder / "ledger/checkpoint").write_bytes(note)
        await publisher.advance()
        assert publisher.problem == ""
    assert (await check(FolderLedger(folder))).size == 31


async def test_a_checkpoint_in_the_folder_that_is_none_is_told(log: Log, folder: Path) -> None:
    await log.grow(30)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
    (folder / "ledger/checkpoint").write_bytes(b"nonsense")
    assert await refused(log, folder)
    with pytest.raises(LedgerError):
        await FolderLedger(folder).checkpoint()


async def test_web_servers_see_a_new_checkpoint_within_the_second(log: Log, folder: Path) -> None:
    """nginx tells one from the other by length and date."""
    times = []
    async with publishing(log, folder) as publisher:
        for _ in range(4):
            await log.grow(1)
            await publisher.advance()
            times.append(int((folder / "ledger/checkpoint").stat().st_mtime))
    assert all(later > earlier for earlier, later in pairwise(times))


# Reading a folder that somebody else has written into.


async def test_a_folder_without_a_ledger(tmp_path: Path) -> None:
    source = FolderLedger(tmp_path)
    assert not source.receipts
    assert await source.receipt("00" * 16) is None
    assert await source.tile(TilePath(0, 0)) is None
    for ask in (source.vkey, source.checkpoint):
        with pytest.raises(StatusUnavailableError):
            await ask()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (TilePath(0, 0), b""),
        (TilePath(0, 0), b"x" * 8191),
        (TilePath(0, 0), b"x" * 8193),
        (TilePath(0, 0), b"x" * (20 << 20)),
        (TilePath(0, 1, 44), b"x" * (43 * 32)),
        (TilePath(None, 0), b"\xff\xffcut"),
        (TilePath(None, 0), b""),
        (TilePath(None, 0), entry_bundle([b"x"] * 255)),
        (TilePath(None, 1, 44), entry_bundle([b"x"] * 45)),
    ],
)
async def test_a_file_that_is_no_such_tile_is_not_served(
    log: Log, folder: Path, path: TilePath, content: bytes
) -> None:
    await log.grow(300)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
    (folder / ledger_file(path)).write_bytes(content)
    source = FolderLedger(folder)
    with pytest.raises(LedgerError):
        await source.tile(path)
    if path.width == WIDTH:
        with pytest.raises(LedgerError):
            await source.tile(TilePath(path.level, path.index, 7))


@pytest.mark.parametrize("content", [b"", b"\xff", b"nonsense", b"x" * 9000])
async def test_a_key_that_is_none_is_not_served(log: Log, folder: Path, content: bytes) -> None:
    await log.grow(3)
    async with publishing(log, folder) as publisher:
        await publisher.publish()
    (folder / "ledger/vkey").write_bytes(content)
    for ask in (FolderLedger(folder).vkey, FolderLedger(folder).checkpoint):
        with pytest.raises(LedgerError):
            await ask()


# The whole publisher, and the status role.


class Published:
    """An authority whose status and ledger are published."""

    def __init__(self, rows: StatusRows, log: Log, settings: Settings, folder: Path) -> None:
        self.rows = rows
        self.log = log
        self.settings = settings
        self.folder = folder

    async def publish(self, *, said: list[str] | None = None) -> FolderPublisher:
        async with reading(self.settings) as store:
            with FolderWriter(self.folder) as writer:
                publisher = FolderPublisher(
                    store=store,
                    writer=writer,
                    settings=self.settings,
                    clock=FakeClock(),
                    progress=(said if said is not None else []).append,
                )
                with closing(publisher):
                    await publisher.publish()
                    await publisher.follow()
                    return publisher

    def with_ledger(self, **ledger: Any) -> "Published":
        section = Settings(ledger=ledger).ledger
        return Published(self.rows, self.log, self.settings.model_copy(update={"ledger": section}), self.folder)


@pytest_asyncio.fixture
async def published(database_url: str, tmp_path: Path) -> AsyncIterator[Published]:
    with closing(StatusRows(database_url)) as rows:
        rows.crl(1)
        rows.response(5)
        settings = rows.home(tmp_path / "home")
        server = settings.server.model_copy(update={"http": "127.0.0.1:0"})
        settings = settings.model_copy(update={"server": server})
        async with log_in(database_url) as log:
            yield Published(rows, log, settings, tmp_path / "published")


async def test_status_and_ledger_are_published_together(published: Published) -> None:
    await published.publish()
    assert not (published.folder / "ledger").exists()
    await published.log.grow(300)
    publisher = await published.publish()
    assert publisher.ledger.size == 300
    assert not (published.folder / "ledger/tile/entries").exists()
    publisher = await published.with_ledger(entries="open").publish()
    assert (await check(FolderLedger(published.folder))).size == 300


async def test_revocation_is_published_although_the_ledger_cannot_be(published: Published) -> None:
    await published.log.grow(300)
    await published.publish()
    checkpoint = published.folder / "ledger/checkpoint"
    checkpoint.write_bytes(b"nonsense")
    crl, response = published.rows.crl(2, serials=(5,)), published.rows.response(5, revoked=True)
    said: list[str] = []
    publisher = await published.publish(said=said)
    assert publisher.ledger.problem
    assert len(said) == 1
    assert (published.folder / f"crl/{published.rows.id}.crl").read_bytes() == crl
    assert response in [path.read_bytes() for path in (published.folder / "ocsp").rglob("*") if path.is_file()]
    assert checkpoint.read_bytes() == b"nonsense"


@pytest.mark.parametrize("kind", ["database", "folder"])
async def test_the_status_role_serves_the_ledger(published: Published, kind: str) -> None:
    await published.log.grow(290)
    serial = await published.log.issue(7)
    await published.log.sign()
    published = published.with_ledger(entries="open")
    await published.publish()
    folder = published.folder if kind == "folder" else None
    async with status_running(published.settings, folder=folder) as service:

        async def get(path: str) -> bytes | None:
            reply = await exchange(service.http_port, f"/ledger/{path}")
            assert reply.status in {200, 404}
            return reply.body if reply.status == 200 else None

        source = OverHttp(get)
        checkpoint = await check(source)
        assert checkpoint.size == 292
        proof = await exchange(service.http_port, f"/ledger/proof/{serial}")
        assert proof.status == (404 if kind == "folder" else 200)
        # Whoever has tiles only makes the proof from them.
        tiles, found = await Tiles.of(source, 292), await entries_of(source, 292)
        index = next(at for at, entry in enumerate(found) if b"issued" in entry)
        verify_inclusion(leaf_hash(found[index]), index, 292, inclusion_proof(tiles, index, 292), checkpoint.root)


@pytest.mark.parametrize("kind", ["database", "folder"])
async def test_the_status_role_keeps_entries_to_itself(published: Published, kind: str) -> None:
    await published.log.grow(10)
    await published.with_ledger(entries="open").publish()
    token = secrets.token_hex(16)
    file = published.settings.home / "token"
    file.write_text(token)
    file.chmod(0o600)
    folder = published.folder if kind == "folder" else None
    path = "/ledger/tile/entries/000.p/10"
    async with status_running(published.settings, folder=folder) as service:
        assert (await exchange(service.http_port, path)).status == 403
        assert (await exchange(service.http_port, "/ledger/tile/0/000.p/10")).status == 200
    with_token = published.with_ledger(entries="token", entries_token_file=file)
    async with status_running(with_token.settings, folder=folder) as service:
        assert (await exchange(service.http_port, path)).status == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert len(parse_bundle((await exchange(service.http_port, path, headers=headers)).body)) == 10
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="used by others"):
        async with status_running(with_token.settings, folder=folder):
            pass


async def test_the_status_role_waits_for_a_ledger(published: Published) -> None:
    await published.publish()
    for folder in (None, published.folder):
        async with status_running(published.settings, folder=folder) as service:
            for path in ("vkey", "checkpoint"):
                reply = await exchange(service.http_port, f"/ledger/{path}")
                assert (reply.status, reply.headers["retry-after"]) == (503, "1")


async def test_a_folder_that_cannot_be_written_is_an_error(log: Log, folder: Path) -> None:
    await log.grow(3)
    async with publishing(log, folder) as publisher:
        (folder / "ledger").write_text("a file in its place")
        await publisher.publish()
        assert "cannot be read" in publisher.problem
