"""Reading a backup from its beginning to its end, and believing nothing that it says before all of it is compared.

Whoever takes the rows must undo what was done with them when this raises, which it may do at the very end.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO, Final, NamedTuple, NoReturn, Protocol

from privyseal_ca.errors import BackupError
from privyseal_ca.ledger.note import NoteVerifier
from privyseal_ca.recovery.archive import Identity, Member, decrypted
from privyseal_ca.recovery.contents import (
    FILES,
    HEAD,
    MANIFEST,
    MOST_FILES,
    MOST_IN_FILES,
    TABLES,
    FilePart,
    Head,
    Manifest,
    TablePart,
    file_path,
    parse_head,
    parse_manifest,
    table_part,
)
from privyseal_ca.recovery.tables import LedgerCheck, decode_rows, read_columns
from privyseal_ca.store.dumping import DERIVED, Table, require_known_revision, schema_of
from privyseal_ca.store.statement import Row

_WRONG: Final = "The backup is damaged, or was not made by this program. Use another one. Nothing was restored from it."
_TOLD: Final = 100_000

Progress = Callable[[str], None]


class Expected(NamedTuple):
    """What is known of the backup from elsewhere; None for what is not known."""

    #: The key that signs the ledger's checkpoints.
    vkey: str | None = None
    #: The SHA-256 of the manifest in hex.
    manifest_sha256: str | None = None


class Unpacked(NamedTuple):
    """A backup that is what it should be."""

    manifest: Manifest
    manifest_sha256: str


class Taker(Protocol):
    """Where the contents go."""

    def begin(self, head: Head, files: Mapping[str, bytes]) -> Mapping[str, Table]:
        """Take the files, by their path below the home; the tables that rows may be for."""
        ...

    def rows(self, table: Table, rows: Sequence[Row]) -> None:
        """Take rows, with values in the order of the columns of ``table``."""
        ...


def unpack(
    source: BinaryIO, identities: Sequence[Identity], taker: Taker, *, expected: Expected, progress: Progress
) -> Unpacked:
    """Read the backup in ``source`` and give its contents to ``taker``.

    Raises:
        BackupError: it cannot be decrypted, is damaged, cut, put together otherwise, or not the one that is expected.
        Exception: what ``taker`` raises.
    """
    with decrypted(source, identities) as members:
        return _Reading(members, taker, expected, progress).run()


class _Reading:
    def __init__(self, members: Iterator[Member], taker: Taker, expected: Expected, progress: Progress) -> None:
        self._members = members
        self._taker = taker
        self._expected = expected
        self._progress = progress
        self._tables: Mapping[str, Table] = {}
        self._files: list[FilePart] = []
        self._parts: list[TablePart] = []
        self._rows = 0

    def run(self) -> Unpacked:
        head = parse_head(self._named(self._next(), HEAD).content)
        self._expect(head)
        ledger = LedgerCheck(head, hint=_WRONG)
        member = self._read_files(head)
        while member.name.startswith(TABLES):
            member = self._read_table(member, ledger)
        manifest = parse_manifest(self._named(member, MANIFEST).content)
        digest = hashlib.sha256(member.content).hexdigest()
        ledger.finish()
        self._compare(manifest, head, ledger)
        if self._expected.manifest_sha256 not in {None, digest}:
            raise BackupError(
                f"The backup's manifest has the SHA-256 {digest}, which is not the one that was expected.",
                hint="It is another backup than the one that is recorded, or somebody exchanged it. Nothing was restored.",
            )
        # Only now it is known that the encryption holds to the end.
        for extra in self._members:
            self._refuse(f"{extra.name!r} stands behind its manifest")
        return Unpacked(manifest, digest)

    def _next(self) -> Member:
        member = next(self._members, None)
        return member if member is not None else self._refuse("it ends too early")

    def _named(self, member: Member, name: str) -> Member:
        return member if member.name == name else self._refuse(f"{member.name!r} stands where {name} should")

    def _expect(self, head: Head) -> None:
        vkey = self._expected.vkey
        if vkey is None:
            return
        wanted = NoteVerifier.parse(vkey).vkey()
        if head.vkey is None or not hmac.compare_digest(head.vkey, wanted):
            raise BackupError(
                "The backup is not of the ledger whose key was given.",
                hint="Look whether it is the right backup, and the right key. Nothing was restored.",
            )

    def _read_files(self, head: Head) -> Member:
        """Hand the files on; the first member that is none."""
        files: dict[str, bytes] = {}
        total = 0
        while (member := self._next()).name.startswith(FILES):
            path = file_path(member.name)
            total += len(member.content)
            if path is None or path in files:
                self._refuse(f"it has a file {member.name!r}")
            if len(files) >= MOST_FILES or total > MOST_IN_FILES:
                self._refuse("it has more files than a home")
            files[path] = member.content
            self._files.append(
                FilePart(name=path, size=len(member.content), sha256=hashlib.sha256(member.content).hexdigest())
            )
        if any(path.startswith("tokens/") for path in files) != head.tokens:
            self._refuse("its head does not say whether it has tokens")
        self._tables = self._taker.begin(head, files)
        return member

    def _read_table(self, member: Member, ledger: LedgerCheck) -> Member:
        """Hand the rows of one table on; the first member that is not of it."""
        name, number, rows = "", 0, 0
        table: Table | None = None
        digest = hashlib.sha256()
        while (part := table_part(member.name)) is not None and (not name or part[0] == name):
            name, number = part[0], number + 1
            if name not in self._tables or part[1] != number or any(each.name == name for each in self._parts):
                self._refuse(f"{member.name!r} is not in its place")
            lines = member.content
            if table is None:
                table, lines = read_columns(self._tables[name], lines)
            found = decode_rows(table, lines)
            ledger.see(table, found)
            self._taker.rows(table, found)
            digest.update(member.content)
            rows += len(found)
            self._count(len(found))
            member = self._next()
        if not name:
            self._refuse(f"it has a member {member.name!r}")
        self._parts.append(TablePart(name=name, rows=rows, parts=number, sha256=digest.hexdigest()))
        return member

    def _count(self, rows: int) -> None:
        before, self._rows = self._rows, self._rows + rows
        if before // _TOLD != self._rows // _TOLD:
            self._progress(f"{self._rows} rows")

    def _compare(self, manifest: Manifest, head: Head, ledger: LedgerCheck) -> None:
        if manifest.head() != head:
            self._refuse("its manifest contradicts its head")
        if list(manifest.files) != self._files or list(manifest.tables) != self._parts:
            self._refuse("its files or tables are not those of its manifest")
        if (manifest.size, manifest.root) != (ledger.size, ledger.root.hex()):
            self._refuse("its ledger is not that of its manifest")
        missing = sorted(self._tables.keys() - {part.name for part in self._parts} - DERIVED)
        if missing:
            self._refuse(f"it lacks the table {missing[0]}")

    def _refuse(self, what: str) -> NoReturn:
        raise BackupError(f"The backup is not what it should be: {what}.", hint=_WRONG)


class Looking:
    """Takes nothing: for a backup that is only verified."""

    def begin(self, head: Head, files: Mapping[str, bytes]) -> Mapping[str, Table]:
        """The tables of the schema that the backup is of."""
        del files
        require_known_revision(head.revision)
        return schema_of(head.revision)

    def rows(self, table: Table, rows: Sequence[Row]) -> None:
        """Let them go."""
