"""The Merkle tree of RFC 6962 section 2.1, as pure functions of bytes."""

import hashlib
from collections.abc import Iterable

_LEAF = b"\x00"
_NODE = b"\x01"


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one entry: SHA-256(0x00 || entry)."""
    return hashlib.sha256(_LEAF + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(_NODE + left + right).digest()


class TreeHasher:
    """The root of a growing tree in memory that grows with the logarithm of its size."""

    def __init__(self) -> None:
        self.size = 0
        #: Roots of the complete subtrees from left to right, one for each bit that is set in ``size``.
        self._peaks: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add the leaf with the hash ``leaf``."""
        subtree = leaf
        size = self.size
        while size & 1:
            subtree = node_hash(self._peaks.pop(), subtree)
            size >>= 1
        self._peaks.append(subtree)
        self.size += 1

    def root(self) -> bytes:
        """The root hash; SHA-256 of nothing for an empty tree."""
        if not self._peaks:
            return hashlib.sha256(b"").digest()
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root


def root_hash(leaves: Iterable[bytes]) -> bytes:
    """The root of the tree over leaves with the hashes ``leaves``."""
    hasher = TreeHasher()
    for leaf in leaves:
        hasher.append(leaf)
    return hasher.root()
