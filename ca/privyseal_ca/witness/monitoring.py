"""Reading what witnesses have seen of a log: a place outside that its owner cannot put back (promise P8).

C2SP tlog-witness: the newest checkpoint that a witness has cosigned is at its monitoring prefix.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from aiohttp import ClientSession

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.cosignatures import CosignatureVerifier, cosignatures
from privyseal_ca.ledger.note import MAX_NOTE, Checkpoint, NoteVerifier, open_note
from privyseal_ca.sections import WitnessSettings
from privyseal_ca.witness.exchange import exchange

#: How long a witness may take to say what it has seen, in seconds.
READING_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one witness shows of a log."""

    #: The witness's name.
    name: str
    #: The newest checkpoint that it has, signed by the log; None when it shows none.
    checkpoint: Checkpoint | None
    #: The note that says so; empty without a checkpoint.
    note: bytes
    #: Why the witness cannot be relied upon; empty when it answered, also that it has nothing.
    problem: str = ""
    #: Whether there was an answer, and not one that says to ask again later.
    reached: bool = True


def log_id(origin: str) -> str:
    """How a log is called in URLs: SHA-256 of its origin in lower-case hex."""
    return hashlib.sha256(origin.encode()).hexdigest()


async def ask_witness(
    witness: WitnessSettings,
    origin: str,
    log_verifier: NoteVerifier,
    session: ClientSession,
    *,
    seconds: float = READING_SECONDS,
) -> Sighting:
    """The newest checkpoint of the log ``origin`` that ``witness`` shows. Never raises for what the other side does.

    The log's signature makes it evidence. A cosignature that is missing is a problem of the witness's, and none of the
    evidence.
    """
    name = witness.vkey.partition("+")[0]
    prefix = (witness.monitoring_url or witness.url).rstrip("/")
    reply = await exchange(session, f"{prefix}/{log_id(origin)}/checkpoint", seconds=seconds, most=MAX_NOTE)
    if reply.failure:
        return Sighting(name, None, b"", reply.failure, reached=False)
    if reply.status == HTTPStatus.NOT_FOUND:
        return Sighting(name, None, b"")
    if reply.status != HTTPStatus.OK:
        reached = reply.status < HTTPStatus.INTERNAL_SERVER_ERROR
        return Sighting(name, None, b"", f"answers with HTTP status {reply.status}", reached=reached)
    return _sighting(name, reply.body, witness.vkey, origin, log_verifier)


def _sighting(name: str, note: bytes, vkey: str, origin: str, log_verifier: NoteVerifier) -> Sighting:
    """What ``note`` shows, which somebody sent."""
    try:
        text, _ = open_note(note, [log_verifier])
        checkpoint = Checkpoint.parse(text)
    except LedgerError as error:
        return Sighting(name, None, b"", f"shows what is no checkpoint of this log: {error.message}")
    if checkpoint.origin != origin:
        return Sighting(name, None, b"", "shows a checkpoint of another log")
    try:
        cosigned = cosignatures(note, [CosignatureVerifier.parse(vkey)])
    except LedgerError as error:
        return Sighting(name, checkpoint, note, error.message)
    return Sighting(name, checkpoint, note, "" if cosigned else "shows a checkpoint without its cosignature")


async def ask_witnesses(
    witnesses: Sequence[WitnessSettings],
    origin: str,
    log_verifier: NoteVerifier,
    session: ClientSession,
    *,
    seconds: float = READING_SECONDS,
) -> list[Sighting]:
    """What each of ``witnesses`` shows of the log ``origin``, all asked at the same time; in their order."""
    return await asyncio.gather(
        *(ask_witness(witness, origin, log_verifier, session, seconds=seconds) for witness in witnesses)
    )


async def newest_at_witnesses(
    witnesses: Sequence[WitnessSettings], origin: str, log_verifier: NoteVerifier, session: ClientSession
) -> list[tuple[str, Checkpoint]]:
    """Name and newest checkpoint of each of ``witnesses`` that shows one of the log ``origin``.

    Each checkpoint is signed by the log itself. Witnesses that do not answer, or have none, are left out:
    :func:`ask_witnesses` tells these apart.
    """
    sightings = await ask_witnesses(witnesses, origin, log_verifier, session)
    return [(sighting.name, sighting.checkpoint) for sighting in sightings if sighting.checkpoint is not None]
