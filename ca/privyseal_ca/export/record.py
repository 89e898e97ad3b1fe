"""An entry on its way out."""

from dataclasses import dataclass
from typing import Any, Final

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.entries import decode_entry
from privyseal_ca.ledger.log import StoredEntry
from privyseal_ca.ledger.tree import leaf_hash

_HINT: Final = "Nothing is exported from here on. Run `privyseal ledger verify`."


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
    return Record(stored.index, stored.leaf_hash, stored.entry, members)


def missing(index: int) -> LedgerError:
    """What to raise where the entry with ``index`` is not there."""
    return LedgerError(f"Entry {index} of the ledger is missing.", hint=_HINT)
