"""Reading a log from where the last reading ended to a checkpoint: tiles, the tree, and the entries where they are given.

Four tiles with their entries are fetched at a time, and one is looked at: at most five bundles of 16 MiB are in memory, and what
:mod:`~privyseal_ca.outside.replay` keeps.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final, NamedTuple

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.note import Checkpoint
from privyseal_ca.ledger.served import LedgerSource
from privyseal_ca.ledger.tiles import HEIGHT, WIDTH, TilePath, hash_tile, parse_bundle, tile_width
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.outside.edge import TreeEdge
from privyseal_ca.outside.facts import Fact
from privyseal_ca.outside.findings import Code, FindingError, wrong_entry
from privyseal_ca.outside.replay import Replay
from privyseal_ca.outside.source import EntriesRefusedError
from privyseal_ca.outside.tiles import CheckedTiles, WrongTileError

_AHEAD: Final = 4

Progress = Callable[[int, int], None]


class _Piece(NamedTuple):
    """A tile of level 0 and, where they are given, its entries."""

    number: int
    hashes: list[bytes]
    entries: list[bytes] | None


class Walk:
    """What was read of one log so far."""

    def __init__(
        self,
        source: LedgerSource,
        replay: Replay,
        *,
        edge: TreeEdge | None = None,
        entries: bool | None = None,
        progress: Progress | None = None,
    ) -> None:
        """``entries`` says whether entries are read: None to find out whether the server gives them, at the first one.

        ``progress`` is told how many entries of how many were read.
        """
        self._source = source
        self.replay = replay
        self.edge = edge or TreeEdge()
        #: Whether entries are read; None until the first bundle was asked for.
        self.entries = entries
        self._progress = progress
        #: Leaves whose place is wanted, and where they were found.
        self.wanted: set[bytes] = set()
        self.found: dict[bytes, int] = {}

    async def tiles(self, checkpoint: Checkpoint) -> CheckedTiles:
        """The tiles at ``checkpoint``, whose signature was verified.

        Raises:
            FindingError: they do not lead to its root; with the index of the entry, where the entries tell it.
            StatusUnavailableError: the log cannot be read.
        """
        tiles = CheckedTiles(self._source, checkpoint)
        try:
            await tiles.open()
        except FindingError as error:
            raise await self._named_at_edge(tiles, error) from error
        return tiles

    async def steps(self, tiles: CheckedTiles) -> AsyncIterator[list[Fact]]:
        """Read on up to the checkpoint of ``tiles``, tile by tile: the new facts of each.

        Raises:
            FindingError: the first thing that is wrong. Nothing that was read by this object counts any more.
            StatusUnavailableError: the log cannot be read. What was read until then counts.
        """
        size = tiles.checkpoint.size
        await self.require_same(tiles)
        async for piece in self._pieces(tiles):
            yield self._take(piece)
            if self._progress is not None:
                self._progress(self.edge.size, size)
        if self.edge.root() != tiles.checkpoint.root:
            raise FindingError(Code.TILE, "The tiles do not lead to the root in the checkpoint.")

    def _take(self, piece: _Piece) -> list[Fact]:
        """Look at what is new in a tile."""
        facts: list[Fact] = []
        for at in range(self.edge.size - piece.number * WIDTH, len(piece.hashes)):
            index, leaf = self.edge.size, piece.hashes[at]
            if piece.entries is not None:
                if leaf_hash(piece.entries[at]) != leaf:
                    raise wrong_entry(index, "does not have the hash that stands in the tree")
                fact = self.replay.entry(index, piece.entries[at])
                if fact is not None:
                    facts.append(fact)
            if leaf in self.wanted:
                self.found.setdefault(leaf, index)
            self.edge.append(leaf)
        return facts

    async def require_same(self, tiles: CheckedTiles) -> None:
        """The log begins with what was read of it before: the hashes at the edge are still there, at their places.

        Raises:
            FindingError: it was forked, and between which entries.
        """
        for level, index, hashes in reversed(self.edge.partial_tiles()):
            try:
                now = await tiles.tile(level, index)
            except WrongTileError as error:
                raise await self._named_before(tiles, error, level, index) from error
            for at, (before, after) in enumerate(zip(hashes, now, strict=False)):
                if before != after:
                    first = (index * WIDTH + at) << HEIGHT * level
                    raise _forked(tiles.checkpoint.size, self.edge.size, first, first + (1 << HEIGHT * level) - 1)

    async def _pieces(self, tiles: CheckedTiles) -> AsyncIterator[_Piece]:
        """The tiles of level 0 from the edge on, some of them on their way while one is looked at."""
        size = tiles.checkpoint.size
        # Never a list of them: a checkpoint may say any size.
        indexes = iter(range(self.edge.size // WIDTH, -(-size // WIDTH)) if self.edge.size < size else ())
        following = next(indexes, None)
        waiting: deque[tuple[int, asyncio.Task[tuple[list[bytes], list[bytes] | FindingError | None]]]] = deque()
        try:
            while following is not None or waiting:
                # One alone while nobody knows whether entries are given.
                while following is not None and len(waiting) < (1 if self.entries is None else _AHEAD):
                    width = tile_width(0, following, size)
                    waiting.append((following, asyncio.create_task(self._fetch(tiles, following, width))))
                    following = next(indexes, None)
                index, task = waiting.popleft()
                hashes, entries = await task
                try:
                    hashes = await tiles.tile(0, index, content=hashes)
                except WrongTileError as error:
                    raise _named(error, index, hashes, entries) from error
                if isinstance(entries, FindingError):
                    raise entries
                yield _Piece(index, hashes, entries)
        finally:
            for _, task in waiting:
                task.cancel()
            for _, task in waiting:
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _fetch(
        self, tiles: CheckedTiles, index: int, width: int
    ) -> tuple[list[bytes], list[bytes] | FindingError | None]:
        return await tiles.raw(0, index, width), await self._bundle(index, width)

    async def _bundle(self, index: int, width: int) -> list[bytes] | FindingError | None:
        """The entries of a tile; None when nobody gets them.

        Raises:
            EntriesRefusedError: they were given before.
            StatusUnavailableError: they cannot be reached.
        """
        if self.entries is False:
            return None
        path = TilePath(None, index, width)
        first, last = index * WIDTH, index * WIDTH + width - 1
        try:
            content = await self._source.tile(path)
            entries = None if content is None else parse_bundle(content)
        except EntriesRefusedError:
            if self.entries:
                raise
            self.entries = False
            return None
        except LedgerError as error:
            self.entries = True
            return FindingError(
                Code.ENTRY, f"The bundle of the entries {first} to {last} is malformed: {error.message}", index=first
            )
        if entries is None and not self.entries:
            self.entries = False
            return None
        self.entries = True
        if entries is None or len(entries) != width:
            return FindingError(Code.ENTRY, f"The entries {first} to {last} ({path.path()}) are missing.", index=first)
        return entries

    async def _named_before(self, tiles: CheckedTiles, error: WrongTileError, level: int, index: int) -> FindingError:
        """``error``, about a tile that is full now and was not before, with the entry that is wrong, when the entries tell."""
        if level or self.entries is False:
            return error
        return _named(error, index, await tiles.raw(0, index, WIDTH), await self._bundle(index, WIDTH))

    async def _named_at_edge(self, tiles: CheckedTiles, error: FindingError) -> FindingError:
        """``error`` with the first entry whose hash is not in the tile at the right edge, when the entries tell."""
        index, width = divmod(tiles.checkpoint.size, WIDTH)
        if not width or self.entries is False:
            return error
        entries = await self._bundle(index, width)
        if not isinstance(entries, list):
            return error
        differing = _first_difference(index, await tiles.raw(0, index, width), entries)
        return error if differing is None else _at(error, differing)


def _forked(size: int, before: int, first: int, last: int) -> FindingError:
    """A log of ``size`` entries that does not begin with the ``before`` ones that it had: one from ``first`` to ``last`` is new."""
    where = f"is entry {first}" if first == last else f"is among the entries {first} to {last}"
    return FindingError(
        Code.FORK,
        f"The log of {size} entries does not begin with the {before} entries that it had before: it was rewritten and signed "
        f"again. The first that differs {where}.",
        index=first,
    )


def _named(
    error: WrongTileError, index: int, hashes: list[bytes], entries: list[bytes] | FindingError | None
) -> FindingError:
    """``error`` with the entry that is wrong, when the entries of the tile tell."""
    if not isinstance(entries, list):
        return error
    differing = _first_difference(index, hashes, entries)
    if differing is not None and hash_tile(b"".join(map(leaf_hash, entries))) == error.expected:
        return _at(error, differing)
    return error


def _first_difference(index: int, hashes: list[bytes], entries: list[bytes]) -> int | None:
    for at, (leaf, entry) in enumerate(zip(hashes, entries, strict=True)):
        if leaf != leaf_hash(entry):
            return index * WIDTH + at
    return None


def _at(error: FindingError, index: int) -> FindingError:
    message = f"{error.finding.message} The first that is wrong is that of entry {index}."
    return FindingError(error.finding.code, message, index=index)
