"""Where the entries come from that a restored database lacks: a published ledger, or the file of an export."""

import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from privyseal_ca.errors import BackupError, LedgerError
from privyseal_ca.ledger.entries import Kind, decode_entry
from privyseal_ca.ledger.served import LedgerSource
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.recovery.catch_up import entries_of_file, entries_of_ledger, leaves_of_ledger

#: Entries beyond the newest checkpoint that are looked at, and serials that are named.
_UNPROVED: Final = 100_000
_NAMED: Final = 100
_SERIAL: Final = re.compile("[0-9a-f]{32}")
_REVOKES: Final = frozenset({Kind.REVOKED, Kind.ISSUER_REVOKED, Kind.REVOCATION_RESTORED})


@dataclass(frozen=True, slots=True)
class Source:
    """Where missing entries come from."""

    place: str
    ledger: LedgerSource | None

    def entries(self, first: int, end: int) -> AsyncIterator[bytes]:
        """Those from index ``first`` to before ``end``; its errors are those of the source."""
        if self.ledger is not None:
            return entries_of_ledger(self.ledger, first, end)
        return entries_of_file(Path(self.place), first, end)

    async def unproved(self, end: int) -> tuple[int, list[str]]:
        """How many entries an export has from index ``end`` on, which no checkpoint covers, and the serials, at most 100, that
        they revoke. Of the first 100,000."""
        found, serials = 0, list[str]()
        if self.ledger is None:
            # It ends where it ends; only what is needed has to be there.
            with suppress(BackupError, LedgerError):
                async for entry in entries_of_file(Path(self.place), end, end + _UNPROVED):
                    members, found = decode_entry(entry), found + 1
                    payload = members["payload"] if members["kind"] in _REVOKES else None
                    serial = payload.get("serial") if isinstance(payload, dict) else None
                    # Nobody has signed it, and it is going to be shown.
                    if isinstance(serial, str) and _SERIAL.fullmatch(serial) and len(serials) < _NAMED:
                        serials.append(serial)
        return found, serials

    async def leaves(self, end: int) -> AsyncIterator[bytes]:
        """The leaf hashes of the first ``end`` entries, as far as it has them."""
        if self.ledger is not None:
            async for leaf in leaves_of_ledger(self.ledger, end):
                yield leaf
        else:
            async for entry in entries_of_file(Path(self.place), 0, end):
                yield leaf_hash(entry)
