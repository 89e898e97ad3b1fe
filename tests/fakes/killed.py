"""A service in a process of its own that ends itself by SIGKILL at one step of an order's issuance.

The steps are found by wrapping parts of the product in that process; the product itself has no such hook. As a module it is
what tests use, as a program (``python killed.py SETTINGS STEP``) it is the service.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from pathlib import Path
from time import monotonic, sleep
from typing import Any

#: Every place between finalize and its answer where the end can come, in their order.
STEPS = (
    "before-intent-commit",
    "after-intent-commit",
    "before-sign",
    "after-sign",
    "after-assemble",
    "after-check",
    "before-final-commit",
    "after-final-commit",
    "before-answer",
)
_PATIENCE = 60


class KilledService:
    """The process, from the parent's side."""

    def __init__(self, process: "subprocess.Popen[bytes]", status: str) -> None:
        self._process = process
        self._status = status

    def wait_until_ready(self) -> None:
        """Return when requests are answered."""
        deadline = monotonic() + _PATIENCE
        while monotonic() < deadline:
            assert self._process.poll() is None, "the service ended before it was ready"
            with contextlib.suppress(OSError):
                self._get("readyz")
                return
            sleep(0.02)
        raise TimeoutError("the service did not start")

    def kill_after(self, *, orders: int) -> None:
        """Kill it once it has issued that many certificates, whatever it is doing then."""
        deadline = monotonic() + _PATIENCE
        while monotonic() < deadline:
            lines = self._get("metrics").splitlines()
            figures = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
            if float(figures.get('privyseal_certificates_issued_total{profile="mtls"}', 0)) >= orders:
                break
        self._process.kill()
        self._process.wait()

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self._status}/{path}", timeout=5) as answer:  # noqa: S310 (the test's own listener)
            body: bytes = answer.read()
        return body.decode()

    def wait_until_killed(self) -> None:
        """Return when it has ended itself."""
        assert self._process.wait(_PATIENCE) == -signal.SIGKILL


@contextlib.contextmanager
def killed_service(settings: Any, step: str, *, wait: bool = True) -> Iterator[KilledService]:
    """A service with ``settings`` that ends at ``step`` of the first order that gets there."""
    document = settings.model_dump(mode="json") | {"home": str(settings.home)}
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, json.dumps(document), step],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    service = KilledService(process, settings.server.public_http)
    try:
        if wait:
            service.wait_until_ready()
        yield service
    finally:
        process.kill()
        process.wait()


class _Killer:
    """Knows which order's issuance has come how far. One order at a time."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._armed = False
        self._unit = ""

    def at(self, step: str) -> None:
        if self._armed and step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)

    def committing(self) -> None:
        self.at(f"before-{self._unit}-commit")

    def committed(self) -> None:
        unit, self._unit = self._unit, ""
        self.at(f"after-{unit}-commit")

    def issuing(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(method)
        async def issue(authority: Any, request: Any, requester: Any, **named: Any) -> Any:
            self._armed = requester.purpose.startswith("order:")
            row = await method(authority, request, requester, **named)
            self.at("before-answer")
            return row

        return issue

    def unit(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def unit(*arguments: Any) -> Any:
            result = method(*arguments)
            self._unit = name
            return result

        return unit

    def running(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(method)
        async def run(*arguments: Any) -> Any:
            self.at("before-sign")
            result = await method(*arguments)
            self.at("after-sign")
            return result

        return run

    def after(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            self.at(step)
            return result

        return wrapper


async def _serve(document: dict[str, Any], killer: _Killer) -> None:
    from fakes.store_faults import FaultyBackend  # noqa: PLC0415 (the parent has its own)
    from privyseal_acme.service import Parts, running  # noqa: PLC0415
    from privyseal_ca.config import Settings  # noqa: PLC0415
    from privyseal_ca.hsm.signing import TokenSigningKey  # noqa: PLC0415
    from privyseal_ca.issuance import authority  # noqa: PLC0415
    from privyseal_ca.issuance.lint import Linter  # noqa: PLC0415
    from privyseal_ca.store.engine import Store  # noqa: PLC0415

    home = Path(document.pop("home"))
    # Longer than an operator may set it: see fakes.home.
    interval = document["status"].pop("interval")
    checked = Settings(**document)
    status = checked.status.model_copy(update={"interval": interval})
    settings = checked.model_copy(update={"home": home, "status": status})
    wrapped: Any = authority.Authority
    wrapped.issue = killer.issuing(wrapped.issue)
    wrapped._begin = killer.unit("intent", wrapped._begin)
    wrapped._finish = killer.unit("final", wrapped._finish)
    key: Any = TokenSigningKey
    key.run = killer.running(key.run)
    linter: Any = Linter
    linter.assemble = killer.after("after-assemble", linter.assemble)
    module: Any = authority
    module.check_certificate = killer.after("after-check", module.check_certificate)

    def open_store(_: Settings) -> Store:
        backend = FaultyBackend(settings.database_url, timeout=settings.database.timeout)
        backend.before["COMMIT"] = killer.committing
        backend.after["COMMIT"] = killer.committed
        return Store(backend, queue=settings.database.queue, readers=settings.database.connections)

    async with running(settings, Parts(open_store=open_store)):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1]), _Killer(sys.argv[2])))
