"""``privyseal doctor``."""

from dataclasses import asdict

import click

from privyseal_ca.cli.frame import FAILURE, Command, Invocation, pass_invocation
from privyseal_ca.cli.home import run, settings_of, surroundings_of
from privyseal_ca.doctor import Doctor, Finding, Level
from privyseal_ca.errors import ConfigurationError


@click.command("doctor", cls=Command)
@pass_invocation
def doctor(invocation: Invocation) -> None:
    """Check a home and say what to do.

    Each line is ok, warn or fail. The exit code is 1 when anything fails. Nothing is changed; each token is logged into once.
    """
    findings = run(_examine(invocation))
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<4}  {finding.what}: {finding.message}")
        if finding.hint:
            lines.append(f"      hint: {finding.hint}")
    failed = any(finding.level is Level.FAIL for finding in findings)
    invocation.result({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, "\n".join(lines))
    if failed:
        click.get_current_context().exit(FAILURE)


async def _examine(invocation: Invocation) -> list[Finding]:
    try:
        settings = settings_of(invocation)
    except ConfigurationError as error:
        return [Finding(Level.FAIL, "settings", error.message, error.hint)]
    surroundings = surroundings_of(invocation)
    examination = Doctor(settings, clock=surroundings.clock, environ=surroundings.environ).examine()
    return [Finding(Level.OK, "settings", "valid"), *[finding async for finding in examination]]
