"""The status role: CRLs, OCSP, certificates and the ledger from a read-only database or a folder of files (promise P7).

It opens no token, reads no PIN and claims nothing, so there may be as many as are wanted, on other machines as well. What it
cannot answer from what is kept ready it cannot answer at all: it has nothing to sign with.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from cryptography import x509

from privyseal_acme.background import in_background
from privyseal_acme.listener import Listener
from privyseal_acme.readiness import status_reason
from privyseal_ca.clock import Clock, SystemClock
from privyseal_ca.config import ROOTS_FILE, Settings
from privyseal_ca.errors import PrivySealError, StatusUnavailableError, StoreUnavailableError
from privyseal_ca.ledger.access import entries_access
from privyseal_ca.ledger.served import LedgerSource, StoredLedger
from privyseal_ca.recovery.continuity import Continuity
from privyseal_ca.revocation.anchors import PublishedCertificates, ended_issuers, published_certificates
from privyseal_ca.revocation.canary import current_canaries
from privyseal_ca.revocation.folder import FolderStatus
from privyseal_ca.revocation.folder_ledger import FolderLedger
from privyseal_ca.revocation.ocsp import StoredOcsp
from privyseal_ca.revocation.published import Canary, CrlSource, OcspAnswer, OcspQuery, OcspSource, OcspStatus, Watched
from privyseal_ca.revocation.stored_crls import StoredCrls
from privyseal_ca.sections import parse_listener
from privyseal_ca.store.engine import Store
from privyseal_ca.store.readonly import reading
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.web.status import Anchors, Readiness, status_app
from privyseal_ca.web.watcher import Watcher

_log = structlog.get_logger("status")

#: How often issuers are looked for that are new.
_ISSUERS_SECONDS: Final = 60.0
#: How long the database may take to answer before it counts as away.
_PATIENCE: Final = 2.0
_HEALTH_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class StatusService:
    """A status role that runs."""

    #: The bound port, for when the settings said 0.
    http_port: int


class _Origin(Protocol):
    """Where everything that is served comes from."""

    part: str
    """What readiness calls it."""

    @property
    def crls(self) -> CrlSource: ...

    @property
    def ocsp(self) -> OcspSource: ...

    @property
    def ledger(self) -> LedgerSource: ...

    @property
    def certificates(self) -> PublishedCertificates: ...

    @property
    def problem(self) -> str:
        """Why it could not be used when it was last; empty when it could."""
        ...

    @property
    def withheld(self) -> bool:
        """Whether nothing may be served from it, for it may lack revocations."""
        ...

    async def canaries(self) -> Iterable[Canary]:
        """What a watcher looks for."""
        ...

    async def refresh(self) -> None:
        """Look for what changed. What cannot be read remains as it was known."""
        ...


@asynccontextmanager
async def status_running(
    settings: Settings,
    *,
    folder: Path | None,
    clock: Clock | None = None,
    away: Mapping[str, str] = NOTHING,
    continuity: Continuity | None = None,
) -> AsyncIterator[StatusService]:
    """A status role that answers inside the block, from ``folder`` or else from the database of ``settings``.

    ``away`` is what else readiness tells of, with the reason: parts of the service in whose place this stands. ``continuity``
    is what the process knows of the database from earlier attempts.

    Raises:
        StoreUnavailableError: the database is away.
        StatusUnavailableError: the folder is away, or nothing was published in it yet.
        LedgerBehindError: the database is behind what is kept outside, or was restored and not settled: it may lack
            revocations (promise P8).
        ConfigurationError: the settings cannot be used as they are.
    """
    clock = clock or SystemClock()
    metrics = Metrics()
    access = entries_access(settings)
    async with AsyncExitStack() as stack:
        origin: _Origin
        if folder is not None:
            origin = await _Folder.opened(folder, settings, clock)
        else:
            store = await stack.enter_async_context(reading(settings))
            continuity = continuity or Continuity(settings, clock)
            await continuity.begin(store)
            origin = await _Database.opened(store, settings, clock, metrics, continuity)
        issuers = dict(origin.certificates.issuers)
        watcher = Watcher(
            expected=partial(_watched, origin, clock),
            base_url=settings.server.public_http,
            settings=settings.status,
            clock=clock,
            metrics=metrics,
        )
        app = status_app(
            Anchors(origin.certificates.roots_pem, issuers),
            metrics,
            _readiness(origin, watcher, clock, metrics, away),
            crls=origin.crls,
            ocsp=origin.ocsp,
            ledger=origin.ledger,
            entries=access,
            max_age=settings.status.max_age,
            clock=clock,
        )
        app.middlewares.append(_withholding(lambda: origin.withheld))
        in_background(stack, [_follow(origin, issuers, settings.status.interval), watcher.run()])
        listener = Listener(app, *parse_listener(settings.server.http), grace=settings.server.shutdown_grace)
        await stack.enter_async_context(listener)
        yield StatusService(listener.port)


@asynccontextmanager
async def waiting(settings: Settings, part: str, reason: str) -> AsyncIterator[None]:
    """A plain listener that tells why nothing is served yet."""

    async def check() -> Readiness:
        return Readiness({part: reason})

    app = status_app(Anchors(b"", {}), Metrics(), check)
    app.middlewares.append(_withholding(lambda: True))
    async with Listener(app, *parse_listener(settings.server.http), grace=1):
        yield


def _withholding(withheld: Callable[[], bool]) -> Middleware:
    """Answers nothing but why, as long as ``withheld`` says so."""

    @web.middleware
    async def refuse(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path in _HEALTH_PATHS or not withheld():
            return await handler(request)
        return web.Response(
            status=503, text="Nothing is served now.\n", headers={"Retry-After": "5", "Cache-Control": "no-store"}
        )

    return refuse


class _Folder:
    """A published folder."""

    part = "folder"
    #: Nothing in a folder is replaced by what is older.
    withheld = False

    def __init__(self, status: FolderStatus, ledger: LedgerSource) -> None:
        self._status = status
        self.crls: CrlSource = status
        self.ocsp: OcspSource = status
        self.ledger = ledger

    @classmethod
    async def opened(cls, folder: Path, settings: Settings, clock: Clock) -> "_Folder":
        status = FolderStatus(folder, clock=clock, interval=settings.status.interval)
        await status.refresh()
        return cls(status, FolderLedger(folder))

    @property
    def certificates(self) -> PublishedCertificates:
        return self._status.certificates

    @property
    def problem(self) -> str:
        return self._status.problem

    async def canaries(self) -> Iterable[Canary]:
        return self._status.canaries

    async def refresh(self) -> None:
        # The problem is kept for readiness.
        with suppress(StatusUnavailableError):
            await self._status.refresh()


class _Database:
    """A database that is only read."""

    part = "database"

    def __init__(
        self, store: Store, settings: Settings, clock: Clock, metrics: Metrics, continuity: Continuity
    ) -> None:
        self._store = store
        self._continuity = continuity
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._crls = StoredCrls(store)
        self._ocsp = _Replaceable()
        self._issuers_at = 0.0
        self.crls: CrlSource = self._crls
        self.ocsp: OcspSource = self._ocsp
        self.ledger: LedgerSource = StoredLedger(store)
        self.certificates = PublishedCertificates(b"", {})
        self.problem = ""
        self.withheld = False

    @classmethod
    async def opened(
        cls, store: Store, settings: Settings, clock: Clock, metrics: Metrics, continuity: Continuity
    ) -> "_Database":
        database = cls(store, settings, clock, metrics, continuity)
        await database._take_issuers()
        await database._crls.refresh()
        if not database._crls.available:
            raise StoreUnavailableError(
                "The CRLs cannot be read from the database.", hint="Start the service, which brings it up to date."
            )
        await database._ocsp.follow()
        return database

    async def canaries(self) -> Iterable[Canary]:
        return await current_canaries(self._store, self._clock)

    async def refresh(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                behind = await self._continuity.look(self._store)
        except PrivySealError as error:
            self.problem = error.message
            return
        except TimeoutError:
            self.problem = "the database does not answer"
            return
        self.problem, self.withheld = behind, bool(behind)
        if behind:
            return
        await self._crls.refresh()
        await self._ocsp.follow()
        if asyncio.get_running_loop().time() - self._issuers_at >= _ISSUERS_SECONDS:
            await self._take_issuers()

    async def _take_issuers(self) -> None:
        roots = self._settings.home / ROOTS_FILE
        found = await self._store.read(lambda tx: published_certificates(tx, roots))
        self._issuers_at = asyncio.get_running_loop().time()
        if found == self.certificates:
            return
        self.certificates = found
        self._ocsp.replace(
            StoredOcsp(
                store=self._store,
                issuers={name: x509.load_der_x509_certificate(der) for name, (der, _) in found.issuers.items()},
                clock=self._clock,
                settings=self._settings.status,
                metrics=self._metrics,
                responders=None,
            )
        )


class _Replaceable:
    """An :class:`OcspSource` behind which another takes the place of the one before when there are new issuers."""

    def __init__(self) -> None:
        self._source: StoredOcsp | None = None
        self._listeners: list[Callable[[Iterable[str]], None]] = []

    def replace(self, source: StoredOcsp) -> None:
        """Answer from ``source``."""
        if self._source is not None:
            # What is revoked between the last look of the one and the first of the other is in nobody's cache either.
            source.go_on_from(self._source)
        for forget in self._listeners:
            source.on_change(forget)
        self._source = source

    async def answer(self, query: OcspQuery) -> OcspAnswer | OcspStatus:
        """What the source answers."""
        return OcspStatus.TRY_LATER if self._source is None else await self._source.answer(query)

    def on_change(self, forget: Callable[[Iterable[str]], None]) -> None:
        """As the source has it, and those after it."""
        self._listeners.append(forget)
        if self._source is not None:
            self._source.on_change(forget)

    async def follow(self) -> None:
        """Look for what was revoked."""
        if self._source is not None:
            await self._source.follow()


async def _watched(origin: _Origin, clock: Clock) -> Watched:
    """What is to be found at the public URLs."""
    ended = ended_issuers(origin.certificates.issuers, clock.now())
    crls = tuple(crl for crl in origin.crls.published() if crl.issuer_id not in ended)
    answering = {crl.issuer_id for crl in crls}
    return Watched(
        issuers={name: der for name, (der, _) in origin.certificates.issuers.items() if name in answering},
        crls=crls,
        canaries=await origin.canaries(),
    )


def _readiness(
    origin: _Origin, watcher: Watcher, clock: Clock, metrics: Metrics, away: Mapping[str, str]
) -> Callable[[], Awaitable[Readiness]]:
    """The parts ``public``, which is what the watcher sees, is shown and does not count: whoever balances load by readiness
    would otherwise keep every server away from the public URL because the URL does not answer.
    """

    async def check() -> Readiness:
        parts = {
            origin.part: origin.problem,
            "status": status_reason(
                origin.crls, clock, None, ended=ended_issuers(origin.certificates.issuers, clock.now())
            ),
            "public": watcher.reason(),
            # Last: that the origin can be read now does not bring back a service that could not start by it.
            **away,
        }
        for part, reason in parts.items():
            metrics.ready.labels(part).set(0 if reason else 1)
        return Readiness(parts, advisory=frozenset({"public"}))

    return check


async def _follow(origin: _Origin, issuers: dict[str, tuple[bytes, bytes]], interval: float) -> None:
    """Keep up with the origin for ever; what is known remains while it is away."""
    known: Mapping[str, tuple[bytes, bytes]] = origin.certificates.issuers
    problem = ""
    while True:
        await asyncio.sleep(interval)
        try:
            await origin.refresh()
        except PrivySealError as error:
            _log.warning("not refreshed", part=origin.part, error=str(error))
        except Exception:  # noqa: BLE001 (nobody waits for this task: what is to happen again must not end unnoticed)
            _log.exception("not refreshed", part=origin.part)
        if origin.problem != problem:
            problem = origin.problem
            _log.warning("away", part=origin.part, error=problem) if problem else _log.info("back", part=origin.part)
        if origin.certificates.issuers is not known:
            known = origin.certificates.issuers
            issuers.update(known)
            for gone in issuers.keys() - known.keys():
                del issuers[gone]
