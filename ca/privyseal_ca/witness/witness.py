"""A witness: cosigns a checkpoint when, and only when, it continues the one before (C2SP tlog-witness, promise P6).

What was agreed to is durable before the token is asked. So whatever crashes, it never cosigns two roots of one size, nor a
size smaller than an earlier one.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric import ed25519

from privyseal_ca.clock import CLOCK_STEP, Clock
from privyseal_ca.errors import LedgerError, SignerError, WitnessError
from privyseal_ca.hsm.signer import PrivateKey, SigningKey
from privyseal_ca.ledger.cosignatures import CosignatureVerifier, cosignatures, cosigned_message, merged
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, decode_hash, open_note, signature_of, split_note
from privyseal_ca.ledger.proofs import verify_consistency
from privyseal_ca.witness.monitoring import log_id
from privyseal_ca.witness.protocol import Submission
from privyseal_ca.witness.state import WitnessState

_log = structlog.get_logger("witness")

#: Logs whose requests wait in line here at the same time; others are told to come again.
_MOST_WAITING: Final = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """What a submission is answered."""

    status: HTTPStatus
    #: For 200 the cosignature line, for 409 the size with its line feed, else what a person reads.
    text: str


@dataclass(frozen=True, slots=True)
class _Cosigned:
    """The newest cosignature of a log."""

    #: SHA-256 of the text that it is over: texts may be long, and logs many.
    digest: bytes
    #: Its time, in seconds since the epoch.
    time: int
    #: The line; empty when an earlier process made it.
    line: str = ""


class Witness:
    """Watches the logs in ``state`` and cosigns with ``key`` under ``name``.

    Raises:
        LedgerError: the name cannot be a key's, or the key is not an Ed25519 key.
    """

    def __init__(self, state: WitnessState, key: SigningKey, name: str, clock: Clock) -> None:
        self._state = state
        self._key = key
        self._clock = clock
        self.verifier = CosignatureVerifier.for_key(name, key.public_key)
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting = 0
        #: SHA-256 of the text that this process itself has made durable for each log. What it only reads may be in the kernel's cache alone, when the process
        #: before was killed, or the disk failed, between renaming and syncing: a power cut would take it back.
        self._agreed: dict[str, bytes] = {}
        self._latest: dict[str, _Cosigned] = {}

    @property
    def available(self) -> bool:
        """Whether the token can be reached."""
        return self._key.available

    async def submit(self, body: bytes) -> Answer:
        """Answer a submission; the statuses are those of C2SP tlog-witness, 503 for what is no fault of the log's.

        Raises:
            WitnessError: the state cannot be read or written.
        """
        try:
            submission = Submission.parse(body)
            text, _ = split_note(submission.note)
        except LedgerError as error:
            return Answer(HTTPStatus.BAD_REQUEST, f"{error.message}\n")
        origin = text.partition("\n")[0]
        keys = await asyncio.to_thread(self._state.keys, origin)
        if not keys:
            return Answer(HTTPStatus.NOT_FOUND, "This log is not watched here.\n")
        try:
            open_note(submission.note, keys)
        except LedgerError as error:
            return Answer(HTTPStatus.FORBIDDEN, f"{error.message}\n")
        if self._waiting >= _MOST_WAITING:
            return Answer(
                HTTPStatus.SERVICE_UNAVAILABLE, "Too many checkpoints are being checked. Try again in a moment.\n"
            )
        # Whoever asked and went away does not stop what has begun.
        return await asyncio.shield(self._in_turn(submission, text, keys))

    async def _in_turn(self, submission: Submission, text: str, keys: Sequence[NoteVerifier]) -> Answer:
        """The answer, when those before it have theirs: from checking the size to remembering the new one nothing intervenes."""
        self._waiting += 1
        try:
            async with self._locks.setdefault(keys[0].name, asyncio.Lock()):
                return await self._decide(submission, text, keys)
        finally:
            self._waiting -= 1

    async def _decide(self, submission: Submission, text: str, keys: Sequence[NoteVerifier]) -> Answer:
        """The answer to what the log has signed. The steps are numbered as the specification has them."""
        try:
            checkpoint = Checkpoint.parse(text)
        except LedgerError as error:
            status = HTTPStatus.UNPROCESSABLE_ENTITY if _is_empty_with_root(text) else HTTPStatus.BAD_REQUEST
            return Answer(status, f"{error.message}\n")
        # 1. The old size is not larger than the checkpoint's.
        if submission.old > checkpoint.size:
            return Answer(HTTPStatus.BAD_REQUEST, "The old size is larger than the checkpoint's.\n")
        # 2. It is that of the newest checkpoint that was agreed to.
        newest = await asyncio.to_thread(self._state.newest, checkpoint.origin)
        known = 0 if newest is None else newest.size
        if submission.old != known:
            await self._finish(checkpoint.origin, newest, keys)
            return Answer(HTTPStatus.CONFLICT, f"{known}\n")
        # 3. The tree has grown from that one.
        if newest is not None and newest.size == checkpoint.size and newest.root != checkpoint.root:
            await self._contradicted(submission.note, checkpoint, newest, proven=True)
            await self._finish(checkpoint.origin, newest, keys)
            return Answer(HTTPStatus.UNPROCESSABLE_ENTITY, "Another root was seen at this size.\n")
        try:
            old_root = _EMPTY if newest is None else newest.root
            verify_consistency(known, checkpoint.size, submission.proof, old_root, checkpoint.root)
        except LedgerError as error:
            if newest is not None:
                await self._contradicted(submission.note, checkpoint, newest, proven=False)
                await self._finish(checkpoint.origin, newest, keys)
            return Answer(HTTPStatus.UNPROCESSABLE_ENTITY, f"{error.message}\n")
        return await self._cosign(submission.note, text, checkpoint, keys)

    async def _cosign(self, note: bytes, text: str, checkpoint: Checkpoint, keys: Sequence[NoteVerifier]) -> Answer:
        """Cosign what nothing speaks against."""
        # 4. It is durable before anything is signed.
        digest = sha256(text.encode()).digest()
        if self._agreed.get(checkpoint.origin) != digest:
            await asyncio.to_thread(self._state.agree, checkpoint.origin, _only(note, keys))
            self._agreed[checkpoint.origin] = digest
        latest = await self._newest_cosigned(checkpoint.origin)
        now = int(self._clock.now())
        if latest is not None and now < latest.time <= now + CLOCK_STEP:
            # The clock was put back a little. A cosignature says that nothing larger was seen by its time: none may be dated
            # before a smaller tree's.
            now = latest.time
        if latest is not None and latest.line and (latest.digest, latest.time) == (digest, now):
            return Answer(HTTPStatus.OK, latest.line)
        try:
            signature = await self._key.run(partial(_signature, cosigned_message(text, now)))
            line = self.verifier.line(text, now, signature)
        except (SignerError, LedgerError) as error:
            _log.warning("a checkpoint is not cosigned", origin=checkpoint.origin, error=str(error))
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, "The token did not sign. Try again in a moment.\n")
        await asyncio.to_thread(self._state.publish, checkpoint.origin, merged(_only(note, keys), [line]))
        self._latest[checkpoint.origin] = _Cosigned(digest, now, line)
        _log.info("cosigned", origin=checkpoint.origin, size=checkpoint.size, root=checkpoint.root.hex())
        return Answer(HTTPStatus.OK, line)

    async def _newest_cosigned(self, origin: str) -> _Cosigned | None:
        """The newest cosignature of a log, also that of an earlier process; None when there is none that can be read."""
        if origin not in self._latest:
            note = await asyncio.to_thread(self._state.published, log_id(origin))
            try:
                time = cosignatures(note or b"", [self.verifier])[self.verifier.name]
                self._latest[origin] = _Cosigned(sha256(split_note(note or b"")[0].encode()).digest(), time)
            except (LedgerError, KeyError):
                return None
        return self._latest[origin]

    async def _finish(self, origin: str, newest: Checkpoint | None, keys: Sequence[NoteVerifier]) -> None:
        """Cosign and show what was agreed to and is not shown, because the token or this process had failed by then.

        A log that is refused for it has to see it: its own signature is what proves to it that its database was put back.
        """
        try:
            note = None if newest is None else await asyncio.to_thread(self._state.newest_note, origin)
            if newest is None or note is None:
                return
            # By a key that is trusted still: the log may have changed it since.
            text, _ = open_note(note, keys)
            latest = await self._newest_cosigned(origin)
            if latest is None or latest.digest != sha256(text.encode()).digest():
                await self._cosign(note, text, newest, keys)
        except (LedgerError, WitnessError) as error:
            _log.warning("a checkpoint is not shown", origin=origin, error=str(error))

    async def _contradicted(self, note: bytes, found: Checkpoint, newest: Checkpoint, *, proven: bool) -> None:
        record = partial(self._state.record, found.origin, note, proven=proven, now=self._clock.now())
        try:
            kept = await asyncio.to_thread(record)
        except WitnessError as error:
            _log.error("the evidence cannot be kept", origin=found.origin, error=str(error))
            kept = True
        if kept:
            _log.error(
                "split view" if proven else "a checkpoint does not continue the one before",
                origin=found.origin,
                size=found.size,
                root=found.root.hex(),
                cosigned_size=newest.size,
                cosigned_root=newest.root.hex(),
            )


_EMPTY: Final = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


def _signature(message: bytes, key: PrivateKey) -> bytes:
    """Work for :meth:`privyseal_ca.hsm.signer.SigningKey.run`."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    raise TypeError("the key is not an Ed25519 key")


def _only(note: bytes, keys: Sequence[NoteVerifier]) -> bytes:
    """``note`` with the log's own signatures alone: what strangers put behind them is not kept."""
    text, lines = split_note(note)
    known = {(key.name, key.key_id) for key in keys}
    kept = [line for line in lines if signature_of(line)[:2] in known]
    return (text + "\n" + "".join(f"{line}\n" for line in kept)).encode()


def _is_empty_with_root(text: str) -> bool:
    """Whether ``text`` is a checkpoint of no entries with a root that such a tree does not have."""
    lines = text.split("\n")
    try:
        return lines[1] == "0" and decode_hash(lines[2], "root") != _EMPTY
    except (IndexError, LedgerError):
        return False
