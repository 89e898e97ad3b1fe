"""What a store tells whoever watches it, and certificates counted by their end, on SQLite and PostgreSQL."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import bindparam, insert
from sqlalchemy.dialects import sqlite

from fakes.service import FakeClock
from fakes.store_faults import FaultyBackend, open_faulty, raising
from privyseal_ca.errors import StoreError
from privyseal_ca.store.certificates import _ENDING, COUNTED, CertificateRow, add_certificate
from privyseal_ca.store.engine import Store
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import Fact
from privyseal_ca.telemetry.figures import StoreWatch, count_expiring
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.telemetry.tracing import NO_TRACING

_ADD = Statement(insert(Fact.__table__).values(name=bindparam("name"), value="v"))  # type: ignore[attr-defined]


class Recorded:
    """A watch that remembers; every second unit is one that it wants to know of."""

    def __init__(self) -> None:
        self.asked = 0
        self.groups: list[tuple[list[object], int, float, bool]] = []

    def waits(self) -> object | None:
        self.asked += 1
        return self.asked if self.asked % 2 else None

    def committed(self, waited: Sequence[object], *, units: int, seconds: float, failed: bool) -> None:
        self.groups.append((list(waited), units, seconds, failed))


@pytest.fixture
def backend(migrated_url: str) -> FaultyBackend:
    return FaultyBackend(migrated_url)


@pytest_asyncio.fixture
async def store(backend: FaultyBackend) -> AsyncIterator[Store]:
    store = open_faulty(backend)
    await store.open()
    yield store
    await store.close()


def add(name: str) -> Any:
    return lambda transaction: transaction.execute(_ADD, name=name)


async def test_a_group_is_told_of_once_with_those_that_wait_for_it(store: Store) -> None:
    watch = store.watch = Recorded()
    await asyncio.gather(*(store.write(add(f"n{number}")) for number in range(6)))
    assert store.waiting == 0
    assert sorted(mark for marks, *_ in watch.groups for mark in marks) == [1, 3, 5]  # type: ignore[type-var]
    assert sum(units for _, units, *_ in watch.groups) == 6
    assert all(0 < seconds < 10 and not failed for *_, seconds, failed in watch.groups)


async def test_a_group_that_the_database_did_not_take_has_failed(backend: FaultyBackend, store: Store) -> None:
    watch = store.watch = Recorded()
    await store.write(add("before"))
    backend.before["COMMIT"] = raising(OSError("the disk is gone"))
    with pytest.raises(StoreError):
        await store.write(add("lost"))
    await store.write(add("after"))
    assert [(units, failed) for _, units, _, failed in watch.groups] == [(1, False), (1, True), (1, False)]
    assert watch.groups[1][2] == 0


async def test_a_unit_that_is_refused_is_no_failure_of_its_group(store: Store) -> None:
    watch = store.watch = Recorded()
    await store.write(add("twice"))
    with pytest.raises(StoreError):
        await store.write(add("twice"))
    assert [failed for *_, failed in watch.groups] == [False, False]


async def test_metrics_count_what_was_durable(backend: FaultyBackend, store: Store) -> None:
    metrics = Metrics()
    store.watch = StoreWatch(metrics, NO_TRACING)
    await store.write(add("one"))
    backend.before["COMMIT"] = raising(OSError("the disk is gone"))
    with pytest.raises(StoreError):
        await store.write(add("two"))
    registry = metrics.registry
    assert registry.get_sample_value("privyseal_committed_changes_total") == 1
    assert registry.get_sample_value("privyseal_commit_seconds_count") == 1
    assert registry.get_sample_value("privyseal_commit_failures_total") == 1


def certificate(number: int, not_after: int) -> CertificateRow:
    return CertificateRow(
        serial=f"{number:032x}",
        issuer_id="i",
        profile="p",
        requester="service",
        names="[]",
        not_before=0,
        not_after=not_after,
        spki_sha256=b"",
        ledger_index=number,
        der=b"",
        crl_shard=None,
        ocsp=0,
    )


async def test_each_certificate_is_in_the_bucket_of_its_end(store: Store) -> None:
    clock, metrics = FakeClock(1_000_000), Metrics()
    ends = [0, 1, 3600, 3601, 6 * 3600, 86400, 400 * 86400]

    def unit(transaction: Transaction) -> None:
        for number, end in enumerate(ends):
            add_certificate(transaction, certificate(number, int(clock.now()) + end))

    await store.write(unit)
    await count_expiring(store, metrics, clock)
    counted = {
        sample.labels["within"]: sample.value for family in metrics.expiring.collect() for sample in family.samples
    }
    # What ends now has ended; the border belongs to the sooner bucket.
    assert counted == {"1h": 2, "6h": 2, "1d": 1, "3d": 0, "7d": 0, "30d": 0, "90d": 0, "later": 1}


def test_the_count_looks_into_the_index_and_no_further_than_its_bound(tmp_path: Path) -> None:
    # Only of SQLite: the planner of PostgreSQL reads tables as small as these as a whole.
    migrate(f"sqlite:///{tmp_path / 'store.db'}")
    sql, parameters = _ENDING.prepare(sqlite.dialect(paramstyle="named"), {"after": 0, "until": 10})
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        plan = [row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
    assert any("USING COVERING INDEX ix_certificate_expiry" in step for step in plan), plan
    assert "LIMIT" in sql
    assert COUNTED in parameters.values()
