"""``privyseal fleet`` as owners and operators use it: on a home whose service does not run, and beside one that does."""

import asyncio
import csv
import io
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fakes.acme_client import challenge_of
from fakes.home import MakeSettings
from fakes.lineages import DAY, NOW, attempt, late, lineage
from fakes.service import NewClient, RunningService, StartService
from privyseal_acme.cli import cli
from privyseal_ca.ceremony.initialise import make_store
from privyseal_ca.cli.fleet_shown import COLUMNS
from privyseal_ca.config import Settings
from privyseal_ca.fleet.states import NEVER
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.fleet import LineageRow, add_lineage, find_lineage, lineage_of
from privyseal_ca.store.statement import Transaction

#: Made for the clock of fakes.lineages; what is asked here goes by the machine's.
_SHIFT = int(time.time()) - NOW
_TIMES = ("not_before", "not_after", "created", "renewed_at", "window_start", "window_end", "deadline", "state_since")


def now_at(row: LineageRow) -> LineageRow:
    """A workload of :mod:`fakes.lineages`, as if it were seen now."""
    times = {name: getattr(row, name) + _SHIFT for name in (*_TIMES, "missed_at", "next_look") if getattr(row, name)}
    return row._replace(**times)


class Commands:
    """`privyseal fleet` for a home whose database is the test's own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._environment = {
            "PRIVYSEAL_HOME": str(settings.home),
            "PRIVYSEAL_DATABASE__URL": settings.database_url,
            "PRIVYSEAL_LEDGER__KEPT_CHECKPOINT": str(settings.ledger.kept_checkpoint),
        }

    def run(self, *arguments: str | Path, expect: int = 0, group: str = "fleet") -> Result:
        result = CliRunner().invoke(cli, [group, *map(str, arguments)], env=self._environment)
        assert result.exit_code == expect, (arguments, result.output, result.exception)
        return result

    def json(self, *arguments: str | Path, expect: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", expect=expect).stdout)

    def ids(self, *arguments: str) -> list[str]:
        return [each["id"] for each in self.json("list", *arguments)]

    def ledger(self, kind: str) -> list[dict[str, Any]]:
        shown = json.loads(self.run("show", "--count", "10000", "--json", group="ledger").stdout)
        return [entry for entry in shown if entry["kind"] == kind]

    def store(self, unit: Callable[[Transaction], Any]) -> Any:
        async def work() -> Any:
            store = make_store(backend_for(self.settings.database_url, durable=False, timeout=5), self.settings)
            await store.open()
            try:
                return await store.write(unit)
            finally:
                await store.close()

        return asyncio.run(work())


ROWS = (
    lineage("well", "www.shop.test", "shop.test", owner="shop", team="web", service="cart", environment="production",
            labels='{"tier":"1"}', sources='{"owner":"rule:shops","labels.tier":"account"}'),
    lineage("due", "pay.test", owner="shop", state="due", criticality="critical", not_after=NOW + DAY),
    late("silent", "db.test", owner="data", labels='{"tier":"2","cost":"7"}'),
    late("overdue", "mail.test", "WWW.shop.test", state="overdue", polled_at=NOW, profile="server", not_after=NOW + 3 * DAY),
    late("ended", "old.test", owner="=cmd|'/C calc'!A0", not_after=NOW - DAY),
    lineage("failing", "new.test", owner="shop", state="failing", serial="", issuer_id="", not_before=0, not_after=0,
            window_start=0, window_end=0, deadline=0, certificates=0, renewed_at=0, attempts=3, failing_since=NOW, attempted_at=NOW,
            attempt=attempt("validation", "connection", "No connection to 10.0.0.9 port 80: refused.", challenge="http-01",
                            identifier="dns:new.test",
                            seen={"connections": [{"address": "10.0.0.9", "port": 80, "result": "refused"}]})),
    lineage("gone", "gone.test", owner="shop", state="retired", retired_at=NOW, retired_by="operator:jo", retired_reason="sold",
            next_look=NEVER),
)  # fmt: skip


def home_with(make_settings: MakeSettings) -> Commands:
    commands = Commands(make_settings())

    def unit(transaction: Transaction) -> None:
        for row in ROWS:
            add_lineage(transaction, now_at(row))

    commands.store(unit)
    return commands


@pytest.fixture(scope="module")
def commands(make_settings: MakeSettings) -> Commands:
    """A home with workloads of every kind, for tests that only read."""
    return home_with(make_settings)


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ((), ["ended", "overdue", "silent", "failing", "due", "well"]),
        (("--all",), ["ended", "overdue", "silent", "failing", "due", "gone", "well"]),
        (("--limit", "2"), ["ended", "overdue"]),
        (("--state", "due"), ["due"]),
        (("--state", "due", "--state", "retired"), ["due", "gone"]),
        (("--owner", "shop"), ["failing", "due", "well"]),
        (("--owner", "shop", "--state", "failing"), ["failing"]),
        (("--team", "web"), ["well"]),
        (("--service", "cart"), ["well"]),
        (("--environment", "staging"), []),
        (("--criticality", "critical"), ["due"]),
        (("--label", "tier=2"), ["silent"]),
        (("--label", "tier=2", "--label", "cost=8"), []),
        (("--name", "SHOP.te"), ["overdue", "well"]),
        (("--profile", "server"), ["overdue"]),
        (("--issuer", "ab" * 20), None),
        (("--missed",), ["ended", "overdue", "silent"]),
        (("--unowned",), ["overdue"]),
        (("--expires-within", "2d"), ["ended", "due"]),
    ],
    ids=str,
)
def test_list_chooses(commands: Commands, arguments: tuple[str, ...], ids: list[str] | None) -> None:
    if ids is None:
        assert "There is no issuer" in commands.json("list", *arguments, expect=1)["error"]
    else:
        assert commands.ids(*arguments) == ids


def test_list_chooses_by_issuer(make_settings: MakeSettings) -> None:
    commands = Commands(make_settings())
    issuer = next(
        each for each in json.loads(commands.run("list", "--json", group="issuer").stdout) if each["state"] == "active"
    )
    commands.store(lambda tx: add_lineage(tx, now_at(lineage("mine", issuer_id=issuer["id"]))))
    commands.store(lambda tx: add_lineage(tx, now_at(lineage("other"))))
    for named in (issuer["name"], issuer["id"]):
        [found] = commands.json("list", "--issuer", named)
        assert (found["id"], found["issuer"]) == ("mine", issuer["name"])


def test_list_for_people(commands: Commands) -> None:
    lines = commands.run("list", "--limit", "4").stdout.splitlines()
    assert lines[0].split() == ["ID", "STATE", "SINCE", "MISSED", "OWNER", "EXPIRES", "NAMES"]
    assert lines[2].split()[:2] == ["overdue", "overdue"]
    assert lines[2].endswith("dns:mail.test dns:WWW.shop.test")
    assert lines[-1] == "4 of 6; --limit shows more."
    assert commands.run("list", "--owner", "nobody").stdout == "none\n"


def test_list_refuses(commands: Commands) -> None:
    assert "exclude each other" in commands.run("list", "--csv", "--json", expect=2).output
    assert "NAME=VALUE" in commands.run("list", "--label", "tier", expect=2).output


def test_show_tells_all(commands: Commands) -> None:
    shown = commands.json("show", "well")
    assert shown["names"] == ["dns:www.shop.test", "dns:shop.test"]
    assert shown["sources"] == {"owner": "rule:shops", "labels.tier": "account"}
    text = commands.run("show", "pay.test").stdout
    assert "criticality      critical" in text
    assert "What: It is time to renew." in text
    by_people = commands.run("show", "dns:shop.test").stdout
    assert "owner            shop  (rule:shops)" in by_people
    assert "label tier       1  (account)" in by_people
    failing = commands.run("show", "failing").stdout
    assert "Seen: The check http-01 of new.test failed (connection). 10.0.0.9 port 80: refused." in failing
    assert "Do:   Nothing listens at 10.0.0.9 port 80." in failing


def test_show_lists_those_that_share_a_name(commands: Commands) -> None:
    assert [each["id"] for each in commands.json("show", "www.shop.test")] == ["overdue", "well"]
    assert "2 workloads have this name" in commands.run("show", "www.shop.test").stdout


def test_show_knows_no_other(commands: Commands) -> None:
    for wanted in ("shop", "nothing.test", "00ff"):
        assert "No workload has the id" in commands.json("show", wanted, expect=1)["error"]


def test_what_is_cut_off_is_said_whatever_the_form(commands: Commands) -> None:
    for form in ("--csv", "--json"):
        assert commands.run("list", "--limit", "2", form).stderr == "2 of 6; --limit shows more.\n"
        assert commands.run("list", "--limit", "6", form).stderr == ""
    assert "2 of 6; --limit shows more." in commands.run("list", "--limit", "2").stdout


def read_csv(text: str) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}


def test_export_to_standard_output_and_files(commands: Commands, tmp_path: Path) -> None:
    everything = commands.json("list", "--all")
    by_id = sorted(everything, key=lambda each: str(each["id"]))
    assert json.loads(commands.run("export", "--all", "--json").stdout) == by_id
    assert [
        json.loads(line) for line in commands.run("export", "--all", "--format", "jsonl").stdout.splitlines()
    ] == by_id
    file = tmp_path / "fleet.json"
    told = commands.json("export", "--all", file)
    assert told == {"file": str(file), "format": "json", "workloads": 7}
    assert json.loads(file.read_text(encoding="utf-8")) == by_id
    assert json.loads(commands.run("export", "--format", "json", "--owner", "nobody").stdout) == []
    commands.run("export", "--all", file)
    assert json.loads(file.read_text(encoding="utf-8")) == by_id, "the file's name says how"
    assert (
        commands.run("export", file, "--format", "csv", "--missed").stdout == f"3 workloads are written into {file}\n"
    )
    assert set(read_csv(file.read_text(encoding="utf-8"))) == {"ended", "overdue", "silent"}
    assert file.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == [file]


def test_cells_are_no_formulas(commands: Commands) -> None:
    text = commands.run("export").stdout
    rows = read_csv(text)
    assert list(rows["well"]) == list(COLUMNS)
    assert rows["ended"]["owner"] == "'=cmd|'/C calc'!A0"
    assert rows["well"]["names"] == "dns:www.shop.test dns:shop.test"
    assert rows["silent"]["labels"] == "tier=2; cost=7"
    assert rows["well"]["renews"] == "yes"
    assert "Nothing listens at 10.0.0.9" in rows["failing"]["do"]
    for row in rows.values():
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row.values())
    listed = read_csv(commands.run("list", "--csv").stdout)
    assert {each: row["state"] for each, row in listed.items()} == {each: row["state"] for each, row in rows.items()}


def test_an_export_that_fails_leaves_what_was_there(commands: Commands, tmp_path: Path) -> None:
    file = tmp_path / "kept" / "fleet.csv"
    assert "cannot be written" in commands.json("export", file, expect=1)["error"]
    file.parent.mkdir()
    file.write_text("as it was", encoding="utf-8")
    commands.run("export", file, "--label", "nonsense", expect=2)
    assert file.read_text(encoding="utf-8") == "as it was"
    assert list(file.parent.iterdir()) == [file]


def test_retire_and_resume(make_settings: MakeSettings) -> None:
    commands = home_with(make_settings)
    told = commands.json("retire", "silent", "--reason", "turned off", "--yes")
    assert (told["state"], told["missed_at"], told["retired_reason"]) == ("retired", None, "turned off")
    assert commands.ids("--missed") == ["ended", "overdue"]
    assert "The reason: 'turned off'." in commands.json("show", "silent")["seen"]
    [entry] = commands.ledger("lineage.retired")
    assert entry["actor"].startswith("operator:")
    serial = next(row.serial for row in ROWS if row.id == "silent")
    assert entry["payload"] == {
        "lineage": "silent",
        "names": ["dns:db.test"],
        "profile": "mtls",
        "reason": "turned off",
        "requester": "account:one",
        "serial": serial,
    }
    assert "retired already" in commands.json("retire", "silent", "--reason", "again", "--yes", expect=1)["error"]
    back = commands.json("resume", "silent")
    # How it stands is known at once; that it is missed is counted, and told, by the service.
    assert (back["state"], back["retired_at"], back["retired_by"]) == ("silent", None, None)
    assert commands.store(lambda tx: find_lineage(tx, "silent")).next_look == 0
    assert [entry["payload"]["lineage"] for entry in commands.ledger("lineage.resumed")] == ["silent"]
    assert "is not retired" in commands.json("resume", "silent", expect=1)["error"]
    assert commands.json("resume", "gone")["state"] == "current"


def test_what_cannot_be_retired_or_resumed(make_settings: MakeSettings) -> None:
    commands = home_with(make_settings)
    long_gone = late("long-gone", state="retired", retired_at=NOW, retired_by="time", not_after=NOW - 60 * DAY)
    commands.store(lambda tx: add_lineage(tx, now_at(long_gone)))
    assert "retire it again at once" in commands.json("resume", "long-gone", expect=1)["error"]
    for arguments in (("retire", "nothing", "--reason", "x", "--yes"), ("resume", "nothing")):
        assert "There is no workload" in commands.json(*arguments, expect=1)["error"]
    for reason in ("", " ", "x" * 201, "a\x1b[2J"):
        assert "reason" in commands.json("retire", "well", "--reason", reason, "--yes", expect=1)["error"]
    assert set(commands.ids("--state", "retired")) == {"gone", "long-gone"}
    assert commands.ledger("lineage.retired") == []


def test_a_database_of_an_earlier_version_is_refused(make_settings: MakeSettings) -> None:
    commands = Commands(make_settings())
    with closing(sqlite3.connect(commands.settings.database_url.removeprefix("sqlite:///"))) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0007'")
        connection.commit()
    for arguments in (
        ("list",),
        ("export",),
        ("show", "w"),
        ("resume", "w"),
        ("retire", "w", "--reason", "x", "--yes"),
    ):
        assert "No service of this version" in commands.json(*arguments, expect=1)["error"]


# Beside a service


@pytest.fixture(scope="module")
def fleet(service_factory: Callable[[], AbstractContextManager[StartService]]) -> Iterator[RunningService]:
    with service_factory() as start:
        yield start(fleet={"rules": [{"name": "shops", "dns": ["shop.test"], "owner": "shop@corp.test"}]})


def catch_up(service: RunningService) -> None:
    """What the jobs do, done now."""
    parts = service.service.fleet
    service.call(parts.follower.follow())
    service.call(parts.follower.write_notes())
    service.call(parts.judge.judge())


def test_a_workload_by_its_certificates(fleet: RunningService, new_client: NewClient) -> None:
    client, commands = new_client(fleet), Commands(fleet.settings)
    serials = [
        serial_text(client.issue("web.shop.test").certificate.serial_number),
        serial_text(client.issue("web.shop.test").certificate.serial_number),
    ]
    catch_up(fleet)
    shown = commands.json("show", serials[0])
    assert shown == commands.json("show", serials[1]) == commands.json("show", "web.shop.test")
    assert (shown["owner"], shown["sources"], shown["state"]) == (
        "shop@corp.test",
        {"owner": "rule:shops"},
        "current",
    )
    assert {each["serial"] for each in shown["history"]} == set(serials)
    assert {each["state"] for each in shown["history"]} == {"valid"}
    assert shown["what"].startswith("It is well.")
    text = commands.run("show", serials[0]).stdout
    assert all(serial in text for serial in serials)


def test_a_failed_check_is_explained(fleet: RunningService, new_client: NewClient) -> None:
    client, commands = new_client(fleet), Commands(fleet.settings)
    failing = client.order("broken.shop.test").json["authorizations"][0]
    client.post(challenge_of(client.post(failing).json, "dns-01")["url"], {})
    assert client.poll(failing).json["status"] == "invalid"
    catch_up(fleet)
    [found] = commands.json("list", "--name", "broken.shop.test", "--state", "failing")
    assert found["what"].startswith("The workload has never had a certificate")
    assert "The check dns-01 of broken.shop.test failed" in found["seen"]
    assert "_acme-challenge.broken.shop.test" in found["do"]
    assert found["attempt"]["stage"] == "validation"


def test_retirement_beside_the_service(fleet: RunningService, new_client: NewClient) -> None:
    """It lasts until the next certificate, and a service that was at it does not undo it."""
    client, commands = new_client(fleet), Commands(fleet.settings)
    serial = serial_text(client.issue("leaves.shop.test").certificate.serial_number)
    catch_up(fleet)
    lineage_id = commands.json("show", serial)["id"]
    commands.run("retire", lineage_id, "--reason", "moved", "--yes")
    catch_up(fleet)
    row = fleet.read(lambda tx: lineage_of(tx, serial))
    assert row is not None
    assert (row.state, row.retired_reason) == ("retired", "moved")
    assert row.next_look == row.retired_at + fleet.settings.fleet.forget_after
    commands.run("resume", lineage_id)
    catch_up(fleet)
    row = fleet.read(lambda tx: lineage_of(tx, serial))
    assert row is not None
    assert (row.state, row.retired_at, row.window_start > 0) == ("current", 0, True)
    commands.run("retire", lineage_id, "--reason", "moved", "--yes")
    client.issue("leaves.shop.test")
    catch_up(fleet)
    again = commands.json("show", lineage_id)
    assert (again["state"], again["certificates"], again["retired_at"]) == ("current", 2, None)
