"""The ceremony's transcript: entries in the ledger, each written once however often the ceremony is run."""

from collections.abc import Callable
from typing import Final

from privyseal_ca.clock import Clock
from privyseal_ca.ledger.entries import Kind, Payload, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact, set_fact
from privyseal_ca.store.statement import Transaction

#: The fact that tells how far the ceremony of a home is: ``started`` or ``finished``.
CEREMONY_FACT: Final = "ceremony"
FINISHED: Final = "finished"

Change = Callable[[Transaction], None]


def _no_change(_: Transaction) -> None:
    pass


class Transcript:
    """Writes entries in the name of one operator."""

    def __init__(self, store: Store, *, clock: Clock, actor: str, correlation: str) -> None:
        self.store = store
        self.clock = clock
        self.actor = actor
        self.correlation = correlation

    def append(self, transaction: Transaction, kind: Kind, payload: Payload) -> int:
        """Add an entry inside ``transaction``; its index."""
        entry = encode_entry(
            kind, time=self.clock.now(), actor=self.actor, correlation=self.correlation, payload=payload
        )
        return append(transaction, entry)

    async def record(self, kind: Kind, payload: Payload, change: Change = _no_change) -> None:
        """Make ``change`` and add its entry in one transaction (promise P3)."""

        def unit(transaction: Transaction) -> None:
            change(transaction)
            self.append(transaction, kind, payload)

        await self.store.write(unit)

    async def record_once(self, step: str, kind: Kind, payload: Payload, change: Change = _no_change) -> bool:
        """As :meth:`record`, unless ``step`` was recorded before; whether it was done now."""

        def unit(transaction: Transaction) -> bool:
            if find_fact(transaction, _step_fact(step)) is not None:
                return False
            change(transaction)
            set_fact(transaction, _step_fact(step), str(self.append(transaction, kind, payload)))
            return True

        return await self.store.write(unit)

    async def has(self, step: str) -> bool:
        """Whether ``step`` was recorded."""
        return await self.store.read(lambda tx: find_fact(tx, _step_fact(step)) is not None)


def _step_fact(step: str) -> str:
    return f"ceremony:{step}"
