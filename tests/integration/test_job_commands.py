"""`privyseal job` against a real service: what it lists, runs and refuses, and what is left when the service was killed."""

import asyncio
import json
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fakes.home import MakeSettings
from fakes.process import ServerProcess, served
from privyseal_acme.cli import cli
from privyseal_acme.leases import Leadership
from privyseal_acme.scheduler import Job, Scheduler
from privyseal_ca.ceremony.initialise import make_store
from privyseal_ca.clock import SystemClock
from privyseal_ca.config import Settings
from privyseal_ca.errors import SignerUnavailableError
from privyseal_ca.store.backends import backend_for
from privyseal_ca.telemetry.metrics import Metrics

runner = CliRunner()
_PATIENCE = 20.0
_LEADERS = {
    "blocked-accounts",
    "completeness",
    "compromised-keys",
    "crl-full",
    "crl-parts",
    "export-figures",
    "fleet-figures",
    "fleet-follow",
    "fleet-states",
    "intents",
    "notifications",
    "ocsp-responses",
    "responders",
    "retention",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {"SCHEDULER__LEASE": "3", "STATUS__INTERVAL": "0.2"}
    with served(tmp_path_factory.mktemp("jobs") / "home", settings) as server:
        yield server


def invoke(server: ServerProcess, *arguments: str, expect: int = 0) -> Result:
    """The command line for the server's home, in this process."""
    done = runner.invoke(cli, [*arguments], env=server.environment)
    assert done.exit_code == expect, done.output
    return done


def document(server: ServerProcess, *arguments: str, expect: int = 0) -> Any:
    return json.loads(invoke(server, *arguments, "--json", expect=expect).stdout)


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.1)


def jobs(server: ServerProcess) -> dict[str, Any]:
    return {row["name"]: row for row in document(server, "job", "list")}


def metrics(server: ServerProcess) -> str:
    with urllib.request.urlopen(f"{server.http_url}/metrics", timeout=5) as answer:  # noqa: S310 (plain, loopback)
        return str(answer.read().decode())


def test_every_job_is_listed_with_its_times(server: ServerProcess) -> None:
    until(lambda: all(row["last_finished"] for name, row in jobs(server).items() if name in _LEADERS))
    found = jobs(server)
    assert {name for name, row in found.items() if row["run_by"] == "leader"} == _LEADERS
    assert {row["run_by"] for row in found.values()} == {"leader", "process"}
    for name in _LEADERS:
        row = found[name]
        assert row["last_succeeded"] == row["last_finished"] <= row["next_due"], name
        assert (row["problem"], row["failures_in_row"]) == ("", 0), name
    assert found["crl-parts"]["every"] == 0.2
    text = invoke(server, "job", "list").stdout
    assert text.splitlines()[0].split()[:2] == ["JOB", "RUN"]
    assert "No service runs" not in text


def test_it_is_in_the_status_and_in_the_metrics(server: ServerProcess) -> None:
    known = len(jobs(server))
    assert document(server, "status")["jobs"] == {"known": known, "led": True, "failing": []}
    assert f"jobs          {known}, led by a process" in invoke(server, "status").stdout
    shown = metrics(server)
    assert "privyseal_scheduler_leader 1.0" in shown
    for name in jobs(server):
        assert f'privyseal_job_failures_total{{job="{name}"}} 0.0' in shown
    assert 'privyseal_job_last_success_seconds{job="retention"}' in shown
    assert 'privyseal_job_duration_seconds{job="crl-full"}' in shown


@pytest.mark.parametrize("name", ["crl-full", "token-probe"])
def test_a_job_is_run_on_request(server: ServerProcess, name: str) -> None:
    before = jobs(server)[name]["last_started"]
    time.sleep(1.1)  # times in the list are whole seconds
    ran = document(server, "job", "run", name)
    assert ran["name"] == name
    assert ran["last_started"] > (before or "")
    assert ran["problem"] == ""
    assert invoke(server, "job", "run", name).stdout.startswith(f"{name}: done, ")


def test_a_job_that_there_is_not(server: ServerProcess) -> None:
    refused = document(server, "job", "run", "nothing", expect=1)
    assert "There is no job of that name" in refused["error"]
    assert "crl-full" in refused["error"]


def test_no_service(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "home")
    server.init()
    # The ceremony has made the tables, and nobody has done anything yet.
    assert document(server, "job", "list") == []
    assert "No service runs" in invoke(server, "job", "list").stdout
    assert "No service runs" in document(server, "job", "run", "responders", expect=1)["error"]
    assert document(server, "status")["jobs"] == {"known": 0, "led": False, "failing": []}


def test_killed_stopped_and_started_again(server: ServerProcess) -> None:
    assert server.stop() == 0
    assert "No service runs" in document(server, "job", "run", "responders", expect=1)["error"]
    server.start()
    server.stop(signal.SIGKILL)
    until(lambda: not document(server, "status")["jobs"]["led"])
    refused = invoke(server, "job", "run", "responders", expect=1)
    assert "No service runs" in refused.stderr
    assert "privyseal serve" in refused.stderr
    server.start()
    # The next one does not wait for the lease of the one that was killed.
    until(lambda: document(server, "status")["jobs"]["led"])
    assert document(server, "job", "run", "responders")["problem"] == ""
    leaders = [json.loads(line) for line in server.log.splitlines() if "this process leads" in line]
    assert [line["fence"] for line in leaders] == [1, 2, 3]


class Jobs(threading.Thread):
    """A scheduler on the database of a home, with jobs of which one fails and one does not end."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.settings = settings
        self.environment = {
            "PRIVYSEAL_HOME": str(settings.home),
            "PRIVYSEAL_DATABASE__URL": settings.database_url,
            "PRIVYSEAL_SCHEDULER__LEASE": "3",
        }
        self.loop = asyncio.new_event_loop()
        self.end = asyncio.Event()
        self.killed = False

    def invoke(self, *arguments: str, expect: int) -> Result:
        done = runner.invoke(cli, [*arguments], env=self.environment)
        assert done.exit_code == expect, done.output
        return done

    def kill(self) -> None:
        """Leave everything as it is."""
        self.killed = True
        self.stop()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.end.set)
        self.join(_PATIENCE)

    def run(self) -> None:
        self.loop.run_until_complete(self.work())

    async def work(self) -> None:
        store = make_store(backend_for(self.settings.database_url, durable=False, timeout=5), self.settings)
        await store.open()
        clock = SystemClock()
        leadership = Leadership(store, clock, holder="test", seconds=3)

        async def fails() -> None:
            raise SignerUnavailableError("The token is away.", hint="Look at the token.")

        jobs = [Job("fails", 3600, fails), Job("forever", 3600, asyncio.Event().wait)]
        scheduler = Scheduler(jobs, leadership, store, clock, Metrics(), random=lambda: 0, sole=True)
        async with scheduler.running():
            await self.end.wait()
            if self.killed:
                leadership.fence = None
        await store.close()


@pytest.fixture
def leading(make_settings: MakeSettings) -> Iterator[Jobs]:
    leading = Jobs(make_settings())
    leading.start()
    until(lambda: "fails " in leading.invoke("job", "list", expect=0).stdout)
    yield leading
    leading.stop()


def test_a_job_that_fails_is_shown_and_so_is_the_exit_code(leading: Jobs) -> None:
    failed = leading.invoke("job", "run", "fails", expect=1)
    assert failed.stderr.startswith("error: The job fails failed: The token is away. Look at the token.")
    assert failed.stdout == ""
    assert "in a row)" in leading.invoke("job", "list", expect=0).stdout
    assert json.loads(leading.invoke("status", "--json", expect=0).stdout)["jobs"]["failing"] == ["fails"]
    assert "failing: fails (see `privyseal job list`)" in leading.invoke("status", expect=0).stdout


def test_a_job_that_does_not_end_is_not_waited_for_for_ever(leading: Jobs) -> None:
    late = leading.invoke("job", "run", "forever", "--wait", "1s", expect=1)
    assert "had not ended after 1 seconds. It goes on." in late.stderr
    leading.invoke("job", "run", "forever", "--wait", "soon", expect=2)


def test_a_service_that_goes_away_meanwhile_is_noticed(leading: Jobs) -> None:
    threading.Timer(0.5, leading.kill).start()
    left = leading.invoke("job", "run", "forever", "--wait", "1m", expect=1)
    assert "went away before the job forever had ended" in left.stderr
