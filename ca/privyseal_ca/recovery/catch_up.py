"""The entries that a database lacks: fetched, verified against what is known outside, and only then appended as they were.

They are fetched once, into a temporary file, and hashed together with the entries that the database has. Every checkpoint
that was found outside must be met on the way, and the root at the end must be that of the newest. Until then nothing is
changed. Then they are appended in batches, each with what it says of the tables in one transaction (promise P3), so that the
end of the process at any moment leaves a database that is still a beginning of the same ledger.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Final

import orjson

from privyseal_ca.errors import BackupError, LedgerBehindError, LedgerError
from privyseal_ca.ledger.entries import MAX_ENTRY, Kind, decode_entry
from privyseal_ca.ledger.log import append, size
from privyseal_ca.ledger.served import LedgerSource
from privyseal_ca.ledger.tile_store import add_tiles, count_tiles, full_tile, verified_leaves
from privyseal_ca.ledger.tiles import HASH_BYTES, WIDTH, TilePath, parse_bundle
from privyseal_ca.ledger.tree import TreeHasher, leaf_hash
from privyseal_ca.recovery.outside import Seen, forked
from privyseal_ca.recovery.rebuild import Rebuilder
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Transaction

#: Entries that are read, and appended, in one transaction.
_PAGE: Final = 1000
_BATCH: Final = 100
_LENGTH: Final = 2
#: Octets of a line of an export: an entry of 65,535 with every character escaped, and the members around it.
_MAX_LINE: Final = 8 * MAX_ENTRY
_TILES: Final = 16

Progress = Callable[[str], None]


async def entries_of_ledger(source: LedgerSource, first: int, end: int) -> AsyncIterator[bytes]:
    """The entries from index ``first`` to before ``end`` in the bundles of a published ledger.

    Raises:
        BackupError: there are none.
        LedgerError, StatusUnavailableError: as the source's methods.
    """
    for index in range(first // WIDTH, -(-end // WIDTH)):
        path = TilePath(None, index, min(WIDTH, end - index * WIDTH))
        bundle = await source.tile(path)
        if bundle is None:
            raise BackupError(
                f"The published ledger does not have {path.path()}, the entries from {index * WIDTH} on.",
                hint="Entries are published only with `ledger.entries`. Take another place that has them, such as a file of "
                "`privyseal ledger export`.",
            )
        for position, entry in enumerate(parse_bundle(bundle), index * WIDTH):
            if position >= first:
                yield entry


async def leaves_of_ledger(source: LedgerSource, end: int) -> AsyncIterator[bytes]:
    """The leaf hashes of the first ``end`` entries of a published ledger, as far as it has them."""
    for index in range(-(-end // WIDTH)):
        tile = await source.tile(TilePath(0, index, min(WIDTH, end - index * WIDTH)))
        if tile is None:
            return
        for at in range(0, len(tile), HASH_BYTES):
            yield tile[at : at + HASH_BYTES]


async def first_difference(store: Store, leaves: AsyncIterator[bytes]) -> int | None:
    """The index of the first entry of the database whose leaf hash is not that in ``leaves``; None when there is none.

    Raises:
        LedgerError, StatusUnavailableError: ``leaves`` or the database cannot be read.
    """
    index = 0
    own: Sequence[bytes] = ()
    async for leaf in leaves:
        if index % _PAGE == 0:
            count = min(_PAGE, await store.read(size) - index)
            own = await store.read(partial(verified_leaves, first=index, count=max(count, 0)))
        if index % _PAGE >= len(own):
            return None
        if own[index % _PAGE] != leaf:
            return index
        index += 1
    return None


async def entries_of_file(path: Path, first: int, end: int) -> AsyncIterator[bytes]:
    """The entries from index ``first`` to before ``end`` in a file of JSON lines, as `privyseal ledger export` writes it.

    Entries that come twice count once. A last line that was cut off is passed over.

    Raises:
        BackupError: the file cannot be read, or lacks one.
    """
    expected = first
    try:
        with path.open("rb") as file:
            while expected < end and (line := file.readline(_MAX_LINE + 1)):
                index, entry = _line(line, path)
                if index > expected:
                    break
                if index == expected:
                    expected += 1
                    yield entry
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}.", hint="Give a file of JSON lines.") from error
    if expected < end:
        raise BackupError(
            f"{path} does not have entry {expected} in its place; entries {first} to {end - 1} are missing in the database.",
            hint="Take another place that has them all: the file of an export that began before the backup was made.",
        )


def _line(line: bytes, path: Path) -> tuple[int, bytes]:
    """Index and exact octets of the entry in a line; -1 and nothing for a line that was cut off."""
    if not line.endswith(b"\n") and len(line) <= _MAX_LINE:
        return -1, b""
    try:
        if len(line) > _MAX_LINE:
            raise ValueError("too long")
        members = orjson.loads(line)
        # RFC 8785 has one form for what stands in an entry: what is encoded anew is what was hashed.
        return int(members["index"]), orjson.dumps(members["entry"], option=orjson.OPT_SORT_KEYS)
    except (ValueError, TypeError, KeyError) as error:
        raise BackupError(
            f"{path} has a line that is no entry of a ledger.", hint="Give a file that `privyseal ledger export` wrote."
        ) from error


class CatchUp:
    """Brings the ledger in ``store`` to what the checkpoints ``seen`` say."""

    def __init__(self, store: Store, seen: Iterable[Seen], *, progress: Progress) -> None:
        self._store = store
        #: By size, which is where they are met.
        self._seen: dict[int, list[Seen]] = {}
        for each in seen:
            self._seen.setdefault(each.checkpoint.size, []).append(each)
        self._progress = progress
        self._tree = TreeHasher()

    async def hash_own(self) -> None:
        """Hash what the database has, entry by entry, and compare it with every checkpoint that is not larger.

        Raises:
            LedgerBehindError: it is another ledger.
            LedgerError: the database is damaged.
        """
        end = await self._store.read(size)
        self._compare()
        while self._tree.size < end:
            count = min(_PAGE, end - self._tree.size)
            for leaf in await self._store.read(partial(verified_leaves, first=self._tree.size, count=count)):
                self._append(leaf)
            await asyncio.sleep(0)

    @property
    def size(self) -> int:
        """How many entries were hashed."""
        return self._tree.size

    @property
    def root(self) -> bytes:
        """The root over them."""
        return self._tree.root()

    @property
    def target(self) -> Seen | None:
        """What the ledger has to be brought to; None when it lacks nothing that is known."""
        largest = max(self._seen, default=0)
        return self._seen[largest][0] if largest > self._tree.size else None

    async def catch_up(self, entries: AsyncIterator[bytes], rebuilder: Rebuilder, place: str) -> int:
        """Take what is missing from ``entries``, which come from ``place``; how many were appended.

        Raises:
            LedgerBehindError: they do not lead to the checkpoint, or somebody else appended meanwhile. Nothing was appended in
                the first case.
            LedgerError: one is malformed.
            BackupError: they end too early, or there is no room to keep them.
        """
        target = self.target
        if target is None:
            return 0
        first, end = self._tree.size, target.checkpoint.size
        try:
            with TemporaryFile() as spool:
                await self._fetch(entries, spool, end, place)
                spool.seek(0)
                await self._append_all(spool, first, end, rebuilder)
        except OSError as error:
            raise BackupError(
                f"What was fetched cannot be kept in a temporary file: {error.strerror}.",
                hint="Make room where temporary files are, or name another folder in TMPDIR, and settle again.",
            ) from error
        return end - first

    async def _fetch(self, entries: AsyncIterator[bytes], spool: BinaryIO, end: int, place: str) -> None:
        begun = self._tree.size
        async for entry in entries:
            index = self._tree.size
            try:
                Kind(decode_entry(entry)["kind"])
            except LedgerError as error:
                raise LedgerError(f"Entry {index} from {place} is no entry: {error.message}") from error
            except ValueError as error:
                raise LedgerError(
                    f"Entry {index} from {place} is of a kind that this program does not know.",
                    hint="A newer program wrote it: restore with that one.",
                ) from error
            spool.write(len(entry).to_bytes(_LENGTH, "big") + entry)
            self._append(leaf_hash(entry), place=place)
            if (index + 1 - begun) % 50_000 == 0:
                self._progress(f"{index + 1 - begun} of {end - begun} missing entries fetched")
        if self._tree.size != end:
            raise BackupError(f"{place} has entries up to {self._tree.size} only; {end} are needed.")

    def _append(self, leaf: bytes, *, place: str = "") -> None:
        self._tree.append(leaf)
        self._compare(place)

    def _compare(self, place: str = "") -> None:
        """Compare the root with that of every checkpoint of this size."""
        for seen in self._seen.get(self._tree.size, ()):
            if seen.checkpoint.root == self._tree.root():
                continue
            if not place:
                raise forked(seen)
            raise LedgerBehindError(
                f"The entries of the database and those from {place} do not lead to the checkpoint of "
                f"{seen.checkpoint.size} entries that {seen.place} shows: the database went on by itself after the restore, or "
                "the entries are not the ledger's.",
                hint="Nothing was appended. Restore the backup anew and settle it before anything else; if it fails again, take "
                "the entries from another place.",
            )

    async def _append_all(self, spool: BinaryIO, first: int, end: int, rebuilder: Rebuilder) -> None:
        await self._store.read(rebuilder.recall)
        while first < end:
            batch = [_next(spool) for _ in range(min(_BATCH, end - first))]
            await self._store.write(partial(_append_batch, first, batch, rebuilder))
            first += len(batch)
            self._progress(f"{first} of {end} entries are back")
            await asyncio.sleep(0)


def _next(spool: BinaryIO) -> bytes:
    return spool.read(int.from_bytes(spool.read(_LENGTH), "big"))


def _append_batch(first: int, batch: Sequence[bytes], rebuilder: Rebuilder, transaction: Transaction) -> None:
    for expected, entry in enumerate(batch, first):
        index = append(transaction, entry)
        if index != expected:
            raise LedgerBehindError(
                f"Somebody else appended to the ledger while entry {expected} was brought back.",
                hint="This batch was undone. Restore the backup anew, and let nobody use the database until it is settled.",
            )
        rebuilder.apply(transaction, index, entry)
    rebuilder.end_batch(transaction)


async def complete_tiles(store: Store) -> None:
    """Store every full tile of the ledger that is not stored yet, so that roots and proofs can be made.

    Raises:
        LedgerError: an entry does not have its leaf hash.
        StoreError: the database failed.
    """
    full = await store.read(size) // WIDTH
    first = await store.read(count_tiles)
    while first < full:
        tiles = [await store.read(partial(full_tile, index=at)) for at in range(first, min(first + _TILES, full))]
        await store.write(partial(add_tiles, first=first, tiles=tiles))
        first += len(tiles)
        await asyncio.sleep(0)
