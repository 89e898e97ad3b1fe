"""``privyseal ledger export`` to real receivers and to bad ones: never with a gap, and nothing secret."""

import contextlib
import itertools
import json
import random
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from fakes.collector import Rsyslogd, certificate, collector, eventually, rsyslogd
from fakes.dns import LOOPBACK, free_port
from fakes.exporting import ORIGIN, Ledger, ended, exported_ledger, indexes, opened, runner
from fakes.home import MakeSettings
from fakes.service import FakeClock
from privyseal_acme.cli import cli
from privyseal_ca.errors import ExportError
from privyseal_ca.export.exporter import Exporter, OvertakenError, Source
from privyseal_ca.export.formats import FORMATS, Sender, renderer
from privyseal_ca.export.streams import StreamTarget, TlsFiles
from privyseal_ca.export.targets import Stop
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.store.exports import all_exports


@pytest.fixture
def ledger(make_settings: MakeSettings, tmp_path: Path) -> Ledger:
    return exported_ledger(make_settings, tmp_path)


@pytest.fixture(scope="module")
def syslogd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rsyslogd]:
    with rsyslogd(tmp_path_factory.mktemp("syslogd") / "home") as server:
        yield server


# Receivers


def test_rsyslog_understands_everything(ledger: Ledger, syslogd: Rsyslogd) -> None:
    before = len(syslogd.received())
    count = ledger.grow(300)
    done = ledger.export("syslog", f"tcp://{LOOPBACK}:{syslogd.tcp}")
    assert (done["sent"], done["next"]) == (count, count)
    found = eventually(lambda: len(rows := syslogd.received()[before:]) >= count and rows)
    for index, fields in enumerate(found):
        document = json.loads(fields["msg"])
        assert document["index"] == index
        assert leaf_hash(rfc8785.dumps(document["entry"])).hex() == document["leaf_hash"]
        assert fields["id"] == document["entry"]["kind"]
        assert f'[privyseal@32473 index="{index}" ' in fields["sd"]
        assert fields["severity"] in {"info", "notice", "warning", "err", "crit"}
    assert found[-1]["time"].startswith("1970-01-01T00:00:01")


def test_rsyslog_with_the_lines_of_the_page(ledger: Ledger, syslogd: Rsyslogd) -> None:
    count = ledger.grow(3, octets=60_000)
    url = f"tls://{LOOPBACK}:{syslogd.tls}"
    ledger.export("syslog", url, "--ca-file", syslogd.certificate, "--max-message", "262144")
    found = eventually(lambda: len(rows := syslogd.lines()) >= count and rows)
    for index, document in enumerate(found):
        assert document["index"] == index
        assert leaf_hash(rfc8785.dumps(document["entry"])).hex() == document["leaf_hash"]


def test_kills_leave_no_gap(ledger: Ledger, syslogd: Rsyslogd) -> None:
    before = len(syslogd.received())
    chance = random.Random(4)  # noqa: S311
    for _ in range(3):
        with ledger.process("syslog", f"tcp://{LOOPBACK}:{syslogd.tcp}", "--name", "k", "--batch", "5") as process:
            ledger.grow(150)
            seen = len(syslogd.received())
            eventually(lambda seen=seen, process=process: len(syslogd.received()) > seen or process.poll() is not None)  # type: ignore[misc]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.random() * 0.1)
            process.kill()
    count = ledger.size
    ledger.export("syslog", f"tcp://{LOOPBACK}:{syslogd.tcp}", "--name", "k")
    found = eventually(lambda: count - 1 in (rows := syslogd.indexes()[before:]) and rows)
    assert set(found) == set(range(count))
    # In their order, but for what was sent again.
    assert all(following <= index + 1 for index, following in itertools.pairwise(found))


def test_kills_leave_no_gap_in_a_file(ledger: Ledger) -> None:
    file = ledger.folder / "out"
    chance = random.Random(5)  # noqa: S311
    for _ in range(2):
        with ledger.process("jsonl", file, "--batch", "3") as process:
            ledger.grow(300, octets=2000)
            size_before = file.stat().st_size if file.exists() else 0
            eventually(
                lambda was=size_before, process=process: (
                    (file.exists() and file.stat().st_size > was)  # type: ignore[misc]
                    or process.poll() is not None
                )
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.random() * 0.05)
            process.kill()
    count = ledger.size
    ledger.export("jsonl", file)
    assert set(indexes(file)) == set(range(count))


def test_a_receiver_that_restarts(ledger: Ledger, tmp_path: Path) -> None:
    with rsyslogd(tmp_path / "restarting") as server:
        first = ledger.size
        with ledger.process("syslog", f"tcp://{LOOPBACK}:{server.tcp}", "--follow") as process:
            eventually(lambda: len(server.indexes()) >= first)
            server.stop()
            second = ledger.grow(50)
            eventually(lambda: ledger.cursor()["problem"], "the problem is not in the row")
            assert ledger.cursor()["behind"] > 0
            server.start()
            eventually(lambda: set(server.indexes()) == set(range(second)))
            said = ended(process)
        assert b"the export does not go on" in said
        assert ledger.cursor()["problem"] is None
        assert ledger.cursor()["next"] == second


def test_a_receiver_that_never_reads(ledger: Ledger) -> None:
    """The cursor stays although the receiver's kernel has taken a good part, and so does the memory."""
    count = ledger.grow(600, octets=60_000)
    assert count * 60_000 > 30 << 20
    more = ("--follow", "--batch", "16")
    with (
        collector(lambda _: None) as receiver,
        ledger.process("jsonl", f"tcp://{LOOPBACK}:{receiver.port}", *more) as process,
    ):
        eventually(lambda: receiver.connections)
        eventually(lambda: _is_waiting(process.pid))
        assert ledger.cursor()["next"] == 0
        assert _peak_memory(process.pid) < 150 << 20
        begun = time.monotonic()
        ended(process)
        assert time.monotonic() - begun < 15
    assert ledger.cursor()["next"] == 0


def _peak_memory(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _is_waiting(pid: int) -> bool:
    """Whether the connection's send queue has not changed for half a second and holds something."""

    def queue() -> list[int]:
        inodes = {
            link.removeprefix("socket:[").removesuffix("]")
            for entry in Path(f"/proc/{pid}/fd").iterdir()
            if (link := str(entry.readlink())).startswith("socket:")
        }
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return [int(row[4].split(":")[0], 16) for row in rows if row[9] in inodes]

    before = queue()
    time.sleep(0.5)
    return before == queue() and sum(before) > 0


def _reset(octets: int) -> Callable[[Any], None]:
    """Read a little, then end as a program does that dies: with a reset, for there is more to read."""

    def handler(connection: Any) -> None:
        connection.recv(octets)
        eventually(lambda: connection.recv(1, 2))  # MSG_PEEK: something is left
        connection.close()

    return handler


def test_a_receiver_that_dies_before_it_has_read_everything(ledger: Ledger) -> None:
    count = ledger.grow(100, octets=1000)
    with collector() as receiver:
        reading, receiver.handler = receiver.handler, _reset(2000)
        refused = ledger.export("jsonl", f"tcp://{LOOPBACK}:{receiver.port}", expect=1)
        assert str(receiver.port) in refused["error"]
        assert ledger.cursor()["next"] == 0
        receiver.handler = reading
        ledger.export("jsonl", f"tcp://{LOOPBACK}:{receiver.port}")
        assert [line["index"] for line in eventually(receiver.lines)] == list(range(count))
    assert ledger.cursor()["problem"] is None


def test_nobody_listens(ledger: Ledger) -> None:
    port = free_port()
    refused = ledger.export("syslog", f"tcp://{LOOPBACK}:{port}", expect=1)
    assert f"{LOOPBACK}:{port} does not take entries" in refused["error"]
    assert ledger.cursor()["next"] == 0


def stream_of(port: int, **options: Any) -> StreamTarget:
    return StreamTarget(LOOPBACK, port, patience=0.5, **options)


async def exported(ledger: Ledger, target: StreamTarget, name: str | None = "x") -> int:
    async with opened(ledger.settings.database_url) as store:
        exporter = Exporter(
            Source(store, name),
            target,
            renderer("jsonl", Sender(ORIGIN, "host", "1"), stream=True, max_message=8192),
            clock=FakeClock(),
            stop=Stop(),
            tell=lambda _: None,
        )
        return (await exporter.run(follow=False)).next


def server_context(files: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context


def _end_without_goodbye(connection: Any) -> None:
    """As somebody in between would who cuts the connection: no close_notify."""
    while connection.recv(65536):
        pass
    connection.close()


@pytest.mark.parametrize("tls", [False, True])
async def test_a_receiver_that_says_nothing_at_the_end(ledger_async: Ledger, tls: bool) -> None:
    """It has everything in its kernel, and nobody knows whether it will ever read it."""
    files = certificate(ledger_async.folder)
    with collector(lambda _: None, server_context(files) if tls else None) as receiver:
        target = stream_of(receiver.port, tls=TlsFiles(files[0]) if tls else None)
        with pytest.raises(ExportError, match="has not read what was sent last"):
            await exported(ledger_async, target)


async def test_the_end_of_tls_cannot_be_forged(ledger_async: Ledger) -> None:
    """A FIN alone, which anybody on the way can send, confirms nothing."""
    files = certificate(ledger_async.folder)
    with collector(_end_without_goodbye, server_context(files)) as receiver:
        with pytest.raises(ExportError):
            await exported(ledger_async, stream_of(receiver.port, tls=TlsFiles(files[0])))
        receiver.handler = receiver.read_all
        await exported(ledger_async, stream_of(receiver.port, tls=TlsFiles(files[0])))
        assert eventually(receiver.lines)[0]["index"] == 0


async def test_a_receiver_that_talks_without_end(ledger_async: Ledger) -> None:
    def talk(connection: Any) -> None:
        while True:
            connection.sendall(b"x" * 65536)

    with collector(talk) as receiver, pytest.raises(ExportError):
        await exported(ledger_async, stream_of(receiver.port))


@pytest.fixture
async def ledger_async(make_settings: MakeSettings, tmp_path: Path) -> Ledger:
    return Ledger(make_settings(), tmp_path)


async def test_two_exports_with_one_cursor(ledger_async: Ledger) -> None:
    url = ledger_async.settings.database_url
    with collector() as receiver:
        reading = receiver.handler

        def move(connection: Any) -> None:
            ledger_async.sql("UPDATE ledger_export SET next = 1")
            reading(connection)

        receiver.handler = move
        with pytest.raises(OvertakenError):
            await exported(ledger_async, stream_of(receiver.port))
    async with opened(url) as store:
        assert [row.next for row in await store.read(all_exports)] == [1]


# TLS


def test_tls_verifies_who_is_there(ledger: Ledger, syslogd: Rsyslogd) -> None:
    url = f"tls://{LOOPBACK}:{syslogd.tls}"
    assert "is not who it should be" in ledger.export("syslog", url, expect=1)["error"]
    other, _ = certificate(ledger.folder, "other")
    assert "is not who it should be" in ledger.export("syslog", url, "--ca-file", other, expect=1)["error"]
    named = ledger.export("syslog", f"tls://localhost:{syslogd.tls}", "--ca-file", syslogd.certificate, expect=1)
    assert "is not who it should be" in named["error"]
    with collector(lambda connection: connection.sendall(b"220 hello\r\n")) as plain:
        plain_url = f"tls://{LOOPBACK}:{plain.port}"
        assert "does not take entries" in ledger.export("syslog", plain_url, expect=1)["error"]
    assert {row["next"] for row in ledger.json("exports")} == {0}


def test_tls_with_a_certificate_of_the_client(ledger: Ledger) -> None:
    files, mine = certificate(ledger.folder), certificate(ledger.folder, "client")
    context = server_context(files)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(mine[0])
    with collector(context=context) as receiver:
        url = f"tls://{LOOPBACK}:{receiver.port}"
        assert "error" in ledger.export("jsonl", url, "--ca-file", files[0], expect=1)
        assert "does not take entries" in ledger.cursor()["problem"]
        shown = ("--client-cert", mine[0], "--client-key", mine[1])
        ledger.export("jsonl", url, "--ca-file", files[0], *shown)
        assert len(eventually(receiver.lines)) == ledger.size
    assert "--client-cert" in ledger.export("jsonl", url, "--client-cert", files[0], expect=1)["error"]
    assert "--ca-file" in ledger.export("jsonl", url, "--ca-file", files[1], expect=1)["error"]


# Secrets


def test_nothing_secret_goes_out(ledger: Ledger) -> None:
    environment = ledger.environment
    created = runner.invoke(cli, ["eab", "create", "--label", "team", "--json"], env=environment)
    assert created.exit_code == 0, created.output
    made = json.loads(created.stdout)
    secrets = [path.read_text().strip() for path in (ledger.settings.home / "secrets").iterdir() if path.is_file()]
    secrets.append(made["hmac_key"])
    assert len(secrets) >= 2
    for form in FORMATS:
        file = ledger.folder / form
        ledger.export(form, file)
        text = file.read_text(encoding="utf-8")
        assert made["kid"] in text
        for secret in secrets:
            assert secret not in text
