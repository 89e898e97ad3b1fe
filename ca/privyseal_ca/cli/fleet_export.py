"""``privyseal fleet export``: the inventory as a file, read and written page by page."""

import csv
import io
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import orjson

from privyseal_ca.cli.files import Write, replacing
from privyseal_ca.cli.fleet_filters import Choice, choice_of, chosen, filter_options, issuer_names, require_schema
from privyseal_ca.cli.fleet_shown import COLUMNS, cells_of, document_of
from privyseal_ca.cli.frame import Command, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.store.engine import Store


class Form(NamedTuple):
    """How documents become text."""

    begin: str
    each: Callable[[Mapping[str, Any]], str]
    between: str = ""
    end: str = ""

    def text(self, documents: Iterable[Mapping[str, Any]]) -> str:
        """All of it at once."""
        return self.begin + self.between.join(map(self.each, documents)) + self.end


def _csv_line(cells: Iterable[str]) -> str:
    file = io.StringIO()
    csv.writer(file).writerow(cells)
    return file.getvalue()


def _json(document: Mapping[str, Any]) -> str:
    return orjson.dumps(document).decode()


#: RFC 4180 with a header; one array; an object on each line.
FORMS: Final = {
    "csv": Form(_csv_line(COLUMNS), lambda document: _csv_line(cells_of(document))),
    "json": Form("[\n", _json, ",\n", "\n]\n"),
    "jsonl": Form("", lambda document: _json(document) + "\n"),
}


@click.command("export", cls=Command)
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--format",
    "format_name",
    type=click.Choice(tuple(FORMS)),
    help="Default: json with --json, else what FILE ends with, else csv.",
)
@filter_options
@pass_invocation
def export(invocation: Invocation, file: Path | None, format_name: str | None, **options: Any) -> None:
    """Write workloads into FILE, or to standard output.

    FILE is written whole or not at all, for its owner alone to read. Cells of CSV that a spreadsheet would take for formulas
    begin with an apostrophe.
    """
    settings, now = settings_of(invocation), surroundings_of(invocation).clock.now()
    ending = file.suffix.removeprefix(".").lower() if file is not None else ""
    format_name = format_name or ("json" if invocation.json else ending if ending in FORMS else "csv")
    form = FORMS[format_name]

    async def work() -> int:
        async with opened_store(settings) as store:
            require_schema(settings)
            choice = await store.read(lambda tx: choice_of(tx, options, now))
            if file is None or str(file) == "-":
                return await _write(store, choice, form, now, sys.stdout.write)
            with replacing(file) as write:
                return await _write(store, choice, form, now, write)

    count = run(work())
    if file is not None and str(file) != "-":
        invocation.result(
            {"file": str(file), "format": format_name, "workloads": count}, f"{count} workloads are written into {file}"
        )


async def _write(store: Store, choice: Choice, form: Form, now: float, write: Write) -> int:
    """Write the workloads that are chosen; how many there are."""
    issuers = await store.read(issuer_names)
    write(form.begin)
    count = 0
    async for rows in chosen(store, choice):
        for row in rows:
            write((form.between if count else "") + form.each(document_of(row, issuers, now)))
            count += 1
    write(form.end)
    return count
