"""Text for people: tables, times, durations."""

import re
from collections.abc import Sequence

import click

from privyseal_ca.clock import rfc3339

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(?P<number>[1-9][0-9]{0,8})(?P<unit>[smhdw])")


class Duration(click.ParamType):
    """A time span such as ``90d``, ``12h`` or ``30m``, in seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The seconds that ``value`` means."""
        match = _DURATION.fullmatch(str(value))
        if match is None:
            self.fail("give a number with s, m, h, d or w, such as 30d", param, ctx)
        return int(match["number"]) * _UNITS[match["unit"]]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their headings; a word instead of nothing."""
    if not rows:
        return "none"
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (header, *rows)
    )


def when(seconds: int | None) -> str:
    """A time as RFC 3339 text, or a dash."""
    return "-" if seconds is None else rfc3339(seconds)
