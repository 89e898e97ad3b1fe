"""Options that several commands share."""

from collections.abc import Mapping
from typing import Any

import click

from privyseal_ca.ceremony.plan import NameSpace

_CONSTRAINTS = {"dns": "DOMAIN", "ip": "NETWORK", "uri": "HOST", "email": "DOMAIN"}


def constraint_options(command: Any) -> Any:
    """``--permit-TYPE`` and ``--exclude-TYPE`` for every type of name that a CA can be constrained in."""
    for kind, metavar in reversed(_CONSTRAINTS.items()):
        for verb, meaning in (("exclude", "cannot certify"), ("permit", "can certify only")):
            command = click.option(
                f"--{verb}-{kind}",
                multiple=True,
                metavar=metavar,
                help=f"Name constraint: the intermediate {meaning} {kind} names in it. Repeatable.",
            )(command)
    return command


def name_space(options: Mapping[str, Any]) -> NameSpace:
    """What those options say."""
    return NameSpace(permitted=_names(options, "permit"), excluded=_names(options, "exclude"))


def _names(options: Mapping[str, Any], verb: str) -> tuple[str, ...]:
    return tuple(f"{kind}:{value}" for kind in _CONSTRAINTS for value in options[f"{verb}_{kind}"])
