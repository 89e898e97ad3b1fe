"""Rows as JSON lines, and what they must be: a ledger whose entries have the root that its newest checkpoint says."""

import binascii
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import orjson

from privyseal_ca.errors import BackupError, LedgerError
from privyseal_ca.ledger.checkpoints import ORIGIN_FACT, VKEY_FACT
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, open_note
from privyseal_ca.ledger.tree import TreeHasher, leaf_hash
from privyseal_ca.recovery.archive import Member
from privyseal_ca.recovery.contents import Head, TablePart, table_member
from privyseal_ca.store.dumping import Column, Table
from privyseal_ca.store.statement import Row

#: A member with rows is closed when it has so many bytes.
_PART: Final = 512 << 10
#: What the line with the columns may have, in bytes.
_MOST_COLUMNS: Final = 64 << 10
#: What a row may have, in bytes. The longest are pieces of CRLs. What JSON is made of takes many times its length in memory.
_MOST_ROW: Final = 4 << 20
_DAMAGED: Final = "Find out with `privyseal ledger verify` what is wrong with the database, and copy its files by hand."
_WRONG: Final = "The backup is damaged, or was not made by this program. Nothing was restored from it."
_TYPES: Final[dict[str, type]] = {"text": str, "integer": int, "bytes": bytes}


def columns_line(table: Table) -> bytes:
    """The first line of a table's first member."""
    return orjson.dumps({"columns": [list(column) for column in table.columns]}) + b"\n"


def encode_row(table: Table, row: Row) -> bytes:
    """A row as a line: a list in the order of the columns, bytes as base64.

    Raises:
        BackupError: a value is of another kind than its column.
    """
    values: list[object] = []
    for (name, kind), value in zip(table.columns, row, strict=True):
        if value is not None and type(value) is not _TYPES[kind]:
            raise BackupError(
                f"The table {table.name} has a value in the column {name} that is not of the kind {kind}.",
                hint=_DAMAGED,
            )
        values.append(binascii.b2a_base64(value, newline=False).decode() if isinstance(value, bytes) else value)
    try:
        return orjson.dumps(values) + b"\n"
    except (TypeError, orjson.JSONEncodeError) as error:
        raise BackupError(f"The table {table.name} has a value that is not text: {error}.", hint=_DAMAGED) from error


def read_columns(schema: Table, content: bytes) -> tuple[Table, bytes]:
    """The table as the first line of its first member describes it, and the lines behind that.

    Databases need not have the columns of one schema in the same order; a backup has those of its own.

    Raises:
        BackupError: the columns are not those of ``schema``.
    """
    line, _, rest = content.partition(b"\n")
    try:
        if len(line) > _MOST_COLUMNS:
            raise ValueError("too long")
        table = Table(schema.name, tuple(Column(*column) for column in orjson.loads(line)["columns"]))
        same = sorted(table.columns) == sorted(schema.columns) and columns_line(table) == line + b"\n"
    except (ValueError, TypeError, KeyError):
        same = False
    if not same:
        raise BackupError(f"The backup's table {schema.name} has other columns than its schema.", hint=_WRONG)
    return table, rest


def decode_rows(table: Table, content: bytes) -> list[Row]:
    """The rows in a member of ``table``.

    Raises:
        BackupError: they are none of that table.
    """
    if len(content) > _PART + _MOST_ROW or content.rfind(b"\n", 0, -1) >= _PART:
        raise BackupError(f"The backup's table {table.name} has more rows in one piece than a backup has.", hint=_WRONG)
    lines = content.split(b"\n")
    if lines.pop() != b"":
        raise BackupError(f"The backup's table {table.name} ends within a row.", hint=_WRONG)
    return [_decode_row(table, line) for line in lines]


def _decode_row(table: Table, line: bytes) -> Row:
    try:
        values = orjson.loads(line)
        if type(values) is not list or len(values) != len(table.columns):
            raise ValueError("not as many values as columns")
        return tuple(_decoded(column, value) for column, value in zip(table.columns, values, strict=True))
    except ValueError as error:
        raise BackupError(f"The backup's table {table.name} has a line that is no row of it.", hint=_WRONG) from error


def _decoded(column: Column, value: object) -> object:
    """Raises ValueError when it is of another kind."""
    if value is None:
        return None
    if column.kind == "bytes":
        if type(value) is not str:
            raise ValueError(column.name)
        return binascii.a2b_base64(value.encode("ascii"), strict_mode=True)
    if type(value) is not _TYPES[column.kind]:
        raise ValueError(column.name)
    return value


class TableWriter:
    """Makes members of the rows of one table, and says in the end what they are."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._hash = hashlib.sha256()
        self._rows = 0
        self._parts = 0

    def members(self, pages: Iterable[Sequence[Row]]) -> Iterator[Member]:
        """The members for all ``pages``."""
        pending = bytearray(columns_line(self._table))
        for page in pages:
            for row in page:
                pending += encode_row(self._table, row)
                self._rows += 1
                if len(pending) >= _PART:
                    yield self._member(bytes(pending))
                    pending.clear()
        if pending:
            yield self._member(bytes(pending))

    def _member(self, content: bytes) -> Member:
        if len(content) > _PART + _MOST_ROW:
            raise BackupError(f"The table {self._table.name} has a row that is too long for a backup.", hint=_DAMAGED)
        self._hash.update(content)
        self._parts += 1
        return Member(table_member(self._table.name, self._parts), content)

    def part(self) -> TablePart:
        """What the manifest says of it."""
        return TablePart(name=self._table.name, rows=self._rows, parts=self._parts, sha256=self._hash.hexdigest())


class LedgerCheck:
    """Follows the rows that go into a backup or come out of one, and compares what they say of the ledger.

    Raises:
        BackupError: from each method, when something is wrong; ``hint`` says what to do about it.
    """

    def __init__(self, head: Head, *, hint: str) -> None:
        self._hint = hint
        self._tree = TreeHasher()
        self._facts: dict[str, str] = {ORIGIN_FACT: "", VKEY_FACT: ""}
        self._head_size: int | None = None
        self._log = (head.origin, head.vkey)
        self._checkpoint = self._opened(head)

    @property
    def size(self) -> int:
        """How many entries there were so far."""
        return self._tree.size

    @property
    def root(self) -> bytes:
        """The root over them."""
        return self._tree.root()

    def see(self, table: Table, rows: Sequence[Row]) -> None:
        """Take notice of rows."""
        if table.name not in {"ledger_entry", "ledger_head", "fact"}:
            return
        position = {column.name: number for number, column in enumerate(table.columns)}
        for row in rows:
            if table.name == "ledger_entry":
                self._entry(row[position["idx"]], row[position["leaf_hash"]], row[position["entry"]])
            elif table.name == "ledger_head":
                self._head_size = row[position["size"]]
            elif row[position["name"]] in self._facts:
                self._facts[row[position["name"]]] = row[position["value"]]

    def _entry(self, index: object, leaf: object, entry: object) -> None:
        if index != self._tree.size:
            raise self._wrong(f"the entry {self._tree.size} is missing")
        if not isinstance(entry, bytes) or not isinstance(leaf, bytes) or leaf_hash(entry) != leaf:
            raise self._wrong(f"the entry {index} does not have the hash that is stored with it")
        self._tree.append(leaf)
        checkpoint = self._checkpoint
        if checkpoint is not None and self._tree.size == checkpoint.size and self._tree.root() != checkpoint.root:
            raise self._wrong(f"its first {checkpoint.size} entries do not have the root that was signed")

    def finish(self) -> None:
        """Compare what is left when everything was seen."""
        if self._head_size != self._tree.size:
            raise self._wrong(f"it has {self._tree.size} entries, and its head says {self._head_size}")
        if self._checkpoint is not None and self._tree.size < self._checkpoint.size:
            raise self._wrong(f"it has {self._tree.size} entries, and {self._checkpoint.size} were signed")
        if (self._facts[ORIGIN_FACT] or None, self._facts[VKEY_FACT] or None) != self._log:
            raise self._wrong("its facts name another log than the head of the backup")

    def _opened(self, head: Head) -> Checkpoint | None:
        if head.checkpoint is None:
            return None
        try:
            if head.vkey is None:
                raise LedgerError("nothing says which key has signed it")
            text, _ = open_note(head.checkpoint.encode(), [NoteVerifier.parse(head.vkey)])
            checkpoint = Checkpoint.parse(text)
        except LedgerError as error:
            raise self._wrong(f"its newest checkpoint cannot be verified: {error.message}") from error
        if checkpoint.origin != head.origin:
            raise self._wrong("its newest checkpoint is of another log")
        return checkpoint

    def _wrong(self, what: str) -> BackupError:
        return BackupError(f"The ledger is damaged: {what}.", hint=self._hint)
