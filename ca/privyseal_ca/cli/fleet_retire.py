"""``privyseal fleet retire`` and ``resume``: workloads that are gone, and those that are back."""

from functools import partial
from typing import Any

import click

from privyseal_ca.cli.fleet_filters import issuer_names, require_schema
from privyseal_ca.cli.fleet_shown import document_of, names_of, shown
from privyseal_ca.cli.frame import Command, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.fleet.retirement import require_lineage, resume, retire
from privyseal_ca.store.fleet import LineageRow
from privyseal_ca.store.statement import Transaction


@click.command("retire", cls=Command)
@click.argument("lineage", metavar="ID")
@click.option("--reason", required=True, metavar="TEXT", help="Why it is not expected to renew any more.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_invocation
def retire_command(invocation: Invocation, lineage: str, reason: str, yes: bool) -> None:
    """Expect no more renewals of a workload. Its certificate stays valid: `privyseal cert revoke` ends that.

    It comes back by itself when it gets another certificate.
    """
    settings, surroundings = settings_of(invocation), surroundings_of(invocation)
    now = surroundings.clock.now()

    async def look() -> LineageRow:
        async with opened_store(settings) as store:
            require_schema(settings)
            return await store.read(partial(require_lineage, lineage_id=lineage))

    async def work() -> dict[str, Any]:
        async with opened_store(settings) as store:

            def unit(transaction: Transaction) -> LineageRow:
                return retire(
                    transaction,
                    lineage,
                    reason=reason,
                    now=now,
                    actor=surroundings.actor,
                    correlation=surroundings.correlation,
                )

            row = await store.write(unit)
            return document_of(row, await store.read(issuer_names), now)

    row = run(look())
    invocation.confirm(f"Retire {lineage} ({shown(' '.join(names_of(row)[:3]))})?", yes=yes)
    invocation.result(run(work()), f"The workload {lineage} is retired.")


@click.command("resume", cls=Command)
@click.argument("lineage", metavar="ID")
@pass_invocation
def resume_command(invocation: Invocation, lineage: str) -> None:
    """Expect renewals of a retired workload again."""
    settings, surroundings = settings_of(invocation), surroundings_of(invocation)
    now = surroundings.clock.now()

    async def work() -> dict[str, Any]:
        async with opened_store(settings) as store:
            require_schema(settings)

            def unit(transaction: Transaction) -> LineageRow:
                return resume(
                    transaction,
                    lineage,
                    now=now,
                    actor=surroundings.actor,
                    correlation=surroundings.correlation,
                    retire_after=settings.fleet.retire_after,
                )

            row = await store.write(unit)
            return document_of(row, await store.read(issuer_names), now)

    document = run(work())
    invocation.result(document, f"The workload {lineage} is in the fleet again: {document['state']}.")
