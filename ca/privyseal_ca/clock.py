"""Time, injected everywhere, so that tests can turn it."""

import time
from datetime import UTC, datetime
from typing import Final, Protocol

#: How many seconds a thisUpdate may be ahead of the clock before the clock that made it counts as having been wrong.
CLOCK_STEP: Final = 300


class Clock(Protocol):
    """Tells the time of day."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()


def rfc3339(seconds: float) -> str:
    """``seconds`` since the epoch as RFC 3339 text in UTC with whole seconds, such as ``2026-11-21T10:00:00Z``."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_milliseconds(seconds: float) -> str:
    """``seconds`` since the epoch as RFC 3339 text in UTC with milliseconds, as ledger entries carry it."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment.strftime('%Y-%m-%dT%H:%M:%S')}.{moment.microsecond // 1000:03d}Z"
