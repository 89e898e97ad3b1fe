"""The rules of ``deploy/prometheus`` in Debian's Prometheus, which scrapes a real service: a token outage and what it is told by.

Everything goes eighty times faster than the rules say: a minute takes three quarters of a second.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from fakes.acme_client import AcmeClient
from fakes.dns import LOOPBACK, Knot
from fakes.http01 import Http01
from fakes.prometheus import FOLDER, Prometheus, installed
from fakes.shim_server import Order, ShimServer, wait_until

pytestmark = pytest.mark.skipif(not installed(), reason="needs prometheus")

HURRY = 80
#: Longer than what the longest `for` of a page that follows from an outage becomes, in seconds; and longer than that and the
#: time for which it is kept silent after the outage.
OUTAGE = 4
AFTERWARDS = 8
RULES = ("recording.yml", "page.yml", "ticket.yml")
TOKEN = "PrivySealTokenUnavailable"
#: What would be said about issuance if nothing were known of the token, in the words of the rule.
BURNING = """
    job:privyseal_issuance_errors:ratio_rate5m > 14.4 * 0.0005 and job:privyseal_issuance_errors:ratio_rate1h > 14.4 * 0.0005
"""


class Load:
    """Orders without end, on a thread of their own. While the token is away they wait, and are fetched afterwards."""

    def __init__(self, client: AcmeClient, server: ShimServer) -> None:
        self.issued = 0
        self.parked: list[Order] = []
        self._client = client
        self._server = server
        self._ending = threading.Event()
        self._errors: list[BaseException] = []

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """Orders are made, and readiness is asked for as often as the hurry wants it."""
        threads = [threading.Thread(target=self._insist, args=(work,)) for work in (self._order, self._look)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._ending.set()
            for thread in threads:
                thread.join(30)
        assert not self._errors

    def _insist(self, work: Callable[[int], None]) -> None:
        numbers = itertools.count()
        try:
            while not self._ending.is_set():
                work(next(numbers))
        except BaseException as error:  # noqa: BLE001 (raised on the test's own thread)
            self._errors.append(error)

    def _order(self, number: int) -> None:
        order = Order(self._client, f"load{number}.test")
        answer = order.finalize()
        if answer.json["status"] == "valid":
            self.issued += 1
        else:
            assert answer.json["status"] == "processing", answer.body
            self.parked.append(order)

    def _look(self, _: int) -> None:
        # The service itself looks every ten seconds, which here are ten minutes.
        self._server.parts()
        self._ending.wait(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, dns_server: Knot, http01: Http01) -> Iterator[ShimServer]:
    """A home that is made and served by :func:`prometheus`."""
    settings = {
        "VALIDATION__RESOLVERS": f'["{dns_server.address}"]',
        "VALIDATION__HTTP_PORT": str(http01.port),
        "HSM__TIMEOUT": "1",
        "ACME__FINALIZE_WAIT": "0.4",
        "STATUS__WATCH_INTERVAL": "1",
    }
    server = ShimServer(tmp_path_factory.mktemp("live"), settings)
    server.settings["SERVER__HTTP_URL"] = server.http_url
    yield server
    server.close()


@pytest.fixture(scope="module")
def scraping(tmp_path_factory: pytest.TempPathFactory, server: ShimServer) -> Iterator[Prometheus]:
    """The service, scraped."""
    # It takes five seconds until Prometheus scrapes at all, in which the service is made and started.
    running = Prometheus(
        tmp_path_factory.mktemp("prometheus"), {"privyseal": [f"{LOOPBACK}:{server.http_port}"]}, hurry=HURRY
    )
    try:
        server.init()
        server.start()
        running.wait_until_scraped()
        yield running
    finally:
        running.stop()


@pytest.fixture
def prometheus(scraping: Prometheus, server: ShimServer) -> Iterator[Prometheus]:
    """The service, scraped, with a token that can be used at the end."""
    yield scraping
    server.shim.lift()


def rules_of(path: Path) -> list[str]:
    """The names of what a file of rules records, or alerts about."""
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    return [rule.get("alert") or rule["record"] for group in groups for rule in group["rules"]]


def test_the_rules_load_and_a_token_outage_is_told_by_one_alert(
    prometheus: Prometheus, server: ShimServer, http01: Http01
) -> None:
    loaded = sorted(rule["name"] for group in prometheus.groups() for rule in group["rules"])
    assert loaded == sorted(name for file in RULES for name in rules_of(FOLDER / file))
    client = AcmeClient(server.directory, server.roots, http01=http01)
    client.register()
    load = Load(client, server)
    with load.running():
        # All is well: certificates are issued, what is recorded has values, and nothing is told.
        prometheus.wait_until(
            "certificates are issued", lambda: prometheus.query("job:privyseal_certificates_issued:rate5m > 0")
        )
        prometheus.wait_until(
            "nothing fails", lambda: prometheus.query("job:privyseal_issuance_errors:ratio_rate5m == 0")
        )
        assert prometheus.value('job_stage:privyseal_stage_seconds:p95_rate5m{stage="request"}') > 0
        assert prometheus.unhealthy() == []
        # Until the watcher has looked for the first time, its alert is pending.
        prometheus.wait_until("nothing is told", lambda: not prometheus.alerts())

        begun = time.time()
        server.shim.take_away()
        prometheus.wait_until("the alert fires", prometheus.firing)
        # The outage lasts until every page that is not kept silent by the rules would have fired.
        prometheus.wait_until(
            "issuance burns its budget",
            lambda: prometheus.value(f"count_over_time(({BURNING})[20s:250ms])") > OUTAGE * 4,
        )
        (alert,) = prometheus.alerts("firing")
        assert alert.name == TOKEN
        assert alert.labels["severity"] == "page"
        assert alert.labels["instance"] == f"{LOOPBACK}:{server.http_port}"
        assert alert.annotations["runbook_url"] == f"docs/runbooks/{TOKEN}.md"
        assert alert.annotations["summary"] == f"privyseal {LOOPBACK}:{server.http_port} cannot use its token"

        issued = load.issued
        server.shim.bring_back()
        prometheus.wait_until("the alert resolves", lambda: not prometheus.firing())
        wait_until("certificates are issued again", lambda: load.issued > issued)
        # Longer than what follows from the outage is kept silent: it has really ended by then.
        prometheus.wait_until(
            "nothing comes after",
            lambda: prometheus.query(f'absent_over_time(ALERTS{{alertname="{TOKEN}"}}[{AFTERWARDS}s])'),
        )
    assert prometheus.fired(begun) == {TOKEN}
    assert prometheus.alerts("firing") == []
    assert load.parked
    assert all(order.finish() for order in load.parked)
    client.close()


def test_a_server_that_is_gone_is_told(prometheus: Prometheus, server: ShimServer) -> None:
    server.stop()
    prometheus.wait_until("the alert fires", lambda: "PrivySealDown" in prometheus.firing())
    (alert,) = (alert for alert in prometheus.alerts("firing") if alert.name == "PrivySealDown")
    assert alert.labels["severity"] == "page"
    assert alert.annotations["summary"] == f"privyseal {LOOPBACK}:{server.http_port} does not answer"
    server.start()
    prometheus.wait_until("the alert resolves", lambda: "PrivySealDown" not in prometheus.firing())
