"""Where the entries of CA certificates are, so that there are receipts for them too.

They have no row of their own by serial: a fact for each says the index of its ``issuer.certified`` entry. Who reads an entry
by it checks that the entry is what it should be.
"""

import asyncio
from functools import partial
from typing import Any, Final

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.entries import Kind, decode_entry
from privyseal_ca.ledger.log import StoredEntry, entries
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact, set_fact
from privyseal_ca.store.statement import Transaction

_INDEXED: Final = "ca-entries-indexed"
_PAGE: Final = 500
_NEEDLE: Final = f'"kind":"{Kind.ISSUER_CERTIFIED}"'.encode()


def _fact(serial: str) -> str:
    return f"ca-entry:{serial}"


def note_ca_entry(transaction: Transaction, serial: str, index: int) -> None:
    """Remember that the ``issuer.certified`` entry for ``serial`` (32 lower-case hex digits) is at ``index``."""
    set_fact(transaction, _fact(serial), str(index))


def find_ca_entry(transaction: Transaction, serial: str) -> StoredEntry | None:
    """The ``issuer.certified`` entry for ``serial``; None when no CA here has a certificate with it.

    Raises:
        LedgerError: another entry stands where it should be.
    """
    index = find_fact(transaction, _fact(serial))
    if index is None:
        return None
    stored = next(entries(transaction, first=int(index), count=1), None)
    if stored is None or certified_payload(stored.entry).get("serial") != serial:
        raise LedgerError(
            f"The entry of the CA certificate {serial} is not where it should be.",
            hint="Run `privyseal ledger verify`.",
        )
    return stored


def certified_payload(entry: bytes) -> dict[str, Any]:
    """The payload of ``entry`` when it is an ``issuer.certified`` one, else an empty one.

    Raises:
        LedgerError: it is no entry.
    """
    members = decode_entry(entry)
    payload = members["payload"]
    return payload if members["kind"] == Kind.ISSUER_CERTIFIED and isinstance(payload, dict) else {}


async def index_ca_entries(store: Store) -> None:
    """Find the entries of CA certificates that were made before their places were remembered. Reads the ledger once.

    Raises:
        StoreError: the database failed. The next call begins anew.
    """
    if await store.read(lambda tx: find_fact(tx, _INDEXED)) is not None:
        return
    first = 0
    found: list[tuple[str, int]] = []
    while page := await store.read(partial(_page, first=first)):
        # An entry of another kind may have that within its payload.
        found += [
            (serial, each.index)
            for each in page
            if _NEEDLE in each.entry and isinstance(serial := certified_payload(each.entry).get("serial"), str)
        ]
        first = page[-1].index + 1
        await asyncio.sleep(0)

    def unit(transaction: Transaction) -> None:
        for serial, index in found:
            note_ca_entry(transaction, serial, index)
        set_fact(transaction, _INDEXED, "1")

    await store.write(unit)


def _page(transaction: Transaction, *, first: int) -> list[StoredEntry]:
    return list(entries(transaction, first=first, count=_PAGE))
