"""What is known of a witness that is asked: what it has cosigned last, whether it is worth waiting for, when to try again."""

import asyncio
from dataclasses import dataclass
from typing import Final

import structlog

from privyseal_ca.ledger.cosignatures import CosignatureVerifier
from privyseal_ca.ledger.cosigning import Seen
from privyseal_ca.sections import WitnessSettings

_log = structlog.get_logger("witness")

#: How long a witness that failed is left alone, in seconds: at first, and at most.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
_PAUSES: Final = 7
#: A witness that was late must answer in time so often before it is waited for again: at first, and at most.
_FIRST_PROBATION: Final = 1
_LONGEST_PROBATION: Final = 64


@dataclass(frozen=True, slots=True)
class Line:
    """A cosignature, and the note that it is over, by its text."""

    text: bytes
    line: str
    #: When the witness says that it made it, in seconds since the epoch.
    time: int
    #: When it arrived here, in monotonic seconds.
    arrived: float


class Peer:
    """One witness, as far as it is known."""

    def __init__(self, settings: WitnessSettings) -> None:
        self.settings = settings
        self.verifier = CosignatureVerifier.parse(settings.vkey)
        #: Whether it was asked what it has seen before anything was sent to it.
        self.looked = False
        #: The size that it has cosigned last, as far as is known. It says so itself when that is wrong.
        self.known = 0
        self.line: Line | None = None
        #: When the newest checkpoint that it has cosigned was the ledger's newest, in monotonic seconds.
        self.covered = float("-inf")
        #: What it has shown, until somebody takes it.
        self.seen: Seen | None = None
        self.task: asyncio.Task[None] | None = None
        self.problem = ""
        self.retry_at = 0.0
        self._failures = 0
        #: How often it has to answer in time before it is waited for, and how often when it is late again.
        self._probation = 0
        self._next_probation = _FIRST_PROBATION

    @property
    def name(self) -> str:
        """What it is called."""
        return self.verifier.name

    @property
    def busy(self) -> bool:
        """Whether it is being asked."""
        return self.task is not None and not self.task.done()

    @property
    def prompt(self) -> bool:
        """Whether it is worth waiting for."""
        return self._probation == 0

    def line_over(self, text: bytes) -> Line | None:
        """Its cosignature over the note with ``text``, when this process has it."""
        return self.line if self.line is not None and self.line.text == text else None

    def in_time(self) -> None:
        """It answered within the time that a checkpoint waits."""
        self._probation = max(0, self._probation - 1)

    def slow(self) -> None:
        """It answered later than that, and nobody waited for it."""
        self._probation = max(1, self._probation)

    def late(self) -> None:
        """A checkpoint waited for it in vain. One that is late now and then holds up ever fewer of them."""
        self._probation = self._next_probation
        self._next_probation = min(2 * self._next_probation, _LONGEST_PROBATION)

    def succeeded(self) -> None:
        """It did what it was asked for."""
        if self.problem:
            _log.info("the witness cosigns again", witness=self.name)
        self.problem, self.retry_at, self._failures = "", 0.0, 0

    def failed(self, problem: str, now: float) -> None:
        """It did not, and is left alone for a while."""
        if problem != self.problem:
            _log.warning("the witness does not cosign", witness=self.name, problem=problem)
        self.problem = problem
        self.slow()
        self.retry_at = now + min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._failures)
        self._failures = min(self._failures + 1, _PAUSES)
