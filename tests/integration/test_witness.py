"""Witnesses as their owners run them: ``privyseal witness serve`` beside ``privyseal serve``, killed, forked and put back."""

import json
import random
import shutil
import signal
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fakes.acme_client import AcmeClient
from fakes.home import copy_database
from fakes.process import ServerProcess, served
from fakes.witnesses import TestLog, WitnessProcess
from privyseal_acme.cli import cli
from privyseal_ca.ledger.cosignatures import CosignatureVerifier, answered_lines, cosignatures
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, open_note
from privyseal_ca.witness.monitoring import log_id
from privyseal_ca.witness.state import WitnessState

_DEADLINE = 20.0


def fetch(url: str, post: bytes | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, post, timeout=10) as answer:  # noqa: S310 (plain, loopback)
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def soon(work: Callable[[], Any]) -> Any:
    """What ``work`` gives once that is true."""
    deadline = time.monotonic() + _DEADLINE
    while not (found := work()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def invoke(home: Path, *arguments: str, expect: int = 0) -> Result:
    """``privyseal witness`` in this process: what needs no token."""
    result = CliRunner().invoke(cli, ["witness", *arguments, "--home", str(home)])
    assert result.exit_code == expect, result.output
    return result


@pytest.fixture(scope="module")
def witnesses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[WitnessProcess]]:
    """Two witnesses that run, for all tests here: a witness has room for many logs."""
    folder = tmp_path_factory.mktemp("witnesses")
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda name: WitnessProcess(folder / name, f"{name}.example"), ("w1", "w2")))
        try:
            list(pool.map(WitnessProcess.start, made))
            yield made
        finally:
            for witness in made:
                witness.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, witnesses: list[WitnessProcess]) -> Iterator[ServerProcess]:
    """A service whose ledger both witnesses watch."""
    settings = {
        "LEDGER__WITNESSES": json.dumps([witness.setting for witness in witnesses]),
        "LEDGER__QUORUM": "1",
        "STATUS__WATCH_INTERVAL": "3600",
    }
    with served(tmp_path_factory.mktemp("authority") / "home", settings) as server:
        vkey = fetch(f"{server.http_url}/ledger/vkey")[1].decode().strip()
        for witness in witnesses:
            invoke(witness.home, "add", vkey)
        yield server


def verify(server: ServerProcess, *, expect: int = 0) -> str:
    """What ``privyseal ledger verify`` says, in this process."""
    env = {name: value for name, value in server.environment.items() if name.startswith("PRIVYSEAL_")}
    result = CliRunner().invoke(cli, ["ledger", "verify"], env=env)
    assert result.exit_code == expect, result.output
    return result.output


class Ledger:
    """What a service publishes of its ledger, opened."""

    def __init__(self, server: ServerProcess, witnesses: list[WitnessProcess]) -> None:
        self._server = server
        self._verifiers = [CosignatureVerifier.parse(witness.vkey) for witness in witnesses]
        self.verifier = NoteVerifier.parse(fetch(f"{server.http_url}/ledger/vkey")[1].decode().strip())

    def note(self) -> bytes:
        return fetch(f"{self._server.http_url}/ledger/checkpoint")[1]

    def checkpoint(self) -> Checkpoint:
        return Checkpoint.parse(open_note(self.note(), [self.verifier])[0])

    def cosigned(self) -> set[str]:
        return set(cosignatures(self.note(), self._verifiers))

    def grow(self) -> None:
        """Do something that is an entry."""
        client = AcmeClient(self._server.directory, self._server.roots)
        client.register()
        client.close()


def metric(server: ServerProcess, name: str) -> str:
    text = fetch(f"{server.http_url}/metrics")[1].decode()
    return next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} "))


def test_cosigned_in_a_second_and_audited(server: ServerProcess, witnesses: list[WitnessProcess]) -> None:
    ledger = Ledger(server, witnesses)
    both = {"w1.example", "w2.example"}
    soon(lambda: ledger.cosigned() == both)
    size = ledger.checkpoint().size
    ledger.grow()
    began = time.monotonic()
    soon(lambda: ledger.checkpoint().size > size)
    assert ledger.cosigned() == both, "they are in what is published first"
    assert time.monotonic() - began < 2.0
    for witness in witnesses:
        assert ledger.verifier.name in WitnessState(witness.home).origins()
        code, note = fetch(f"{witness.url}/{log_id(ledger.verifier.name)}/checkpoint")
        assert code == 200
        shown = Checkpoint.parse(open_note(note, [ledger.verifier])[0])
        assert shown.size >= size
    assert "ok" in verify(server)
    assert metric(server, "privyseal_checkpoint_quorum") == "1.0"


def test_one_dead_witness_delays_nothing(server: ServerProcess, witnesses: list[WitnessProcess]) -> None:
    ledger = Ledger(server, witnesses)
    soon(lambda: len(ledger.cosigned()) == 2)
    witnesses[1].stop(signal.SIGKILL)
    for _ in range(2):
        size = ledger.checkpoint().size
        ledger.grow()
        began = time.monotonic()
        soon(lambda before=size: ledger.checkpoint().size > before)
        assert time.monotonic() - began < 2.0
        assert ledger.cosigned() == {"w1.example"}
    assert metric(server, "privyseal_checkpoint_quorum") == "1.0"
    witnesses[1].start()
    soon(lambda: len(ledger.cosigned()) == 2)


def test_an_audit_finds_a_cosignature_that_is_none(server: ServerProcess, witnesses: list[WitnessProcess]) -> None:
    ledger = Ledger(server, witnesses)
    soon(lambda: len(ledger.cosigned()) == 2)
    server.stop()
    database = server.home / "privyseal.db"
    with closing(sqlite3.connect(database)) as connection:
        size, note = connection.execute("SELECT size, note FROM ledger_checkpoint ORDER BY size DESC").fetchone()
        text, _, lines = note.decode().partition("\n\n")
        first, second = lines.splitlines()[-2:]
        mixed = "\n".join([lines.splitlines()[0], first[:-8] + second[-8:], second])
        connection.execute(
            "UPDATE ledger_checkpoint SET note = ? WHERE size = ?", (f"{text}\n\n{mixed}\n".encode(), size)
        )
        connection.commit()
        assert "wrong cosignature" in verify(server, expect=1)
        connection.execute("UPDATE ledger_checkpoint SET note = ? WHERE size = ?", (note, size))
        connection.commit()
    server.start()


def test_a_home_that_was_copied_is_found_out(
    server: ServerProcess, witnesses: list[WitnessProcess], tmp_path: Path
) -> None:
    """Two services with one key and two databases: whoever shows itself second is refused, says so, and issues nothing."""
    ledger = Ledger(server, witnesses)
    soon(lambda: len(ledger.cosigned()) == 2)
    other = copy_of(server, tmp_path / "copy")
    try:
        # Without witnesses nobody notices, and it becomes longer than the one that they have seen.
        other.settings |= {"LEDGER__WITNESSES": "[]", "LEDGER__QUORUM": "0"}
        other.start()
        ledger.grow()
        witnessed = soon(lambda: ledger.checkpoint() if len(ledger.cosigned()) == 2 else None)
        fork = Ledger(other, witnesses)
        while fork.checkpoint().size <= witnessed.size:
            size = fork.checkpoint().size
            fork.grow()
            soon(lambda before=size: fork.checkpoint().size > before)
        # Somebody who sees it asks a witness.
        newest = WitnessState(witnesses[0].home).newest(ledger.verifier.name)
        assert newest is not None
        shown = b"old %d\n\n" % newest.size + fork.note()
        assert fetch(f"{witnesses[0].url}/add-checkpoint", shown)[0] == 422
        rows = json.loads(invoke(witnesses[0].home, "list", "--json").stdout)
        (row,) = [row for row in rows if row["origin"] == ledger.verifier.name]
        (conflict,) = row["conflicts"]
        assert conflict["size"] == fork.checkpoint().size
        assert conflict["file"] in invoke(witnesses[0].home, "list").stdout
        assert "does not continue the one before" in witnesses[0].log
        assert other.stop() == 0

        other.settings |= {name: server.settings[name] for name in ("LEDGER__WITNESSES", "LEDGER__QUORUM")}
        other.start(wait=False)
        # What looks at the start may end it; what looks before signing keeps it from being ready.
        soon(lambda: "w1.example" in other.log.rpartition("stopped")[2])
        code, body = 0, b""
        with suppress(OSError):
            code, body = fetch(f"{other.http_url}/readyz")
        assert code != 200, body
    finally:
        other.close()
    assert ledger.checkpoint().size >= witnessed.size
    assert metric(server, "privyseal_checkpoint_refused") == "0.0"


def copy_of(server: ServerProcess, home: Path) -> ServerProcess:
    """Another service with the same keys and settings, and a database that was the same until now."""
    shutil.copytree(server.home, home, ignore=shutil.ignore_patterns("privyseal.db*"))
    copy_database(server.home / "privyseal.db", home / "privyseal.db")
    conf = home / "softhsm2.conf"
    conf.write_text(conf.read_text().replace(str(server.home), str(home)))
    other = ServerProcess(home)
    other.settings = {**server.settings, **other.settings}
    return other


def test_killed_at_any_moment_it_contradicts_itself_never(witnesses: list[WitnessProcess]) -> None:
    """Two ledgers of one key want to be cosigned while the witness is killed again and again."""
    witness, log = witnesses[1], TestLog("killed.example/log")
    fork, chance = log.forked(5), random.Random(11)  # noqa: S311
    invoke(witness.home, "add", log.verifier.vkey())
    verifier = CosignatureVerifier.parse(witness.vkey)
    got: list[tuple[float, TestLog, int]] = []
    stop = threading.Event()

    def push(pushed: TestLog) -> None:
        old, rounds = 0, random.Random(pushed is log)  # noqa: S311
        while not stop.is_set():
            new = min(old + rounds.randrange(0, 3), 299)
            try:
                code, body = fetch(f"{witness.url}/add-checkpoint", pushed.submission(old, new))
            except OSError:
                time.sleep(0.01)
                continue
            if code == 409:
                old = int(body)
            elif code == 200:
                assert answered_lines(body, pushed.note(new), [verifier])
                got.append((time.monotonic(), pushed, new))
                old = new

    threads = [threading.Thread(target=push, args=(each,)) for each in (log, fork)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(2):
            count = len(got)
            soon(lambda before=count: len(got) > before)
            time.sleep(chance.random() * 0.1)
            witness.stop(signal.SIGKILL)
            witness.start()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    sizes = [size for _, _, size in sorted(got, key=lambda item: item[0])]
    assert sizes == sorted(sizes)
    beyond = [(pushed, size) for _, pushed, size in got if size > 5]
    assert beyond
    assert len({id(pushed) for pushed, _ in beyond}) == 1, "one of the two, and that one for ever"
    newest = WitnessState(witness.home).newest(log.origin)
    assert newest is not None
    assert newest.size >= max(sizes)
    assert witness.stop() == 0, "and SIGTERM ends it in order"


# The commands.


def test_commands(witnesses: list[WitnessProcess], tmp_path: Path) -> None:
    witness = witnesses[0]
    home = witness.home
    assert home.stat().st_mode & 0o777 == 0o700
    with ThreadPoolExecutor() as pool:
        vkey = pool.submit(witness.command, "vkey")
        again = pool.submit(witness.command, "init", "--name", "w1.example", expect=1)
    assert vkey.result().stdout.strip() == witness.vkey
    assert "already" in again.result().stderr
    assert "another witness" in invoke(home, "init", "--name", "other", expect=1).stderr
    before = [row["origin"] for row in json.loads(invoke(home, "list", "--json").stdout)]
    log = TestLog("commands.example/log")
    file = tmp_path / "vkey"
    file.write_text(log.verifier.vkey() + "\n")
    for argument in (f"@{file}", log.verifier.vkey()):
        assert json.loads(invoke(home, "add", argument, "--json").stdout)["origin"] == log.origin
    after = [row["origin"] for row in json.loads(invoke(home, "list", "--json").stdout)]
    assert after == sorted([*before, log.origin])
    assert log.origin in invoke(home, "list").stdout
    invoke(home, "remove", log.origin, "--yes")
    assert log.origin not in invoke(home, "list").stdout
    for arguments, message in {
        ("add", "nonsense"): "name+id+key",
        ("add", witness.vkey): "neither of type 1",
        ("add", "@/nowhere"): "cannot be read",
        ("remove", log.origin): "No log",
    }.items():
        assert message in invoke(home, *arguments, expect=1).stderr
    (tmp_path / "witness.toml").write_text('name = "w"\nkey = "pkcs11:token=x"\ncolour = "red"\n')
    assert "colour" in invoke(tmp_path, "list", expect=1).stderr


def test_homes_that_are_no_place_for_a_witness(tmp_path: Path) -> None:
    authority, new = tmp_path / "authority", tmp_path / "new"
    authority.mkdir()
    (authority / "privyseal.toml").write_text("")
    assert "home of an authority" in invoke(authority, "init", "--name", "w", expect=1).stderr
    for command in ("serve", "list", "vkey"):
        assert "no witness" in invoke(authority, command, expect=1).stderr
    assert "1 to 255 bytes" in invoke(new, "init", "--name", "a b", expect=1).stderr
    assert not new.exists()
    invoke(new, "init", "--name", "w", "--token", "x", expect=2)
    invoke(new, "init", "--name", "w", "--listen", "nowhere", expect=2)
