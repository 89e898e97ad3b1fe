"""The tree over the entries: RFC 6962 section 2.1."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privyseal_ca.ledger.tree import TreeHasher, leaf_hash, node_hash, root_hash

VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "tree.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("size", range(len(VECTOR["roots"])))
def test_published_roots(size: int) -> None:
    leaves = [leaf_hash(bytes.fromhex(text)) for text in VECTOR["leaves"][:size]]
    assert root_hash(leaves).hex() == VECTOR["roots"][size]


def by_definition(leaves: list[bytes]) -> bytes:
    """MTH as RFC 6962 writes it."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(by_definition(leaves[:split]), by_definition(leaves[split:]))


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=70))
def test_the_growing_tree_is_the_defined_one(leaves: list[bytes]) -> None:
    hasher = TreeHasher()
    for leaf in leaves:
        hasher.append(leaf)
    assert hasher.size == len(leaves)
    assert hasher.root() == by_definition(leaves)


def test_leaves_and_nodes_are_told_apart() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)
