"""Proofs that an entry is in the ledger, and that a ledger only ever grew (promise P6).

RFC 9162 sections 2.1.3 and 2.1.4, whose trees and proofs are those of RFC 6962; C2SP tlog-proof for the receipt. Proofs
are made from tiles and checked without them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.note import (
    MAX_NOTE,
    MAX_SIZE,
    Checkpoint,
    NoteVerifier,
    decode_base64,
    decode_hash,
    decode_number,
    encode_base64,
    open_note,
)
from privyseal_ca.ledger.tiles import HASH_BYTES, TileHashes, TreeNodes
from privyseal_ca.ledger.tree import leaf_hash, node_hash, root_hash

#: Hashes of a proof: one for each level of the largest tree, and one more for consistency.
MAX_PROOF: Final = 64
#: Characters of a receipt.
MAX_RECEIPT: Final = MAX_NOTE + 8192 + 65536 * 4 // 3
#: Bytes of a receipt's extra data: as many as an entry may have.
MAX_EXTRA: Final = 65535

_HEADER: Final = "c2sp.org/tlog-proof@v1"
_EXTRA: Final = "extra "
_INDEX: Final = "index "


def inclusion_proof(read: TileHashes, index: int, size: int) -> list[bytes]:
    """The hashes beside the path from entry ``index`` up to the root of the first ``size`` entries (RFC 9162, 2.1.3.1).

    Raises:
        LedgerError: there is no such entry or size, or the reader lacks hashes.
    """
    nodes = TreeNodes(read, size)
    if not 0 <= index < size:
        raise LedgerError(f"A tree of {size} entries has none with the index {index}.")
    proof: list[bytes] = []
    first, end = 0, size
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            proof.append(nodes.span(middle, end))
            end = middle
        else:
            proof.append(nodes.span(first, middle))
            first = middle
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the tree of ``size`` entries with the hash ``root`` has ``leaf``, a leaf hash, at ``index``.

    The steps are those of RFC 9162 section 2.1.3.2.

    Raises:
        LedgerError: it is not shown.
    """
    _check_hashes((leaf, root))
    _check_proof(proof)
    if not 0 <= index < size <= MAX_SIZE:
        raise LedgerError("The inclusion proof is for an index that the tree does not have.")
    fn, sn = index, size - 1
    node = leaf
    for sibling in proof:
        if sn == 0:
            raise LedgerError("The inclusion proof is too long.")
        if fn & 1 or fn == sn:
            node = node_hash(sibling, node)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            node = node_hash(node, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise LedgerError("The inclusion proof is too short.")
    if node != root:
        raise LedgerError("The inclusion proof does not lead to the root.")


def consistency_proof(read: TileHashes, old: int, new: int) -> list[bytes]:
    """The hashes that show that the first ``old`` of ``new`` entries are still what they were (RFC 9162, 2.1.4.1).

    None are needed when the sizes are equal, and none when nothing was there before.

    Raises:
        LedgerError: ``old`` is larger than ``new``, there is no such size, or the reader lacks hashes.
    """
    nodes = TreeNodes(read, new)
    if not 0 <= old <= new:
        raise LedgerError(f"A tree of {new} entries did not have {old} before.")
    if old in {0, new}:
        return []
    proof: list[bytes] = []
    first, end = 0, new
    while end != old:
        middle = first + _split(end - first)
        if old <= middle:
            proof.append(nodes.span(middle, end))
            end = middle
        else:
            proof.append(nodes.span(first, middle))
            first = middle
    # The whole of the old tree is what the verifier has already.
    if first:
        proof.append(nodes.span(first, end))
    return proof[::-1]


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Check that a tree of ``new`` entries begins with the ``old`` entries of an earlier one, by the roots of both.

    The steps are those of RFC 9162 section 2.1.4.2; for equal sizes and for an empty old tree, the roots and the absence
    of a proof.

    Raises:
        LedgerError: it is not shown.
    """
    _check_hashes((old_root, new_root))
    _check_proof(proof)
    if not 0 <= old <= new <= MAX_SIZE:
        raise LedgerError("The consistency proof is for a tree that shrank.")
    if old in {0, new}:
        if proof:
            raise LedgerError("The consistency proof is too long.")
        if old_root != (new_root if old == new else _EMPTY) or (new == 0 and new_root != _EMPTY):
            raise LedgerError("The two trees have other roots than their sizes say.")
        return
    _walk_consistency(old, new, proof, old_root, new_root)


def _walk_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise LedgerError("The consistency proof is too short.")
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old_node = new_node = path[0]
    for sibling in path[1:]:
        if sn == 0:
            raise LedgerError("The consistency proof is too long.")
        if fn & 1 or fn == sn:
            old_node, new_node = node_hash(sibling, old_node), node_hash(sibling, new_node)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new_node = node_hash(new_node, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise LedgerError("The consistency proof is too short.")
    if old_node != old_root or new_node != new_root:
        raise LedgerError("The consistency proof does not lead to both roots.")


@dataclass(frozen=True, slots=True)
class Receipt:
    """That a checkpoint covers an entry (C2SP tlog-proof). The entry itself is not in it."""

    #: The entry's index.
    index: int
    #: The inclusion proof, the leaf's neighbour first.
    proof: tuple[bytes, ...]
    #: The signed note, byte for byte.
    checkpoint: bytes
    #: What its author added. Nobody vouches for it: a verifier checks it against something that is proved.
    extra: bytes = b""

    def text(self) -> str:
        """The receipt as it is stored and sent, by convention in a file that ends with ``.tlog-proof``.

        Raises:
            LedgerError: a member is not what it should be.
        """
        if not 0 <= self.index <= MAX_SIZE:
            raise LedgerError("A receipt's index is between 0 and 2^63 - 1.")
        _check_proof(self.proof)
        if len(self.checkpoint) > MAX_NOTE:
            raise LedgerError(f"A note has at most {MAX_NOTE} bytes.")
        try:
            note = self.checkpoint.decode()
        except UnicodeDecodeError as error:
            raise LedgerError("The receipt's checkpoint is not UTF-8.") from error
        extra = (f"{_EXTRA}{encode_base64(self.extra)}",) if self.extra else ()
        if len(self.extra) > MAX_EXTRA:
            raise LedgerError(f"A receipt's extra data have at most {MAX_EXTRA} bytes.")
        lines = (_HEADER, *extra, f"{_INDEX}{self.index}", *map(encode_base64, self.proof), "", note)
        return "\n".join(lines)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The receipt in ``text``. Nothing in it is checked beyond its form: that is what :func:`verify_receipt` is for.

        Raises:
            LedgerError: malformed, more than 64 hashes, or too long.
        """
        if len(text) > MAX_RECEIPT:
            raise LedgerError(f"A receipt has at most {MAX_RECEIPT} characters.")
        head, empty, note = text.partition("\n\n")
        lines = head.split("\n", MAX_PROOF + 3)
        if not empty or lines.pop(0) != _HEADER:
            raise LedgerError(f"A receipt begins with the line {_HEADER} and has a checkpoint behind an empty line.")
        extra = b""
        if lines and lines[0].startswith(_EXTRA):
            extra = decode_base64(lines.pop(0).removeprefix(_EXTRA), "receipt's extra data")
            if len(extra) > MAX_EXTRA:
                raise LedgerError(f"A receipt's extra data have at most {MAX_EXTRA} bytes.")
        if not lines or not lines[0].startswith(_INDEX):
            raise LedgerError("The receipt has no index where it belongs.")
        index = decode_number(lines.pop(0).removeprefix(_INDEX), "receipt's index")
        if len(lines) > MAX_PROOF:
            raise LedgerError(f"A proof has at most {MAX_PROOF} hashes.")
        proof = tuple(decode_hash(line, "hash in the receipt") for line in lines)
        try:
            return cls(index, proof, note.encode(), extra)
        except UnicodeEncodeError as error:
            raise LedgerError("The receipt is not Unicode text.") from error


def verify_receipt(receipt: Receipt, entry: bytes, verifiers: Iterable[NoteVerifier]) -> Checkpoint:
    """Check that the ledger with one of these keys has ``entry``, and give the checkpoint that says so.

    1. The checkpoint is signed by one of the keys, and every signature by one of them is right.
    2. One of those that signed it has the ledger's origin for a name: the ledger's own key, not a witness alone.
    3. The proof leads from the entry to its root.

    Raises:
        LedgerError: it is not shown.
    """
    text, signed = open_note(receipt.checkpoint, verifiers)
    checkpoint = Checkpoint.parse(text)
    if all(verifier.name != checkpoint.origin for verifier in signed):
        raise LedgerError(f"The checkpoint of {checkpoint.origin} is not signed by that ledger's key.")
    verify_inclusion(leaf_hash(entry), receipt.index, checkpoint.size, receipt.proof, checkpoint.root)
    return checkpoint


_EMPTY: Final = root_hash(())


def _split(size: int) -> int:
    """The largest power of two below ``size``, which is at least 2."""
    return 1 << (size - 1).bit_length() - 1


def _check_proof(proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_PROOF:
        raise LedgerError(f"A proof has at most {MAX_PROOF} hashes.")
    _check_hashes(proof)


def _check_hashes(hashes: Iterable[bytes]) -> None:
    if any(len(item) != HASH_BYTES for item in hashes):
        raise LedgerError(f"A hash of the tree has {HASH_BYTES} bytes.")
