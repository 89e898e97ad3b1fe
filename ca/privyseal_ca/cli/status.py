"""``privyseal status`` and ``privyseal status publish``."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import click
from cryptography import x509

from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.jobs import held
from privyseal_ca.cli.text import moment
from privyseal_ca.cli.version import program_version
from privyseal_ca.config import Settings
from privyseal_ca.doctor import service_state
from privyseal_ca.errors import ConfigurationError, LedgerError, StatusUnavailableError, StoreError
from privyseal_ca.ledger.audit_tables import count_certificates
from privyseal_ca.ledger.log import size
from privyseal_ca.recovery.facts import restored_fact, unsettled
from privyseal_ca.recovery.guard import behind_home
from privyseal_ca.revocation.folder_publisher import FolderPublisher
from privyseal_ca.revocation.folder_writer import FolderWriter
from privyseal_ca.store.issuers import all_issuers, chains
from privyseal_ca.store.migrate import schema_is_current
from privyseal_ca.store.readonly import reading
from privyseal_ca.store.scheduling import all_jobs, find_lease
from privyseal_ca.store.statement import Transaction

#: How often everything is compared, for what `follow` cannot see and for what is to be removed.
_SWEEP_SECONDS: Final = 300.0


@click.group("status", cls=Group, invoke_without_command=True)
@pass_invocation
def status(invocation: Invocation) -> None:
    """Show the state of this authority."""
    if click.get_current_context().invoked_subcommand is None:
        _show(invocation)


@status.command("publish")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--watch", is_flag=True, help="Go on until SIGTERM or SIGINT, and take over what changes.")
@pass_invocation
def publish(invocation: Invocation, folder: Path, watch: bool) -> None:
    """Write CRLs, OCSP responses, certificates and the ledger into a folder.

    The folder is for a web server, or for `privyseal serve --role status --folder`. What is in it comes from the database
    alone, which is only read: neither the token nor the service is needed. What is older never replaces what is newer.
    """
    settings = settings_of(invocation)
    folder = folder.absolute()
    clock = surroundings_of(invocation).clock

    async def work() -> FolderPublisher:
        async with reading(settings) as store:
            fact = await store.read(restored_fact)
            wrong = unsettled(fact) if fact is not None else await behind_home(store, settings)
            if wrong is not None:
                raise wrong
            with FolderWriter(folder) as writer:
                publisher = FolderPublisher(
                    store=store, writer=writer, settings=settings, clock=clock, progress=invocation.progress
                )
                with closing(publisher):
                    await publisher.publish()
                    if watch:
                        invocation.progress(f"published into {folder}; watching for changes")
                        await _until_told(publisher, settings.status.interval, invocation.progress)
                return publisher

    publisher = run(work())
    counts = publisher.counts
    written = {"certificates": counts.certificates, "crls": counts.crls, "responses": counts.responses}
    written["tiles"] = publisher.ledger.counts.tiles
    if publisher.ledger.problem:
        raise LedgerError(
            f"{folder}: everything but the ledger was published. {publisher.ledger.problem}",
            hint="docs/ledger.md says what to do.",
        )
    document = {
        "folder": str(folder),
        "certificates": len(publisher.manifest.issuers),
        "crls": len(publisher.manifest.crls),
        "responses": publisher.responses,
        "ledger": publisher.ledger.size,
        "written": written,
        "removed": counts.removed + publisher.ledger.counts.removed,
        "kept_newer": counts.kept,
    }
    shown = ", ".join(f"{count} {what}" for what, count in written.items())
    invocation.result(
        document,
        f"{folder}: {document['crls']} CRLs, {document['responses']} OCSP responses, {document['certificates']} CAs, "
        f"{document['ledger']} entries of the ledger\n"
        f"written: {shown}; removed: {document['removed']}; newer ones kept: {counts.kept}",
    )


async def _until_told(publisher: FolderPublisher, interval: float, progress: Callable[[str], None]) -> None:
    """Take over changes every ``interval`` seconds until SIGTERM or SIGINT; look at everything now and then."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    problem = ""
    swept_at = loop.time()
    while not await _is_set(stop, interval):
        try:
            await publisher.follow()
            # A sweep of many pages goes on where it was; changes come first.
            until = loop.time() + interval
            while loop.time() - swept_at >= _SWEEP_SECONDS and loop.time() < until and not stop.is_set():
                if await publisher.sweep():
                    swept_at = loop.time()
        except (StoreError, StatusUnavailableError, ConfigurationError) as error:
            if error.message != problem:
                progress(f"not published: {error}")
            problem = error.message
        else:
            if problem:
                progress("published again")
            problem = ""


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """Whether ``event`` is set within ``seconds``."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


def _show(invocation: Invocation) -> None:
    settings = settings_of(invocation)
    now = surroundings_of(invocation).clock.now()

    async def work() -> dict[str, Any]:
        async with opened_store(settings) as store:
            # The schema of an older program lacks the tables of jobs.
            current = schema_is_current(settings.database_url)
            return await store.read(lambda tx: _figures(tx, now) | (_jobs(tx, now) if current else {}))

    figures = run(work())
    document = _surroundings(settings) | figures
    issuers = [
        f"issuer        {issuer['name']}: {issuer['state']}"
        + (f", {issuer['days_left']} days left" if issuer["days_left"] is not None else "")
        for issuer in document["issuers"]
    ]
    shown = {key: value for key, value in document.items() if key not in {"issuers", "jobs"}}
    if "jobs" in document:
        jobs = document["jobs"]
        failing = f", failing: {', '.join(jobs['failing'])} (see `privyseal job list`)" if jobs["failing"] else ""
        shown["jobs"] = f"{jobs['known']}, {'led by a process' if jobs['led'] else 'nobody leads'}{failing}"
    lines = [f"{key:<13} {value}" for key, value in shown.items()]
    invocation.result(document, "\n".join([*lines, *issuers]))


def _surroundings(settings: Settings) -> dict[str, Any]:
    return {
        "version": program_version(),
        "home": str(settings.home),
        "directory": f"{settings.server.public_https}/acme/directory",
        "service": service_state(settings) or "not running",
        "schema": "current" if schema_is_current(settings.database_url) else "outdated",
    }


def _jobs(transaction: Transaction, now: float) -> dict[str, Any]:
    rows = all_jobs(transaction)
    failing = [row.name for row in rows if row.failures_in_row]
    return {"jobs": {"known": len(rows), "led": held(find_lease(transaction), now), "failing": failing}}


def _figures(transaction: Transaction, now: float) -> dict[str, Any]:
    entries = size(transaction)
    return {
        "ledger": entries,
        "certificates": count_certificates(transaction, entries),
        "issuers": [_issuer(row.name, row.state, chains(transaction, row.id), now) for row in all_issuers(transaction)],
    }


def _issuer(name: str, state: str, pems: list[str], now: float) -> dict[str, Any]:
    not_after = x509.load_pem_x509_certificates(pems[0].encode())[0].not_valid_after_utc.timestamp() if pems else None
    return {
        "name": name,
        "state": state,
        "not_after": moment(not_after),
        "days_left": None if not_after is None else int((not_after - now) // 86400),
    }
