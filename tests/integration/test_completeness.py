"""Each new certificate is looked up in the ledger while the service runs, and what is not as it must be is found."""

import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from sqlalchemy import delete
from structlog.testing import capture_logs

from fakes.audited import Authority, opened_authority
from fakes.home import MakeSettings
from fakes.ocsp_desk import ocsp_desk
from fakes.postgresql import copy_to_postgresql
from fakes.restores import covered
from fakes.service import NewClient, RunningService, StartService
from privyseal_ca.issuance.figures import show_issuers
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.ledger import completeness as module
from privyseal_ca.ledger.checkpoint_rows import publish, stage
from privyseal_ca.ledger.completeness import Completeness, Looked
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.ledger.log import size
from privyseal_ca.ledger.tile_store import StoredTiles
from privyseal_ca.ledger.tiles import root_of
from privyseal_ca.store.certificates import find_certificate
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import LedgerEntry
from privyseal_ca.telemetry.metrics import Metrics


def signed(transaction: Transaction, now: float) -> None:
    """A checkpoint of what there is, as if the key of the ledger had signed it: only its size counts here."""
    end = size(transaction)
    row = stage(transaction, end, root_of(StoredTiles(transaction), end))
    assert publish(transaction, row, b"note", int(now))


class World:
    """An authority whose ledger a checkpoint covers when it is told to, and what looks at it."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.metrics = Metrics()
        self.completeness = self.started()
        self.told: list[Any] = []

    def started(self) -> Completeness:
        """Another process's look, which begins anew."""
        return Completeness(store=self.authority.store, clock=self.authority.clock, metrics=self.metrics)

    async def cover(self) -> None:
        """Have a checkpoint of what there is."""

        await self.authority.store.write(lambda tx: signed(tx, self.authority.clock.now()))

    async def look(self) -> Looked:
        with capture_logs() as logs:
            found = await self.completeness.look()
        self.told = [(each.get("serial"), each.get("why")) for each in logs if each["log_level"] == "error"]
        return found

    async def covered_look(self) -> Looked:
        await self.cover()
        return await self.look()

    def counted(self, result: str) -> float:
        value = self.metrics.registry.get_sample_value("privyseal_audited_certificates_total", {"result": result})
        assert value is not None
        return value


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with opened_authority(tmp_path / "ledger.db") as authority:
        yield World(authority)


async def test_each_certificate_is_looked_up_once(world: World) -> None:
    assert await world.covered_look() == Looked(0, 0, finished=True)
    for number in range(3):
        await world.authority.issue(f"h{number}.test", shard=1, ocsp=True)
    await world.authority.abandon()
    assert await world.covered_look() == Looked(3, 0, finished=True)
    assert await world.look() == Looked(0, 0, finished=True)
    await world.authority.issue("h4.test")
    assert await world.covered_look() == Looked(1, 0, finished=True)
    assert (world.counted("complete"), world.counted("incomplete")) == (4, 0)


async def test_what_nothing_covers_yet_waits(world: World) -> None:
    await world.covered_look()
    certificate = world.authority.certificate(int.from_bytes(os.urandom(15)), "waits.test")
    await world.authority.store.write(lambda tx: world.authority.intend(tx, certificate))
    await world.cover()
    await world.authority.store.write(lambda tx: world.authority.finish(tx, certificate, "waits.test"))
    with capture_logs() as logs:
        assert await world.completeness.look() == Looked(0, 0, finished=True)
    assert not logs, "it is younger than a minute"
    with capture_logs() as logs:
        for _ in range(3):
            assert await world.completeness.look() == Looked(0, 0, finished=True)
    assert [each["event"] for each in logs] == ["entries of the ledger wait for a checkpoint"], "told once"
    assert await world.covered_look() == Looked(1, 0, finished=True), "its intent was read by an earlier look"


async def test_a_start_begins_with_the_last_day(world: World) -> None:
    await world.authority.issue("old.test")
    await world.cover()
    # Certificates of this authority are valid from a day before their issuance on.
    world.authority.clock.advance(1)
    assert await world.look() == Looked(0, 0, finished=True)
    world.authority.clock.advance(-1)
    world.completeness = world.started()
    assert await world.look() == Looked(1, 0, finished=True)


async def test_many_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", 3)
    monkeypatch.setattr(module, "_PAGES", 2)
    for number in range(10):
        await world.authority.issue(f"h{number}.test")
    await world.cover()
    looks = [await world.look()]
    while not looks[-1].finished:
        looks.append(await world.look())
    assert sum(each.complete for each in looks) == 10
    assert not any(each.incomplete for each in looks)
    assert len(looks) == 4, "22 entries, six at a time"


async def test_pages_that_take_long_become_shorter(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates with very many names must not hold up whoever is served."""
    sizes, read = [], module._page

    def seen(transaction: Transaction, **options: Any) -> Any:
        page = read(transaction, **options)
        sizes.append(len(page.entries))
        return page

    for number in range(10):
        await world.authority.issue(f"h{number}.test")
    await world.cover()
    monkeypatch.setattr(module, "_page", seen)
    monkeypatch.setattr(module, "_PAGE", 12)
    monkeypatch.setattr(module, "_LEAST", 3)
    monkeypatch.setattr(module, "_LONGEST_STEP", 0.0)
    assert await world.look() == Looked(10, 0, finished=True)
    assert sizes[:2] == [12, 6]
    assert set(sizes[2:-1]) <= {3}
    monkeypatch.setattr(module, "_LONGEST_STEP", 60.0)
    world.completeness = world.started()
    sizes.clear()
    assert await world.look() == Looked(10, 0, finished=True)
    assert set(sizes[:-1]) == {12}


Break = Callable[[Authority, str, int], Any]


def _remove(authority: Authority, index: int) -> None:
    authority.tamper(("DELETE FROM ledger_entry WHERE idx = ?", (index,)))


def _alter(authority: Authority, index: int, old: str, new: str) -> None:
    """Change an entry, and leave its hash."""
    statement = "UPDATE ledger_entry SET entry = CAST(replace(CAST(entry AS TEXT), ?, ?) AS BLOB) WHERE idx = ?"
    authority.tamper((statement, (old, new, index)))


def _forge(authority: Authority, index: int, **payload: Any) -> None:
    """Change an entry together with its hash."""

    def change(members: Any) -> None:
        members["payload"].update(payload)

    authority.rewrite(index, change)


_OF_ROW = "UPDATE certificate SET {} WHERE serial = ?"

#: What somebody does to the certificate in the middle, whose entry has this index and whose intent is just before it.
BREAKS: dict[str, tuple[Break, str]] = {
    "its entry is removed": (lambda a, _, i: _remove(a, i), "the entry of its index is missing"),
    "its intent is removed": (lambda a, _, i: _remove(a, i - 1), "there is no intent before it"),
    "its entry is altered": (
        lambda a, _, i: _alter(a, i, "h1.test", "h9.test"),
        "its entry does not have the hash that was stored with it",
    ),
    "its intent is altered": (lambda a, _, i: _alter(a, i - 1, "mtls", "mtlz"), "there is no intent before it"),
    "its entry is forged": (lambda a, _, i: _forge(a, i, names=["dns:h9.test"]), "its entry does not follow from it"),
    "its entry is of another serial": (
        lambda a, _, i: _forge(a, i, serial="0" * 32),
        "the entry of its index is that of another certificate",
    ),
    "its intent is of another profile": (
        lambda a, _, i: _forge(a, i - 1, profile="x"),
        "its intent was for something else",
    ),
    "its intent is of another issuer": (
        lambda a, _, i: _forge(a, i - 1, issuer="x"),
        "its intent was for something else",
    ),
    "its intent signs something else": (
        lambda a, _, i: _forge(a, i - 1, tbs_sha256="0" * 64),
        "its intent was for something else",
    ),
    "its entry is no JSON": (
        lambda a, _, i: a.tamper(
            ("UPDATE ledger_entry SET entry = ? WHERE idx = ?", (b'{"kind":"certificate.issued"', i))
        ),
        "the entry of its index is that of another certificate",
    ),
    "its entry is text": (
        lambda a, _, i: a.tamper(("UPDATE ledger_entry SET entry = 'x' WHERE idx = ?", (i,))),
        "the entry of its index is another",
    ),
    "its certificate is exchanged": (
        lambda a, s, _: a.tamper((_OF_ROW.format("der = ?"), (b"another", s))),
        "its entry does not follow from it",
    ),
    "its names are exchanged": (
        lambda a, s, _: a.tamper((_OF_ROW.format("names = ?"), ("no list", s))),
        "its entry does not follow from it",
    ),
    "its requester is exchanged": (
        lambda a, s, _: a.tamper((_OF_ROW.format("requester = ?"), ("account:b", s))),
        "its intent was for something else",
    ),
    "its row is removed": (
        lambda a, s, _: a.tamper(("DELETE FROM certificate WHERE serial = ?", (s,))),
        "no certificate has this entry",
    ),
    "its row names its intent": (
        lambda a, s, _: a.tamper((_OF_ROW.format("ledger_index = ledger_index - 1"), (s,))),
        "the entry of its index is another",
    ),
    "its row names no entry": (
        lambda a, s, _: a.tamper((_OF_ROW.format("ledger_index = 1000"), (s,))),
        "the ledger has no entry of its index",
    ),
}


@pytest.mark.parametrize("what", BREAKS)
async def test_what_is_not_as_it_must_be_is_found(world: World, what: str) -> None:
    before = await world.covered_look()
    serials = [await world.authority.issue(f"h{number}.test") for number in range(3)]
    intent = world.authority.index(Kind.INTENT, 2)
    broken, why = BREAKS[what]
    await world.cover()
    broken(world.authority, serials[1], intent + 1)
    found = await world.look()
    assert before.incomplete == 0
    # The two beside it are as they were.
    assert found.complete == 2
    assert (serials[1], why) in world.told
    assert found.incomplete == len(world.told) == world.counted("incomplete")
    assert {serial for serial, _ in world.told} <= {serials[1], "", "0" * 32}
    again = await world.look()
    assert again == Looked(0, 0, finished=True), "told once"


async def test_all_of_it_is_removed(world: World) -> None:
    """Row, intent and entry: nothing is left but the gap."""
    await world.covered_look()
    serials = [await world.authority.issue(f"h{number}.test") for number in range(3)]
    intent = world.authority.index(Kind.INTENT, 2)
    await world.cover()
    world.authority.tamper(
        ("DELETE FROM certificate WHERE serial = ?", (serials[1],)),
        ("DELETE FROM ledger_entry WHERE idx IN (?, ?)", (intent, intent + 1)),
    )
    assert await world.look() == Looked(2, 1, finished=True)
    assert "2 entries are missing" in world.told[0][1]


async def test_a_second_certificate_for_the_same_entry(world: World) -> None:
    serial = await world.authority.issue("h.test")
    await world.cover()
    columns = (
        "issuer_id, profile, requester, names, not_before, not_after, spki_sha256, ledger_index, der, crl_shard, ocsp"
    )
    copy = f"INSERT INTO certificate SELECT ?, {columns} FROM certificate WHERE serial = ?"  # noqa: S608 (columns of our own)
    world.authority.tamper((copy, ("f" * 32, serial)))
    assert await world.look() == Looked(1, 1, finished=True)
    assert world.told == [("f" * 32, "the entry of its index is that of another certificate")]


async def test_a_certificate_that_a_restore_knows_by_its_entry(world: World) -> None:
    serial = await world.authority.issue("h.test")
    world.authority.tamper((_OF_ROW.format("der = ?"), (b"", serial)))
    assert await world.covered_look() == Looked(1, 0, finished=True)
    world.completeness = world.started()
    world.authority.tamper((_OF_ROW.format("not_after = not_after + 1"), (serial,)))
    assert await world.look() == Looked(0, 1, finished=True)


async def test_logs_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_TOLD", 2)
    for number in range(5):
        await world.authority.issue(f"h{number}.test")
    await world.cover()
    world.authority.tamper(("UPDATE certificate SET der = ?", (b"x",)))
    assert await world.look() == Looked(0, 5, finished=True)
    assert len(world.told) == 2
    assert world.counted("incomplete") == 5


# A real service.


def test_a_real_service_is_complete_until_somebody_changes_it(
    start_service: StartService, new_client: NewClient
) -> None:
    """Its own certificates among them: that of the server, the responder's and the canary."""
    service = start_service()
    client = new_client(service)
    for number in range(2):
        client.issue(f"h{number}.test")
    context = service.service.context
    completeness = Completeness(store=context.store, clock=context.clock, metrics=Metrics())
    covered(service)
    found = service.call(completeness.look())
    issued = [entry["kind"] for entry in service.ledger()].count(Kind.ISSUED)
    assert found == Looked(issued, 0, finished=True)
    assert issued >= 5

    broken = client.issue("broken.test")
    serial = serial_text(broken.certificate.serial_number)
    client.issue("whole.test")
    covered(service)
    row = service.read(lambda tx: find_certificate(tx, serial))
    assert row is not None
    with closing(sqlite3.connect(service.settings.database_url.removeprefix("sqlite:///"), timeout=10)) as database:
        database.execute("DELETE FROM ledger_entry WHERE idx = ?", (row.ledger_index,))
        database.commit()
    with capture_logs() as logs:
        found = service.call(completeness.look())
    assert found == Looked(1, 1, finished=True)
    told = [each for each in logs if each["log_level"] == "error" and "why" in each]
    assert [(each["serial"], each["index"]) for each in told] == [(serial, row.ledger_index)]


@pytest.mark.postgresql
async def test_on_postgresql(request: pytest.FixtureRequest, make_settings: MakeSettings) -> None:
    made = make_settings()
    url = copy_to_postgresql(made.database_url, request.getfixturevalue("postgresql"))
    settings = made.model_copy(update={"database": made.database.model_copy(update={"url": url})})
    async with ocsp_desk(settings) as desk:
        completeness = Completeness(store=desk.store, clock=desk.clock, metrics=desk.metrics)
        for number in range(2):
            await desk.issue(f"dns:h{number}.test")
        await desk.store.write(lambda tx: signed(tx, desk.clock.now()))
        found = await completeness.look()
        assert found.complete >= 2
        assert found == Looked(found.complete, 0, finished=True)
        row = await desk.issue("dns:broken.test")
        statement = Statement(delete(LedgerEntry.__table__).where(LedgerEntry.__table__.c.idx == row.ledger_index))  # type: ignore[attr-defined]
        await desk.store.write(lambda tx: signed(tx, desk.clock.now()))
        await desk.store.write(lambda tx: tx.execute(statement))
        assert await completeness.look() == Looked(0, 1, finished=True)


# What another job shows of certificates.


async def test_issuers_show_when_they_end(service: RunningService) -> None:
    metrics = Metrics()
    issuers = service.service.context.authority.issuers
    await show_issuers(issuers, metrics)
    for issuer in issuers:
        end = metrics.registry.get_sample_value("privyseal_issuer_not_after_seconds", {"issuer": issuer.identity.name})
        chain = x509.load_pem_x509_certificates(issuer.chains[0].encode())
        assert end == chain[0].not_valid_after_utc.timestamp()
