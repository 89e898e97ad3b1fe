"""The whole service in this process, on a thread and an event loop of its own, with a clock that tests turn.

Everything is real: TLS, SQLite, the token, the resolver (a Knot DNS that answers every name under ``test`` with 127.0.0.1)
and the validations; only the clock is a :class:`FakeClock`. Fixtures:

``service``
    one :class:`RunningService` with the usual settings, shared by the tests of a module. Whoever turns its clock or counts
    its rows takes ``fresh_service``, or makes accounts and names of their own.
``fresh_service``
    one for a single test.
``client`` and ``fresh_client``
    an account at either of them; ``new_client(service)`` makes more.
``start_service``
    a factory, ``start_service(acme={...}, validation={...})``, whose services end with the test.

Tests are synchronous: :mod:`fakes.acme_client` talks to the service over TLS as any client would, and
:meth:`RunningService.read` looks into the database behind its back.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from sqlalchemy import select
from sqlmodel import SQLModel

from fakes.acme_client import AcmeClient, JwsKey
from fakes.dns import Knot, knot
from fakes.home import MakeSettings
from fakes.http01 import Http01, http01_responder
from privyseal_acme.flow.eab import EabKeys, NewEabKey
from privyseal_acme.service import Parts, Service, running
from privyseal_ca.config import ROOTS_FILE, Settings
from privyseal_ca.ledger.entries import decode_entry
from privyseal_ca.ledger.log import entries
from privyseal_ca.store.statement import Statement, Transaction

T = TypeVar("T")
StartService = Callable[..., "RunningService"]
NewClient = Callable[..., AcmeClient]

_PATIENCE = 60


class FakeClock:
    """Stands still until it is turned. It begins with the present, for TLS is verified by the machine's clock."""

    def __init__(self, start: float | None = None) -> None:
        self._now = float(int(time.time() if start is None else start))

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds


class RunningService:
    """A service that runs on its own thread."""

    def __init__(self, settings: Settings, parts: Parts, clock: FakeClock) -> None:
        self.settings = settings
        self.clock = clock
        self.service: Service
        self._parts = parts
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="service", daemon=True)

    @property
    def directory(self) -> str:
        """The URL of the ACME directory."""
        return f"{self.settings.server.public_https}/acme/directory"

    @property
    def status(self) -> str:
        """The base URL of the plain listener."""
        return self.settings.server.public_http

    @property
    def roots(self) -> Path:
        """The trust anchors."""
        return self.settings.home / ROOTS_FILE

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the service's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)

    def read(self, unit: Callable[[Transaction], T]) -> T:
        """Read from the service's database."""
        return self.call(self.service.context.store.read(unit))

    def write(self, unit: Callable[[Transaction], T]) -> T:
        """Change the service's database."""
        return self.call(self.service.context.store.write(unit))

    def state(self) -> dict[str, list[Any]]:
        """Every row of every table, the ledger's included, but for what is made of others, or noted, whenever it is time."""
        derived = {"ocsp_response", "ledger_checkpoint", "ledger_tile", "scheduler_lease", "job_run"}
        derived |= {"lineage", "lineage_certificate", "notification"}
        tables = {name: table for name, table in SQLModel.metadata.tables.items() if name not in derived}
        statements = {name: Statement(select(table)) for name, table in tables.items()}
        rows = self.read(lambda tx: {name: tx.all(each) for name, each in statements.items()})
        # How far the fleet has been followed.
        rows["fact"] = [row for row in rows["fact"] if not row[0].startswith("fleet-")]
        return {name: sorted(map(repr, each)) for name, each in rows.items()}

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Fails when anything in the database is different at the end."""
        before = self.state()
        yield
        assert self.state() == before

    def ledger(self) -> list[dict[str, Any]]:
        """The entries of the ledger."""
        return self.read(lambda tx: [decode_entry(row.entry) for row in entries(tx, count=100_000)])

    def eab_key(self, **options: Any) -> NewEabKey:
        """A key for external account binding."""
        context = self.service.context
        keys = EabKeys(
            store=context.store,
            clock=self.clock,
            random_bytes=os.urandom,
            policies=self.settings.policy,
            actor="operator:tests",
            correlation="tests",
        )
        return self.call(keys.create(context.wrapping_key, **options))

    def start(self) -> None:
        """Return when requests are answered."""
        self._thread.start()
        if not self._ready.wait(_PATIENCE):
            raise TimeoutError("the service did not start")
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Stop as SIGTERM would."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_PATIENCE)
        if self._failure is not None:
            raise self._failure

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            async with running(self.settings, self._parts) as self.service:
                self._ready.set()
                await self._stop.wait()
        except BaseException as error:  # noqa: BLE001 (raised on the test's own thread)
            self._failure = error
        finally:
            self._ready.set()


@contextmanager
def serving(settings: Settings, **parts: Any) -> Iterator[RunningService]:
    """A service with ``settings``; ``parts`` are those of :class:`~privyseal_acme.service.Parts`."""
    clock = parts.setdefault("clock", FakeClock())
    service = RunningService(settings, Parts(**parts), clock)
    service.start()
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="session")
def dns_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Knot]:
    """A name server that knows every name under ``test``."""
    with knot(tmp_path_factory.mktemp("knot"), zones=("test",)) as server:
        server.set("test", "A", "127.0.0.1")
        server.set("*.test", "A", "127.0.0.1")
        yield server


def txt_setter(dns_server: Knot) -> Callable[..., None]:
    """Sets TXT records of a name. A record hides the zone's wildcard from all names above it, which keep their address."""

    def set_txt(name: str, *values: str) -> None:
        above = name.partition(".")[2]
        while above not in {"test", ""}:
            dns_server.set(above, "A", "127.0.0.1")
            dns_server.set(f"*.{above}", "A", "127.0.0.1")
            above = above.partition(".")[2]
        dns_server.set(name, "TXT", *(f'"{value}"' for value in values))

    return set_txt


@pytest.fixture(scope="session")
def http01() -> Iterator[Http01]:
    """What answers http-01 for every name under ``test`` and for 127.0.0.1."""
    with http01_responder() as responder:
        yield responder


@pytest.fixture(scope="session")
def service_factory(
    make_settings: MakeSettings, dns_server: Knot, http01: Http01
) -> Callable[[], AbstractContextManager[StartService]]:
    """Gives a ``start_service`` for as long as its context lasts."""

    @contextmanager
    def factory() -> Iterator[StartService]:
        with ExitStack() as stack:

            def start(*, parts: dict[str, Any] | None = None, **sections: dict[str, Any]) -> RunningService:
                surroundings = {"resolvers": (dns_server.address,), "http_port": http01.port}
                sections["validation"] = {**surroundings, **sections.get("validation", {})}
                return stack.enter_context(serving(make_settings(**sections), **(parts or {})))

            yield start

    return factory


@pytest.fixture
def start_service(
    service_factory: Callable[[], AbstractContextManager[StartService]],
) -> Iterator[StartService]:
    """Starts services with settings of the test's choice."""
    with service_factory() as start:
        yield start


@pytest.fixture(scope="module")
def service(service_factory: Callable[[], AbstractContextManager[StartService]]) -> Iterator[RunningService]:
    """A service that the tests of a module share."""
    with service_factory() as start:
        yield start()


@pytest.fixture
def fresh_service(start_service: StartService) -> RunningService:
    """A service for one test alone."""
    return start_service()


@pytest.fixture
def new_client(http01: Http01, dns_server: Knot) -> Iterator[NewClient]:
    """Makes clients: ``new_client(service, alg="ES256", registered=True)``."""
    with ExitStack() as stack:

        def make(service: RunningService, *, alg: str = "ES256", registered: bool = True) -> AcmeClient:
            client = AcmeClient(
                service.directory, service.roots, http01=http01, set_txt=txt_setter(dns_server), key=JwsKey(alg)
            )
            stack.callback(client.close)
            if registered:
                client.register()
            return client

        yield make


@pytest.fixture
def client(service: RunningService, new_client: NewClient) -> AcmeClient:
    """A new account at the module's service."""
    return new_client(service)


@pytest.fixture
def fresh_client(fresh_service: RunningService, new_client: NewClient) -> AcmeClient:
    """An account at the test's own service."""
    return new_client(fresh_service)
