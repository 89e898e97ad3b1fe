"""``privyseal version``."""

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from privyseal_ca.cli.frame import Command, Invocation, pass_invocation


@click.command("version", cls=Command)
@pass_invocation
def version_command(invocation: Invocation) -> None:
    """Show the version of this program."""
