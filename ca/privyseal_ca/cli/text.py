"""Text for people: tables, times, durations."""

import re
from collections.abc import Sequence

import click

from privyseal_ca.clock import rfc3339

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(?P<number>[1-9][0-9]{0,8})(?P<unit>[smhdw])")


def duration(text: str) -> int:
    """The seconds of a time span such as ``90d``, ``12h`` or ``30m``.

    Raises:
        click.BadParameter: it is none.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise click.BadParameter("give a whole number above 0 with s, m, h, d or w, such as 30d")
    return int(match["number"]) * _UNITS[match["unit"]]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their headings; a word instead of nothing."""
    if not rows:
        return "none"
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    )


def when(seconds: float | None) -> str:
    """A time as RFC 3339 text, or a dash."""
    return "-" if seconds is None else rfc3339(seconds)


def moment(seconds: float | None) -> str | None:
    """A time as documents have it."""
    return None if seconds is None else rfc3339(seconds)
