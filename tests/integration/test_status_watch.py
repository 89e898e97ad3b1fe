"""``privyseal status`` and ``--watch``: what it tells of a home with a fleet, on a terminal, in a pipe, and without a database."""

import asyncio
import fcntl
import hashlib
import json
import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from fakes.home import MakeSettings
from fakes.lineages import DAY, NOW, attempt, late, lineage, seen_now
from fakes.postgresql import cluster, copy_to_postgresql
from fakes.process import PRIVYSEAL, clean_environment, run_command
from privyseal_ca.ceremony.initialise import make_store
from privyseal_ca.cli.status_text import matters, status_lines
from privyseal_ca.cli.status_watch import frame, view
from privyseal_ca.config import Settings
from privyseal_ca.errors import StoreUnavailableError
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.fleet import add_lineage
from privyseal_ca.store.notifications import WAITING, NotificationRow, add_notification
from privyseal_ca.store.scheduling import JobRow, report_jobs
from privyseal_ca.store.statement import Transaction

_SECONDS: Final = 60.0
_ENTER: Final = "\x1b[?1049h"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"


ROWS: Final = (
    *(lineage(f"well-{number}", owner="shop") for number in range(5)),
    lineage("due", owner="shop", state="due", not_after=NOW + DAY),
    late("silent", owner="data", criticality="critical", not_after=NOW + 6 * 3600),
    late("failing", owner="data", state="failing", attempt=attempt("validation", "connection", "refused")),
    lineage("nobody's"),
)


class Home:
    """A home whose database is the test's own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Path(settings.database_url.removeprefix("sqlite:///"))
        self.environment = clean_environment(
            PRIVYSEAL_HOME=str(settings.home),
            PRIVYSEAL_DATABASE__URL=settings.database_url,
            PRIVYSEAL_LEDGER__KEPT_CHECKPOINT=str(settings.ledger.kept_checkpoint),
            PRIVYSEAL_SERVER__HTTP=settings.server.http,
            PRIVYSEAL_SERVER__HTTPS=settings.server.https,
            TERM="xterm",
            # As a shell may have it, of a window that has changed since.
            COLUMNS="20",
            LINES="5",
        )

    def with_backups(self, folder: Path) -> dict[str, str]:
        recipients = {"PRIVYSEAL_BACKUP__FOLDER": str(folder), "PRIVYSEAL_BACKUP__RECIPIENTS": '["age1somebody"]'}
        return self.environment | recipients

    def store(self, unit: Callable[[Transaction], Any]) -> None:
        async def work() -> None:
            store = make_store(backend_for(self.settings.database_url, durable=False, timeout=5), self.settings)
            await store.open()
            try:
                await store.write(unit)
            finally:
                await store.close()

        asyncio.run(work())


@pytest.fixture
def place(make_settings: MakeSettings) -> Home:
    place = Home(make_settings())

    def unit(transaction: Transaction) -> None:
        for row in ROWS:
            add_lineage(transaction, seen_now(row))
        now = int(time.time())
        done = JobRow("sweep", "leader", 1000, last_finished=now - 60, last_succeeded=now - 60, next_due=now + 60)
        report_jobs(
            transaction, [done, done._replace(name="crl-full", failures_in_row=2, problem="The token is away.")]
        )
        add_notification(
            transaction,
            NotificationRow("n1", "mail", "", "missed", "t", "b", 1, now - 7200, WAITING, 1, now, 0, "refused"),
        )

    place.store(unit)
    return place


def test_status_tells_of_the_fleet_and_of_what_is_published(place: Home, tmp_path: Path) -> None:
    document = json.loads(run_command(PRIVYSEAL, "status", "--json", env=place.environment).stdout)
    assert {"version", "home", "directory", "service", "schema", "ledger", "certificates", "issuers", "jobs"} <= set(
        document
    )
    fleet = document["fleet"]
    assert fleet["workloads"] == len(ROWS)
    assert {state: by["total"] for state, by in fleet["states"].items() if by["total"]} == {
        "current": 6, "due": 1, "silent": 1, "failing": 1,
    }  # fmt: skip
    assert (fleet["missed"]["total"], fleet["missed"]["critical"], fleet["unowned"]) == (2, 1, 1)
    assert fleet["failing"] == {"connection": 1}
    assert 5 * 3600 < fleet["survival"]["first"]["seconds"] <= 6 * 3600
    assert document["jobs"] == {"known": 2, "led": False, "failing": ["crl-full"]}
    assert [run["problem"] for run in document["job_runs"]] == ["The token is away.", ""]
    assert document["notifications"]["waiting"] == 1
    assert document["notifications"]["age"] >= 7200
    assert document["backup"] is None
    folder = tmp_path / "backups"
    folder.mkdir()
    shown = run_command(PRIVYSEAL, "status", env=place.with_backups(folder)).stdout
    for line in (
        "workloads     9: 6 current, 1 due, 1 silent, 1 failing",
        "missed        2, 1 of them critical (see `privyseal fleet list --missed`)",
        "unowned       1",
        f"backup        none yet in {folder}",
        "notifications 1 waiting, the oldest for 2 hours",
    ):
        assert line in shown.splitlines()
    assert "survival      if signing stopped now, without a certificate: the first in 5 hours, " in shown


def test_the_newest_backup_is_the_one_of_this_authority(place: Home, tmp_path: Path) -> None:
    ours, another = _mark(place), "0" * 12
    for mark, made in ((ours, "20260102T030405Z"), (ours, "20260101T030405Z"), (another, "20260701T030405Z")):
        (tmp_path / f"privyseal-{mark}-{made}.age").write_bytes(b"age-encryption.org/v1\n")
    backup = json.loads(run_command(PRIVYSEAL, "status", "--json", env=place.with_backups(tmp_path)).stdout)["backup"]
    assert (backup["last"], backup["problem"]) == ("2026-01-02T03:04:05Z", "")
    gone = run_command(PRIVYSEAL, "status", env=place.with_backups(tmp_path / "gone")).stdout
    assert "cannot be read: No such file" in gone


def _mark(place: Home) -> str:
    """The beginning of the hash of the ledger's first entry, computed here anew (RFC 6962 section 2.1)."""
    with closing(sqlite3.connect(place.database)) as connection:
        (entry,) = connection.execute("SELECT entry FROM ledger_entry WHERE idx = 0").fetchone()
    return hashlib.sha256(b"\x00" + entry).hexdigest()[:12]


class Terminal:
    """``privyseal status --watch`` on a terminal of its own."""

    def __init__(self, place: Home, *arguments: str, columns: int = 100, rows: int = 40) -> None:
        self._main, self._other = pty.openpty()
        self.resize(columns, rows)
        self.text = ""
        self.process = subprocess.Popen(
            [PRIVYSEAL, "status", "--watch", "--every", "1s", *arguments],
            env=place.environment, stdin=self._other, stdout=self._other, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, found: Callable[[str], object], *, after: int = 0) -> str:
        """What was written from ``after`` on, as soon as ``found`` is true of it."""
        deadline = time.monotonic() + _SECONDS
        while not found(self.text[after:]):
            assert time.monotonic() < deadline, self.text[-3000:]
            if select.select([self._main], [], [], 0.2)[0]:
                self.text += os.read(self._main, 65536).decode()
        return self.text[after:]

    def end(self, number: int) -> int:
        """Send the signal; the exit code, with everything that was still written in ``text``."""
        self.process.send_signal(number)
        code = self.process.wait(_SECONDS)
        while select.select([self._main], [], [], 0)[0]:
            self.text += os.read(self._main, 65536).decode()
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        os.close(self._main)
        os.close(self._other)


@contextmanager
def terminal(place: Home, *arguments: str, columns: int = 100, rows: int = 40) -> Iterator[Terminal]:
    shown = Terminal(place, *arguments, columns=columns, rows=rows)
    try:
        yield shown
    finally:
        shown.close()


def frames(text: str) -> list[list[str]]:
    """The lines of each whole picture."""
    pictures = text.split("\x1b[H")[1:]
    return [
        re.sub(r"\x1b\[[?0-9]*[A-Za-z]", "", each).replace("\r", "").split("\n")[:-1]
        for each in pictures
        if each.endswith("\x1b[J")
    ]


def test_live_on_a_terminal(place: Home) -> None:
    with terminal(place) as shown:
        shown.until(lambda text: len(frames(text)) >= 2)
        assert shown.text.startswith(_ENTER)
        picture = frames(shown.text)[0]
        assert "ATTENTION: service not running, 2 missed, 1 failing, 1 job failing" in picture[0]
        assert "workloads     9: 6 current, 1 due, 1 silent, 1 failing" in picture
        # A smaller window is filled anew at once, and never beyond its edges.
        before = len(shown.text)
        shown.resize(44, 10)
        shown.process.send_signal(signal.SIGWINCH)
        small = frames(shown.until(lambda text: frames(text) and len(frames(text)[-1]) < 11, after=before))[-1]
        assert len(small) == 9
        assert max(map(len, small)) == 44
        assert small[-1].startswith("... and ")
        # What changes is seen.
        before = len(shown.text)
        place.store(lambda tx: add_lineage(tx, seen_now(lineage("more"))))
        shown.resize(100, 40)
        shown.until(lambda text: "workloads     10: 7 current" in text, after=before)
        assert shown.end(signal.SIGINT) == 0
        assert shown.text.endswith(_LEAVE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_the_screen_is_restored(place: Home, number: signal.Signals) -> None:
    with terminal(place) as shown:
        shown.until(frames)
        assert shown.end(number) == 0
        assert shown.text.endswith(_LEAVE)
        assert shown.text.count(_LEAVE) == 1


def test_stopped_for_a_while(place: Home) -> None:
    """Ctrl-Z gives the terminal back, and going on takes it again."""
    with terminal(place) as shown:
        shown.until(frames)
        shown.process.send_signal(signal.SIGTSTP)
        shown.until(lambda text: text.endswith(_LEAVE))
        state = Path(f"/proc/{shown.process.pid}/stat")
        deadline = time.monotonic() + _SECONDS
        while state.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline
        before = len(shown.text)
        shown.process.send_signal(signal.SIGCONT)
        assert shown.until(frames, after=before).startswith(_ENTER)
        assert shown.end(signal.SIGINT) == 0


def test_the_database_goes_away_and_comes_back(place: Home) -> None:
    away = place.database.with_name("away.db")
    with terminal(place) as shown:
        shown.until(frames)
        place.database.rename(away)
        try:
            broken = shown.until(lambda text: "NO ANSWER" in text and frames(text[text.index("NO ANSWER") :]))
            picture = next(each for each in frames(broken) if "NO ANSWER" in each[0])
            assert any(line.startswith("as it was at ") for line in picture)
            assert "workloads     9: 6 current, 1 due, 1 silent, 1 failing" in picture
        finally:
            away.rename(place.database)
        before = len(shown.text)
        shown.until(lambda text: "ATTENTION: service not running, 2 missed" in text, after=before)
        assert shown.end(signal.SIGINT) == 0


@pytest.mark.postgresql
def test_postgresql_stops_comes_back_and_does_not_answer(place: Home) -> None:
    with cluster() as server:
        place.environment["PRIVYSEAL_DATABASE__URL"] = copy_to_postgresql(place.settings.database_url, server)
        place.environment["PRIVYSEAL_DATABASE__TIMEOUT"] = "2"
        with terminal(place) as shown:
            shown.until(lambda text: "workloads     9: 6 current" in text)
            server.stop()
            before = len(shown.text)
            shown.until(lambda text: "NO ANSWER" in text and "as it was at" in text, after=before)
            server.start()
            before = len(shown.text)
            shown.until(lambda text: "ATTENTION: service not running, 2 missed" in text, after=before)
            # Whoever leaves gets the terminal back although the database holds everything up.
            with server.frozen():
                assert shown.end(signal.SIGINT) == 0
                assert shown.text.endswith(_LEAVE)


@pytest.mark.parametrize("json_too", [False, True], ids=["text", "json"])
def test_in_a_pipe(place: Home, json_too: bool) -> None:
    command = [PRIVYSEAL, "status", "--watch", "--every", "1s", *(["--json"] if json_too else [])]
    with subprocess.Popen(
        command,
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        if json_too:
            documents = [json.loads(process.stdout.readline()) for _ in range(3)]
            assert documents[0]["at"] < documents[-1]["at"]
            # A machine that is slow surveys the fleet more seldom.
            assert [each["fleet"]["workloads"] for each in documents] == [9, 9, 9]
        else:
            found = 0
            while found < 2:
                line = process.stdout.readline()
                assert line, "it ended"
                assert "\x1b" not in line
                found += line.startswith("workloads     9: 6 current")
        process.send_signal(signal.SIGINT)
        assert process.wait(_SECONDS) == 0


def test_watch_belongs_to_what_is_watched(place: Home, tmp_path: Path) -> None:
    done = run_command(PRIVYSEAL, "status", "--watch", "publish", tmp_path / "folder", env=place.environment, expect=2)
    assert "--watch has to come after publish" in done.stderr


def test_no_authority_is_no_reason_to_wait(tmp_path: Path) -> None:
    done = run_command(PRIVYSEAL, "status", "--watch", env=clean_environment(PRIVYSEAL_HOME=str(tmp_path)), expect=1)
    assert "privyseal init" in done.stderr


# What is written, of documents that are made here.


def test_a_frame_fills_the_window_and_nothing_else() -> None:
    lines = [f"line {number}" for number in range(5)]
    assert frames(frame(lines, columns=80, rows=24)) == [lines]
    assert frames(frame(lines, columns=80, rows=4)) == [
        ["line 0", "line 1", "... and 3 more lines: the window is too small"]
    ]
    assert frames(frame(lines, columns=5, rows=24)) == [["li..."] * 5]
    assert frames(frame(lines, columns=1, rows=1)) == [["."]]


def test_an_error_is_shown_before_there_was_anything() -> None:
    error = StoreUnavailableError("The database\ncannot be reached.", hint="Look at it.")
    assert view(None, error, 0) == ["1970-01-01T00:00:00Z  NO ANSWER: The database cannot be reached.", "  Look at it."]


def test_a_home_of_an_older_program_has_fewer_lines() -> None:
    names = ("version", "home", "directory", "ledger", "certificates")
    old: dict[str, Any] = dict.fromkeys(names, "x") | {"service": "ready", "schema": "outdated", "issuers": []}
    assert [line.split()[0] for line in status_lines(old)] == [
        "version", "home", "directory", "service", "schema", "ledger", "certificates",
    ]  # fmt: skip
    assert matters(old) == ["schema outdated"]
