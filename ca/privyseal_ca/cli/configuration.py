"""``privyseal config``."""

import json
import re

import click

from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import settings_of
from privyseal_ca.cli.manual import configuration_page

# postgresql://USER:PASSWORD@HOST (promise P10)
_PASSWORD = re.compile(r"(://[^/@:]*:)[^@]*@")


@click.group("config", cls=Group)
def config() -> None:
    """Show settings and what they mean."""


@config.command("show")
@pass_invocation
def show(invocation: Invocation) -> None:
    """Show the settings in force: the file's, overridden by the environment, with the defaults for the rest."""
    document = json.loads(settings_of(invocation).model_dump_json(exclude={"hsm": {"pin"}}))
    document["database"]["url"] = _PASSWORD.sub(r"\g<1>***@", document["database"]["url"])
    lines = [f"{key} = {json.dumps(value)}" for key, value in _flat(document)]
    invocation.result(document, "\n".join(lines))


@config.command("docs")
@pass_invocation
def docs(invocation: Invocation) -> None:
    """Write docs/configuration.md to standard output."""
    page = configuration_page()
    invocation.result({"page": page}, page.rstrip("\n"))


def _flat(document: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for key, value in document.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
