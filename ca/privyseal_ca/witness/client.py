"""Asking witnesses to cosign this ledger's checkpoints (C2SP tlog-witness), so that one that does not answer harms nobody.

Every witness is asked by a task of its own, one at a time. A checkpoint waits for those that answered in time before, and for
no longer than ``ledger.witness_timeout``. What comes later is kept for the next call. A witness that fails is left alone for a
while, and longer each time.

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

from privyseal_ca.errors import PrivySealError, WitnessError
from privyseal_ca.ledger.cosignatures import MAX_ANSWER, CosignatureVerifier, answered_lines, cosignatures
from privyseal_ca.ledger.cosigning import Cosigned, Proof, Seen
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier
from privyseal_ca.sections import LedgerSettings, WitnessSettings
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.witness.exchange import Reply, exchange, new_session
from privyseal_ca.witness.monitoring import ask_witness, ask_witnesses
from privyseal_ca.witness.protocol import SIZE_TYPE, Submission, parse_size

_log = structlog.get_logger("witness")

#: How long one request may take, in seconds, when nobody waits for it.
_REQUEST_SECONDS: Final = 10.0
#: How long a witness that failed is left alone, in seconds: at first, and at most.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
_PAUSES: Final = 7


@dataclass(frozen=True, slots=True)
class _Line:
    """A cosignature, and the note that it is over, by its text."""

    text: bytes
    line: str


class _Witness:
    """One witness, as far as it is known."""

    def __init__(self, settings: WitnessSettings) -> None:
        self.settings = settings
        self.verifier = CosignatureVerifier.parse(settings.vkey)
        #: The size that it has cosigned last, as far as is known. It says so itself when that is wrong.
        self.known = 0
        self.line: _Line | None = None
        #: What it has shown, until somebody takes it.
        self.seen: Seen | None = None
        #: Whether it answered in time when it was last asked; then it is worth waiting for.
        self.prompt = True
        self.task: asyncio.Task[None] | None = None
        self.problem = ""
        self.retry_at = 0.0
        self._failures = 0

    @property
    def name(self) -> str:
        """What it is called."""
        return self.verifier.name

    @property
    def busy(self) -> bool:
        """Whether it is being asked."""
        return self.task is not None and not self.task.done()

    def succeeded(self) -> None:
        """It did what it was asked for."""
        if self.problem:
            _log.info("the witness cosigns again", witness=self.name)
        self.problem, self.retry_at, self._failures = "", 0.0, 0

    def failed(self, problem: str, now: float) -> None:
        """It did not, and is left alone for a while."""
        if problem != self.problem:
            _log.warning("the witness does not cosign", witness=self.name, problem=problem)
        self.problem, self.prompt = problem, False
        self.retry_at = now + min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._failures)
        self._failures = min(self._failures + 1, _PAUSES)


class Witnesses:
    """The witnesses of ``settings``, for the log ``origin`` whose key ``log_verifier`` has. To be closed at the end.

    ``monotonic`` gives seconds that only grow.

    Raises:
        LedgerError: a verification key in the settings is malformed.
        WitnessError: two witnesses have the same name.
    """

    def __init__(
        self,
        settings: LedgerSettings,
        *,
        origin: str,
        log_verifier: NoteVerifier,
        metrics: Metrics,
        session_factory: Callable[[], ClientSession] = new_session,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._origin = origin
        self._log_verifier = log_verifier
        self._metrics = metrics
        self._session_factory = session_factory
        self._session: ClientSession | None = None
        self._monotonic = monotonic
        self._witnesses = [_Witness(witness) for witness in settings.witnesses]
        names = [witness.name for witness in self._witnesses]
        if len(set(names)) != len(names):
            raise WitnessError(
                "Two witnesses of ledger.witnesses have the same name.", hint="Each has a name and a key of its own."
            )
        self._verifiers = [witness.verifier for witness in self._witnesses]
        #: How many have cosigned the newest checkpoint, and since when these are fewer than the quorum.
        self._count = 0
        self._since: float | None = None
        self._warned = False

    @property
    def standing(self) -> str:
        """Why issuance has to wait for cosignatures; empty when it has not to."""
        if not self._settings.quorum_required or not self._overdue():
            return ""
        return (
            f"{self._count} of the {self._settings.quorum} witnesses that are required have cosigned the ledger's newest "
            f"checkpoint, for longer than {self._settings.quorum_patience:g} seconds."
        )

    @property
    def problems(self) -> dict[str, str]:
        """By the names of those that do not cosign, why."""
        return {witness.name: witness.problem for witness in self._witnesses if witness.problem}

    async def seen(self) -> Sequence[Seen]:
        """The newest checkpoint that each witness shows, of those that answer within ``ledger.witness_timeout``."""
        sightings = await ask_witnesses(
            self._settings.witnesses,
            self._origin,
            self._log_verifier,
            self._open(),
            seconds=self._settings.witness_timeout,
        )
        return [Seen(each.name, each.checkpoint) for each in sightings if each.checkpoint is not None]

    async def cosign(self, note: bytes, checkpoint: Checkpoint, proof: Proof, *, wait: bool = True) -> Cosigned:
        """Ask those that have not cosigned ``note``; see :class:`privyseal_ca.ledger.cosigning.Cosigner`.

        Raises:
            LedgerError: the note is malformed, or has a wrong cosignature.
        """
        present = cosignatures(note, self._verifiers)
        text = checkpoint.text().encode()
        wanted = [witness for witness in self._witnesses if witness.name not in present]
        waited = []
        for witness in wanted:
            if witness.line is not None and witness.line.text == text:
                continue
            if not witness.busy and self._monotonic() >= witness.retry_at:
                witness.task = asyncio.create_task(self._ask(witness, _Asked(note, text, checkpoint, proof)))
                if wait and witness.prompt:
                    waited.append((witness, witness.task))
        if waited:
            await asyncio.wait([task for _, task in waited], timeout=self._settings.witness_timeout)
            for witness, task in waited:
                witness.prompt = witness.prompt and task.done()
        lines = {
            witness.name: witness.line.line
            for witness in wanted
            if witness.line is not None and witness.line.text == text
        }
        self._judge(len(present) + len(lines))
        return Cosigned(tuple(lines.values()), self._take_seen())

    async def close(self) -> None:
        """Ask nobody any more."""
        tasks = [witness.task for witness in self._witnesses if witness.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> ClientSession:
        if self._session is None:
            self._session = self._session_factory()
        return self._session

    def _take_seen(self) -> tuple[Seen, ...]:
        seen = tuple(witness.seen for witness in self._witnesses if witness.seen is not None)
        for witness in self._witnesses:
            witness.seen = None
        return seen

    def _judge(self, count: int) -> None:
        """Remember how many have cosigned the newest checkpoint."""
        self._count = count
        met = count >= self._settings.quorum
        self._metrics.checkpoint_cosignatures.set(count)
        self._metrics.checkpoint_quorum.set(1 if met else 0)
        if not met and self._since is None:
            self._since = self._monotonic()
        elif met:
            self._since = None
            if self._warned:
                _log.info("enough witnesses cosign again", cosignatures=count, quorum=self._settings.quorum)
        if self._overdue() and not self._warned:
            _log.warning(
                "too few witnesses cosign",
                cosignatures=count,
                quorum=self._settings.quorum,
                required=self._settings.quorum_required,
            )
        self._warned = self._overdue()

    def _overdue(self) -> bool:
        return self._since is not None and self._monotonic() - self._since > self._settings.quorum_patience

    async def _ask(self, witness: _Witness, asked: "_Asked") -> None:
        """Ask one witness. Never raises."""
        began = self._monotonic()
        try:
            line = await self._submit(witness, asked)
        except PrivySealError as error:
            witness.failed(error.message, self._monotonic())
            self._metrics.witness_up.labels(witness.name).set(0)
        else:
            if line is not None:
                witness.line = _Line(asked.text, line)
                witness.known = asked.checkpoint.size
            witness.prompt = self._monotonic() - began <= self._settings.witness_timeout
            witness.succeeded()
            self._metrics.witness_up.labels(witness.name).set(1)

    async def _submit(self, witness: _Witness, asked: "_Asked") -> str | None:
        """The cosignature line; None when another process has had a later checkpoint cosigned, as it seems.

        Raises:
            WitnessError: it does not cosign.
            LedgerError: its answer is malformed, or its signature wrong.
            StoreError: the proof cannot be read.
        """
        new = asked.checkpoint.size
        old = min(witness.known, new)
        for last in (False, True):
            reply = await self._send(witness, Submission(old, tuple(await asked.proof(old)), asked.note))
            if reply.status == HTTPStatus.OK:
                lines = answered_lines(reply.body, asked.note, [witness.verifier])
                if witness.name not in lines:
                    raise WitnessError("It answers without its cosignature.")
                return lines[witness.name][1]
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

    async def _send(self, witness: _Witness, submission: Submission) -> Reply:
        reply = await exchange(
            self._open(),
            f"{witness.settings.url.rstrip('/')}/add-checkpoint",
            seconds=_REQUEST_SECONDS,
            most=MAX_ANSWER,
            post=submission.body(),
        )
        if reply.failure:
            raise WitnessError(f"It {reply.failure}.")
        return reply

    async def _look_closer(self, witness: _Witness, checkpoint: Checkpoint, known: int | None) -> None:
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
        witness.seen = Seen(witness.name, sighting.checkpoint)
        witness.known = sighting.checkpoint.size
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


def _refusal(status: int) -> str:
    match status:
        case HTTPStatus.NOT_FOUND:
            return "It does not know this log: `privyseal witness add` on the witness."
        case HTTPStatus.FORBIDDEN:
            return "It knows this log by another key: `privyseal witness add` on the witness."
        case _:
            return f"It answers with HTTP status {status}."
