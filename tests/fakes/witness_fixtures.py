"""Fixtures of tests of a ledger with witnesses: ``pytest_plugins = ("fakes.witness_fixtures",)``."""

import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fakes.checkpoints import ORIGIN, WatchedKey, checkpointer
from fakes.service import FakeClock
from fakes.softhsm import SoftToken
from fakes.store_faults import FaultyBackend, open_faulty
from fakes.witnessed import Signer
from fakes.witnesses import Witnessing, ledger_settings, witnessing
from privyseal_ca.ledger.checkpoints import Checkpointer
from privyseal_ca.ledger.note import NoteVerifier
from privyseal_ca.sections import WitnessSettings
from privyseal_ca.store.engine import Store
from privyseal_ca.store.migrate import migrate
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.witness.client import Witnesses


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with the schema and nothing else."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest_asyncio.fixture
async def store(tmp_path: Path, empty_database: Path) -> AsyncIterator[Store]:
    """A copy of it."""
    url = f"sqlite:///{shutil.copy(empty_database, tmp_path)}"
    store = open_faulty(FaultyBackend(url))
    await store.open()
    yield store
    await store.close()


@pytest_asyncio.fixture
async def key(soft_token: SoftToken) -> WatchedKey:
    """The key of the ledger."""
    return WatchedKey(await soft_token.signing_key("ed25519"))


@pytest_asyncio.fixture
async def served(tmp_path: Path, soft_token: SoftToken, key: WatchedKey) -> AsyncIterator[Witnessing]:
    """A witness that watches the ledger."""
    async with witnessing(tmp_path, await soft_token.signing_key("ed25519", "w1")) as witness:
        witness.state.add(NoteVerifier.for_key(ORIGIN, key.public_key).vkey())
        yield witness


@pytest_asyncio.fixture
async def signer(store: Store, key: WatchedKey) -> AsyncIterator[Signer]:
    """Makes checkpointers with witnesses, each as a process of its own would have them."""
    made: list[Checkpointer] = []

    def make(*witnesses: WitnessSettings, monotonic: Callable[[], float] = time.monotonic, **more: Any) -> Checkpointer:
        metrics, clock = more.pop("metrics", None) or Metrics(), more.pop("clock", None) or FakeClock()
        cosigner = Witnesses(
            ledger_settings(*witnesses, **more),
            origin=ORIGIN,
            log_verifier=NoteVerifier.for_key(ORIGIN, key.public_key),
            metrics=metrics,
            clock=clock,
            monotonic=monotonic,
        )
        made.append(checkpointer(store, key, clock=clock, metrics=metrics, cosigner=cosigner))
        return made[-1]

    yield make
    for each in made:
        await each.close()
