"""Workloads as commands show them: documents, rows of a table, cells of a spreadsheet."""

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from privyseal_ca.cli.text import moment, when
from privyseal_ca.fleet.advice import advise
from privyseal_ca.store.fleet import LineageRow

HEADER: Final = ("ID", "STATE", "SINCE", "MISSED", "OWNER", "EXPIRES", "NAMES")
#: The columns of CSV: members of the document, and what is said of the workload.
COLUMNS: Final = (
    "id",
    "names",
    "state",
    "state_since",
    "missed_at",
    "owner",
    "team",
    "service",
    "environment",
    "criticality",
    "labels",
    "renews",
    "profile",
    "issuer",
    "requester",
    "serial",
    "not_before",
    "not_after",
    "certificates",
    "renewed_at",
    "polled_at",
    "window_start",
    "window_end",
    "deadline",
    "attempts",
    "failing_since",
    "attempted_at",
    "revoked_at",
    "retired_at",
    "retired_by",
    "retired_reason",
    "what",
    "seen",
    "do",
)
#: What a spreadsheet takes as the beginning of a formula, or skips before one.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20", "|", "%")
#: One after what some countries' spreadsheets take for the end of a cell.
_FORMULA_INSIDE: Final = re.compile(r"([;\t])(\s*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20|%])")
_NAMES_SHOWN: Final = 3

Issuers = Mapping[str, str]


def names_of(row: LineageRow) -> list[str]:
    """The names of the newest certificate, as ``type:value`` each."""
    return [str(name) for name in orjson.loads(row.names)]


def shown(text: str) -> str:
    """``text`` as a terminal may be given it: names and attributes come from others than those who look at them."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def document_of(row: LineageRow, issuers: Issuers, now: float) -> dict[str, Any]:
    """A workload as documents have it; times that are not known, and what there is not, are null.

    ``issuers`` has the names of issuers by id.
    """
    advice = advise(row, now)
    return {
        "id": row.id,
        "names": names_of(row),
        "state": row.state,
        "state_since": _time(row.state_since),
        "missed_at": _time(row.missed_at),
        "owner": row.owner,
        "team": row.team,
        "service": row.service,
        "environment": row.environment,
        "criticality": row.criticality,
        "labels": orjson.loads(row.labels),
        "sources": orjson.loads(row.sources),
        "renews": bool(row.renews),
        "profile": row.profile,
        "issuer": issuers.get(row.issuer_id, row.issuer_id) or None,
        "issuer_id": row.issuer_id or None,
        "requester": row.requester,
        "serial": row.serial or None,
        "not_before": _time(row.not_before),
        "not_after": _time(row.not_after),
        "certificates": row.certificates,
        "created": _time(row.created),
        "renewed_at": _time(row.renewed_at),
        "usual": row.usual / 1000 if row.usual else None,
        "polled_at": _time(row.polled_at),
        "window_start": _time(row.window_start),
        "window_end": _time(row.window_end),
        "deadline": _time(row.deadline),
        "attempts": row.attempts,
        "failing_since": _time(row.failing_since),
        "attempted_at": _time(row.attempted_at),
        "attempt": orjson.loads(row.attempt) if row.attempt else None,
        "revoked_at": _time(row.revoked_at),
        "retired_at": _time(row.retired_at),
        "retired_by": row.retired_by or None,
        "retired_reason": row.retired_reason or None,
        "what": advice.what,
        "seen": advice.seen,
        "do": advice.do,
    }


def line_of(row: LineageRow) -> tuple[str, ...]:
    """A workload as a row of a table under :data:`HEADER`."""
    names = names_of(row)
    left = len(names) - _NAMES_SHOWN
    return (
        row.id,
        row.state,
        when(row.state_since or None),
        when(row.missed_at or None),
        shown(row.owner) or "-",
        when(row.not_after or None),
        shown(" ".join(names[:_NAMES_SHOWN])) + (f" and {left} more" if left > 0 else ""),
    )


def cells_of(document: Mapping[str, Any]) -> list[str]:
    """A workload's document as cells under :data:`COLUMNS`, none of which a spreadsheet takes for a formula."""
    return [_cell(document[name]) for name in COLUMNS]


def _cell(value: object) -> str:
    if isinstance(value, list):
        text = " ".join(str(each) for each in value)
    elif isinstance(value, dict):
        text = "; ".join(f"{name}={each}" for name, each in value.items())
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    else:
        text = "" if value is None else str(value)
    # Names and attributes come from others than those who open the file.
    text = _FORMULA_INSIDE.sub(r"\1\2'", shown(text))
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def _time(seconds: int) -> str | None:
    return moment(seconds or None)
