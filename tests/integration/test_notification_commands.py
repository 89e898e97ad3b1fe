"""`privyseal notify`, what the doctor says of routes, and the job in a real service."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fakes.home import MakeSettings
from fakes.lineages import DAY, NOW, late
from fakes.notifying import HOUR, SECRET, TO_OWNER, WEB_HOOK, private
from fakes.receivers import hook, mail_server
from fakes.service import StartService
from privyseal_acme.cli import cli
from privyseal_ca.store.fleet import add_lineage
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.notifications import NotificationRow
from privyseal_ca.store.scheduling import ask_for_job, find_job
from privyseal_ca.store.statement import Transaction


async def test_a_service_tells_and_shows_that_it_did(start_service: StartService, tmp_path: Path) -> None:
    async with hook() as there:
        url_file = private(tmp_path / "ops", WEB_HOOK.format(port=there.port))
        route = {"name": "ops", "url_file": url_file, "kinds": ["missed"]}
        service = start_service(notifications={"routes": [route]})

        def unit(transaction: Transaction) -> None:
            now = int(service.clock.now())
            add_lineage(transaction, late("web", owner="ann", missed_at=now - HOUR, next_look=now + DAY))
            ask_for_job(transaction, "notifications")

        deadline = time.monotonic() + 30
        while service.read(lambda tx: find_job(tx, "notifications")) is None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        service.write(unit)
        while not there.posts:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert there.posts[0]["title"] == "Privy Seal: 1 renewal missed"
        while (
            service.service.context.metrics.registry.get_sample_value(
                "privyseal_notifications_total", {"result": "delivered"}
            )
            != 1
        ):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


@pytest.fixture
def authority(make_settings: MakeSettings) -> dict[str, str]:
    """The environment of a home whose database has the schema of today, and one workload that was missed."""
    settings = make_settings()
    url = settings.database_url
    migrate(url)
    row = late("web", "web.corp.example", owner="ann@corp.example")
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        marks = ",".join("?" * len(row))
        connection.execute(f"INSERT INTO lineage ({','.join(row._fields)}) VALUES ({marks})", tuple(row))  # noqa: S608
        connection.commit()
    return {
        "PRIVYSEAL_HOME": str(settings.home),
        "PRIVYSEAL_DATABASE__URL": url,
        "PRIVYSEAL_LEDGER__KEPT_CHECKPOINT": str(settings.ledger.kept_checkpoint),
    }


def with_routes(environment: dict[str, str], *routes: dict[str, Any]) -> dict[str, str]:
    return {**environment, "PRIVYSEAL_NOTIFICATIONS__ROUTES": json.dumps(routes)}


async def invoke(environment: dict[str, str], *arguments: str, expect: int = 0) -> Result:
    """The command line, on a thread: the receivers are on this one."""
    done = await asyncio.to_thread(CliRunner().invoke, cli, [*arguments], env=environment)
    assert done.exit_code == expect, done.output
    assert SECRET not in done.output
    return done


async def test_a_route_is_tried(authority: dict[str, str], tmp_path: Path) -> None:
    async with hook() as there, mail_server() as mail:
        environment = with_routes(
            authority,
            {"name": "ops", "url_file": private(tmp_path / "ops", WEB_HOOK.format(port=there.port))},
            {
                "name": "owners",
                "url_file": private(tmp_path / "owners", TO_OWNER.format(port=mail.port)),
                "to_owner": True,
            },
        )
        done = await invoke(environment, "notify", "test", "ops", "--json")
        assert json.loads(done.stdout) == {"route": "ops", "delivered": 1}
        assert there.posts[0]["title"] == "Privy Seal: a test of the route ops"
        await invoke(environment, "notify", "test", "owners", "--to", "ann@corp.example")
        assert mail.mails[0].recipients == ["ann@corp.example"]
        await invoke(environment, "notify", "test", "owners", expect=2)
        await invoke(environment, "notify", "test", "ops", "--to", "ann@corp.example", expect=2)

        there.status = 403
        failed = await invoke(environment, "notify", "test", "ops", expect=1)
        assert "The route ops does not work: Line 1 of the URLs: it answered with the HTTP status 403." in failed.output
        unknown = await invoke(environment, "notify", "test", "pager", expect=1)
        assert "There are: ops, owners." in unknown.output


async def test_what_would_be_told_is_shown_and_nobody_told(authority: dict[str, str], tmp_path: Path) -> None:
    async with hook() as there:
        url_file = private(tmp_path / "ops", WEB_HOOK.format(port=there.port))
        environment = with_routes(authority, {"name": "ops", "url_file": url_file})
        for options in ((), ("--digest",)):
            (draft,) = json.loads((await invoke(environment, "notify", "preview", *options, "--json")).stdout)
            assert (draft["route"], draft["kind"]) == ("ops", "digest" if options else "missed")
            assert "web.corp.example" in draft["body"]
        shown = await invoke(environment, "notify", "preview")
        assert "--- ops: Privy Seal: 1 renewal missed" in shown.output
        assert there.asked == 0
    assert "There are no routes" in (await invoke(authority, "notify", "preview", expect=1)).output


async def test_what_became_of_messages_is_listed(authority: dict[str, str], tmp_path: Path) -> None:
    row = NotificationRow("id", "ops", "", "missed", "Title", "Body", 1, NOW, "waiting", 2, NOW + 60, 0, "It is away.")
    with closing(sqlite3.connect(authority["PRIVYSEAL_DATABASE__URL"].removeprefix("sqlite:///"))) as connection:
        for number, state in enumerate(("waiting", "delivered", "given-up")):
            changed = row._replace(id=str(number), state=state, created=NOW + number)
            marks = ",".join("?" * len(changed))
            connection.execute(f"INSERT INTO notification VALUES ({marks})", tuple(changed))  # noqa: S608
        connection.commit()
    text = (await invoke(authority, "notify", "list")).output
    assert [line.split()[4] for line in text.splitlines()[1:]] == ["given-up", "delivered", "waiting"]
    (waits,) = json.loads((await invoke(authority, "notify", "list", "--state", "waiting", "--json")).stdout)
    assert waits["problem"] == "It is away."
    assert waits["next_attempt"] == "2026-11-21T10:01:00Z"
    assert len((await invoke(authority, "notify", "list", "--limit", "1")).output.splitlines()) == 2


async def test_the_doctor_looks_at_routes_and_texts(authority: dict[str, str], tmp_path: Path) -> None:
    async def finding(environment: dict[str, str]) -> dict[str, str]:
        done = await asyncio.to_thread(CliRunner().invoke, cli, ["doctor", "--json"], env=environment)
        assert SECRET not in done.output
        findings: list[dict[str, str]] = json.loads(done.stdout)["findings"]
        return next(found for found in findings if found["what"] == "notifications")

    good = {"name": "ops", "url_file": private(tmp_path / "good", f"json://hook.test/{SECRET}")}
    bad = {"name": "bad", "url_file": private(tmp_path / "bad", f"json://h.test/{SECRET}", f"nonsense://{SECRET}")}
    assert (await finding(authority))["message"] == "no routes: nobody is told of anything"
    assert (await finding(with_routes(authority, good)))["message"] == "routes: ops"
    found = await finding(with_routes(authority, good, bad))
    assert found["level"] == "fail"
    assert "line 2 of the file of the route bad" in found["message"]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "digest.j2").write_text("{{ nothing }}")
    found = await finding({**authority, "PRIVYSEAL_NOTIFICATIONS__TEMPLATES": str(tmp_path / "texts")})
    assert (found["level"], "digest.j2" in found["message"]) == ("fail", True)
