"""``privyseal job``: what is due again and again, and a run of it now."""

import asyncio
import time
from typing import Any, Final

import click

from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.text import duration, moment, table, when
from privyseal_ca.clock import Clock
from privyseal_ca.config import Settings
from privyseal_ca.errors import JobFailedError, ServiceAwayError
from privyseal_ca.store.engine import Store
from privyseal_ca.store.migrate import schema_is_current
from privyseal_ca.store.scheduling import JobRow, LeaseRow, all_jobs, ask_for_job, find_job, find_lease

_LOOK_SECONDS: Final = 0.2
_TOLD_SECONDS: Final = 10.0


@click.group("job", cls=Group)
def job() -> None:
    """List what the service does again and again, and have it done now."""


@job.command("list")
@pass_invocation
def list_command(invocation: Invocation) -> None:
    """List the jobs: who runs each, when it ran and will run, how long it took, and what is wrong.

    Short jobs are shown as they were up to a third of `scheduler.lease` ago, and what every process does as it goes in
    the one that leads.
    """
    settings = settings_of(invocation)

    async def work() -> tuple[LeaseRow | None, list[JobRow]]:
        async with opened_store(settings) as store:
            _require_schema(settings)
            return await store.read(lambda tx: (find_lease(tx), all_jobs(tx)))

    lease, rows = run(work())
    now = surroundings_of(invocation).clock.now()
    header = ("JOB", "RUN BY", "EVERY", "LAST RUN", "NEXT RUN", "SECONDS", "FAILURES", "PROBLEM")
    lines = [
        (
            row.name,
            _PLACES.get(row.place, row.place),
            f"{row.every / 1000:g}s",
            when(row.last_finished or None),
            when(row.next_due or None),
            f"{row.duration / 1000:.3f}",
            f"{row.failures}" + (f" ({row.failures_in_row} in a row)" if row.failures_in_row else ""),
            row.problem,
        )
        for row in rows
    ]
    note = "" if held(lease, now) else "\n\nNo service runs: this is how it was when the last one did."
    invocation.result([_document(row) for row in rows], table(header, lines) + note)


@job.command("run")
@click.argument("name")
@click.option("--wait", type=duration, default="10m", show_default=True, help="How long to wait for its end.")
@pass_invocation
def run_command(invocation: Invocation, name: str, wait: int) -> None:
    """Have the running service do the job NAME now, and wait for its end.

    The exit code is 0 when the job went well. A run that is under way is waited for, and followed by another.
    """
    settings = settings_of(invocation)
    clock = surroundings_of(invocation).clock

    async def work() -> JobRow:
        async with opened_store(settings) as store:
            _require_schema(settings)
            return await _run_now(invocation, settings, store, clock, name, wait)

    row = run(work())
    if row.answer:
        raise JobFailedError(
            f"The job {name} failed: {row.answer}",
            hint="The service tries it again; `privyseal job list` shows it, and the log by `background work failed`.",
        )
    invocation.result(_document(row), f"{name}: done, {row.duration / 1000:.3f} s")


async def _run_now(
    invocation: Invocation, settings: Settings, store: Store, clock: Clock, name: str, wait: int
) -> JobRow:
    """Ask, and give the job's row once it was done.

    Raises:
        ServiceAwayError: no service leads, or it went away, or it took longer than ``wait``.
        JobFailedError: there is no such job.
    """
    lease = await store.read(find_lease)
    if not held(lease, clock.now()):
        raise ServiceAwayError(
            "No service runs on this database, so nobody would do the job.",
            hint=f"Start `privyseal serve`. One that has just started or was killed is known after up to "
            f"{settings.scheduler.lease:g} seconds.",
        )
    ticket = await store.write(lambda tx: ask_for_job(tx, name))
    if ticket is None:
        names = ", ".join(row.name for row in await store.read(all_jobs))
        raise JobFailedError(
            f"There is no job of that name. There are: {names or 'none'}.",
            hint="`privyseal job list` says what each is doing.",
        )
    begun = changed = told = time.monotonic()
    while True:
        found, now_held = await store.read(lambda tx: (find_job(tx, name), find_lease(tx)))
        if found is not None and found.answered >= ticket:
            return found
        now = time.monotonic()
        if now_held != lease:
            lease, changed = now_held, now
        if found is None or lease is None or not lease.holder or now > changed + 2 * settings.scheduler.lease:
            raise ServiceAwayError(
                f"The service went away before the job {name} had ended.",
                hint="The next one does it when it starts. See what `privyseal doctor` and the log say.",
            )
        if now > begun + wait:
            raise ServiceAwayError(
                f"The job {name} had not ended after {wait} seconds. It goes on.",
                hint="`privyseal job list` shows its end; --wait waits longer.",
            )
        if now > told + _TOLD_SECONDS:
            told = now
            invocation.progress(f"{name}: waiting since {now - begun:.0f} s")
        await asyncio.sleep(_LOOK_SECONDS)


def held(lease: LeaseRow | None, now: float) -> bool:
    """Whether a process leads, as far as the lease tells."""
    return lease is not None and bool(lease.holder) and lease.until > now


def _require_schema(settings: Settings) -> None:
    if not schema_is_current(settings.database_url):
        raise ServiceAwayError(
            "No service of this version has used this database yet.", hint="Start `privyseal serve`, then try again."
        )


_PLACES: Final = {"leader": "the leader", "process": "every process"}


def _document(row: JobRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "run_by": row.place,
        "every": row.every / 1000,
        "last_started": moment(row.last_started or None),
        "last_finished": moment(row.last_finished or None),
        "last_succeeded": moment(row.last_succeeded or None),
        "next_due": moment(row.next_due or None),
        "duration": row.duration / 1000,
        "failures": row.failures,
        "failures_in_row": row.failures_in_row,
        "problem": row.problem,
    }
