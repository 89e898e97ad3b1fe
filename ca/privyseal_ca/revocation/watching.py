"""What a watcher remembers between its rounds: which CRLs must be visible by now, and which canaries were seen."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from privyseal_ca.revocation.published import Canary, PublishedCrl

#: CRLs of one scope that are remembered because caches may not have them yet.
_REMEMBERED: Final = 256
#: A canary that was revoked longer ago when it is first heard of is not measured: it may have been visible before.
FRESH_SECONDS: Final = 60.0

Scope = tuple[str, int | None, bool]
"""Issuer id, shard, delta."""
Where = Literal["crl", "ocsp"]
EVERYWHERE: Final[tuple[Where, ...]] = ("crl", "ocsp")


def scope_of(crl: PublishedCrl) -> Scope:
    """The scope of ``crl``."""
    return crl.issuer_id, crl.shard, crl.delta


@dataclass(slots=True)
class _Due:
    """What is known of one scope."""

    newest: PublishedCrl
    least: int = 0
    waiting: deque[PublishedCrl] = field(default_factory=deque)


class Floors:
    """The lowest CRL number that each scope may show: what was replaced may be seen for ``allowance`` seconds more,
    for so long it may take to publish it and caches may keep the one before."""

    def __init__(self, allowance: float) -> None:
        self._allowance = allowance
        self._scopes: dict[Scope, _Due] = {}

    def learn(self, crls: Iterable[PublishedCrl], now: float) -> None:
        """Remember what was published; scopes that are not among ``crls`` are forgotten."""
        known, self._scopes = self._scopes, {}
        for crl in crls:
            scope = self._scopes[scope_of(crl)] = known.get(scope_of(crl)) or _Due(crl)
            last = scope.waiting[-1].number if scope.waiting else scope.least
            # When there is no room for more, the next one that is learnt stands for those between.
            if crl.number > last and len(scope.waiting) < _REMEMBERED:
                scope.waiting.append(crl)
            if crl.number >= scope.newest.number:
                scope.newest = crl
            while scope.waiting and scope.waiting[0].this_update + self._allowance <= now:
                scope.least = scope.waiting.popleft().number

    def least(self, scope: Scope) -> int:
        """The lowest number that may be seen; 0 when any may."""
        found = self._scopes.get(scope)
        return found.least if found else 0

    def with_digest(self, scope: Scope, sha256: bytes) -> PublishedCrl | None:
        """The CRL of ``scope`` with this hash, when it is one of those that were published of late."""
        found = self._scopes.get(scope)
        candidates = (found.newest, *found.waiting) if found else ()
        return next((crl for crl in candidates if crl.sha256 == sha256), None)


class Sightings:
    """Where each canary was seen as revoked, and after how many seconds."""

    def __init__(self) -> None:
        #: By serial: where it was not seen yet.
        self._unseen: dict[str, set[Where]] = {}
        #: Serials of those that were fresh when they were first heard of.
        self._measured: set[str] = set()

    def learn(self, canaries: Iterable[Canary], now: float) -> None:
        """Hear of canaries; those that are not among them are forgotten."""
        serials = set()
        for canary in canaries:
            serials.add(canary.serial)
            if canary.serial not in self._unseen:
                self._unseen[canary.serial] = set(EVERYWHERE)
                if now - canary.revoked_at <= FRESH_SECONDS:
                    self._measured.add(canary.serial)
        self._unseen = {serial: unseen for serial, unseen in self._unseen.items() if serial in serials}
        self._measured &= serials

    def see(self, canary: Canary, where: Where, now: float) -> float | None:
        """Record that ``canary`` is seen; the seconds that it took, when this is the first time and they are known."""
        unseen = self._unseen.get(canary.serial, set())
        if where not in unseen:
            return None
        unseen.remove(where)
        return max(0.0, now - canary.revoked_at) if canary.serial in self._measured else None

    def waited_for(self, canaries: Iterable[Canary], now: float) -> list[Canary]:
        """Those of ``canaries`` that are fresh and not seen everywhere: they are looked for at short intervals."""
        return [
            canary
            for canary in canaries
            if self._unseen.get(canary.serial) and -FRESH_SECONDS <= now - canary.revoked_at <= FRESH_SECONDS
        ]


@dataclass(frozen=True, slots=True)
class WatchReport:
    """What a watcher found in one round."""

    problems: Mapping[str, list[str]]
    """Of every issuer, by its name: sentences about what is served; none when all of it is as it must be."""
    checked_at: float
    """Seconds since the epoch."""

    @property
    def summary(self) -> str:
        """The first problem and how many others there are; empty when there are none."""
        every = [f"{issuer}: {problem}" for issuer, problems in self.problems.items() for problem in problems]
        if not every:
            return ""
        return every[0] + (f" (and {len(every) - 1} more)" if len(every) > 1 else "")
