"""Whether the service can do its work, for whoever sends it requests (promise P7)."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from privyseal_acme.flow.context import Context
from privyseal_ca.errors import PrivySealError
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.ledger.log import lock_head
from privyseal_ca.web.status import Readiness

#: How long the check waits for the database.
_READY_SECONDS: Final = 2.0


def readiness_check(context: Context, hsm: Hsm) -> Callable[[], Awaitable[Readiness]]:
    """A check whether token, database and ledger can be used (promise P7), whose result the metrics show too."""
    store, issuers = context.store, context.authority.issuers

    async def check() -> Readiness:
        key = database = ledger = ""
        if not all(issuer.key.available for issuer in issuers):
            key = "a token with an issuer's key is away"
        else:
            try:
                await hsm.probe()
            except PrivySealError as error:
                key = error.message
        try:
            # What every issuance has to do first; a disk that is full or read-only shows here.
            async with asyncio.timeout(_READY_SECONDS):
                if not await store.write(lock_head):
                    ledger = "the ledger is empty"
        except PrivySealError as error:
            database, ledger = error.message, "not reachable"
        except TimeoutError:
            database, ledger = "the database does not answer", "not reachable"
        state = Readiness({"token": key, "database": database, "ledger": ledger})
        for part, reason in state.parts.items():
            context.metrics.ready.labels(part).set(0 if reason else 1)
        return state

    return _one_at_a_time(check)


def _one_at_a_time(check: Callable[[], Awaitable[Readiness]]) -> Callable[[], Awaitable[Readiness]]:
    """``check``, made once for all who ask while it is under way: however many ask, the token's queue holds one probe (P12)."""
    current: asyncio.Future[Readiness] | None = None

    async def shared() -> Readiness:
        nonlocal current
        if current is None or current.done():
            current = asyncio.ensure_future(check())
        return await asyncio.shield(current)

    return shared
