"""The tree in tiles of 256 hashes: where each is, what stands in it, and how the root follows from few of them.

C2SP tlog-tiles. The hashes at tile level ``l`` are the roots of the complete subtrees over 256**l entries each; the tile
``n`` has those from ``n * 256`` on. Everything here is a pure function of what a :class:`TileHashes` gives.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.entries import MAX_ENTRY
from privyseal_ca.ledger.note import MAX_SIZE
from privyseal_ca.ledger.tree import node_hash, root_hash

#: Levels of the tree between a tile's hashes and its root.
HEIGHT: Final = 8
#: Hashes of a full tile, and entries of a full bundle.
WIDTH: Final = 256
#: The highest tile level that a path can name.
MAX_LEVEL: Final = 63
#: Bytes of one hash.
HASH_BYTES: Final = 32

_LENGTH_BYTES: Final = 2
_PATH: Final = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


@dataclass(frozen=True, slots=True)
class TilePath:
    """Which tile, or which bundle of entries."""

    #: Tile level, 0 to 63; None for a bundle of entries, which has the indexes of level 0.
    level: int | None
    #: Its number within the level.
    index: int
    #: How many hashes or entries it has: 1 to 255 when it is partial, 256 when it is full.
    width: int = WIDTH

    def __post_init__(self) -> None:
        if self.level is not None and not 0 <= self.level <= MAX_LEVEL:
            raise LedgerError(f"A tile's level is between 0 and {MAX_LEVEL}.")
        if not 0 <= self.index <= MAX_SIZE or not 1 <= self.width <= WIDTH:
            raise LedgerError(f"A tile has an index below 2^63 and a width between 1 and {WIDTH}.")

    def path(self) -> str:
        """Where it is below the ledger's prefix: ``tile/0/x001/x234/067``, ``tile/entries/000.p/5``."""
        digits = str(self.index)
        digits = digits.rjust(len(digits) + -len(digits) % 3, "0")
        groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
        index = "".join(f"x{group}/" for group in groups[:-1]) + groups[-1]
        level = "entries" if self.level is None else str(self.level)
        return f"tile/{level}/{index}" + ("" if self.width == WIDTH else f".p/{self.width}")

    @classmethod
    def parse(cls, path: str) -> Self:
        """What ``path`` names.

        Raises:
            LedgerError: it is not exactly what :meth:`path` gives.
        """
        match = _PATH.fullmatch(path)
        if match is None:
            raise LedgerError("This is not the path of a tile.")
        level = None if match["level"] == "entries" else int(match["level"])
        # A width of 256 is not written, and the comparison below refuses it.
        tile = cls(level, int(re.sub("[x/]", "", match["index"])), int(match["width"] or WIDTH))
        if tile.path() != path:
            raise LedgerError("The path of a tile has only one form.")
        return tile


class TileHashes(Protocol):
    """Where the hashes of a tree are kept."""

    def hashes(self, level: int, first: int, count: int) -> list[bytes]:
        """``count`` hashes at tile level ``level`` from the index ``first`` on.

        They are roots of complete subtrees of 256**level entries, 32 bytes each. A caller here never asks for more than
        one tile at a time, nor for hashes beyond the size that it was given.
        """
        ...


def tile_width(level: int, index: int, size: int) -> int:
    """How many hashes the tile ``index`` at ``level`` has in a tree of ``size`` entries: 0 when there is no such tile."""
    return max(0, min(WIDTH, (size >> HEIGHT * level) - index * WIDTH))


def tiles_between(old: int, new: int) -> Iterator[TilePath]:
    """The tiles of a tree of ``new`` entries that it did not have at the size ``old``; 0 for all of them.

    Lower levels come first; in each level the full ones, then the partial one at the right edge. Bundles of entries are
    those of level 0 with ``level=None``.
    """
    level = 0
    while new >> HEIGHT * level:
        before, now = old >> HEIGHT * level, new >> HEIGHT * level
        for index in range(before // WIDTH, now // WIDTH):
            yield TilePath(level, index)
        if now % WIDTH and now > before:
            yield TilePath(level, now // WIDTH, now % WIDTH)
        level += 1


def hash_tile(children: bytes) -> bytes:
    """The root over a full tile, which is a hash of the tile above.

    Raises:
        LedgerError: ``children`` are not 256 hashes.
    """
    if len(children) != WIDTH * HASH_BYTES:
        raise LedgerError(f"A full tile has {WIDTH * HASH_BYTES} bytes, and this one {len(children)}.")
    return root_hash(children[at : at + HASH_BYTES] for at in range(0, len(children), HASH_BYTES))


def entry_bundle(entries: Iterable[bytes]) -> bytes:
    """1 to 256 entries, each behind its length in 16 bits, big-endian.

    Raises:
        LedgerError: none, too many, or one of more than 65,535 bytes.
    """
    parts: list[bytes] = []
    for entry in entries:
        if len(entry) > MAX_ENTRY:
            raise LedgerError(f"An entry has at most {MAX_ENTRY} bytes.")
        if len(parts) == WIDTH:
            raise LedgerError(f"A bundle has at most {WIDTH} entries.")
        parts.append(len(entry).to_bytes(_LENGTH_BYTES, "big") + entry)
    if not parts:
        raise LedgerError("A bundle has at least one entry.")
    return b"".join(parts)


def parse_bundle(data: bytes) -> list[bytes]:
    """The entries of a bundle.

    Raises:
        LedgerError: none, more than 256, or one that is cut off.
    """
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        begin = at + _LENGTH_BYTES
        at = begin + int.from_bytes(data[at:begin], "big")
        if begin > len(data) or at > len(data):
            raise LedgerError("The last entry of the bundle is cut off.")
        if len(entries) == WIDTH:
            raise LedgerError(f"A bundle has at most {WIDTH} entries.")
        entries.append(data[begin:at])
    if not entries:
        raise LedgerError("A bundle has at least one entry.")
    return entries


class TreeNodes:
    """The nodes of a tree of ``size`` entries, each tile read once: at most one a level for a node, the root or a proof's
    side of them."""

    def __init__(self, read: TileHashes, size: int) -> None:
        """``size`` is between 0 and 2^63 - 1, else LedgerError."""
        if not 0 <= size <= MAX_SIZE:
            raise LedgerError("The size of a tree is between 0 and 2^63 - 1.")
        self._read = read
        self._size = size
        self._tiles: dict[tuple[int, int], list[bytes]] = {}

    def span(self, first: int, end: int) -> bytes:
        """The hash of the tree over the entries from ``first`` to before ``end``: MTH of RFC 6962 section 2.1.

        It is a node of this tree or its root: ``first`` is a multiple of the smallest power of two that is not below
        ``end - first``.

        Raises:
            LedgerError: the reader gave something other than hashes, or not all of them.
        """
        # The complete subtrees, the larger one first, one for each bit that is set in the number of entries.
        peaks: list[bytes] = []
        for height in reversed(range((end - first).bit_length())):
            if (end - first) >> height & 1:
                at = first + (((end - first) >> height + 1) << height + 1)
                peaks.append(self._complete(height, at >> height))
        if not peaks:
            return root_hash(())
        root = peaks.pop()
        while peaks:
            root = node_hash(peaks.pop(), root)
        return root

    def _complete(self, height: int, index: int) -> bytes:
        """The root of the ``index``-th subtree of 2**height entries, from the hashes of one tile."""
        level, above = divmod(height, HEIGHT)
        tile, first = divmod(index << above, WIDTH)
        return root_hash(self._tile(level, tile)[first : first + (1 << above)])

    def _tile(self, level: int, index: int) -> Sequence[bytes]:
        found = self._tiles.get((level, index))
        if found is None:
            width = tile_width(level, index, self._size)
            found = self._read.hashes(level, index * WIDTH, width)
            if len(found) != width or any(len(item) != HASH_BYTES for item in found):
                raise LedgerError(f"The ledger lacks hashes of its tile {index} at level {level}.")
            self._tiles[level, index] = found
        return found


def root_of(read: TileHashes, size: int) -> bytes:
    """The root of the tree over the first ``size`` entries, from at most eight tiles.

    Raises:
        LedgerError: no such size, or as :meth:`TreeNodes.span`.
    """
    return TreeNodes(read, size).span(0, size)
