"""Rate limits: the generic cell rate algorithm, with memory bounded by the number of keys that are remembered."""

from collections import OrderedDict
from ipaddress import ip_address, ip_network

from privyseal_ca.clock import Clock

_KEYS = 100_000


def site_of(address: str) -> str:
    """What limits on addresses count by: an IPv4 address, or the /64 that a single IPv6 host may choose from."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return str(ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


class RateLimit:
    """``events`` in every ``period`` seconds for each key, in bursts of up to ``events``. No limit when ``events`` is 0.

    Keys that were seen least recently are forgotten first once there are too many: the limit protects the service, it is
    no security boundary.
    """

    def __init__(self, *, events: int, period: int, clock: Clock) -> None:
        self._interval = period / events if events else 0.0
        self._burst = float(period)
        self._clock = clock
        self._seen = self._time = clock.now()
        #: For each key the time at which all that it used is paid back.
        self._paid: OrderedDict[str, float] = OrderedDict()

    def wait(self, key: str) -> float:
        """Seconds until one more event of ``key`` is allowed; 0 when it is allowed now. Counts nothing."""
        if not self._interval:
            return 0.0
        now = self._now()
        return max(0.0, max(self._paid.get(key, 0.0), now) + self._interval - self._burst - now)

    def count(self, key: str) -> None:
        """One event of ``key`` happened."""
        if not self._interval:
            return
        self._paid[key] = max(self._paid.get(key, 0.0), self._now()) + self._interval
        self._paid.move_to_end(key)
        if len(self._paid) > _KEYS:
            self._paid.popitem(last=False)

    def _now(self) -> float:
        """The time without the steps back of a clock: nobody waits longer for them, and nobody who owes much is let off."""
        now = self._clock.now()
        self._time += max(0.0, now - self._seen)
        self._seen = now
        return self._time
