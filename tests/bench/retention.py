"""Sweeping 100,000 expired orders and as many authorizations while the event loop is watched.

The database is a durable SQLite file, as in the service. A third of the orders has a certificate that has ended, a third one
that lasts, which the sweep has to keep. `stall` is the longest time that the event loop was held; `wait` the longest that a
unit of work of somebody else's waited, one every 10 ms.
"""

import argparse
import asyncio
import json
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from privyseal_acme.flow.retention import Retention
from privyseal_acme.protocol.urls import new_resource_id
from privyseal_ca.clock import SystemClock
from privyseal_ca.sections import RetentionSettings
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.certificates import find_certificate
from privyseal_ca.store.engine import Store
from privyseal_ca.store.migrate import migrate
from privyseal_ca.telemetry.metrics import Metrics

_DAY = 86_400


def fill(database: Path, count: int, now: int) -> None:
    """Orders, authorizations and certificates that are long over, but for a third of the certificates."""
    ended = now - 60 * _DAY
    ids = [new_resource_id(ended, number.to_bytes(12, "big")) for number in range(count)]
    said = ended, ended, '[["dns","a.test"]]', "[]", "mtls", bytes(500), "bench", ended
    orders = (
        (id_, "valid" if number % 3 else "invalid", f"{number:032x}" if number % 3 else None, "a", *said)
        for number, id_ in enumerate(ids)
    )
    authorizations = ((id_, "a", "dns", "a.test", 0, "valid", ended, ended, 0, bytes(16), "bench") for id_ in ids)
    what = "i", "mtls", "account:a", "[]", bytes(32), bytes(700)
    certificates = (
        (f"{number:032x}", number, ended, now + (_DAY if number % 3 == 1 else -40 * _DAY), *what)
        for number in range(count)
        if number % 3
    )
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executemany(
            "INSERT INTO acme_order (id, state, serial, account_id, created, expires, identifiers, authorizations, profile,"
            " csr, correlation, retained_from) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            orders,
        )
        connection.executemany(
            "INSERT INTO acme_authorization (id, account_id, identifier_type, value, wildcard, state, created, expires,"
            " reusable, seed, correlation) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            authorizations,
        )
        connection.executemany(
            "INSERT INTO certificate (serial, ledger_index, not_before, not_after, issuer_id, profile, requester, names,"
            " spki_sha256, der) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            certificates,
        )


async def stalls(worst: list[float]) -> None:
    """The longest time that the loop did not turn, in ``worst``."""
    before = time.perf_counter()
    while True:
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        worst[0] = max(worst[0], now - before - 0.001)
        before = now


async def waits(store: Store, worst: list[float]) -> None:
    """The longest time that a unit of work took that looks for one certificate, in ``worst``."""
    while True:
        begun = time.perf_counter()
        await store.write(lambda tx: find_certificate(tx, ""))
        worst[0] = max(worst[0], time.perf_counter() - begun)
        await asyncio.sleep(0.01)


async def measure(folder: Path, count: int) -> dict[str, float]:
    """Sweeps until nothing is left."""
    url = f"sqlite:///{folder / 'bench.db'}"
    migrate(url)
    fill(folder / "bench.db", count, int(time.time()))
    store = Store(backend_for(url, durable=True, timeout=10), queue=4096)
    await store.open()
    retention = Retention(store=store, settings=RetentionSettings(), clock=SystemClock(), metrics=Metrics())
    stall, wait = [0.0], [0.0]
    watchers = [asyncio.create_task(stalls(stall)), asyncio.create_task(waits(store, wait))]
    begun, cpu, sweeps, removed, finished = time.perf_counter(), time.process_time(), 0, 0, False
    while not finished:
        swept = await retention.sweep()
        sweeps, removed, finished = sweeps + 1, removed + swept.orders + swept.authorizations, swept.finished
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    for watcher in watchers:
        watcher.cancel()
    await store.close()
    return {
        "removed": removed,
        "sweeps": sweeps,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "stall_ms": stall[0] * 1000,
        "wait_ms": wait[0] * 1000,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="privyseal-bench-") as folder:
        print(json.dumps(uvloop.run(measure(Path(folder), options.orders)), indent=2))


if __name__ == "__main__":
    main()
