"""``privyseal serve``."""

import click

from privyseal_acme.serve import facts, welcome
from privyseal_acme.serve import serve as run_service
from privyseal_ca.cli.frame import Command, Invocation, pass_invocation
from privyseal_ca.cli.home import settings_of


@click.command("serve", cls=Command)
@pass_invocation
def serve(invocation: Invocation) -> None:
    """Run the service.

    It is ready when /readyz of the plain listener answers 200. SIGTERM finishes what is in flight and ends it.
    """
    announce = facts if invocation.json else welcome
    click.get_current_context().exit(run_service(settings_of(invocation), announce=announce))
