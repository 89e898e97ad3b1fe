"""News of the service itself: work that is due again and again, and fails for long. Pure."""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import orjson

from privyseal_ca.clock import rfc3339
from privyseal_ca.notify.compose import FailingJob, plain
from privyseal_ca.store.scheduling import JobRow

#: Work that never went well has failed for long after so many times in a row.
_OFTEN: Final = 8
_MOST_PROBLEM: Final = 500
#: What is remembered while nothing was told.
NOTHING_TOLD: Final = "{}"


class SystemNews(NamedTuple):
    """Jobs that fail for long and were not told of, those that go well again, and what is to be remembered as told."""

    failing: tuple[FailingJob, ...]
    recovered: tuple[str, ...]
    told: str

    def __bool__(self) -> bool:
        return bool(self.failing or self.recovered)


def failing_jobs(rows: Iterable[JobRow], now: float, *, patience: int) -> list[FailingJob]:
    """The jobs that have not gone well for ``patience`` seconds longer than they are apart."""
    return [
        FailingJob(
            row.name,
            plain(row.problem)[:_MOST_PROBLEM],
            rfc3339(row.last_succeeded) if row.last_succeeded else "",
            row.failures_in_row,
        )
        for row in rows
        if row.failures_in_row and _for_long(row, now, patience)
    ]


def system_news(rows: Iterable[JobRow], told: str, now: float, *, patience: int) -> SystemNews:
    """What is news, where ``told`` was remembered the last time."""
    jobs = list(rows)
    before: Mapping[str, str] = orjson.loads(told) if told else {}
    failing = {job.name: job for job in failing_jobs(jobs, now, patience=patience)}
    # One that failed, went well and fails again is told of again: it went well at another time.
    new = tuple(job for name, job in failing.items() if before.get(name) != job.since)
    well = {row.name for row in jobs if not row.failures_in_row}
    recovered = tuple(name for name in before if name in well)
    # What fails, but not for long again, is neither news nor well.
    kept = {name: since for name, since in before.items() if name not in well and name in {row.name for row in jobs}}
    after = kept | {name: job.since for name, job in failing.items()}
    return SystemNews(new, recovered, orjson.dumps(dict(sorted(after.items()))).decode())


def _for_long(row: JobRow, now: float, patience: int) -> bool:
    if not row.last_succeeded:
        return row.failures_in_row >= _OFTEN
    return now - row.last_succeeded > row.every / 1000 + patience
