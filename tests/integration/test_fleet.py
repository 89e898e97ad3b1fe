"""Certificates, questions, failures and revocations become workloads with owners, states and reasons."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from fakes.acme_client import AcmeClient, Issued
from fakes.service import NewClient, RunningService, StartService
from privyseal_acme.protocol.ari import certificate_id
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.store.fleet import LineageRow, find_lineage, lineage_of, members, page_of_lineages

_HOUR = 3600
_RULES = [
    {"name": "payments", "dns": ["pay.test"], "owner": "payments@internal", "criticality": "critical"},
    {"name": "batch", "dns": ["batch.test"], "renews": False},
]


@pytest.fixture(scope="module")
def fleet(service_factory: Callable[[], AbstractContextManager[StartService]]) -> Iterator[RunningService]:
    with service_factory() as start:
        yield start(fleet={"rules": _RULES}, renewal={"poll": _HOUR})


def catch_up(service: RunningService) -> None:
    """What the jobs do, done now."""
    parts = service.service.fleet
    service.call(parts.follower.follow())
    service.call(parts.follower.write_notes())
    service.call(parts.judge.judge())


def workload(service: RunningService, issued: Issued) -> LineageRow:
    catch_up(service)
    row = service.read(lambda tx: lineage_of(tx, serial_text(issued.certificate.serial_number)))
    assert row is not None
    return row


def identifier(service: RunningService, issued: Issued) -> str:
    row = workload(service, issued)
    return certificate_id(bytes.fromhex(row.issuer_id), issued.certificate.serial_number)


def ask(service: RunningService, client: AcmeClient, issued: Issued) -> dict[str, Any]:
    answer = client.request("GET", f"{client.directory['renewalInfo']}/{identifier(service, issued)}")
    assert answer.status == 200
    window: dict[str, Any] = answer.json["suggestedWindow"]
    return window


def workloads_of(service: RunningService, name: str) -> list[LineageRow]:
    catch_up(service)
    rows = service.read(lambda tx: page_of_lineages(tx, count=1000))
    return [row for row in rows if f"dns:{name}" in json.loads(row.names)]


def test_a_first_certificate_begins_a_workload(fleet: RunningService, new_client: NewClient) -> None:
    client = new_client(fleet)
    issued = client.issue("first.test")
    row = workload(fleet, issued)
    assert (row.state, row.certificates, row.usual, row.missed_at) == ("current", 1, 0, 0)
    assert json.loads(row.names) == ["dns:first.test"]
    assert (row.owner, row.criticality, row.renews) == ("", "normal", 1)
    assert row.not_before < row.window_start < row.window_end <= row.deadline < row.not_after


def test_renewals_continue_it_by_replaces_even_under_other_names(fleet: RunningService, new_client: NewClient) -> None:
    client = new_client(fleet)
    first = client.issue("one.grow.test")
    before = workload(fleet, first)
    second = client.issue("one.grow.test", "two.grow.test", replaces=identifier(fleet, first))
    after = workload(fleet, second)
    assert after.id == before.id
    assert (after.certificates, json.loads(after.names)) == (2, ["dns:one.grow.test", "dns:two.grow.test"])
    assert {after.serial, before.serial} == set(fleet.read(lambda tx: members(tx, after.id)))


def test_renewals_continue_it_by_account_and_names(fleet: RunningService, new_client: NewClient) -> None:
    client, other = new_client(fleet), new_client(fleet)
    first, second = client.issue("b.same.test", "a.same.test"), client.issue("a.same.test", "b.same.test")
    foreign, longer = other.issue("a.same.test", "b.same.test"), client.issue("a.same.test")
    ids = [workload(fleet, each).id for each in (first, second, foreign, longer)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_two_that_were_taken_for_one_come_apart(fleet: RunningService, new_client: NewClient) -> None:
    client = new_client(fleet)
    one, two = client.issue("replica.test"), client.issue("replica.test")
    together = workload(fleet, two)
    assert workload(fleet, one).id == together.id
    next_one = client.issue("replica.test", replaces=identifier(fleet, one))
    next_two = client.issue("replica.test", replaces=identifier(fleet, two))
    assert workload(fleet, next_two).id == together.id
    apart = workload(fleet, next_one)
    assert apart.id != together.id
    assert workload(fleet, one).id == apart.id
    assert [workload(fleet, each).certificates for each in (next_one, next_two)] == [2, 2]


def test_owners_come_from_rules_accounts_and_keys(fleet: RunningService, new_client: NewClient) -> None:
    client = new_client(fleet)
    assert workload(fleet, client.issue("api.pay.test")).owner == "payments@internal"
    row = workload(fleet, client.issue("api.pay.test"))
    assert (row.criticality, json.loads(row.sources)) == (
        "critical",
        {"criticality": "rule:payments", "owner": "rule:payments"},
    )
    both = workload(fleet, client.issue("api.pay.test", "elsewhere.test"))
    assert both.owner == ""


def test_critical_ones_are_renewed_earlier(fleet: RunningService, new_client: NewClient) -> None:
    client = new_client(fleet)
    usual, critical = workload(fleet, client.issue("calm.test")), workload(fleet, client.issue("db.pay.test"))
    life = usual.not_after - usual.not_before
    assert usual.window_start >= usual.not_before + life * 0.4
    assert critical.window_end <= critical.not_before + life / 2
    assert critical.window_start < critical.not_before + life * 0.49
    issued = client.issue("db2.pay.test")
    row = workload(fleet, issued)
    assert ask(fleet, client, issued)["start"].startswith("20")
    assert row.criticality == "critical"


def test_an_ordinary_life(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(renewal={"poll": _HOUR})
    client = new_client(service)
    asks, never = client.issue("asks.test"), client.issue("never.test")
    ask(service, client, asks)
    row = workload(service, asks)
    assert row.polled_at == service.clock.now()
    service.clock.advance(row.window_start - service.clock.now())
    client.at_any_time = True
    assert workload(service, asks).state == "due"
    ask(service, client, asks)
    row = workload(service, asks)
    service.clock.advance(row.deadline - service.clock.now() - 1)
    assert workload(service, asks).missed_at == 0
    service.clock.advance(1)
    late = workload(service, asks)
    assert (late.state, late.missed_at) == ("overdue", row.deadline)
    assert late.missed_at < late.not_after
    silent = workload(service, never)
    service.clock.advance(max(0, silent.deadline - service.clock.now()))
    silent = workload(service, never)
    assert (silent.state, silent.polled_at) == ("silent", 0)
    client.fresh_nonce()
    renewed = workload(service, client.issue("asks.test", replaces=identifier(service, asks)))
    assert (renewed.id, renewed.state, renewed.missed_at) == (late.id, "current", 0)
    assert 550 < renewed.usual < 950
    service.clock.advance(silent.not_after - service.clock.now() + 13 * 86400)
    assert workload(service, never).state == "silent"
    service.clock.advance(86400)
    gone = workload(service, never)
    assert (gone.state, gone.missed_at, gone.retired_by) == ("retired", 0, "time")
    client.fresh_nonce()
    back = workload(service, client.issue("never.test"))
    assert (back.id, back.state, back.retired_at) == (gone.id, "current", 0)


def test_what_does_not_renew_is_never_missed(fleet: RunningService, new_client: NewClient) -> None:
    client = new_client(fleet)
    row = workload(fleet, client.issue("job7.batch.test"))
    assert (row.renews, row.state) == (0, "current")
    assert row.next_look >= row.not_before + (row.not_after - row.not_before) * 7 // 24


def test_revoked_until_there_is_another(fleet: RunningService, new_client: NewClient) -> None:
    client = new_client(fleet)
    issued = client.issue("revoked.test")
    workload(fleet, issued)
    assert client.revoke(issued.der).status == 200
    row = workload(fleet, issued)
    assert (row.state, row.missed_at) == ("revoked", 0)
    assert row.revoked_at
    assert row.deadline > fleet.clock.now()
    other = workload(fleet, client.issue("revoked.test"))
    assert (other.id, other.state, other.revoked_at) == (row.id, "current", 0)


def test_given_up_by_its_owner(fleet: RunningService, new_client: NewClient) -> None:
    client = new_client(fleet)
    issued = client.issue("ceased.test")
    assert client.revoke(issued.der, reason=5).status == 200
    assert workload(fleet, issued).state == "retired"


def test_a_refused_order_is_a_failing_workload(fleet: RunningService, new_client: NewClient) -> None:
    client = new_client(fleet)
    assert client.new_order("forbidden.example").status == 400
    assert client.new_order("forbidden.example").status == 400
    (row,) = workloads_of(fleet, "forbidden.example")
    assert (row.state, row.attempts, row.serial, row.certificates) == ("failing", 2, "", 0)
    attempt = json.loads(row.attempt)
    assert (attempt["stage"], attempt["type"], attempt["identifier"]) == (
        "order",
        "rejectedIdentifier",
        "dns:forbidden.example",
    )


def test_a_failed_validation_says_what_was_seen(fleet: RunningService, new_client: NewClient) -> None:
    client = new_client(fleet)
    order = client.order("nothing-there.test")
    url = order.json["authorizations"][0]
    challenge = next(each for each in client.post(url).json["challenges"] if each["type"] == "http-01")
    client.post(challenge["url"], {})
    assert client.poll(url).json["status"] == "invalid"
    (row,) = workloads_of(fleet, "nothing-there.test")
    attempt = json.loads(row.attempt)
    assert (row.state, attempt["stage"], attempt["challenge"]) == ("failing", "validation", "http-01")
    assert attempt["identifier"] == "dns:nothing-there.test"
    assert attempt["seen"]["identifier"] == {"type": "dns", "value": "nothing-there.test"}
    issued = client.issue("nothing-there.test")
    after = workload(fleet, issued)
    assert (after.id, after.state, after.attempts, after.attempt) == (row.id, "current", 0, "")


def test_a_refused_csr_fails_the_workload_that_has_a_certificate(fleet: RunningService, new_client: NewClient) -> None:
    client = new_client(fleet)
    issued = client.issue("csr.test")
    row = workload(fleet, issued)
    fleet.clock.advance(5)
    order = client.ready_order("csr.test")
    assert client.finalize(order, b"no CSR").status == 400
    after = workload(fleet, issued)
    assert (after.id, after.state, after.attempts, after.missed_at) == (row.id, "failing", 1, 0)
    assert json.loads(after.attempt)["type"] == "badCSR"


def test_what_somebody_invents_is_bounded(fleet: RunningService, new_client: NewClient) -> None:
    client = new_client(fleet)
    for number in range(40):
        client.new_order(f"invented-{number}.example")
    catch_up(fleet)
    rows = fleet.read(lambda tx: page_of_lineages(tx, count=1000))
    assert len([row for row in rows if "invented-" in row.names]) == 32


def test_another_account_cannot_make_a_workload_fail(fleet: RunningService, new_client: NewClient) -> None:
    client, other = new_client(fleet), new_client(fleet)
    issued = client.issue("mine.test")
    refused = other.new_order("mine.test", replaces=identifier(fleet, issued))
    assert refused.status == 403
    assert workload(fleet, issued).attempts == 0


def test_followed_once_whatever_happens(fleet: RunningService, new_client: NewClient) -> None:
    client = new_client(fleet)
    row = workload(fleet, client.issue("once.test"))
    assert fleet.call(fleet.service.fleet.follower.follow()) == 0
    assert fleet.read(lambda tx: find_lineage(tx, row.id)) == row


def test_what_is_over_is_forgotten_in_the_end(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(fleet={"retire_after": 86400, "forget_after": 3 * 86400})
    client = new_client(service)
    issued = client.issue("gone.test")
    client.new_order("never-had-one.example")
    row = workload(service, issued)
    assert len(workloads_of(service, "never-had-one.example")) == 1
    service.clock.advance(row.not_after + 86400 - service.clock.now())
    assert workload(service, issued).state == "retired"
    assert workloads_of(service, "never-had-one.example") == []
    service.clock.advance(3 * 86400 - 1)
    assert workload(service, issued).id == row.id
    service.clock.advance(1)
    assert workloads_of(service, "gone.test") == []
    assert service.read(lambda tx: members(tx, row.id)) == []
