"""What the metrics show of the fleet. The process that leads surveys it."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Final

from prometheus_client import Gauge

from privyseal_acme.protocol.problems import STATUS
from privyseal_ca.clock import Clock
from privyseal_ca.fleet.survey import FleetFigures
from privyseal_ca.fleet.survey_store import survey_fleet
from privyseal_ca.fleet.survival import OTHER
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import all_issuers
from privyseal_ca.telemetry.metrics import Metrics

#: At most this share of the time is spent on surveys.
_SHARE: Final = 1 / 60

_Labels = tuple[str, ...]


class FleetGauges:
    """Shows states, missed renewals, owners, failures and the survival clock. ``timer`` gives seconds that only grow."""

    def __init__(
        self, store: Store, metrics: Metrics, clock: Clock, *, timer: Callable[[], float] = perf_counter
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._timer = timer
        self._shown: dict[Gauge, set[_Labels]] = {}
        #: Until when there is to be no other survey, by the timer.
        self._rest = 0.0

    async def show(self) -> FleetFigures | None:
        """Survey the fleet, or do nothing when the last survey took long and was not long ago.

        Raises:
            StoreUnavailableError: the database is away; what was shown stays.
        """
        begun = self._timer()
        if begun < self._rest:
            return None
        figures = await survey_fleet(self._store, self._clock.now())
        issuers = await self._store.read(all_issuers)
        self._show(figures, {issuer.id: issuer.name for issuer in issuers})
        ended = self._timer()
        # A survey that takes a second or more would otherwise come again after less than sixty times that.
        self._rest = ended + (ended - begun) / _SHARE if ended - begun > 1 else 0.0
        return figures

    def _show(self, figures: FleetFigures, issuers: Mapping[str, str]) -> None:
        metrics = self._metrics
        self._set(
            metrics.fleet_lineages,
            {(state, criticality): count for state, by in figures.states.items() for criticality, count in by.items()},
        )
        self._set(metrics.fleet_missed, {(criticality,): count for criticality, count in figures.missed.items()})
        metrics.fleet_unowned.set(figures.unowned)
        failing: dict[_Labels, float] = {}
        for problem, count in figures.failing.items():
            label = (problem if problem in STATUS else OTHER,)
            failing[label] = failing.get(label, 0) + count
        self._set(metrics.fleet_failing, failing)
        self._set(
            metrics.survival,
            {
                (each.by, issuers.get(each.group, each.group) if each.by == "issuer" else each.group, share): moment
                - figures.now
                for each in figures.survival
                for share, moment in each.moments.items()
            },
        )

    def _set(self, gauge: Gauge, values: Mapping[_Labels, float]) -> None:
        """Show ``values``, and no longer what is not among them."""
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
        for labels in self._shown.get(gauge, set()) - values.keys():
            gauge.remove(*labels)
        self._shown[gauge] = set(values)
