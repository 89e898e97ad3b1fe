"""Building, signing and publishing CRLs of 10,000 to 1,000,000 entries.

The key is in a token (SoftHSM2), the revocations are in a durable SQLite database, and what is timed is what the service
does: read the rows, sign, write the pieces, publish. Each length runs in a process of its own, so that its memory is its
own: `growth` is how much the process's peak (VmHWM) rose while the CRL was made. `stall` is the longest time that the event
loop was held. The second figure of seconds is for the next CRL of the same scope, after one more revocation.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fakes.crls import Desk, issuer_of
from fakes.issuing import NOW
from fakes.softhsm import SO_PIN, USER_PIN, make_hsm
from privyseal_ca.hsm import softhsm
from privyseal_ca.hsm.pin import Pin
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.revocation.published import PublishedCrl
from privyseal_ca.sections import StatusSettings
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.migrate import migrate

_LABEL = "bench"


def memory(field: str) -> float:
    """A line of the kernel's account of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def fill(database: Path, issuer_id: str, count: int) -> None:
    """Put ``count`` revocations behind the back of the service, with the size of the ledger that they would have."""
    ends = int(NOW) + 30 * 86400
    source = random.Random(count)  # noqa: S311 (a repeatable load)
    rows = (
        (issuer_id, f"{source.getrandbits(127):032x}", int(NOW) - index % 86400, index % 6 or None, ends, index)
        for index in range(count)
    )
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executemany(
            "INSERT INTO revocation (issuer_id, serial, revoked_at, reason, not_after, crl_shard, ledger_index)"
            " VALUES (?, ?, ?, ?, ?, 0, ?)",
            rows,
        )
        connection.execute("UPDATE ledger_head SET size = ?", (count,))


async def stalls(worst: list[float]) -> None:
    """The longest time that the loop did not turn, in ``worst``."""
    before = time.perf_counter()
    while True:
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        worst[0] = max(worst[0], now - before - 0.001)
        before = now


async def measure(folder: Path, count: int) -> dict[str, float]:
    """One CRL with ``count`` entries, and the next."""
    module = softhsm.find_module()
    if module is None:
        sys.exit("install softhsm2")
    hsm = make_hsm()
    await hsm.initialise_token(module, _LABEL, so_pin=Pin(SO_PIN), user_pin=Pin(USER_PIN))
    uri = str(KeyUri(token=_LABEL, module_path=module))
    attestation = await hsm.generate_signing_key(uri, "key", "ec-p256", key_id=b"1")
    issuer = issuer_of(await hsm.open_signing_key(attestation.uri))
    database = folder / "bench.db"
    migrate(f"sqlite:///{database}")
    fill(database, issuer.id, count)
    store = Store(backend_for(f"sqlite:///{database}", durable=True, timeout=5), queue=4096)
    await store.open()
    desk = Desk(store, [issuer], settings=StatusSettings(crl_shards=1))
    worst = [0.0]
    watch = asyncio.create_task(stalls(worst))
    before, cpu = memory("VmRSS"), time.process_time()
    begun = time.perf_counter()
    await desk.publisher.publish_due(shards=False)
    first, cpu = time.perf_counter() - begun, time.process_time() - cpu
    growth = memory("VmHWM") - before
    await desk.revoke(1, shard=None)
    desk.restart()
    begun = time.perf_counter()
    await desk.publisher.publish_due(shards=False)
    again = time.perf_counter() - begun
    watch.cancel()
    await desk.crls.refresh()
    crl: PublishedCrl | None = desk.crls.find(issuer.id, None, delta=False)
    size = crl.size if crl else 0
    await store.close()
    await hsm.close()
    return {
        "entries": count,
        "seconds": first,
        "cpu_seconds": cpu,
        "next_seconds": again,
        "growth_mib": growth,
        "stall_ms": worst[0] * 1000,
        "size_mib": size / 2**20,
    }


def run(count: int) -> dict[str, float]:
    """:func:`measure` in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="privyseal-bench-") as folder:
        os.environ[softhsm.CONF_VARIABLE] = str(softhsm.embed(Path(folder)))
        return uvloop.run(measure(Path(folder), count))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    for count in options.entries:
        with context.Pool(1) as process:
            results.append(process.apply(run, (count,)))
    if options.json:
        print(json.dumps(results))
        return
    for row in results:
        print(
            f"{row['entries']:>9,} entries {row['seconds']:7.2f} s ({row['cpu_seconds']:.2f} s CPU), next {row['next_seconds']:7.2f} s,"
            f" memory +{row['growth_mib']:.1f} MiB, loop held {row['stall_ms']:.1f} ms at most, {row['size_mib']:.1f} MiB of CRL"
        )


if __name__ == "__main__":
    main()
