"""What the simulation puts in place of time, the network, and what fails: everything else is the product's own."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

import pkcs11

from fakes.token_faults import Faults
from privyseal_acme.validation.challenge import ChallengeTask
from privyseal_acme.validation.outcome import Outcome, ValidationProblem
from privyseal_ca.config import Settings
from privyseal_ca.errors import LeaseLostError, StoreUnavailableError
from privyseal_ca.hsm.modules import Modules
from privyseal_ca.hsm.pin import Pin, read_pin
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store

_CALLS = ("sign", "open", "__getitem__", "get_objects", "get_slots", "reinitialize")


class Turnstile:
    """How one process sleeps in a world whose time leaps: until it is given a turn.

    A process that gets no turn stands still, as one that was stopped; it does not know how long for.
    """

    def __init__(self) -> None:
        self._sleepers: list[asyncio.Future[None]] = []
        self._changed = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Wait for the next turn, which comes after more than ``seconds`` by the clock on the wall."""
        del seconds
        sleeper = asyncio.get_running_loop().create_future()
        self._sleepers.append(sleeper)
        self._changed.set()
        await sleeper

    async def turn(self) -> None:
        """Wake whoever sleeps, and return when all of them sleep again."""
        sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            sleeper.set_result(None)
        while len(self._sleepers) < len(sleepers):
            self._changed.clear()
            await self._changed.wait()


class Token:
    """The run's SoftHSM, which can be taken away. Its breaker counts by the simulated time."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._faults = Faults()
        self._modules = Modules(load=self._faults.load, monotonic=monotonic)
        self.away = False
        for call in _CALLS:
            self._faults.hook(call, self._meet)

    def open(self, settings: Settings) -> Hsm:
        """The token's keys, for one process."""

        def pin(uri: KeyUri) -> Pin:
            return read_pin(uri, pin="", pin_file=None, credentials=None, home=settings.home)

        return Hsm(
            pins=pin,
            queue=settings.hsm.queue,
            timeout=settings.hsm.timeout,
            retry_after=settings.hsm.retry_after,
            modules=self._modules,
        )

    def _meet(self) -> None:
        if self.away:
            raise pkcs11.TokenNotPresent


class Database:
    """One database for all processes, which can be taken away from them: neither read nor written, nor connected to."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.away = False

    def open(self, settings: Settings) -> Store:
        """A store of one process, not open yet. A commit need not outlive the machine here."""
        backend: Any = _Backend(backend_for(self._url, durable=False, timeout=settings.database.timeout), self)
        return Store(backend, queue=settings.database.queue, readers=settings.database.connections)

    def meet(self) -> None:
        """Fail while it is away, as SQLite does whose disk is gone."""
        if self.away:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error


class _Backend:
    def __init__(self, real: Any, database: Database) -> None:
        self._real = real
        self._database = database

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def connect(self, *, writing: bool) -> Any:
        if self._database.away:
            raise StoreUnavailableError("The database cannot be opened: disk I/O error.", hint="It comes back.")
        return _Connection(self._real.connect(writing=writing), self._database)


class _Connection:
    """Every transaction begins and ends with a statement of the connection itself: there it meets the outage."""

    def __init__(self, real: Any, database: Database) -> None:
        self._real = real
        self._database = database

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def execute(self, *arguments: Any) -> Any:
        self._database.meet()
        return self._real.execute(*arguments)


class Network:
    """What validations see: ``problem_of(name)`` says why a name cannot be validated now, or None when it can."""

    def __init__(self, problem_of: Callable[[str], ValidationProblem | None]) -> None:
        self._problem_of = problem_of

    async def check(self, task: ChallengeTask) -> Outcome:
        """See :meth:`privyseal_acme.validation.validator.Validator.check`."""
        problem = self._problem_of(task.value)
        return Outcome(problem is None, problem, {"type": task.type, "attempts": 1})

    async def close(self) -> None:
        """Nothing is open."""


class Busy:
    """Counts the work that is under way, and tells when there is none. A gate may be shut in front of it."""

    def __init__(self) -> None:
        self.count = 0
        #: How much of it stands in front of the gate, and how much ended because another process leads.
        self.held = 0
        self.refused = 0
        self._open = asyncio.Event()
        self._open.set()
        self.changed = asyncio.Event()

    def shut(self) -> None:
        """From now on let nothing pass."""
        self._open.clear()

    def open(self) -> None:
        """Let everything pass."""
        self._open.set()

    def watch(self, work: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
        """``work``, counted."""

        async def counted() -> object:
            self.count += 1
            try:
                if not self._open.is_set():
                    self.held += 1
                    self.changed.set()
                    try:
                        await self._open.wait()
                    finally:
                        self.held -= 1
                return await work()
            except LeaseLostError:
                self.refused += 1
                raise
            finally:
                self.count -= 1
                self.changed.set()

        return counted
