"""The options by which operators say whose workloads are."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from privyseal_ca.fleet.attributes import Attributes, checked_attributes
from privyseal_ca.fleet_sections import CRITICALITIES

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--owner", default="", help="Who answers for the workloads: a person, a mail address, a rota."),
    click.option("--team", default="", help="Their team."),
    click.option("--service", default="", help="What the workloads are a part of."),
    click.option("--environment", default="", help="Such as production."),
    click.option("--criticality", type=click.Choice(CRITICALITIES), help="critical ones are renewed earlier."),
    click.option("--set", "labels", multiple=True, metavar="NAME=VALUE", help="Anything else. Repeatable."),
    click.option(
        "--renews/--no-renewal", default=None, help="Whether anybody is told when they do not renew. Default: yes."
    ),
)


def attribute_options(command: F) -> F:
    """Add the options to ``command``; :func:`attributes_of` takes them out of what it is called with."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def description_options(command: F) -> F:
    """The same for commands that say it anew: :func:`description_of` takes them out."""
    clear = click.option("--clear", is_flag=True, help="Take back what was said, and say nothing.")
    return attribute_options(clear(command))


def description_of(options: dict[str, Any]) -> Attributes:
    """What the options say in place of what was said before.

    Raises:
        click.UsageError: they say nothing, and do not say that nothing is meant; or both.
        ConfigurationError: one of them cannot be used.
    """
    attributes = attributes_of(options)
    if options["clear"] and attributes:
        raise click.UsageError("--clear goes with no other option.")
    if not options["clear"] and not attributes:
        raise click.UsageError(
            "Say something of the workloads, such as --owner. It takes the place of all that was said before; "
            "--clear takes that back."
        )
    return attributes


def attributes_of(options: dict[str, Any]) -> Attributes:
    """What the options say.

    Raises:
        ConfigurationError: one of them cannot be used.
    """
    return checked_attributes(
        labels=options["labels"],
        criticality=options["criticality"] or "",
        renews=options["renews"],
        **{name: options[name] for name in ("owner", "team", "service", "environment")},
    )


def described(attributes: Attributes) -> str:
    """What they say, a line each."""
    document = attributes.document()
    labels = document.pop("labels", {})
    lines = [f"{name:<13} {value}" for name, value in document.items()]
    lines += [f"{'label':<13} {name}={value}" for name, value in labels.items()]
    return "\n".join(lines) or "nothing is said of its workloads any more"
