"""Tiles: C2SP tlog-tiles."""

import contextlib
import hashlib
from itertools import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.tree_tiles import MemoryTiles, UniformTiles, WrongTiles, numbered
from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.note import MAX_SIZE
from privyseal_ca.ledger.tiles import (
    MAX_LEVEL,
    WIDTH,
    TilePath,
    TreeNodes,
    entry_bundle,
    hash_tile,
    parse_bundle,
    root_of,
    tile_width,
    tiles_between,
)
from privyseal_ca.ledger.tree import TreeHasher, leaf_hash, root_hash

PATHS = {
    "tile/0/000": TilePath(0, 0),
    "tile/0/x001/x234/067": TilePath(0, 1234067),
    "tile/1/999": TilePath(1, 999),
    "tile/1/x001/000": TilePath(1, 1000),
    "tile/entries/000.p/5": TilePath(None, 0, 5),
    "tile/entries/x123/x456/789": TilePath(None, 123456789),
    "tile/63/273.p/112": TilePath(63, 273, 112),
    "tile/2/000.p/255": TilePath(2, 0, 255),
    "tile/0/x009/x223/x372/x036/x854/x775/807": TilePath(0, MAX_SIZE),
}


@pytest.mark.parametrize("path", PATHS)
def test_paths(path: str) -> None:
    assert TilePath.parse(path) == PATHS[path]
    assert PATHS[path].path() == path


@given(st.none() | st.integers(0, MAX_LEVEL), st.integers(0, MAX_SIZE), st.integers(1, WIDTH))
def test_every_tile_has_one_path(level: int | None, index: int, width: int) -> None:
    tile = TilePath(level, index, width)
    assert TilePath.parse(tile.path()) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "tile",
        "tile/0",
        "tile/0/",
        "/tile/0/000",
        "tile/0/000/",
        "tile//000",
        "tile/00/000",
        "tile/01/000",
        "tile/-1/000",
        "tile/+1/000",
        "tile/64/000",
        "tile/100/000",
        "tile/data/000",
        "tile/Entries/000",
        "tile/8/0/000",
        "tile/0/0",
        "tile/0/00",
        "tile/0/0000",
        "tile/0/x000",
        "tile/0/x000/000",
        "tile/0/x000/x001/000",
        "tile/0/001/000",
        "tile/0/x001/x000",
        "tile/0/X001/000",
        "tile/0/x01/000",
        "tile/0/x0001/000",
        "tile/0/x\u0660\u0660\u0661/000",
        "tile/0/\u0660\u0660\u0660",
        "tile/0/000.p",
        "tile/0/000.p/",
        "tile/0/000.p/0",
        "tile/0/000.p/05",
        "tile/0/000.p/256",
        "tile/0/000.p/257",
        "tile/0/000.p/999",
        "tile/0/000.p/1000",
        "tile/0/000.p/-1",
        "tile/0/000.p/1/2",
        "tile/0/000.p/1.p/2",
        "tile/0/000.P/1",
        "tile/0/000\n",
        "tile/0/000\x00",
        "tile/0/000\r",
        "tile/0/000?x=1",
        "tile/0/000%2ep/1",
        "tile/0/../0/000",
        "tile/0/./000",
        "tile/0/x009/x223/x372/x036/x854/x775/808",
        "tile/0/x001/x009/x223/x372/x036/x854/x775/807",
        "tile/0/" + "x001/" * 100_000 + "000",
        "tile/0/" + "0" * 1_000_000,
    ],
    ids=lambda path: ascii(path[:50]),
)
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(LedgerError):
        TilePath.parse(path)


@given(st.text(alphabet="tile/entrisx0129.p\n", max_size=40).map(lambda rest: "tile/0/" + rest) | st.text(max_size=40))
def test_a_path_has_one_form(path: str) -> None:
    with contextlib.suppress(LedgerError):
        assert TilePath.parse(path).path() == path


@pytest.mark.parametrize(
    ("level", "index", "width"),
    [(-1, 0, 256), (64, 0, 256), (0, -1, 256), (0, MAX_SIZE + 1, 256), (0, 0, 0), (0, 0, 257), (None, 0, -1)],
)
def test_tiles_that_there_are_not(level: int | None, index: int, width: int) -> None:
    with pytest.raises(LedgerError):
        TilePath(level, index, width)


def test_the_tiles_of_70000_entries() -> None:
    """The examples of the specification, this and the next."""
    tiles = list(tiles_between(0, 70_000))
    assert tiles == [
        *(TilePath(0, index) for index in range(273)),
        TilePath(0, 273, 112),
        TilePath(1, 0),
        TilePath(1, 1, 17),
        TilePath(2, 0, 1),
    ]
    for tile in tiles:
        assert tile.level is not None
        assert tile_width(tile.level, tile.index, 70_000) == tile.width
    assert [tile_width(level, index, 70_000) for level, index in ((0, 274), (1, 2), (2, 1), (3, 0))] == [0] * 4


def test_the_tiles_of_256_entries() -> None:
    assert list(tiles_between(0, 256)) == [TilePath(0, 0), TilePath(1, 0, 1)]
    assert list(tiles_between(0, 255)) == [TilePath(0, 0, 255)]
    assert list(tiles_between(255, 256)) == [TilePath(0, 0), TilePath(1, 0, 1)]
    assert list(tiles_between(256, 257)) == [TilePath(0, 1, 1)]
    assert list(tiles_between(0, 0)) == list(tiles_between(9, 9)) == []


@given(st.integers(0, 140_000), st.integers(0, 70_000))
@settings(max_examples=30)
def test_new_tiles_are_those_that_were_not_there(old: int, more: int) -> None:
    new = old + more
    before, now = set(tiles_between(0, old)), list(tiles_between(0, new))
    assert list(tiles_between(old, new)) == [tile for tile in now if tile not in before]


@given(st.integers(0, MAX_SIZE), st.integers(0, MAX_LEVEL), st.integers(0, 1000))
def test_the_width_of_a_tile_by_the_specification(size: int, level: int, index: int) -> None:
    hashes = size // 256**level
    assert tile_width(level, index, size) == sum(1 for at in range(index * 256, index * 256 + 256) if at < hashes)
    if hashes % 256:
        assert tile_width(level, hashes // 256, size) == hashes % 256


def test_hash_of_a_tile() -> None:
    leaves = [leaf_hash(entry) for entry in numbered(256)]
    assert hash_tile(b"".join(leaves)) == root_hash(leaves)


@pytest.mark.parametrize("length", [0, 1, 32, 255 * 32, 256 * 32 - 1, 256 * 32 + 1, 257 * 32])
def test_only_full_tiles_have_a_hash(length: int) -> None:
    with pytest.raises(LedgerError):
        hash_tile(bytes(length))


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=256))
def test_bundles(entries: list[bytes]) -> None:
    assert parse_bundle(entry_bundle(entries)) == entries


def test_the_form_of_a_bundle() -> None:
    assert entry_bundle([b"", b"abc", b"x" * 65535]) == b"\0\0\0\x03abc\xff\xff" + b"x" * 65535


def test_what_goes_into_no_bundle() -> None:
    for entries in ([], [b"x" * 65536], repeat(b"endless")):
        with pytest.raises(LedgerError):
            entry_bundle(entries)


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\0\1", b"\0\0\0", b"\xff\xff" + b"x" * 65534, b"\0\0" * 257, bytes(10**7)]
)
def test_what_is_no_bundle(data: bytes) -> None:
    with pytest.raises(LedgerError):
        parse_bundle(data)


@given(st.binary(max_size=50))
def test_a_bundle_has_one_form(data: bytes) -> None:
    with contextlib.suppress(LedgerError):
        assert entry_bundle(parse_bundle(data)) == data


def test_roots_are_those_of_the_growing_tree() -> None:
    tiles = MemoryTiles(numbered(1100))
    hasher = TreeHasher()
    assert root_of(tiles, 0) == hasher.root() == hashlib.sha256(b"").digest()
    for size, leaf in enumerate(tiles.levels[0], start=1):
        hasher.append(leaf)
        tiles.reads = 0
        assert root_of(tiles, size) == hasher.root()
        assert tiles.reads <= 2


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 65_792, 70_000])
def test_the_root_of_three_levels(size: int) -> None:
    tiles = MemoryTiles(numbered(size))
    assert root_of(tiles, size) == root_hash(tiles.levels[0])
    assert tiles.reads <= 3


@given(st.integers(1, MAX_SIZE) | st.integers(0, 62).map(lambda bit: 1 << bit) | st.just(MAX_SIZE))
def test_roots_of_any_size_from_few_tiles(size: int) -> None:
    tiles = UniformTiles(size)
    assert root_of(tiles, size) == tiles.root(size)
    assert tiles.reads <= 8


@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1, 2**200])
def test_sizes_that_no_tree_has(size: int) -> None:
    with pytest.raises(LedgerError):
        root_of(UniformTiles(1), size)


def test_a_reader_that_lacks_hashes() -> None:
    for wrong in (WrongTiles(numbered(300), missing=1), WrongTiles(numbered(300), length=31)):
        with pytest.raises(LedgerError):
            root_of(wrong, 300)
        with pytest.raises(LedgerError):
            TreeNodes(wrong, 300).span(0, 256)
