"""``privyseal serve``: the service in a process of its own, and what it says when it is ready."""

import asyncio
import gc
import os
import resource
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import click
import orjson
import structlog
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from privyseal_acme.listener import Listener
from privyseal_acme.service import Service, running
from privyseal_acme.status_role import status_running, waiting
from privyseal_ca.clock import SystemClock
from privyseal_ca.config import ROOTS_FILE, Settings
from privyseal_ca.errors import (
    DatabaseInUseError,
    IssuerNotValidError,
    LedgerBehindError,
    PinRefusedError,
    PrivySealError,
    ServiceLockLostError,
    SignatureUncertainError,
    SignerUnavailableError,
    StatusUnavailableError,
    StoreUnavailableError,
)
from privyseal_ca.recovery.continuity import Continuity
from privyseal_ca.sections import parse_listener
from privyseal_ca.telemetry.logs import configure_logs
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.web.status import Anchors, Readiness, status_app

_log = structlog.get_logger("service")

_START_SECONDS = 2.0
_LONGEST_START_SECONDS = 60.0
_ANY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 (compared, not bound)
#: Threads give the interpreter up after this many seconds: a signature that is ready should not wait 5 ms for the loop.
_SWITCH_INTERVAL = 0.0005
#: Requests make few cycles: the collector runs after more allocations than by default.
_GC_THRESHOLDS = (20_000, 20, 50)


def serve(settings: Settings, *, announce: Callable[[Settings, Service], str]) -> int:
    """Serve until the process is told to stop; the exit code. What ``announce`` gives is printed once all is ready."""

    continuity = Continuity(settings, SystemClock())

    async def once(stop: asyncio.Event) -> None:
        await _serve(settings, stop, lambda service: click.echo(announce(settings, service)))

    def wait(error: _AwayError) -> AbstractAsyncContextManager[object]:
        return _waiting(settings, error, continuity)

    return _run(settings, once, wait)


def serve_status(settings: Settings, *, folder: Path | None, announce: Callable[[str], str]) -> int:
    """Serve what is known of revocation until the process is told to stop; the exit code. ``folder`` holds it, or else the
    database. What ``announce`` gives for the base URL is printed once it is ready."""

    continuity = Continuity(settings, SystemClock())

    async def once(stop: asyncio.Event) -> None:
        await _serve_status(settings, folder, stop, lambda url: click.echo(announce(url)), continuity)

    def wait(error: _AwayError) -> AbstractAsyncContextManager[object]:
        return waiting(settings, error.part, error.message)

    return _run(settings, once, wait)


class _AwayError(PrivySealError):
    """What the service needs to start is away, and may come back without anybody's doing."""

    def __init__(self, part: str, reason: PrivySealError) -> None:
        super().__init__(reason.message, hint=reason.hint)
        self.part = part
        #: Whether the attempt has cost a serial, as each further one may.
        self.spent = isinstance(reason, SignatureUncertainError)


def _run(
    settings: Settings,
    once: Callable[[asyncio.Event], Awaitable[None]],
    wait: Callable[[_AwayError], AbstractAsyncContextManager[object]],
) -> int:
    prepare_process()
    configure_logs(settings.log)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_until_stopped(once, wait))
    return 0


async def _serve_until_stopped(
    once: Callable[[asyncio.Event], Awaitable[None]],
    wait: Callable[[_AwayError], AbstractAsyncContextManager[object]],
) -> None:
    """Serve until SIGTERM or SIGINT.

    A token, a database server or a folder that is away at the start is waited for inside ``wait``: after the machine's own
    start they may come last. A token that refused the PIN is not asked again: what was published is served until a person has
    put that right, and stops and starts the process. One that fails while it signs is asked ever more seldom.

    Raises:
        PrivySealError: the home cannot be used as it is, or another service has its database.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL)
    gc.set_threshold(*_GC_THRESHOLDS)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    pause = _START_SECONDS
    while not stop.is_set():
        try:
            await once(stop)
        except _AwayError as error:
            _log.warning("the service waits to start", part=error.part, error=error.message, seconds=pause)
            async with wait(error):
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause)
            pause = min(2 * pause, _LONGEST_START_SECONDS) if error.spent else _START_SECONDS
        else:
            return


async def _serve(settings: Settings, stop: asyncio.Event, ready: Callable[[Service], None]) -> None:
    """Start, and serve until ``stop`` is set. ``ready`` is called once requests are answered."""
    async with AsyncExitStack() as stack:
        try:
            service = await stack.enter_async_context(running(settings))
        except (SignerUnavailableError, SignatureUncertainError, PinRefusedError) as error:
            # What may have been signed is spent, and the next start asks for something else. Were the process to end, whoever
            # starts it anew would have the next one try a refused PIN, until the token locks.
            raise _AwayError("token", error) from error
        except IssuerNotValidError as error:
            # The clock of a machine that has just started may be wrong.
            raise _AwayError("clock", error) from error
        except StoreUnavailableError as error:
            # A file that is not there stays away; a database server that is not there may just be starting as well.
            if isinstance(error, DatabaseInUseError) or settings.database_url.startswith("sqlite:"):
                raise
            raise _AwayError("database", error) from error
        # Everything that was made until now stays: the collector need not look at it again.
        gc.freeze()
        ready(service)
        _log.info("serving", directory=service.context.urls.directory)
        if parse_listener(settings.server.https)[0] in _ANY_ADDRESS and not settings.server.https_url:
            _log.warning("server.https_url is empty: the directory names localhost, which other machines cannot follow")
        await _first(stop, service.lost)
        _log.info("stopping")
    _log.info("stopped")
    if service.keeper.behind is not None:
        raise service.keeper.behind
    if service.lost.is_set():
        raise ServiceLockLostError(
            "Another service claimed the database after a restart of the server; this one has stopped.",
            hint="Run only one service on a database.",
        )


async def _serve_status(
    settings: Settings,
    folder: Path | None,
    stop: asyncio.Event,
    ready: Callable[[str], None],
    continuity: Continuity,
) -> None:
    """The same for the status role."""
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(status_running(settings, folder=folder, continuity=continuity))
        except (StoreUnavailableError, LedgerBehindError) as error:
            # A replica of the database may follow; one that was put back may be settled.
            raise _AwayError("database", error) from error
        except StatusUnavailableError as error:
            raise _AwayError("folder", error) from error
        gc.freeze()
        ready(settings.server.public_http)
        _log.info("serving", url=settings.server.public_http, role="status")
        await stop.wait()
        _log.info("stopping")
    _log.info("stopped")


@asynccontextmanager
async def _waiting(settings: Settings, error: _AwayError, continuity: Continuity) -> AsyncIterator[None]:
    """Tell whoever asks the plain listener why there is no service yet, and serve what was published before (promise P7)."""
    away = {error.part: error.message}

    async def check() -> Readiness:
        return Readiness(away)

    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(status_running(settings, folder=None, away=away, continuity=continuity))
        except PrivySealError as other:
            # The database is what is away, or must not be served from.
            away.setdefault("database", other.message)
            anchors = Anchors((settings.home / ROOTS_FILE).read_bytes(), {})
            app = status_app(anchors, Metrics(), check)
            await stack.enter_async_context(Listener(app, *parse_listener(settings.server.http), grace=1))
        yield


async def _first(*events: asyncio.Event) -> None:
    """Return when any of ``events`` is set."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


def prepare_process() -> None:
    """New files are their owner's alone, memory that holds PINs and keys is dumped nowhere, descriptors do for the bounds."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def facts(settings: Settings, service: Service) -> str:
    """What a program needs for a first certificate, as one JSON object."""
    roots = settings.home / ROOTS_FILE
    document = {
        "directory": service.context.urls.directory,
        "roots": str(roots),
        "root_sha256": [fingerprint.replace(":", "").lower() for fingerprint in _fingerprints(roots)],
    }
    return orjson.dumps(document).decode()


def welcome(settings: Settings, service: Service) -> str:
    """What a person needs for a first certificate: the directory, the root's fingerprint, and commands to paste."""
    directory = service.context.urls.directory
    roots = settings.home / ROOTS_FILE
    trust = shlex.quote(str(roots))
    port = settings.validation.http_port
    bound = settings.acme.external_account_required
    certbot = (
        f"REQUESTS_CA_BUNDLE={trust} certbot certonly --standalone --http-01-port {port} --server {directory} "
        f"--non-interactive --agree-tos --register-unsafely-without-email {'--eab-kid KID --eab-hmac-key KEY ' * bound}"
        "--config-dir certbot --work-dir certbot --logs-dir certbot -d demo.localhost"
    )
    lego = (
        f"LEGO_CA_CERTIFICATES={trust} lego --server {directory} --accept-tos --email you@example.internal "
        f"{'--eab --kid KID --hmac KEY ' * bound}"
        f"--path lego --http --http.port :{port} --domains demo.localhost run"
    )
    binding = ["New accounts need a key: `privyseal eab create` prints its KID and KEY."] * bound
    return "\n".join(
        [
            f"Directory:  {directory}",
            f"Roots:      {roots}",
            *(f"SHA-256:    {fingerprint}" for fingerprint in _fingerprints(roots)),
            "",
            f"A first certificate, by a client on this machine that answers on port {port} (packages certbot, lego):",
            *binding,
            "",
            f"  {certbot}",
            "",
            f"  {lego}",
            "",
        ]
    )


def _fingerprints(roots: Path) -> list[str]:
    return [
        certificate.fingerprint(hashes.SHA256()).hex(":").upper()
        for certificate in x509.load_pem_x509_certificates(roots.read_bytes())
    ]
