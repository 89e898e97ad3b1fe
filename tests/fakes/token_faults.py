"""Faults on command around a real token.

A :class:`Faults` loads the real module and hands out proxies for everything that comes from it. A call that is named in
the plan raises the planned error instead of reaching the token, or after it reached the token: a token can fail both ways.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pkcs11

from privyseal_ca.hsm import cryptoki


class ManualClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Faults:
    """The plan, and what was called."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._before: defaultdict[str, deque[Exception]] = defaultdict(deque)
        self._after: defaultdict[str, deque[Exception]] = defaultdict(deque)
        self._hooks: dict[str, Callable[[], object]] = {}

    def fail(self, method: str, *errors: Exception, after: bool = False) -> None:
        """Have the next calls of ``method`` raise ``errors``, one each; ``after`` the token did its work."""
        (self._after if after else self._before)[method].extend(errors)

    def hook(self, method: str, action: Callable[[], object]) -> None:
        """Run ``action`` at every call of ``method``, on the token's thread."""
        self._hooks[method] = action

    def load(self, path: Path) -> Any:
        """A loader for :class:`privyseal_ca.hsm.modules.Modules`."""
        self.met("load")
        return _Proxy(cryptoki.load(path), self)

    def met(self, method: str) -> None:
        """One call is about to happen."""
        self.calls[method] += 1
        if method in self._hooks:
            self._hooks[method]()
        if self._before[method]:
            raise self._before[method].popleft()

    def passed(self, method: str) -> None:
        """One call has happened."""
        if self._after[method]:
            raise self._after[method].popleft()


class _Proxy:
    def __init__(self, real: Any, faults: Faults) -> None:
        self._real = real
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        return self._call(name, value) if callable(value) else self._wrap(value)

    def __getitem__(self, key: Any) -> Any:
        return self._call("__getitem__", self._real.__getitem__)(key)

    def _call(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._faults.met(name)
            result = self._wrap(function(*arguments, **named))
            self._faults.passed(name)
            return result

        return call

    def _wrap(self, value: Any) -> Any:
        if isinstance(value, Iterator | list):
            return [self._wrap(item) for item in value]
        if isinstance(value, pkcs11.Slot | pkcs11.Token | pkcs11.Session | pkcs11.Object):
            return _Proxy(value, self._faults)
        return value
