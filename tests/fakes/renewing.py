"""A fleet whose certificates were all issued in one minute, and which renews as RFC 9773 section 4.2 has clients do it.

The windows are the product's own; clients and time are simulated. A client asks when it has its certificate and again after
Retry-After; it takes a uniform random moment of the window, renews then when that comes before it would ask again, and else
asks again. The counts are behind by up to a minute, as the service's are.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from privyseal_ca.renewal.due import DueCounts, Issued
from privyseal_ca.renewal.windows import COUNTED_EVERY, Reason, Shape, Window, poll_interval, window_of

#: Certificate, its serial and the present, to a window.
Suggest = Callable[[Issued, str, float], Window]


@dataclass(frozen=True)
class Generation:
    """What the fleet's clients did to get their certificates anew."""

    renewals: int
    #: In the busiest minute, and on average from the first minute to the last.
    peak: int
    mean: float
    minutes: int
    #: The smallest part of a life that was left at a renewal.
    least_left: float

    @property
    def ratio(self) -> float:
        """How much higher the peak is than the mean."""
        return self.peak / self.mean


class Fleet:
    """``count`` clients with certificates of ``lifetime`` seconds from the minute that begins at ``begin``."""

    def __init__(self, count: int, lifetime: int, *, begin: int, seed: int, poll: int = 21_600) -> None:
        self._random = random.Random(seed)  # noqa: S311 (a repeatable load)
        self._lifetime = lifetime
        self._begin = begin
        self._count = count
        self._poll = poll
        self._counts = DueCounts()
        self._uncounted: list[Issued] = []
        self._counted_at = 0.0

    def shaped(self, shape: Shape, capacity: float = 0) -> Suggest:
        """The product's windows; with the capacity that was seen when none is given."""

        def suggest(certificate: Issued, serial: str, now: float) -> Window:
            self._count_again(now)
            return window_of(
                serial,
                certificate,
                around=self._counts.around(certificate),
                capacity=capacity or self._counts.capacity,
                shape=shape,
                now=now,
            )

        return suggest

    def renew(self, generations: int, suggest: Suggest) -> list[Generation]:
        """What each of ``generations`` renewals of every certificate looked like."""
        minutes: list[Counter[int]] = [Counter() for _ in range(generations)]
        left = [1.0] * generations
        waiting = [self._issued(self._begin + self._random.random() * 60, 0) for _ in range(self._count)]
        heapq.heapify(waiting)
        while waiting:
            now, serial, issued, number, chosen = heapq.heappop(waiting)
            certificate = Issued(issued, issued + self._lifetime)
            if chosen:
                minutes[number][int(now) // 60] += 1
                left[number] = min(left[number], (certificate.not_after - now) / self._lifetime)
                if number + 1 < generations:
                    heapq.heappush(waiting, self._issued(now, number + 1))
                continue
            window = suggest(certificate, serial, now)
            asks_again = now + poll_interval(serial, certificate, self._poll)
            moment = window.start + self._random.random() * (window.end - window.start)
            if moment < asks_again:
                heapq.heappush(waiting, (max(now, moment), serial, issued, number, True))
            else:
                heapq.heappush(waiting, (asks_again, serial, issued, number, False))
        return [_generation(each, least) for each, least in zip(minutes, left, strict=True)]

    def _issued(self, now: float, number: int) -> tuple[float, str, int, int, bool]:
        """A new certificate's client: when it acts, serial, notBefore, generation, and whether it renews then or asks."""
        certificate = Issued(int(now), int(now) + self._lifetime)
        self._uncounted.append(certificate)
        serial = f"{self._random.getrandbits(127):032x}"
        # No window begins in the first third of a life, so questions after which another comes in it change nothing.
        interval = poll_interval(serial, certificate, self._poll)
        idle = max(0, int(self._lifetime / 3 / interval) - 1)
        return now + idle * interval, serial, int(now), number, False

    def _count_again(self, now: float) -> None:
        if now - self._counted_at >= COUNTED_EVERY:
            self._counts.add(self._uncounted)
            self._uncounted.clear()
            self._counts.forget(now)
            self._counted_at = now


def fixed(certificate: Issued, serial: str, now: float) -> Window:
    """What many servers suggest: everybody renews from two thirds of the life on, within a minute."""
    del serial, now
    start = certificate.not_before + (certificate.not_after - certificate.not_before) * 2 // 3
    return Window(start, start + 60, Reason.NORMAL)


def _generation(minutes: Counter[int], least_left: float) -> Generation:
    renewals, length = minutes.total(), max(minutes) - min(minutes) + 1
    return Generation(renewals, max(minutes.values()), renewals / length, length, least_left)
