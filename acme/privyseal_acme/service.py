"""The composition root: every part of the service is made, opened and closed here, in an order that reads downwards."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import structlog

from privyseal_acme.background import begin, in_background
from privyseal_acme.checkpointing import CheckpointKeeper, open_checkpointer
from privyseal_acme.decisions import record_decisions
from privyseal_acme.flow.accounts import AccountFlow
from privyseal_acme.flow.authorizations import AuthorizationFlow
from privyseal_acme.flow.certificates import CertificateFlow
from privyseal_acme.flow.context import Context
from privyseal_acme.flow.finalize import IssuanceDesk
from privyseal_acme.flow.fleet import Fleet
from privyseal_acme.flow.notifications import Notifier
from privyseal_acme.flow.orders import OrderFlow
from privyseal_acme.flow.retention import Retention
from privyseal_acme.flow.validation import ValidationQueue
from privyseal_acme.leases import Leadership
from privyseal_acme.listener import Listener
from privyseal_acme.opening import (
    load_anchors,
    load_issuers,
    load_profiles,
    nonce_key,
    open_hsm,
    open_nonce_store,
    open_store,
    rate_limits,
)
from privyseal_acme.protocol.urls import Urls, new_id
from privyseal_acme.publication import Publication, open_publication
from privyseal_acme.readiness import readiness_check
from privyseal_acme.scheduler import PROCESS, Job, Scheduler
from privyseal_acme.server_tls import ServerTls
from privyseal_acme.store.nonces import Nonces, swept_until
from privyseal_acme.validation.validator import Validator
from privyseal_acme.web.app import acme_app
from privyseal_acme.web.authenticate import Authenticator
from privyseal_acme.web.routes import Routes
from privyseal_ca.cli.version import program_version
from privyseal_ca.clock import Clock, SystemClock
from privyseal_ca.config import Settings
from privyseal_ca.errors import (
    ConfigurationError,
    LedgerBehindError,
    LedgerError,
    PrivySealError,
    ServiceLockLostError,
    StoreError,
)
from privyseal_ca.export.figures import export_figures
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.issuance.authority import Authority
from privyseal_ca.issuance.figures import show_issuers
from privyseal_ca.issuance.lint import Linter
from privyseal_ca.ledger.access import entries_access
from privyseal_ca.ledger.ca_entries import index_ca_entries
from privyseal_ca.ledger.checkpoints import Checkpointer
from privyseal_ca.ledger.completeness import Completeness
from privyseal_ca.ledger.entries import SERVICE_ACTOR, Kind, Payload, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.ledger.served import StoredLedger
from privyseal_ca.policy.keys import KeyPolicy
from privyseal_ca.policy.names import NamePolicy
from privyseal_ca.recovery.scheduled import ScheduledBackups
from privyseal_ca.sections import parse_listener
from privyseal_ca.store.backends import ServiceLock
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.migrate import migrate
from privyseal_ca.telemetry.figures import count_expiring, observe
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.telemetry.tracing import open_tracing
from privyseal_ca.web.status import status_app

_log = structlog.get_logger("service")

_PROBE_SECONDS = 2.0
_READY_SECONDS = 10.0
_SWEEP_SECONDS = 60.0
#: How often validations are looked for that were stored and not begun, as when a commit's answer is lost.
_RESUME_SECONDS = 15.0
#: Often enough that a certificate from before a clock was set right is not in the way for long.
_TLS_SECONDS = 5.0
_LOCK_SECONDS = 2.0
#: A checkpoint covers every entry within a second (DESIGN section 2 step 6).
_CHECKPOINT_SECONDS = 0.5
_KEPT_SECONDS = 5.0
_EXPORT_SECONDS = 15.0
_RETENTION_SECONDS = 60.0
_FLEET_SECONDS = 15.0
_BACKUP_LIMIT = 6 * 3600.0


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
    publication: Publication
    tls: ServerTls
    #: Set when another service has claimed the database, or it was put back: this one must stop.
    lost: asyncio.Event
    keeper: CheckpointKeeper
    fleet: Fleet
    #: The bound ports, for when the settings said 0.
    https_port: int
    http_port: int


async def _record(context: Context, kind: Kind, payload: Payload) -> None:
    entry = encode_entry(
        kind,
        time=context.clock.now(),
        actor=SERVICE_ACTOR,
        correlation=new_id(context.random_bytes(16)),
        payload=payload,
    )
    await context.store.write(lambda tx: append(tx, entry))


async def _record_end(context: Context) -> None:
    try:
        await _record(context, Kind.SERVICE_STOPPED, {})
    except (StoreError, LedgerError) as error:
        _log.warning("the end of the service is not in the ledger", error=str(error))


async def _sign_last(checkpointer: Checkpointer) -> None:
    # One that was found half way comes first: the second call signs what has come since.
    try:
        await checkpointer.sign_due()
        await checkpointer.sign_due()
    except PrivySealError as error:
        _log.warning("no checkpoint covers the end of the ledger", error=str(error))


@dataclass(frozen=True)
class _Foundation:
    """What the flows stand on, and what only the service itself needs of it."""

    context: Context
    hsm: Hsm
    nonces: Nonces
    lock: ServiceLock


async def _open_foundation(settings: Settings, parts: Parts, stack: AsyncExitStack) -> _Foundation:
    """Database, tokens, issuers, profiles and policies, opened and checked."""
    clock, random_bytes = parts.clock, parts.random_bytes
    store = parts.open_store(settings)
    # First in and last out: nobody else's schema is changed, and nobody else begins while something here still waits.
    lock = store.lock_service()
    stack.callback(lock.close)
    migrate(settings.database_url)
    await store.open()
    stack.push_async_callback(store.close)
    wrapping_uri = await store.read(lambda tx: find_fact(tx, "wrapping-key"))
    if wrapping_uri is None:
        raise ConfigurationError(f"{settings.home} is not initialised.", hint="Run `privyseal init` first.")

    hsm = parts.open_hsm(settings)
    stack.push_async_callback(hsm.close)
    issuers = await load_issuers(store, hsm, settings)
    wrapping_key = await hsm.open_wrapping_key(wrapping_uri)

    metrics = Metrics()
    tracing = open_tracing(settings.telemetry, metrics)
    stack.push_async_callback(tracing.close)
    observe(store, hsm, metrics, tracing)
    linter = Linter()
    linter.prepare()
    context = Context(
        settings=settings,
        store=store,
        authority=Authority(
            store=store,
            issuers=issuers,
            linter=linter,
            clock=clock,
            random_bytes=random_bytes,
            metrics=metrics,
            tracing=tracing,
        ),
        wrapping_key=wrapping_key,
        profiles=load_profiles(settings),
        policies={name: NamePolicy(policy, name=name) for name, policy in settings.policy.items()},
        key_policy=KeyPolicy(settings.keys),
        limits=rate_limits(settings, clock),
        urls=Urls(settings.server.public_https),
        clock=clock,
        random_bytes=random_bytes,
        metrics=metrics,
        tracing=tracing,
    )
    nonce_store = await open_nonce_store(settings, store, stack)
    nonces = Nonces(
        store=nonce_store,
        key=await nonce_key(store, wrapping_key),
        lifetime=settings.acme.nonce_lifetime,
        clock=clock,
        random_bytes=random_bytes,
        swept=await nonce_store.read(swept_until),
    )
    return _Foundation(context, hsm, nonces, lock)


@asynccontextmanager
async def running(settings: Settings, parts: Parts | None = None) -> AsyncIterator[Service]:
    """A service that is ready inside the block. Leaving it finishes what is in flight.

    Raises:
        PrivySealError: the home, the token or the database cannot be used as they are.
    """
    async with AsyncExitStack() as stack:
        foundation = await _open_foundation(settings, parts or Parts(), stack)
        context, nonces = foundation.context, foundation.nonces
        checkpointer = await open_checkpointer(context, foundation.hsm)
        stack.push_async_callback(checkpointer.close)
        keeper = CheckpointKeeper(context)
        # The last entries as well are to be proved while no service runs.
        stack.push_async_callback(begin, "keeping the newest checkpoint", keeper.keep)
        stack.push_async_callback(_sign_last, checkpointer)
        # P4: whatever an earlier process left between intent and certificate ends before anything new begins.
        await _record(context, Kind.SERVICE_STARTED, await _started(context))
        stack.push_async_callback(_record_end, context)
        await record_decisions(context, os.environ, new_id(context.random_bytes(16)))
        await index_ca_entries(context.store)

        anchors = await load_anchors(context.store, settings.home)
        publication = await open_publication(context, foundation.hsm, anchors, stack)
        entries = entries_access(settings)
        order_flow = OrderFlow(context)
        desk = IssuanceDesk(context, order_flow, lambda: checkpointer.refused)
        grace = settings.server.shutdown_grace
        stack.push_async_callback(desk.close, grace)
        validations = ValidationQueue(context, Validator(settings.validation, clock=context.clock))
        stack.push_async_callback(validations.close)
        certificate_flow = CertificateFlow(context, publication.ocsp.announce)
        fleet = Fleet.of(context, certificate_flow.renewal)
        notifier = Notifier(
            store=context.store,
            settings=settings,
            clock=context.clock,
            random_bytes=context.random_bytes,
            metrics=context.metrics,
        )
        routes = Routes(
            context,
            Authenticator(context, nonces),
            account_flow=AccountFlow(context),
            order_flow=order_flow,
            authorization_flow=AuthorizationFlow(context, validations),
            certificate_flow=certificate_flow,
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

        await publication.begin()
        await begin("checkpoints", checkpointer.sign_due)
        expiring = partial(count_expiring, context.store, context.metrics, context.clock)
        await begin("certificates that end", expiring)
        issuer_figures = partial(show_issuers, context.authority.issuers, context.metrics)
        await issuer_figures()
        await begin("what falls due", partial(certificate_flow.renewal.count, 1.0))
        readiness = readiness_check(
            context, foundation.hsm, publication.reason, lambda: checkpointer.refused, lambda: checkpointer.overdue
        )
        status = status_app(
            anchors,
            context.metrics,
            readiness,
            crls=publication.crls,
            ocsp=publication.ocsp,
            ledger=StoredLedger(context.store),
            entries=entries,
            max_age=settings.status.max_age,
            clock=context.clock,
        )
        http = Listener(status, *parse_listener(settings.server.http), grace=grace)
        https = Listener(
            acme_app(context, routes, nonces), *parse_listener(settings.server.https), grace=grace, tls=tls.context
        )
        await validations.resume()
        lost = asyncio.Event()
        in_background(stack, [desk.run(), _keep(foundation.lock, keeper, lost), publication.watcher.run()])
        scheduler = _scheduler(
            context,
            [
                Job("server-certificate", _TLS_SECONDS, tls.renew_if_due, PROCESS),
                Job("token-probe", _PROBE_SECONDS, foundation.hsm.probe, PROCESS),
                Job("readiness", _READY_SECONDS, readiness, PROCESS),
                Job("validations", _RESUME_SECONDS, validations.resume, PROCESS),
                Job("nonces", _SWEEP_SECONDS, nonces.sweep, PROCESS),
                Job("checkpoints", _CHECKPOINT_SECONDS, checkpointer.sign_due, PROCESS),
                Job("expiring", _SWEEP_SECONDS, expiring, PROCESS),
                Job("checkpoint-copy", _KEPT_SECONDS, keeper.keep, PROCESS),
                Job("issuer-figures", _SWEEP_SECONDS, issuer_figures, PROCESS),
                Job("renewal-counts", _SWEEP_SECONDS, certificate_flow.renewal.count, PROCESS),
                *publication.jobs(),
                *_sweeps(context),
                *_fleet_jobs(fleet),
                Job("notifications", _SWEEP_SECONDS, notifier.run),
                *_backups(context),
            ],
        )
        await stack.enter_async_context(scheduler.running())
        await stack.enter_async_context(https)
        # Last: a readiness probe that is answered finds everything else answering.
        await stack.enter_async_context(http)
        yield Service(context, desk, validations, publication, tls, lost, keeper, fleet, https.port, http.port)


def _sweeps(context: Context) -> list[Job]:
    """What the leader does for the database as a whole."""
    store, clock, metrics = context.store, context.clock, context.metrics
    retention = Retention(store=store, settings=context.settings.retention, clock=clock, metrics=metrics)
    return [
        Job("intents", _SWEEP_SECONDS, context.authority.close_intents),
        Job("retention", _RETENTION_SECONDS, retention.sweep),
        Job("completeness", _SWEEP_SECONDS, Completeness(store=store, clock=clock, metrics=metrics).look),
        Job("export-figures", _EXPORT_SECONDS, partial(export_figures, store, metrics, clock)),
    ]


def _fleet_jobs(fleet: Fleet) -> list[Job]:
    """What is known of workloads and told of them."""
    return [
        Job("fleet-notes", _FLEET_SECONDS, fleet.follower.write_notes, PROCESS),
        Job("fleet-follow", _FLEET_SECONDS, fleet.follower.follow),
        Job("fleet-states", _FLEET_SECONDS, fleet.judge.judge),
        Job("fleet-figures", _SWEEP_SECONDS, fleet.gauges.show),
    ]


def _backups(context: Context) -> list[Job]:
    """What makes backups, where a folder is set for them."""
    if context.settings.backup.folder is None:
        return []
    backups = ScheduledBackups(
        context.settings,
        context.settings.backup,
        store=context.store,
        clock=context.clock,
        metrics=context.metrics,
        program=program_version(),
        correlation=lambda: new_id(context.random_bytes(16)),
    )
    return [Job("backup", _SWEEP_SECONDS, backups.run, limit=_BACKUP_LIMIT)]


def _scheduler(context: Context, jobs: list[Job]) -> Scheduler:
    """The jobs of this process, which is the only one: it has the lock of the service."""
    leadership = Leadership(
        context.store,
        context.clock,
        holder=new_id(context.random_bytes(16)),
        seconds=context.settings.scheduler.lease,
    )
    return Scheduler(
        jobs,
        leadership,
        context.store,
        context.clock,
        context.metrics,
        random=lambda: int.from_bytes(context.random_bytes(4)) / 2**32,
        sole=True,
    )


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


async def _keep(lock: ServiceLock, keeper: CheckpointKeeper, lost: asyncio.Event) -> None:
    """Watch over the service's claim on the database until another service has it, or the database is an older one."""
    while not lost.is_set():
        await asyncio.sleep(_LOCK_SECONDS)
        try:
            await asyncio.to_thread(lock.keep)
            await keeper.watch()
        except ServiceLockLostError as error:
            _log.error("the database belongs to another service", error=str(error))
            lost.set()
        except LedgerBehindError as error:
            _log.error("the database is not what it was", error=str(error))
            lost.set()
        except PrivySealError as error:
            _log.warning("the claim on the database cannot be checked", error=str(error))
        except Exception:  # noqa: BLE001 (nobody waits for this task: watching must not end unnoticed)
            _log.exception("the claim on the database cannot be checked")
