"""What the ledger needs of its witnesses, whoever asks them: cosignatures, and what they have seen of it (promises P6, P8)."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from privyseal_ca.clock import Clock
from privyseal_ca.errors import LedgerBehindError, SplitViewError
from privyseal_ca.ledger.log import size
from privyseal_ca.ledger.note import Checkpoint
from privyseal_ca.ledger.proofs import consistency_proof
from privyseal_ca.ledger.tile_store import StoredTiles
from privyseal_ca.ledger.tiles import root_of
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact, set_fact
from privyseal_ca.store.statement import Transaction

#: The fact that says since when the quorum of witnesses is missing, in whole seconds since the epoch; empty when it is not.
QUORUM_FACT: Final = "quorum-missing-since"
#: How many seconds it may be missing before that is remembered beyond this process.
_BRIEFLY: Final = 2.0

#: Gives the consistency proof from an earlier size to the checkpoint that is to be cosigned.
Proof = Callable[[int], Awaitable[Sequence[bytes]]]


@dataclass(frozen=True, slots=True)
class Seen:
    """A checkpoint that the log's own key has signed, and where it was seen."""

    #: The witness's name.
    witness: str
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Cosigned:
    """What came of asking for cosignatures."""

    #: Verified signature lines, each with its end, that the note did not have, or had of an earlier time.
    lines: tuple[str, ...] = ()
    #: What witnesses show instead of cosigning. Not compared with the ledger yet.
    seen: tuple[Seen, ...] = ()


class Cosigner(Protocol):
    """Asks witnesses. No method raises for what they do, and each ends within a few seconds, or the time that was set for it."""

    @property
    def standing(self) -> str:
        """Why issuance has to wait for cosignatures; empty when it has not to, as when no quorum is required."""
        ...

    @property
    def missing(self) -> float:
        """For how many seconds fewer than the quorum have cosigned what the ledger has; 0 while they are enough."""
        ...

    def resume(self, missing: float) -> None:
        """An earlier process has found the quorum missing for so many seconds. To be called before anybody is asked."""
        ...

    def lost(self) -> None:
        """There are entries that no checkpoint could be signed of, so that nobody can cosign them."""
        ...

    async def seen(self) -> Sequence[Seen]:
        """The newest checkpoint that each witness shows, of those that answer in time."""
        ...

    async def cosign(self, note: bytes, checkpoint: Checkpoint, proof: Proof, *, wait: bool = True) -> Cosigned:
        """Ask the witnesses that ``note``, which says ``checkpoint``, has no cosignature of, or an old one.

        With ``wait`` those are waited for that answered in time before. The others, and everybody without it, are asked in
        the background: what they say is in the result of a later call for the same note.
        """
        ...

    async def close(self) -> None:
        """Ask nobody any more, and let go of what was opened for it. May be called twice."""
        ...


class KeptQuorum:
    """Since when the quorum of ``cosigner`` is missing, kept in the database: a restart must not be new patience with it."""

    def __init__(self, store: Store, cosigner: Cosigner, clock: Clock) -> None:
        self._store = store
        self._cosigner = cosigner
        self._clock = clock
        #: Whether the database says that it is missing; None until it was read.
        self._missing: bool | None = None

    async def resume(self) -> None:
        """Go on from what an earlier process has found. Only the first call does anything. Raises StoreError."""
        if self._missing is None:
            since = await self._store.read(partial(find_fact, name=QUORUM_FACT))
            self._missing = bool(since)
            if since:
                self._cosigner.resume(max(0.0, self._clock.now() - int(since)))

    async def keep(self) -> None:
        """Remember that it is missing, or not any more, when that is not a matter of a moment. Raises StoreError."""
        seconds = self._cosigner.missing
        if (not self._missing and seconds > _BRIEFLY) or (self._missing and not seconds):
            since = str(int(self._clock.now() - seconds)) if seconds else ""
            await self._store.write(partial(set_fact, name=QUORUM_FACT, value=since))
            self._missing = bool(since)


def consistency(transaction: Transaction, old: int, new: int) -> list[bytes]:
    """The proof that the first ``old`` of ``new`` entries are still what they were; see :func:`consistency_proof`."""
    return consistency_proof(StoredTiles(transaction), old, new)


def require_seen(transaction: Transaction, seen: Sequence[Seen]) -> None:
    """The ledger has grown from every checkpoint in ``seen``.

    Raises:
        LedgerBehindError: it has fewer entries than one of them.
        SplitViewError: its entries are others than one of them says. The log's key has signed both.
    """
    end = size(transaction) if seen else 0
    for item in seen:
        known = item.checkpoint
        if end < known.size:
            raise LedgerBehindError(
                f"The ledger has {end} entries, and the witness {item.witness} has a checkpoint of {known.size} that this "
                "ledger's key has signed.",
                hint="The database was put back to an earlier state. Restore a newer one; nothing is signed until then.",
            )
        if root_of(StoredTiles(transaction), known.size) != known.root:
            raise SplitViewError(
                f"The first {known.size} of the ledger's {end} entries are not those of the checkpoint of {known.size} that "
                f"the witness {item.witness} has and this ledger's key has signed: there are two ledgers.",
                hint="Find out where else the key and a copy of the database are in use. Nothing is signed until the database "
                "is the one that was witnessed.",
            )
