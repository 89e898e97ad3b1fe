"""Revoking everything that a selection names, as a job that can be resumed and cancelled."""

import sys
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from privyseal_ca.cli.frame import Invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.selecting import selection_of
from privyseal_ca.cli.text import moment
from privyseal_ca.errors import PolicyError
from privyseal_ca.revocation.jobs import CANCELLED, RUNNING, cancel_job, run_job, skipped, start_job
from privyseal_ca.revocation.revoke import KEY_COMPROMISE, REASONS
from privyseal_ca.revocation.selection import Preview, Selection, preview_selection
from privyseal_ca.store.revoking import JobRow

_REASON_NAMES = {code: name for name, code in REASONS.items()}
_JOB_ID = 8
_MOST = 10
_PROGRESS_SECONDS = 1.0


def revoke_selection(
    invocation: Invocation, options: Mapping[str, Any], reason: int, *, dry_run: bool, yes: bool
) -> None:
    """Show what the options select, ask, and revoke it."""
    surroundings = surroundings_of(invocation)
    now = int(surroundings.clock.now())
    started: list[str] = []

    async def work() -> tuple[Selection, Preview, JobRow | None]:
        async with opened_store(settings_of(invocation)) as store:
            selection = await store.read(lambda tx: selection_of(tx, options))
            preview = await preview_selection(store, selection, now=now)
            if not preview.total:
                raise PolicyError(
                    f"Nothing that could be revoked is selected by {selection}{_others(preview)}.",
                    hint="`privyseal cert list` shows certificates.",
                )
            if dry_run:
                return selection, preview, None
            _ask(invocation, selection, preview, reason, yes=yes)
            job = await start_job(
                store,
                selection,
                job_id=surroundings.random_bytes(_JOB_ID).hex(),
                reason=reason,
                total=preview.total,
                actor=surroundings.actor,
                correlation=surroundings.correlation,
                now=surroundings.clock.now(),
            )
            started.append(job.id)
            if not invocation.json:
                invocation.progress(f"job {job.id}")
            progress = _progress(invocation)
            return selection, preview, await run_job(store, surroundings.clock, job.id, progress=progress)

    selection, preview, job = _interruptible(invocation, work, started)
    if job is None:
        invocation.result(_preview_document(selection, preview, reason), _preview_text(selection, preview, reason))
    else:
        _tell_end(invocation, job)


def resume(invocation: Invocation, job_id: str) -> None:
    """Go on with a job."""
    clock = surroundings_of(invocation).clock

    async def work() -> JobRow:
        async with opened_store(settings_of(invocation)) as store:
            return await run_job(store, clock, job_id, progress=_progress(invocation))

    _tell_end(invocation, _interruptible(invocation, work, [job_id]))


def cancel(invocation: Invocation, job_id: str) -> None:
    """End a job before its end."""
    surroundings = surroundings_of(invocation)

    async def work() -> JobRow:
        async with opened_store(settings_of(invocation)) as store:
            return await cancel_job(
                store,
                job_id,
                actor=surroundings.actor,
                correlation=surroundings.correlation,
                now=surroundings.clock.now(),
            )

    _tell(invocation, run(work()))


def job_document(job: JobRow) -> dict[str, Any]:
    """A job as documents have it."""
    return {
        "job": job.id,
        "state": job.state,
        "created": moment(job.created),
        "actor": job.actor,
        "reason": job.reason,
        "selection": Selection.load(job.selection).document(),
        "total": job.total,
        "revoked": job.revoked,
        "skipped": None if job.state == RUNNING else skipped(job),
    }


def _interruptible(invocation: Invocation, work: Callable[[], Any], jobs: list[str]) -> Any:
    """The result of ``work``. Whoever interrupts it is told how it goes on."""
    try:
        return run(work())
    except KeyboardInterrupt:
        for job_id in jobs:
            invocation.progress(f"interrupted; `privyseal cert revoke --resume {job_id}` goes on")
        raise


def _ask(invocation: Invocation, selection: Selection, preview: Preview, reason: int, *, yes: bool) -> None:
    """Show what is selected and ask. With nobody there to answer, ``yes`` is the only consent.

    Raises:
        PolicyError: nobody has consented.
        click.Abort: the answer was no.
    """
    if yes:
        return
    if invocation.json or not sys.stdin.isatty():
        raise PolicyError(
            f"{_count(preview.total)} would be revoked{_others(preview)}, and nobody is there to be asked.",
            hint="Look at it with --dry-run, then say --yes.",
        )
    invocation.progress(_preview_text(selection, preview, reason))
    invocation.confirm(f"Revoke {_count(preview.total)} ({_REASON_NAMES[reason]})?", yes=False)


def _tell_end(invocation: Invocation, job: JobRow) -> None:
    """Tell how a job ended that this command worked on.

    Raises:
        PolicyError: somebody else has cancelled it meanwhile: not everything is revoked.
    """
    if job.state == CANCELLED:
        raise PolicyError(
            f"The job {job.id} was cancelled by somebody else; {job.revoked} of {job.total} are revoked.",
            hint="`privyseal ledger show` tells who did. Select what is left anew.",
        )
    _tell(invocation, job)


def _tell(invocation: Invocation, job: JobRow) -> None:
    left = f", {skipped(job)} skipped" if skipped(job) else ""
    invocation.result(job_document(job), f"Job {job.id} is {job.state}: {_count(job.revoked)} revoked{left}.")


def _progress(invocation: Invocation) -> Callable[[JobRow], None]:
    """Tells people once a second how far a job is."""
    begun = told = monotonic()
    before: int | None = None

    def tell(job: JobRow) -> None:
        nonlocal told, before
        before = job.revoked if before is None else before
        if invocation.json or (job.state == RUNNING and monotonic() - told < _PROGRESS_SECONDS):
            return
        told = monotonic()
        rate = (job.revoked - before) / max(told - begun, 0.001)
        left = max(0, job.total - job.revoked)
        remaining = f", {left / rate:.0f} s left" if rate and left and job.state == RUNNING else ""
        invocation.progress(f"{job.revoked} of {job.total} revoked, {rate:.0f}/s{remaining}")

    return tell


def _count(number: int) -> str:
    return "1 certificate" if number == 1 else f"{number} certificates"


def _others(preview: Preview) -> str:
    """What a selection names besides, in brackets."""
    parts = [
        f"{number} {what}"
        for number, what in (
            (preview.expired, "expired"),
            (preview.revoked, "revoked before"),
            (preview.own, "of the authority itself"),
        )
        if number
    ]
    return f" (not counting {', '.join(parts)})" if parts else ""


def _preview_text(selection: Selection, preview: Preview, reason: int) -> str:
    lines = [f"{_count(preview.total)} selected by {selection}{_others(preview)}"]
    lines += [f"  {serial}  {' '.join(names)}" for serial, names in preview.sample]
    if preview.total > len(preview.sample):
        lines.append(f"  and {preview.total - len(preview.sample)} more")
    for what, counter in (("profile", preview.profiles), ("requester", preview.requesters)):
        lines += [f"{what:<10} {name}: {number}" for name, number in counter.most_common(_MOST)]
        if len(counter) > _MOST:
            lines.append(f"{what:<10} and {len(counter) - _MOST} more")
    if reason == KEY_COMPROMISE:
        lines.append("Their keys are blocked for good, and all other certificates with one of them are revoked too.")
    return "\n".join(lines)


def _preview_document(selection: Selection, preview: Preview, reason: int) -> dict[str, Any]:
    return {
        "selection": selection.document(),
        "total": preview.total,
        "expired": preview.expired,
        "revoked": preview.revoked,
        "own": preview.own,
        "takes_others_with_key": reason == KEY_COMPROMISE,
        "sample": [{"serial": serial, "names": names} for serial, names in preview.sample],
        "profiles": dict(preview.profiles.most_common()),
        "requesters": dict(preview.requesters.most_common()),
    }
