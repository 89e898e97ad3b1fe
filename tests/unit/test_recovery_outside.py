"""Where checkpoints are looked for outside of the database, and what counts as one."""

import hashlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic

import pytest
from sqlalchemy import bindparam, delete, update
from sqlmodel import col

from fakes.ledgers import ORIGIN, Log, log_in, log_key
from privyseal_acme.store.eab import EabKeyRow, add_eab_key, use_eab_key
from privyseal_ca.config import Settings
from privyseal_ca.errors import LedgerBehindError, LedgerError
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.ledger.cosignatures import CosignatureVerifier
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append, entries, size
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, note_with
from privyseal_ca.recovery.continuity import Continuity
from privyseal_ca.recovery.facts import FORMER_FACT, RESTORE_FACT
from privyseal_ca.recovery.guard import check_outside
from privyseal_ca.recovery.kept_file import give_up_checkpoint, keep_checkpoint
from privyseal_ca.recovery.outside import checkpoint_url, log_identity, look_outside, shown_place
from privyseal_ca.recovery.rebuild import Pointing, Rebuilder
from privyseal_ca.store.issuers import set_fact
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import LedgerEntry, LedgerHead

KEPT = "newest-checkpoint"
_FORGET_ENTRIES = Statement(delete(LedgerEntry).where(col(LedgerEntry.idx) >= bindparam("kept")))
_FORGET_SIZE = Statement(update(LedgerHead).values(size=bindparam("kept")))


@pytest.fixture
async def log(migrated_url: str) -> AsyncIterator[Log]:
    async with log_in(migrated_url) as log:
        yield log


@pytest.fixture
def deaf() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def over_http(folder: Path) -> Iterator[str]:
    """A folder behind a web server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def settings_with(home: Path, *outside: str) -> Settings:
    return Settings(ledger={"outside": outside}).model_copy(update={"home": home})  # type: ignore[arg-type]


async def test_the_newest_place_is_what_counts(log: Log, tmp_path: Path) -> None:
    older = await log.grow(3)
    (tmp_path / "older").write_bytes(await log.source.checkpoint())
    newer = await log.grow(300)
    keep_checkpoint(tmp_path / KEPT, await log.source.checkpoint())
    found = await look_outside(settings_with(tmp_path, "older"), await log.store.read(log_identity))
    assert {seen.checkpoint for seen in found.seen} == {older, newer}
    assert await check_outside(log.store, settings_with(tmp_path, "older"), clock=log.clock) == newer
    assert (tmp_path / KEPT).stat().st_mode & 0o777 == 0o600


async def test_a_restore_that_is_not_settled(log: Log, tmp_path: Path) -> None:
    await log.grow(3)
    assert await check_outside(log.store, settings_with(tmp_path), clock=log.clock) is None
    await log.store.write(lambda tx: set_fact(tx, RESTORE_FACT, '{"size": 2}'))
    with pytest.raises(LedgerBehindError, match="with 2 entries, and it is not settled"):
        await check_outside(log.store, settings_with(tmp_path), clock=log.clock)


async def test_a_place_that_does_not_answer_keeps_nobody_waiting(log: Log, tmp_path: Path, deaf: str) -> None:
    await log.grow(3)
    (tmp_path / "kept").write_bytes(await log.source.checkpoint())
    begun = monotonic()
    settings = settings_with(tmp_path, deaf, "http://127.0.0.1:9/ledger", "nothing", "kept", f"{deaf}/again")
    found = await look_outside(settings, await log.store.read(log_identity), patience=0.3)
    assert monotonic() - begun < 2
    assert [Path(seen.place).name for seen in found.seen] == ["kept"]
    assert len(found.silent) == 4


@pytest.mark.parametrize("text", ["", "nonsense", "\x00", f"{ORIGIN}\n3\n", "another/log\n3\nAAAA\n\n\u2014 x y\n"])
async def test_what_is_no_checkpoint_is_not_passed_over(log: Log, tmp_path: Path, text: str) -> None:
    await log.grow(3)
    (tmp_path / "place").write_text(text)
    with pytest.raises(LedgerError, match="place shows is no checkpoint of this ledger"):
        await check_outside(log.store, settings_with(tmp_path, "place"), clock=log.clock)


async def test_a_checkpoint_by_another_key(log: Log, tmp_path: Path) -> None:
    await log.grow(3)
    note = (await log.source.checkpoint()).replace(b"\n3\n", b"\n4\n")
    (tmp_path / "place").write_bytes(note)
    with pytest.raises(LedgerError, match="wrong signature"):
        await check_outside(log.store, settings_with(tmp_path, "place"), clock=log.clock)
    other = NoteVerifier.for_key(ORIGIN, log_key("other").public_key()).vkey()
    with pytest.raises(LedgerError, match="The key that was given"):
        await log.store.read(lambda tx: log_identity(tx, other))


async def test_a_database_from_before_the_first_checkpoint(log: Log, tmp_path: Path) -> None:
    await log.append(2)
    assert await check_outside(log.store, settings_with(tmp_path), clock=log.clock) is None
    (tmp_path / "place").write_text(f"{ORIGIN}\n5\n{'A' * 43}=\n\n\u2014 {ORIGIN} AAAAAAAA\n")
    with pytest.raises(LedgerBehindError, match="3 entries are missing, from index 2 on"):
        await check_outside(log.store, settings_with(tmp_path, "place"), clock=log.clock)


async def test_a_witness_that_has_seen_more(log: Log, tmp_path: Path) -> None:
    await log.grow(3)
    note = await log.source.checkpoint()
    folder = tmp_path / hashlib.sha256(ORIGIN.encode()).hexdigest()
    folder.mkdir()
    newer = Checkpoint(ORIGIN, 9, bytes(32)).text()
    verifier = log.checkpointer.verifier
    (folder / "checkpoint").write_bytes(note_with(newer, verifier, log_key().sign(newer.encode())))
    vkey = CosignatureVerifier.for_key("witness.test", log_key("witness").public_key()).vkey()
    with over_http(tmp_path) as url:
        asked = [{"vkey": vkey, "url": url}, {"vkey": vkey, "url": "http://127.0.0.1:9"}]
        settings = Settings(ledger={"witnesses": asked})  # type: ignore[arg-type]
        settings = settings.model_copy(update={"home": tmp_path})
        with pytest.raises(LedgerBehindError, match=r"witness witness\.test shows a checkpoint of 9"):
            await check_outside(log.store, settings, clock=log.clock)
        (folder / "checkpoint").write_bytes(note)
        assert await check_outside(log.store, settings, clock=log.clock) is not None
        found = await look_outside(settings, await log.store.read(log_identity))
    assert [place for place, _ in found.silent] == ["witness witness.test"]


async def test_a_checkpoint_that_is_staged_is_no_hindrance(log: Log, tmp_path: Path) -> None:
    kept = await log.grow(3)
    keep_checkpoint(tmp_path / KEPT, await log.source.checkpoint())
    await log.append(4)
    await log.store.write(lambda tx: log.checkpointer._stage(7, tx))
    assert await check_outside(log.store, settings_with(tmp_path), clock=log.clock) == kept


def test_the_file_of_a_former_log_is_put_aside(tmp_path: Path) -> None:
    give_up_checkpoint(tmp_path / KEPT)
    for content in (b"one", b"two"):
        keep_checkpoint(tmp_path / KEPT, content)
        give_up_checkpoint(tmp_path / KEPT)
    assert [(tmp_path / f"former-checkpoint-{number}").read_bytes() for number in (1, 2)] == [b"one", b"two"]
    assert not (tmp_path / KEPT).exists()


def test_places() -> None:
    assert checkpoint_url("http://ca.test") == "http://ca.test/ledger/checkpoint"
    assert checkpoint_url("http://ca.test/ledger/") == "http://ca.test/ledger/checkpoint"
    assert checkpoint_url("http://ca.test/x/checkpoint") == "http://ca.test/x/checkpoint"
    assert shown_place("https://user:secret@ca.test/ledger?token=secret#x") == "https://ca.test/ledger"
    assert shown_place("a/file@b") == "a/file@b"


async def test_a_log_that_calls_itself_its_own_predecessor_silences_nobody(log: Log, tmp_path: Path) -> None:
    await log.grow(9)
    keep_checkpoint(tmp_path / KEPT, await log.source.checkpoint())
    await log.store.write(lambda tx: set_fact(tx, FORMER_FACT, f'[{{"origin": "{ORIGIN}", "vkey": ""}}]'))
    found = await look_outside(settings_with(tmp_path), await log.store.read(log_identity))
    assert [seen.checkpoint.size for seen in found.seen] == [9]


async def shrink(log: Log, count: int) -> None:
    """What is left when an older database takes the place of this one."""

    def unit(transaction: Transaction) -> None:
        for statement in (_FORGET_ENTRIES, _FORGET_SIZE):
            transaction.execute(statement, kept=left)

    left = await log.store.read(size) - count
    await log.store.write(unit)


async def test_a_database_that_shrinks_under_whoever_reads_it(log: Log, tmp_path: Path) -> None:
    await log.grow(9)
    continuity = Continuity(settings_with(tmp_path), log.clock)
    await continuity.begin(log.store)
    await log.append(3)
    assert await continuity.look(log.store) == ""
    await shrink(log, 2)
    # The next replica may be a moment behind.
    assert await continuity.look(log.store) == ""
    log.clock.advance(11)
    assert "has 10 entries, and had 12" in await continuity.look(log.store)
    with pytest.raises(LedgerBehindError, match="put back under this process"):
        await continuity.begin(log.store)
    await log.append(2)
    assert await continuity.look(log.store) == ""
    await continuity.begin(log.store)
    await log.store.write(lambda tx: set_fact(tx, RESTORE_FACT, '{"size": 2}'))
    assert "not settled" in await continuity.look(log.store)


async def test_a_replica_that_is_always_a_moment_behind_gets_there(log: Log, tmp_path: Path) -> None:
    """What is kept outside grows as fast as the replica does."""
    await log.grow(9)
    (tmp_path / "place").write_bytes(await log.source.checkpoint())
    continuity = Continuity(settings_with(tmp_path, "place"), log.clock)
    entries_of_today = await log.store.read(lambda tx: list(entries(tx)))
    await shrink(log, 4)
    with pytest.raises(LedgerBehindError, match="is behind"):
        await continuity.begin(log.store)
    (tmp_path / "place").write_text("a newer one, which it does not have yet either")
    await log.store.write(lambda tx: [append(tx, stored.entry) for stored in entries_of_today[5:]])
    await continuity.begin(log.store)


async def test_a_use_of_an_external_account_key_is_brought_back(log: Log) -> None:
    """A key for one account must not bind another after a restore."""
    await log.store.write(lambda tx: add_eab_key(tx, EabKeyRow("k", b"", "", "default", None, 1, 0, 1, None, None)))
    payload = {"eab_kid": "k", "policy": "default", "spki_sha256": "", "terms_agreed": True, "thumbprint": ""}
    said = {"actor": "account:x", "correlation": "x"}
    entry = encode_entry(Kind.ACCOUNT_CREATED, time=1.0, **said, payload=payload)
    rebuilder = Rebuilder(Pointing({}, Pointers("", "", shards=1, first_shard=0)))
    await log.store.write(lambda tx: rebuilder.apply(tx, append(tx, entry), entry))
    assert not await log.store.write(lambda tx: use_eab_key(tx, "k", 2))
