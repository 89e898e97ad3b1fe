"""Figures of what lies below this room: the database, the tokens, and when certificates end."""

import asyncio
from collections.abc import Sequence
from functools import partial

from privyseal_ca.clock import Clock
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.store.certificates import count_ending
from privyseal_ca.store.engine import Store
from privyseal_ca.telemetry.metrics import EXPIRING, Metrics
from privyseal_ca.telemetry.tracing import Tracing


def observe(store: Store, hsm: Hsm, metrics: Metrics, tracing: Tracing) -> None:
    """Have ``metrics`` and ``tracing`` show what ``store`` and ``hsm`` do from now on."""
    store.watch = StoreWatch(metrics, tracing)
    metrics.queue_depth.labels("store").set_function(lambda: store.waiting)
    metrics.queue_depth.labels("token").set_function(lambda: hsm.waiting)


class StoreWatch:
    """Shows every group of a store; a :class:`privyseal_ca.store.engine.Watch`."""

    def __init__(self, metrics: Metrics, tracing: Tracing) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self.waits = tracing.waits

    def committed(self, waited: Sequence[object], *, units: int, seconds: float, failed: bool) -> None:
        """See :meth:`privyseal_ca.store.engine.Watch.committed`."""
        if failed:
            self._metrics.commit_failures.inc()
        else:
            self._metrics.commit_seconds.observe(seconds)
            self._metrics.committed_units.inc(units)
        if waited:
            self._tracing.committed(waited, seconds, failed=failed)


async def count_expiring(store: Store, metrics: Metrics, clock: Clock) -> None:
    """Count the certificates that end, by how soon. Once a minute is often enough: one bounded look into an index for each
    bucket, and the loop is free between them.

    Raises:
        StoreUnavailableError: the database is away; buckets that were not counted stay as they were.
    """
    now = begin = int(clock.now())
    for within, seconds in EXPIRING:
        end = now + seconds
        metrics.expiring.labels(within).set(await store.read(partial(count_ending, after=begin, until=end)))
        begin = end
        await asyncio.sleep(0)
