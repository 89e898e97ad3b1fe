"""A ledger with entries of no meaning, and a real key that is watched while it signs checkpoints."""

from collections.abc import Callable
from typing import Any, TypeVar

from fakes.service import FakeClock
from privyseal_ca.clock import Clock
from privyseal_ca.hsm.signer import PrivateKey, PublicKey, SigningKey
from privyseal_ca.ledger.checkpoints import Checkpointer, StoredCheckpoint, latest_checkpoint
from privyseal_ca.ledger.cosigning import Cosigner
from privyseal_ca.ledger.log import append, entries, size
from privyseal_ca.ledger.note import Checkpoint, open_note
from privyseal_ca.ledger.tree import TreeHasher, leaf_hash
from privyseal_ca.store.engine import Store
from privyseal_ca.telemetry.metrics import Metrics

T = TypeVar("T")
ORIGIN = "ca.example/ledger"
_UNIT = 2000


class WatchedKey:
    """A key in a token that remembers what it signed. ``before`` and ``after`` run around each use, and may raise."""

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self.signed: list[Checkpoint] = []
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    @property
    def uri(self) -> str:
        return self._key.uri

    @property
    def public_key(self) -> PublicKey:
        return self._key.public_key

    @property
    def available(self) -> bool:
        return self._key.available

    async def run(self, work: Callable[[PrivateKey], T]) -> T:
        self.before()
        # What the work is going to sign is the argument that it carries.
        bound: Any = work
        self.signed.append(Checkpoint.parse(bound.args[0].decode()))
        result = await self._key.run(work)
        self.after()
        return result


def checkpointer(
    store: Store,
    key: SigningKey,
    *,
    origin: str = ORIGIN,
    clock: Clock | None = None,
    metrics: Metrics | None = None,
    kept: Checkpoint | None = None,
    cosigner: Cosigner | None = None,
) -> Checkpointer:
    """One with an origin, a clock and metrics of the tests."""
    return Checkpointer(
        store=store,
        key=key,
        origin=origin,
        clock=clock or FakeClock(),
        metrics=metrics or Metrics(),
        kept=kept,
        cosigner=cosigner,
    )


async def grow(store: Store, count: int, *, salt: str = "") -> None:
    """Append ``count`` entries. Those of the same ``salt`` are the same at the same index."""

    def unit(number: int) -> Callable[[Any], None]:
        def run(transaction: Any) -> None:
            first = size(transaction)
            for index in range(first, first + number):
                append(transaction, f"entry {index} {salt}".encode())

        return run

    while count:
        await store.write(unit(min(count, _UNIT)))
        count -= min(count, _UNIT)


async def roots(store: Store) -> list[bytes]:
    """The root at every size, from the entries alone."""
    tree = TreeHasher()
    found = [tree.root()]
    while page := await store.read(lambda tx: list(entries(tx, first=tree.size, count=_UNIT))):
        for stored in page:
            tree.append(leaf_hash(stored.entry))
            found.append(tree.root())
    return found


async def published(store: Store, signer: Checkpointer) -> Checkpoint:
    """The newest checkpoint, checked against its own row and against the entries."""
    row = await store.read(latest_checkpoint)
    assert isinstance(row, StoredCheckpoint)
    text, signed = open_note(row.note, [signer.verifier])
    assert signed == [signer.verifier]
    checkpoint = Checkpoint.parse(text)
    assert (checkpoint.origin, checkpoint.size, checkpoint.root) == (ORIGIN, row.size, row.root)
    assert checkpoint.root == (await roots(store))[checkpoint.size]
    return checkpoint
