"""The inside of a backup: which members there are, in which order, and what the manifest at the end says of them.

1. ``head.json``: what has to be known before the rest: schema, ledger key and newest checkpoint.
2. ``files/...``: settings, profiles, roots, and tokens where they were wanted.
3. ``tables/NAME/00000001.jsonl`` and so on: the rows of each table as JSON lines, behind a line that names the columns.
4. ``manifest.json``: the head again, size and root of the ledger, and of each file and table length and SHA-256.
"""

import re
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from privyseal_ca.errors import BackupError

FORMAT: Final = "privyseal-backup/1"
HEAD: Final = "head.json"
MANIFEST: Final = "manifest.json"
FILES: Final = "files/"
TABLES: Final = "tables/"

#: How many files there may be besides tables, and how many bytes all of them together.
MOST_FILES: Final = 20_000
MOST_IN_FILES: Final = 64 << 20
_MOST_TABLES: Final = 256

# No component begins with a dot, so that none is one of those that lead elsewhere.
_COMPONENT: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,79}"
_FILE: Final = re.compile(
    rf"{FILES}(?P<path>privyseal\.toml|roots\.pem|softhsm2\.conf|profiles/{_COMPONENT}\.toml|tokens/{_COMPONENT}(?:/{_COMPONENT})?)"
)
_TABLE: Final = re.compile(rf"{TABLES}(?P<table>[a-z][a-z0-9_]{{0,62}})/(?P<number>[0-9]{{8}})\.jsonl")

_Hash = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0, lt=1 << 53)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_D = TypeVar("_D", bound=_Document)


class Head(_Document):
    """What has to be known before the rest."""

    format: Literal["privyseal-backup/1"]
    #: When the snapshot was taken, RFC 3339.
    made: str = Field(max_length=40)
    #: The version of the program.
    program: str = Field(max_length=80)
    #: The revision of the database's schema.
    revision: str = Field(max_length=40)
    database: Literal["sqlite", "postgresql"]
    #: Whether the embedded tokens are in it.
    tokens: bool
    #: The log: None before its first checkpoint. The checkpoint is a signed note.
    origin: str | None = Field(max_length=1024)
    vkey: str | None = Field(max_length=8192)
    checkpoint: str | None = Field(max_length=65536)


class FilePart(_Document):
    """A file: its path below the home."""

    name: str = Field(max_length=256)
    size: _Count
    sha256: _Hash


class TablePart(_Document):
    """A table: how many rows it has in how many members, and the hash of their contents joined."""

    name: str = Field(max_length=64)
    rows: _Count
    parts: _Count
    sha256: _Hash


class Manifest(Head):
    """What the archive holds."""

    #: Of the ledger.
    size: _Count
    root: _Hash
    files: tuple[FilePart, ...] = Field(max_length=MOST_FILES, strict=False)
    tables: tuple[TablePart, ...] = Field(max_length=_MOST_TABLES, strict=False)

    def head(self) -> Head:
        """What it says of the head."""
        return Head(**{name: getattr(self, name) for name in Head.model_fields})


def file_path(member: str) -> str | None:
    """The path below the home of a member that is a file; None of another member, or a path that no backup holds."""
    match = _FILE.fullmatch(member)
    return match["path"] if match else None


def file_member(path: str) -> str:
    """The member for a file at ``path`` below the home.

    Raises:
        BackupError: its name cannot be in a backup.
    """
    name = FILES + path
    if file_path(name) is None or len(name) > 99:
        raise BackupError(
            f"A file with the name {path!r} cannot be in a backup.",
            hint="Rename it with letters, digits, dots, dashes and underscores only.",
        )
    return name


def table_part(member: str) -> tuple[str, int] | None:
    """Table and number of a member with rows; None of another member."""
    match = _TABLE.fullmatch(member)
    return (match["table"], int(match["number"])) if match else None


def table_member(table: str, number: int) -> str:
    """The member for the ``number``-th piece of a table, from 1 on."""
    return f"{TABLES}{table}/{number:08d}.jsonl"


def parse_head(content: bytes) -> Head:
    """The head.

    Raises:
        BackupError: it is none, or of a later format.
    """
    if b'"privyseal-backup/' in content[:4096] and f'"{FORMAT}"'.encode() not in content:
        raise BackupError(
            "The backup has a format that this program does not know.",
            hint="A newer version made it: restore with that one, or a later one.",
        )
    return _parsed(Head, content, HEAD)


def parse_manifest(content: bytes) -> Manifest:
    """The manifest.

    Raises:
        BackupError: it is none.
    """
    return _parsed(Manifest, content, MANIFEST)


def _parsed(document: type[_D], content: bytes, name: str) -> _D:
    try:
        return document.model_validate_json(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False, include_url=False)[0]["loc"])
        raise BackupError(
            f"The member {name} of the backup is not what it should be{f' ({where})' if where else ''}.",
            hint="The backup was not made by this program, or is damaged. Nothing was restored from it.",
        ) from None
