"""The right edge of a tree: the hashes of its tiles that are not full. It suffices to go on where a check ended.

At most 255 hashes for each of the eight levels that a tree of this size can have: 64 KiB.
"""

from base64 import b64decode, b64encode
from copy import deepcopy
from typing import Any, Final, Self

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.note import MAX_SIZE
from privyseal_ca.ledger.tiles import HASH_BYTES, HEIGHT, WIDTH, hash_tile, root_of, tile_width

_LEVELS: Final = 8


class TreeEdge:
    """A growing tree, of which only the right edge is kept."""

    def __init__(self) -> None:
        self.size = 0
        self._levels: list[list[bytes]] = []

    def append(self, leaf: bytes) -> None:
        """Add the leaf with the hash ``leaf``."""
        self.size += 1
        node = leaf
        for hashes in self._levels:
            hashes.append(node)
            if len(hashes) < WIDTH:
                return
            node = hash_tile(b"".join(hashes))
            hashes.clear()
        self._levels.append([node])

    def root(self) -> bytes:
        """The root over all entries so far."""
        return root_of(self, self.size)

    def hashes(self, level: int, first: int, count: int) -> list[bytes]:
        """Those of the tile at the right edge of ``level``, which is all that the root needs."""
        begin = first % WIDTH
        if level >= len(self._levels) or first // WIDTH != self.size >> HEIGHT * (level + 1):
            raise LedgerError("Only the right edge of this tree is kept.")
        return self._levels[level][begin : begin + count]

    def partial_tiles(self) -> list[tuple[int, int, list[bytes]]]:
        """Level, index and hashes of every tile that is not full and not empty."""
        return [
            (level, self.size >> HEIGHT * (level + 1), list(hashes))
            for level, hashes in enumerate(self._levels)
            if hashes
        ]

    def copy(self) -> "TreeEdge":
        """Another one of the same size, which grows by itself."""
        return deepcopy(self)

    def document(self) -> dict[str, Any]:
        """What :meth:`parse` reads."""
        return {"size": self.size, "levels": [b64encode(b"".join(each)).decode() for each in self._levels]}

    @classmethod
    def parse(cls, document: Any) -> Self:
        """The edge whose :meth:`document` this is.

        Raises:
            LedgerError: it is none.
        """
        edge = cls()
        try:
            size, levels = document["size"], [b64decode(each, validate=True) for each in document["levels"]]
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerError("The edge of the tree is malformed.") from error
        if type(size) is not int or not 0 <= size <= MAX_SIZE or len(levels) > _LEVELS:
            raise LedgerError("The edge of the tree is malformed.")
        edge.size = size
        for level, hashes in enumerate(levels):
            width = tile_width(level, size >> HEIGHT * (level + 1), size)
            if len(hashes) != width * HASH_BYTES:
                raise LedgerError("The edge of the tree does not have the hashes of its size.")
            edge._levels.append([hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)])
        if size >> HEIGHT * len(levels):
            raise LedgerError("The edge of the tree lacks a level.")
        return edge
