"""Answers that are given again to whoever asks in the same words."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from multidict import CIMultiDict

#: What a request or an answer takes in memory beside its octets, roughly.
_OVERHEAD: Final = 1536
#: Longer requests carry things of their own, and nobody asks like that again.
_LONGEST_KEY: Final = 512


@dataclass(frozen=True, slots=True)
class Prepared:
    """An answer as it is sent. Times are seconds since the epoch."""

    body: bytes
    headers: CIMultiDict[str]
    """Never changed: every response has a copy."""
    sha256: bytes
    last_modified: int | None
    """None when another answer may have had the same second."""
    until: float
    """When it is to be made anew."""
    serial: str


class AnswerCache:
    """At most ``entries`` answers of ``octets`` in all, by request; what was not asked for longest goes first.

    To be used on one thread only.
    """

    def __init__(self, *, entries: int = 50_000, octets: int = 128 * 1024 * 1024) -> None:
        self._entries = entries
        self._octets = octets
        self._used = 0
        self._kept: OrderedDict[str | bytes, Prepared] = OrderedDict()
        self._by_serial: dict[str, set[str | bytes]] = {}
        #: How often answers were forgotten. Who asks for an answer while this changes must not keep it.
        self.changes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def octets(self) -> int:
        """What the answers take, roughly."""
        return self._used

    def get(self, request: str | bytes, now: float) -> Prepared | None:
        """The answer to ``request``, unless it is to be made anew."""
        prepared = self._kept.get(request)
        if prepared is None:
            return None
        if prepared.until <= now:
            self._drop(request)
            return None
        self._kept.move_to_end(request)
        return prepared

    def put(self, request: str | bytes, prepared: Prepared) -> None:
        """Keep ``prepared``."""
        if len(request) > _LONGEST_KEY:
            return
        self._drop(request)
        self._kept[request] = prepared
        self._by_serial.setdefault(prepared.serial, set()).add(request)
        self._used += _size(request, prepared)
        while len(self._kept) > self._entries or self._used > self._octets:
            self._drop(next(iter(self._kept)))

    def forget(self, serials: Iterable[str]) -> None:
        """Drop every answer about ``serials``."""
        self.changes += 1
        for serial in serials:
            for request in tuple(self._by_serial.get(serial, ())):
                self._drop(request)

    def _drop(self, request: str | bytes) -> None:
        prepared = self._kept.pop(request, None)
        if prepared is None:
            return
        self._used -= _size(request, prepared)
        requests = self._by_serial[prepared.serial]
        requests.discard(request)
        if not requests:
            del self._by_serial[prepared.serial]


def _size(request: str | bytes, prepared: Prepared) -> int:
    return len(request) + len(prepared.body) + _OVERHEAD
