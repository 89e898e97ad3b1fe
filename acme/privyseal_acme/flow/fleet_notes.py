"""What clients let on in passing: that they asked when to renew, and attempts of theirs that failed.

Both are noted in memory, which costs requests next to nothing, and written to the workloads they are about every few seconds.
What a killed process had not written is lost: clients ask again, and who fails once fails again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import orjson

from privyseal_acme.protocol.messages import IdentifierMessage
from privyseal_acme.protocol.problems import Problem
from privyseal_acme.store.orders import OrderRow

#: Questions and attempts that are kept until they are written; when there are more, the oldest go.
_MOST_POLLS: Final = 200_000
_MOST_ATTEMPTS: Final = 5_000
#: Of one text, and of all that is kept of one attempt, in characters.
_TEXT: Final = 1000
_DOCUMENT: Final = 6000
_NAMES: Final = 100

#: Problems that say nothing about the client: it did right, or only has to try again.
_NOT_THE_CLIENT: Final = frozenset(
    {"serverInternal", "orderNotReady", "alreadyReplaced", "badNonce", "accountDoesNotExist"}
)


@dataclass(frozen=True, slots=True)
class Subject:
    """What an attempt was for: the workload that is found by it."""

    #: As ``account:ID``.
    requester: str
    profile: str
    #: As in a certificate's row: ``type:value`` each.
    names: tuple[str, ...]
    #: The ARI identifier of the certificate that was to be replaced (RFC 9773 section 4.1).
    replaces: str | None = None
    #: Where only an authorization is known, its id: the orders that name it are looked for.
    authorization: str | None = None


@dataclass(slots=True)
class Attempts:
    """Failed attempts for one subject."""

    count: int
    first: int
    last: int
    #: The last of them, as JSON.
    document: str


@dataclass(slots=True)
class FleetNotes:
    """The notes of one process. For the event loop's thread only."""

    _polls: dict[str, int] = field(default_factory=dict)
    _attempts: dict[Subject, Attempts] = field(default_factory=dict)

    def polled(self, serial: str, now: float) -> None:
        """Somebody asked when the certificate is to be renewed."""
        # Taken out first: what is new stands at the end, and what goes is the oldest.
        self._polls.pop(serial, None)
        if len(self._polls) >= _MOST_POLLS:
            del self._polls[next(iter(self._polls))]
        self._polls[serial] = int(now)

    def failed(
        self,
        subject: Subject,
        problem: Problem,
        now: float,
        *,
        stage: str,
        seen: Mapping[str, Any] | None = None,
        **what: str,
    ) -> None:
        """An attempt has failed for a reason that its client can do something about.

        Args:
            subject: what it was for.
            problem: what the client was told.
            now: seconds since the epoch.
            stage: ``order``, ``validation``, ``finalize`` or ``issuance``.
            seen: the evidence of a validation.
            what: ``challenge`` and ``identifier`` of a validation.
        """
        if problem.status >= 500 or problem.type in _NOT_THE_CLIENT:
            return
        document: dict[str, Any] = {"stage": stage, "type": problem.type, "detail": problem.detail[:_TEXT], **what}
        if problem.subproblems and not what:
            first = problem.subproblems[0]
            document |= {
                "detail": first.detail[:_TEXT],
                "identifier": _name(first.identifier_type, first.identifier_value),
            }
        if seen is not None:
            document["seen"] = dict(seen)
        text = orjson.dumps(document).decode()
        if len(text) > _DOCUMENT:
            document.pop("seen", None)
            text = orjson.dumps(document).decode()
        before = self._attempts.pop(subject, None)
        if before is None and len(self._attempts) >= _MOST_ATTEMPTS:
            del self._attempts[next(iter(self._attempts))]
        moment = int(now)
        self._attempts[subject] = Attempts(
            before.count + 1 if before else 1, before.first if before else moment, moment, text
        )

    def take_polls(self, count: int) -> list[tuple[str, int]]:
        """Up to ``count`` questions, by serial, that are not noted here any more."""
        taken: list[tuple[str, int]] = []
        while self._polls and len(taken) < count:
            serial = next(iter(self._polls))
            taken.append((serial, self._polls.pop(serial)))
        return taken

    def take_attempts(self, count: int) -> list[tuple[Subject, Attempts]]:
        """Up to ``count`` subjects with their failed attempts, which are not noted here any more."""
        taken: list[tuple[Subject, Attempts]] = []
        while self._attempts and len(taken) < count:
            subject = next(iter(self._attempts))
            taken.append((subject, self._attempts.pop(subject)))
        return taken

    def give_back(
        self, polls: Iterable[tuple[str, int]] = (), attempts: Iterable[tuple[Subject, Attempts]] = ()
    ) -> None:
        """Note again what could not be written; what was noted since is newer."""
        for serial, moment in polls:
            if len(self._polls) < _MOST_POLLS:
                self._polls.setdefault(serial, moment)
        for subject, each in attempts:
            newer = self._attempts.get(subject)
            if newer is not None:
                newer.count += each.count
                newer.first = each.first
            elif len(self._attempts) < _MOST_ATTEMPTS:
                self._attempts[subject] = each


def names_of(identifiers: Iterable[IdentifierMessage]) -> tuple[str, ...]:
    """The names of a request as a certificate's row has them, or would have them if they were any good."""
    return tuple(sorted({_name(each.type, each.value) for each in list(identifiers)[:_NAMES]}))


def subject_of(row: OrderRow) -> Subject:
    """What an order is for."""
    names = tuple(sorted(f"{kind}:{value}" for kind, value in orjson.loads(row.identifiers)))
    return Subject(f"account:{row.account_id}", row.profile, names, row.replaces)


def names_hash(requester: str, profile: str, names: Iterable[str]) -> bytes:
    """What workloads are found by that say nothing of a predecessor: SHA-256 of all three."""
    return sha256("\0".join((requester, profile, *sorted(names))).encode()).digest()


def _name(kind: str, value: str) -> str:
    printable = "".join(character for character in value[:256].lower() if character.isprintable())
    return f"{kind[:16]}:{printable}"
