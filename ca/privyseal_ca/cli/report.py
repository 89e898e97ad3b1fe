"""``privyseal report``: how the fleet is, as a page that anybody can read."""

import heapq
from functools import partial
from pathlib import Path
from typing import Any

import click

from privyseal_ca.cli.files import replacing
from privyseal_ca.cli.fleet_filters import require_schema
from privyseal_ca.cli.frame import Command, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.status_figures import CrlAge, certificate_end, crl_ages
from privyseal_ca.fleet.advice import span
from privyseal_ca.fleet.survey_store import survey_fleet
from privyseal_ca.ledger.checkpoint_rows import latest_checkpoint
from privyseal_ca.ledger.log import size
from privyseal_ca.report.content import (
    MOST_NAMED,
    Authority,
    Issuer,
    Report,
    ago,
    count_troubled,
    make_report,
    urgency,
)
from privyseal_ca.report.page import render_report
from privyseal_ca.store.engine import Store
from privyseal_ca.store.fleet import LineageRow, troubled_lineages
from privyseal_ca.store.issuers import all_issuers, chains
from privyseal_ca.store.scheduling import all_jobs
from privyseal_ca.store.statement import Transaction


@click.command("report", cls=Command)
@click.option(
    "--html",
    "file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file that is written, in place of an earlier one.",
)
@click.option("--title", default="Certificates of this authority", show_default=True, help="What the page is called.")
@pass_invocation
def report(invocation: Invocation, file: Path, title: str) -> None:
    """Write a page about the fleet: what is missed, what ends when, whose it is, and how long it would survive.

    One file that loads nothing and runs nothing, for a browser, a mail or a wiki. It names workloads and owners, so only its
    owner can read it; who else may is for you to say.
    """
    settings, now = settings_of(invocation), surroundings_of(invocation).clock.now()

    async def work() -> Report:
        async with opened_store(settings) as store:
            require_schema(settings)
            invocation.progress("surveying the workloads")
            figures = await survey_fleet(store, now)
            troubled = await _worst(store)
            authority, issuers = await store.read(lambda tx: _authority(tx, now))
            return make_report(figures, troubled, authority, title=title[:200], issuers=issuers)

    made = run(work())
    page = render_report(made)
    with replacing(file) as write:
        write(page)
    troubled = count_troubled(made.figures)
    document: dict[str, Any] = {
        "file": str(file),
        "well": made.well,
        "headline": made.headline,
        "workloads": made.figures.workloads,
        "troubled": troubled,
        "bytes": len(page.encode()),
    }
    invocation.result(document, f"{made.headline}\nThe report is written into {file}")


async def _worst(store: Store) -> list[LineageRow]:
    """The workloads that are named in the report, the worst first."""
    worst: list[LineageRow] = []
    after = ""
    while rows := await store.read(partial(troubled_lineages, after=after)):
        worst = heapq.nsmallest(MOST_NAMED, [*worst, *rows], key=urgency)
        after = rows[-1].id
    return worst


def _authority(transaction: Transaction, now: float) -> tuple[Authority, dict[str, str]]:
    """How the authority is, and the names of its issuers by id."""
    rows = all_issuers(transaction)
    checkpoint = latest_checkpoint(transaction)
    crls = {crl.issuer_id: crl for crl in crl_ages(transaction, now)}
    issuers = [
        Issuer(row.name, row.state, _end(chains(transaction, row.id), now), *_crl(crls.pop(row.id, None), now))
        for row in rows
    ]
    # What is left are the roots.
    issuers += [Issuer(crl.name, "root", ago(crl.not_after, now), *_crl(crl, now)) for crl in crls.values()]
    authority = Authority(
        issuers=tuple(issuers),
        ledger=size(transaction),
        checkpoint=f"{checkpoint.size:,} entries, signed {ago(checkpoint.signed_at, now)}" if checkpoint else "",
        failing_jobs=tuple((row.name, row.problem) for row in all_jobs(transaction) if row.failures_in_row),
    )
    return authority, {row.id: row.name for row in rows}


def _end(pems: list[str], now: float) -> str:
    end = certificate_end(pems)
    return "" if end is None else ago(int(end), now)


def _crl(crl: CrlAge | None, now: float) -> tuple[str, bool]:
    if crl is None:
        return "", False
    ends = f"{'ends' if crl.ends > now else 'ended'} {ago(crl.ends, now)}"
    return f"{span(now - crl.made)} old, {ends}", crl.wanted and crl.ends <= now
