"""Somebody outside who looks all the time: nothing that was published may be taken back."""

import random
import threading
from typing import Final
from urllib.error import HTTPError

from cryptography import x509

from chaos.record import Record
from chaos.world import CRL_PARTS, World
from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, open_note
from privyseal_ca.ledger.proofs import consistency_proof, verify_consistency
from privyseal_ca.ledger.tiles import HASH_BYTES, WIDTH, TilePath, tile_width

_PAUSE: Final = 0.1


class _AwayError(Exception):
    """The service does not answer now."""


class _Tiles:
    """The tiles of a tree of ``size`` entries over HTTP."""

    def __init__(self, world: World, size: int) -> None:
        self._world = world
        self._size = size

    def hashes(self, level: int, first: int, count: int) -> list[bytes]:
        """As :class:`privyseal_ca.ledger.tiles.TileHashes` says."""
        index = first // WIDTH
        path = TilePath(level, index, tile_width(level, index, self._size)).path()
        content = self._world.get_if_there(f"ledger/{path}")
        if content is None:
            raise _AwayError
        offset = first % WIDTH
        return [content[at * HASH_BYTES : (at + 1) * HASH_BYTES] for at in range(offset, offset + count)]


class Watch:
    """What was seen of checkpoints and CRLs, each compared with what was seen before."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self.vkey = ""
        #: Every checkpoint by its size, as it was served first.
        self.notes: dict[int, bytes] = {}
        self._newest: Checkpoint | None = None
        self._proven: Checkpoint | None = None
        self._crls: dict[str, tuple[int, frozenset[int]]] = {}
        #: How many pairs of checkpoints were shown to be consistent by tiles.
        self.proofs = 0
        #: How many CRLs were seen.
        self.crls = 0

    def checkpoint(self, note: bytes) -> Checkpoint | None:
        """Compare a checkpoint with those before."""
        try:
            text, _ = open_note(note, [NoteVerifier.parse(self.vkey)])
            found = Checkpoint.parse(text)
        except LedgerError as error:
            self._record.breach(f"a checkpoint was served that does not open under the first key: {error.message}")
            return None
        before = self._newest
        if before is not None and found.size < before.size:
            self._record.breach(f"the checkpoint of {found.size} entries was served after that of {before.size}")
        first = self.notes.setdefault(found.size, note)
        text, _ = open_note(first, [NoteVerifier.parse(self.vkey)])
        if Checkpoint.parse(text).root != found.root:
            self._record.breach(f"two checkpoints of {found.size} entries have different roots")
        self._newest = found
        return found

    def prove(self, world: World, found: Checkpoint) -> None:
        """Show by tiles that ``found`` continues the one that was shown last. Left for the next one when tiles are away."""
        before = self._proven
        if before is not None and found.size > before.size:
            try:
                proof = consistency_proof(_Tiles(world, found.size), before.size, found.size)
                verify_consistency(before.size, found.size, proof, before.root, found.root)
            except _AwayError:
                return
            except HTTPError:
                self._record.breach(f"tiles are missing of the published checkpoint of {found.size} entries")
                return
            except LedgerError as error:
                self._record.breach(f"the checkpoint of {found.size} does not continue {before.size}: {error.message}")
                return
            self.proofs += 1
        if before is None or found.size > before.size:
            self._proven = found

    def crl(self, scope: str, der: bytes) -> None:
        """Compare a CRL with the one before it of the same scope."""
        crl = x509.load_der_x509_crl(der)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        serials = frozenset(entry.serial_number for entry in crl)
        self.crls += 1
        if scope in self._crls:
            before, listed = self._crls[scope]
            if number < before:
                self._record.breach(f"the CRL {scope} fell from number {before} to {number}")
            elif number == before and serials != listed:
                self._record.breach(f"two CRLs {scope} have the number {number}")
            elif not listed <= serials:
                # No certificate of a trial expires in it.
                self._record.breach(f"the CRL {scope} number {number} misses what {before} listed")
        self._crls[scope] = number, serials

    def listed(self, scope: str) -> frozenset[int]:
        """What the newest CRL of a scope lists."""
        return self._crls[scope][1] if scope in self._crls else frozenset()


class Watcher(threading.Thread):
    """Fetches checkpoints and CRLs until it is told to stop, whether or not the service is there."""

    def __init__(self, world: World, record: Record, watch: Watch, *, seed: str) -> None:
        super().__init__(name="watcher", daemon=True)
        self._world = world
        self._record = record
        self._watch = watch
        self._chance = random.Random(f"{seed} watcher")  # noqa: S311 (moments, not secrets)
        self._end = threading.Event()
        self._scopes: list[str] = []

    def finish(self) -> None:
        """Have it end, and wait for that."""
        self._end.set()
        self.join()

    def run(self) -> None:
        """Look again and again."""
        try:
            while not self._end.wait(self._chance.uniform(0, _PAUSE)):
                self.look()
        except Exception as error:  # noqa: BLE001 (a thread has nobody else to tell)
            self._record.breach(f"the watcher ended: {error!r}")

    def look(self) -> None:
        """Look once."""
        watch, world = self._watch, self._world
        if not watch.vkey:
            watch.vkey = (world.get_if_there("ledger/vkey") or b"").decode().strip()
        if watch.vkey and (note := world.get_if_there("ledger/checkpoint")):
            found = watch.checkpoint(note)
            if found is not None:
                watch.prove(world, found)
        if not self._scopes:
            self._scopes = scopes(world)
        for scope in self._scopes:
            if der := world.get_if_there(scope):
                watch.crl(scope, der)


def scopes(world: World) -> list[str]:
    """The paths of the issuing CA's CRLs: all of it, and each part."""
    ((issuer,),) = world.rows.all("SELECT id FROM issuer WHERE state = 'active'")
    return [f"crl/{issuer}.crl", *(f"crl/{issuer}/{part}.crl" for part in range(CRL_PARTS))]
