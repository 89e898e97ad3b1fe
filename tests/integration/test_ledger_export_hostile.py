"""Exports at the worst moment: receivers that say yes too early, entries that were made to break what reads them, wrong files."""

import contextlib
import json
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from fakes.collector import certificate, collector
from fakes.dns import LOOPBACK
from fakes.exporting import Ledger, exported_ledger, indexes
from fakes.home import MakeSettings
from fakes.process import PRIVYSEAL
from privyseal_ca.cli.ledger_export import Destination
from privyseal_ca.errors import ExportError
from privyseal_ca.export.formats import FORMATS
from privyseal_ca.export.streams import StreamTarget, TlsFiles
from privyseal_ca.export.targets import Stop
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.ledger.tree import leaf_hash


@pytest.fixture
def ledger(make_settings: MakeSettings, tmp_path: Path) -> Ledger:
    return exported_ledger(make_settings, tmp_path)


# Gaps.


@pytest.mark.parametrize("tls", [False, True])
def test_an_end_that_came_before_ours_confirms_nothing(tmp_path: Path, tls: bool) -> None:
    """Nothing was read, and nothing may ever be: who only receives may close that direction at once."""
    files, done = certificate(tmp_path), threading.Event()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)

    def half_close(connection: Any) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            connection.settimeout(0.1)
            with contextlib.suppress(OSError):
                connection.unwrap()
        else:
            connection.shutdown(socket.SHUT_WR)
        done.set()

    stop = Stop()
    with collector(half_close, context if tls else None) as receiver:
        target = StreamTarget(LOOPBACK, receiver.port, tls=TlsFiles(files[0]) if tls else None, patience=3)
        target.send([b"{}\n"], stop)
        assert done.wait(20)
        with pytest.raises(ExportError, match="closed the connection before"):
            target.confirm(stop)
        receiver.handler = receiver.read_all
        target.send([b"{}\n"], stop)
        target.confirm(stop)
        assert receiver.lines() == [{}]


def test_where_an_export_cannot_begin_it_does_not_stay(ledger: Ledger) -> None:
    file = ledger.folder / "out"
    ledger.export("jsonl", file)
    before = ledger.size
    assert "has only" in ledger.export("jsonl", file, "--from", str(before + 3), expect=1)["error"]
    # Else what comes until then would be left out.
    count = ledger.grow(5)
    ledger.export("jsonl", file)
    assert indexes(file) == list(range(count))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8::5:1", "2001:db8:5::1"),
        ("collector-" + "a" * 50 + ".one.example", "collector-" + "a" * 50 + ".two.example"),
    ],
)
def test_two_receivers_have_two_cursors(one: str, other: str) -> None:
    names = [Destination("tls", host=host, port=6514).name() for host in (one, other)]
    assert names[0] != names[1]
    assert all(name is not None and len(name) <= 63 + 9 for name in names)
    assert Destination("tls", host="logs.corp.example", port=6514).name() == "tls-logs.corp.example-6514"


def test_the_output_may_be_a_file(ledger: Ledger) -> None:
    words = [str(PRIVYSEAL), "ledger", "export", "--format", "jsonl", "--to", "-", "--name", "kept"]
    with (ledger.folder / "out").open("wb") as file:
        subprocess.run(words, env=ledger.environment, stdout=file, check=True, timeout=60)
    assert indexes(ledger.folder / "out") == list(range(ledger.size))
    assert ledger.cursor()["next"] == ledger.size


# Looking healthy.


def test_one_that_starts_and_gets_nowhere_does_not_look_alive(ledger: Ledger) -> None:
    file = ledger.folder / "out"
    ledger.export("jsonl", file, "--name", "x")
    ledger.sql("UPDATE ledger_export SET updated_at = 100, problem = 'it was away'")
    count = ledger.grow(1)
    file.unlink()
    file.mkdir()
    ledger.export("jsonl", file, "--name", "x", expect=1)
    row = ledger.cursor()
    assert (row["updated"], row["behind"]) == ("1970-01-01T00:01:40Z", 1)
    assert "cannot be written" in row["problem"]
    # What goes on says so, with news or without.
    file.rmdir()
    for _ in range(2):
        ledger.sql("UPDATE ledger_export SET updated_at = 100, problem = 'it was away'")
        ledger.export("jsonl", file, "--name", "x")
        row = ledger.cursor()
        assert (row["next"], row["problem"]) == (count, None)
        assert row["updated"] > "2020"


# Entries that were made to break something.


def _put(ledger: Ledger, **changes: Any) -> int:
    """An entry with the right leaf hash, by whoever can write to the database; its index."""
    members = json.loads(encode_entry(Kind.EAB_CREATED, time=1.0, actor="operator:o", correlation="c", payload={}))
    made = orjson.dumps({**members, **changes}, option=orjson.OPT_SORT_KEYS)
    index = ledger.size
    ledger.sql("INSERT INTO ledger_entry (idx, leaf_hash, entry) VALUES (?, ?, ?)", index, leaf_hash(made), made)
    ledger.sql("UPDATE ledger_head SET size = ?", index + 1)
    return index


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": []},
        {"payload": "x"},
        {"kind": ["x"]},
        {"kind": "eab.created\n<110>1 forged"},
        {"kind": "a" * 1000},
        {"time": "1970-01-01T00:00:01.000Z\n<110>1 forged"},
        {"time": "1970-13-01T00:00:01.000Z"},
        {"time": 7},
        {"actor": None},
        {"correlation": {}},
        {"v": "1"},
    ],
)
def test_entries_of_another_form_are_not_handed_on(ledger: Ledger, changes: dict[str, Any]) -> None:
    index = _put(ledger, **changes)
    for form in FORMATS:
        file = ledger.folder / form
        refused = ledger.export(form, file, "--name", form, "--batch", "1", expect=1)
        assert f"Entry {index} has a member of another form" in refused["error"]
        assert file.read_bytes().count(b"\n") == index
    assert all(str(index) in row["problem"] for row in ledger.json("exports"))


def test_nothing_ends_a_line_or_is_obeyed_by_a_terminal(ledger: Ledger) -> None:
    evil = 'a\n<110>1 forged\r\x1b[2J\x7f\x85\x9b2J\u2028\u2029\u202e]"\\ end'
    index = ledger.size

    def unit(transaction: Any) -> None:
        payload = {"kid": evil, "label": evil, "names": [f"dns:{evil}"]}
        append(
            transaction,
            encode_entry(Kind.EAB_CREATED, time=1.0, actor=f"operator:{evil}", correlation=evil, payload=payload),
        )

    ledger.write(unit)
    for form in FORMATS:
        file = ledger.folder / form
        ledger.export(form, file, "--from", str(index))
        (line,) = file.read_bytes().split(b"\n")[:-1]
        assert not set(line) & {*range(32)}
        if form == "jsonl":
            # The entry's own octets: what the leaf hash is over.
            assert json.loads(line)["entry"]["payload"]["label"] == evil
            continue
        text = line.decode()
        assert not set(text) & set("\x7f\x85\x9b\u2028\u2029\u202e")
        document = json.loads(text if form == "ocsf" else text[text.index(' {"index"') :])
        payload = document["unmapped"]["payload"] if form == "ocsf" else document["entry"]["payload"]
        assert payload["label"] == evil


def test_a_host_whose_name_is_none(ledger: Ledger) -> None:
    refused = ledger.export("jsonl", f"tcp://{'a' * 70}.example:1", expect=1)
    assert "does not take entries" in refused["error"]


# Files of others.


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("content", [b'{"important": true}', b'{"index"', b"<html>", b"{", b"<"])
def test_a_document_without_an_end_of_line_is_left_alone(ledger: Ledger, form: str, content: bytes) -> None:
    file = ledger.folder / "precious"
    file.write_bytes(content)
    begins = {"jsonl": b'{"index":', "ocsf": b'{"activity_id":', "syslog": b"<1"}[form]
    if begins.startswith(content):
        # So short that nobody misses it.
        ledger.export(form, file)
        return
    assert "no export in this format" in ledger.export(form, file, expect=1)["error"]
    assert file.read_bytes() == content


def test_a_link_is_not_followed(ledger: Ledger) -> None:
    other, link = ledger.folder / "other", ledger.folder / "link"
    other.write_bytes(b"")
    for target in (other, ledger.folder / "nowhere"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert "symbolic link" in ledger.export("jsonl", link, expect=1)["error"]
    assert other.read_bytes() == b""
    assert not (ledger.folder / "nowhere").exists()
