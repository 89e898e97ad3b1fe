"""Tiles of a log that are compared with its checkpoint before anything is believed that stands in them (C2SP tlog-tiles).

The tiles at the right edge have to lead to the root; each full one has to have the hash that stands in the tile above it.
So what is wrong shows at its own place, from the first tile on.
"""

from typing import Final

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.note import Checkpoint
from privyseal_ca.ledger.served import LedgerSource
from privyseal_ca.ledger.tiles import HASH_BYTES, HEIGHT, WIDTH, TilePath, hash_tile, root_of, tile_width
from privyseal_ca.outside.findings import Code, FindingError

#: Tiles of one level that are kept: a walk from left to right needs one, a proof one or two.
_KEPT: Final = 4


class WrongTileError(FindingError):
    """A tile that does not have the hash that the tile above it says."""

    def __init__(self, message: str, *, index: int, expected: bytes) -> None:
        super().__init__(Code.TILE, message, index=index)
        self.expected = expected


class _Edge:
    """The right edge of a tree, by level."""

    def __init__(self, tiles: dict[int, list[bytes]]) -> None:
        self._tiles = tiles

    def hashes(self, level: int, first: int, count: int) -> list[bytes]:
        begin = first % WIDTH
        return self._tiles[level][begin : begin + count]


class CheckedTiles:
    """The tiles of ``source`` at ``checkpoint``. ``open`` comes first."""

    def __init__(self, source: LedgerSource, checkpoint: Checkpoint) -> None:
        self._source = source
        self.checkpoint = checkpoint
        self._edge: dict[int, list[bytes]] = {}
        self._full: dict[int, dict[int, list[bytes]]] = {}

    async def open(self) -> None:
        """Read the tiles at the right edge.

        Raises:
            FindingError: they do not lead to the checkpoint's root, or one is missing.
            StatusUnavailableError: they cannot be reached.
        """
        size = self.checkpoint.size
        level = 0
        while size >> HEIGHT * level:
            index = size >> HEIGHT * (level + 1)
            width = tile_width(level, index, size)
            if width:
                self._edge[level] = await self.raw(level, index, width)
            level += 1
        if root_of(_Edge(self._edge), size) != self.checkpoint.root:
            first = size - size % WIDTH
            raise FindingError(
                Code.TILE,
                f"The tiles at the right edge of the tree of {size} entries do not lead to the root in its checkpoint: one of "
                f"{', '.join(self._names())} is not what was signed.",
                index=first if 0 in self._edge else None,
            )

    async def tile(self, level: int, index: int, *, content: list[bytes] | None = None) -> list[bytes]:
        """The hashes of a tile, compared with the checkpoint; ``content`` are they when somebody has read them already.

        Raises:
            FindingError: they are not what was signed, or there are none.
            StatusUnavailableError: they cannot be reached.
        """
        size = self.checkpoint.size
        width = tile_width(level, index, size)
        if width < WIDTH:
            return self._edge[level]
        kept = self._full.setdefault(level, {})
        if index in kept:
            return kept[index]
        hashes = content if content is not None else await self.raw(level, index, width)
        above = await self.tile(level + 1, index // WIDTH)
        if hash_tile(b"".join(hashes)) != above[index % WIDTH]:
            first = index << HEIGHT * (level + 1)
            last = first + (1 << HEIGHT * (level + 1)) - 1
            raise WrongTileError(
                f"{TilePath(level, index).path()}, the hashes of the entries {first} to {last}, is not what the checkpoint of "
                f"{size} entries says.",
                index=first,
                expected=above[index % WIDTH],
            )
        if len(kept) >= _KEPT:
            kept.pop(next(iter(kept)))
        kept[index] = hashes
        return hashes

    async def root_at(self, size: int) -> bytes:
        """The root over the first ``size`` entries, as the checkpoint says that it was.

        Raises:
            FindingError: a tile is not what was signed.
            StatusUnavailableError: one cannot be reached.
        """
        edge: dict[int, list[bytes]] = {}
        level = 0
        while size >> HEIGHT * level:
            index = size >> HEIGHT * (level + 1)
            width = tile_width(level, index, size)
            if width:
                edge[level] = (await self.tile(level, index))[:width]
            level += 1
        return root_of(_Edge(edge), size)

    async def raw(self, level: int, index: int, width: int) -> list[bytes]:
        """The hashes of a tile as they are served.

        Raises:
            FindingError: there are none, or not so many.
            StatusUnavailableError: they cannot be reached.
        """
        path = TilePath(level, index, width)
        first = index << HEIGHT * (level + 1)
        try:
            content = await self._source.tile(path)
        except LedgerError as error:
            raise FindingError(Code.TILE, error.message, index=first) from error
        if content is None or len(content) != width * HASH_BYTES:
            raise FindingError(
                Code.TILE,
                f"{path.path()}, the hashes of the entries from {first} on, is missing or of another size, although the "
                f"checkpoint of {self.checkpoint.size} entries reaches it.",
                index=first,
            )
        return [content[at : at + HASH_BYTES] for at in range(0, len(content), HASH_BYTES)]

    def _names(self) -> list[str]:
        size = self.checkpoint.size
        return [TilePath(level, size >> HEIGHT * (level + 1), len(each)).path() for level, each in self._edge.items()]
