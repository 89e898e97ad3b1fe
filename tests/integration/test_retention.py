"""What has ended goes when its time is over, and nothing else: the sweep of orders and authorizations, on both databases."""

import asyncio
import itertools
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from time import monotonic, sleep
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from sqlalchemy import bindparam, select, text, update
from sqlmodel import SQLModel

from fakes.acme_client import AcmeClient, make_csr
from fakes.dns import Knot
from fakes.home import MakeSettings
from fakes.http01 import Http01
from fakes.issued import issue_row
from fakes.ocsp_desk import BOTH, settings_on
from fakes.promises import check_promises
from fakes.service import FakeClock, NewClient, RunningService, StartService, serving
from fakes.store_faults import FaultyBackend, open_faulty, raising
from privyseal_acme.flow import retention as flow
from privyseal_acme.flow.retention import Retention, Swept
from privyseal_acme.protocol.ari import certificate_id
from privyseal_acme.protocol.urls import new_resource_id
from privyseal_acme.store import retention as statements
from privyseal_acme.store.authorizations import AuthorizationRow, add_authorization
from privyseal_acme.store.orders import OrderRow, add_order, finish
from privyseal_acme.store.tables import Authorization, Order
from privyseal_ca.config import Settings
from privyseal_ca.errors import StoreUnavailableError
from privyseal_ca.sections import RetentionSettings
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.telemetry.metrics import Metrics

DAY = 86_400
KEPT = 2 * DAY
START = 1_800_000_000
KEY_ID = bytes(range(20))
_numbers = itertools.count(1)
_order: Any = Order.__table__  # type: ignore[attr-defined]
_ORDERS = Statement(select(_order.c.id).order_by(_order.c.id))
_AUTHORIZATIONS = Statement(select(Authorization.__table__.c.id).order_by(Authorization.__table__.c.id))  # type: ignore[attr-defined]
_OLD_ROWS = Statement(update(_order).values(retained_from=0))
_RETAINED_FROM = Statement(select(_order.c.retained_from).where(_order.c.id == bindparam("wanted")))


def _retained_from(transaction: Transaction, order_id: str) -> int:
    row = transaction.one(_RETAINED_FROM, wanted=order_id)
    assert row is not None
    return int(row[0])


class Rows:
    """Orders and authorizations that no client asked for, in a database without a service."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = FakeClock(START)
        self.metrics = Metrics()
        self.backend = FaultyBackend(url)
        self.store = open_faulty(self.backend)

    def retention(self, store: Store | None = None) -> Retention:
        settings = RetentionSettings(orders=KEPT, authorizations=KEPT)
        return Retention(store=store or self.store, settings=settings, clock=self.clock, metrics=self.metrics)

    async def sweep_at(self, moment: int) -> Swept:
        self.clock.advance(moment - self.clock.now())
        return await self.retention().sweep()

    @staticmethod
    def order_row(state: str, *, expires: int, replaces: str | None = None, serial: int | None = None) -> OrderRow:
        return OrderRow(
            id=new_resource_id(START, next(_numbers).to_bytes(12, "big")),
            account_id="a",
            state=state,
            created=START - DAY,
            expires=expires,
            identifiers='[["dns","a.test"]]',
            authorizations="[]",
            profile="mtls",
            not_before=None,
            not_after=None,
            replaces=replaces,
            csr=None,
            serial=None if serial is None else f"{serial:032x}",
            error=None,
            correlation="tests",
        )

    async def order(
        self, state: str, *, expires: int, replaces: str | None = None, certificate: tuple[int, int] | None = None
    ) -> str:
        """``certificate`` is a serial, and when it ends."""
        row = self.order_row(state, expires=expires, replaces=replaces, serial=certificate and certificate[0])

        def unit(transaction: Transaction) -> None:
            add_order(transaction, row)
            if certificate is not None:
                serial, ends = certificate
                issue_row(transaction, serial, now=START, lifetime=ends - START, issuer_id=KEY_ID.hex())

        await self.store.write(unit)
        return row.id

    async def many(self, count: int, *, expires: int) -> None:
        def unit(transaction: Transaction) -> None:
            for _ in range(count):
                add_order(transaction, self.order_row("open", expires=expires))
                add_authorization(transaction, self.authorization_row("processing", expires=expires))

        await self.store.write(unit)

    @staticmethod
    def authorization_row(state: str, *, expires: int) -> AuthorizationRow:
        return AuthorizationRow(
            id=new_resource_id(START, next(_numbers).to_bytes(12, "big")),
            account_id="a",
            identifier_type="dns",
            value="a.test",
            wildcard=0,
            state=state,
            created=START - DAY,
            expires=expires,
            reusable=0,
            seed=bytes(16),
            attempted=None,
            validated=None,
            error=None,
            correlation="tests",
        )

    async def authorization(self, state: str, *, expires: int) -> str:
        row = self.authorization_row(state, expires=expires)
        await self.store.write(lambda tx: add_authorization(tx, row))
        return row.id

    async def ids(self, statement: Statement = _ORDERS) -> list[str]:
        return [row[0] for row in await self.store.read(lambda tx: tx.all(statement))]

    def figure(self, name: str, what: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"what": what})


@pytest_asyncio.fixture
async def rows(migrated_url: str) -> AsyncIterator[Rows]:
    rows = Rows(migrated_url)
    await rows.store.open()
    yield rows
    await rows.store.close()


@pytest.mark.parametrize("state", ["open", "invalid"])
async def test_an_order_goes_to_the_second(rows: Rows, state: str) -> None:
    order = await rows.order(state, expires=START)
    assert await rows.sweep_at(START + KEPT - 1) == Swept(0, 0, True)
    assert await rows.ids() == [order]
    assert await rows.sweep_at(START + KEPT) == Swept(1, 0, True)
    assert await rows.sweep_at(START + KEPT) == Swept(0, 0, True)
    assert await rows.ids() == []
    assert rows.figure("privyseal_swept_total", "orders") == 1


async def test_an_order_with_a_certificate_outlives_it(rows: Rows) -> None:
    await rows.order("valid", expires=START, certificate=(1, START + 10 * DAY))
    assert await rows.sweep_at(START + KEPT) == Swept(0, 0, True)
    # It is not looked at again before its time, and is not counted as work that waits.
    latest = START + 10 * DAY - 1
    assert await rows.store.read(lambda tx: statements.count_due_orders(tx, before=latest, most=9)) == 0
    assert rows.figure("privyseal_retention_backlog", "orders") == 0
    assert await rows.sweep_at(START + 10 * DAY + KEPT - 1) == Swept(0, 0, True)
    assert await rows.sweep_at(START + 10 * DAY + KEPT) == Swept(1, 0, True)


async def test_an_order_stays_while_what_it_replaced_could_be_replaced_again(rows: Rows) -> None:
    first = await rows.order("valid", expires=START, certificate=(1, START + 20 * DAY))
    second = await rows.order("valid", expires=START, certificate=(2, START + DAY), replaces=certificate_id(KEY_ID, 1))
    # One that failed is no reason to refuse another.
    await rows.order("invalid", expires=START, replaces=certificate_id(KEY_ID, 1))
    assert await rows.sweep_at(START + 20 * DAY + KEPT - 1) == Swept(1, 0, True)
    assert await rows.ids() == sorted([first, second])
    assert await rows.sweep_at(START + 20 * DAY + KEPT) == Swept(2, 0, True)


async def test_an_order_that_waits_for_its_certificate_stays_however_long(rows: Rows) -> None:
    order = await rows.order("processing", expires=START)
    for moment in (START + KEPT, START + 2 * KEPT, START + 100 * DAY):
        assert await rows.sweep_at(moment) == Swept(0, 0, True)
    serial = f"{7:032x}"

    def end(transaction: Transaction) -> bool:
        issue_row(transaction, 7, now=START + 100 * DAY, lifetime=DAY)
        return finish(transaction, order, serial)

    assert await rows.store.write(end)
    assert await rows.sweep_at(START + 101 * DAY + KEPT - 1) == Swept(0, 0, True)
    assert await rows.sweep_at(START + 101 * DAY + KEPT) == Swept(1, 0, True)


async def test_a_change_of_the_settings_counts_for_what_is_there(rows: Rows) -> None:
    await rows.order("valid", expires=START, certificate=(1, START + DAY))
    await rows.sweep_at(START + KEPT)
    for orders, expected in ((100 * DAY, 0), (DAY, 1)):
        settings = RetentionSettings(orders=orders)
        sweeper = Retention(store=rows.store, settings=settings, clock=rows.clock, metrics=rows.metrics)
        assert (await sweeper.sweep()).orders == expected


async def test_rows_from_before_are_looked_at_once(rows: Rows) -> None:
    alive = await rows.order("open", expires=START + DAY)
    issued = await rows.order("valid", expires=START - 30 * DAY, certificate=(1, START + 10 * DAY))
    await rows.order("invalid", expires=START - KEPT)
    await rows.store.write(lambda tx: tx.execute(_OLD_ROWS))
    assert await rows.sweep_at(START) == Swept(1, 0, True)
    assert await rows.ids() == sorted([alive, issued])
    found = [await rows.store.read(partial(_retained_from, order_id=each)) for each in (alive, issued)]
    assert found == [START + DAY, START + 10 * DAY]


@pytest.mark.parametrize("state", ["pending", "valid", "invalid", "deactivated"])
async def test_an_authorization_goes_to_the_second(rows: Rows, state: str) -> None:
    await rows.authorization(state, expires=START)
    kept = [await rows.authorization("processing", expires=START), await rows.authorization(state, expires=START + 1)]
    assert await rows.sweep_at(START + KEPT - 1) == Swept(0, 0, True)
    assert await rows.sweep_at(START + KEPT) == Swept(0, 1, True)
    assert await rows.ids(_AUTHORIZATIONS) == sorted(kept)
    assert rows.figure("privyseal_swept_total", "authorizations") == 1


async def test_a_sweep_is_bounded_and_the_next_goes_on(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "_BATCHES", 2)
    await rows.many(250, expires=START)
    kept = await rows.order("open", expires=START + 1)
    assert await rows.sweep_at(START + KEPT) == Swept(200, 0, False)
    assert rows.figure("privyseal_retention_backlog", "orders") == 50
    assert await rows.sweep_at(START + KEPT) == Swept(50, 0, True)
    assert rows.figure("privyseal_retention_backlog", "orders") == 0
    assert await rows.ids() == [kept]


async def test_nothing_else_changes(rows: Rows) -> None:
    """Every table, row by row."""
    await rows.many(5, expires=START)
    gone = await rows.ids()
    for number, state in enumerate(("valid", "valid", "open", "invalid", "processing")):
        certificate = (number + 1, START + 10 * DAY) if state == "valid" else None
        await rows.order(state, expires=START + 1, certificate=certificate)
        await rows.authorization("valid", expires=START + 1)
    everything = {table.name: Statement(select(table)) for table in SQLModel.metadata.sorted_tables}

    async def content() -> dict[str, set[Any]]:
        return await rows.store.read(lambda tx: {name: set(tx.all(each)) for name, each in everything.items()})

    before = await content()
    assert await rows.sweep_at(START + KEPT) == Swept(5, 0, True)
    before["acme_order"] = {row for row in before["acme_order"] if row[0] not in gone}
    assert await content() == before


async def test_no_unit_of_work_removes_more_than_a_batch(rows: Rows) -> None:
    await rows.many(230, expires=START)
    rows.backend.counts.clear()
    assert await rows.sweep_at(START + KEPT) == Swept(230, 0, True)
    assert rows.backend.counts["COMMIT"] == 3 + 1  # and one that finds no authorizations


@pytest.mark.parametrize("persisted", [False, True], ids=["lost", "stored"])
async def test_stopped_half_way(rows: Rows, persisted: bool) -> None:
    """The second commit fails, before or after it was written: what is due is swept once, and nothing else."""
    await rows.many(230, expires=START)
    # The first that is looked at.
    kept = await rows.order("valid", expires=START - 1, certificate=(1, START + 10 * DAY))
    commits = itertools.count(1)
    fail = raising(rows.backend.errors("the disk failed"))
    hooks = rows.backend.after if persisted else rows.backend.before
    hooks["COMMIT"] = lambda: fail() if next(commits) == 2 else None
    with pytest.raises(StoreUnavailableError):
        await rows.sweep_at(START + KEPT)
    left = len(await rows.ids())
    assert left == 231 - (199 if persisted else 99)
    assert await rows.sweep_at(START + KEPT) == Swept(left - 1, 0, True)
    assert await rows.ids() == [kept]


async def test_two_sweepers_beside_each_other(rows: Rows) -> None:
    await rows.many(300, expires=START)
    kept = [await rows.order("valid", expires=START, certificate=(n, START + 10 * DAY)) for n in range(1, 4)]
    authorizations = [await rows.authorization("valid", expires=START) for _ in range(120)]
    rows.clock.advance(KEPT)
    other = Store(backend_for(rows.url, durable=True, timeout=5), queue=64)
    await other.open()
    try:
        results = await asyncio.gather(*(rows.retention(store).sweep() for store in (rows.store, other)))
    finally:
        await other.close()
    again = await rows.retention().sweep()
    assert sum(each.orders for each in (*results, again)) == 300
    assert sum(each.authorizations for each in (*results, again)) == len(authorizations)
    assert await rows.ids() == sorted(kept)


async def test_no_round_looks_at_what_is_not_due(rows: Rows) -> None:
    """EXPLAIN: every statement of a round goes by an index."""
    for expires in (START - 1000 * DAY, START, START + 1, START + 1000 * DAY):
        await rows.many(500, expires=expires)
    connection = backend_for(rows.url, durable=True, timeout=5).connect(writing=True)
    sqlite = rows.url.startswith("sqlite")
    try:
        if not sqlite:
            connection.execute("ANALYZE")
        for statement in (
            statements._DUE_ORDERS,
            statements._COUNT_ORDERS,
            statements._DUE_AUTHORIZATIONS,
            statements._COUNT_AUTHORIZATIONS,
            statements._REMOVE_ORDERS,
            statements._REMOVE_AUTHORIZATIONS,
        ):
            parameters = {"before": START, "count": 100, "most": 100, **dict.fromkeys(statements._IDS, "")}
            sql, given = statement.prepare(rows.backend.dialect, parameters)
            plan = str(connection.execute(f"EXPLAIN {'QUERY PLAN ' if sqlite else ''}{sql}", given).fetchall())
            for scan in ("SCAN acme", "SCAN cert", "TEMP B-TREE", "Seq Scan on acme", "Sort"):
                assert scan not in plan, plan
    finally:
        connection.close()


@pytest.fixture(params=BOTH)
def service(
    request: pytest.FixtureRequest, make_settings: MakeSettings, dns_server: Knot, http01: Http01
) -> Iterator[RunningService]:
    """A service whose own certificate lasts for all of a test: TLS is verified by the machine's clock.

    It keeps everything for longer than a test looks ahead; tests sweep with times of their own.
    """

    def make() -> Settings:
        return make_settings(
            acme={"order_lifetime": 3600, "authorization_lifetime": 7200},
            server={"tls_lifetime": 30 * DAY},
            validation={"resolvers": (dns_server.address,), "http_port": http01.port},
        )

    with serving(settings_on(request, make)) as running:
        yield running


def sweep(service: RunningService) -> Swept:
    return service.call(retention_of(service).sweep())


def retention_of(service: RunningService) -> Retention:
    settings = RetentionSettings(orders=DAY, authorizations=DAY)
    return Retention(store=service.service.context.store, settings=settings, clock=service.clock, metrics=Metrics())


def later(service: RunningService, client: AcmeClient, seconds: int) -> None:
    """Turn the clock; the nonce that the client has is too old then."""
    service.clock.advance(seconds)
    client.nonce = None


def ends(service: RunningService, seconds: int) -> str:
    return datetime.fromtimestamp(service.clock.now() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ari_id(certificate: x509.Certificate) -> str:
    key_id = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert key_id is not None
    return certificate_id(key_id, certificate.serial_number)


def kept_for_ever(service: RunningService) -> dict[str, set[Any]]:
    """The rows that nothing changes or removes; a service that works adds to them."""
    state = service.state()
    names = ("acme_account", "eab_key", "certificate", "revocation", "ledger_entry", "issuer", "blocked_key", "secret")
    return {name: set(state[name]) for name in names}


def statuses(client: AcmeClient, urls: Sequence[str]) -> list[int]:
    return [client.post(url).status for url in urls]


def test_as_clients_see_it(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service)
    first = client.issue("one.test", notAfter=ends(service, 6 * DAY))
    second = client.issue("one.test", notAfter=ends(service, 7200), replaces=ari_id(first.certificate))
    client.revoke(second.der)
    pending, ready, given_up = client.order("two.test"), client.ready_order("three.test"), client.order("four.test")
    assert client.post(given_up.json["authorizations"][0], {"status": "deactivated"}).status == 200
    kept = [first.url, second.url]
    gone = [order.headers["Location"] for order in (pending, ready, given_up)]
    later(service, client, 3600 + DAY - 1)
    before, orders = kept_for_ever(service), service.state()["acme_order"]
    assert sweep(service).orders == 0
    assert statuses(client, [*kept, *gone]) == [200] * 5
    assert service.state()["acme_order"] == orders

    later(service, client, 1)
    assert sweep(service).orders == 3
    after = kept_for_ever(service)
    assert all(rows <= after[name] for name, rows in before.items())
    assert statuses(client, kept) == [200, 200]
    for url in gone:
        assert client.post(url).refusal == (404, "malformed")
    assert client.finalize(ready, make_csr(["three.test"], first.key)).refusal == (404, "malformed")
    # What was never there looks the same.
    assert client.post(gone[0][:-4] + "AAAA").json["detail"] == client.post(gone[0]).json["detail"]
    listed = client.post(client.post(client.account or "").json["orders"]).json["orders"]
    assert sorted(listed) == sorted(kept)

    # The certificate that was replaced lives longer than the one that replaced it: its order is still the reason to refuse.
    later(service, client, 2 * DAY)
    assert sweep(service).orders == 0
    again = client.new_order("one.test", replaces=ari_id(first.certificate))
    assert again.refusal == (409, "alreadyReplaced")

    later(service, client, 4 * DAY)
    assert sweep(service).orders == 2
    assert statuses(client, kept) == [404, 404]
    # Certificates are kept for ever, under the same URL, with their revocation.
    for issued in (first, second):
        assert client.download(issued.order.json["certificate"])[0] == issued.certificate
        assert client.request("GET", f"{client.directory['renewalInfo']}/{ari_id(issued.certificate)}").status == 200
    assert client.revoke(second.der).refusal == (400, "alreadyRevoked")
    assert client.issue("five.test").certificate
    client.close()
    service.stop()
    check_promises(service.settings.database_url)


def test_the_service_sweeps_by_itself(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(acme={"order_lifetime": 3600}, retention={"orders": DAY}, server={"tls_lifetime": 30 * DAY})
    client = new_client(service)
    order = client.order("one.test")
    later(service, client, 3600 + DAY)
    deadline = monotonic() + 20
    while (answer := client.post(order.headers["Location"])).status == 200:
        assert monotonic() < deadline
        sleep(0.05)
    assert answer.refusal == (404, "malformed")
    # Authorizations are kept for as long as the settings say of them.
    assert client.post(order.json["authorizations"][0]).status == 200
    with urllib.request.urlopen(f"{service.status}/metrics", timeout=5) as page:  # noqa: S310
        assert 'privyseal_swept_total{what="orders"} 1.0' in page.read().decode()


def test_an_authorization_that_counts_is_left(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service)
    made = client.post(client.directory["newAuthz"], {"identifier": {"type": "dns", "value": "early.test"}})
    url = made.headers["Location"]
    client.authorize(url)
    later(service, client, 7200 - 61)
    assert sweep(service) == Swept(0, 0, True)
    assert client.order("early.test").json["status"] == "ready"
    later(service, client, 61 + DAY)
    assert sweep(service).authorizations >= 1
    assert client.post(url).refusal == (404, "malformed")
    assert client.order("early.test").json["status"] == "pending"


def test_an_account_with_swept_orders_is_deactivated(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service)
    old = client.order("one.test")
    later(service, client, 3600 + DAY)
    sweep(service)
    new = client.order("two.test")
    assert client.post(client.account or "", {"status": "deactivated"}).status == 200
    assert client.post(old.headers["Location"]).refusal == (401, "unauthorized")
    later(service, client, 3600 + DAY)
    assert sweep(service).orders == 1
    assert new.json["status"] == "pending"
    assert len(service.state()["acme_account"]) >= 1


def test_orders_go_on_while_much_is_swept(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service)
    template = client.order("old.test").headers["Location"].rpartition("/")[2]
    columns = ", ".join(column.name for column in _order.columns if column.name != "id")
    copy = f"INSERT INTO acme_order (id, {columns}) SELECT :new_id, {columns} FROM acme_order WHERE id = :old_id"  # noqa: S608
    statement = Statement(text(copy))

    def fill(transaction: Transaction) -> None:
        for number in range(2000):
            transaction.execute(statement, new_id=f"old-{number}", old_id=template)

    service.write(fill)
    later(service, client, 3600 + DAY)
    sweeping: Future[Swept] = asyncio.run_coroutine_threadsafe(retention_of(service).sweep(), service._loop)
    issued = [client.issue(f"new-{number}.test") for number in range(3)]
    assert sweeping.result(30) == Swept(2001, 1, True)
    assert statuses(client, [each.url for each in issued]) == [200] * 3
    client.close()
    service.stop()
    check_promises(service.settings.database_url)
