"""Trees in memory, for what reads tiles."""

from collections.abc import Sequence

from privyseal_ca.ledger.tiles import HASH_BYTES, HEIGHT, WIDTH, TilePath, entry_bundle, hash_tile, tile_width
from privyseal_ca.ledger.tree import leaf_hash, node_hash


class MemoryTiles:
    """The tiles over some entries. Counts the tiles that are read, and lets nobody read what is not complete."""

    def __init__(self, entries: Sequence[bytes]) -> None:
        self.entries = entries
        self.levels = [[leaf_hash(entry) for entry in entries]]
        self.reads = 0
        while len(self.levels[-1]) >= WIDTH:
            below = self.levels[-1]
            full = range(0, len(below) // WIDTH * WIDTH, WIDTH)
            self.levels.append([hash_tile(b"".join(below[at : at + WIDTH])) for at in full])

    def hashes(self, level: int, first: int, count: int) -> list[bytes]:
        found = self.levels[level][first : first + count]
        assert len(found) == count > 0, "hashes that are not there were asked for"
        assert first // WIDTH == (first + count - 1) // WIDTH, "hashes of two tiles were asked for"
        self.reads += 1
        return found

    def data(self, tile: TilePath) -> bytes:
        """What is served for ``tile``."""
        first = tile.index * WIDTH
        if tile.level is None:
            return entry_bundle(self.entries[first : first + tile.width])
        return b"".join(self.hashes(tile.level, first, tile.width))


class UniformTiles:
    """A tree of any size whose entries are all the same, so that every subtree of a height is too."""

    def __init__(self, size: int, entry: bytes = b"same") -> None:
        self.size = size
        self.reads = 0
        #: The root over 2**height entries.
        self.heights = [leaf_hash(entry)]
        for _ in range(64):
            self.heights.append(node_hash(self.heights[-1], self.heights[-1]))

    def hashes(self, level: int, first: int, count: int) -> list[bytes]:
        width = tile_width(level, first // WIDTH, self.size)
        assert first % WIDTH + count <= width, "hashes that are not there were asked for"
        self.reads += 1
        return [self.heights[level * HEIGHT]] * count

    def root(self, size: int) -> bytes:
        """The root over the first ``size`` entries, by the definition of RFC 6962 section 2.1."""
        if size & (size - 1) == 0:
            return self.heights[size.bit_length() - 1]
        left = 1 << size.bit_length() - 1
        return node_hash(self.heights[left.bit_length() - 1], self.root(size - left))


class WrongTiles(MemoryTiles):
    """A reader that gives fewer hashes, or shorter ones, than it was asked for."""

    def __init__(self, entries: Sequence[bytes], *, missing: int = 0, length: int = HASH_BYTES) -> None:
        super().__init__(entries)
        self._missing = missing
        self._length = length

    def hashes(self, level: int, first: int, count: int) -> list[bytes]:
        found = super().hashes(level, first, count)
        return [item[: self._length] for item in found[: count - self._missing]]


def numbered(count: int) -> list[bytes]:
    """``count`` different entries."""
    return [b"entry %d" % number for number in range(count)]
