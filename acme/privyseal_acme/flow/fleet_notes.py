"""What clients let on in passing: that they asked when to renew, and attempts of theirs that failed.

Both are noted in memory, which costs requests next to nothing, and written to the workloads they are about every few seconds.
What a killed process had not written is lost: clients ask again, and who fails once fails again.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import orjson

from privyseal_acme.protocol.messages import IdentifierMessage
from privyseal_acme.protocol.problems import Problem
from privyseal_acme.store.orders import OrderRow
from privyseal_ca.errors import PrivySealError
from privyseal_ca.identifiers import parse_identifier

#: Questions and attempts that are kept until they are written; when there are more, the oldest go.
_MOST_POLLS: Final = 200_000
_MOST_ATTEMPTS: Final = 5_000
#: Of those attempts, as many may be one requester's: who invents names puts out nobody else's.
_MOST_OF_ONE: Final = 500
#: Of one text, and of all that is kept of one attempt, in characters.
_TEXT: Final = 1000
_DOCUMENT: Final = 6000
#: Of all names of one attempt, in characters; what has more is about no certificate that anybody has.
_NAMES: Final = 16_000

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
    #: Where only an authorization is known, its id: the orders that name it are looked for, from ``begun`` on.
    authorization: str | None = None
    begun: int = field(default=0, compare=False)
    #: The order that the last attempt was for, when there is one: if it succeeds after all, nothing has failed.
    order: str = field(default="", compare=False)


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

    # Not plain dictionaries: those look through all that was taken from their front to find the first that is left.
    _polls: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _attempts: OrderedDict[Subject, Attempts] = field(default_factory=OrderedDict)
    #: How many of the attempts are each requester's.
    _each: Counter[str] = field(default_factory=Counter)

    def polled(self, serial: str, now: float) -> None:
        """Somebody asked when the certificate is to be renewed."""
        # Taken out first: what is new stands at the end, and what goes is the oldest.
        self._polls.pop(serial, None)
        if len(self._polls) >= _MOST_POLLS:
            self._polls.popitem(last=False)
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
        before = self._take(subject)
        if before is None and self._each[subject.requester] >= _MOST_OF_ONE:
            return
        if before is None and len(self._attempts) >= _MOST_ATTEMPTS:
            self._take(next(iter(self._attempts)))
        moment = int(now)
        self._put(
            subject, Attempts(before.count + 1 if before else 1, before.first if before else moment, moment, text)
        )

    def take_polls(self, count: int) -> list[tuple[str, int]]:
        """Up to ``count`` questions, by serial, that are not noted here any more."""
        taken: list[tuple[str, int]] = []
        while self._polls and len(taken) < count:
            taken.append(self._polls.popitem(last=False))
        return taken

    def take_attempts(self, count: int) -> list[tuple[Subject, Attempts]]:
        """Up to ``count`` subjects with their failed attempts, which are not noted here any more."""
        taken: list[tuple[Subject, Attempts]] = []
        while self._attempts and len(taken) < count:
            subject = next(iter(self._attempts))
            taken.append((subject, self._attempts[subject]))
            self._take(subject)
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
                self._put(subject, each)

    def _put(self, subject: Subject, each: Attempts) -> None:
        self._attempts[subject] = each
        self._each[subject.requester] += 1

    def _take(self, subject: Subject) -> Attempts | None:
        each = self._attempts.pop(subject, None)
        if each is not None:
            self._each[subject.requester] -= 1
            if not self._each[subject.requester]:
                del self._each[subject.requester]
        return each


def names_of(identifiers: Iterable[IdentifierMessage]) -> tuple[str, ...]:
    """The names of a request as a certificate's row has them, or would have them if they were any good; none when too many."""
    names: set[str] = set()
    length = 0
    for each in identifiers:
        name = _canonical(each.type, each.value)
        length += len(name)
        if length > _NAMES:
            return ()
        names.add(name)
    return tuple(sorted(names))


def subject_of(row: OrderRow) -> Subject:
    """What an order is for."""
    names = tuple(sorted(f"{kind}:{value}" for kind, value in orjson.loads(row.identifiers)))
    return Subject(f"account:{row.account_id}", row.profile, names, row.replaces, order=row.id)


def printable(text: str) -> str:
    """``text`` without what no database, terminal or page should get to see."""
    return text if text.isprintable() else "".join(character for character in text if character.isprintable())


def names_hash(requester: str, profile: str, names: Iterable[str]) -> bytes:
    """What workloads are found by that say nothing of a predecessor: SHA-256 of all three."""
    return sha256("\0".join((requester, profile, *sorted(names))).encode()).digest()


def _canonical(kind: str, value: str) -> str:
    if kind == "ip":
        # Addresses have many spellings.
        try:
            return f"ip:{parse_identifier(kind, value).value}"
        except PrivySealError:
            pass
    return _name(kind, value)


def _name(kind: str, value: str) -> str:
    return f"{printable(kind[:16])}:{printable(value[:256].lower())}"
