"""`ledger verify` finds checkpoints, tiles and a checkpoint kept elsewhere that the entries do not bear out, and names them."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ed25519
from sqlalchemy import delete, insert, select, update

from fakes.audited import NOW, SoftwareKey
from fakes.checkpoints import ORIGIN, checkpointer
from fakes.home import MakeSettings
from fakes.service import FakeClock
from fakes.store_faults import FaultyBackend, open_faulty
from privyseal_acme.cli import cli
from privyseal_ca.config import Settings
from privyseal_ca.errors import LedgerError
from privyseal_ca.issuance.record import issued_entry
from privyseal_ca.ledger.audit import Auditor, AuditReport
from privyseal_ca.ledger.audit_checkpoints import opened_since
from privyseal_ca.ledger.audit_errors import AuditError
from privyseal_ca.ledger.checkpoint_rows import latest_checkpoint, stage
from privyseal_ca.ledger.checkpoints import ORIGIN_FACT, VKEY_FACT
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append, size
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, note_with
from privyseal_ca.ledger.tile_store import StoredTiles, full_tile
from privyseal_ca.ledger.tiles import root_of
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import set_fact
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import Fact, LedgerCheckpoint, LedgerEntry, LedgerHead, LedgerTile

_entry = LedgerEntry.__table__  # type: ignore[attr-defined]
_head = LedgerHead.__table__  # type: ignore[attr-defined]
_tile = LedgerTile.__table__  # type: ignore[attr-defined]
_checkpoint = LedgerCheckpoint.__table__  # type: ignore[attr-defined]
_fact = Fact.__table__  # type: ignore[attr-defined]

HOUR = 3600
SIZES = (1, 300, 513, 900)


class Log:
    """A ledger of entries that `ledger verify` has nothing to compare with, and its key."""

    def __init__(self, store: Store, url: str) -> None:
        self.store = store
        self.url = url
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.clock = FakeClock(NOW)
        self.signer = checkpointer(store, SoftwareKey(self.key), clock=self.clock)
        self.verifier = NoteVerifier.for_key(ORIGIN, self.key.public_key())

    async def grow(self, count: int, salt: str = "") -> None:
        def unit(transaction: Transaction) -> None:
            first = size(transaction)
            for index in range(first, first + count):
                append(transaction, entry(index, salt))

        await self.store.write(unit)

    async def sign(self) -> None:
        """Sign a checkpoint that stays when the next one comes."""
        assert await self.signer.sign_due()
        self.clock.advance(HOUR)

    async def run(self, *statements: Any) -> None:
        """Change the database behind everybody's back."""

        def unit(transaction: Transaction) -> None:
            for statement in statements:
                assert transaction.execute(Statement(statement)) > 0, statement

        await self.store.write(unit)

    async def row(self, of: int) -> tuple[bytes, bytes]:
        """Root and note of a checkpoint."""
        statement = Statement(select(_checkpoint.c.root, _checkpoint.c.note).where(_checkpoint.c.size == of))
        row = await self.store.read(lambda tx: tx.one(statement))
        assert row is not None
        return row[0], row[1]

    async def root(self, of: int) -> bytes:
        return await self.store.read(lambda tx: root_of(StoredTiles(tx), of))

    def note(self, of: int, root: bytes, *, origin: str = ORIGIN, key: Any = None) -> bytes:
        key = key or self.key
        text = Checkpoint(origin, of, root).text()
        return note_with(text, NoteVerifier.for_key(origin, key.public_key()), key.sign(text.encode()))

    async def audit(self, since: bytes | None = None, vkey: str | None = None) -> AuditReport:
        kept = None
        if since is not None:
            kept = await self.store.read(partial(opened_since, note=since, vkey=vkey))
        return await Auditor(self.store, issued_entry=issued_entry, since=kept).run()

    async def refused(self, match: str) -> None:
        with pytest.raises(AuditError, match=match):
            await self.audit()


def entry(index: int, salt: str = "") -> bytes:
    return encode_entry(
        Kind.SERVICE_STOPPED, time=NOW, actor="service", correlation="c", payload={"entry": index, "salt": salt}
    )


@pytest_asyncio.fixture
async def log(migrated_url: str) -> AsyncIterator[Log]:
    """A ledger of 1000 entries with checkpoints at four sizes, and three tiles."""
    store = open_faulty(FaultyBackend(migrated_url))
    await store.open()
    log = Log(store, migrated_url)
    for of in SIZES:
        await log.grow(of - await store.read(size))
        await log.sign()
    await log.grow(100)
    yield log
    await store.close()


def of_size(number: int) -> Any:
    return _checkpoint.c.size == number


def at(level: int, index: int) -> Any:
    return (_tile.c.level == level) & (_tile.c.idx == index)


async def test_a_good_ledger_passes(log: Log) -> None:
    report = await log.audit()
    assert (report.size, report.checkpoints, report.tiles, report.since) == (1000, 4, 3, None)


async def test_pages_join(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privyseal_ca.ledger.audit._PAGE", 7)
    assert (await log.audit()).checkpoints == 4


async def test_a_home_without_checkpoints_passes(migrated_url: str) -> None:
    store = open_faulty(FaultyBackend(migrated_url))
    await store.open()
    log = Log(store, migrated_url)
    await log.grow(300)
    report = await log.audit()
    await store.close()
    assert (report.size, report.checkpoints, report.tiles) == (300, 0, 0)


async def test_more_checkpoints_than_a_page(log: Log) -> None:
    for _ in range(130):
        await log.grow(1)
        await log.sign()
    assert (await log.audit()).checkpoints == 134
    await log.run(update(_checkpoint).where(of_size(1120)).values(root=b"\x00" * 32))
    await log.refused("size 1120 .* another root")


# Checkpoints.


async def test_a_checkpoint_that_is_being_signed_passes(log: Log) -> None:
    root = await log.root(1000)
    await log.store.write(lambda tx: stage(tx, 1000, root))
    assert (await log.audit()).checkpoints == 5


async def test_a_checkpoint_that_is_to_be_signed_over_something_else_is_found(log: Log) -> None:
    await log.store.write(lambda tx: stage(tx, 1000, b"\x01" * 32))
    await log.refused("size 1000 .* not that of the first 1000 entries")


async def test_a_note_that_is_gone_is_found(log: Log) -> None:
    await log.run(update(_checkpoint).where(of_size(300)).values(note=None))
    await log.refused("size 300 .* no note, and is not the newest")


async def test_a_changed_note_is_found(log: Log) -> None:
    _, note = await log.row(513)
    await log.run(update(_checkpoint).where(of_size(513)).values(note=note.replace(b"\n513\n", b"\n514\n")))
    await log.refused("size 513 .* wrong signature")


@pytest.mark.parametrize("length", [0, 10, -1, -20])
async def test_a_cut_note_is_found(log: Log, length: int) -> None:
    _, note = await log.row(513)
    await log.run(update(_checkpoint).where(of_size(513)).values(note=note[:length]))
    await log.refused("size 513 .* does not open")


async def test_a_changed_root_is_found(log: Log) -> None:
    await log.run(update(_checkpoint).where(of_size(1)).values(root=b"\x02" * 32))
    await log.refused("size 1 .* note with another root")


async def test_exchanged_notes_are_found(log: Log) -> None:
    (_, first), (_, second) = await log.row(300), await log.row(900)
    await log.run(
        update(_checkpoint).where(of_size(300)).values(note=second),
        update(_checkpoint).where(of_size(900)).values(note=first),
    )
    await log.refused("size 300 .* note of the size 900")


async def test_a_fork_that_the_log_signed_is_found(log: Log) -> None:
    """Two statements of one size, both with the log's own signature."""
    root = b"\x03" * 32
    await log.run(update(_checkpoint).where(of_size(513)).values(root=root, note=log.note(513, root)))
    await log.refused("size 513 .* not that of the first 513 entries")


async def test_an_inserted_checkpoint_is_found(log: Log) -> None:
    row = {"size": 700, "root": b"\x04" * 32, "signed_at": 1}
    await log.run(insert(_checkpoint).values(**row, note=log.note(700, b"\x04" * 32)))
    await log.refused("size 700 .* not that of the first 700 entries")
    other = ed25519.Ed25519PrivateKey.generate()
    root = await log.root(700)
    await log.run(update(_checkpoint).where(of_size(700)).values(root=root, note=log.note(700, root, key=other)))
    await log.refused("size 700 .* no signature by a known key")


@pytest.mark.parametrize("number", [1001, 2**62])
async def test_a_checkpoint_beyond_the_ledger_is_found(log: Log, number: int) -> None:
    note = log.note(number, b"\x05" * 32)
    await log.run(insert(_checkpoint).values(size=number, root=b"\x05" * 32, note=note, signed_at=1))
    await log.refused(f"size {number} .* beyond the ledger, which has 1000 entries")


async def test_a_size_that_none_has_is_found(log: Log) -> None:
    await log.run(insert(_checkpoint).values(size=-1, root=b"\x05" * 32, note=b"", signed_at=1))
    await log.refused("size -1 .* a size that none has")


async def test_a_ledger_that_was_cut_is_found(log: Log) -> None:
    await log.run(delete(_entry).where(_entry.c.idx >= 899), update(_head).values(size=899))
    await log.refused("size 900 .* beyond the ledger, which has 899 entries")


async def test_a_rewritten_entry_is_found(log: Log) -> None:
    """With its leaf hash, so that nothing but the signature shows it."""
    forged = entry(600, "forged")
    values = {"entry": forged, "leaf_hash": leaf_hash(forged)}
    await log.run(update(_entry).where(_entry.c.idx == 600).values(**values))
    await log.refused("tile 2 at level 0 .* hashes")
    tile = await log.store.read(lambda tx: full_tile(tx, 2))
    await log.run(update(_tile).where(at(0, 2)).values(**tile._asdict()))
    await log.refused("size 900 .* not that of the first 900 entries")


async def test_exchanged_entries_are_found(log: Log) -> None:
    one, other = entry(899), entry(898)
    await log.run(
        update(_entry).where(_entry.c.idx == 898).values(entry=one, leaf_hash=leaf_hash(one)),
        update(_entry).where(_entry.c.idx == 899).values(entry=other, leaf_hash=leaf_hash(other)),
    )
    await log.refused("size 900 .* not that of the first 900 entries")


async def test_checkpoints_that_are_all_gone_are_found(log: Log) -> None:
    await log.run(delete(_checkpoint))
    await log.refused("none is kept")


@pytest.mark.parametrize("fact", [ORIGIN_FACT, VKEY_FACT])
async def test_a_fact_that_is_gone_is_found(log: Log, fact: str) -> None:
    await log.run(delete(_fact).where(_fact.c.name == fact))
    await log.refused("fact .* is missing")


async def test_facts_that_changed_are_found(log: Log) -> None:
    await log.store.write(lambda tx: set_fact(tx, ORIGIN_FACT, "else.example/ledger"))
    await log.refused(f"size 1 .* of the log {ORIGIN}, and this one is else")
    await log.store.write(lambda tx: set_fact(tx, VKEY_FACT, "x"))
    await log.refused("fact ledger-vkey is malformed")


# Tiles.


@pytest.mark.parametrize("index", [0, 1, 2])
async def test_a_missing_tile_is_named(log: Log, index: int) -> None:
    await log.run(delete(_tile).where(at(0, index)))
    await log.refused(f"tile {index} at level 0 .* is missing")


async def test_a_changed_tile_is_named(log: Log) -> None:
    await log.run(update(_tile).where(at(0, 1)).values(hashes=b"\x00" * 8192))
    await log.refused("tile 1 at level 0 .* hashes")


async def test_a_changed_root_of_a_tile_is_named(log: Log) -> None:
    await log.run(update(_tile).where(at(0, 2)).values(root=b"\x00" * 32))
    await log.refused("tile 2 at level 0 .* root")


async def test_a_cut_tile_is_named(log: Log) -> None:
    tile = await log.store.read(lambda tx: full_tile(tx, 0))
    await log.run(update(_tile).where(at(0, 0)).values(hashes=tile.hashes[:-32]))
    await log.refused("tile 0 at level 0 .* hashes")


async def test_exchanged_tiles_are_found(log: Log) -> None:
    await log.run(
        update(_tile).where(at(0, 0)).values(idx=9),
        update(_tile).where(at(0, 1)).values(idx=0),
        update(_tile).where(at(0, 9)).values(idx=1),
    )
    await log.refused("tile 0 at level 0 .* hashes")


@pytest.mark.parametrize(("level", "index"), [(0, 3), (0, 2**40), (1, 0), (2, 5), (9, 0), (2**30, 0)])
async def test_a_tile_beyond_the_ledger_is_named(log: Log, level: int, index: int) -> None:
    await log.run(insert(_tile).values(level=level, idx=index, root=b"\x00" * 32, hashes=b"\x00" * 8192))
    await log.refused(f"tile {index} at level {level} .* beyond the ledger")


@pytest.mark.parametrize(("level", "index"), [(0, -1), (-1, 0)])
async def test_a_tile_that_cannot_be_is_found(log: Log, level: int, index: int) -> None:
    await log.run(insert(_tile).values(level=level, idx=index, root=b"\x00" * 32, hashes=b"\x00" * 8192))
    await log.refused(f"level {level} with an index from {index} ")


async def test_tiles_above_the_newest_checkpoint_are_checked(log: Log) -> None:
    """As a crash before the signature leaves them."""
    await log.grow(100)
    tile = await log.store.read(lambda tx: full_tile(tx, 3))
    await log.run(insert(_tile).values(level=0, idx=3, **tile._asdict()))
    assert (await log.audit()).tiles == 4
    await log.run(update(_tile).where(at(0, 3)).values(root=b"\x00" * 32))
    await log.refused("tile 3 at level 0 .* root")


# Beside a service that signs.


@pytest.mark.parametrize("behind", [0, 1])
async def test_what_is_signed_meanwhile_is_checked_and_no_mistake(log: Log, behind: int) -> None:
    """Before every reading something is appended and signed; sometimes what is signed lags behind."""
    backend = open_faulty(FaultyBackend(log.url))
    await backend.open()

    class Busy:
        """The store of a check beside a service that works between any two readings."""

        reads = 0

        async def read(self, unit: Any) -> Any:
            self.reads += 1
            if self.reads < 40:
                await log.grow(60)
                assert await log.signer.sign_due()
                await log.grow(behind)
                if self.reads % 3 == 0:
                    log.clock.advance(HOUR)
            return await backend.read(unit)

    busy: Any = Busy()
    report = await Auditor(busy, issued_entry=issued_entry).run()
    await backend.close()
    assert report.size > 1000
    assert report.checkpoints >= 5
    assert report.tiles >= 4


@pytest.mark.parametrize("what", ["root", "tile"])
async def test_what_is_signed_meanwhile_is_found_when_it_is_wrong(log: Log, what: str) -> None:
    auditor = Auditor(log.store, issued_entry=issued_entry)
    contents = auditor._crls.contents

    async def then_sign() -> None:
        await contents()
        await log.grow(100)
        await log.sign()
        if what == "root":
            wrong = b"\x06" * 32
            await log.run(update(_checkpoint).where(of_size(1100)).values(root=wrong, note=log.note(1100, wrong)))
        else:
            await log.run(update(_tile).where(at(0, 3)).values(hashes=b"\x00" * 8192))

    auditor._crls.contents = then_sign  # type: ignore[method-assign]
    with pytest.raises(AuditError, match="size 1100" if what == "root" else "tile 3 at level 0"):
        await auditor.run()


async def test_a_service_beside_it_in_earnest(log: Log) -> None:
    """No order is imposed: both run as they can."""
    other = open_faulty(FaultyBackend(log.url))
    await other.open()
    done = asyncio.Event()

    async def work() -> None:
        while not done.is_set():
            await log.grow(40)
            await log.signer.sign_due()
            log.clock.advance(600)
            await asyncio.sleep(0)

    service = asyncio.create_task(work())
    auditor_log = Log(other, log.url)
    for _ in range(5):
        assert (await auditor_log.audit()).checkpoints >= 4
    done.set()
    await service
    await other.close()


# A checkpoint that was kept elsewhere.


async def test_a_ledger_that_continues_passes(log: Log) -> None:
    root, note = await log.row(300)
    assert (await log.audit(note)).since == Checkpoint(ORIGIN, 300, root)
    assert (await log.audit(note, log.verifier.vkey())).since is not None
    between = log.note(701, await log.root(701))  # none of this size is stored
    assert (await log.audit(between)).since is not None
    assert (await log.audit(log.note(1000, await log.root(1000)))).since is not None


async def test_a_ledger_that_was_rolled_back_is_found(log: Log) -> None:
    """With everything beside it, as an older backup is."""
    await log.grow(24)
    await log.sign()
    _, note = await log.row(1024)
    await log.run(
        delete(_entry).where(_entry.c.idx >= 1000),
        update(_head).values(size=1000),
        delete(_checkpoint).where(of_size(1024)),
        delete(_tile).where(at(0, 3)),
    )
    await log.audit()
    with pytest.raises(AuditError, match="1000 entries, fewer than the 1024"):
        await log.audit(note)


async def test_a_ledger_that_was_forked_is_found(log: Log) -> None:
    """Consistent in itself, with the log's own signatures: only what was kept elsewhere shows it."""
    _, kept = await log.row(900)
    await log.run(
        delete(_entry).where(_entry.c.idx >= 800),
        update(_head).values(size=800),
        delete(_checkpoint).where(of_size(900)),
    )
    log.signer = checkpointer(log.store, SoftwareKey(log.key), clock=log.clock)
    await log.grow(200, "fork")
    await log.sign()
    await log.audit()
    with pytest.raises(AuditError, match="first 900 entries are not those of the checkpoint that was given"):
        await log.audit(kept)


async def test_a_note_of_another_key_or_log_is_refused(log: Log) -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    root, _ = await log.row(300)
    forged = log.note(300, root, key=other)
    with pytest.raises(LedgerError, match="no signature by a known key"):
        await log.audit(forged)
    # An earlier key of the same log.
    assert (await log.audit(forged, NoteVerifier.for_key(ORIGIN, other.public_key()).vkey())).since is not None
    elsewhere = "else.example/ledger"
    vkey = NoteVerifier.for_key(elsewhere, other.public_key()).vkey()
    with pytest.raises(LedgerError, match="is of the log else"):
        await log.audit(log.note(300, root, origin=elsewhere, key=other), vkey)


async def test_without_a_key_or_an_origin_nothing_is_compared(log: Log) -> None:
    root, note = await log.row(300)
    assert root
    await log.run(delete(_fact).where(_fact.c.name == VKEY_FACT))
    with pytest.raises(LedgerError, match="signed no checkpoint"):
        await log.audit(note)
    await log.run(delete(_fact).where(_fact.c.name == ORIGIN_FACT))
    with pytest.raises(LedgerError, match="no origin yet"):
        await log.audit(note, log.verifier.vkey())


# The command.


def call(settings: Settings, *arguments: str, stdin: bytes | None = None) -> Result:
    environment = {"PRIVYSEAL_HOME": str(settings.home), "PRIVYSEAL_DATABASE__URL": settings.database_url}
    return CliRunner().invoke(cli, ["ledger", "verify", *arguments], env=environment, input=stdin)


async def test_the_command(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings()
    store = open_faulty(FaultyBackend(settings.database_url))
    await store.open()
    log = Log(store, settings.database_url)
    await log.grow(300 - await store.read(size))
    await log.sign()
    root, note = await log.row(300)
    await log.grow(1)
    await store.close()
    (tmp_path / "note").write_bytes(note)
    (tmp_path / "key").write_text(f"{log.verifier.vkey()}\n")

    async def run(*arguments: str, stdin: bytes | None = None) -> Result:
        return await asyncio.to_thread(call, settings, *arguments, stdin=stdin)

    plain = json.loads((await run("--json")).stdout)
    assert (plain["checkpoints"], plain["tiles"]) == (1, 1)
    assert "since" not in plain
    for key in ((), ("--vkey", log.verifier.vkey()), ("--vkey", f"@{tmp_path / 'key'}")):
        result = await run("--since", str(tmp_path / "note"), *key, "--json")
        assert json.loads(result.stdout)["since"] == {"origin": ORIGIN, "size": 300, "root": root.hex()}
    piped = await run("--since", "-", stdin=note)
    assert piped.exit_code == 0
    assert piped.stdout.endswith("since            300: continues the checkpoint that was given\nok\n")
    forged = await run("--since", "-", stdin=log.note(300, b"\x07" * 32))
    assert forged.exit_code == 1
    assert "first 300 entries are not those" in forged.stderr
    (tmp_path / "big").write_bytes(b"x" * 9000)
    assert (await run("--since", "-", stdin=b"x" * 2_000_000)).exit_code == 1
    for wrong, code in (
        (("--vkey", log.verifier.vkey()), 2),
        (("--since", "/nowhere"), 2),
        (("--since", "-", "--vkey", "@/nowhere"), 1),
        (("--since", "-", "--vkey", f"@{tmp_path / 'big'}"), 1),
    ):
        assert (await run(*wrong, stdin=note)).exit_code == code


# Size.


async def test_seventy_thousand_entries_in_bounded_memory(migrated_url: str) -> None:
    """Numbers of tiles from C2SP tlog-tiles: 273 full ones and one above; memory is that of some pages."""
    store = open_faulty(FaultyBackend(migrated_url))
    await store.open()
    log = Log(store, migrated_url)
    for _ in range(7):
        await log.grow(10_000)
        await log.sign()
    assert await store.read(latest_checkpoint) is not None
    tracemalloc.start()
    report = await log.audit()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (report.size, report.checkpoints, report.tiles) == (70_000, 7, 274)
    assert peak < 4_000_000
    await log.run(update(_tile).where(at(1, 0)).values(root=b"\x00" * 32))
    await log.refused("tile 0 at level 1 .* root")
    await log.run(delete(_tile).where(at(1, 0)))
    await log.refused("tile 0 at level 1 .* is missing")
    await store.close()
