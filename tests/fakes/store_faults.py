"""Faults on command around a real database: what happens before and after each statement that begins or ends a transaction.

A database can fail before it did what it was asked, and after: a test needs both. :class:`FaultyBackend` is the real backend
with something to hold on to.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store

Hook = Callable[[], None]


class FaultyBackend:
    """A backend that counts its statements by their first word, and runs a hook around each."""

    def __init__(self, url: str, *, timeout: float = 5, durable: bool = True) -> None:
        self._real: Any = backend_for(url, durable=durable, timeout=timeout)
        self.counts: Counter[str] = Counter()
        #: What runs before and after ``COMMIT``, ``BEGIN`` or ``CONNECT``; it may raise.
        self.before: dict[str, Hook] = {}
        self.after: dict[str, Hook] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def connect(self, *, writing: bool) -> Any:
        """A real connection; one for writing is watched."""
        if not writing:
            return self._real.connect(writing=False)
        return self.run("CONNECT", lambda: _Connection(self._real.connect(writing=True), self))

    def run(self, word: str, action: Callable[[], Any]) -> Any:
        """``action`` with the hooks of ``word`` around it."""
        self.counts[word] += 1
        if word in self.before:
            self.before[word]()
        result = action()
        if word in self.after:
            self.after[word]()
        return result


class _Connection:
    def __init__(self, real: Any, backend: FaultyBackend) -> None:
        self._real = real
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def execute(self, statement: str, *parameters: Any) -> Any:
        return self._backend.run(statement.split(maxsplit=1)[0], lambda: self._real.execute(statement, *parameters))


def once(action: Hook) -> Hook:
    """``action``, the first time only."""
    left = [action]

    def run() -> None:
        if left:
            left.pop()()

    return run


def raising(error: Exception) -> Hook:
    """Raise ``error``, the first time only."""

    def action() -> None:
        raise error

    return once(action)


def open_faulty(backend: FaultyBackend, *, queue: int = 4096) -> Store:
    """A store on ``backend``, not yet open."""
    return Store(backend, queue=queue, readers=2)
