"""A ledger that grows as a test wants it, with checkpoints by a software key: the real tables, tiles and notes.

``async with log_in(url) as log`` opens a database that has the schema; ``await log.grow(300)`` adds entries and signs a
checkpoint. Another one with the same key is what a restart looks like. ``await check(source)`` does what an auditor does.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric import ed25519

from fakes.audited import SoftwareKey
from fakes.issued import issue_row
from fakes.service import FakeClock
from privyseal_ca.ledger.checkpoints import Checkpointer
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append, size
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, open_note
from privyseal_ca.ledger.served import LedgerSource, StoredLedger
from privyseal_ca.ledger.tiles import HASH_BYTES, WIDTH, TilePath, parse_bundle, root_of
from privyseal_ca.ledger.tree import leaf_hash, root_hash
from privyseal_ca.revocation.folder_ledger import files_between
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

ORIGIN = "ledger.test/log"
_BATCH = 2000


def log_key(label: str = "log") -> ed25519.Ed25519PrivateKey:
    """A key that is the same for the same label."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(sha256(label.encode()).digest())


@dataclass
class Log:
    """The ledger in a database that is open."""

    store: Store
    checkpointer: Checkpointer
    source: StoredLedger
    clock: FakeClock = field(default_factory=FakeClock)

    @property
    def vkey(self) -> str:
        """The verification key as text."""
        return self.checkpointer.verifier.vkey()

    async def append(self, count: int, *, label: str = "x") -> None:
        """Add entries, without a checkpoint."""

        def unit(part: int, transaction: Transaction) -> None:
            for _ in range(part):
                said = {"actor": "service", "correlation": label}
                payload = {"at": size(transaction)}
                append(transaction, encode_entry(Kind.SERVICE_STARTED, time=1.0, **said, payload=payload))

        for begin in range(0, count, _BATCH):
            part = min(_BATCH, count - begin)
            await self.store.write(partial(unit, part))

    async def issue(self, serial: int) -> str:
        """A certificate's rows, without a certificate and without a checkpoint; its serial as text."""
        row = await self.store.write(lambda tx: issue_row(tx, serial, now=self.clock.now()))
        return row.serial

    async def sign(self) -> Checkpoint:
        """Sign a checkpoint of what there is."""
        await self.checkpointer.sign_due()
        text, _ = open_note(await self.source.checkpoint(), [self.checkpointer.verifier])
        return Checkpoint.parse(text)

    async def grow(self, count: int, *, label: str = "x") -> Checkpoint:
        """Add entries and sign a checkpoint."""
        await self.append(count, label=label)
        return await self.sign()


@asynccontextmanager
async def log_in(url: str, *, key: str = "log") -> AsyncIterator[Log]:
    """The ledger in the database ``url``; ``key`` is the label of :func:`log_key`."""
    store = Store(backend_for(url, durable=False, timeout=5), queue=4096)
    await store.open()
    clock = FakeClock()
    checkpointer = Checkpointer(
        store=store, key=SoftwareKey(log_key(key)), origin=ORIGIN, clock=clock, metrics=Metrics()
    )
    try:
        yield Log(store, checkpointer, StoredLedger(store), clock)
    finally:
        await store.close()


class Tiles:
    """A tree as a client sees it who fetched the tiles of a checkpoint."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._tiles: dict[tuple[int, int], bytes] = {}

    @classmethod
    async def of(cls, source: LedgerSource, size: int) -> "Tiles":
        """Those of ``size`` entries."""
        tiles = cls(size)
        for path in files_between(0, size, entries=False):
            content = await source.tile(path)
            assert content is not None, path.path()
            assert len(content) == path.width * HASH_BYTES
            assert path.level is not None
            tiles._tiles[path.level, path.index] = content
        return tiles

    def hashes(self, level: int, first: int, count: int) -> list[bytes]:
        """As the protocol says."""
        tile, offset = self._tiles[level, first // WIDTH], first % WIDTH
        return [tile[at * HASH_BYTES : (at + 1) * HASH_BYTES] for at in range(offset, offset + count)]


async def entries_of(source: LedgerSource, size: int) -> list[bytes]:
    """The entries in all bundles."""
    found: list[bytes] = []
    for path in files_between(0, size, entries=True):
        if path.level is None:
            content = await source.tile(path)
            assert content is not None
            found += parse_bundle(content)
    return found


async def check(source: LedgerSource, *, with_entries: bool = True) -> Checkpoint:
    """Do what an auditor does: key, checkpoint, tiles, entries, root."""
    note_text, _ = open_note(await source.checkpoint(), [NoteVerifier.parse(await source.vkey())])
    checkpoint = Checkpoint.parse(note_text)
    assert checkpoint.origin == ORIGIN
    tiles = await Tiles.of(source, checkpoint.size)
    assert root_of(tiles, checkpoint.size) == checkpoint.root
    if with_entries:
        found = await entries_of(source, checkpoint.size)
        assert len(found) == checkpoint.size
        assert root_hash(leaf_hash(entry) for entry in found) == checkpoint.root
    return checkpoint


class OverHttp:
    """A source as a client has it: ``get`` gives the body at a path below ``/ledger/``, or None for 404."""

    receipts = False

    def __init__(self, get: Callable[[str], Awaitable[bytes | None]]) -> None:
        self._get = get

    async def vkey(self) -> str:
        return (await self._get("vkey") or b"").decode().removesuffix("\n")

    async def checkpoint(self) -> bytes:
        return await self._get("checkpoint") or b""

    async def tile(self, path: TilePath) -> bytes | None:
        return await self._get(path.path())

    async def receipt(self, _: str) -> None:
        return None
