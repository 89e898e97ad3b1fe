"""How far exports are, as the service shows it."""

from privyseal_ca.clock import Clock
from privyseal_ca.export.exporter import listed
from privyseal_ca.store.engine import Store
from privyseal_ca.telemetry.metrics import Metrics


async def export_figures(store: Store, metrics: Metrics, clock: Clock) -> None:
    """Set the metrics of every export there is, and drop those of the others. One read; every 15 seconds is often enough.

    Raises:
        StoreUnavailableError: the database is away; the metrics stay as they were.
    """
    rows, size = await listed(store)
    now = clock.now()
    for gauge in (metrics.export_lag, metrics.export_age, metrics.export_problem):
        gauge.clear()
    for row in rows:
        metrics.export_lag.labels(row.name).set(max(0, size - row.next))
        metrics.export_age.labels(row.name).set(max(0.0, now - row.updated_at))
        metrics.export_problem.labels(row.name).set(row.problem is not None)
