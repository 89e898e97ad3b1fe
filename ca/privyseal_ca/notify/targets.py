"""The URLs of a route: where they stand, and for whom. They hold passwords and tokens and are shown nowhere (promise P10)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

from privyseal_ca.errors import ConfigurationError
from privyseal_ca.notification_sections import RouteSettings
from privyseal_ca.private_file import read_private_lines

#: Where the owner's address goes.
OWNER: Final = "{owner}"
#: Bytes of a file, and URLs in it.
_MOST_BYTES: Final = 65_536
_MOST_URLS: Final = 16


@dataclass(frozen=True, slots=True)
class Target:
    """One line of a route's file."""

    #: Counted from one, as editors do: by this it is spoken of.
    line: int
    url: str = field(repr=False)


def read_targets(home: Path, route: RouteSettings) -> Sequence[Target]:
    """The URLs of ``route``.

    Raises:
        ConfigurationError: the file cannot be used. No URL is repeated.
    """
    path = home / route.url_file.expanduser()
    lines = read_private_lines(path, what=f"the URLs of the route {route.name}", most=_MOST_BYTES)
    found = [
        Target(number, line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not 1 <= len(found) <= _MOST_URLS:
        raise ConfigurationError(
            f"The file {path} of the route {route.name} holds {len(found)} URLs.",
            hint=f"It has to hold 1 to {_MOST_URLS} Apprise URLs, one in each line.",
        )
    for target in found:
        if (OWNER in target.url) != route.to_owner:
            raise ConfigurationError(
                f"Line {target.line} of {path} has {'no ' if route.to_owner else ''}{OWNER} in it.",
                hint=f"With to_owner every line has {OWNER}, as in mailtos://...?to={OWNER}; without it none has.",
            )
    return found


def addressed(targets: Sequence[Target], recipient: str) -> Sequence[Target]:
    """The URLs for one owner's address; as they are where there is none."""
    if not recipient:
        return targets
    return [Target(target.line, target.url.replace(OWNER, quote(recipient, safe="@"))) for target in targets]
