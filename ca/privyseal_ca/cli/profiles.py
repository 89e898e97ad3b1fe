"""``privyseal profile``."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import click

from privyseal_ca.cli.frame import Group, Invocation, pass_invocation
from privyseal_ca.cli.home import settings_of
from privyseal_ca.cli.text import table
from privyseal_ca.config import Settings
from privyseal_ca.errors import ProfileRefusedError
from privyseal_ca.issuance.profile import Profile, load_profiles


@click.group("profile", cls=Group)
def profile() -> None:
    """List and show certificate profiles."""


@profile.command("list")
@pass_invocation
def list_profiles(invocation: Invocation) -> None:
    """List the profiles that orders can name."""
    settings = settings_of(invocation)
    profiles = profiles_of(settings)
    default = settings.issuance.default_profile
    invocation.result(
        [{**document(each), "default": each.name == default} for each in profiles.values()],
        table(
            ("PROFILE", "LIFETIME", "KEYS", "DESCRIPTION"),
            [
                (
                    each.name + (" (default)" if each.name == default else ""),
                    f"{each.lifetime / 3600:g} h",
                    " ".join(sorted(each.key_types)),
                    each.description,
                )
                for each in profiles.values()
            ],
        ),
    )


@profile.command("show")
@click.argument("name")
@pass_invocation
def show(invocation: Invocation, name: str) -> None:
    """Show everything that a profile says."""
    profiles = profiles_of(settings_of(invocation))
    if name not in profiles:
        raise ProfileRefusedError(f"There is no profile {name[:64]!r}.", hint=f"There are {', '.join(profiles)}.")
    members = document(profiles[name])
    invocation.result(members, "\n".join(f"{key:<20} {_text(value)}" for key, value in members.items()))


def profiles_of(settings: Settings) -> Mapping[str, Profile]:
    """The profiles of a home.

    Raises:
        ConfigurationError: one is not valid.
    """
    return load_profiles(settings.home / settings.issuance.profiles_dir)


def document(each: Profile) -> dict[str, Any]:
    """A profile as JSON has it."""
    return {field.name: _plain(getattr(each, field.name)) for field in fields(each)}


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    return (", ".join(value) or "-") if isinstance(value, list) else str(value)
