"""The end may come at any step between finalize and its answer: promise P4 holds after the next start.

Every case is the real service in a process of its own that is killed by SIGKILL, and started again from what it left.
"""

import http.client
import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.acme_client import AcmeClient, Response, make_csr
from fakes.dns import Knot
from fakes.home import MakeSettings
from fakes.http01 import Http01
from fakes.killed import STEPS, killed_service
from fakes.postgresql import Postgresql, copy_to_postgresql
from fakes.promises import History, check_promises
from fakes.service import serving
from privyseal_ca.config import Settings

Connect = Callable[[Settings], AcmeClient]
_numbers = itertools.count(1)
#: What a client sees whose server ends.
LOST = (OSError, http.client.HTTPException)
#: The steps at which an intent is durable without its certificate, which costs a serial.
COSTLY = set(STEPS) - {"before-intent-commit", "after-final-commit", "before-answer"}


@pytest.fixture
def settings(make_settings: MakeSettings, dns_server: Knot, http01: Http01) -> Settings:
    return make_settings(validation={"resolvers": (dns_server.address,), "http_port": http01.port})


@pytest.fixture
def postgresql_settings(settings: Settings, postgresql: Postgresql) -> Settings:
    """The same authority on PostgreSQL."""
    url = copy_to_postgresql(settings.database_url, postgresql)
    return settings.model_copy(update={"database": settings.database.model_copy(update={"url": url})})


@pytest.fixture
def connect(http01: Http01) -> Iterator[Connect]:
    """Makes clients with accounts."""
    with ExitStack() as stack:

        def make(settings: Settings) -> AcmeClient:
            directory = f"{settings.server.public_https}/acme/directory"
            client = AcmeClient(directory, settings.home / "roots.pem", http01=http01)
            stack.callback(client.close)
            client.register()
            return client

        yield make


class Attempt:
    """One order of a client whose only answer to anything is to try again."""

    def __init__(self, client: AcmeClient) -> None:
        self.client = client
        self.name = f"killed-{next(_numbers)}.test"
        self.order = client.ready_order(self.name)
        self.url = self.order.headers["Location"]
        self.csr = make_csr([self.name], ec.generate_private_key(ec.SECP256R1()))

    def finalize(self) -> Response:
        return self.client.finalize(self.order, self.csr)

    def finish(self) -> x509.Certificate:
        """Poll; finalize again only where the order says that it is ready."""
        answer = self.client.poll(self.url, ("processing",))
        if answer.json["status"] == "ready":
            assert self.finalize().status == 200
            answer = self.client.poll(self.url, ("processing",))
        assert answer.json["status"] == "valid", answer.body
        return self.client.download(answer.json["certificate"])[0]

    def history(self, histories: dict[str, History]) -> History:
        return histories[self.url.rpartition("/")[2]]


def killed_once(settings: Settings, connect: Connect, step: str) -> Attempt:
    """An order whose finalize met the end of the service at ``step``."""
    with killed_service(settings, step) as service:
        attempt = Attempt(connect(settings))
        with pytest.raises(LOST):
            attempt.finalize()
        service.wait_until_killed()
    return attempt


def check_finish(settings: Settings, attempt: Attempt, *, abandoned: int) -> None:
    """After a start, the client finishes, what it gets is recorded, and everything else is closed."""
    with serving(settings):
        certificate = attempt.finish()
        assert attempt.finalize().json["status"] == "valid"
        assert attempt.finish() == certificate
        attempt.client.close()
    report, histories = check_promises(settings.database_url)
    history = attempt.history(histories)
    assert history.certificate is not None
    assert int(history.certificate.serial, 16) == certificate.serial_number
    assert len(history.abandoned) == abandoned
    assert report.abandoned == abandoned


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step(settings: Settings, connect: Connect, step: str) -> None:
    attempt = killed_once(settings, connect, step)
    check_finish(settings, attempt, abandoned=int(step in COSTLY))


@pytest.mark.postgresql
@pytest.mark.parametrize("step", ["after-intent-commit", "before-final-commit", "after-final-commit"])
def test_killed_on_postgresql(postgresql_settings: Settings, connect: Connect, step: str) -> None:
    attempt = killed_once(postgresql_settings, connect, step)
    check_finish(postgresql_settings, attempt, abandoned=int(step in COSTLY))


@pytest.mark.parametrize(
    "steps",
    [
        ("after-intent-commit", "after-sign", "before-final-commit"),
        ("before-sign", "after-final-commit"),
    ],
)
def test_killed_again_while_it_recovers(settings: Settings, connect: Connect, steps: tuple[str, ...]) -> None:
    """Nobody asks for anything: the order that was left is taken up by every start, and ends each of them."""
    attempt = killed_once(settings, connect, steps[0])
    for step in steps[1:]:
        with killed_service(settings, step, wait=False) as service:
            service.wait_until_killed()
    check_finish(settings, attempt, abandoned=len(COSTLY & set(steps)))


def test_killed_at_any_moment_under_load(settings: Settings, connect: Connect) -> None:
    """Many clients, several ends at moments that nobody chose, and nothing is lost or given out twice."""
    rounds, clients = 3, 4
    chance = random.Random(20261121)  # noqa: S311 (a moment, not a secret)
    attempts: list[Attempt] = []
    with ThreadPoolExecutor(clients) as pool:
        for _ in range(rounds):
            stop = Event()

            def work(stop: Event = stop) -> list[Attempt]:
                made = []
                try:
                    client = connect(settings)
                    while not stop.is_set():
                        made.append(Attempt(client))
                        made[-1].finalize()
                except (*LOST, AssertionError):
                    stop.set()
                return made

            with killed_service(settings, "never") as service:
                working = [pool.submit(work) for _ in range(clients)]
                service.kill_after(orders=chance.randint(3, 12))
            for future in working:
                attempts += future.result()
    with serving(settings):
        issued = [attempt.finish() for attempt in attempts]
        for attempt in attempts:
            attempt.client.close()
    report, histories = check_promises(settings.database_url)
    assert len(issued) >= rounds
    for attempt, certificate in zip(attempts, issued, strict=True):
        history = attempt.history(histories)
        assert history.certificate is not None
        assert int(history.certificate.serial, 16) == certificate.serial_number
    assert report.abandoned == sum(len(history.abandoned) for history in histories.values())
