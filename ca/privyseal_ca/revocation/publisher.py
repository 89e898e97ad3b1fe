"""Which CRLs are due, and their publication one after the other.

A scope, which is all of an issuer or one part, is due when something of it was revoked since its CRL, when it never had
one, when that is ``status.crl_refresh`` old, and when it was made with other URLs or by a clock that was ahead.

A scope whose CRL took a second or longer rests for as long as that took before it is made again, so that a flood of
revocations of a long list leaves half of the time to everything else.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import structlog
from cryptography import x509

from privyseal_ca.clock import CLOCK_STEP, Clock
from privyseal_ca.errors import SignerError, StoreConflictError, StoreError
from privyseal_ca.issuance.issuers import Issuer
from privyseal_ca.ledger.log import size as ledger_size
from privyseal_ca.revocation.crl_build import CrlBuilder, Scope
from privyseal_ca.revocation.published import scope_name, scope_shard
from privyseal_ca.sections import StatusSettings
from privyseal_ca.store.crls import CrlRow, all_crls, reserve_crls, revoked_since, unpublished
from privyseal_ca.store.engine import Store
from privyseal_ca.telemetry.metrics import Metrics

_log = structlog.get_logger("crl")

#: Revocations that are looked at in one go. With SQLite that happens on the event loop: about 2 ms.
_PAGE: Final = 2000
#: From this many seconds on, making a CRL is followed by a rest.
_LONG: Final = 1.0

_Key = tuple[str, str]


class CrlPublisher:
    """Publishes the CRLs of ``issuers``. ``monotonic`` gives seconds that never go back, for how long work takes."""

    def __init__(
        self,
        *,
        store: Store,
        issuers: Sequence[Issuer],
        settings: StatusSettings,
        clock: Clock,
        metrics: Metrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._issuers = issuers
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._monotonic = monotonic
        self._builder = CrlBuilder(store=store, settings=settings, clock=clock)
        #: One lane for parts and one for full CRLs: a long full CRL keeps no part waiting.
        self._lanes = {False: asyncio.Lock(), True: asyncio.Lock()}
        self._looking = asyncio.Lock()
        #: The size of the ledger whose revocations are in ``_newest``; None before the first look.
        self._seen: int | None = None
        #: By scope, the highest ledger index of a revocation since the oldest CRL of the first look.
        self._newest: dict[_Key, int] = {}
        #: The scopes whose URLs were compared with the settings, which are the same for the life of a process.
        self._compared: set[_Key] = set()
        self._rests_until: dict[_Key, float] = {}
        #: What was last logged as wrong, by what it is wrong with.
        self._wrong: dict[tuple[str, ...], str] = {}

    async def reserve(self) -> None:
        """Give every scope that certificates may name from now on its row, so that it is published for as long as the
        database lasts, whatever ``status.crl_shards`` becomes. To be called before anything is issued.

        Raises:
            StoreUnavailableError: the database failed.
        """
        wanted = [
            (issuer.id, scope_name(shard))
            for issuer in self._issuers
            for shard in (None, *issuer.identity.pointers.current)
        ]
        await self._store.write(partial(reserve_crls, scopes=wanted))

    async def publish_due(self, *, shards: bool = True, full: bool = True) -> int:
        """Publish what is due, of parts, full CRLs or both; how many scopes were published.

        What fails is logged, once, and tried again at the next call; other scopes and issuers go on. Calls for parts and
        for full CRLs may overlap; two for the same wait for each other.
        """
        published = 0
        for lane in (which for which, wanted in ((False, shards), (True, full)) if wanted):
            async with self._lanes[lane]:
                published += await self._publish_lane(full=lane)
        return published

    async def _publish_lane(self, *, full: bool) -> int:
        try:
            rows = await self._look()
            due = [scope for scope in self._scopes(rows, full=full) if await self._is_due(scope, rows[scope.key])]
        except StoreError as error:
            self._say(("store",), str(error), event="CRLs cannot be looked after")
            return 0
        self._say(("store",))
        # What nobody can know of yet comes before what is only renewed.
        due.sort(key=lambda scope: not self._is_news(scope.key, rows[scope.key]))
        published = 0
        away: set[str] = set()
        for scope in due:
            if scope.issuer.id not in away:
                published += await self._publish(scope, away)
        return published

    async def _look(self) -> dict[_Key, CrlRow]:
        """The row of every scope, after a look at what was revoked since the last one."""
        async with self._looking:
            if self._seen is None:
                await self.reserve()
            rows, size = await self._store.read(lambda tx: (all_crls(tx), ledger_size(tx)))
            if self._seen is None:
                ours = {issuer.id for issuer in self._issuers}
                published = [row for row in rows if row.number and row.issuer_id in ours]
                self._seen = min((row.through for row in published), default=size)
                for row in published:
                    self._measure(row)
            seen = self._seen
            while seen < size:
                changes = await self._store.read(partial(revoked_since, since=seen, through=size, count=_PAGE))
                for change in changes:
                    self._newest[change.issuer_id, scope_name(None)] = change.ledger_index
                    if change.crl_shard is not None:
                        self._newest[change.issuer_id, scope_name(change.crl_shard)] = change.ledger_index
                seen = changes[-1].ledger_index + 1 if len(changes) == _PAGE else size
                await asyncio.sleep(0)
            self._seen = seen
        return {(row.issuer_id, row.scope): row for row in rows}

    def _scopes(self, rows: dict[_Key, CrlRow], *, full: bool) -> list[Scope]:
        """The scopes of a lane: those of the settings, those that ever had a row, and those in which something was revoked.

        Those without a row get an empty one in ``rows``.
        """
        scopes = []
        for issuer in self._issuers:
            if not self._may_sign(issuer):
                continue
            known = {scope_shard(scope) for issuer_id, scope in (*rows, *self._newest) if issuer_id == issuer.id}
            wanted: Iterable[int | None] = (
                (None,)
                if full
                else sorted({shard for shard in known if shard is not None} | set(issuer.identity.pointers.current))
            )
            for shard in wanted:
                scope = Scope(issuer, shard)
                rows.setdefault(scope.key, unpublished(*scope.key))
                scopes.append(scope)
        return scopes

    def _is_news(self, key: _Key, row: CrlRow) -> bool:
        return not row.number or self._newest.get(key, -1) >= row.through

    async def _is_due(self, scope: Scope, row: CrlRow) -> bool:
        if self._rests_until.get(scope.key, 0) > self._monotonic():
            return False
        age = self._clock.now() - row.this_update
        if self._is_news(scope.key, row) or age >= self._settings.crl_refresh or age < -CLOCK_STEP:
            return True
        if scope.shard is not None and bool(row.delta_size) != self._settings.delta_crls:
            return True
        if scope.key in self._compared:
            return False
        if not await self._builder.is_as_configured(scope, row):
            return True
        self._compared.add(scope.key)
        return False

    async def _publish(self, scope: Scope, away: set[str]) -> int:
        begun = self._monotonic()
        wrong: str | None = None
        published = 0
        try:
            row = await self._builder.publish(scope)
        except StoreConflictError as error:
            _log.info("another CRL was published first", issuer=scope.issuer.identity.name, reason=str(error))
        except SignerError as error:
            # Its other scopes would fail the same way.
            away.add(scope.issuer.id)
            wrong = str(error)
        except StoreError as error:
            wrong = str(error)
        except Exception as error:  # noqa: BLE001 (one scope must not keep the others from being published)
            wrong = type(error).__name__
            if self._wrong.get(scope.key) != wrong:
                _log.exception("a CRL could not be made", issuer=scope.issuer.identity.name, scope=scope.name)
        else:
            published = 1
            self._compared.add(scope.key)
            self._metrics.crls_published.inc()
            self._metrics.crl_build_seconds.observe(self._monotonic() - begun)
            self._measure(row)
        name = scope.issuer.identity.name
        self._say(scope.key, wrong, event="a CRL was not published", issuer=name, scope=scope.name)
        took = self._monotonic() - begun
        if took >= _LONG:
            self._rests_until[scope.key] = self._monotonic() + took
        return published

    def _may_sign(self, issuer: Issuer) -> bool:
        """Whether relying parties would accept a CRL of ``issuer``: they look at its certificate (RFC 5280 section 6.3.3)."""
        identity = issuer.identity
        usage = identity.certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        wrong = None
        if not usage.crl_sign:
            wrong = "its certificate lacks keyUsage cRLSign"
        elif self._clock.now() > identity.not_after:
            wrong = "its certificate has expired"
        self._say(("issuer", issuer.id), wrong, event="no CRLs for an issuer", issuer=identity.name)
        return wrong is None

    def _measure(self, row: CrlRow) -> None:
        for issuer in self._issuers:
            if issuer.id == row.issuer_id:
                labels = {"issuer": issuer.identity.name, "scope": row.scope}
                self._metrics.crl_number.labels(**labels).set(row.number)
                self._metrics.crl_entries.labels(**labels).set(row.entries)

    def _say(self, what: tuple[str, ...], wrong: str | None = None, *, event: str = "", **context: str) -> None:
        """Log that something is wrong when it becomes so, and when it is right again."""
        before = self._wrong.pop(what, None)
        if wrong is not None:
            self._wrong[what] = wrong
            if before != wrong:
                _log.warning(event, reason=wrong, **context)
        elif before is not None:
            _log.info("CRLs are published again", **context)
