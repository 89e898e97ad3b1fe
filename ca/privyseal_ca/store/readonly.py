"""The database as those open it who only look: they need neither the writer nor the right to write."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from privyseal_ca.config import Settings
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store


@asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[Store]:
    """The database that ``settings`` name, opened for reading.

    Raises:
        ConfigurationError: the settings name none.
        StoreUnavailableError: it cannot be reached.
    """
    backend = backend_for(settings.database_url, durable=True, timeout=settings.database.timeout)
    store = Store(backend, queue=settings.database.queue, readers=settings.database.connections, read_only=True)
    await store.open()
    try:
        yield store
    finally:
        await store.close()
