"""``privyseal fleet``: workloads, whose they are, whether they renew, and what to do about those that do not."""

import heapq
import re
from functools import partial
from typing import Any, Final

import click

from privyseal_ca.cli.fleet_export import FORMS, export
from privyseal_ca.cli.fleet_filters import choice_of, chosen, filter_options, issuer_names, require_schema
from privyseal_ca.cli.fleet_retire import resume_command, retire_command
from privyseal_ca.cli.fleet_shown import HEADER, Issuers, document_of, line_of, names_of, shown
from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.issued import state_of
from privyseal_ca.cli.text import moment, table
from privyseal_ca.errors import PolicyError
from privyseal_ca.store.certificates import find_certificate, find_revocation
from privyseal_ca.store.engine import Store
from privyseal_ca.store.fleet import LineageRow, find_lineage, lineage_of, members, page_of_lineages
from privyseal_ca.store.statement import Transaction

_MOST_LISTED: Final = 100_000
_MOST_MATCHES: Final = 100
_SERIAL: Final = re.compile(r"[0-9a-f]{1,32}")


@click.group("fleet", cls=Group)
def fleet() -> None:
    """List, show, export and retire workloads."""


@fleet.command("list")
@filter_options
@click.option("--limit", type=click.IntRange(1, _MOST_LISTED), default=100, show_default=True, help="How many at most.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values, with all columns.")
@pass_invocation
def list_command(invocation: Invocation, limit: int, as_csv: bool, **options: Any) -> None:
    """List workloads: those whose renewal was missed first, then by when their certificates end.

    Retired ones are left out unless --all or --state retired is given.
    """
    if as_csv and invocation.json:
        raise click.UsageError("--csv and --json exclude each other.")
    settings, now = settings_of(invocation), surroundings_of(invocation).clock.now()

    async def work() -> tuple[list[LineageRow], int, Issuers]:
        async with opened_store(settings) as store:
            require_schema(settings)
            issuers, choice = await store.read(lambda tx: (issuer_names(tx), choice_of(tx, options, now)))
            first: list[LineageRow] = []
            found = 0
            async for rows in chosen(store, choice):
                found += len(rows)
                first = heapq.nsmallest(limit, (*first, *rows), key=_urgency)
            return first, found, issuers

    rows, found, issuers = run(work())
    note = f"{len(rows)} of {found}; --limit shows more." if found > len(rows) else ""
    if note and (as_csv or invocation.json):
        # Whoever counts them has to know that these are not all.
        invocation.progress(note)
    if as_csv:
        click.echo(FORMS["csv"].text(document_of(row, issuers, now) for row in rows), nl=False)
        return
    invocation.result(
        [document_of(row, issuers, now) for row in rows] if invocation.json else [],
        table(HEADER, [line_of(row) for row in rows]) + (f"\n\n{note}" if note else ""),
    )


@fleet.command("show")
@click.argument("workload", metavar="ID|NAME|SERIAL")
@pass_invocation
def show(invocation: Invocation, workload: str) -> None:
    """Show all that is known of a workload: its id, one of its names, or the serial of one of its certificates says which.

    Where several have the name they are listed.
    """
    settings, now = settings_of(invocation), surroundings_of(invocation).clock.now()

    async def work() -> tuple[list[LineageRow], list[dict[str, Any]], Issuers]:
        async with opened_store(settings) as store:
            require_schema(settings)
            rows = await _find(store, workload)
            history = await store.read(partial(_history, rows[0].id, now)) if len(rows) == 1 else []
            return rows, history, await store.read(issuer_names)

    rows, history, issuers = run(work())
    if len(rows) > 1:
        invocation.result(
            [document_of(row, issuers, now) for row in rows],
            f"{len(rows)} workloads have this name; give the id of one:\n\n"
            + table(HEADER, [line_of(row) for row in sorted(rows, key=_urgency)]),
        )
        return
    document = {**document_of(rows[0], issuers, now), "history": history}
    invocation.result(document, _text(document))


fleet.add_command(export)
fleet.add_command(retire_command)
fleet.add_command(resume_command)


async def _find(store: Store, wanted: str) -> list[LineageRow]:
    """The workloads that somebody names.

    Raises:
        PolicyError: there are none.
    """
    bare = wanted.lower().replace(":", "").removeprefix("0x")
    serial = bare.zfill(32) if _SERIAL.fullmatch(bare) else None

    def unit(transaction: Transaction) -> LineageRow | None:
        row = find_lineage(transaction, wanted)
        return row or (lineage_of(transaction, serial) if serial else None)

    if row := await store.read(unit):
        return [row]
    name, found, after = wanted.lower(), [], ""
    while rows := await store.read(partial(page_of_lineages, after=after)):
        found += [row for row in rows if name in row.names.lower() and _has_name(row, name)]
        if len(found) >= _MOST_MATCHES:
            return found[:_MOST_MATCHES]
        after = rows[-1].id
    if not found:
        raise PolicyError(
            f"No workload has the id, the name or a certificate with the serial {wanted[:64]!r}.",
            hint="`privyseal fleet list --all --name TEXT` looks for a part of a name. Certificates become workloads up to a "
            "minute after they were issued, while the service runs.",
        )
    return found


def _has_name(row: LineageRow, name: str) -> bool:
    return any(name in {each.lower(), each.lower().partition(":")[2]} for each in names_of(row))


def _urgency(row: LineageRow) -> tuple[bool, int, str]:
    return (not row.missed_at, row.not_after, row.id)


def _history(lineage_id: str, now: float, transaction: Transaction) -> list[dict[str, Any]]:
    """The certificates of a workload, the newest first, up to a hundred."""
    found = []
    for serial in members(transaction, lineage_id):
        row = find_certificate(transaction, serial)
        if row is not None:
            revocation = find_revocation(transaction, row.issuer_id, serial)
            found.append(
                {
                    "serial": serial,
                    "state": state_of(row, revocation, int(now)),
                    "not_before": moment(row.not_before),
                    "not_after": moment(row.not_after),
                    "profile": row.profile,
                    "ledger_index": row.ledger_index,
                }
            )
    return found


_PLAIN: Final = (
    ("state_since", "state_since"),
    ("missed_at", "missed since"),
    ("profile", "profile"),
    ("issuer", "issuer"),
    ("requester", "requester"),
    ("serial", "serial"),
    ("not_before", "valid from"),
    ("not_after", "valid until"),
    ("window_start", "window from"),
    ("window_end", "window until"),
    ("deadline", "deadline"),
    ("polled_at", "last asked"),
    ("renewed_at", "renewed"),
    ("certificates", "certificates"),
    ("attempts", "failed attempts"),
    ("failing_since", "failing since"),
    ("attempted_at", "last attempt"),
    ("revoked_at", "revoked"),
    ("retired_at", "retired"),
    ("retired_by", "retired by"),
    ("retired_reason", "because"),
)


def _text(document: dict[str, Any]) -> str:
    """All of it for people."""
    sources = document["sources"]
    lines = [
        _line("id", document["id"]),
        _line("names", " ".join(document["names"])),
        _line("state", document["state"]),
    ]
    for name in ("owner", "team", "service", "environment", "criticality"):
        value = document[name]
        lines.append(_line(name, f"{value or '-'}{_source(sources.get(name))}"))
    lines += [
        _line(f"label {name}", f"{value}{_source(sources.get(f'labels.{name}'))}")
        for name, value in document["labels"].items()
    ]
    lines.append(_line("renews", f"{'yes' if document['renews'] else 'no'}{_source(sources.get('renews'))}"))
    lines += [_line(title, str(document[name])) for name, title in _PLAIN if document[name] not in {None, 0}]
    history = [
        (each["serial"], each["state"], each["not_before"] or "-", each["not_after"] or "-", each["profile"])
        for each in document["history"]
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"What: {document['what']}",
            f"Seen: {document['seen']}",
            f"Do:   {document['do']}",
            "",
            table(("SERIAL", "STATE", "FROM", "UNTIL", "PROFILE"), history) if history else "No certificates.",
        ]
    )


def _line(title: str, value: str) -> str:
    return f"{title.replace('_', ' '):<16} {shown(value)}"


def _source(source: str | None) -> str:
    return f"  ({source})" if source else ""
