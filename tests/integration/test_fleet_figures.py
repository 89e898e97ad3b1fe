"""What a survey makes of a real database, what the metrics show of it, and that nobody waits for it."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from functools import partial

import pytest

from fakes.lineages import DAY, NOW, attempt, late, lineage
from fakes.service import FakeClock
from privyseal_acme.flow.fleet_figures import FleetGauges
from privyseal_ca.fleet.survey import Survey
from privyseal_ca.fleet.survey_store import survey_fleet
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.fleet import LineageRow, add_lineage, change_lineage
from privyseal_ca.store.fleet_survey import survey_page
from privyseal_ca.store.issuers import IssuerRow, add_issuer
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics


@pytest.fixture
async def store(migrated_url: str) -> AsyncIterator[Store]:
    store = Store(backend_for(migrated_url, durable=False, timeout=5), queue=1000)
    await store.open()
    yield store
    await store.close()


async def add(store: Store, *rows: LineageRow) -> None:
    def unit(transaction: Transaction) -> None:
        for row in rows:
            add_lineage(transaction, row)

    await store.write(unit)


def values(metrics: Metrics, name: str) -> Mapping[tuple[str, ...], float]:
    """The series of a gauge by the values of its labels."""
    [family] = [each for each in metrics.registry.collect() if each.name == name]
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


async def test_pages_are_put_together(store: Store) -> None:
    await add(store, *(lineage(f"w{number:04d}", owner=f"o{number % 3}") for number in range(1203)))
    figures = await survey_fleet(store, NOW)
    assert figures.workloads == 1203
    assert [each.workloads for each in figures.owners] == [401, 401, 401]
    assert figures.survival[0].first == NOW + 15 * DAY
    survey = Survey(NOW)
    for after in ("", "w0499", "w0999"):
        survey.add(await store.read(partial(survey_page, after=after)))
    assert survey.figures() == figures


async def test_the_gauges(store: Store) -> None:
    issuer = IssuerRow("cd" * 20, "issuing-1", "active", "pkcs11:object=x", "ec-p256", "{}", None, 0, NOW)
    await store.write(partial(add_issuer, row=issuer))
    await add(
        store,
        lineage("a", owner="shop", issuer_id=issuer.id),
        late("b", owner="data", criticality="critical"),
        late("c", state="failing", attempts=1, attempt=attempt("order", "rejectedIdentifier")),
        late("d", state="failing", attempts=1, attempt=attempt("order", "what-nobody-knows")),
        lineage("e", state="retired", retired_at=NOW),
    )
    metrics, clock = Metrics(), FakeClock(NOW)
    gauges = FleetGauges(store, metrics, clock)
    await gauges.show()
    lineages = values(metrics, "privyseal_fleet_lineages")
    assert len(lineages) == 7 * 4
    assert {labels: value for labels, value in lineages.items() if value} == {
        ("current", "normal"): 1,
        ("silent", "critical"): 1,
        ("failing", "normal"): 2,
        ("retired", "normal"): 1,
    }
    assert values(metrics, "privyseal_fleet_missed") == {("critical",): 1, ("high",): 0, ("normal",): 2, ("low",): 0}
    assert values(metrics, "privyseal_fleet_unowned") == {(): 2}
    assert values(metrics, "privyseal_fleet_failing") == {("rejectedIdentifier",): 1, ("other",): 1}
    survival = values(metrics, "privyseal_survival_seconds")
    assert survival["all", "", "first"] == 5 * DAY
    assert survival["all", "", "90"] == 15 * DAY
    assert survival["issuer", issuer.name, "first"] == 15 * DAY
    assert {labels[1] for labels in survival if labels[0] == "owner"} == {"", "shop", "data"}

    def unit(transaction: Transaction) -> None:
        change_lineage(transaction, "b", state="retired", retired_at=NOW, missed_at=0)
        change_lineage(transaction, "c", state="current", attempts=0, attempt="")

    await store.write(unit)
    clock.advance(DAY)
    await gauges.show()
    assert values(metrics, "privyseal_fleet_failing") == {("other",): 1}
    survival = values(metrics, "privyseal_survival_seconds")
    assert survival["all", "", "first"] == 4 * DAY
    assert {labels[1] for labels in survival if labels[0] == "owner"} == {"", "shop"}
    assert ("criticality", "critical", "first") not in survival


async def test_owners_beyond_thirty_two_share_a_series(store: Store) -> None:
    await add(store, *(lineage(f"w{number}", owner=f"owner-{number}") for number in range(50)))
    metrics = Metrics()
    await FleetGauges(store, metrics, FakeClock(NOW)).show()
    groups = {labels[1] for labels in values(metrics, "privyseal_survival_seconds") if labels[0] == "owner"}
    assert len(groups) == 33
    assert "other" in groups


async def test_an_empty_fleet_is_shown_as_such(store: Store) -> None:
    metrics = Metrics()
    await FleetGauges(store, metrics, FakeClock(NOW)).show()
    assert set(values(metrics, "privyseal_fleet_lineages").values()) == {0}
    assert values(metrics, "privyseal_survival_seconds") == {}


async def test_a_survey_that_takes_long_comes_seldom(store: Store) -> None:
    """One of three seconds comes again after three minutes, so that it takes a sixtieth of the time."""
    moments = iter([0.0, 3.0, 60.0, 182.0, 183.5, 184.0, 300.0, 300.5, 361.0, 361.1])
    gauges = FleetGauges(store, Metrics(), FakeClock(NOW), timer=lambda: next(moments))
    assert [await gauges.show() is not None for _ in range(6)] == [True, False, False, True, True, True]


async def test_nobody_waits_for_a_survey(store: Store) -> None:
    """The event loop goes on between pages and beside the sums: from one turn to the next it takes no longer than a page."""
    for first in range(0, 6000, 500):
        await add(store, *(lineage(f"w{number:05d}", owner=f"o{number % 99}") for number in range(first, first + 500)))
    longest = turns = 0

    async def tick() -> None:
        nonlocal longest, turns
        while True:
            before = time.process_time_ns()
            await asyncio.sleep(0)
            longest, turns = max(longest, time.process_time_ns() - before), turns + 1

    gc.collect()
    # What is collected here is the garbage of other tests.
    gc.disable()
    try:
        ticking = asyncio.create_task(tick())
        await survey_fleet(store, NOW)
    finally:
        gc.enable()
    ticking.cancel()
    with suppress(asyncio.CancelledError):
        await ticking
    assert turns > 12
    # In processor time, of all threads. A page takes about two milliseconds, and a thread is made to let go after five.
    assert longest < 20_000_000
