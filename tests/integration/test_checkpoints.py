"""Checkpoints: one key, real databases, every place where it can end, and no two that contradict each other (P6, P7, P8)."""

import asyncio
import base64
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import bindparam, delete, insert, select, update

from fakes.checkpoints import ORIGIN, WatchedKey, checkpointer, grow, published, roots
from fakes.issued import issue_row
from fakes.service import FakeClock
from fakes.softhsm import SoftToken
from fakes.store_faults import FaultyBackend, open_faulty, raising
from privyseal_ca.errors import (
    LedgerError,
    SignatureUncertainError,
    SignerError,
    SignerUnavailableError,
    StoreError,
    StoreUnavailableError,
)
from privyseal_ca.ledger.checkpoint_rows import newest_row
from privyseal_ca.ledger.checkpoints import (
    ORIGIN_FACT,
    VKEY_FACT,
    StoredTiles,
    checkpoint_covering,
    latest_checkpoint,
    receipt_for,
    tile_data,
)
from privyseal_ca.ledger.log import entries, size
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier
from privyseal_ca.ledger.proofs import consistency_proof, verify_consistency, verify_receipt
from privyseal_ca.ledger.tile_store import FullTile, add_tiles, count_tiles
from privyseal_ca.ledger.tiles import TilePath, parse_bundle, root_of
from privyseal_ca.ledger.tree import leaf_hash, root_hash
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import LedgerCheckpoint, LedgerEntry, LedgerHead, LedgerTile
from privyseal_ca.telemetry.metrics import Metrics

_entry = LedgerEntry.__table__  # type: ignore[attr-defined]
_head = LedgerHead.__table__  # type: ignore[attr-defined]
_tile = LedgerTile.__table__  # type: ignore[attr-defined]
_checkpoint = LedgerCheckpoint.__table__  # type: ignore[attr-defined]

_CUT = Statement(delete(_entry).where(_entry.c.idx >= bindparam("first")))
_DROP_ENTRY = Statement(delete(_entry).where(_entry.c.idx == bindparam("at")))
_SET_HEAD = Statement(update(_head).values(size=bindparam("first")))
_SET_LEAF = Statement(update(_entry).values(leaf_hash=bindparam("hash")).where(_entry.c.idx == bindparam("at")))
_SET_ENTRY = Statement(
    update(_entry).values(leaf_hash=bindparam("hash"), entry=bindparam("bytes")).where(_entry.c.idx == bindparam("at"))
)
_SET_TILE_ROOT = Statement(update(_tile).values(root=bindparam("hash")).where(_tile.c.idx == bindparam("at")))
_DROP_TILES = Statement(delete(_tile))
_SIZES = Statement(select(_checkpoint.c.size, _checkpoint.c.note).order_by(_checkpoint.c.size))
_FORGET = Statement(delete(_checkpoint).where(_checkpoint.c.size > bindparam("above")))


@pytest.fixture
def backend(migrated_url: str) -> FaultyBackend:
    return FaultyBackend(migrated_url)


@pytest_asyncio.fixture
async def store(backend: FaultyBackend) -> AsyncIterator[Store]:
    store = open_faulty(backend)
    await store.open()
    yield store
    backend.before.clear()
    backend.after.clear()
    await store.close()


@asynccontextmanager
async def another(url: str) -> AsyncIterator[Store]:
    """What another process has of the database."""
    store = open_faulty(FaultyBackend(url))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest_asyncio.fixture
async def key(soft_token: SoftToken) -> WatchedKey:
    return WatchedKey(await soft_token.signing_key("ed25519"))


async def sizes(store: Store) -> list[int]:
    return [int(row[0]) for row in await store.read(lambda tx: tx.all(_SIZES))]


async def test_nothing_is_signed_of_an_empty_ledger(store: Store, key: WatchedKey) -> None:
    assert not await checkpointer(store, key).sign_due()
    assert await store.read(latest_checkpoint) is None
    assert await store.read(lambda tx: checkpoint_covering(tx, 0)) is None
    assert key.signed == []


async def test_one_for_each_change_and_none_without(store: Store, key: WatchedKey) -> None:
    metrics, clock = Metrics(), FakeClock()
    signer = checkpointer(store, key, metrics=metrics, clock=clock)
    for count in (1, 1, 5, 300):
        await grow(store, count)
        assert await signer.sign_due()
        assert not await signer.sign_due()
        assert (await published(store, signer)).size == await store.read(size)
    assert [checkpoint.size for checkpoint in key.signed] == [1, 2, 7, 307]
    assert await store.read(lambda tx: find_fact(tx, ORIGIN_FACT)) == ORIGIN
    assert await store.read(lambda tx: find_fact(tx, VKEY_FACT)) == signer.verifier.vkey()
    value = metrics.registry.get_sample_value
    assert value("privyseal_ledger_entries") == value("privyseal_ledger_checkpoint_size") == 307
    assert value("privyseal_ledger_checkpoint_seconds") == clock.now()


@pytest.mark.parametrize("algorithm", ["ed25519", "ec-p256"])
async def test_the_note_by_the_words_of_its_specification(store: Store, soft_token: SoftToken, algorithm: Any) -> None:
    """Taken apart by hand: C2SP signed-note and tlog-checkpoint."""
    key = await soft_token.signing_key(algorithm)
    signer = checkpointer(store, key)
    await grow(store, 3)
    assert await signer.sign_due()
    row = await store.read(latest_checkpoint)
    assert row is not None
    text, _, line = row.note.decode().partition("\n\n")
    assert text.split("\n") == [ORIGIN, "3", base64.b64encode((await roots(store))[3]).decode()]
    dash, name, encoded = line.removesuffix("\n").split(" ")
    signature = base64.b64decode(encoded)
    assert (dash, name, signature[:4]) == ("\u2014", ORIGIN, signer.verifier.key_id)
    public, message = key.public_key, f"{text}\n".encode()
    if isinstance(public, ed25519.Ed25519PublicKey):
        hashed = ORIGIN.encode() + b"\n\x01" + public.public_bytes_raw()
        assert signature[:4] == hashlib.sha256(hashed).digest()[:4]
        public.verify(signature[4:], message)
    else:
        assert isinstance(public, ec.EllipticCurvePublicKey)
        public.verify(signature[4:], message, ec.ECDSA(hashes.SHA256()))
    assert NoteVerifier.parse(signer.verifier.vkey()) == signer.verifier


async def test_a_key_or_an_origin_that_notes_cannot_have(store: Store, soft_token: SoftToken, key: WatchedKey) -> None:
    rsa = await soft_token.signing_key("rsa-2048", label="rsa")
    with pytest.raises(LedgerError):
        checkpointer(store, rsa)
    for origin in ("", "a b", "a+b", "a\nb"):
        with pytest.raises(LedgerError):
            checkpointer(store, key, origin=origin)
    with pytest.raises(LedgerError, match="other"):
        checkpointer(store, key, kept=Checkpoint("other", 0, root_hash(())))


async def test_an_origin_never_changes(store: Store, key: WatchedKey) -> None:
    await grow(store, 1)
    await checkpointer(store, key).sign_due()
    await grow(store, 1)
    with pytest.raises(LedgerError, match="elsewhere"):
        await checkpointer(store, key, origin="elsewhere.example").sign_due()
    assert len(key.signed) == 1


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(1, 700), min_size=1, max_size=5))
async def test_every_growth_is_consistent(store: Store, key: WatchedKey, steps: list[int]) -> None:
    signer = checkpointer(store, key)
    for step in steps:
        old = await store.read(latest_checkpoint)
        await grow(store, step)
        assert await signer.sign_due()
        new = await published(store, signer)
        if old is not None:
            proof = await store.read(partial(_consistency, old=old.size, new=new.size))
            verify_consistency(old.size, new.size, proof, old.root, new.root)


def _consistency(transaction: Transaction, old: int, new: int) -> list[bytes]:
    return consistency_proof(StoredTiles(transaction), old, new)


# What is kept of old ones.


async def test_the_newest_and_the_last_of_each_hour_are_kept(store: Store, key: WatchedKey) -> None:
    clock = FakeClock(start=3600 * 1000)
    signer = checkpointer(store, key, clock=clock)
    for _ in range(8):
        await grow(store, 1)
        assert await signer.sign_due()
        clock.advance(1300)
    # Three in each hour: 0, 1300, 2600; 3900 and so on.
    assert await sizes(store) == [3, 6, 8]
    # A clock that goes back lets go of nothing that it does not replace.
    clock.advance(-20_000)
    await grow(store, 1)
    assert await signer.sign_due()
    assert await sizes(store) == [3, 6, 8, 9]


# Tiles.


async def test_tiles_reach_as_far_as_the_published_checkpoint_and_never_beyond(store: Store, key: WatchedKey) -> None:
    signer = checkpointer(store, key)
    await grow(store, 600)

    async def read(path: TilePath) -> bytes | None:
        return await store.read(partial(tile_data, path=path))

    assert await read(TilePath(0, 0, 1)) is None
    assert await signer.sign_due()
    await grow(store, 300)
    stored = await store.read(lambda tx: list(entries(tx, count=900)))
    for index, width in ((0, 256), (0, 3), (1, 256), (2, 1), (2, 88)):
        part = stored[index * 256 : index * 256 + width]
        assert await read(TilePath(0, index, width)) == b"".join(entry.leaf_hash for entry in part)
        bundle = await read(TilePath(None, index, width))
        assert bundle is not None
        assert parse_bundle(bundle) == [entry.entry for entry in part]
    above = [root_hash(entry.leaf_hash for entry in stored[at : at + 256]) for at in (0, 256)]
    assert await read(TilePath(1, 0, 1)) == above[0]
    assert await read(TilePath(1, 0, 2)) == b"".join(above)
    for level, index, width in (
        *((level, 2, width) for level in (0, None) for width in (89, 255, 256)),
        *((level, 3, 1) for level in (0, None)),
        (1, 0, 3),
        (1, 0, 256),
        (1, 1, 1),
        (2, 0, 1),
        (63, 0, 1),
        (0, 2**55, 256),
    ):
        assert await read(TilePath(level, index, width)) is None, (level, index, width)


async def test_a_checkpoint_that_waits_for_its_note_shows_nothing(store: Store, key: WatchedKey) -> None:
    await grow(store, 2)
    key.before = lambda: (_ for _ in ()).throw(SignerUnavailableError("The token is away."))
    with pytest.raises(SignerUnavailableError):
        await checkpointer(store, key).sign_due()
    assert await sizes(store) == [2]
    assert await store.read(latest_checkpoint) is None
    assert await store.read(lambda tx: checkpoint_covering(tx, 0)) is None
    assert await store.read(lambda tx: tile_data(tx, TilePath(0, 0, 1))) is None
    assert await store.read(lambda tx: find_fact(tx, VKEY_FACT)) is None


async def test_a_ledger_of_70000_entries_that_has_no_tiles_yet(tmp_path: Path, key: WatchedKey) -> None:
    url = f"sqlite:///{tmp_path / 'large.db'}"
    migrate(url)
    async with another(url) as store:
        await grow(store, 70_000)
        signer = checkpointer(store, key)
        assert await signer.sign_due()
        assert (await published(store, signer)).size == 70_000
        # STANDARDS D: 273 full and 112 at level 0, one full and 17 at level 1, one at level 2.
        assert [await store.read(partial(count_tiles, level=level)) for level in (0, 1, 2)] == [273, 1, 0]
        for level, index, width in ((0, 273, 112), (1, 0, 256), (1, 1, 17), (2, 0, 1)):
            tile = await store.read(partial(tile_data, path=TilePath(level, index, width)))
            assert tile is not None
            assert len(tile) == width * 32
            if width < 256:
                assert await store.read(partial(tile_data, path=TilePath(level, index, width + 1))) is None
        every = await roots(store)
        for smaller in (1, 255, 256, 257, 65_535, 65_536, 65_537, 69_999):
            assert await store.read(partial(_root, size=smaller)) == every[smaller]


def _root(transaction: Transaction, size: int) -> bytes:
    return root_of(StoredTiles(transaction), size)


async def test_tiles_are_stored_once_in_their_order(store: Store) -> None:
    await grow(store, 600)
    one, two = FullTile(b"1" * 8192, b"1" * 32), FullTile(b"2" * 8192, b"2" * 32)
    with pytest.raises(LedgerError, match="Tile 0"):
        await store.write(partial(add_tiles, first=1, tiles=[one]))
    await store.write(partial(add_tiles, first=0, tiles=[one]))
    await store.write(partial(add_tiles, first=0, tiles=[two]))
    await store.write(partial(add_tiles, first=0, tiles=[two, two]))
    assert await store.read(lambda tx: StoredTiles(tx).hashes(1, 0, 2)) == [b"1" * 32, b"2" * 32]
    assert await store.read(lambda tx: StoredTiles(tx).hashes(0, 255, 2)) == [b"1" * 32, b"2" * 32]


async def test_hashes_that_are_not_there(store: Store) -> None:
    await grow(store, 3)
    for level, first, count in ((0, 0, 4), (0, 3, 1), (1, 0, 1), (5, 7, 1)):
        with pytest.raises(LedgerError, match="lacks"):
            await store.read(lambda tx, args=(level, first, count): StoredTiles(tx).hashes(*args))  # type: ignore[misc]


# Receipts.


async def test_a_receipt_for_every_certificate_once_it_is_covered(store: Store, key: WatchedKey) -> None:
    signer = checkpointer(store, key)
    await grow(store, 250)
    rows = [
        await store.write(lambda tx, serial=serial: issue_row(tx, serial, now=0))  # type: ignore[misc]
        for serial in range(1, 12)
    ]
    assert await store.read(partial(receipt_for, serial=rows[0].serial)) is None
    assert await signer.sign_due()
    late = await store.write(lambda tx: issue_row(tx, 99, now=0))
    assert await store.read(partial(receipt_for, serial=late.serial)) is None
    assert await store.read(lambda tx: receipt_for(tx, "f" * 32)) is None
    stored = await store.read(lambda tx: [entry.entry for entry in entries(tx)])
    for row in rows:
        found = await store.read(partial(receipt_for, serial=row.serial))
        assert found is not None
        assert verify_receipt(found, stored[row.ledger_index], [signer.verifier]).size == 272
        with pytest.raises(LedgerError):
            verify_receipt(found, stored[row.ledger_index - 1], [signer.verifier])


async def test_no_receipt_that_would_not_verify(store: Store, key: WatchedKey) -> None:
    row = await store.write(lambda tx: issue_row(tx, 1, now=0))
    await checkpointer(store, key).sign_due()
    await _rewrite(store, row.ledger_index)
    with pytest.raises(LedgerError):
        await store.read(lambda tx: receipt_for(tx, row.serial))


# Crashes.


@pytest.mark.parametrize(("commit", "when"), list(itertools.product((1, 2, 3), ("before", "after"))))
async def test_the_end_at_any_commit(
    migrated_url: str, backend: FaultyBackend, store: Store, key: WatchedKey, commit: int, when: str
) -> None:
    """The commits are those of the tiles, of what is to be signed, and of the note."""
    await grow(store, 300)
    first = backend.counts["COMMIT"]
    fail = raising(StoreUnavailableError("The disk is gone."))

    def hook() -> None:
        if backend.counts["COMMIT"] == first + commit:
            fail()

    getattr(backend, when)["COMMIT"] = hook
    with pytest.raises(StoreError):
        await checkpointer(store, key).sign_due()
    async with another(migrated_url) as again:
        await grow(again, 5)
        signer = checkpointer(again, key)
        while await signer.sign_due():
            pass
        assert (await published(again, signer)).size == 305
    assert {checkpoint.size: checkpoint.root for checkpoint in key.signed}.items() == {
        (checkpoint.size, checkpoint.root) for checkpoint in key.signed
    }
    every = await roots(store)
    assert all(checkpoint.root == every[checkpoint.size] for checkpoint in key.signed)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [SignerUnavailableError, SignatureUncertainError])
async def test_the_token_fails_and_what_was_staged_is_signed_by_the_next(
    migrated_url: str, store: Store, key: WatchedKey, when: str, error: type[SignerError]
) -> None:
    signer = checkpointer(store, key)
    await grow(store, 10)
    assert await signer.sign_due()
    await grow(store, 10)
    setattr(key, when, raising(error("The token is away.")))
    with pytest.raises(error):
        await signer.sign_due()
    assert (await published(store, signer)).size == 10
    assert signer.refused == ""
    await grow(store, 10)
    async with another(migrated_url) as again:
        restarted = checkpointer(again, key)
        # First exactly what was committed to, then the rest.
        assert await restarted.sign_due()
        assert (await published(again, restarted)).size == 20
        assert await restarted.sign_due()
        assert (await published(again, restarted)).size == 30
        assert not await restarted.sign_due()


async def test_a_signature_that_is_not_the_keys_is_never_published(store: Store, key: WatchedKey) -> None:
    class Wrong(WatchedKey):
        async def run(self, work: Any) -> Any:
            return bytes(len(await super().run(work)))

    await grow(store, 1)
    signer = checkpointer(store, Wrong(key))
    with pytest.raises(SignerError, match="does not verify"):
        await signer.sign_due()
    assert await store.read(latest_checkpoint) is None


# Races.


async def test_two_processes_sign_at_the_same_time(migrated_url: str, store: Store, key: WatchedKey) -> None:
    async with another(migrated_url) as second:
        signers = [checkpointer(store, key), checkpointer(second, key), checkpointer(second, key)]
        growing = asyncio.create_task(_grow_slowly(store))

        async def sign(signer: Any) -> int:
            count = 0
            while not growing.done():
                count += await signer.sign_due()
                await asyncio.sleep(0)
            return count

        counts = await asyncio.gather(*map(sign, signers))
        await growing
        while await signers[0].sign_due():
            pass
        assert (await published(store, signers[0])).size == await store.read(size) == 1200
        assert sum(counts) > 1
    every = await roots(store)
    assert all(checkpoint.root == every[checkpoint.size] for checkpoint in key.signed)


async def _grow_slowly(store: Store) -> None:
    for _ in range(40):
        await grow(store, 30)
        await asyncio.sleep(0.002)


async def test_who_is_late_publishes_nothing(migrated_url: str, store: Store, key: WatchedKey) -> None:
    await grow(store, 3)
    async with another(migrated_url) as second:
        other = checkpointer(second, WatchedKey(key))
        slow = WatchedKey(key)
        signed, gate = asyncio.Event(), asyncio.Event()
        run = slow.run

        async def wait(work: Any) -> Any:
            result = await run(work)
            signed.set()
            await gate.wait()
            return result

        slow.run = wait  # type: ignore[method-assign]
        late = asyncio.create_task(checkpointer(store, slow).sign_due())
        await signed.wait()
        assert await other.sign_due()
        await grow(second, 3)
        assert await other.sign_due()
        gate.set()
        assert not await late
        assert (await published(second, other)).size == 6


# A ledger that is not what was signed.


async def _rewrite(store: Store, index: int, *, leaf_only: bool = False) -> None:
    """Put another entry there, and the leaf hash that fits it; or the leaf hash only."""
    entry = b"something else"
    if leaf_only:
        await store.write(lambda tx: tx.execute(_SET_LEAF, hash=leaf_hash(entry), at=index))
    else:
        await store.write(lambda tx: tx.execute(_SET_ENTRY, hash=leaf_hash(entry), bytes=entry, at=index))


async def _cut(store: Store, first: int) -> None:
    def unit(transaction: Transaction) -> None:
        transaction.execute(_CUT, first=first)
        transaction.execute(_SET_HEAD, first=first)

    await store.write(unit)


async def _refuses(store: Store, key: WatchedKey, signer: Any) -> None:
    """Nothing is signed, by whoever signed before and by whoever comes new; the published one stays."""
    before, count = await store.read(latest_checkpoint), len(key.signed)
    for who in (signer, checkpointer(store, key)):
        known = who.refused
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(LedgerError):
                    await who.sign_due()
        assert who.refused
        # Said once, however often it is tried.
        assert [log["log_level"] for log in logs] == (["error"] if who.refused != known else [])
    assert await store.read(latest_checkpoint) == before
    assert len(key.signed) == count


async def test_a_ledger_that_shrank(store: Store, key: WatchedKey) -> None:
    signer = checkpointer(store, key)
    await grow(store, 300)
    assert await signer.sign_due()
    await _cut(store, 290)
    await _refuses(store, key, signer)
    # What grows over it is another ledger.
    await grow(store, 10, salt="another")
    await grow(store, 10)
    await _refuses(store, key, signer)
    # The same entries are the same ledger.
    await _cut(store, 290)
    await grow(store, 15)
    assert await signer.sign_due()
    assert signer.refused == ""


@pytest.mark.parametrize("leaf_only", [False, True])
@pytest.mark.parametrize("index", [256, 280, 299])
async def test_an_entry_that_was_rewritten(store: Store, key: WatchedKey, index: int, leaf_only: bool) -> None:
    signer = checkpointer(store, key)
    await grow(store, 300)
    assert await signer.sign_due()
    await _rewrite(store, index, leaf_only=leaf_only)
    await grow(store, 1)
    await _refuses(store, key, signer)
    # Not even tiles are made of it.
    await grow(store, 300)
    await _refuses(store, key, signer)
    assert await store.read(count_tiles) == 1


@pytest.mark.parametrize("index", [300, 400, 600])
async def test_a_new_entry_with_a_leaf_hash_that_is_not_its_own(store: Store, key: WatchedKey, index: int) -> None:
    signer = checkpointer(store, key)
    await grow(store, 300)
    assert await signer.sign_due()
    await grow(store, 350)
    await _rewrite(store, index, leaf_only=True)
    await _refuses(store, key, signer)


async def test_tiles_that_were_changed_or_lost(store: Store, key: WatchedKey) -> None:
    signer = checkpointer(store, key)
    await grow(store, 600)
    assert await signer.sign_due()
    await grow(store, 1)
    await store.write(lambda tx: tx.execute(_SET_TILE_ROOT, hash=bytes(32), at=1))
    await _refuses(store, key, signer)
    await store.write(lambda tx: tx.execute(_DROP_TILES))
    await _refuses(store, key, signer)


async def test_what_was_staged_is_compared_before_it_is_signed(store: Store, key: WatchedKey) -> None:
    await grow(store, 300)
    key.before = raising(SignerUnavailableError("The token is away."))
    signer = checkpointer(store, key)
    with pytest.raises(SignerUnavailableError):
        await signer.sign_due()
    await _rewrite(store, 299)
    await _refuses(store, key, signer)
    assert await sizes(store) == [300]


async def _restored(store: Store, to: int) -> None:
    """The whole database as it was at ``to`` entries, checkpoints included."""
    await _cut(store, to)
    await store.write(lambda tx: tx.execute(_FORGET, above=to))


async def test_a_database_that_was_put_back_below_a_kept_checkpoint(store: Store, key: WatchedKey) -> None:
    signer = checkpointer(store, key)
    await grow(store, 10)
    assert await signer.sign_due()
    await grow(store, 10)
    assert await signer.sign_due()
    kept = key.signed[-1]
    for salt in ("", "another"):
        await _restored(store, 10)
        count = len(key.signed)
        # Who runs on remembers; who comes new is told of the one that was kept outside.
        for who in (signer, checkpointer(store, key, kept=kept)):
            with pytest.raises(LedgerError, match="fewer than the 20"):
                await who.sign_due()
        if salt:
            await grow(store, 15, salt=salt)
            for who in (signer, checkpointer(store, key, kept=kept)):
                with pytest.raises(LedgerError, match="first 20"):
                    await who.sign_due()
        assert len(key.signed) == count
    # Put back as it was, it goes on.
    await _restored(store, 10)
    await grow(store, 15)
    assert await checkpointer(store, key, kept=kept).sign_due()
    assert await signer.sign_due() is False
    assert (await published(store, signer)).size == 25


async def test_a_kept_checkpoint_of_the_same_size_with_another_root(store: Store, key: WatchedKey) -> None:
    await grow(store, 10)
    assert await checkpointer(store, key).sign_due()
    with pytest.raises(LedgerError, match="first 10"):
        await checkpointer(store, key, kept=Checkpoint(ORIGIN, 10, bytes(32))).sign_due()


async def test_another_ledger_that_grew_and_was_signed_beyond_a_kept_checkpoint(store: Store, key: WatchedKey) -> None:
    """By a process that did not know of the one that was kept: found even while there is nothing to sign."""
    await grow(store, 300)
    assert await checkpointer(store, key).sign_due()
    true = Checkpoint(ORIGIN, 280, (await roots(store))[280])
    assert not await checkpointer(store, key, kept=true).sign_due()
    signer = checkpointer(store, key, kept=Checkpoint(ORIGIN, 280, bytes(32)))
    for _ in range(2):
        with pytest.raises(LedgerError, match="first 280"):
            await signer.sign_due()
    assert len(key.signed) == 1


async def test_a_receipt_of_an_entry_that_is_gone(store: Store, key: WatchedKey) -> None:
    row = await store.write(lambda tx: issue_row(tx, 1, now=0))
    await grow(store, 300)
    await checkpointer(store, key).sign_due()
    await store.write(lambda tx: tx.execute(_DROP_ENTRY, at=row.ledger_index))
    with pytest.raises(LedgerError, match="lacks entry 1"):
        await store.read(lambda tx: receipt_for(tx, row.serial))
    with pytest.raises(LedgerError, match="lacks some"):
        await store.read(lambda tx: tile_data(tx, TilePath(None, 0)))


async def test_a_staged_row_that_vanished_is_not_a_matter_of_being_late(store: Store, key: WatchedKey) -> None:
    await grow(store, 5)
    signer = checkpointer(store, key)
    assert await signer.sign_due()
    await grow(store, 5)
    gone: Callable[[], Any] = lambda: store.write(lambda tx: tx.execute(_FORGET, above=5))  # noqa: E731
    run = key.run

    async def then(work: Any) -> Any:
        result = await run(work)
        await gone()
        return result

    key.run = then  # type: ignore[method-assign]
    with pytest.raises(LedgerError):
        await signer.sign_due()


async def test_what_somebody_put_into_a_column_by_hand(store: Store, key: WatchedKey) -> None:
    signer = checkpointer(store, key)
    await grow(store, 300)
    assert await signer.sign_due()
    await store.write(lambda tx: tx.execute(Statement(update(_tile).values(hashes=b"short"))))
    with pytest.raises(LedgerError, match="malformed"):
        await store.read(lambda tx: tile_data(tx, TilePath(0, 0)))
    await store.write(lambda tx: tx.execute(Statement(update(_tile).values(root=b"short"))))
    await grow(store, 1)
    await _refuses(store, key, signer)
    await store.write(lambda tx: tx.execute(Statement(insert(_checkpoint)), size=1, root=b"", note=None, signed_at=0))
    newest = await store.read(newest_row)
    assert newest is not None
    assert newest.size == 300
