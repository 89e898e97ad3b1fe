"""``privyseal witness``: being a witness for the ledgers of others."""

import asyncio
import os
import secrets
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click
import structlog
import uvloop

from privyseal_acme.background import in_background, repeat
from privyseal_acme.listener import Listener
from privyseal_acme.serve import prepare_process
from privyseal_ca.ceremony.witness import EMBEDDED_TOKEN, WitnessPlan, initialise_witness, opened_witness_hsm
from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import run
from privyseal_ca.cli.text import table
from privyseal_ca.clock import SystemClock
from privyseal_ca.config import home_directory
from privyseal_ca.errors import ConfigurationError, WitnessError
from privyseal_ca.hsm.softhsm import find_module
from privyseal_ca.ledger.cosignatures import CosignatureVerifier
from privyseal_ca.sections import parse_listener
from privyseal_ca.telemetry.logs import configure_logs
from privyseal_ca.telemetry.metrics import WitnessMetrics
from privyseal_ca.witness.server import witness_app
from privyseal_ca.witness.settings import DEFAULT_LISTENER, WitnessHomeSettings, load_witness
from privyseal_ca.witness.state import WitnessState
from privyseal_ca.witness.witness import Witness

_log = structlog.get_logger("witness")

_GRACE: float = 10
_PROBE_SECONDS = 2.0
_MAX_VKEY_FILE = 2048
_FILE = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)


def _listener(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        try:
            parse_listener(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
    return value


@click.group("witness", cls=Group)
def witness() -> None:
    """Witness the ledgers of other authorities: cosign their checkpoints, and notice when one shows two faces."""


@witness.command("init")
@click.option(
    "--name", required=True, help="What it goes by: a URL without its scheme, such as witness.example.com/w1."
)
@click.option(
    "--listen",
    default=DEFAULT_LISTENER,
    show_default=True,
    callback=_listener,
    metavar="HOST:PORT",
    help="Where it is going to be served.",
)
@click.option("--pkcs11-module", type=_FILE, help="PKCS#11 module of an existing token. Default: SoftHSM in the home.")
@click.option("--token", metavar="LABEL", help="Existing token for the key, with --pkcs11-module.")
@click.option("--pin-file", type=_FILE, help="File with the token's user PIN, with --pkcs11-module.")
@pass_invocation
def init(invocation: Invocation, **options: Any) -> None:
    """Make a witness: a home of its own, and a key in a token that never leaves it."""
    home = home_directory(invocation.home)
    plan = _plan(options)
    attestation = run(
        initialise_witness(
            home, plan, environ=os.environ, random_bytes=secrets.token_bytes, progress=invocation.progress
        )
    )
    vkey = run(_verifier(home, load_witness(home))).vkey()
    invocation.result(
        {"home": str(home), "name": plan.name, "vkey": vkey, "key": attestation.uri},
        f"vkey  {vkey}\n\nNext: `privyseal witness add` with the verification key of each log, and `privyseal witness serve`.",
    )


def _plan(options: dict[str, Any]) -> WitnessPlan:
    module: Path | None = options["pkcs11_module"]
    if (module is None) != (options["token"] is None) or (module is None and options["pin_file"] is not None):
        raise click.UsageError("--pkcs11-module and --token need each other, and --pin-file needs both.")
    found = find_module() if module is None else module
    if found is None:
        raise ConfigurationError(
            "SoftHSM's PKCS#11 module is not installed.",
            hint="Install SoftHSM 2, or name another module with --pkcs11-module and --token.",
        )
    return WitnessPlan(
        name=options["name"],
        listen=options["listen"],
        module=found,
        token=options["token"] or EMBEDDED_TOKEN,
        embedded=module is None,
        pin_file=options["pin_file"],
    )


@witness.command("vkey")
@pass_invocation
def vkey_command(invocation: Invocation) -> None:
    """Print the key that verifies this witness's cosignatures: `vkey` of an authority's `ledger.witnesses`."""
    home = home_directory(invocation.home)
    verifier = run(_verifier(home, load_witness(home)))
    invocation.result({"name": verifier.name, "vkey": verifier.vkey()}, verifier.vkey())


@witness.command("add")
@click.argument("vkey", metavar="VKEY|@FILE")
@pass_invocation
def add(invocation: Invocation, vkey: str) -> None:
    """Watch the log with this verification key, which `privyseal ledger vkey` prints there.

    Compare it with its owners. A running witness knows it at once. A log that changes its key has both for a while.
    """
    state = _state(invocation)
    verifier = state.add(_argument(vkey))
    invocation.result(
        {"origin": verifier.name, "vkey": verifier.vkey()}, f"The log {verifier.name} is watched from now on."
    )


@witness.command("list")
@pass_invocation
def list_command(invocation: Invocation) -> None:
    """List the logs that are watched, what was cosigned of them, and what contradicted that."""
    state = _state(invocation)
    documents = [_document(state, origin) for origin in state.origins()]
    conflicts = [
        f"{'SPLIT VIEW' if conflict['proven'] else 'unproven'}: {document['origin']} at size {conflict['size']}, "
        f"{conflict['time']}: {conflict['file']}"
        for document in documents
        for conflict in document["conflicts"]
    ]
    rows = [(each["origin"], str(each["size"]), each["root"] or "", str(len(each["conflicts"]))) for each in documents]
    invocation.result(documents, "\n".join([table(("ORIGIN", "SIZE", "ROOT", "CONFLICTS"), rows), *conflicts]))


@witness.command("remove")
@click.argument("origin")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_invocation
def remove(invocation: Invocation, origin: str, yes: bool) -> None:
    """Watch a log no more. What was cosigned is remembered: should it come back, it has to continue that."""
    state = _state(invocation)
    invocation.confirm(f"Stop watching {origin}?", yes=yes)
    state.remove(origin)
    invocation.result({"origin": origin, "removed": True}, f"The log {origin} is not watched any more.")


@witness.command("serve")
@click.option("--listen", callback=_listener, metavar="HOST:PORT", help="Instead of `listen` in witness.toml.")
@pass_invocation
def serve(invocation: Invocation, listen: str | None) -> None:
    """Serve the witness. It is ready when /healthz answers 200. SIGTERM finishes what is in flight and ends it."""
    home = home_directory(invocation.home)
    settings = load_witness(home)
    prepare_process()
    configure_logs(settings.log)

    def announce(url: str, vkey: str) -> None:
        invocation.result({"url": url, "vkey": vkey}, f"Witness: {url}\nvkey:    {vkey}")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(home, settings, listen or settings.listen, announce))


async def _serve(home: Path, settings: WitnessHomeSettings, listen: str, announce: Any) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    state = WitnessState(home)
    async with AsyncExitStack() as stack:
        stack.enter_context(state.serving())
        hsm = await stack.enter_async_context(opened_witness_hsm(home, settings, os.environ))
        key = await hsm.open_signing_key(settings.key)
        serving = Witness(state, key, settings.name, SystemClock())
        in_background(stack, [repeat(_PROBE_SECONDS, "token probe", hsm.probe)])
        host, port = parse_listener(listen)
        app = witness_app(serving, state, WitnessMetrics())
        listener = await stack.enter_async_context(Listener(app, host, port, grace=_GRACE))
        announce(f"http://{listen.rpartition(':')[0]}:{listener.port}", serving.verifier.vkey())
        _log.info("serving", listen=listen, name=settings.name)
        await stop.wait()
        _log.info("stopping")
    _log.info("stopped")


async def _verifier(home: Path, settings: WitnessHomeSettings) -> CosignatureVerifier:
    async with opened_witness_hsm(home, settings, os.environ) as hsm:
        return CosignatureVerifier.for_key(settings.name, (await hsm.open_signing_key(settings.key)).public_key)


def _state(invocation: Invocation) -> WitnessState:
    home = home_directory(invocation.home)
    load_witness(home)
    return WitnessState(home)


def _argument(text: str) -> str:
    """A verification key, from its file when the argument begins with @."""
    if not text.startswith("@"):
        return text
    try:
        with Path(text[1:]).open("rb") as file:
            content = file.read(_MAX_VKEY_FILE + 1)
        return content.decode().strip()[:_MAX_VKEY_FILE]
    except (OSError, UnicodeDecodeError) as error:
        raise WitnessError(f"{text[1:]} cannot be read as a verification key.", hint="Name a file with one.") from error


def _document(state: WitnessState, origin: str) -> dict[str, Any]:
    newest = state.newest(origin)
    return {
        "origin": origin,
        "vkeys": [key.vkey() for key in state.keys(origin)],
        "size": 0 if newest is None else newest.size,
        "root": None if newest is None else newest.root.hex(),
        "conflicts": [
            {
                "proven": conflict.proven,
                "size": conflict.size,
                "root": conflict.root,
                "time": conflict.time,
                "file": str(conflict.file),
            }
            for conflict in state.conflicts(origin)
        ],
    }
