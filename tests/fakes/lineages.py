"""Workloads as the store keeps them, made without certificates."""

import json
import time
from hashlib import sha256
from typing import Any

from privyseal_ca.store.fleet import LineageRow

DAY = 86400
#: 2026-11-21T10:00:00Z
NOW = 1_795_255_200
_TIMES = (
    "not_before",
    "not_after",
    "created",
    "renewed_at",
    "window_start",
    "window_end",
    "deadline",
    "missed_at",
)


def lineage(lineage_id: str = "w1", *names: str, **columns: Any) -> LineageRow:
    """A workload that is well: in the middle of the life of its third certificate."""
    shown = [f"dns:{name}" for name in names or (f"{lineage_id}.corp.test",)]
    usual: dict[str, Any] = {
        "requester": "account:one",
        "names": json.dumps(shown),
        "profile": "mtls",
        "names_hash": sha256(lineage_id.encode()).digest(),
        "serial": sha256(lineage_id.encode()).hexdigest()[:32],
        "issuer_id": "ab" * 20,
        "not_before": NOW - 15 * DAY,
        "not_after": NOW + 15 * DAY,
        "certificates": 3,
        "created": NOW - 80 * DAY,
        "renewed_at": NOW - 15 * DAY,
        "criticality": "normal",
        "labels": "{}",
        "sources": "{}",
        "renews": 1,
        "window_start": NOW + 4 * DAY,
        "window_end": NOW + 5 * DAY,
        "deadline": NOW + 6 * DAY,
        "state": "current",
        "state_since": NOW - 15 * DAY,
        "next_look": NOW + 4 * DAY,
    }
    return LineageRow(lineage_id, **{**usual, **columns})


def late(lineage_id: str = "w1", *names: str, **columns: Any) -> LineageRow:
    """A workload whose renewal was missed, two days ago."""
    usual: dict[str, Any] = {
        "not_before": NOW - 25 * DAY,
        "not_after": NOW + 5 * DAY,
        "window_start": NOW - 4 * DAY,
        "window_end": NOW - 3 * DAY,
        "deadline": NOW - 2 * DAY,
        "missed_at": NOW - 2 * DAY,
        "state": "silent",
        "state_since": NOW - 2 * DAY,
    }
    return lineage(lineage_id, *names, **{**usual, **columns})


def seen_now(row: LineageRow) -> LineageRow:
    """The workload with its times as they would be if it were now what is :data:`NOW` here."""
    shift = int(time.time()) - NOW
    return row._replace(**{name: getattr(row, name) + shift for name in _TIMES if getattr(row, name)})


def attempt(stage: str, problem: str, detail: str = "", **more: Any) -> str:
    """A failed attempt as a row keeps it."""
    return json.dumps({"stage": stage, "type": problem, "detail": detail, **more})
