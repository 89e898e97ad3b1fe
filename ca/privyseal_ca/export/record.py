"""An entry on its way out."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.entries import decode_entry
from privyseal_ca.ledger.log import StoredEntry
from privyseal_ca.ledger.tree import leaf_hash

_HINT: Final = "Nothing is exported from here on. Run `privyseal ledger verify`."


#: What formats rely on, so that no entry, whoever made it, can put something else into a message or end an export.
_KIND: Final = re.compile(r"[a-z][a-z.-]{0,63}")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")


@dataclass(frozen=True, slots=True)
class Record:
    """An entry that is what the ledger says it is."""

    index: int
    leaf_hash: bytes
    #: Its exact octets, which are what the leaf hash is over.
    entry: bytes
    members: dict[str, Any]


def checked(stored: StoredEntry, index: int) -> Record:
    """The entry that must have ``index``.

    Raises:
        LedgerError: it is missing, is not canonical, or does not have the leaf hash that was stored with it. Such a ledger is
            not handed on.
    """
    if stored.index != index:
        raise missing(index)
    if not isinstance(stored.entry, bytes) or leaf_hash(stored.entry) != stored.leaf_hash:
        raise LedgerError(f"Entry {index} does not have the leaf hash that was stored with it.", hint=_HINT)
    try:
        members = decode_entry(stored.entry)
    except LedgerError as error:
        raise LedgerError(f"Entry {index}: {error.message}", hint=_HINT) from error
    if not _is_well_formed(members):
        raise LedgerError(f"Entry {index} has a member of another form than entries have.", hint=_HINT)
    return Record(stored.index, stored.leaf_hash, stored.entry, members)


def _is_well_formed(members: dict[str, Any]) -> bool:
    texts = [members[name] for name in ("kind", "time", "actor", "correlation")]
    if not all(isinstance(text, str) for text in texts) or type(members["v"]) is not int:
        return False
    kind, time, *_ = texts
    if not _KIND.fullmatch(kind) or not _TIME.fullmatch(time) or not isinstance(members["payload"], dict):
        return False
    try:
        return datetime.fromisoformat(time).year > 0
    except ValueError:
        return False


def missing(index: int) -> LedgerError:
    """What to raise where the entry with ``index`` is not there."""
    return LedgerError(f"Entry {index} of the ledger is missing.", hint=_HINT)
