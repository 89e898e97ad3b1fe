"""The section of the settings that says who is told what. See :mod:`privyseal_ca.sections`."""

import re
from datetime import time
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, field_validator

from privyseal_ca.closed_periods import parse_zone
from privyseal_ca.fleet_sections import Criticality, Word
from privyseal_ca.sections import Section

#: In what a message may be about, from the most to the least urgent.
KINDS: Final = ("system", "missed", "failing", "unowned", "recovered", "digest")
NewsKind = Literal["system", "missed", "failing", "unowned", "recovered", "digest"]

_TIME_OF_DAY: Final = re.compile("[0-2][0-9]:[0-5][0-9]")


class RouteSettings(Section):
    """Where messages go, and which: those about workloads that fulfil every condition, of the kinds that are named."""

    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="What the route is called.")
    url_file: Path = Field(
        description="File with Apprise URLs, one in each line, and mode 0600, for they hold passwords and tokens. A relative "
        "path is in the home. Lines that are empty or begin with `#` do not count.",
    )
    to_owner: bool = Field(
        False,
        description="Sends to the owners themselves, where the owner is a mail address: each line of the file has `{owner}` "
        "where that goes, as in `mailtos://user:password@smtp.example?from=ca@example.com&to={owner}`.",
    )
    owners: tuple[Word, ...] = Field((), max_length=256, description="Owners of the workloads. Empty: all.")
    teams: tuple[Word, ...] = Field((), max_length=256, description="Their teams. Empty: all.")
    environments: tuple[Word, ...] = Field((), max_length=64, description="Their environments. Empty: all.")
    criticality: tuple[Criticality, ...] = Field((), description="How critical they are. Empty: all.")
    kinds: tuple[NewsKind, ...] = Field(
        (),
        description="`missed` (a renewal did not come in time), `failing` (attempts fail), `recovered`, `unowned` (nobody is "
        "known to own it), `digest` (once a day), `system` (work of the service itself that fails). Empty: all, "
        "but `system` only where no owner, team or environment is asked for, and not for `to_owner`.",
    )


class NotificationSettings(Section):
    """Who is told of renewals that are missed, of workloads that fail or have no owner, and of work that fails here."""

    routes: tuple[RouteSettings, ...] = Field(
        (), max_length=64, description="Routes. News go by every route that fits."
    )
    digest_at: str = Field("07:00", description="When the daily digest is made, as `HH:MM`.")
    time_zone: str = Field(
        "UTC", description="Time zone of `digest_at`, a name of the IANA database such as `Europe/Berlin`."
    )
    templates: Path = Field(
        Path("templates"),
        description="Folder with Jinja2 files that replace the built-in texts (a relative folder is in the home).",
    )
    patience: int = Field(
        3600,
        ge=0,
        le=30 * 86400,
        description="For how long a workload, or work of the service, fails before anybody is told.",
    )
    repeat: int = Field(
        86400,
        ge=86400,
        le=365 * 86400,
        description="After how long a workload whose state stays is named again, in the digest only.",
    )

    @field_validator("routes")
    @classmethod
    def _names_once(cls, value: tuple[RouteSettings, ...]) -> tuple[RouteSettings, ...]:
        names = [route.name for route in value]
        if len(set(names)) != len(names):
            raise ValueError("two routes have the same name")
        return value

    @field_validator("digest_at")
    @classmethod
    def _time_of_day(cls, value: str) -> str:
        if not _TIME_OF_DAY.fullmatch(value):
            raise ValueError("must be a time of day such as 07:00")
        time.fromisoformat(value)
        return value

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        parse_zone(value)
        return value
