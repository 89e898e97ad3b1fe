"""What may go wrong with the fleet: clocks, strangers, races, rows that nobody understands, and clients that do odd things."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.acme_client import AcmeClient, Issued, make_csr
from fakes.lineages import NOW, lineage
from fakes.service import FakeClock, NewClient, RunningService, StartService
from privyseal_acme.flow.administration import describe_account
from privyseal_acme.flow.certificates import CertificateFlow
from privyseal_acme.flow.fleet import Fleet
from privyseal_acme.flow.fleet_follow import FleetFollower
from privyseal_acme.flow.fleet_notes import FleetNotes, Subject, names_of
from privyseal_acme.flow.fleet_owners import Owners
from privyseal_acme.protocol.ari import certificate_id
from privyseal_acme.protocol.messages import IdentifierMessage
from privyseal_acme.protocol.problems import Problem
from privyseal_acme.store.orders import OrderRow, add_order
from privyseal_ca.fleet.attributes import Attributes
from privyseal_ca.fleet_sections import FleetRule
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.certificates import CertificateRow, add_certificate
from privyseal_ca.store.engine import Store
from privyseal_ca.store.fleet import (
    LineageRow,
    add_lineage,
    change_lineage,
    find_lineage,
    forget_lineage,
    judge_lineage,
    lineage_of,
    lineages_by_names,
    lineages_to_look_at,
    look_at_requester,
    page_of_lineages,
)
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

_HOUR = 3600
_DAY = 86400
_YEAR = 366 * _DAY
_REFUSED = Problem("rejectedIdentifier", "No.")


@pytest.fixture(scope="module")
def fleet(service_factory: Callable[[], AbstractContextManager[StartService]]) -> Iterator[RunningService]:
    with service_factory() as start:
        yield start(renewal={"poll": _HOUR}, fleet={"retire_after": 5 * _DAY})


@pytest.fixture
def client(fleet: RunningService, new_client: NewClient) -> AcmeClient:
    made = new_client(fleet, registered=False)
    made.at_any_time = True
    made.register()
    return made


def catch_up(service: RunningService) -> None:
    parts = service.service.fleet
    service.call(parts.follower.follow())
    service.call(parts.follower.write_notes())
    service.call(parts.judge.judge())


def serial_of(issued: Issued) -> str:
    return serial_text(issued.certificate.serial_number)


def workload(service: RunningService, issued: Issued) -> LineageRow:
    catch_up(service)
    row = service.read(lambda tx: lineage_of(tx, serial_of(issued)))
    assert row is not None
    return row


def identifier(service: RunningService, issued: Issued) -> str:
    row = workload(service, issued)
    return certificate_id(bytes.fromhex(row.issuer_id), issued.certificate.serial_number)


def all_of(service: RunningService, name: str) -> list[LineageRow]:
    catch_up(service)
    rows = service.read(lambda tx: page_of_lineages(tx, count=1000))
    return [row for row in rows if f"dns:{name}" in json.loads(row.names)]


def account_id(client: AcmeClient) -> str:
    assert client.account is not None
    return client.account.rpartition("/")[2]


def renewals(service: RunningService) -> dict[str, float]:
    counter = service.service.context.metrics.renewals
    return {result: counter.labels(result)._value.get() for result in ("in_time", "late", "missed")}


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = Store(backend_for(url, durable=False, timeout=30), queue=1000)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def follower_of(store: Store, notes: FleetNotes, timer: Callable[[], float] = time.perf_counter) -> FleetFollower:
    return FleetFollower(
        store=store,
        owners=Owners(()),
        notes=notes,
        clock=FakeClock(NOW),
        random_bytes=os.urandom,
        metrics=Metrics(),
        timer=timer,
    )


# Clocks


def test_a_clock_that_leaps_a_year_and_back_leaves_nothing(fleet: RunningService, client: AcmeClient) -> None:
    issued = client.issue("leap.test")
    before = workload(fleet, issued)
    fleet.clock.advance(_YEAR)
    assert workload(fleet, issued).state == "retired"
    fleet.clock.advance(-_YEAR)
    after = workload(fleet, issued)
    assert (after.state, after.retired_at, after.retired_by, after.missed_at) == ("current", 0, "", 0)
    assert after.deadline == before.deadline


def test_a_renewal_that_only_a_wrong_clock_missed_is_not_missed(fleet: RunningService, client: AcmeClient) -> None:
    issued = client.issue("leap-late.test")
    row = workload(fleet, issued)
    leap = row.deadline + 60 - fleet.clock.now()
    fleet.clock.advance(leap)
    assert workload(fleet, issued).missed_at
    fleet.clock.advance(-leap)
    assert workload(fleet, issued).missed_at == 0


def test_a_clock_that_was_set_back_is_noticed_after_a_restart(fleet: RunningService, client: AcmeClient) -> None:
    issued = client.issue("leap-restart.test")
    workload(fleet, issued)
    fleet.clock.advance(_YEAR)
    assert workload(fleet, issued).state == "retired"
    fleet.clock.advance(-_YEAR)
    context = fleet.service.context
    parts = Fleet.of(context, CertificateFlow(context, lambda *_: None).renewal)
    fleet.call(parts.follower.follow())
    fleet.call(parts.judge.judge())
    row = fleet.read(lambda tx: lineage_of(tx, serial_of(issued)))
    assert row is not None
    assert row.state == "current"


def test_a_deadline_of_a_wrong_clock_does_not_stay(fleet: RunningService, client: AcmeClient) -> None:
    issued = client.issue("leap-revoked.test")
    assert client.revoke(issued.der).status == 200
    row = workload(fleet, issued)
    fleet.write(lambda tx: change_lineage(tx, row.id, deadline=row.not_after + _YEAR, next_look=0))
    row = workload(fleet, issued)
    assert fleet.clock.now() < row.deadline < row.not_after


# Deadlines that move


def earliest(service: RunningService, client: AcmeClient, name: str) -> tuple[Issued, LineageRow]:
    """Of some workloads the one whose window ends first."""
    each = [client.issue(f"{number}.{name}.test") for number in range(4)]
    rows = [(issued, workload(service, issued)) for issued in each]
    return min(rows, key=lambda one: one[1].window_end)


def test_a_first_question_after_the_window_is_no_missed_renewal(
    start_service: StartService, new_client: NewClient
) -> None:
    service = start_service(renewal={"poll": _HOUR})
    client = new_client(service)
    issued, row = earliest(service, client, "asks-late")
    life = row.not_after - row.not_before
    assert row.deadline > row.window_end + life * 0.06, "without a question there is more time"
    service.clock.advance(row.window_end + life * 0.055 - service.clock.now())
    client.at_any_time = True
    url = f"{client.directory['renewalInfo']}/{identifier(service, issued)}"
    assert client.request("GET", url).status == 200
    asked = workload(service, issued)
    assert (asked.polled_at > 0, asked.missed_at) == (True, 0)
    assert service.clock.now() + _HOUR <= asked.deadline <= row.deadline
    service.clock.advance(asked.deadline - service.clock.now() - 1)
    service.write(lambda tx: change_lineage(tx, row.id, next_look=0))
    assert workload(service, issued).deadline == asked.deadline, "it does not move on with the time"
    service.clock.advance(1)
    assert workload(service, issued).missed_at == asked.deadline


def test_what_becomes_critical_late_is_not_missed_at_once(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(renewal={"poll": _HOUR})
    client = new_client(service)
    issued = client.issue("promoted.test")
    row = workload(service, issued)
    life = row.not_after - row.not_before
    service.clock.advance(row.not_before + life * 0.57 - service.clock.now())

    def promote(transaction: Transaction) -> None:
        describe_account(
            transaction,
            account_id(client),
            Attributes(criticality="critical"),
            actor="operator:tests",
            correlation="tests",
            now=service.clock.now(),
        )

    service.write(promote)
    critical = workload(service, issued)
    assert critical.criticality == "critical"
    assert (critical.missed_at, critical.deadline > service.clock.now()) == (0, True)


# Clients


def test_a_csr_that_was_mended_is_no_failure(fleet: RunningService, client: AcmeClient) -> None:
    order = client.ready_order("mended.test")
    fleet.clock.advance(5)
    assert client.finalize(order, b"no CSR").status == 400
    csr = make_csr(["mended.test"], ec.generate_private_key(ec.SECP256R1()))
    assert client.finalize(order, csr).status == 200
    assert client.poll(order.headers["Location"]).json["status"] == "valid"
    (row,) = all_of(fleet, "mended.test")
    assert (row.state, row.attempts, row.attempt) == ("current", 0, "")


def test_what_tried_to_become_what_it_is_now_fails_no_more(fleet: RunningService, client: AcmeClient) -> None:
    first = client.issue("a.grows.test")
    workload(fleet, first)
    order = client.ready_order("a.grows.test", "b.grows.test")
    fleet.clock.advance(5)
    assert client.finalize(order, b"no CSR").status == 400
    assert [row.state for row in all_of(fleet, "b.grows.test")] == ["failing"]
    second = client.issue("a.grows.test", "b.grows.test", replaces=identifier(fleet, first))
    (row,) = all_of(fleet, "b.grows.test")
    assert (row.id, row.serial, row.state) == (workload(fleet, first).id, serial_of(second), "current")
    third = client.issue("a.grows.test", "b.grows.test")
    assert workload(fleet, third).id == row.id


def test_who_still_tries_is_not_gone(fleet: RunningService, client: AcmeClient) -> None:
    issued = client.issue("tries.test")
    replaces = identifier(fleet, issued)
    row = workload(fleet, issued)
    fleet.clock.advance(row.not_after + 6 * _DAY - fleet.clock.now())
    assert workload(fleet, issued).retired_by == "time"
    client.fresh_nonce()
    assert client.new_order("tries.test", "tries.forbidden.example", replaces=replaces).status == 400
    row = workload(fleet, issued)
    assert (row.state, row.retired_at, row.attempts) == ("failing", 0, 1)
    assert row.missed_at
    fleet.clock.advance(5 * _DAY)
    assert workload(fleet, issued).state == "retired"


def test_the_usual_profile_is_the_one_of_the_policy(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(policy={"default": {"allow_dns": ("test",), "profiles": ("server",)}})
    client = new_client(service)
    issued = client.issue("policy.test")
    row = workload(service, issued)
    assert row.profile == "server"
    service.clock.advance(5)
    limits = service.service.context.limits
    limits.new_orders.wait = lambda _: 5.0  # type: ignore[method-assign]
    client.at_any_time = True
    assert client.new_order("policy.test").refusal[0] == 429
    (after,) = all_of(service, "policy.test")
    assert (after.id, after.state, after.attempts) == (row.id, "failing", 1)


def test_the_order_of_a_failed_validation_is_found_among_many(fleet: RunningService, client: AcmeClient) -> None:
    order = client.order("nobody.test")
    url = order.json["authorizations"][0]
    challenge = next(each for each in client.post(url).json["challenges"] if each["type"] == "http-01")
    client.post(challenge["url"], {})
    assert client.poll(url).json["status"] == "invalid"
    fleet.clock.advance(1)
    for number in range(70):
        client.order(f"later-{number}.test")
    assert [row.state for row in all_of(fleet, "nobody.test")] == ["failing"]


def test_renewals_of_those_that_come_apart_are_counted(fleet: RunningService, client: AcmeClient) -> None:
    one, two = client.issue("pair.test"), client.issue("pair.test")
    replaces = [identifier(fleet, one), identifier(fleet, two)]
    before = renewals(fleet)
    for each in replaces:
        client.issue("pair.test", replaces=each)
        catch_up(fleet)
    assert renewals(fleet) == {**before, "in_time": before["in_time"] + 2}


def test_names_are_those_of_the_certificate_however_they_are_written() -> None:
    asked = [("ip", "2001:DB8:0:0::1"), ("dns", "Api.TEST"), ("dns", "e\u202evil\x00.test"), ("d\x00ns", "x")]
    names = names_of([IdentifierMessage(type=kind, value=value) for kind, value in asked])
    assert names == ("dns:api.test", "dns:evil.test", "dns:x", "ip:2001:db8::1")


# Strangers and those who invent names


async def test_questions_about_what_is_not_followed_yet_end(migrated_url: str) -> None:
    notes = FleetNotes()
    for number in range(2000):
        notes.polled(f"{number:032x}", NOW)
    async with opened(migrated_url) as store:
        follower = follower_of(store, notes)
        await asyncio.wait_for(follower.write_notes(), 20)
        assert len(notes.take_polls(10_000)) == 2000, "kept for the next time"


async def test_questions_about_what_was_replaced_are_forgotten(fleet: RunningService, client: AcmeClient) -> None:
    first = client.issue("replaced.test")
    client.issue("replaced.test", replaces=identifier(fleet, first))
    catch_up(fleet)
    context = fleet.service.context
    context.fleet.polled(serial_of(first), fleet.clock.now())
    fleet.call(fleet.service.fleet.follower.write_notes())
    assert serial_of(first) not in dict(context.fleet.take_polls(100_000))


def test_questions_that_are_no_news_have_nothing_judged(fleet: RunningService, client: AcmeClient) -> None:
    issued = client.issue("asked-often.test")
    row = workload(fleet, issued)
    life = row.not_after - row.not_before

    def ask(part: float) -> bool:
        """Whether a question after this part of the life has the workload judged anew."""
        fleet.clock.advance(row.not_before + life * part - fleet.clock.now())
        catch_up(fleet)
        fleet.service.context.fleet.polled(row.serial, fleet.clock.now())
        fleet.call(fleet.service.fleet.follower.write_notes())
        asked = fleet.read(lambda tx: find_lineage(tx, row.id))
        assert asked is not None
        assert asked.polled_at == int(fleet.clock.now())
        return asked.next_look == 0

    assert [ask(part) for part in (0.05, 0.06, 0.2)] == [True, False, False]
    assert [ask(part) for part in (0.31, 0.32)] == [True, False]
    begins = (workload(fleet, issued).window_start - row.not_before) / life
    assert [ask(part) for part in (begins - 0.001, begins + 0.001, begins + 0.002)] == [False, True, False]


def test_notes_are_taken_as_fast_as_they_come() -> None:
    notes = FleetNotes()
    for number in range(200_000):
        notes.polled(f"{number:032x}", NOW)
    begun = time.process_time()
    while notes.take_polls(200):
        pass
    assert time.process_time() - begun < 2


def test_who_invents_names_puts_out_nobody_else() -> None:
    notes = FleetNotes()
    victim = Subject("account:victim", "mtls", ("dns:victim.test",))
    notes.failed(victim, _REFUSED, NOW, stage="order")
    for number in range(6000):
        notes.failed(Subject("account:hostile", "mtls", (f"dns:{number}.test",)), _REFUSED, NOW, stage="order")
    kept = [subject for subject, _ in notes.take_attempts(10_000)]
    assert victim in kept
    assert len(kept) <= 501
    notes.failed(Subject("account:hostile", "mtls", ("dns:again.test",)), _REFUSED, NOW, stage="order")
    assert len(notes.take_attempts(10)) == 1


async def test_what_the_database_refuses_stops_no_other_note(migrated_url: str) -> None:
    notes = FleetNotes()
    for number in range(3):
        notes.failed(Subject("account:good", "mtls", (f"dns:{number}.test",)), _REFUSED, NOW, stage="order")
        bad = Subject("account:bad", "\0", (f"dns:{number}.test",))
        notes.failed(bad, _REFUSED, NOW, stage="order")
    async with opened(migrated_url) as store:
        await follower_of(store, notes).write_notes()
        rows = await store.read(page_of_lineages)
    assert len([row for row in rows if row.requester == "account:good"]) == 3
    assert notes.take_attempts(10) == []


@pytest.mark.parametrize("profile", ["\0", "a\x1b[2J\u202eb"], ids=["nul", "escape"])
def test_a_profile_that_nobody_can_store(fleet: RunningService, client: AcmeClient, profile: str) -> None:
    name = f"{len(profile)}.profile.test"
    assert client.new_order(name, profile=profile).status == 400
    assert [row.profile.isprintable() for row in all_of(fleet, name)] == [True]


# Rows


def test_a_row_that_nobody_understands_stops_nobody(fleet: RunningService, client: AcmeClient) -> None:
    bad = lineage("poison", names="{", issuer_id="", next_look=0)
    fleet.write(lambda tx: add_lineage(tx, bad))
    try:
        assert workload(fleet, client.issue("after-poison.test")).deadline
        row = fleet.read(lambda tx: find_lineage(tx, "poison"))
        assert row is not None
        assert row.next_look > fleet.clock.now()
    finally:
        fleet.write(lambda tx: forget_lineage(tx, bad))


def test_nothing_is_judged_before_all_is_followed(fleet: RunningService, client: AcmeClient) -> None:
    issued = client.issue("waits.test")
    row = workload(fleet, issued)
    context = fleet.service.context
    parts = Fleet.of(context, CertificateFlow(context, lambda *_: None).renewal)
    fleet.write(lambda tx: change_lineage(tx, row.id, next_look=0))
    assert fleet.call(parts.judge.judge()) == 0
    fleet.call(parts.follower.follow())
    assert fleet.call(parts.judge.judge()) >= 1


async def test_what_cannot_be_followed_keeps_nobody_from_being_told_for_long(migrated_url: str) -> None:
    timer = FakeClock(0)
    async with opened(migrated_url) as store:
        follower = follower_of(store, FleetNotes(), timer.now)
        timer.advance(1799)
        assert follower.behind
        timer.advance(1)
        assert not follower.behind


async def test_those_that_are_gone_hide_nobody_of_the_same_names(migrated_url: str) -> None:
    async with opened(migrated_url) as store:

        def unit(transaction: Transaction) -> list[LineageRow]:
            for number in range(70):
                gone = {"retired_at": NOW - 5, "not_after": NOW - _DAY, "names_hash": b"same", "serial": f"{number}"}
                add_lineage(transaction, lineage(f"gone{number}", **gone))
            add_lineage(transaction, lineage("alive", names_hash=b"same"))
            return lineages_by_names(transaction, b"same")

        assert (await store.write(unit))[0].id == "alive"


async def test_what_is_back_is_not_forgotten(migrated_url: str) -> None:
    seen = lineage("back", retired_at=NOW)
    async with opened(migrated_url) as store:
        await store.write(lambda tx: add_lineage(tx, seen))
        await store.write(lambda tx: change_lineage(tx, "back", retired_at=0))
        assert not await store.write(lambda tx: forget_lineage(tx, seen))
        await store.write(lambda tx: change_lineage(tx, "back", retired_at=NOW))
        assert await store.write(lambda tx: forget_lineage(tx, seen))
        assert await store.read(page_of_lineages) == []


@pytest.mark.postgresql
async def test_what_is_said_while_it_is_judged_is_not_lost(postgresql: Any, migrated_url: str) -> None:
    """Both look at the same row at the same time: whoever describes comes before or after, and is judged."""
    if migrated_url.startswith("sqlite"):
        pytest.skip("one writer at a time")
    row = lineage("said", next_look=0)

    def say() -> None:
        async def work() -> None:
            async with opened(migrated_url) as other:
                await other.write(lambda tx: look_at_requester(tx, row.requester))

        asyncio.run(work())

    async with opened(migrated_url) as store:
        await store.write(lambda tx: add_lineage(tx, row))
        with ThreadPoolExecutor(1) as thread:

            def unit(transaction: Transaction) -> None:
                (seen,) = lineages_to_look_at(transaction, NOW, count=5)
                saying = thread.submit(say)
                # It either waits for this unit or is done with it.
                end = time.monotonic() + 1
                while not saying.done() and time.monotonic() < end:
                    time.sleep(0.01)
                judge_lineage(transaction, seen, owner="before", next_look=NOW + _YEAR)

            await store.write(unit)
        after = await store.read(lambda tx: find_lineage(tx, "said"))
    assert after is not None
    assert after.next_look == 0


@dataclass
class Rows:
    """Orders and certificates as the service stores them, without the service."""

    transaction: Transaction
    indexes: Iterator[int]

    def order(self, *names: str, created: int, replaces: str | None = None, serial: str | None = None) -> None:
        """An order, and its certificate when it has a ``serial``."""
        number = next(self.indexes)
        identifiers = json.dumps([["dns", name] for name in names])
        order = OrderRow(
            id=f"order{number}",
            account_id="one",
            state="valid" if serial else "open",
            created=created,
            expires=created + _DAY,
            identifiers=identifiers,
            authorizations=json.dumps([f"auth-{'-'.join(names)}-{created}"]),
            profile="mtls",
            not_before=None,
            not_after=None,
            replaces=replaces,
            csr=None,
            serial=serial,
            error=None,
            correlation="tests",
        )
        add_order(self.transaction, order)
        if serial is not None:
            row = CertificateRow(
                serial=serial,
                issuer_id="ab" * 20,
                profile="mtls",
                requester="account:one",
                names=json.dumps([f"dns:{name}" for name in names]),
                not_before=created,
                not_after=created + 30 * _DAY,
                spki_sha256=b"key",
                ledger_index=number,
                der=b"",
                crl_shard=None,
                ocsp=0,
            )
            add_certificate(self.transaction, row)


async def test_followed_in_the_same_way_on_every_database(migrated_url: str) -> None:
    notes, serials, indexes = FleetNotes(), [f"{number:032x}" for number in range(0x11, 0x14)], count(1)
    async with opened(migrated_url) as store:
        follower = follower_of(store, notes)

        async def rows() -> list[LineageRow]:
            assert await follower.follow() >= 0
            await follower.write_notes()
            return await store.read(page_of_lineages)

        await store.write(lambda tx: Rows(tx, indexes).order("a.test", created=NOW - _DAY, serial=serials[0]))
        notes.polled(serials[0], NOW - 60)
        [first] = await rows()
        assert (first.serial, first.polled_at, first.next_look) == (serials[0], NOW - 60, 0)
        await store.write(lambda tx: Rows(tx, indexes).order("a.test", "b.test", created=NOW - 50))
        failed = Subject("account:one", "", (), authorization=f"auth-a.test-b.test-{NOW - 50}", begun=NOW - 50)
        notes.failed(failed, _REFUSED, NOW - 40, stage="validation")
        assert sorted(row.serial for row in await rows()) == ["", serials[0]]
        replaces = certificate_id(b"\xab" * 20, int(serials[0], 16))
        grown = {"created": NOW - 30, "replaces": replaces, "serial": serials[1]}
        await store.write(lambda tx: Rows(tx, indexes).order("a.test", "b.test", **grown))
        [second] = await rows()
        assert (second.id, second.serial, second.certificates) == (first.id, serials[1], 2)
        again = {"created": NOW - 20, "serial": serials[2]}
        await store.write(lambda tx: Rows(tx, indexes).order("a.test", "b.test", **again))
        [third] = await rows()
        assert (third.id, third.serial, third.certificates) == (first.id, serials[2], 3)
        assert await follower.follow() == 0
        assert not follower.behind


# Rules


def test_suffixes_as_people_write_them() -> None:
    rule = FleetRule(name="r", dns=("*.Pay.test", ".batch.test", "one.test."), owner="o")
    assert rule.dns == ("pay.test", "batch.test", "one.test")
    for bad in ("", "*", "a b.test", "b\u00fccher.test"):
        with pytest.raises(ValueError, match="no suffix"):
            FleetRule(name="r", dns=(bad,), owner="o")
