"""Taking workloads out of the fleet by hand, and back: with the entry in the ledger, in one transaction."""

from typing import Final

import orjson

from privyseal_ca.errors import PolicyError
from privyseal_ca.fleet.states import NEVER, Facts, State, judge
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.certificates import find_revocation
from privyseal_ca.store.fleet import LineageRow, find_lineage, judge_lineage
from privyseal_ca.store.statement import Transaction

#: Characters of a reason.
MOST_REASON: Final = 200


def require_lineage(transaction: Transaction, lineage_id: str) -> LineageRow:
    """The workload with the id.

    Raises:
        PolicyError: there is none.
    """
    row = find_lineage(transaction, lineage_id)
    if row is None:
        raise PolicyError(
            f"There is no workload with the id {lineage_id[:64]!r}.",
            hint="`privyseal fleet list --name NAME` shows ids.",
        )
    return row


def retire(
    transaction: Transaction, lineage_id: str, *, reason: str, now: float, actor: str, correlation: str
) -> LineageRow:
    """Expect no renewal of a workload any more, until it gets another certificate. Its certificate stays valid.

    Raises:
        PolicyError: there is no such workload, it is retired already or changes right now, or the reason cannot be used.
    """
    if not 0 < len(reason) <= MOST_REASON or not reason.isprintable() or not reason.strip():
        raise PolicyError("The reason cannot be used.", hint=f"Give 1 to {MOST_REASON} printable characters.")
    row = require_lineage(transaction, lineage_id)
    if row.retired_at:
        raise PolicyError(
            f"The workload {row.id} is retired already.",
            hint="Nothing is to be done; `privyseal fleet resume` expects its renewals again.",
        )
    changed = row._replace(
        retired_at=int(now),
        retired_by=actor,
        retired_reason=reason,
        state=State.RETIRED.value,
        state_since=int(now),
        missed_at=0,
        # The service says when it is to be forgotten.
        next_look=0,
    )
    _change(transaction, row, changed)
    _record(transaction, Kind.LINEAGE_RETIRED, changed, now=now, actor=actor, correlation=correlation, reason=reason)
    return changed


def resume(
    transaction: Transaction, lineage_id: str, *, now: float, actor: str, correlation: str, retire_after: int
) -> LineageRow:
    """Expect renewals of a retired workload again. ``retire_after``: as :func:`privyseal_ca.fleet.states.judge` has it.

    Raises:
        PolicyError: there is no such workload, it is not retired or changes right now, or time would retire it again at once.
    """
    row = require_lineage(transaction, lineage_id)
    if not row.retired_at:
        raise PolicyError(f"The workload {row.id} is not retired.")
    revocation = find_revocation(transaction, row.issuer_id, row.serial) if row.serial else None
    judgement = judge(
        Facts(
            not_before=row.not_before,
            not_after=row.not_after,
            # Until the service has said when, nothing is due.
            window_start=row.window_start or NEVER,
            window_end=row.window_end or NEVER,
            deadline=row.deadline or NEVER,
            polled_at=row.polled_at,
            attempts=row.attempts,
            attempted_at=row.attempted_at,
            revoked_at=revocation.revoked_at if revocation else 0,
            revocation_reason=revocation.reason if revocation else None,
            retired_at=0,
            renews=bool(row.renews),
            missed_at=0,
        ),
        int(now),
        retire_after=retire_after,
    )
    if judgement.state == State.RETIRED:
        raise PolicyError(
            f"The workload {row.id} has been gone for too long: time would retire it again at once.",
            hint="It comes back by itself with its next certificate.",
        )
    changed = row._replace(
        retired_at=0,
        retired_by="",
        retired_reason="",
        state=judgement.state.value,
        state_since=int(now),
        # The service judges it anew, tells its owner, and counts what is missed.
        missed_at=0,
        next_look=0,
    )
    _change(transaction, row, changed)
    _record(transaction, Kind.LINEAGE_RESUMED, changed, now=now, actor=actor, correlation=correlation)
    return changed


def _change(transaction: Transaction, seen: LineageRow, row: LineageRow) -> None:
    """Store ``row`` where it is still as it was ``seen``: the service may have followed a new certificate since."""
    if not judge_lineage(
        transaction,
        seen,
        retired_at=row.retired_at,
        retired_by=row.retired_by,
        retired_reason=row.retired_reason,
        state=row.state,
        state_since=row.state_since,
        missed_at=row.missed_at,
        next_look=row.next_look,
    ):
        raise PolicyError(
            f"There is news of the workload {row.id} at this moment.",
            hint=f"See what `privyseal fleet show {row.id}` says, then try again.",
        )


def _record(
    transaction: Transaction,
    kind: Kind,
    row: LineageRow,
    *,
    now: float,
    actor: str,
    correlation: str,
    **more: str,
) -> None:
    payload = {
        "lineage": row.id,
        "names": orjson.loads(row.names),
        "profile": row.profile,
        "requester": row.requester,
        "serial": row.serial or None,
        **more,
    }
    append(transaction, encode_entry(kind, time=now, actor=actor, correlation=correlation, payload=payload))
