"""``privyseal ledger export`` to files and pipes, over kills and full disks, and from ledgers and databases that fail."""

import asyncio
import contextlib
import json
import resource
import signal
import sqlite3
import subprocess
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import rfc8785

from fakes.collector import eventually
from fakes.exporting import ORIGIN, Ledger, ended, exported_ledger, indexes, opened
from fakes.home import MakeSettings
from fakes.postgresql import Postgresql, copy_to_postgresql
from fakes.service import FakeClock
from privyseal_ca.config import Settings
from privyseal_ca.export.figures import export_figures
from privyseal_ca.ledger.checkpoints import ORIGIN_FACT
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.sections import DatabaseSettings
from privyseal_ca.store.exports import MAX_EXPORTS, ExportRow, add_export
from privyseal_ca.telemetry.metrics import Metrics


@pytest.fixture
def ledger(make_settings: MakeSettings, tmp_path: Path) -> Ledger:
    return exported_ledger(make_settings, tmp_path)


# Files


def test_every_entry_can_be_rebuilt_and_the_next_run_goes_on(ledger: Ledger) -> None:
    file = ledger.folder / "out.jsonl"
    count = ledger.grow(7)
    done = ledger.export("jsonl", file, "--batch", "3")
    assert (done["sent"], done["next"], done["size"]) == (count, count, count)
    for index, line in enumerate(file.read_bytes().splitlines()):
        document = json.loads(line)
        assert document["index"] == index
        assert leaf_hash(rfc8785.dumps(document["entry"])).hex() == document["leaf_hash"]
    assert ledger.export("jsonl", file)["sent"] == 0
    more = ledger.grow(2)
    assert ledger.export("jsonl", file)["sent"] == 2
    assert indexes(file) == list(range(more))
    row = ledger.cursor()
    assert (row["next"], row["behind"], row["problem"]) == (more, 0, None)
    assert row["name"] == done["name"]
    assert file.stat().st_mode & 0o077 == 0


def test_choosing_where_to_begin_and_which_kinds(ledger: Ledger) -> None:
    count = ledger.grow(10)
    file = ledger.folder / "out"
    ledger.export("jsonl", file, "--from", str(count - 3))
    assert indexes(file) == [count - 3, count - 2, count - 1]
    ledger.export("jsonl", ledger.folder / "kinds", "--kinds", "account.created", "--from", str(count - 10))
    assert indexes(ledger.folder / "kinds") == list(range(count - 9, count, 2))
    assert all(row["next"] == count for row in ledger.json("exports"))


def test_exports_are_listed_removed_and_bounded(ledger: Ledger) -> None:
    file = ledger.folder / "out"
    count = ledger.size
    ledger.export("ocsf", file, "--name", "siem")
    assert ledger.cursor()["name"] == "siem"
    assert "siem" in ledger.run("exports").stdout
    assert ledger.json("exports", "--remove", "siem") == {"removed": "siem"}
    assert ledger.json("exports") == []
    assert "no export called siem" in ledger.json("exports", "--remove", "siem", expect=1)["error"]
    ledger.export("ocsf", file, "--name", "siem")
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert [event["metadata"]["uid"] for event in events] == [f"{ORIGIN}#{index}" for index in range(count)] * 2
    for number in range(1, MAX_EXPORTS):
        ledger.write(lambda tx, number=number: add_export(tx, ExportRow(f"n{number}", 0, 0, None)))  # type: ignore[misc]
    refused = ledger.export("jsonl", file, "--name", "late", expect=1)
    assert "16 exports" in refused["error"]
    assert "--remove" in refused["hint"]


def test_the_service_shows_how_far_exports_are(ledger: Ledger) -> None:
    ledger.export("jsonl", ledger.folder / "out", "--name", "siem")
    ledger.grow(5)
    ledger.write(lambda tx: add_export(tx, ExportRow("other", 1, 100, "the receiver is away")))
    metrics, clock = Metrics(), FakeClock()

    async def look() -> str:
        async with opened(ledger.settings.database_url) as store:
            await export_figures(store, metrics, clock)
        return metrics.render().decode()

    text = asyncio.run(look())
    assert 'privyseal_export_lag_entries{name="siem"} 5.0' in text
    assert 'privyseal_export_problem{name="siem"} 0.0' in text
    assert 'privyseal_export_problem{name="other"} 1.0' in text
    assert metrics.export_age.labels("other")._value.get() == clock.now() - 100
    ledger.run("exports", "--remove", "other")
    assert 'name="other"' not in asyncio.run(look())


def test_a_torn_last_line_is_repaired(ledger: Ledger) -> None:
    file = ledger.folder / "out"
    ledger.export("jsonl", file)
    whole = file.read_bytes()
    count = ledger.grow(1)
    file.write_bytes(whole + b'{"index":99,"leaf_')
    ledger.export("jsonl", file)
    assert indexes(file) == list(range(count))


@pytest.mark.parametrize("content", [b"root:x:0:0", b"a line\nand another"])
def test_a_file_of_somebody_else_is_left_alone(ledger: Ledger, content: bytes) -> None:
    file = ledger.folder / "precious"
    file.write_bytes(content)
    assert "no export in this format" in ledger.export("jsonl", file, expect=1)["error"]
    assert file.read_bytes() == content
    assert ledger.cursor()["next"] == 0
    assert "no export in this format" in ledger.cursor()["problem"]


@pytest.mark.parametrize("target", ["/dev/full", "missing/out", "."])
def test_what_cannot_be_written(ledger: Ledger, target: str) -> None:
    refused = ledger.export("jsonl", ledger.folder / target, expect=1)
    assert target.split("/", maxsplit=1)[0] in refused["error"] or str(ledger.folder) in refused["error"]
    assert refused["hint"]
    assert ledger.cursor()["next"] == 0


def test_a_pipe_without_a_reader_does_not_hang(ledger: Ledger) -> None:
    path = ledger.folder / "pipe"
    subprocess.run(["mkfifo", path], check=True)
    assert "is not a file" in ledger.export("jsonl", path, expect=1)["error"]


def test_a_disk_that_is_full(ledger: Ledger) -> None:
    file = ledger.folder / "out"
    count = ledger.grow(200, octets=500)
    limit = 64_321
    options = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))}
    # The database is beyond the limit as well, as on a full disk: nothing moves, and the file is what it was.
    with ledger.process("jsonl", file, "--json", "--name", "x", "--batch", "16", **options) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "error" in json.loads(output)
    cursor = {row["name"]: row["next"] for row in ledger.json("exports")}.get("x", 0)
    written = file.read_bytes().count(b"\n") if file.exists() else 0
    assert cursor <= written < count
    ledger.export("jsonl", file, "--name", "x")
    found = indexes(file)
    assert sorted(set(found)) == list(range(count))


def test_a_file_that_is_rotated_and_one_writer_at_a_time(ledger: Ledger) -> None:
    file = ledger.folder / "out"
    first = ledger.size
    with ledger.process("jsonl", file, "--follow") as process:
        eventually(lambda: file.exists() and file.read_bytes().count(b"\n") == first)
        assert "Another program writes" in ledger.export("jsonl", file, "--name", "x", "--from", "0", expect=1)["error"]
        file.rename(ledger.folder / "out.1")
        second = ledger.grow(3)
        eventually(lambda: file.exists() and file.read_bytes().count(b"\n") == 3)
        said = ended(process, signal.SIGINT)
    assert b"error" not in said
    assert indexes(ledger.folder / "out.1") + indexes(file) == list(range(second))
    assert {row["name"]: row["next"] for row in ledger.json("exports")}.popitem()[1] in {0, second}


# Standard output


def test_standard_output_keeps_no_cursor(ledger: Ledger) -> None:
    with ledger.process("jsonl", "-") as process:
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert [json.loads(line)["index"] for line in output.splitlines()] == list(range(ledger.size))
    assert b"entries exported" in errors
    assert ledger.json("exports") == []


def test_a_reader_of_the_output_that_goes_away_or_never_reads(ledger: Ledger) -> None:
    ledger.grow(100, octets=5000)
    with ledger.process("jsonl", "-", "--name", "pipe") as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        process.stdout = None
        assert process.wait(30) == 1
        assert process.stderr is not None
        assert b"Standard output cannot be written" in process.stderr.read()
    assert ledger.cursor()["next"] == 0
    with ledger.process("jsonl", "-", "--follow") as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


# Calls that make no sense


@pytest.mark.parametrize(
    "arguments",
    [
        ("--to", "udp://h:1"), ("--to", "tcp://h"), ("--to", "tcp://:1"), ("--to", "tls://h:99999"), ("--to", "tcp://u@h:1"),
        ("--to", "tcp://h:1/path"), ("--to", "tcp://h:1?x"), ("--to", "-", "--name", "Big"), ("--to", "-", "--name", "a" * 64),
        ("--to", "-", "--kinds", "nothing"), ("--to", "-", "--from", "-1"), ("--to", "-", "--batch", "0"),
        ("--to", "tcp://h:1", "--ca-file", "/etc/passwd"), ("--to", "tls://h:1", "--client-key", "/etc/passwd"), (),
    ],
)  # fmt: skip
def test_calls_that_make_no_sense(ledger: Ledger, arguments: tuple[str, ...]) -> None:
    ledger.run("export", "--format", "jsonl", *arguments, expect=2)
    assert ledger.json("exports") == []


def test_a_ledger_without_a_name(ledger: Ledger) -> None:
    ledger.sql("DELETE FROM fact WHERE name = ?", ORIGIN_FACT)
    for form in ("ocsf", "syslog"):
        assert "no name yet" in ledger.export(form, ledger.folder / "x", expect=1)["error"]
    assert ledger.export("jsonl", ledger.folder / "x")["sent"] == ledger.size


# The ledger and the database


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_entry SET entry = '{}' WHERE idx = 2",
        "DELETE FROM ledger_entry WHERE idx = 2",
        "DELETE FROM ledger_entry WHERE idx >= 2",
    ],
)
def test_a_ledger_that_was_changed_is_not_handed_on(ledger: Ledger, statement: str) -> None:
    ledger.grow(3)
    ledger.sql(statement)
    file = ledger.folder / "out"
    refused = ledger.export("jsonl", file, "--batch", "1", expect=1)
    assert "Entry 2" in refused["error"]
    assert "ledger verify" in refused["hint"]
    assert indexes(file) == [0, 1]
    assert "Entry 2" in ledger.cursor()["problem"]


def test_a_ledger_that_is_shorter_than_the_cursor(ledger: Ledger) -> None:
    file = ledger.folder / "out"
    refused = ledger.export("jsonl", file, "--from", "1000", expect=1)
    assert "has only" in refused["error"]
    assert not file.exists()


def test_a_database_that_is_busy(ledger: Ledger) -> None:
    path = ledger.settings.database_url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = ledger.export("jsonl", ledger.folder / "out", expect=1)
    assert "cannot be kept" in refused["error"]
    assert "locked" in refused["error"]
    assert "--name" in refused["hint"]
    assert not (ledger.folder / "out").exists()


@pytest.mark.postgresql
def test_a_database_that_only_answers_questions(ledger: Ledger, postgresql: Postgresql) -> None:
    url = copy_to_postgresql(ledger.settings.database_url, postgresql)
    copied = replace(ledger, settings=_with_database(ledger.settings, url))
    count = copied.grow(5)
    assert copied.export("jsonl", ledger.folder / "first")["next"] == count
    # The rights that docs/export.md names suffice.
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("CREATE ROLE exporter LOGIN")
        owner.execute("GRANT SELECT ON fact, ledger_head, ledger_entry, ledger_export TO exporter")
        owner.execute("GRANT INSERT, UPDATE ON ledger_export TO exporter")
    limited = replace(copied, settings=_with_database(copied.settings, url.replace("privyseal@", "exporter@")))
    assert limited.export("jsonl", ledger.folder / "second", "--name", "limited")["next"] == count
    postgresql.administer(f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only = on")
    refused = copied.export("jsonl", ledger.folder / "out", "--name", "new", expect=1)
    assert "read-only" in refused["error"]
    assert "--name" in refused["hint"]
    with copied.process("jsonl", "-") as process:
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert len(output.splitlines()) == count


def _with_database(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"database": DatabaseSettings(url=url)})
