"""Opening a home for a command: settings, database, tokens."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from privyseal_ca.ceremony.initialise import Surroundings, ceremony_state, make_hsm, make_store, pin_reader
from privyseal_ca.ceremony.transcript import FINISHED
from privyseal_ca.cli.frame import Invocation
from privyseal_ca.clock import SystemClock
from privyseal_ca.config import Settings, home_directory, load_settings
from privyseal_ca.errors import ConfigurationError, PrivySealError
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.softhsm import use_embedded
from privyseal_ca.ledger.entries import operator_actor
from privyseal_ca.recovery.facts import restored_fact, unsettled
from privyseal_ca.recovery.guard import behind_home
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store

T = TypeVar("T")
Row = TypeVar("Row")


def settings_of(invocation: Invocation) -> Settings:
    """The settings of the home that the command is for.

    Raises:
        ConfigurationError: they are not valid.
    """
    return load_settings(home_directory(invocation.home))


def surroundings_of(invocation: Invocation) -> Surroundings:
    """This process as ceremonies see it."""
    return Surroundings(
        environ=os.environ,
        clock=SystemClock(),
        random_bytes=secrets.token_bytes,
        actor=operator_actor(),
        correlation=secrets.token_hex(8),
        progress=invocation.progress,
    )


@asynccontextmanager
async def opened_store(settings: Settings, *, settling: bool = False) -> AsyncIterator[Store]:
    """The database of an authority whose ceremony is finished.

    After a restore, or behind the checkpoint that the home keeps, it refuses every change until that is settled (promise P8);
    ``settling`` is for who does that.

    Raises:
        ConfigurationError: there is none.
        StoreUnavailableError: it cannot be reached.
    """
    backend = backend_for(settings.database_url, durable=True, timeout=settings.database.timeout)
    if ceremony_state(settings, backend) != FINISHED:
        raise ConfigurationError(
            f"There is no authority in the database of {settings.home}, or its ceremony was interrupted.",
            hint="Run `privyseal init`, name another home with --home, or set database.url to the database it was made with.",
        )
    store = make_store(backend, settings)
    await store.open()
    try:
        refusal = None if settling else await _refusal(store, settings)
        if refusal is not None:
            store.refusal = lambda: refusal
        yield store
    finally:
        await store.close()


async def _refusal(store: Store, settings: Settings) -> PrivySealError | None:
    """Why nothing may be changed; None when it may."""
    fact = await store.read(restored_fact)
    return unsettled(fact) if fact is not None else await behind_home(store, settings)


@asynccontextmanager
async def opened_hsm(
    settings: Settings, *, root_token: str = "", root_pin_file: Path | None = None
) -> AsyncIterator[Hsm]:
    """The tokens of this home."""
    use_embedded(settings.home, os.environ)
    hsm = make_hsm(pin_reader(settings, os.environ, root_token=root_token, root_pin_file=root_pin_file), settings)
    try:
        yield hsm
    finally:
        await hsm.close()


async def every(store: Store, page: Callable[..., list[Row]], position: Callable[[Row], str]) -> list[Row]:
    """All rows of a listing whose ``page`` takes ``after``, the position of the last row of the page before."""
    rows: list[Row] = []
    after = ""
    while found := await store.read(partial(page, after=after)):
        rows += found
        after = position(found[-1])
    return rows


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``."""
    return asyncio.run(work)
