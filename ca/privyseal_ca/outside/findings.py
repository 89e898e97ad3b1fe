"""What a look from outside finds wrong. Each finding has a code, whose meaning ``docs/auditing.md`` gives."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from privyseal_ca.errors import LedgerError


class Code(StrEnum):
    """The kinds of findings."""

    SIGNATURE = "signature"
    ORIGIN = "origin"
    ROLLBACK = "rollback"
    FORK = "fork"
    SPLIT_VIEW = "split-view"
    TILE = "tile"
    ENTRY = "entry"
    INTENT = "intent"
    CRL = "crl"
    CERTIFICATE = "certificate"
    WITNESS = "witness"
    STALE = "stale"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    code: Code
    message: str
    #: The index of the first entry that it is about, where it is about entries.
    index: int | None = None
    #: The signed notes that show it to anybody who has the log's key.
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As it stands in JSON."""
        found: dict[str, Any] = {"code": str(self.code), "message": self.message, "index": self.index}
        return {**found, "notes": list(self.notes)} if self.notes else found


class FindingError(LedgerError):
    """Something was found that makes it useless to go on with this part of the check."""

    def __init__(self, code: Code, message: str, *, index: int | None = None, notes: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint="docs/auditing.md says what each finding means and what to do.")
        self.finding = Finding(code, message, index, notes)


def wrong_entry(index: int, what: str) -> FindingError:
    """Something about the entry ``index``."""
    return FindingError(Code.ENTRY, f"Entry {index} {what}.", index=index)
