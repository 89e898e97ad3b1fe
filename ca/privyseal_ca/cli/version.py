"""``privyseal version``."""

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from privyseal_ca.cli.frame import Command, Invocation, pass_invocation


@click.command("version", cls=Command)
@pass_invocation
def version_command(invocation: Invocation) -> None:
    """Show the version of this program."""
    number = program_version()
    python = platform.python_version()
    invocation.result({"privyseal": number, "python": python}, f"privyseal {number} (Python {python})")


def program_version() -> str:
    """The version of the installed distribution; of a checkout that was not installed, ``checkout``."""
    try:
        return version("privyseal")
    except PackageNotFoundError:
        return "checkout"
