"""Workloads with hostile names, files that are none, and what happens to a workload while somebody retires it."""

import csv
import io
import os
from functools import partial
from pathlib import Path

import psycopg
import pytest

from fakes.lineages import NOW, lineage
from fakes.postgresql import Postgresql
from privyseal_ca.cli.files import replacing
from privyseal_ca.cli.fleet_export import FORMS
from privyseal_ca.cli.fleet_shown import document_of, line_of
from privyseal_ca.errors import ConfigurationError, PolicyError
from privyseal_ca.fleet import retirement
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.fleet import LineageRow, add_lineage, find_lineage
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.statement import Transaction

#: C1 controls are escape sequences to some terminals, and the others turn what follows around or end the line.
CONTROLS = "\x1b[2J \x9b2J \x85 \u202e \u2028"


def test_terminals_get_no_control_characters() -> None:
    row = lineage("w", f"a{CONTROLS}", owner=f"ann{CONTROLS}")
    assert all(cell.isprintable() for cell in line_of(row))
    text = FORMS["csv"].each(document_of(row, {}, NOW))
    assert text.removesuffix("\r\n").isprintable()


@pytest.mark.parametrize(
    "inside", ["x;=1+1", "x; @SUM(A1)", "x\t=1+1", "x;\uff1d1"], ids=["equal", "at", "tab", "wide"]
)
def test_cells_are_no_formulas_where_others_separate_them(inside: str) -> None:
    text = FORMS["csv"].text([document_of(lineage("w", owner=inside), {}, NOW)])
    for delimiter in ";\t":
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            assert not any(cell.lstrip().startswith(("=", "+", "-", "@", "\uff1d")) for cell in cells)


@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, what: str) -> None:
    path = tmp_path / "there"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    before = path.lstat()
    with pytest.raises(ConfigurationError, match="no regular file"), replacing(path) as write:
        write("text")
    assert os.path.samestat(before, path.lstat())
    assert list(tmp_path.iterdir()) == [path]


def test_a_draft_of_somebody_else_stays(tmp_path: Path) -> None:
    draft = tmp_path / f".fleet.csv.{os.getpid()}.draft"
    draft.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="cannot be written"), replacing(tmp_path / "fleet.csv") as write:
        write("text")
    assert draft.is_symlink()
    assert list(tmp_path.iterdir()) == [draft]


@pytest.mark.postgresql
async def test_a_workload_that_renews_while_it_is_retired_is_not_retired(
    postgresql: Postgresql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be retired with its new certificate, and nobody would hear of it until that is renewed."""
    url = postgresql.new_database()
    migrate(url)
    store = Store(backend_for(url, durable=False, timeout=5), queue=16)
    await store.open()
    try:
        row = lineage("w", owner="ann")
        await store.write(lambda tx: add_lineage(tx, row))
        found = retirement.require_lineage

        def and_then_renewed(transaction: Transaction, lineage_id: str) -> LineageRow:
            seen = found(transaction, lineage_id)
            with psycopg.connect(url, autocommit=True) as other:
                other.execute("UPDATE lineage SET serial = %s, next_look = 0 WHERE id = 'w'", ["ab" * 16])
            return seen

        retire = partial(
            retirement.retire, lineage_id="w", reason="gone", now=NOW, actor="operator:jo", correlation="tests"
        )
        with monkeypatch.context() as patch:
            patch.setattr(retirement, "require_lineage", and_then_renewed)
            with pytest.raises(PolicyError, match="news of the workload"):
                await store.write(retire)
        after = await store.read(partial(find_lineage, lineage_id="w"))
        assert after is not None
        assert (after.serial, after.state, after.retired_at) == ("ab" * 16, row.state, 0)
        assert (await store.write(retire)).retired_at == NOW
    finally:
        await store.close()
