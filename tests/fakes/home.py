"""One initialised authority for the whole run, and as many fresh copies of its database as there are tests.

The real ceremony makes it, in the token directory of :mod:`fakes.softhsm`: SoftHSM's configuration belongs to the process,
so there is one home and one set of CA keys for each run of pytest. What differs between tests is the database, a copy of the
file that the ceremony left, and the settings::

    def test_something(make_settings):
        settings = make_settings(acme={"orders_page": 2}, validation={"resolvers": ("127.0.0.1:5353",)})

``make_settings(**sections)`` gives :class:`~privyseal_ca.config.Settings` with a database of their own, free ports for the
listeners and for validation, and whatever the sections override; nothing is started. An asynchronous test goes on with
``async with privyseal_acme.service.running(settings, Parts(clock=FakeClock()))``; a synchronous one takes the fixtures of
:mod:`fakes.service`. A test that needs a home on disk of its own, or another process, runs ``privyseal init`` itself
in an environment without ``SOFTHSM2_CONF``.
"""

import asyncio
import itertools
import os
import sqlite3
import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fakes.dns import LOOPBACK, free_port
from fakes.softhsm import kept_tokens
from privyseal_acme.opening import open_hsm, open_store
from privyseal_ca.ceremony.initialise import Surroundings, initialise
from privyseal_ca.ceremony.ledger_key import ledger_key
from privyseal_ca.ceremony.plan import NameSpace, Plan
from privyseal_ca.ceremony.responders import responder_keys
from privyseal_ca.ceremony.settings_file import FirstSettings
from privyseal_ca.clock import SystemClock
from privyseal_ca.config import SETTINGS_FILE, Settings, load_settings

MakeSettings = Callable[..., Settings]

#: What tests need otherwise than operators: a validation that fails does so at once.
_OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "validation": {"attempts": 1, "retry_delay": 0, "timeout": 5},
    "server": {"shutdown_grace": 5},
    # Half of a response's life is less than a certificate's.
    "status": {"watch_interval": 3600, "ocsp_lifetime": 86400, "responder_lifetime": 7 * 86400},
}
#: Nothing is published by itself while a test compares what was with what is; whoever wants it sets an interval.
_NEVER = 1e6
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, softhsm_home: Path, softhsm_module: Path) -> Path:
    """The home of an authority with root, intermediate and secrets. Its own database is never served from."""
    directory = tmp_path_factory.mktemp("home")
    plan = Plan(
        organization="Protocol Tests",
        root_common_name="Protocol Tests Root CA",
        issuing_common_name="Protocol Tests Issuing CA 1",
        root_key="ec-p256",
        issuing_key="ec-p256",
        offline_root=False,
        names=NameSpace(),
        module=softhsm_module,
        root_token=f"root-{os.getpid()}",
        issuing_token=f"issuing-{os.getpid()}",
    )
    surroundings = Surroundings(
        # The process's own variable names the run's directory of tokens; the ceremony need not know.
        environ={},
        clock=SystemClock(),
        random_bytes=os.urandom,
        actor="operator:tests",
        correlation="tests",
        progress=lambda _: None,
    )

    async def make() -> None:
        await initialise(directory, plan, FirstSettings(), embedded=True, root_pin_file=None, surroundings=surroundings)
        await _first_start(load_settings(directory))

    with kept_tokens(softhsm_home), ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, make()).result()
    return directory


async def _first_start(settings: Settings) -> None:
    """Make the keys of responder and ledger, as a first start does, so that not every copy of the database brings some into the token."""
    store, hsm = open_store(settings), open_hsm(settings)
    await store.open()
    try:
        await responder_keys(store, hsm, SystemClock(), os.urandom, actor="service", correlation="tests")
        await ledger_key(store, hsm, SystemClock(), os.urandom, actor="service", correlation="tests")
    finally:
        await hsm.close()
        await store.close()


@pytest.fixture(scope="session")
def settings_factory(home: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeSettings:
    """Makes settings with a fresh database; see the module."""
    document = tomllib.loads((home / SETTINGS_FILE).read_text(encoding="utf-8"))
    databases = tmp_path_factory.mktemp("databases")

    def make(**sections: Mapping[str, Any]) -> Settings:
        database = databases / f"{next(_numbers)}.db"
        copy_database(home / "privyseal.db", database)
        merged: dict[str, Any] = {name: dict(section) for name, section in document.items()}
        own: Mapping[str, Mapping[str, Any]] = {
            "database": {"url": f"sqlite:///{database}"},
            # A home has one database; here many have the same home.
            "ledger": {"kept_checkpoint": f"{database}.checkpoint"},
            "server": {"https": f"{LOOPBACK}:{free_port()}", "http": f"{LOOPBACK}:{free_port()}"},
            "validation": {"http_port": free_port(), "tls_port": free_port()},
        }
        for layer in (_OVERRIDES, own, sections):
            for name, section in layer.items():
                merged[name] = {**merged.get(name, {}), **section}
        settings = Settings(**merged)
        status = settings.status
        if "interval" not in sections.get("status", {}):
            status = status.model_copy(update={"interval": _NEVER})
        return settings.model_copy(update={"home": home, "status": status})

    return make


@pytest.fixture(scope="session")
def make_settings(settings_factory: MakeSettings) -> MakeSettings:
    """The same as ``settings_factory``."""
    return settings_factory


def never_started(settings: Settings) -> Settings:
    """The same home as it was before its first start: without OCSP responders and without the ledger's key."""
    with closing(sqlite3.connect(settings.database_url.removeprefix("sqlite:///"))) as connection:
        connection.execute("DELETE FROM ocsp_responder")
        connection.execute("DELETE FROM fact WHERE name LIKE 'ocsp-label:%' OR name IN ('ledger-key', 'ledger-label')")
        connection.commit()
    return settings


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database, whatever is in its write-ahead log included."""
    with closing(sqlite3.connect(source)) as reader, closing(sqlite3.connect(target)) as writer:
        reader.backup(writer)
