"""``privyseal serve``."""

from pathlib import Path

import click
import orjson

from privyseal_acme.serve import facts, serve_status, welcome
from privyseal_acme.serve import serve as run_service
from privyseal_ca.cli.frame import Command, Invocation, pass_invocation
from privyseal_ca.cli.home import settings_of


@click.command("serve", cls=Command)
@click.option(
    "--role",
    type=click.Choice(["all", "status"]),
    default="all",
    show_default=True,
    help="all: ACME, status and the work behind. status: CRLs, OCSP and certificates only, without token and PIN, from the "
    "database, which is only read.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="With --role status: serve what `privyseal status publish` wrote into this folder, without a database.",
)
@pass_invocation
def serve(invocation: Invocation, role: str, folder: Path | None) -> None:
    """Run the service.

    It is ready when /readyz of the plain listener answers 200. SIGTERM finishes what is in flight and ends it.
    """
    if role == "status":
        status = _facts if invocation.json else _welcome
        code = serve_status(settings_of(invocation), folder=folder and folder.absolute(), announce=status)
    elif folder is not None:
        raise click.UsageError("--folder needs --role status.")
    else:
        code = run_service(settings_of(invocation), announce=facts if invocation.json else welcome)
    click.get_current_context().exit(code)


def _facts(url: str) -> str:
    return orjson.dumps({"status": url}).decode()


def _welcome(url: str) -> str:
    return f"Status: {url}\n"
