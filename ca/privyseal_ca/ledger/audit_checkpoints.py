"""Checking what stands beside the entries: checkpoints, tiles, and a checkpoint that was kept elsewhere (promise P6).

The tree is built a second time, with the tiles at its right edge, so that the roots at the sizes of checkpoints and the
hashes of full tiles come from the entries. Memory grows with the logarithm of the ledger's size.

A service may sign meanwhile. Rows are only ever added above the newest checkpoint, and tiles come before the checkpoint
that needs them, entries before both. So what is there is looked at in the reverse order: the newest checkpoint, then how
many tiles there are, then the ledger's size. The tree here stops at that checkpoint; what has come above it when everything
else has been checked is compared in a second, short reading.
"""

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from sqlalchemy import bindparam, func, select

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.audit_errors import AuditError
from privyseal_ca.ledger.checkpoint_rows import latest_checkpoint, newest_row
from privyseal_ca.ledger.checkpoints import ORIGIN_FACT, VKEY_FACT
from privyseal_ca.ledger.cosignatures import CosignatureVerifier, cosignatures
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, open_note
from privyseal_ca.ledger.tile_store import verified_leaves
from privyseal_ca.ledger.tiles import HEIGHT, WIDTH, hash_tile
from privyseal_ca.ledger.tree import TreeHasher
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import LedgerCheckpoint, LedgerTile

_checkpoint = LedgerCheckpoint.__table__  # type: ignore[attr-defined]
_tile = LedgerTile.__table__  # type: ignore[attr-defined]

_PAGE: Final = 100
_LEAVES: Final = 512

_ROWS = Statement(
    select(_checkpoint.c.size, _checkpoint.c.root, _checkpoint.c.note)
    .where(_checkpoint.c.size > bindparam("after"), _checkpoint.c.size <= bindparam("last"))
    .order_by(_checkpoint.c.size)
    .limit(_PAGE)
)
_SMALLEST = Statement(select(func.min(_checkpoint.c.size)))
_UNSIGNED = Statement(
    select(func.min(_checkpoint.c.size)).where(
        _checkpoint.c.note.is_(None),
        _checkpoint.c.size < select(func.max(_checkpoint.c.size)).scalar_subquery(),
    )
)
_TILE = Statement(
    select(_tile.c.hashes, _tile.c.root).where(_tile.c.level == bindparam("level"), _tile.c.idx == bindparam("idx"))
)
# One statement, so that what it gives is of one moment on every database. No ledger has more levels than are read here.
_LEVELS = Statement(
    select(_tile.c.level, func.count(), func.min(_tile.c.idx), func.max(_tile.c.idx))
    .group_by(_tile.c.level)
    .order_by(_tile.c.level)
    .limit(16)
)


class _Row(NamedTuple):
    """A stored checkpoint."""

    size: int
    root: bytes
    note: bytes | None


class _Log(NamedTuple):
    """Who signs the checkpoints."""

    origin: str
    verifier: NoteVerifier


def opened_since(transaction: Transaction, note: bytes, vkey: str | None) -> Checkpoint:
    """The checkpoint in a note that was kept elsewhere, signed by the key ``vkey``, or by the log's own without one.

    Raises:
        LedgerError: it is malformed, not signed by that key, or of another log; or nothing says what this log is.
    """
    if vkey is None:
        vkey = find_fact(transaction, VKEY_FACT)
    if vkey is None:
        raise LedgerError(
            "This ledger has signed no checkpoint, so that no key is known to verify another one with.",
            hint="Give the key that was kept with the checkpoint: --vkey VKEY|@FILE.",
        )
    text, _ = open_note(note, [NoteVerifier.parse(vkey)])
    checkpoint = Checkpoint.parse(text)
    origin = find_fact(transaction, ORIGIN_FACT)
    if origin != checkpoint.origin:
        raise LedgerError(
            f"The checkpoint that was given is of the log {checkpoint.origin}, and this one "
            + ("has no origin yet." if origin is None else f"is {origin}."),
            hint="Give a checkpoint of this ledger. If it is one, another database was put in the place of this one.",
        )
    return checkpoint


def require_continued(since: Checkpoint, tree: TreeHasher, end: int | None) -> None:
    """The ledger, of ``end`` entries where that is to be compared, begins with what ``since`` says.

    Raises:
        AuditError: it does not.
    """
    if end is not None and end < since.size:
        raise AuditError(f"The ledger has {end} entries, fewer than the {since.size} of the checkpoint that was given.")
    if tree.size == since.size and tree.root() != since.root:
        raise AuditError(
            f"The first {since.size} entries are not those of the checkpoint that was given: their root is now "
            f"{tree.root().hex()}."
        )


class CheckpointAudit:
    """The check of ``ledger_checkpoint`` and ``ledger_tile`` against the entries.

    ``look`` and ``compare_size`` come before the entries, ``append`` with each of them; then ``look`` and ``compare_size``
    once more, and ``finish`` at the end. Cosignatures by ``witnesses`` have to be right; those by others are ignored.
    """

    def __init__(self, witnesses: Sequence[CosignatureVerifier] = ()) -> None:
        self._witnesses = witnesses
        #: How many of each have been found right.
        self.checkpoints = 0
        self.tiles = 0
        self._tree = TreeHasher()
        #: The hashes of the tile that is not full yet, for each level.
        self._edge: list[list[bytes]] = []
        #: The size of the newest checkpoint, and how many tiles each level has: indexes 0 to that.
        self._newest = 0
        self._stored: dict[int, int] = {}
        self._counted: dict[int, int] = {}
        #: The next checkpoints, in the order of size, up to the newest one; and whether there may be more.
        self._rows: deque[_Row] = deque()
        self._more = True

    def look(self, transaction: Transaction) -> None:
        """See what there is. To be called before the ledger's size is read.

        Raises:
            AuditError: there is something that never is.
        """
        signed_before = find_fact(transaction, VKEY_FACT) is not None
        if signed_before and latest_checkpoint(transaction) is None:
            raise AuditError("Checkpoints were signed, and none is kept (ledger_checkpoint).")
        smallest, unsigned = transaction.one(_SMALLEST), transaction.one(_UNSIGNED)
        if smallest is not None and smallest[0] is not None and smallest[0] < 1:
            raise _about(smallest[0], "has a size that none has")
        if unsigned is not None and unsigned[0] is not None:
            raise _about(unsigned[0], "has no note, and is not the newest")
        newest = newest_row(transaction)
        if newest is None and self._newest:
            raise AuditError("The checkpoints vanished while they were checked (ledger_checkpoint).")
        self._newest = newest.size if newest is not None else 0
        self._rows.clear()
        self._more = True
        self._stored.clear()
        for level, count, first, last in transaction.all(_LEVELS):
            # SQLite keeps whatever type somebody puts into a column.
            if not all(isinstance(value, int) and value >= 0 for value in (level, first, last)):
                raise AuditError(
                    f"There is a tile at level {level} with an index from {first} to {last} (ledger_tile)."
                )
            self._stored[level], self._counted[level] = last + 1, count

    def compare_size(self, end: int) -> None:
        """Compare what was seen with the ledger's size ``end``.

        Raises:
            AuditError: a checkpoint or a tile is beyond the ledger, or the newest checkpoint lacks a tile.
        """
        if self._newest > end:
            raise _about(self._newest, f"is beyond the ledger, which has {end} entries")
        at_least, most = self._newest // WIDTH, end // WIDTH
        stored = dict(self._stored)
        level = 0
        while most or stored:
            found = stored.pop(level, 0)
            if found > most:
                raise _about_tile(level, found - 1, "is beyond the ledger")
            if found < at_least:
                raise _about_tile(level, found, "is missing")
            # A tile is stored together with the one below that made it full.
            at_least = most = found // WIDTH
            level += 1
            if not most and stored:
                raise _about_tile(min(stored), stored[min(stored)] - 1, "is beyond the ledger")

    def append(self, transaction: Transaction, index: int, leaf: bytes) -> None:
        """Compare what the entry ``index``, with the hash ``leaf``, completes. Left for ``finish`` when some were before it.

        Raises:
            AuditError: it is not what is stored.
        """
        if index == self._tree.size < self._newest:
            self._grow(transaction, leaf)

    async def finish(self, store: Store, tree: TreeHasher) -> None:
        """Compare what came meanwhile. ``tree`` has been built over all entries that are checked.

        Raises:
            AuditError: something is wrong.
            StoreError: the database failed.
        """
        if max(self._newest, self._stored.get(0, 0) * WIDTH) > self._tree.size:
            while self._tree.size < tree.size:
                await store.read(partial(self._leaves, end=tree.size))
            if self._tree.root() != tree.root():
                raise AuditError("Entries changed while they were checked.")
        for level, count in self._stored.items():
            if self._counted[level] != count:
                raise AuditError(f"Level {level} has {self._counted[level]} tiles in place of {count} (ledger_tile).")

    def _leaves(self, transaction: Transaction, *, end: int) -> None:
        first = self._tree.size
        for leaf in verified_leaves(transaction, first, min(_LEAVES, end - first)):
            self._grow(transaction, leaf)

    def _grow(self, transaction: Transaction, leaf: bytes) -> None:
        self._tree.append(leaf)
        self._fill(transaction, 0, leaf)
        if not self._rows and self._more:
            self._read_rows(transaction)
        if self._rows and self._rows[0].size == self._tree.size:
            self._compare_root(self._rows.popleft())

    # Tiles.

    def _fill(self, transaction: Transaction, level: int, node: bytes) -> None:
        """Add a hash to the tile at the right edge of ``level``."""
        if level == len(self._edge):
            self._edge.append([])
        edge = self._edge[level]
        edge.append(node)
        if len(edge) < WIDTH:
            return
        hashes = b"".join(edge)
        root = hash_tile(hashes)
        index = (self._tree.size >> HEIGHT * (level + 1)) - 1
        if index < self._stored.get(level, 0):
            self._compare_tile(transaction, level, index, hashes, root)
        edge.clear()
        self._fill(transaction, level + 1, root)

    def _compare_tile(self, transaction: Transaction, level: int, index: int, hashes: bytes, root: bytes) -> None:
        row = transaction.one(_TILE, level=level, idx=index)
        if row is None:
            raise _about_tile(level, index, "is missing")
        if row[0] != hashes:
            raise _about_tile(level, index, "does not have the hashes that follow from the entries")
        if row[1] != root:
            raise _about_tile(level, index, "does not have the root that follows from the entries")
        self.tiles += 1

    # Checkpoints.

    def _read_rows(self, transaction: Transaction) -> None:
        """Read the next checkpoints that are not smaller than the tree, and open their notes."""
        rows = [_Row(*row) for row in transaction.all(_ROWS, after=self._tree.size - 1, last=self._newest)]
        self._more = len(rows) == _PAGE
        # Facts and notes are committed together, so that the facts are there when they are read after the rows.
        signed = [(row, row.note) for row in rows if row.note is not None]
        if signed:
            log = _log(transaction)
            for row, note in signed:
                _compare_note(row, note, log, self._witnesses)
        self._rows.extend(rows)

    def _compare_root(self, row: _Row) -> None:
        if row.root != self._tree.root():
            raise _about(row.size, f"has a root that is not that of the first {row.size} entries")
        self.checkpoints += 1


def _log(transaction: Transaction) -> _Log:
    origin, vkey = find_fact(transaction, ORIGIN_FACT), find_fact(transaction, VKEY_FACT)
    if origin is None or vkey is None:
        raise AuditError(f"Checkpoints were signed, and the fact {ORIGIN_FACT} or {VKEY_FACT} is missing.")
    try:
        return _Log(origin, NoteVerifier.parse(vkey))
    except LedgerError as error:
        raise AuditError(f"The fact {VKEY_FACT} is malformed: {error.message}") from error


def _compare_note(row: _Row, note: object, log: _Log, witnesses: Sequence[CosignatureVerifier]) -> None:
    """The note of a row says what the row does, is signed by the log, and by whom it says of these witnesses."""
    if not isinstance(note, bytes):  # SQLite keeps whatever type somebody puts into a column
        raise _about(row.size, "has a note that is malformed")
    try:
        text, _ = open_note(note, [log.verifier])
        found = Checkpoint.parse(text)
        cosignatures(note, witnesses)
    except LedgerError as error:
        raise _about(row.size, f"has a note that does not open under the log's key: {error.message}") from error
    if found.origin != log.origin:
        raise _about(row.size, f"has a note of the log {found.origin}, and this one is {log.origin}")
    if found.size != row.size:
        raise _about(row.size, f"has the note of the size {found.size}")
    if found.root != row.root:
        raise _about(row.size, "has a note with another root")


def _about(size: int, what: str) -> AuditError:
    """Something about a stored checkpoint."""
    return AuditError(f"The checkpoint of size {size} (ledger_checkpoint) {what.removesuffix('.')}.")


def _about_tile(level: int, index: int, what: str) -> AuditError:
    """Something about a stored tile."""
    return AuditError(f"The tile {index} at level {level} (ledger_tile) {what}.")
