"""Checkpoints of the ledger: signed by a key of their own in the token, and never two that contradict each other (P6).

A checkpoint comes about in three steps, each of which may be the last before a crash:

1. Tiles that have become full are stored, made from the entries themselves.
2. Under the lock on the ledger's head, the tree is compared with the newest checkpoint: it must be as large, and its root
   at that size the same. Then size and root of the new one are committed, without a note.
3. The token signs exactly that, the signature is verified, and the note is committed. Only then is it there for readers.

Between the token and the commit witnesses are asked for their cosignatures, where there are any. They are waited for a
moment at most; later ones are merged into the note that is published already, whose text and first signature never change.

A row without a note is a promise to sign nothing else: whoever finds one signs the same size and root again. That is safe
although the token may have signed before, for the statement is the same; so an uncertain signature is not the end of it,
as it is with certificates. Between steps 2 and 3 a note exists in this process only, and nothing reads it from there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from privyseal_ca.clock import Clock
from privyseal_ca.errors import LedgerBehindError, LedgerError, SignerError, StoreError
from privyseal_ca.hsm.signer import PrivateKey, SigningKey
from privyseal_ca.ledger.ca_entries import find_ca_entry
from privyseal_ca.ledger.checkpoint_rows import (
    CheckpointRow,
    StoredCheckpoint,
    checkpoint_covering,
    latest_checkpoint,
    newest_row,
    publish,
    replace_note,
    stage,
)
from privyseal_ca.ledger.cosignatures import merged
from privyseal_ca.ledger.cosigning import Cosigner, KeptQuorum, Seen, consistency, require_seen
from privyseal_ca.ledger.log import entries, lock_head, size
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, note_with
from privyseal_ca.ledger.proofs import Receipt, inclusion_proof, verify_inclusion
from privyseal_ca.ledger.tile_store import (
    StoredTiles,
    add_tiles,
    count_tiles,
    full_tile,
    tile_contents,
    verified_leaves,
)
from privyseal_ca.ledger.tiles import WIDTH, TilePath, root_of
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.store.certificates import find_certificate
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact, set_fact
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

__all__ = [
    "Checkpointer",
    "StoredCheckpoint",
    "StoredTiles",
    "checkpoint_covering",
    "latest_checkpoint",
    "receipt_for",
    "tile_data",
]

_log = structlog.get_logger("ledger")

#: The fact that names the log in its checkpoints. It never changes.
ORIGIN_FACT: Final = "ledger-origin"
#: The fact that holds the verification key of the newest checkpoint, for those who read the database without a token.
VKEY_FACT: Final = "ledger-vkey"
#: How many seconds a checkpoint may be late before that is told.
_OVERDUE: Final = 30
#: How many tiles, of 8 KiB each, are stored in one transaction.
_BATCH: Final = 16
#: Checkpoints of witnesses that are remembered because the ledger contradicts them; one suffices.
_MOST_EVIDENCE: Final = 32
_HINT: Final = (
    "Nothing is signed until the ledger is what it was. Compare the database with its backups and with the checkpoints "
    "kept elsewhere; `privyseal ledger verify` says what is wrong inside it."
)


def tile_data(transaction: Transaction, path: TilePath) -> bytes | None:
    """The octets of a tile or an entry bundle, or ``None`` where the published checkpoint does not reach as far.

    Raises:
        LedgerError: the database lacks something that the checkpoint covers.
    """
    latest = latest_checkpoint(transaction)
    return None if latest is None else tile_contents(transaction, path, latest.size)


def receipt_for(transaction: Transaction, serial: str) -> Receipt | None:
    """The receipt of the certificate ``serial`` (32 lower-case hex digits): its entry's proof and the newest checkpoint.

    That of a CA's own certificate has its entry as extra data, which cannot be rebuilt from the certificate alone. ``None``
    when there is no such certificate, or no checkpoint covers its entry yet.

    Raises:
        LedgerError: the proof would not verify: the database is not what was signed.
    """
    certificate = find_certificate(transaction, serial)
    entry_of_ca = find_ca_entry(transaction, serial) if certificate is None else None
    if certificate is not None:
        index = certificate.ledger_index
    elif entry_of_ca is not None:
        index = entry_of_ca.index
    else:
        return None
    checkpoint = checkpoint_covering(transaction, index)
    if checkpoint is None:
        return None
    proof = inclusion_proof(StoredTiles(transaction), index, checkpoint.size)
    stored = next(entries(transaction, first=index, count=1), None)
    if stored is None or stored.index != index:
        raise LedgerError(f"The ledger lacks entry {index}.", hint=_HINT)
    verify_inclusion(leaf_hash(stored.entry), index, checkpoint.size, proof, checkpoint.root)
    return Receipt(index, tuple(proof), checkpoint.note, entry_of_ca.entry if entry_of_ca is not None else b"")


class Checkpointer:
    """Signs a checkpoint whenever the ledger has grown. Any number of processes may do so at the same time.

    ``key`` is the log's own, ``origin`` its name. ``kept`` is a checkpoint that was kept outside of the database, if there
    is one: the ledger must have grown from it too (promise P8). ``cosigner`` asks the witnesses, when there are any.

    Raises:
        LedgerError: ``key`` is of a kind that notes do not have, or ``origin`` cannot stand in them.
    """

    def __init__(
        self,
        *,
        store: Store,
        key: SigningKey,
        origin: str,
        clock: Clock,
        metrics: Metrics,
        kept: Checkpoint | None = None,
        cosigner: Cosigner | None = None,
    ) -> None:
        if kept is not None and kept.origin != origin:
            raise LedgerError(
                f"The checkpoint that was kept is of the log {kept.origin}, and this is {origin}.", hint=_HINT
            )
        self._store = store
        self._key = key
        self._origin = origin
        self._clock = clock
        self._metrics = metrics
        self._verifier = NoteVerifier.for_key(origin, key.public_key)
        #: The newest that is known of other than from the database, which may be put back to an earlier state.
        self._kept = kept
        self._cosigner = cosigner
        #: Whether the witnesses were asked what they have seen: once, before this process signs anything.
        self._asked = cosigner is None
        self._quorum = None if cosigner is None else KeptQuorum(store, cosigner, clock)
        #: What witnesses have shown and the ledger has not grown from. Compared again each time: a database may come back.
        self._evidence: tuple[Seen, ...] = ()
        self._refused = ""
        #: Since when the token or the database does not do what a checkpoint needs, and why.
        self._failing: tuple[float, str] | None = None

    @property
    def verifier(self) -> NoteVerifier:
        """What verifies the notes."""
        return self._verifier

    @property
    def refused(self) -> str:
        """Why nothing is signed although the token works; empty while the ledger is what was signed before.

        Also why issuance has to wait although checkpoints are signed: too few witnesses cosign, and that was set to count.
        """
        return self._refused or ("" if self._cosigner is None else self._cosigner.standing)

    @property
    def overdue(self) -> str:
        """Why there has been no checkpoint for longer than a moment; empty while there is one. Issuance goes on meanwhile."""
        if self._failing is None:
            return ""
        since, why = self._failing
        seconds = self._clock.now() - since
        return f"no checkpoint could be signed for {seconds:.0f} seconds: {why}" if seconds > _OVERDUE else ""

    async def close(self) -> None:
        """Ask no witness any more. What was signed stays as it is; may be called twice."""
        if self._cosigner is not None:
            await self._cosigner.close()

    async def sign_due(self) -> bool:
        """Sign and publish a checkpoint when there is none of the ledger's size; whether one was published.

        To be called again and again. What is published covers at least what the ledger had when the call began, unless a
        checkpoint was found half way: that one comes first.

        Raises:
            LedgerError: the ledger is not what an earlier checkpoint says, and nothing was signed.
            SignerError: the token did not sign. The next call tries again.
            StoreError: the database failed. The next call goes on from what became durable.
        """
        try:
            published = await self._sign_due()
        except (SignerError, StoreError) as error:
            self._failing = self._failing or (self._clock.now(), error.message)
            if self._cosigner is not None:
                self._cosigner.lost()
            raise
        except LedgerError as error:
            if self._refused != error.message:
                self._refused = error.message
                self._metrics.checkpoint_refused.set(1)
                _log.error("the ledger is not what was signed", error=str(error))
            raise
        self._refused = ""
        self._failing = None
        self._metrics.checkpoint_refused.set(0)
        return published

    async def _sign_due(self) -> bool:
        end, newest = await self._store.read(self._look)
        self._evidence = ()
        if self._quorum is not None:
            await self._quorum.resume()
        self._metrics.ledger_entries.set(end)
        since = 0
        if newest is not None and newest.note is not None:
            self._remember(newest)
            since = newest.size
        if end == since:
            if newest is not None and newest.note is not None:
                await self._cosign_published(newest, newest.note)
            return False
        await self._ask_first()
        await self._store_tiles(end, since)
        row = await self._store.write(partial(self._stage, end))
        if row is None:
            return False
        note = await self._cosigned(row, await self._sign(row))
        now = int(self._clock.now())
        if not await self._store.write(partial(self._publish, row, note, now)):
            return False
        self._remember(row._replace(note=note, signed_at=now))
        return True

    def _look(self, transaction: Transaction) -> tuple[int, CheckpointRow | None]:
        """The ledger's size and its newest checkpoint, compared before tiles are made of what has come since."""
        require_seen(transaction, self._evidence)
        end, newest = size(transaction), newest_row(transaction)
        if self._kept is not None:
            if end < self._kept.size:
                raise _shrank(end, self._kept.size)
            if newest is not None and newest.size == self._kept.size and newest.root != self._kept.root:
                raise _changed(newest.size)
            if newest is not None and newest.size > self._kept.size:
                # Signed by another process, which may not have known of the one that was kept.
                _require(transaction, end, self._kept.size, self._kept.root)
        if newest is not None and (newest.note is None or newest.size != end):
            _require(transaction, end, newest.size, newest.root)
        return end, newest

    async def _ask_first(self) -> None:
        """Compare the ledger with what its witnesses have seen, before this process signs for the first time (promise P8)."""
        if not self._asked and self._cosigner is not None:
            await self._compare(await self._cosigner.seen())
            self._asked = True

    async def _cosigned(self, row: CheckpointRow, note: bytes) -> bytes:
        """``note`` with the cosignatures that arrive in time. What it says is durable already, so that it may be shown."""
        if self._cosigner is None:
            return note
        checkpoint = Checkpoint(self._origin, row.size, row.root)
        cosigned = await self._cosigner.cosign(note, checkpoint, self._proof(row.size))
        await self._compare(cosigned.seen)
        return merged(note, cosigned.lines)

    async def _cosign_published(self, row: CheckpointRow, note: bytes) -> None:
        """Add to the newest checkpoint the cosignatures that did not arrive in time, or newer ones when it stays the newest."""
        if self._cosigner is None or self._quorum is None:
            return
        checkpoint = Checkpoint(self._origin, row.size, row.root)
        cosigned = await self._cosigner.cosign(note, checkpoint, self._proof(row.size), wait=False)
        await self._compare(cosigned.seen)
        new = merged(note, cosigned.lines)
        if new != note:
            await self._store.write(partial(replace_note, size=row.size, old=note, new=new))
        await self._quorum.keep()

    def _proof(self, new: int) -> Callable[[int], Awaitable[list[bytes]]]:
        return lambda old: self._store.read(partial(consistency, old=old, new=new))

    async def _compare(self, seen: Sequence[Seen]) -> None:
        """The ledger has grown from what witnesses have seen of it. Raises LedgerError, now and until it has."""
        if seen:
            self._evidence = (*self._evidence, *seen)[-_MOST_EVIDENCE:]
            await self._store.read(partial(require_seen, seen=seen))
            self._evidence = tuple(item for item in self._evidence if item not in seen)

    async def _store_tiles(self, end: int, since: int) -> None:
        """Store the tiles of the first ``end`` entries, and verify the leaf hashes of the rest from ``since`` on.

        Entries are read 256 at a time: an event loop that does this itself is held for about a millisecond.
        """
        full = end // WIDTH
        first = await self._store.read(count_tiles)
        while first < full:
            tiles = []
            for index in range(first, min(first + _BATCH, full)):
                tiles.append(await self._store.read(partial(full_tile, index=index)))
                await asyncio.sleep(0)
            await self._store.write(partial(add_tiles, first=first, tiles=tiles))
            first += len(tiles)
        rest = max(full * WIDTH, since)
        await self._store.read(partial(verified_leaves, first=rest, count=end - rest))

    def _stage(self, target: int, transaction: Transaction) -> CheckpointRow | None:
        """Commit to the tree over the first ``target`` entries; ``None`` when another process has published as much.

        The lock on the head comes first, as in every unit here: it orders processes, and units that append take it too.
        """
        lock_head(transaction)
        self._claim_origin(transaction)
        end, newest = size(transaction), newest_row(transaction)
        if newest is not None:
            _require(transaction, end, newest.size, newest.root)
        if self._kept is not None:
            _require(transaction, end, self._kept.size, self._kept.root)
        if newest is not None and newest.note is None:
            return newest
        if newest is not None and newest.size >= target:
            return None
        if end < target:
            raise _shrank(end, target)
        return stage(transaction, target, root_of(StoredTiles(transaction), target))

    def _claim_origin(self, transaction: Transaction) -> None:
        origin = find_fact(transaction, ORIGIN_FACT)
        if origin is None:
            set_fact(transaction, ORIGIN_FACT, self._origin)
        elif origin != self._origin:
            raise LedgerError(
                f"The log's origin is {origin}, and is now said to be {self._origin}.",
                hint="An origin never changes: give the service the one that it had.",
            )

    async def _sign(self, row: CheckpointRow) -> bytes:
        """The signed note of ``row``."""
        text = Checkpoint(self._origin, row.size, row.root).text()
        message = text.encode()
        signature = await self._key.run(partial(_signature, message))
        if not self._verifier.verify(message, signature):
            raise SignerError(
                "The token's signature over a checkpoint of the ledger does not verify.",
                hint="Check the token and the key with `privyseal doctor`.",
            )
        return note_with(text, self._verifier, signature)

    def _publish(self, row: CheckpointRow, note: bytes, now: int, transaction: Transaction) -> bool:
        lock_head(transaction)
        if publish(transaction, row, note, now):
            set_fact(transaction, VKEY_FACT, self._verifier.vkey())
            return True
        # Another process signed the same, and perhaps more since; anything else is not a matter of being late.
        newest = newest_row(transaction)
        if newest is None or newest.size < row.size or (newest.size == row.size and newest.root != row.root):
            raise _changed(row.size)
        return False

    def _remember(self, row: CheckpointRow) -> None:
        if self._kept is None or row.size > self._kept.size:
            self._kept = Checkpoint(self._origin, row.size, row.root)
        self._metrics.ledger_checkpoint_size.set(row.size)
        self._metrics.ledger_checkpoint_seconds.set(row.signed_at)


def _signature(message: bytes, key: PrivateKey) -> bytes:
    """Work for :meth:`privyseal_ca.hsm.signer.SigningKey.run`: a signature as notes hold it (C2SP signed-note)."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, ec.ECDSA(hashes.SHA256()))
    raise TypeError("the key is not of a kind that notes have")


def _require(transaction: Transaction, end: int, known: int, root: bytes) -> None:
    """The ledger, of ``end`` entries, has grown from one of ``known`` entries with ``root``."""
    if end < known:
        raise _shrank(end, known)
    if root_of(StoredTiles(transaction), known) != root:
        raise _changed(known)


def _shrank(end: int, known: int) -> LedgerError:
    return LedgerBehindError(
        f"The ledger has {end} entries, fewer than the {known} that were signed before.", hint=_HINT
    )


def _changed(known: int) -> LedgerError:
    return LedgerError(f"The first {known} entries of the ledger are not those that were signed before.", hint=_HINT)
