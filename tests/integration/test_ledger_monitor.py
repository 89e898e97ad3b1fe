"""`privyseal ledger monitor`: what changes is read once, what is wrong is told until it is right or somebody has dealt with it."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fakes.ledgers import log_key
from fakes.outside_logs import (
    BEGIN,
    Server,
    SignedLog,
    Witness,
    answers,
    crl,
    entry,
    issued,
    life,
    revoked,
    serial_of,
    served,
    silent,
    write,
)
from fakes.process import PRIVYSEAL, clean_environment
from fakes.service import FakeClock
from fakes.status_client import eventually
from privyseal_acme.cli import cli
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.ledger.tiles import TilePath, entry_bundle
from privyseal_ca.outside.alerts import Alerter
from privyseal_ca.outside.findings import Code, Finding
from privyseal_ca.outside.monitor import Monitor, Round
from privyseal_ca.outside.signed import LogKeys
from privyseal_ca.outside.source import HttpLedger, LedgerBounds
from privyseal_ca.outside.state import MonitorState
from privyseal_ca.web.fetching import new_session

SIZE = 600


@dataclass
class Watch:
    """A log that is served, and the monitor's folder."""

    log: SignedLog
    server: Server
    state: Path

    def run(self, *arguments: str | Path, vkey: str = "") -> Result:
        words = ["ledger", "monitor", "--json", "--once", "--vkey", vkey or self.log.vkey, "--state", str(self.state)]
        return CliRunner().invoke(cli, [*words, *map(str, arguments), self.server.url])

    def round(self, *arguments: str | Path, expect: int = 0) -> dict[str, Any]:
        done = self.run(*arguments)
        assert done.exit_code == expect, (done.output, done.exception)
        (line,) = done.stdout.splitlines()
        document: dict[str, Any] = json.loads(line)
        assert document["ok"] is (expect == 0)
        return document

    def finds(self, *arguments: str | Path, code: str) -> dict[str, Any]:
        document = self.round(*arguments, expect=1)
        assert [each["code"] for each in document["findings"]] == [code], document
        found: dict[str, Any] = document["findings"][0]
        return found

    def publish(self, entries: list[bytes]) -> None:
        self.log = SignedLog(entries)
        self.log.publish(self.server.folder)

    def evidence(self) -> list[Path]:
        return sorted(self.state.glob("evidence-*"))


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    monkeypatch.setattr("privyseal_ca.outside.monitor.PAUSE", 0.0)
    log = SignedLog(life(SIZE))
    with served(log.publish(tmp_path / "log")) as server:
        yield Watch(log, server, tmp_path / "state")


def test_only_what_is_new_is_read(watch: Watch) -> None:
    first = watch.round()
    assert (first["size"], first["new_entries"], first["entries_checked"]) == (SIZE, SIZE, True)
    assert (watch.state / "checkpoint").read_bytes() == watch.log.note()
    watch.server.asked.clear()
    assert watch.round()["new_entries"] == 0
    assert not any("/tile/entries/" in path for path in watch.server.asked)
    watch.publish(life(SIZE + 200))
    watch.server.asked.clear()
    assert watch.round()["new_entries"] == 200
    assert not {"/ledger/tile/0/000", "/ledger/tile/entries/000", "/ledger/tile/entries/001"} & set(watch.server.asked)
    # What an earlier process has read is known to a later one.
    number = next(number for number in range(1, 99) if serial_of(number).encode() in b"".join(watch.log.entries))
    watch.publish([*life(SIZE + 200), issued(number)])
    found = watch.finds(code="entry")
    assert (found["index"], "no intent" in found["message"]) == (SIZE + 200, True)


def test_what_was_revoked_in_an_earlier_round_is_known(watch: Watch) -> None:
    watch.round()
    watch.publish([*life(SIZE), revoked(1)])
    found = watch.finds(code="entry")
    assert (found["index"], "revoked before" in found["message"]) == (SIZE, True)
    # It is so in every round, and what is right again is right.
    assert watch.finds(code="entry")["index"] == SIZE
    assert watch.evidence() == []


def test_a_rollback_is_told_until_somebody_has_dealt_with_it(watch: Watch) -> None:
    watch.round()
    checkpoint = watch.server.folder / "ledger/checkpoint"
    checkpoint.write_bytes(watch.log.note(512))
    found = watch.finds(code="rollback")
    assert found["index"] == 512
    assert found["notes"] == [watch.log.note().decode(), watch.log.note(512).decode()]
    checkpoint.write_bytes(watch.log.note())
    (evidence,) = watch.evidence()
    assert str(evidence) in watch.finds(code="rollback")["message"]
    kept = json.loads(evidence.read_bytes())
    assert kept["notes"] == found["notes"]
    evidence.unlink()
    watch.round()


def test_a_cache_that_is_behind_for_a_moment_is_no_rollback(watch: Watch) -> None:
    watch.round()
    left = [2]

    def behind(handler: SimpleHTTPRequestHandler) -> None:
        left[0] -= 1
        if not left[0]:
            watch.server.faults.clear()
        answers(200, watch.log.note(300))(handler)

    watch.server.faults["/ledger/checkpoint"] = behind
    assert watch.round()["size"] == SIZE


@pytest.mark.parametrize(("index", "size", "named"), [(590, SIZE, 590), (590, 700, 590), (100, 700, 0)])
def test_a_fork_is_named_and_kept(watch: Watch, index: int, size: int, named: int) -> None:
    before = watch.log.note()
    watch.round()
    entries = life(size)
    entries[index] = entry(Kind.SERVICE_STARTED, {"at": "rewritten"})
    watch.publish(entries)
    found = watch.finds(code="fork")
    # In tiles that are full only their hash was kept: the range is named.
    assert found["index"] == named
    assert ("entry 590" if index == 590 else "entries 0 to 255") in found["message"]
    assert found["notes"] == [before.decode(), watch.log.note().decode()]
    assert json.loads(watch.evidence()[0].read_bytes())["notes"] == found["notes"]
    watch.publish(life(SIZE))
    watch.finds(code="fork")


def test_what_is_wrong_in_what_is_new(watch: Watch) -> None:
    watch.round()
    watch.publish(life(800))
    wrong = watch.server.folder / "ledger" / TilePath(0, 2).path()
    right = wrong.read_bytes()
    wrong.write_bytes(right[:3200] + b"\x00" * 32 + right[3232:])
    found = watch.finds(code="tile")
    assert found["index"] == 612
    wrong.write_bytes(right)
    write(watch.server.folder, TilePath(None, 2), entry_bundle(watch.log.entries[512:767]))
    assert watch.finds(code="entry")["index"] == 512
    write(watch.server.folder, TilePath(None, 2), entry_bundle(watch.log.entries[512:768]))
    assert watch.round()["new_entries"] == 200


def test_entries_that_are_not_given_any_more(watch: Watch) -> None:
    watch.round()
    watch.publish(life(601))
    watch.server.faults["/ledger/tile/entries/002.p/89"] = answers(403)
    assert "Entries are not given any more" in watch.finds(code="unreachable")["message"]
    watch.server.faults.clear()
    assert watch.round()["new_entries"] == 1


def test_a_log_whose_entries_are_closed(watch: Watch) -> None:
    watch.server.faults["/ledger/tile/entries/000"] = answers(403)
    assert watch.round()["entries_checked"] is False
    watch.publish(life(700))
    assert watch.round()["new_entries"] == 100
    # Whoever begins without entries goes on without: what was not read is not known.
    watch.server.faults.clear()
    assert watch.round()["entries_checked"] is False
    assert "without the entries" in json.loads(watch.run("--require-entries").stdout)["error"]


def test_entries_that_have_to_be_given(watch: Watch) -> None:
    watch.server.faults["/ledger/tile/entries/000"] = answers(403)
    assert "not given" in watch.finds("--require-entries", code="unreachable")["message"]
    watch.server.faults.clear()
    assert watch.round("--require-entries")["entries_checked"] is True


def test_a_crl_that_the_log_tells_of_and_nobody_serves(watch: Watch) -> None:
    watch.publish([*life(SIZE), crl(99, through=SIZE, scope="full")])
    found = watch.finds(code="crl")
    assert "not served" in found["message"]
    assert "not served" in watch.finds(code="crl")["message"]


def test_another_view(watch: Watch, tmp_path: Path) -> None:
    with served(SignedLog(life(300)).publish(tmp_path / "mirror")) as mirror:
        watch.round("--also", mirror.url)
        entries = [*life(299), entry(Kind.SERVICE_STARTED, {"at": "other"})]
        SignedLog(entries).publish(tmp_path / "mirror")
        assert mirror.url in watch.finds("--also", mirror.url, code="split-view")["message"]
    assert len(watch.evidence()) == 1


def test_stale_cosignatures(watch: Watch) -> None:
    witness = Witness("w.test/witness")
    watch.log.publish(watch.server.folder, witnesses=[(witness, int(time.time()) - 7200)])
    watch.round("--witness", witness.vkey)
    assert "7200" not in watch.finds("--witness", witness.vkey, "--freshness", "1h", code="stale")["message"]


def test_a_log_that_cannot_be_reached(watch: Watch) -> None:
    watch.round()
    watch.server.faults["/ledger/checkpoint"] = answers(500)
    assert "last time" in watch.finds(code="unreachable")["message"]
    watch.server.faults.clear()
    assert watch.round()["ok"]


async def test_out_of_reach_for_a_moment_is_not_told(tmp_path: Path) -> None:
    log, clock = SignedLog(life(10)), FakeClock(BEGIN + 100)
    keys = LogKeys(log.verifier)
    bounds = LedgerBounds(seconds=0.2, attempts=1)
    with served(log.publish(tmp_path / "log")) as server, MonitorState.opened(tmp_path / "state", keys) as state:
        async with new_session() as session:
            source = HttpLedger(server.url, session, bounds=bounds)
            monitor = Monitor(source, keys, state, clock=clock, freshness=3600, patience=300)
            assert (await monitor.round()).findings == []
            # A server that takes the question and says nothing.
            server.faults["/ledger/checkpoint"] = silent(server)
            clock.advance(299)
            done = await monitor.round()
            assert (done.findings, "does not arrive" in done.notes[0]) == ([], True)
            clock.advance(2)
            assert [found.code for found in (await monitor.round()).findings] == [Code.UNREACHABLE]
            server.faults.clear()
            assert (await monitor.round()).findings == []


# What it keeps.


def test_the_state_survives_a_kill_between_any_two_writes(watch: Watch) -> None:
    watch.round()
    before = {path.name: path.read_bytes() for path in watch.state.iterdir()}
    watch.publish(life(800))
    watch.round()
    after = {path.name: path.read_bytes() for path in watch.state.iterdir()}
    assert len(after["journal"]) > len(before["journal"])
    # The journal first, whole or in part; then the state; then the checkpoint for others.
    for journal in (after["journal"], after["journal"][:-7], before["journal"] + b"[12"):
        (watch.state / "journal").write_bytes(journal)
        (watch.state / "state.json").write_bytes(before["state.json"])
        (watch.state / "checkpoint").write_bytes(before["checkpoint"])
        (watch.state / ".state.json.draft").write_bytes(b"half")
        assert watch.round()["new_entries"] == 200
        assert (watch.state / "journal").read_bytes() == after["journal"]
    (watch.state / "checkpoint").write_bytes(before["checkpoint"])
    watch.round()


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: (state / "journal").write_bytes((state / "journal").read_bytes()[:-1]),
        lambda state: (state / "journal").write_bytes(
            (state / "journal").read_bytes().replace(b"intent", b"extent", 1)
        ),
        lambda state: (state / "state.json").write_bytes(b"{}"),
        lambda state: (state / "state.json").write_bytes(b"\xff"),
        lambda state: (state / "state.json").write_bytes(
            (state / "state.json").read_bytes().replace(b'"size":600', b'"size":601')
        ),
        lambda state: (state / "state.json").write_bytes(
            (state / "state.json").read_bytes().replace(b"\\n600\\n", b"\\n700\\n")
        ),
    ],
)
def test_a_state_that_was_changed_is_refused(watch: Watch, damage: Any) -> None:
    watch.round()
    damage(watch.state)
    done = watch.run()
    assert done.exit_code == 1
    assert "not what a monitor wrote" in json.loads(done.stdout)["error"]


def test_a_state_is_for_one_log_and_one_monitor(watch: Watch) -> None:
    watch.round()
    other = SignedLog([], key=log_key("another"))
    assert "another verification key" in json.loads(watch.run(vkey=other.vkey).stdout)["error"]
    with MonitorState.opened(watch.state, LogKeys(watch.log.verifier)):
        assert "Another monitor" in json.loads(watch.run().stdout)["error"]
    (watch.state / "journal").unlink()
    assert "cannot be read" in json.loads(watch.run().stdout)["error"]


def test_evidence_does_not_fill_the_disk(tmp_path: Path) -> None:
    log = SignedLog([])
    with MonitorState.opened(tmp_path, LogKeys(log.verifier)) as state:
        for number in range(100):
            state.keep_evidence(Finding(Code.FORK, f"{number}"))
        assert len(list(tmp_path.glob("evidence-*"))) == 64
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError), MonitorState.opened(tmp_path / "file", LogKeys(log.verifier)):
        pass


# Telling.

_KEEP = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"


def test_a_command_gets_the_findings_without_a_shell(watch: Watch, tmp_path: Path) -> None:
    file = tmp_path / "told $(id)"
    command = f"{sys.executable} -c \"{_KEEP}\" '{file}'"
    watch.round("--on-alert", command)
    assert not file.exists()
    (watch.server.folder / "ledger/checkpoint").write_bytes(b"nonsense")
    document = watch.round("--on-alert", command, expect=1)
    assert json.loads(file.read_text()) == document
    assert watch.run("--on-alert", "unfinished '").exit_code == 2


async def test_what_goes_on_is_told_each_hour_and_a_command_that_fails_harms_nobody(tmp_path: Path) -> None:
    clock, said, file = FakeClock(), list[str](), tmp_path / "told"
    alerter = Alerter([sys.executable, "-c", _KEEP, str(file)], tell=said.append)

    async def judge(*findings: Finding) -> int:
        await alerter.judge(Round(clock.now(), list(findings)))
        return len(file.read_text().splitlines()) if file.exists() else 0

    one, other = Finding(Code.STALE, "a"), Finding(Code.ENTRY, "b", 7)
    assert await judge() == 0
    assert [await judge(one), await judge(one), await judge(one, other), await judge(other)] == [1, 1, 2, 2]
    clock.advance(3601)
    assert await judge(other) == 3
    assert [await judge(), await judge(other)] == [3, 4]
    assert said == []
    for command, what in (
        (["/nonexistent/command"], "cannot be run"),
        ([sys.executable, "-c", "raise SystemExit(3)"], "exit code 3"),
        (["sleep", "60"], "was ended"),
    ):
        said.clear()
        alerter = Alerter(command, tell=said.append, seconds=0.3)
        await alerter.judge(Round(clock.now(), [one]))
        assert what in said[0], command
        # Nobody knows of it yet: it is tried again.
        await alerter.judge(Round(clock.now() + 1, [one]))
        assert len(said) == 2


# As a process.


@pytest.fixture
def process(watch: Watch) -> Iterator["subprocess.Popen[str]"]:
    words = ["ledger", "monitor", "--json", "--interval", "1s", "--vkey", watch.log.vkey, "--state", str(watch.state)]
    with subprocess.Popen(
        [PRIVYSEAL, *words, watch.server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def line_of(running: "subprocess.Popen[str]") -> dict[str, Any]:
    """The next round, within a bounded time."""
    found: list[str] = []
    assert running.stdout is not None
    reader = threading.Thread(
        target=lambda: found.append(running.stdout.readline() if running.stdout else ""), daemon=True
    )
    reader.start()
    reader.join(20)
    document: dict[str, Any] = json.loads(found[0])
    return document


def test_it_goes_on_until_it_is_told_to_end(watch: Watch, process: "subprocess.Popen[str]") -> None:
    assert line_of(process)["size"] == SIZE
    watch.publish(life(800))
    eventually(lambda: line_of(process)["size"] == 800, seconds=20)
    # Also while it waits for an answer that does not come.
    asked = len(watch.server.asked)
    watch.server.faults["/ledger/checkpoint"] = silent(watch.server)
    eventually(lambda: "/ledger/checkpoint" in watch.server.asked[asked:], seconds=20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_it_is_killed_and_goes_on(watch: Watch, process: "subprocess.Popen[str]") -> None:
    assert line_of(process)["new_entries"] == SIZE
    process.kill()
    process.wait(10)
    watch.publish(life(700))
    assert watch.round()["new_entries"] == 100
