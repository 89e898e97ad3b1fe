"""What is served of the ledger, as those see it who serve it: from the database or from a folder of files (promise P6)."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from privyseal_ca.errors import StatusUnavailableError, StoreError
from privyseal_ca.ledger.ca_entries import find_ca_entry
from privyseal_ca.ledger.checkpoints import VKEY_FACT, latest_checkpoint, receipt_for, tile_data
from privyseal_ca.ledger.proofs import Receipt
from privyseal_ca.ledger.tiles import TilePath
from privyseal_ca.store.certificates import find_certificate
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.statement import Transaction

T = TypeVar("T")


class LedgerSource(Protocol):
    """Where checkpoints, tiles and receipts come from.

    Every method raises:
        StatusUnavailableError: what is asked for cannot be read now, or is not there yet.
        LedgerError: what is kept is not what it must be.
    """

    @property
    def receipts(self) -> bool:
        """Whether there are receipts at all: a folder of files has none, and whoever wants one makes it from tiles."""
        ...

    async def vkey(self) -> str:
        """The log's verification key, ``name+hash+key`` (C2SP signed-note)."""
        ...

    async def checkpoint(self) -> bytes:
        """The newest checkpoint that was published, as a signed note (C2SP tlog-checkpoint)."""
        ...

    async def tile(self, path: TilePath) -> bytes | None:
        """A tile or an entry bundle (C2SP tlog-tiles), full or partial; None when no published checkpoint reaches it."""
        ...

    async def receipt(self, serial: str) -> Receipt | None:
        """The receipt of the certificate with ``serial`` (32 lower-case hex digits); None when there is no such certificate.

        Raises:
            StatusUnavailableError: no checkpoint covers its entry yet: there will be one in a moment.
        """
        ...


class StoredLedger:
    """The ledger in ``store``, which may be read-only: nothing here writes, and no token is needed."""

    receipts = True

    def __init__(self, store: Store) -> None:
        self._store = store

    async def vkey(self) -> str:
        """The log's verification key."""
        vkey = await self._read(lambda tx: find_fact(tx, VKEY_FACT))
        if vkey is None:
            raise StatusUnavailableError(
                "The ledger has no checkpoint yet.", hint="The service signs the first one when it starts."
            )
        return vkey

    async def checkpoint(self) -> bytes:
        """The newest checkpoint."""
        found = await self._read(latest_checkpoint)
        if found is None:
            raise StatusUnavailableError(
                "The ledger has no checkpoint yet.", hint="The service signs the first one when it starts."
            )
        return found.note

    async def tile(self, path: TilePath) -> bytes | None:
        """A tile or an entry bundle."""
        return await self._read(lambda tx: tile_data(tx, path))

    async def receipt(self, serial: str) -> Receipt | None:
        """The receipt of a certificate."""

        def unit(transaction: Transaction) -> tuple[Receipt | None, bool]:
            found = receipt_for(transaction, serial)
            known = find_certificate(transaction, serial) or find_ca_entry(transaction, serial)
            return found, known is not None

        receipt, known = await self._read(unit)
        if receipt is None and known:
            raise StatusUnavailableError(
                "No checkpoint covers the certificate's entry yet.", hint="Try again in a moment."
            )
        return receipt

    async def _read(self, unit: Callable[[Transaction], T]) -> T:
        try:
            return await self._store.read(unit)
        except StoreError as error:
            raise StatusUnavailableError("The ledger cannot be read from the database.", hint=error.hint) from error
