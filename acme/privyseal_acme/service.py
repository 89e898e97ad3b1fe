"""The composition root: every part of the service is made, opened and closed here, in an order that reads downwards."""

import asyncio
import gc
import hashlib
import hmac
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from privyseal_acme.flow.accounts import AccountFlow
from privyseal_acme.flow.authorizations import AuthorizationFlow
from privyseal_acme.flow.certificates import CertificateFlow
from privyseal_acme.flow.context import Context, Limits
from privyseal_acme.flow.finalize import IssuanceDesk
from privyseal_acme.flow.limits import RateLimit
from privyseal_acme.flow.orders import OrderFlow
from privyseal_acme.flow.validation import ValidationQueue
from privyseal_acme.listener import Listener
from privyseal_acme.protocol.urls import Urls, new_id
from privyseal_acme.server_tls import ServerTls
from privyseal_acme.store.nonces import Nonces, create_nonce_table
from privyseal_acme.validation.validator import Validator
from privyseal_acme.web.app import acme_app
from privyseal_acme.web.authenticate import Authenticator
from privyseal_acme.web.routes import Routes
from privyseal_ca.clock import Clock, SystemClock
from privyseal_ca.config import ROOTS_FILE, Settings, parse_listener
from privyseal_ca.errors import ConfigurationError, PrivySealError
from privyseal_ca.hsm.pin import Pin, read_pin
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.signer import WrappingKey
from privyseal_ca.hsm.softhsm import use_embedded
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.issuance.authority import Authority
from privyseal_ca.issuance.issuers import Issuer, IssuerSet, make_issuer
from privyseal_ca.issuance.lint import Linter
from privyseal_ca.issuance.profile import Profile, load_profiles
from privyseal_ca.ledger.entries import SERVICE_ACTOR, Kind, Payload, encode_entry
from privyseal_ca.ledger.log import append, lock_head
from privyseal_ca.policy.keys import KeyPolicy
from privyseal_ca.policy.names import NamePolicy
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import all_issuers, chains, find_fact, find_secret
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.web.status import Anchors, Readiness, status_app

_log = structlog.get_logger("service")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROBE_SECONDS = 2.0
#: How long the readiness probe waits for the database.
_READY_SECONDS = 2.0
_SWEEP_SECONDS = 60.0
#: How often validations are looked for that were stored and not begun, as when a commit's answer is lost.
_RESUME_SECONDS = 15.0
_TLS_SECONDS = 60.0
#: Threads give the interpreter up after this many seconds: a signature that is ready should not wait 5 ms for the loop.
_SWITCH_INTERVAL = 0.0005
#: Requests make few cycles: the collector runs after more allocations than by default.
_GC_THRESHOLDS = (20_000, 20, 50)


def open_hsm(settings: Settings) -> Hsm:
    """The tokens of a home, their PINs read when they are needed."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")

    def pin(uri: KeyUri) -> Pin:
        return read_pin(
            uri,
            pin=settings.hsm.pin,
            pin_file=settings.hsm.pin_file,
            credentials=Path(credentials) if credentials else None,
            home=settings.home,
        )

    use_embedded(settings.home, os.environ)
    return Hsm(pins=pin, queue=settings.hsm.queue, timeout=settings.hsm.timeout, retry_after=settings.hsm.retry_after)


def open_store(settings: Settings) -> Store:
    """The database of a home."""
    backend = backend_for(settings.database_url, durable=True, timeout=settings.database.timeout)
    return Store(backend, queue=settings.database.queue, readers=settings.database.connections)


@dataclass(frozen=True)
class Parts:
    """What tests replace by the same thing with something to hold on to."""

    clock: Clock = field(default_factory=SystemClock)
    random_bytes: Callable[[int], bytes] = os.urandom
    open_hsm: Callable[[Settings], Hsm] = open_hsm
    open_store: Callable[[Settings], Store] = open_store


@dataclass(frozen=True)
class Service:
    """A service that runs."""

    context: Context
    desk: IssuanceDesk
    validations: ValidationQueue
    tls: ServerTls
    #: The bound ports, for when the settings said 0.
    https_port: int
    http_port: int


async def _load_issuers(store: Store, hsm: Hsm, base_url: str) -> IssuerSet:
    """Every active issuer with its key opened and its attributes read back (promise P1)."""
    rows = await store.read(lambda tx: [(row, chains(tx, row.id)) for row in all_issuers(tx) if row.state == "active"])
    issuers: list[Issuer] = []
    for row, pems in rows:
        key = await hsm.open_signing_key(row.key_uri)
        issuers.append(make_issuer(row, pems, key, base_url=base_url))
    if not issuers:
        raise ConfigurationError(
            "No issuer is active.",
            hint="Have the request in the home signed and import the certificate with `privyseal issuer import`.",
        )
    return IssuerSet(issuers)


async def _load_anchors(store: Store, home: Path) -> Anchors:
    """What relying parties fetch."""

    def unit(transaction: Transaction) -> list[tuple[str, list[str]]]:
        return [(row.id, chains(transaction, row.id)) for row in all_issuers(transaction)]

    published: dict[str, tuple[bytes, bytes]] = {}
    for issuer_id, pems in await store.read(unit):
        if pems:
            certificate = x509.load_pem_x509_certificates(pems[0].encode())[0]
            published[issuer_id] = certificate.public_bytes(serialization.Encoding.DER), pems[0].encode()
    try:
        roots = (home / ROOTS_FILE).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{home / ROOTS_FILE} cannot be read: {error.strerror}.") from error
    for certificate in x509.load_pem_x509_certificates(roots):
        key_id = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
        published.setdefault(
            key_id,
            (
                certificate.public_bytes(serialization.Encoding.DER),
                certificate.public_bytes(serialization.Encoding.PEM),
            ),
        )
    return Anchors(roots, published)


async def _open_nonce_store(settings: Settings, main: Store, stack: AsyncExitStack) -> Store:
    """Used nonces need no disk: with SQLite they have a file of their own whose commits do not wait for it.

    Other databases keep them in their own table, where every replica sees them.
    """
    url = settings.database_url
    if not url.startswith("sqlite:///"):
        return main
    backend = backend_for(f"{url}-nonces", durable=False, timeout=settings.database.timeout)
    store = Store(backend, queue=settings.database.queue, group_commit=False)
    await store.open()
    stack.push_async_callback(store.close)
    await store.write(create_nonce_table)
    return store


async def _nonce_key(store: Store, wrapping_key: WrappingKey) -> bytes:
    """The key of nonces: the service's own, bound to this boot of the machine."""
    wrapped = await store.read(lambda tx: find_secret(tx, "nonce"))
    if wrapped is None:
        raise ConfigurationError("The database has no nonce secret.", hint="The home was not made by `privyseal init`.")
    secret = await wrapping_key.unwrap(wrapped, b"nonce")
    return hmac.digest(secret, _boot_id(), "sha256")


def _boot_id() -> bytes:
    """What tells this boot of the machine from others; nothing where the kernel does not say."""
    return _BOOT_ID.read_bytes() if _BOOT_ID.exists() else b""


def _rate_limits(settings: Settings, clock: Clock) -> Limits:
    limits = settings.limits
    return Limits(
        new_accounts=RateLimit(events=limits.new_accounts, period=limits.new_accounts_period, clock=clock),
        account_changes=RateLimit(events=limits.account_changes, period=limits.account_changes_period, clock=clock),
        new_orders=RateLimit(events=limits.new_orders, period=limits.new_orders_period, clock=clock),
        failed_validations=RateLimit(
            events=limits.failed_validations, period=limits.failed_validations_period, clock=clock
        ),
    )


def _readiness(store: Store, hsm: Hsm, issuers: IssuerSet) -> Callable[[], Awaitable[Readiness]]:
    """Whether token, database and ledger can be used (promise P7)."""

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
        return Readiness({"token": key, "database": database, "ledger": ledger})

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


def _load_profiles(settings: Settings) -> Mapping[str, Profile]:
    profiles = load_profiles(settings.home / settings.issuance.profiles_dir)
    if settings.issuance.default_profile not in profiles:
        raise ConfigurationError(
            f"issuance.default_profile names {settings.issuance.default_profile}, which is no profile.",
            hint=f"Known are {', '.join(sorted(profiles))}.",
        )
    return profiles


async def _record(context: Context, kind: Kind, payload: Payload) -> None:
    entry = encode_entry(
        kind,
        time=context.clock.now(),
        actor=SERVICE_ACTOR,
        correlation=new_id(context.random_bytes(16)),
        payload=payload,
    )
    await context.store.write(lambda tx: append(tx, entry))


async def _repeat(seconds: float, what: str, work: Callable[[], Awaitable[object]]) -> None:
    """Do ``work`` every ``seconds``, for ever; a failure is logged and the next turn tries again."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except PrivySealError as error:
            _log.warning("background work failed", work=what, error=str(error))


@dataclass(frozen=True)
class _Foundation:
    """What the flows stand on, and what only the service itself needs of it."""

    context: Context
    hsm: Hsm
    nonces: Nonces


async def _open_foundation(settings: Settings, parts: Parts, stack: AsyncExitStack) -> _Foundation:
    """Database, tokens, issuers, profiles and policies, opened and checked."""
    clock, random_bytes = parts.clock, parts.random_bytes
    store = parts.open_store(settings)
    # First in and last out: nobody else's schema is changed, and nobody else begins while something here still waits.
    stack.callback(store.lock_service().close)
    migrate(settings.database_url)
    await store.open()
    stack.push_async_callback(store.close)
    wrapping_uri = await store.read(lambda tx: find_fact(tx, "wrapping-key"))
    if wrapping_uri is None:
        raise ConfigurationError(f"{settings.home} is not initialised.", hint="Run `privyseal init` first.")

    hsm = parts.open_hsm(settings)
    stack.push_async_callback(hsm.close)
    issuers = await _load_issuers(store, hsm, settings.server.public_http)
    wrapping_key = await hsm.open_wrapping_key(wrapping_uri)

    metrics = Metrics()
    linter = Linter()
    linter.prepare()
    context = Context(
        settings=settings,
        store=store,
        authority=Authority(
            store=store, issuers=issuers, linter=linter, clock=clock, random_bytes=random_bytes, metrics=metrics
        ),
        wrapping_key=wrapping_key,
        profiles=_load_profiles(settings),
        policies={name: NamePolicy(policy, name=name) for name, policy in settings.policy.items()},
        key_policy=KeyPolicy(settings.keys),
        limits=_rate_limits(settings, clock),
        urls=Urls(settings.server.public_https),
        clock=clock,
        random_bytes=random_bytes,
        metrics=metrics,
    )
    nonces = Nonces(
        store=await _open_nonce_store(settings, store, stack),
        key=await _nonce_key(store, wrapping_key),
        lifetime=settings.acme.nonce_lifetime,
        clock=clock,
        random_bytes=random_bytes,
    )
    return _Foundation(context, hsm, nonces)


@asynccontextmanager
async def running(settings: Settings, parts: Parts | None = None) -> AsyncIterator[Service]:
    """A service that is ready inside the block. Leaving it finishes what is in flight.

    Raises:
        PrivySealError: the home, the token or the database cannot be used as they are.
    """
    async with AsyncExitStack() as stack:
        foundation = await _open_foundation(settings, parts or Parts(), stack)
        context, nonces = foundation.context, foundation.nonces
        # P4: whatever an earlier process left between intent and certificate ends before anything new begins.
        await _record(context, Kind.SERVICE_STARTED, await _started(context))
        stack.push_async_callback(_record, context, Kind.SERVICE_STOPPED, {})

        order_flow = OrderFlow(context)
        desk = IssuanceDesk(context, order_flow)
        grace = settings.server.shutdown_grace
        stack.push_async_callback(desk.close, grace)
        validations = ValidationQueue(context, Validator(settings.validation, clock=context.clock))
        stack.push_async_callback(validations.close)
        routes = Routes(
            context,
            Authenticator(context, nonces),
            account_flow=AccountFlow(context),
            order_flow=order_flow,
            authorization_flow=AuthorizationFlow(context, validations),
            certificate_flow=CertificateFlow(context),
            desk=desk,
        )
        tls = ServerTls(
            settings=settings.server,
            authority=context.authority,
            profile=context.profiles["server"],
            clock=context.clock,
            metrics=context.metrics,
        )
        await tls.renew()

        readiness = _readiness(context.store, foundation.hsm, context.authority.issuers)
        anchors = await _load_anchors(context.store, settings.home)
        http = Listener(
            status_app(anchors, context.metrics, readiness), *parse_listener(settings.server.http), grace=grace
        )
        https = Listener(
            acme_app(context, routes, nonces), *parse_listener(settings.server.https), grace=grace, tls=tls.context
        )
        await validations.resume()
        background = [
            asyncio.create_task(work)
            for work in (
                desk.run(),
                _repeat(_TLS_SECONDS, "server certificate", tls.renew_if_due),
                _repeat(_PROBE_SECONDS, "token probe", foundation.hsm.probe),
                _repeat(_RESUME_SECONDS, "validations", validations.resume),
                _repeat(_SWEEP_SECONDS, "nonce sweep", nonces.sweep),
                _repeat(_SWEEP_SECONDS, "closing of intents", context.authority.close_intents),
            )
        ]
        stack.push_async_callback(_stop, background)
        await stack.enter_async_context(https)
        # Last: a readiness probe that is answered finds everything else answering.
        await stack.enter_async_context(http)
        yield Service(context, desk, validations, tls, https.port, http.port)


async def _started(context: Context) -> Payload:
    """Close the intents of an earlier process; what the ledger says of the start."""
    return {
        "closed_intents": await context.authority.close_intents(),
        "issuers": [issuer.id for issuer in context.authority.issuers],
        "policies": {
            name: hashlib.sha256(policy.model_dump_json().encode()).hexdigest()
            for name, policy in context.settings.policy.items()
        },
        "profiles": {name: profile.digest for name, profile in context.profiles.items()},
    }


async def _stop(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def serve_until_stopped(settings: Settings, *, ready: Callable[[Service], None]) -> None:
    """Serve until SIGTERM or SIGINT. ``ready`` is called once requests are answered."""
    sys.setswitchinterval(_SWITCH_INTERVAL)
    gc.set_threshold(*_GC_THRESHOLDS)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with running(settings) as service:
        # Everything that was made until now stays: the collector need not look at it again.
        gc.freeze()
        ready(service)
        _log.info("serving", directory=service.context.urls.directory)
        await stop.wait()
        _log.info("stopping")
    _log.info("stopped")
