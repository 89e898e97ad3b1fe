"""Services whose token and database a test can take away, in this process."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pkcs11

from fakes.store_faults import FaultyBackend
from fakes.token_faults import Faults
from privyseal_ca.config import Settings
from privyseal_ca.hsm.modules import Modules
from privyseal_ca.hsm.pin import Pin, read_pin
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.store.engine import Store

#: Parts of readiness that are shown and do not count.
ADVISORY = frozenset({"status", "redundancy", "checkpoints", "public"})
_CALLS = ("sign", "open", "__getitem__", "get_objects", "get_slots", "reinitialize")


@dataclass
class FailingToken:
    """SoftHSM behind a plan of faults. ``parts`` goes to ``start_service``."""

    faults: Faults = field(default_factory=Faults)
    #: How often the PIN was asked for.
    pins: int = 0
    #: How many signatures the token made.
    signatures: int = 0

    @property
    def parts(self) -> dict[str, Any]:
        """What a service has to be started with."""
        return {"open_hsm": self._open}

    def take_away(self, error: Callable[[], Exception] = pkcs11.TokenNotPresent) -> None:
        """Have every call fail from now on, before it reaches the token."""

        def fail() -> None:
            raise error()

        for call in _CALLS:
            self.faults.hook(call, fail)

    def bring_back(self) -> None:
        """Undo :meth:`take_away`."""
        for call in _CALLS:
            self.faults.hook(call, lambda: None)

    def _open(self, settings: Settings) -> Hsm:
        def pin(uri: KeyUri) -> Pin:
            self.pins += 1
            return read_pin(uri, pin="", pin_file=None, credentials=None, home=settings.home)

        return Hsm(
            pins=pin,
            queue=settings.hsm.queue,
            timeout=settings.hsm.timeout,
            retry_after=settings.hsm.retry_after,
            modules=Modules(load=self.faults.load),
        )


class FailingStore:
    """A database with hooks around its commits; ``parts`` goes to ``start_service``."""

    def __init__(self) -> None:
        self.backend: FaultyBackend

    @property
    def parts(self) -> dict[str, Any]:
        """What a service has to be started with."""
        return {"open_store": self._open}

    def _open(self, settings: Settings) -> Store:
        self.backend = FaultyBackend(settings.database_url, timeout=settings.database.timeout)
        return Store(self.backend, queue=settings.database.queue, readers=settings.database.connections)


def readiness(status: str) -> dict[str, Any]:
    """The document of ``/readyz`` at the plain listener ``status``, whose code agrees with it, and with the parts that count."""
    try:
        with urllib.request.urlopen(f"{status}/readyz", timeout=10) as answer:  # noqa: S310 (the test's own listener)
            code, body = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        code, body = error.code, error.read()
    document: dict[str, Any] = json.loads(body)
    assert code == (200 if document["ready"] else 503)
    counted = {part: said for part, said in document["parts"].items() if part not in ADVISORY}
    assert document["ready"] == all(said == "ok" for said in counted.values())
    return document
