"""Whether a service can do its work, for whoever sends it requests (promise P7)."""

import asyncio
from collections.abc import Awaitable, Callable, Container, Iterable
from typing import Final

from privyseal_acme.flow.context import Context
from privyseal_ca.clock import Clock, rfc3339
from privyseal_ca.errors import PrivySealError
from privyseal_ca.hsm.pkcs11 import Hsm, TokenState
from privyseal_ca.ledger.log import lock_head
from privyseal_ca.revocation.published import CrlSource, PublishedCrl, scope_name
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.web.status import Readiness
from privyseal_ca.web.watcher import Watcher

#: How long the check waits for the database.
_READY_SECONDS: Final = 2.0

Check = Callable[[], Awaitable[Readiness]]


def readiness_check(
    context: Context,
    hsm: Hsm,
    status: Callable[[], str],
    refused: Callable[[], str] = lambda: "",
    overdue: Callable[[], str] = lambda: "",
) -> Check:
    """A check whether token, database and ledger can be used (promise P7), whose result the metrics show too.

    ``status`` gives the reason why revocation cannot be relied upon, such as :func:`status_reason`. It is shown as the part
    ``status`` and does not count: a public URL that cannot be reached is no reason to send ACME clients away. ``refused`` is
    why the ledger is not what was signed, or empty: a ledger that was changed counts as one that is not there. ``overdue`` is
    why there is no new checkpoint although the ledger is what it must be: that is the part ``checkpoints``, which does not count.

    With ``hsm.replicas``, what is wrong with any of the tokens is shown as the part ``redundancy``. It does not count while
    one of them has each key.
    """
    store, issuers = context.store, context.authority.issuers

    async def check() -> Readiness:
        key = database = ledger = ""
        away = [issuer.identity.name for issuer in issuers if not issuer.key.available]
        if away:
            # A refused PIN or key needs a person, who has to know why.
            why = " ".join(token.reason for token in hsm.tokens() if token.reason)
            key = f"the token with the key of {' and '.join(away)} is away{': ' if why else ''}{why}"
        else:
            try:
                with context.metrics.probe_seconds.labels("token").time():
                    await hsm.probe()
            except PrivySealError as error:
                key = error.message
        try:
            # What every issuance has to do first; a disk that is full or read-only shows here.
            with context.metrics.probe_seconds.labels("database").time():
                async with asyncio.timeout(_READY_SECONDS):
                    ledger = refused() if await store.write(lock_head) else "the ledger is empty"
        except PrivySealError as error:
            database, ledger = error.message, "not reachable"
        except TimeoutError:
            database, ledger = "the database does not answer", "not reachable"
        parts = {"token": key, "database": database, "ledger": ledger, "status": status(), "checkpoints": overdue()}
        tokens = hsm.tokens()
        if hsm.replicated:
            parts["redundancy"] = " ".join(f"{token.uri}: {token.reason}" for token in tokens if token.reason)
        for part, reason in parts.items():
            context.metrics.ready.labels(part).set(0 if reason else 1)
        _show(context.metrics, tokens)
        return Readiness(parts, advisory=frozenset({"status", "redundancy", "checkpoints"}))

    return _one_at_a_time(check)


def _show(metrics: Metrics, tokens: Iterable[TokenState]) -> None:
    for token in tokens:
        metrics.token_up.labels(token.uri).set(1 if token.up else 0)
        metrics.token_keys.labels(token.uri).set(token.signing)


def status_reason(
    crls: CrlSource,
    clock: Clock,
    watcher: Watcher | None,
    *,
    issuers: Iterable[str] = (),
    ended: Container[str] = frozenset(),
) -> str:
    """Why relying parties cannot rely on what is served; empty when they can.

    A CRL is past its nextUpdate, one of ``issuers`` (ids) has no full CRL, there is none at all, or ``watcher`` says so. Of
    issuers that have ``ended`` there is no newer CRL, and nobody needs one. A
    server that only answers for revocation gives none: who balances load by readiness would keep every server away from the
    public URL because that URL does not answer.
    """
    for issuer_id in issuers:
        if crls.find(issuer_id, None, delta=False) is None:
            return f"there is no CRL of issuer {issuer_id}"
    now, known = clock.now(), False
    for crl in crls.published():
        known = True
        if crl.next_update <= now and crl.issuer_id not in ended:
            return f"the CRL {_described(crl)} is out of date since {rfc3339(crl.next_update)}"
    if not known:
        return "there is no CRL"
    return watcher.reason() if watcher is not None else ""


def _described(crl: PublishedCrl) -> str:
    return f"{scope_name(crl.shard)}{' delta' if crl.delta else ''} of issuer {crl.issuer_id}"


def _one_at_a_time(check: Check) -> Check:
    """``check``, made once for all who ask while it is under way: however many ask, the token's queue holds one probe (P12)."""
    current: asyncio.Future[Readiness] | None = None

    async def shared() -> Readiness:
        nonlocal current
        if current is None or current.done():
            current = asyncio.ensure_future(check())
        return await asyncio.shield(current)

    return shared
