"""Asking witnesses to cosign this ledger's checkpoints (C2SP tlog-witness), so that one that does not answer harms nobody.

Every witness is asked by a task of its own, one at a time. A checkpoint waits for those that answered in time before, and for
no longer than ``ledger.witness_timeout``. What comes later is kept for the next call. A witness that fails is left alone for a
while, and longer each time. One that has not shown yet what it has seen is asked for that first, and sent nothing until it was
compared: a database that was put back must not become a second ledger in somebody's hands.

A witness that refuses because it has seen something else is asked to show it. Only what this log's own key has signed is
handed on: a witness's word alone stops nobody.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import ClientSession

from privyseal_ca.clock import CLOCK_STEP, Clock
from privyseal_ca.errors import PrivySealError, WitnessError
from privyseal_ca.ledger.cosignatures import MAX_ANSWER, answered_lines, cosignatures
from privyseal_ca.ledger.cosigning import Cosigned, Proof, Seen
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier
from privyseal_ca.sections import LedgerSettings
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.witness.exchange import Reply, exchange, new_session
from privyseal_ca.witness.monitoring import Sighting, ask_witness, ask_witnesses
from privyseal_ca.witness.peer import Line, Peer
from privyseal_ca.witness.protocol import SIZE_TYPE, Submission, parse_size
from privyseal_ca.witness.quorum import Quorum

_log = structlog.get_logger("witness")

#: How long one request may take, in seconds, when nobody waits for it.
_REQUEST_SECONDS: Final = 10.0
#: How long the first look at what witnesses have seen waits for them at least: nothing is signed before.
_LOOK_SECONDS: Final = 3.0
#: After how many seconds a witness is asked to cosign the same checkpoint anew, so that a ledger in which nothing changes is
#: seen to be the newest that there is.
_REFRESH_SECONDS: Final = 600.0
#: Witnesses of one ledger. Together they are fewer signatures than a note may have.
_MOST_WITNESSES: Final = 32


class Witnesses:
    """The witnesses of ``settings``, for the log ``origin`` whose key ``log_verifier`` has. To be closed at the end.

    ``monotonic`` gives seconds that only grow.

    Raises:
        LedgerError: a verification key in the settings is malformed.
        WitnessError: two witnesses have the same name or key, one has the log's, or there are too many.
    """

    def __init__(
        self,
        settings: LedgerSettings,
        *,
        origin: str,
        log_verifier: NoteVerifier,
        metrics: Metrics,
        clock: Clock,
        session_factory: Callable[[], ClientSession] = new_session,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._origin = origin
        self._log_verifier = log_verifier
        self._metrics = metrics
        self._clock = clock
        self._session_factory = session_factory
        self._session: ClientSession | None = None
        self._monotonic = monotonic
        self._witnesses = [Peer(witness) for witness in settings.witnesses]
        self._verifiers = [witness.verifier for witness in self._witnesses]
        self._require_different(origin, log_verifier)
        self._quorum = Quorum(settings, metrics, monotonic)

    @property
    def standing(self) -> str:
        """Why issuance has to wait for cosignatures; empty when it has not to."""
        return self._quorum.standing

    @property
    def missing(self) -> float:
        """For how many seconds fewer than the quorum have cosigned; 0 while they are enough."""
        return self._quorum.missing

    def resume(self, missing: float) -> None:
        """The quorum was missing for so many seconds already when an earlier process ended."""
        self._quorum.resume(missing)

    def lost(self) -> None:
        """The newest checkpoint could not be signed, so that nobody can cosign it."""
        self._quorum.lost()

    @property
    def problems(self) -> dict[str, str]:
        """By the names of those that do not cosign, why."""
        return {witness.name: witness.problem for witness in self._witnesses if witness.problem}

    async def seen(self) -> Sequence[Seen]:
        """The newest checkpoint that each witness shows, of those that answer within a few seconds."""
        sightings = await ask_witnesses(
            self._settings.witnesses,
            self._origin,
            self._log_verifier,
            self._open(),
            seconds=max(_LOOK_SECONDS, self._settings.witness_timeout),
        )
        found = [self._looked(*each) for each in zip(self._witnesses, sightings, strict=True)]
        return [seen for seen in found if seen is not None]

    async def cosign(self, note: bytes, checkpoint: Checkpoint, proof: Proof, *, wait: bool = True) -> Cosigned:
        """Ask those that have not cosigned ``note``; see :class:`privyseal_ca.ledger.cosigning.Cosigner`.

        Raises:
            LedgerError: the note is malformed, or has a wrong cosignature.
        """
        present = cosignatures(note, self._verifiers)
        text = checkpoint.text().encode()
        asked = _Asked(note, text, checkpoint, proof, self._monotonic())
        waited = []
        for witness in self._witnesses:
            line = witness.line_over(text)
            if line is not None and asked.at < line.arrived + _REFRESH_SECONDS:
                continue
            # What it has shown is compared by whoever called, after this: until then it is sent nothing.
            if witness.seen is None and not witness.busy and asked.at >= witness.retry_at:
                witness.task = asyncio.create_task(self._ask(witness, asked))
                if wait and witness.prompt:
                    waited.append((witness, witness.task))
        if waited:
            await asyncio.wait([task for _, task in waited], timeout=self._settings.witness_timeout)
            for witness, task in waited:
                if not task.done():
                    witness.late()
        lines = {witness.name: line for witness in self._witnesses if (line := witness.line_over(text)) is not None}
        self._quorum.judge(len(present | lines), self._covered())
        new = [line.line for name, line in lines.items() if name not in present or line.time > present[name]]
        return Cosigned(tuple(new), self._take_seen())

    async def close(self) -> None:
        """Ask nobody any more."""
        tasks = [witness.task for witness in self._witnesses if witness.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _require_different(self, origin: str, log_verifier: NoteVerifier) -> None:
        names = [origin, *(verifier.name for verifier in self._verifiers)]
        # A cosignature does not say whose it is: with one key under two names, one witness would be a quorum of two.
        keys = [log_verifier.key, *(verifier.key for verifier in self._verifiers)]
        if len(set(names)) < len(names) or any(key in keys[:at] for at, key in enumerate(keys)):
            raise WitnessError(
                "Two witnesses of ledger.witnesses have the same name or key, or one has the ledger's.",
                hint="Each has a name and a key of its own.",
            )
        if len(self._verifiers) > _MOST_WITNESSES:
            raise WitnessError(
                f"ledger.witnesses has more than {_MOST_WITNESSES} witnesses.",
                hint="Leave out those of the same owners.",
            )

    def _open(self) -> ClientSession:
        if self._session is None:
            self._session = self._session_factory()
        return self._session

    def _take_seen(self) -> tuple[Seen, ...]:
        seen = tuple(witness.seen for witness in self._witnesses if witness.seen is not None)
        for witness in self._witnesses:
            witness.seen = None
        return seen

    async def _ask(self, witness: Peer, asked: "_Asked") -> None:
        """Ask one witness. Never raises."""
        began = self._monotonic()
        try:
            line = await self._submit(witness, asked)
        except PrivySealError as error:
            self._failed(witness, error.message)
        except Exception:  # noqa: BLE001 (nobody waits for this task for long: it has to end in a pause)
            _log.exception("a witness cannot be asked", witness=witness.name)
            self._failed(witness, "It cannot be asked: the log says why.")
        else:
            now = self._monotonic()
            if line is not None:
                witness.line, witness.covered = line, asked.at
                witness.known = asked.checkpoint.size
                self._quorum.cover(self._covered())
            if now - began <= self._settings.witness_timeout:
                witness.in_time()
            else:
                witness.slow()
            witness.succeeded()
            self._metrics.witness_up.labels(witness.name).set(1)

    def _covered(self) -> list[float]:
        return [witness.covered for witness in self._witnesses]

    def _failed(self, witness: Peer, problem: str) -> None:
        witness.failed(problem, self._monotonic())
        self._metrics.witness_up.labels(witness.name).set(0)

    async def _submit(self, witness: Peer, asked: "_Asked") -> Line | None:
        """The cosignature; None when what the witness has shown instead is to be compared first.

        Raises:
            WitnessError: it does not cosign.
            LedgerError: its answer is malformed, or its signature wrong.
            StoreError: the proof cannot be read.
        """
        if not witness.looked:
            sighting = await ask_witness(
                witness.settings, self._origin, self._log_verifier, self._open(), seconds=_REQUEST_SECONDS
            )
            witness.seen = self._looked(witness, sighting)
            if witness.seen is not None:
                return None
        new = asked.checkpoint.size
        old = min(witness.known, new)
        for last in (False, True):
            reply = await self._send(witness, Submission(old, tuple(await asked.proof(old)), asked.note))
            if reply.status == HTTPStatus.OK:
                lines = answered_lines(reply.body, asked.note, [witness.verifier])
                if witness.name not in lines:
                    raise WitnessError("It answers without its cosignature.")
                time_of, line = lines[witness.name]
                if time_of > self._clock.now() + CLOCK_STEP:
                    raise WitnessError("It says that it cosigned in the future: its clock or this machine's is wrong.")
                return Line(asked.text, line, time_of, self._monotonic())
            known = parse_size(reply.body) if reply.content_type == SIZE_TYPE else None
            if reply.status == HTTPStatus.CONFLICT and known is not None and known <= new and known != old and not last:
                # It has had more or less than was thought: spec's one way to find out what.
                witness.known = old = known
                continue
            if reply.status in {HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY}:
                await self._look_closer(witness, asked.checkpoint, known)
                return None
            raise WitnessError(_refusal(reply.status))
        raise WitnessError("It does not say which size it has.")

    async def _send(self, witness: Peer, submission: Submission) -> Reply:
        reply = await exchange(
            self._open(),
            f"{witness.settings.url.rstrip('/')}/add-checkpoint",
            seconds=_REQUEST_SECONDS,
            most=MAX_ANSWER,
            post=submission.body(),
        )
        if reply.failure:
            raise WitnessError(f"It {reply.failure}.")
        # Whoever answers this and showed nothing has nothing to show.
        witness.looked = witness.looked or reply.status < HTTPStatus.INTERNAL_SERVER_ERROR
        return reply

    def _looked(self, witness: Peer, sighting: Sighting) -> Seen | None:
        """Remember that the witness was asked what it has seen; what that is, if it is anything."""
        witness.looked = witness.looked or sighting.reached
        if sighting.checkpoint is None:
            return None
        witness.known = sighting.checkpoint.size
        return Seen(witness.name, sighting.checkpoint)

    async def _look_closer(self, witness: Peer, checkpoint: Checkpoint, known: int | None) -> None:
        """A witness has seen another ledger, or a longer one: have it show that.

        Raises:
            WitnessError: it shows nothing that would explain its refusal.
        """
        sighting = await ask_witness(
            witness.settings, self._origin, self._log_verifier, self._open(), seconds=_REQUEST_SECONDS
        )
        if sighting.checkpoint is None:
            said = "" if known is None else f" It says that it has {known} entries."
            raise WitnessError(f"It refuses the checkpoint of {checkpoint.size} entries, and shows none.{said}")
        _log.warning(
            "the witness has another checkpoint",
            witness=witness.name,
            size=checkpoint.size,
            root=checkpoint.root.hex(),
            witnessed_size=sighting.checkpoint.size,
            witnessed_root=sighting.checkpoint.root.hex(),
        )
        witness.seen = self._looked(witness, sighting)
        if sighting.checkpoint.size <= checkpoint.size:
            # Either the ledgers differ, which whoever takes this finds, or the witness refuses what it should not.
            raise WitnessError(f"It refuses that the ledger has grown from {sighting.checkpoint.size} entries.")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a witness is to cosign."""

    note: bytes
    text: bytes
    checkpoint: Checkpoint
    proof: Proof
    #: When that was, in monotonic seconds: the checkpoint is the newest then.
    at: float


def _refusal(status: int) -> str:
    match status:
        case HTTPStatus.NOT_FOUND:
            return "It does not know this log: `privyseal witness add` on the witness."
        case HTTPStatus.FORBIDDEN:
            return "It knows this log by another key: `privyseal witness add` on the witness."
        case _:
            return f"It answers with HTTP status {status}."
