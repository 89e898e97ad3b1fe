"""The suggested window of one certificate (RFC 9773 section 4.2): a function of its serial and of what is known.

A window has an eighth of the range that certificates of its lifetime are spread over, around two thirds of the life. Where in
the range it lies is the certificate's rank among those that fall due around it: whoever was issued first is renewed first. A
rush of one minute is drawn out over the range, each generation further than the one before, and an even load stays even.
Within a bucket, and until the ranks are settled, the hash of the serial decides.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Final

from privyseal_ca.closed_periods import ClosedPeriods, Span
from privyseal_ca.renewal.due import SETTLED, Around, Issued, due_share

#: No window begins before this share of the life is over: by then the ranks are settled and the client has asked again.
_EARLIEST: Final = 1 / 3
_SHARE_OF_WINDOW: Final = 8
#: How much of what can be signed renewals may take; the rest is for what is new.
_SHARE_OF_CAPACITY: Final = 0.5
#: How often counts are taken anew at most, in seconds.
COUNTED_EVERY: Final = 60
_LEAST_POLL: Final = 60
_MOST_POLL: Final = 86400


class Reason(StrEnum):
    """Why a window lies where it lies."""

    NORMAL = "normal"
    #: More fall due together than can be signed in the usual range: it was made longer.
    BUSY = "busy"
    CRITICAL = "critical"
    MAINTENANCE = "maintenance"
    REVOKED = "revoked"
    KEY = "key"
    ISSUER = "issuer"


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds since the epoch, and why."""

    start: int
    end: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Shape:
    """What windows are made by: shares of a life, seconds, and certificates per second."""

    spread: float = 1 / 6
    margin: float = 0.25
    closed: ClosedPeriods = field(default_factory=ClosedPeriods)


@dataclass(frozen=True, slots=True)
class _Range:
    """Where a certificate may be renewed: the usual range, and how far it may be moved. Seconds since the epoch."""

    low: float
    high: float
    earliest: float
    latest: float
    reason: Reason


def window_of(
    serial: str,
    certificate: Issued,
    *,
    around: Around,
    capacity: float,
    shape: Shape,
    now: float,
    critical: bool = False,
) -> Window:
    """The window of a certificate in good standing. It changes once at most, when the ranks are settled.

    ``capacity`` is in certificates per second. Whoever has a ``critical`` workload comes a whole range earlier.
    """
    settled = now >= certificate.not_before + SETTLED * (certificate.not_after - certificate.not_before) + COUNTED_EVERY
    here = _range(certificate, around if settled else Around(), capacity, shape, critical=critical)
    part = _fraction(serial, "window")
    rank = around.rank(part) if settled else part
    length = max(2.0, (here.high - here.low) / _SHARE_OF_WINDOW)
    start = here.low + rank * max(0.0, here.high - here.low - length)
    moved = _moved(start, length, here, shape.closed, serial) if shape.closed.periods else None
    if moved is not None:
        return _window(*moved, Reason.MAINTENANCE)
    return _window(start, start + length, here.reason)


def due_now(since: int, reason: Reason) -> Window:
    """A window that has passed at ``since``: renew at once (RFC 9773 section 4.2)."""
    return Window(since - 3600, since - 60, reason)


def poll_interval(serial: str, certificate: Issued, poll: int) -> int:
    """Retry-After in seconds: ``poll``, or a 24th of the life when that is less, a quarter more or less for each serial."""
    usual = min(poll, (certificate.not_after - certificate.not_before) / 24)
    return int(min(_MOST_POLL, max(_LEAST_POLL, usual * (0.75 + _fraction(serial, "poll") / 2))))


def _range(certificate: Issued, around: Around, capacity: float, shape: Shape, *, critical: bool) -> _Range:
    begin, life = certificate.not_before, certificate.not_after - certificate.not_before
    latest = life * (1 - shape.margin)
    middle, usual = life * due_share(life), life * shape.spread
    high = min(middle + usual / 2, latest)
    # What is there already, drawn out by the range, is to be signed at no more than the share of the capacity.
    needed = around.total / (capacity * _SHARE_OF_CAPACITY) - around.span
    width, reason = (needed, Reason.BUSY) if needed > usual else (usual, Reason.NORMAL)
    low = high - width
    if critical:
        low, high, reason = low - usual, high - usual, Reason.CRITICAL
    earliest = life * _EARLIEST
    low = max(low, earliest)
    high = max(high, low + min(usual, latest - low))
    return _Range(begin + low, begin + high, begin + earliest, begin + latest, reason)


def _moved(start: float, length: float, here: _Range, closed: ClosedPeriods, serial: str) -> Span | None:
    """Where a window goes that lies in a closed period, or None when it lies in none or cannot be moved safely.

    Before the period, over as long a time as the period itself lasts, so that not everybody comes in its last hour. Only when
    that would be too early it goes behind, and never past what leaves time for retries.
    """
    around = closed.between(start, start + length)
    if not around:
        return None
    begin, end = around[0][0], around[-1][1]
    longest = max(end - begin, here.high - here.low)
    for low, high in ((max(here.earliest, begin - longest), begin), (end, min(here.latest, end + longest))):
        found = _place(low, high, length, closed, _fraction(serial, "moved"))
        if found is not None:
            return found
    return None


def _place(low: float, high: float, length: float, closed: ClosedPeriods, part: float) -> Span | None:
    """A window at ``part`` of the open time between ``low`` and ``high``; shorter than ``length`` where there is no room."""
    if high - low < 2:
        return None
    gaps = [gap for gap in _open(low, high, closed.between(low, high)) if gap[1] - gap[0] >= length / 4]
    rest = part * sum(end - begin for begin, end in gaps)
    for begin, end in gaps:
        if rest <= end - begin or (begin, end) == gaps[-1]:
            width = min(length, end - begin)
            # Scaled, not cut off: else the last of them would share one window.
            start = begin + min(1.0, rest / (end - begin)) * (end - begin - width)
            return start, start + width
        rest -= end - begin
    return None


def _open(low: float, high: float, closed: Sequence[Span]) -> Iterator[Span]:
    for begin, end in closed:
        if begin > low:
            yield low, begin
        low = max(low, end)
    if low < high:
        yield low, high


def _window(start: float, end: float, reason: Reason) -> Window:
    # Whole seconds that differ: RFC 9773 section 4.2 wants the end after the start.
    first = int(start)
    return Window(first, max(first + 1, int(end)), reason)


def _fraction(serial: str, purpose: str) -> float:
    """A number from 0 to 1 that is the serial's own for each ``purpose``."""
    return int.from_bytes(sha256(f"{purpose}:{serial}".encode()).digest()[:6]) / (1 << 48)
