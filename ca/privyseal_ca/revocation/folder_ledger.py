"""The ledger in a folder that ``status publish`` writes: verification key, checkpoint, tiles, and entry bundles when they are
open. Receipts are not in it: whoever wants one makes it from tiles.

The checkpoint is written last: what it says there is, is there. A folder outlives restores of the database, so a checkpoint is
only replaced by one that continues it (promises P6 and P8).
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from privyseal_ca.clock import Clock
from privyseal_ca.errors import LedgerError, StatusUnavailableError
from privyseal_ca.ledger.checkpoints import StoredTiles
from privyseal_ca.ledger.note import MAX_NOTE, Checkpoint, NoteVerifier, open_note
from privyseal_ca.ledger.proofs import Receipt
from privyseal_ca.ledger.served import StoredLedger
from privyseal_ca.ledger.tiles import HASH_BYTES, WIDTH, TilePath, entry_bundle, parse_bundle, root_of, tiles_between
from privyseal_ca.revocation.folder_writer import FolderWriter
from privyseal_ca.store.engine import Store

LEDGER: Final = "ledger"
_VKEY: Final = f"{LEDGER}/vkey"
_CHECKPOINT: Final = f"{LEDGER}/checkpoint"
_ENTRIES: Final = f"{LEDGER}/tile/entries"
_MAX_VKEY: Final = 8 << 10
#: 256 entries of at most 65,535 bytes, each with its length.
_MAX_BUNDLE: Final = WIDTH * (2 + 65535)
#: How many tiles are looked at in one step, so that revocations never wait long for a ledger that is new to the folder.
_STEP: Final = 512
#: Waiting for the disk is most of the work: so many files are written at the same time.
_WRITERS: Final = 8


class _Signed(NamedTuple):
    """A checkpoint and the note that it was read from."""

    note: bytes
    checkpoint: Checkpoint


def ledger_file(path: TilePath) -> str:
    """The path of a tile in the folder."""
    return f"{LEDGER}/{path.path()}"


def files_between(old: int, new: int, *, entries: bool) -> Iterator[TilePath]:
    """What the folder has for a checkpoint of ``new`` entries and not for one of ``old``; with ``entries`` bundles as well."""
    for path in tiles_between(old, new):
        yield path
        if entries and path.level == 0:
            yield TilePath(None, path.index, path.width)


@dataclass(slots=True)
class LedgerCounts:
    """What was written and removed."""

    tiles: int = 0
    checkpoints: int = 0
    removed: int = 0


class LedgerPublisher:
    """Keeps the ledger in the folder behind ``writer``, which is open, a copy of that in ``store``.

    ``entries`` says whether entries are for everybody; ``progress`` is told what people should know.
    """

    def __init__(
        self, *, store: Store, writer: FolderWriter, entries: bool, clock: Clock, progress: Callable[[str], None]
    ) -> None:
        self._store = store
        self._source = StoredLedger(store)
        self._writer = writer
        self._entries = entries
        self._clock = clock
        self._progress = progress
        #: The size whose tiles are known to be in the folder. What is in it at the beginning is looked at once.
        self._size = 0
        self._target: _Signed | None = None
        self._left: Iterator[TilePath] = iter(())
        self._began = False
        #: Why the folder does not follow the database; empty when it does.
        self.problem = ""
        self.counts = LedgerCounts()
        #: The size of the checkpoint in the folder.
        self.size = 0

    async def publish(self) -> None:
        """Bring the ledger in the folder up to date. Raises what :meth:`advance` does."""
        while not await self.advance():
            pass

    async def advance(self) -> bool:
        """Write a bounded number of tiles, and the checkpoint when there is none left to write; True when it is up to date.

        A ledger that does not continue that in the folder is not published: :attr:`problem` says so.

        Raises:
            StoreError: the database failed.
            ConfigurationError: the folder cannot be written.
        """
        try:
            self._target = self._target or await self._begin()
            if self._target is not None:
                if not await self._write_some():
                    return False
                await self._end(self._target)
        except (StatusUnavailableError, LedgerError) as error:
            self._tell(str(error))
        else:
            self._tell("")
        self._target = None
        return True

    async def _begin(self) -> _Signed | None:
        """The checkpoint to bring the folder to; None when it is there already, or there is none.

        Raises:
            LedgerError: it does not continue that in the folder.
        """
        if not self._began and not self._entries:
            # They were open before, and are no longer for everybody.
            self.counts.removed += await asyncio.to_thread(self._writer.remove_below, _ENTRIES)
        try:
            vkey = await self._source.vkey()
            note = await self._source.checkpoint()
        except StatusUnavailableError:
            # No token has made the key yet, or no checkpoint was signed; a database that is away has raised before.
            await self._store.read(lambda _: None)
            self._began = True
            return None
        target = _Signed(note, _open(note, vkey))
        held = await asyncio.to_thread(self._held, vkey)
        if held is None:
            # Nothing was published before, or somebody has emptied the folder: everything is looked at.
            self._size = self.size = 0
        else:
            self.size = held.checkpoint.size
            if self._began and held.note == note:
                return None
            await self._require_continuation(held.checkpoint, target.checkpoint)
        await asyncio.to_thread(self._writer.put, _VKEY, f"{vkey}\n".encode())
        self._left = files_between(self._size, target.checkpoint.size, entries=self._entries)
        self._began = True
        return target

    def _held(self, vkey: str) -> _Signed | None:
        """The checkpoint in the folder; None when there is none.

        Raises:
            LedgerError: it is another log's, or none that can be read.
        """
        try:
            held = _read(self._writer.folder / _VKEY, _MAX_VKEY).decode().strip()
            note = _read(self._writer.folder / _CHECKPOINT, MAX_NOTE)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise LedgerError(f"The ledger in {self._writer.folder} cannot be read: {error}.") from error
        if held != vkey:
            raise LedgerError(
                f"The ledger in {self._writer.folder} has another verification key than the database.",
                hint="Find out why, before the folder is emptied.",
            )
        return _Signed(note, _open(note, vkey))

    async def _require_continuation(self, held: Checkpoint, found: Checkpoint) -> None:
        """Look whether the tree of ``found`` begins with that of ``held``.

        Raises:
            LedgerError: it does not.
        """
        if found.origin != held.origin:
            raise LedgerError("The ledger in the folder has another origin than the database.")
        if found.size < held.size:
            raise LedgerError(
                f"The checkpoint in the folder has {held.size} entries; the database has {found.size}, and nothing goes "
                "back: was an older database restored?"
            )
        root = await self._store.read(lambda tx: root_of(StoredTiles(tx), held.size)) if held.size else held.root
        if root != held.root or (found.size == held.size and found.root != held.root):
            raise LedgerError(
                f"The ledger in the database does not begin with the {held.size} entries that were published before: it was "
                "rewritten.",
                hint="Keep the folder: it proves that.",
            )

    async def _write_some(self) -> bool:
        """Write up to so many tiles; True when none is left."""
        gate = asyncio.Semaphore(_WRITERS)
        paths = list(islice(self._left, _STEP))
        self.counts.tiles += sum(await asyncio.gather(*(self._write(path, gate) for path in paths)))
        return len(paths) < _STEP

    async def _write(self, path: TilePath, gate: asyncio.Semaphore) -> bool:
        """Write one tile; False when it was there.

        Raises:
            LedgerError: the database does not have it.
        """
        file = ledger_file(path)
        async with gate:
            if path.width == WIDTH and await asyncio.to_thread(self._is_whole, path):
                return False
            content = await self._source.tile(path)
            if content is None:
                raise LedgerError(f"The database has no {path.path()}, which its checkpoint covers.")
            return await asyncio.to_thread(self._writer.put, file, content)

    def _is_whole(self, path: TilePath) -> bool:
        """Whether a full tile is in the folder. Files are whole or not there; a hash tile's size is looked at all the same."""
        try:
            size = (self._writer.folder / ledger_file(path)).stat().st_size
        except OSError:
            return False
        return size == WIDTH * HASH_BYTES if path.level is not None else size >= 2 * WIDTH

    async def _end(self, target: _Signed) -> None:
        """Write the checkpoint, then remove the partial tiles in whose place there are full ones."""
        now = int(self._clock.now())
        self.counts.checkpoints += await asyncio.to_thread(self._writer.renew, _CHECKPOINT, target.note, time=now)
        before, self._size, self.size = self._size, target.checkpoint.size, target.checkpoint.size
        self.counts.removed += await asyncio.to_thread(
            self._remove_partial, files_between(before, self._size, entries=self._entries)
        )

    def _remove_partial(self, paths: Iterable[TilePath]) -> int:
        """C2SP tlog-tiles: partial tiles may go once the full one is there; clients fall back to that."""
        return sum(self._writer.remove_below(f"{ledger_file(path)}.p") for path in paths if path.width == WIDTH)

    def _tell(self, problem: str) -> None:
        if problem and problem != self.problem:
            self._progress(f"ledger not published: {problem}")
        self.problem = problem


class FolderLedger:
    """The ledger in a published folder. What is read is looked at: whoever can write into the folder decides what is served."""

    receipts = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: The last checkpoint and key whose signature was verified.
        self._verified: tuple[bytes, str] = (b"", "")

    async def vkey(self) -> str:
        """The log's verification key.

        Raises:
            StatusUnavailableError: it cannot be read.
        """
        return await asyncio.to_thread(self._vkey)

    async def checkpoint(self) -> bytes:
        """The checkpoint, when it is signed by the key.

        Raises:
            StatusUnavailableError: it cannot be read.
            LedgerError: it is not signed by the key, or no checkpoint.
        """
        return await asyncio.to_thread(self._checkpoint)

    async def tile(self, path: TilePath) -> bytes | None:
        """A tile or an entry bundle; a partial one that is gone is cut from the full one that took its place.

        Raises:
            StatusUnavailableError: it cannot be read.
            LedgerError: the file is not such a tile.
        """
        return await asyncio.to_thread(self._tile, path)

    async def receipt(self, _: str) -> Receipt | None:
        """None: there are none in a folder."""
        return None

    def _vkey(self) -> str:
        text = self._file(_VKEY, _MAX_VKEY)
        if text is None:
            raise StatusUnavailableError("No ledger was published in the folder yet.")
        try:
            return NoteVerifier.parse(text.decode().removesuffix("\n")).vkey()
        except UnicodeDecodeError as error:
            raise LedgerError("The folder's verification key is none.") from error

    def _checkpoint(self) -> bytes:
        vkey = self._vkey()
        note = self._file(_CHECKPOINT, MAX_NOTE)
        if note is None:
            raise StatusUnavailableError("No checkpoint was published in the folder yet.")
        if self._verified != (note, vkey):
            _open(note, vkey)
            self._verified = (note, vkey)
        return note

    def _tile(self, path: TilePath) -> bytes | None:
        content = self._file(ledger_file(path), _MAX_BUNDLE)
        if content is not None:
            return _cut(content, path, path.width)
        if path.width == WIDTH:
            return None
        content = self._file(ledger_file(TilePath(path.level, path.index, WIDTH)), _MAX_BUNDLE)
        return None if content is None else _cut(content, path, WIDTH)

    def _file(self, path: str, most: int) -> bytes | None:
        try:
            return _read(self._folder / path, most)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except ValueError as error:
            raise LedgerError(f"{path} in the folder is too big.") from error
        except OSError as error:
            raise StatusUnavailableError(f"{path} in the folder cannot be read: {error.strerror}.") from error


def _cut(content: bytes, path: TilePath, width: int) -> bytes:
    """The first ``path.width`` hashes or entries of ``content``, which has to have ``width``.

    Raises:
        LedgerError: it has not.
    """
    if path.level is not None:
        if len(content) != width * HASH_BYTES:
            raise LedgerError(f"{path.path()} in the folder has not {width} hashes.")
        return content[: path.width * HASH_BYTES]
    entries = parse_bundle(content)
    if len(entries) != width:
        raise LedgerError(f"{path.path()} in the folder has not {width} entries.")
    return content if path.width == width else entry_bundle(entries[: path.width])


def _open(note: bytes, vkey: str) -> Checkpoint:
    """The checkpoint in ``note``, which has to be signed by the key ``vkey``.

    Raises:
        LedgerError: it is not, or is no checkpoint.
    """
    text, _ = open_note(note, [NoteVerifier.parse(vkey)])
    return Checkpoint.parse(text)


def _read(path: Path, most: int) -> bytes:
    """The content of a file of at most ``most`` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is bigger.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError("too big")
    return content
