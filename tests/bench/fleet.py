"""What a survey of the fleet costs: the figures of so many workloads from a database on disk, and how long the event loop waits.

The workloads are those of an organisation with many owners, in every state, with certificates of thirty days. Ends with status
1 when the survey takes longer than a second of processor time.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fakes.lineages import DAY, NOW, attempt, late, lineage
from privyseal_ca.fleet.survey import FleetFigures
from privyseal_ca.fleet.survey_store import survey_fleet
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.fleet import LineageRow, add_lineage
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.statement import Transaction

_BOUND = 1.0
_PAGE = 5000


def workload(number: int) -> LineageRow:
    """One of many: every hundredth fails, every two hundredth is silent, and their ends are spread over thirty days."""
    name, owner = f"w{number:08d}", f"team-{number * 7919 % 300}"
    ends = NOW + number * 104_729 % (30 * DAY)
    if number % 100 == 1:
        return late(name, owner=owner, state="failing", attempts=3, attempt=attempt("order", "rejectedIdentifier"))
    if number % 200 == 2:
        return late(name, owner="")
    return lineage(name, owner=owner, not_before=ends - 30 * DAY, not_after=ends, issuer_id=f"{number % 3}" * 40)


async def survey(folder: Path, workloads: int) -> tuple[FleetFigures, float, float, float]:
    """The figures, the seconds that the survey took, processor time of them, and the longest that the loop was held up."""
    url = f"sqlite:///{folder / 'fleet.db'}"
    migrate(url)
    store = Store(backend_for(url, durable=False, timeout=30), queue=1000)
    await store.open()
    for first in range(0, workloads, _PAGE):

        def unit(transaction: Transaction, first: int = first) -> None:
            for number in range(first, min(workloads, first + _PAGE)):
                add_lineage(transaction, workload(number))

        await store.write(unit)
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            # Processor time, of all threads: what other programs take is not the survey's.
            before = time.process_time()
            await asyncio.sleep(0)
            longest = max(longest, time.process_time() - before)

    ticking = asyncio.create_task(tick())
    # The other one counts for a part of it: as much as the pauses between pages.
    begun, used = time.perf_counter(), time.process_time()
    figures = await survey_fleet(store, NOW)
    took, used = time.perf_counter() - begun, time.process_time() - used
    ticking.cancel()
    with suppress(asyncio.CancelledError):
        await ticking
    await store.close()
    return figures, took, used, longest


def main() -> int:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures, took, used, longest = asyncio.run(survey(Path(folder), options.workloads))
    if options.json:
        found = {"workloads": options.workloads, "seconds": took, "processor_seconds": used, "longest_wait": longest}
        print(json.dumps({**found, "figures": figures.document()}))
    else:
        print(
            f"{options.workloads:,} workloads: {took:.2f} s, of it processor {used:.2f} s, longest wait {longest * 1000:.0f} ms"
        )
        overall = figures.survival[0]
        print(
            f"half of {overall.workloads:,} run out after {(overall.fifty - figures.now) / DAY:.1f} days without signatures"
        )
    return int(used > _BOUND)


if __name__ == "__main__":
    sys.exit(main())
