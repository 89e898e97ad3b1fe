"""The ledger's tree as the database has it: leaf hashes beside the entries, full tiles, and entry bundles (C2SP tlog-tiles).

A node of height 8 L is a hash at tile level L. Those of level 0 stand beside the entries, and in the level's tiles as soon
as these are full; one of level L + 1 is the root of a full tile of level L. So the hashes of any partial tile are there
without being stored in that form, and what is stored never changes.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from sqlalchemy import bindparam, func, insert, select

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.log import entries, lock_head
from privyseal_ca.ledger.tiles import HEIGHT, WIDTH, TilePath, entry_bundle, hash_tile
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import LedgerEntry, LedgerTile

_entry = LedgerEntry.__table__  # type: ignore[attr-defined]
_tile = LedgerTile.__table__  # type: ignore[attr-defined]

_HASH: Final = 32
_HINT: Final = "Look at the database with `privyseal ledger verify`; nothing is signed until it is as it was."

_INSERT_TILE = Statement(insert(_tile))
_OF_LEVEL = _tile.c.level == bindparam("level")
_TILE = Statement(select(_tile.c.hashes).where(_OF_LEVEL, _tile.c.idx == bindparam("idx")))
_FULL = Statement(select(func.max(_tile.c.idx)).where(_OF_LEVEL))
_ROOTS = Statement(
    select(_tile.c.idx, _tile.c.root)
    .where(_OF_LEVEL, _tile.c.idx >= bindparam("first"))
    .order_by(_tile.c.idx)
    .limit(bindparam("count"))
)
_LEAVES = Statement(
    select(_entry.c.idx, _entry.c.leaf_hash)
    .where(_entry.c.idx >= bindparam("first"))
    .order_by(_entry.c.idx)
    .limit(bindparam("count"))
)


class FullTile(NamedTuple):
    """256 neighbours at one level, 8192 octets, and the hash over them."""

    hashes: bytes
    root: bytes


class StoredTiles:
    """The tree inside ``transaction``, as :class:`privyseal_ca.ledger.tiles.TileHashes` wants it."""

    __slots__ = ("_transaction",)

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def hashes(self, level: int, first: int, count: int) -> list[bytes]:
        """``count`` hashes of complete subtrees at tile level ``level``, from index ``first`` on.

        Raises:
            LedgerError: the database does not have them, or has something else in their place.
        """
        found: list[bytes] = []
        while len(found) < count:
            index, offset = divmod(first + len(found), WIDTH)
            found += self._within(level, index, offset, min(WIDTH - offset, count - len(found)))
        return found

    def _within(self, level: int, index: int, offset: int, count: int) -> list[bytes]:
        """Hashes of one tile."""
        row = self._transaction.one(_TILE, level=level, idx=index)
        if row is not None:
            return _split(row[0])[offset : offset + count]
        first = index * WIDTH + offset
        if level == 0:
            rows = self._transaction.all(_LEAVES, first=first, count=count)
        else:
            rows = self._transaction.all(_ROOTS, level=level - 1, first=first, count=count)
        if [row[0] for row in rows] != list(range(first, first + count)):
            raise LedgerError(
                f"The database lacks some of the {count} hashes from index {first} on at level {level} of the ledger.",
                hint=_HINT,
            )
        return [_hash(row[1]) for row in rows]


def _split(tile: object) -> list[bytes]:
    if not isinstance(tile, bytes) or len(tile) != WIDTH * _HASH:
        raise LedgerError("A stored tile of the ledger is malformed.", hint=_HINT)
    return [tile[at : at + _HASH] for at in range(0, len(tile), _HASH)]


def _hash(value: object) -> bytes:
    # SQLite keeps whatever type somebody puts into a column.
    if not isinstance(value, bytes) or len(value) != _HASH:
        raise LedgerError("A hash of the ledger in the database is malformed.", hint=_HINT)
    return value


def tile_contents(transaction: Transaction, path: TilePath, reach: int) -> bytes | None:
    """The octets of a tile or an entry bundle, full or partial, of the tree over the first ``reach`` entries.

    ``None`` when that tree does not have as much of it. At most 256 entries of 65,535 octets are read.

    Raises:
        LedgerError: the database lacks something of it.
    """
    complete = reach >> (HEIGHT * (path.level or 0))
    first = path.index * WIDTH
    if first + path.width > complete:
        return None
    if path.level is not None:
        return b"".join(StoredTiles(transaction).hashes(path.level, first, path.width))
    found = [(row.index, row.entry) for row in entries(transaction, first=first, count=path.width)]
    if [index for index, _ in found] != list(range(first, first + path.width)):
        raise LedgerError(f"The database lacks some of the {path.width} entries from index {first} on.", hint=_HINT)
    return entry_bundle(entry for _, entry in found)


def verified_leaves(transaction: Transaction, first: int, count: int) -> list[bytes]:
    """The leaf hashes of ``count`` entries from index ``first`` on, made from the entries themselves.

    Raises:
        LedgerError: one is missing, or is not what stands beside its entry.
    """
    leaves: list[bytes] = []
    for stored in entries(transaction, first=first, count=count):
        index = first + len(leaves)
        if stored.index != index:
            break
        if not isinstance(stored.entry, bytes) or leaf_hash(stored.entry) != stored.leaf_hash:
            raise LedgerError(f"Entry {index} does not have the leaf hash that was stored with it.", hint=_HINT)
        leaves.append(stored.leaf_hash)
    if len(leaves) != count:
        raise LedgerError(f"Entry {first + len(leaves)} of the ledger is missing.", hint=_HINT)
    return leaves


def full_tile(transaction: Transaction, index: int) -> FullTile:
    """The tile ``index`` of level 0, made from its 256 entries. Raises the errors of :func:`verified_leaves`."""
    hashes = b"".join(verified_leaves(transaction, index * WIDTH, WIDTH))
    return FullTile(hashes, hash_tile(hashes))


def count_tiles(transaction: Transaction, level: int = 0) -> int:
    """How many tiles of ``level`` are stored. They are stored in their order, so that none is left out."""
    row = transaction.one(_FULL, level=level)
    return 0 if row is None or row[0] is None else int(row[0]) + 1


def add_tiles(transaction: Transaction, first: int, tiles: Sequence[FullTile]) -> None:
    """Store tiles of level 0 from index ``first`` on, and those above that they make full.

    What is stored already is left as it is: another process may have been faster.

    Raises:
        LedgerError: ``first`` would leave a gap.
    """
    lock_head(transaction)
    known = count_tiles(transaction)
    if first > known:
        raise LedgerError(f"Tile {known} of the ledger must be stored before tile {first}.")
    _add(transaction, 0, known, tiles[known - first :])


def _add(transaction: Transaction, level: int, first: int, tiles: Iterable[FullTile]) -> None:
    for index, tile in enumerate(tiles, first):
        transaction.execute(_INSERT_TILE, level=level, idx=index, root=tile.root, hashes=tile.hashes)
        above, position = divmod(index, WIDTH)
        if position == WIDTH - 1:
            hashes = b"".join(StoredTiles(transaction).hashes(level + 1, above * WIDTH, WIDTH))
            _add(transaction, level + 1, above, [FullTile(hashes, hash_tile(hashes))])
