"""How a check ended: the problem its client is told, and the evidence that is kept."""

import re
from dataclasses import dataclass, field
from typing import Any

from privyseal_ca.errors import PrivySealError

Entry = dict[str, str | int | list[str]]

_EVIDENCE_BYTES = 3072
_TEXT_LIMIT = 255
# Quotes and backslashes too: what is kept then takes as many bytes in JSON as in memory.
_UNPRINTABLE = re.compile(r"[^ !#-\[\]-~]")


@dataclass(frozen=True, slots=True)
class ValidationProblem:
    """Why a challenge failed: ``type`` is an ACME error token (RFC 8555 section 6.7), ``detail`` is for the client."""

    type: str
    detail: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a check. ``evidence`` is JSON-able, below 4 KiB, and holds only ASCII strings, integers and lists."""

    valid: bool
    problem: ValidationProblem | None
    evidence: dict[str, Any] = field(default_factory=dict)


class ValidationFailedError(PrivySealError):
    """One attempt did not prove control.

    Attributes:
        problem: what the client is told.
        permanent: another attempt would meet the same refusal, so none is made.
    """

    def __init__(self, type_: str, detail: str, *, permanent: bool = False) -> None:
        super().__init__(detail)
        self.problem = ValidationProblem(type_, detail)
        self.permanent = permanent


def printable(text: str | bytes, limit: int = _TEXT_LIMIT) -> str:
    """A stranger's ``text`` with what is not plain printable ASCII replaced by ``?``, cut to ``limit`` characters."""
    if isinstance(text, bytes):
        text = text[: limit + 1].decode("latin-1")
    return _UNPRINTABLE.sub("?", text if len(text) <= limit else f"{text[: limit - 3]}...")


class Evidence:
    """What one attempt asked, from where, and what came back. It stops taking facts when it is full (promise P12).

    ``waiting`` says at any moment what is being waited for, as error token and clause: the explanation of a time-out.
    """

    __slots__ = ("_facts", "_room", "waiting")

    def __init__(self) -> None:
        self.waiting = ("serverInternal", "The check")
        self._facts: dict[str, Any] = {}
        self._room = _EVIDENCE_BYTES

    def add(self, kind: str, entry: Entry) -> None:
        """Append ``entry`` to the list of facts of this ``kind``. Its strings must be :func:`printable`."""
        if self._has_room(entry):
            self._facts.setdefault(kind, []).append(entry)

    def note(self, kind: str, value: str | int) -> None:
        """Record a single fact; a later one of the same ``kind`` replaces it."""
        if self._has_room(value):
            self._facts[kind] = value

    def facts(self) -> dict[str, Any]:
        """Everything that was recorded."""
        return self._facts

    def _has_room(self, value: object) -> bool:
        cost = len(repr(value)) + 16
        if cost > self._room:
            self._facts["truncated"] = 1
            return False
        self._room -= cost
        return True
