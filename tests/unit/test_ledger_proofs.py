"""Inclusion and consistency proofs (RFC 9162 sections 2.1.3 and 2.1.4) and receipts (C2SP tlog-proof)."""

import base64
import hashlib
from dataclasses import replace
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.tree_tiles import MemoryTiles, UniformTiles, WrongTiles, numbered
from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.note import MAX_SIZE, Checkpoint, NoteVerifier, note_with
from privyseal_ca.ledger.proofs import (
    MAX_RECEIPT,
    Receipt,
    consistency_proof,
    inclusion_proof,
    verify_consistency,
    verify_inclusion,
    verify_receipt,
)
from privyseal_ca.ledger.tiles import root_of
from privyseal_ca.ledger.tree import leaf_hash, root_hash

TREE = MemoryTiles(numbered(700))
LEAVES = TREE.levels[0]
EMPTY = hashlib.sha256(b"").digest()
sizes = st.integers(1, 700)


@cache
def root(size: int) -> bytes:
    return root_hash(LEAVES[:size])


def path(index: int, leaves: list[bytes]) -> list[bytes]:
    """PATH as RFC 9162 section 2.1.3.1 writes it."""
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*path(index, leaves[:split]), root_hash(leaves[split:])]
    return [*path(index - split, leaves[split:]), root_hash(leaves[:split])]


def subproof(old: int, leaves: list[bytes], known: bool) -> list[bytes]:
    """SUBPROOF as RFC 9162 section 2.1.4.1 writes it."""
    if old == len(leaves):
        return [] if known else [root_hash(leaves)]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if old <= split:
        return [*subproof(old, leaves[:split], known), root_hash(leaves[split:])]
    return [*subproof(old - split, leaves[split:], False), root_hash(leaves[:split])]


def test_every_proof_of_small_trees() -> None:
    for size in range(1, 40):
        for index in range(size):
            proof = inclusion_proof(TREE, index, size)
            assert proof == path(index, LEAVES[:size])
            verify_inclusion(LEAVES[index], index, size, proof, root(size))
        for old in range(1, size + 1):
            proof = consistency_proof(TREE, old, size)
            assert proof == subproof(old, LEAVES[:size], True)
            verify_consistency(old, size, proof, root(old), root(size))


@given(st.data())
@settings(max_examples=40)
def test_proofs_are_those_of_the_definition(data: st.DataObject) -> None:
    size = data.draw(sizes)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    assert inclusion_proof(TREE, index, size) == path(index, LEAVES[:size])
    assert consistency_proof(TREE, old, size) == subproof(old, LEAVES[:size], True)


@given(st.integers(1, MAX_SIZE), st.data())
def test_proofs_of_any_size_read_few_tiles(size: int, data: st.DataObject) -> None:
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    tiles = UniformTiles(size)
    verify_inclusion(leaf_hash(b"same"), index, size, inclusion_proof(tiles, index, size), tiles.root(size))
    assert tiles.reads <= 16
    tiles.reads = 0
    verify_consistency(old, size, consistency_proof(tiles, old, size), tiles.root(old), tiles.root(size))
    assert tiles.reads <= 16


@given(st.data())
def test_no_changed_inclusion_proof_is_accepted(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 700))
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(TREE, index, size)
    at = data.draw(st.integers(0, len(proof) - 1))
    flipped = bytes([proof[at][0] ^ 1]) + proof[at][1:]
    for leaf, where, of, changed, top in (
        (LEAVES[index], index, size, [*proof[:at], flipped, *proof[at + 1 :]], root(size)),
        (LEAVES[index], index, size, proof[:at] + proof[at + 1 :], root(size)),
        (LEAVES[index], index, size, [*proof[:at], proof[at], *proof[at:]], root(size)),
        (LEAVES[index], index, size, [], root(size)),
        (LEAVES[(index + 1) % size], index, size, proof, root(size)),
        (LEAVES[index], (index + 1) % size, size, proof, root(size)),
        (LEAVES[index], index, size, proof, root(size - 1)),
        (proof[0], index, size, proof, root(size)),
    ):
        with pytest.raises(LedgerError):
            verify_inclusion(leaf, where, of, changed, top)


@given(st.data())
def test_no_changed_consistency_proof_is_accepted(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, 700))
    old = data.draw(st.integers(1, new - 1))
    proof = consistency_proof(TREE, old, new)
    at = data.draw(st.integers(0, len(proof) - 1))
    flipped = bytes([proof[at][0] ^ 1]) + proof[at][1:]
    for before, after, changed, old_root, new_root in (
        (old, new, [*proof[:at], flipped, *proof[at + 1 :]], root(old), root(new)),
        (old, new, proof[:at] + proof[at + 1 :], root(old), root(new)),
        (old, new, [*proof, proof[at]], root(old), root(new)),
        (old, new, [], root(old), root(new)),
        (old, new, proof, root(new), root(new)),
        (old, new, proof, root(old), root(old)),
        (old, new, proof, root(old), EMPTY),
        (new, old, proof, root(new), root(old)),
        (old, old, proof, root(old), root(old)),
        (0, new, proof, EMPTY, root(new)),
    ):
        with pytest.raises(LedgerError):
            verify_consistency(before, after, changed, old_root, new_root)


def test_a_proof_is_as_long_as_the_size_says() -> None:
    """Else somebody could claim another size, or another index, with a proof that leads to a root that is right."""
    proof = inclusion_proof(TREE, 1, 4)
    verify_inclusion(LEAVES[1], 1, 4, proof, root(4))
    for index, size, message in ((1, 2, "too long"), (1, 8, "too short"), (1, 5, "too short"), (0, 1, "too long")):
        with pytest.raises(LedgerError, match=message):
            verify_inclusion(LEAVES[1], index, size, proof, root(4))
    with pytest.raises(LedgerError, match="does not lead to the root"):
        verify_inclusion(LEAVES[1], 2, 4, proof, root(4))
    proof = consistency_proof(TREE, 2, 4)
    verify_consistency(2, 4, proof, root(2), root(4))
    for old, new, message in ((2, 8, "too short"), (2, 5, "too short"), (3, 4, "too short")):
        with pytest.raises(LedgerError, match=message):
            verify_consistency(old, new, proof, root(2), root(4))
    with pytest.raises(LedgerError, match="too long"):
        verify_consistency(2, 3, [*proof, LEAVES[2]], root(2), root(3))


def test_trees_of_equal_size_and_the_empty_tree() -> None:
    assert consistency_proof(TREE, 5, 5) == consistency_proof(TREE, 0, 5) == consistency_proof(TREE, 0, 0) == []
    verify_consistency(5, 5, [], root(5), root(5))
    verify_consistency(0, 5, [], EMPTY, root(5))
    verify_consistency(0, 0, [], EMPTY, EMPTY)
    for old, new, old_root, new_root in (
        (5, 5, root(5), root(4)),
        (0, 5, root(5), root(5)),
        (0, 0, root(5), root(5)),
        (0, 0, EMPTY, root(5)),
    ):
        with pytest.raises(LedgerError):
            verify_consistency(old, new, [], old_root, new_root)


@pytest.mark.parametrize(
    ("index", "size"), [(-1, 5), (5, 5), (6, 5), (0, 0), (0, -1), (0, MAX_SIZE + 1), (2**100, 2**101)]
)
def test_entries_that_there_are_not(index: int, size: int) -> None:
    with pytest.raises(LedgerError):
        inclusion_proof(TREE, index, size)
    with pytest.raises(LedgerError):
        verify_inclusion(LEAVES[0], index, size, [], LEAVES[0])


@pytest.mark.parametrize(("old", "new"), [(-1, 5), (6, 5), (1, 0), (-2, -1), (1, MAX_SIZE + 1), (0, 2**100)])
def test_trees_that_do_not_grow(old: int, new: int) -> None:
    with pytest.raises(LedgerError):
        consistency_proof(TREE, old, new)
    with pytest.raises(LedgerError):
        verify_consistency(old, new, [], EMPTY, EMPTY)


def test_hashes_that_are_none() -> None:
    short, long = LEAVES[1][:31], LEAVES[1] + b"\0"
    for bad in (b"", short, long):
        for leaf, proof, top in (
            (bad, [LEAVES[1]], root(2)),
            (LEAVES[0], [bad], root(2)),
            (LEAVES[0], [LEAVES[1]], bad),
        ):
            with pytest.raises(LedgerError):
                verify_inclusion(leaf, 0, 2, proof, top)
        for proof, old_root, new_root in (
            ([bad], root(1), root(2)),
            ([LEAVES[1]], bad, root(2)),
            ([LEAVES[1]], root(1), bad),
        ):
            with pytest.raises(LedgerError):
                verify_consistency(1, 2, proof, old_root, new_root)


def test_equal_hashes_that_are_none() -> None:
    for bad in (b"", LEAVES[0][:31], LEAVES[0] + b"\0"):
        with pytest.raises(LedgerError):
            verify_inclusion(bad, 0, 1, [], bad)
        with pytest.raises(LedgerError):
            verify_consistency(1, 1, [], bad, bad)
        with pytest.raises(LedgerError):
            verify_consistency(0, 1, [], EMPTY, bad)


def test_proofs_that_are_too_long_to_be_true() -> None:
    endless = [LEAVES[0]] * 100_000
    with pytest.raises(LedgerError, match="at most 64"):
        verify_inclusion(LEAVES[0], 0, MAX_SIZE, endless, root(1))
    with pytest.raises(LedgerError, match="at most 64"):
        verify_consistency(1, MAX_SIZE, endless, root(1), root(1))


def test_a_node_is_no_leaf() -> None:
    """An inner node's two children are not an entry, although its hash is one in the tree."""
    with pytest.raises(LedgerError):
        verify_inclusion(leaf_hash(LEAVES[0] + LEAVES[1]), 0, 2, [LEAVES[2]], root(3))


def test_a_reader_that_lacks_hashes() -> None:
    for wrong in (WrongTiles(numbered(300), missing=1), WrongTiles(numbered(300), length=31)):
        with pytest.raises(LedgerError):
            inclusion_proof(wrong, 7, 300)
        with pytest.raises(LedgerError):
            consistency_proof(wrong, 7, 300)


KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
WITNESS = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
OURS = NoteVerifier.for_key("example.com/log", KEY.public_key())
THEIRS = NoteVerifier.for_key("witness.example", WITNESS.public_key())


def receipt(index: int = 5, size: int = 11, origin: str = "example.com/log") -> Receipt:
    text = Checkpoint(origin, size, root_of(TREE, size)).text()
    note = note_with(text, OURS, KEY.sign(text.encode()))
    return Receipt(index, tuple(inclusion_proof(TREE, index, size)), note)


def entry(index: int) -> bytes:
    return TREE.entries[index]


@given(st.data())
@settings(max_examples=40)
def test_receipts(data: st.DataObject) -> None:
    size = data.draw(sizes)
    index = data.draw(st.integers(0, size - 1))
    parsed = Receipt.parse(receipt(index, size).text())
    assert parsed == receipt(index, size)
    checkpoint = verify_receipt(parsed, entry(index), [OURS])
    assert checkpoint == Checkpoint("example.com/log", size, root(size))
    with pytest.raises(LedgerError):
        verify_receipt(parsed, entry(index) + b" ", [OURS])


def test_the_form_of_a_receipt() -> None:
    sibling = base64.b64encode(LEAVES[0]).decode()
    note = receipt(1, 2).checkpoint.decode()
    assert receipt(1, 2).text() == f"c2sp.org/tlog-proof@v1\nindex 1\n{sibling}\n\n{note}"
    assert receipt(0, 1).text().startswith("c2sp.org/tlog-proof@v1\nindex 0\n\nexample.com/log\n1\n")


def test_extra_data_changes_nothing_that_is_proved() -> None:
    text = receipt().text().replace("index", "extra bm9ib2R5IHZvdWNoZXM=\nindex", 1)
    parsed = Receipt.parse(text)
    assert parsed == replace(receipt(), extra=b"nobody vouches")
    assert parsed.text() == text
    assert verify_receipt(parsed, entry(5), [OURS]) == verify_receipt(receipt(), entry(5), [OURS])
    assert Receipt.parse(receipt().text().replace("index", "extra \nindex", 1)) == receipt()


def test_extra_data_are_bounded() -> None:
    with pytest.raises(LedgerError, match="extra data"):
        replace(receipt(), extra=bytes(65536)).text()
    longest = replace(receipt(), extra=bytes(65535)).text()
    assert len(Receipt.parse(longest).extra) == 65535
    with pytest.raises(LedgerError, match="extra data"):
        Receipt.parse(longest.replace("extra A", "extra AAAAA", 1))


def test_a_receipt_needs_the_ledgers_own_signature() -> None:
    good = receipt()
    text = good.checkpoint[: good.checkpoint.index(b"\n\n") + 1].decode()
    by_witness = replace(good, checkpoint=note_with(text, THEIRS, WITNESS.sign(text.encode())))
    with pytest.raises(LedgerError, match="not signed by that ledger's key"):
        verify_receipt(by_witness, entry(5), [OURS, THEIRS])
    cosigned = by_witness.checkpoint.removeprefix(text.encode() + b"\n")
    both = replace(good, checkpoint=good.checkpoint + cosigned)
    assert verify_receipt(both, entry(5), [OURS, THEIRS]).size == 11
    assert verify_receipt(both, entry(5), [OURS]).size == 11


@pytest.mark.parametrize("origin", ["example.com/log2", "example.com/lo", "witness.example"])
def test_a_receipt_of_another_ledger(origin: str) -> None:
    with pytest.raises(LedgerError, match="not signed by that ledger's key"):
        verify_receipt(receipt(origin=origin), entry(5), [OURS, THEIRS])


def test_receipts_that_do_not_fit() -> None:
    good = receipt()
    other = receipt(6, 12)
    for changed in (
        replace(good, index=6),
        replace(good, index=11),
        replace(good, index=MAX_SIZE),
        replace(good, proof=()),
        replace(good, proof=good.proof[:-1]),
        replace(good, proof=(*good.proof, good.proof[0])),
        replace(good, proof=good.proof[::-1]),
        replace(good, checkpoint=other.checkpoint),
        replace(good, checkpoint=b""),
        replace(good, checkpoint=good.checkpoint[:-1]),
    ):
        with pytest.raises(LedgerError):
            verify_receipt(changed, entry(5), [OURS])
    with pytest.raises(LedgerError):
        verify_receipt(good, entry(5), [THEIRS])
    with pytest.raises(LedgerError):
        verify_receipt(good, entry(5), [])
    no_checkpoint = replace(good, checkpoint=note_with("text\n", OURS, KEY.sign(b"text\n")))
    with pytest.raises(LedgerError, match="a line each for origin, size and root"):
        verify_receipt(no_checkpoint, entry(5), [OURS])


@pytest.mark.parametrize(
    "changed",
    [
        replace(receipt(), index=-1),
        replace(receipt(), index=MAX_SIZE + 1),
        replace(receipt(), proof=(b"",)),
        replace(receipt(), proof=(LEAVES[0],) * 65),
        replace(receipt(), checkpoint=b"\xff"),
        replace(receipt(), checkpoint=b"x" * (1 << 21)),
    ],
    ids=range(6),
)
def test_receipts_that_are_not_written(changed: Receipt) -> None:
    with pytest.raises(LedgerError):
        changed.text()


GOOD = receipt().text()
FIRST_HASH = GOOD.split("\n")[2]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "c2sp.org/tlog-proof@v1",
        "c2sp.org/tlog-proof@v1\n",
        "c2sp.org/tlog-proof@v1\n\n",
        GOOD.replace("@v1", "@v2"),
        " " + GOOD,
        "\n" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("@v1\n", "@v1\r\n"),
        GOOD.replace("@v1\n", "@v1\n\n"),
        GOOD.replace("index 5\n", ""),
        GOOD.replace("index 5", "index 5\nindex 5"),
        GOOD.replace("index 5", "index 5\nextra AAAA"),
        GOOD.replace("index 5", "extra AAAA\nextra AAAA\nindex 5"),
        GOOD.replace("index 5", "extra AAA\nindex 5"),
        GOOD.replace("index 5", "extra  AAAA\nindex 5"),
        GOOD.replace("index 5", "Index 5"),
        *(
            GOOD.replace("index 5", f"index{rest}")
            for rest in ("", " ", "  5", " 05", " -5", " +5", " 5 ", " \u0665", " 9" * 20)
        ),
        GOOD.replace("index 5", f"index {2**63}"),
        GOOD.replace("index 5", "index " + "9" * 100_000),
        GOOD.replace(FIRST_HASH, FIRST_HASH[:-1]),
        GOOD.replace(FIRST_HASH, FIRST_HASH + " "),
        GOOD.replace(FIRST_HASH, "AAAA"),
        GOOD.replace(FIRST_HASH, "A" * 43 + "B"),
        GOOD.replace(FIRST_HASH, "A" * 42 + "B="),
        GOOD.replace(FIRST_HASH, FIRST_HASH + "\x00"),
        GOOD.replace(FIRST_HASH, "\n".join([FIRST_HASH] * (66 - len(receipt().proof)))),
        GOOD.replace(FIRST_HASH, f"{FIRST_HASH}\n" * 64 + FIRST_HASH),
        GOOD.replace(FIRST_HASH, f"{FIRST_HASH}\n" * 20_000),
        GOOD + "\ud800",
        GOOD + "x" * MAX_RECEIPT,
    ],
    ids=lambda text: ascii(text[22:60]),
)
def test_receipts_that_are_not_read(text: str) -> None:
    assert text != GOOD
    with pytest.raises(LedgerError):
        Receipt.parse(text)


@given(st.data())
def test_no_changed_character_of_a_receipt_is_accepted(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOOD) - 1))
    other = data.draw(st.characters().filter(lambda character: character != GOOD[at]))
    with pytest.raises(LedgerError):
        verify_receipt(Receipt.parse(GOOD[:at] + other + GOOD[at + 1 :]), entry(5), [OURS])


@given(st.text(alphabet="\nabAE=5 ", max_size=60))
def test_whatever_comes_is_an_error_of_the_ledger(rest: str) -> None:
    for text in (rest, "c2sp.org/tlog-proof@v1\n" + rest, "c2sp.org/tlog-proof@v1\nindex 5\n" + rest):
        with pytest.raises(LedgerError):
            verify_receipt(Receipt.parse(text), entry(5), [OURS])
