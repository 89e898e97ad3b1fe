"""Statements on messages that wait to be delivered, and on the workloads that there is something to tell of."""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, bindparam, delete, func, insert, or_, select, update

from privyseal_ca.store.fleet import LineageRow
from privyseal_ca.store.fleet_tables import Lineage, Notification
from privyseal_ca.store.statement import Statement, Transaction

WAITING: Final = "waiting"
DELIVERED: Final = "delivered"
GIVEN_UP: Final = "given-up"

#: The fact with the day of the last digest.
DIGEST_FACT: Final = "notified-digest"
#: The fact with the jobs that were told of as failing, and since when they do.
SYSTEM_FACT: Final = "notified-system"

#: Messages that one unit of work removes.
BATCH: Final = 200

_row = Notification.__table__  # type: ignore[attr-defined]
_lineage = Lineage.__table__  # type: ignore[attr-defined]


class NotificationRow(NamedTuple):
    """A message; the fields are those of the table, in its order."""

    id: str
    route: str
    recipient: str
    kind: str
    title: str
    body: str
    workloads: int
    created: int
    state: str
    attempts: int
    next_attempt: int
    finished: int
    problem: str


class Waiting(NamedTuple):
    """What is not delivered yet."""

    messages: int
    #: When the oldest was made, in seconds since the epoch; 0 when there is none.
    oldest: int


class Noted(NamedTuple):
    """What has to be known of a workload to see whether there is news of it."""

    id: str
    serial: str
    owner: str
    team: str
    environment: str
    criticality: str
    state: str
    failing_since: int
    missed_at: int
    retired_at: int
    told: str


_INSERT = Statement(insert(_row))
#: By how many routes are left out.
_due: dict[int, Statement] = {}
_WAITING = Statement(select(func.count(), func.coalesce(func.min(_row.c.created), 0)).where(_row.c.state == WAITING))
_NEWEST = Statement(select(_row).order_by(_row.c.created.desc(), _row.c.id).limit(bindparam("count")))
_NEWEST_IN = Statement(
    select(_row)
    .where(_row.c.state == bindparam("wanted"))
    .order_by(_row.c.created.desc(), _row.c.id)
    .limit(bindparam("count"))
)
_SETTLE = Statement(
    update(_row)
    .values(
        state=bindparam("new_state"),
        attempts=bindparam("new_attempts"),
        next_attempt=bindparam("new_next_attempt"),
        finished=bindparam("new_finished"),
        problem=bindparam("new_problem"),
    )
    .where(_row.c.id == bindparam("wanted"), _row.c.state == WAITING)
)
_TROUBLED = Statement(
    select(_row.c.route, func.max(_row.c.problem))
    .where(_row.c.state == WAITING, _row.c.problem != "")
    .group_by(_row.c.route)
    .order_by(_row.c.route)
    .limit(64)
)
_UNDELIVERED = Statement(select(func.count()).where(_row.c.state == WAITING, _row.c.attempts > 0))
_GIVEN_UP = Statement(select(func.count()).where(_row.c.state == GIVEN_UP, _row.c.next_attempt >= bindparam("since")))
# Finished ones have the time of that in next_attempt as well, which is in the index.
_SWEEP = Statement(
    delete(_row).where(
        _row.c.id.in_(
            select(_row.c.id)
            .where(_row.c.state == bindparam("wanted"), _row.c.next_attempt < bindparam("before"))
            .limit(BATCH)
            .scalar_subquery()
        )
    )
)

_IN_WINDOW = and_(_lineage.c.id > bindparam("after"), _lineage.c.id <= bindparam("last"))
_window = (
    select(_lineage.c.id)
    .where(_lineage.c.id > bindparam("after"))
    .order_by(_lineage.c.id)
    .limit(bindparam("count"))
    .subquery()
)
_WINDOW_END = Statement(select(func.max(_window.c.id)))
_TOLD = Statement(update(_lineage).values(told=bindparam("new_told")).where(_lineage.c.id == bindparam("wanted")))
_ONE = Statement(select(_lineage).where(_lineage.c.id == bindparam("wanted")))


def _noted(*, unowned: bool) -> Select[tuple[object, ...]]:
    found: ColumnElement[bool] = or_(_lineage.c.missed_at != 0, _lineage.c.told != "", _lineage.c.state == "failing")
    if unowned:
        found = or_(found, _lineage.c.owner == "")
    return select(*(_lineage.c[name] for name in Noted._fields)).where(_IN_WINDOW, found).order_by(_lineage.c.id)


_NOTED = Statement(_noted(unowned=False))
_NOTED_UNOWNED = Statement(_noted(unowned=True))


def add_notification(transaction: Transaction, row: NotificationRow) -> None:
    """Keep a message to be delivered."""
    transaction.execute(_INSERT, **row._asdict())


def due_notifications(
    transaction: Transaction, now: int, *, count: int, without: Sequence[str] = ()
) -> list[NotificationRow]:
    """Up to ``count`` messages that are to be tried by ``now``, not by the routes ``without``; what waits longest first."""
    statement = _due.get(len(without))
    if statement is None:
        left_out = [_row.c.route != bindparam(f"without_{number}") for number in range(len(without))]
        statement = _due[len(without)] = Statement(
            select(_row)
            .where(
                _row.c.state == WAITING,
                # What was made by a clock that was ahead does not wait for that time to come.
                or_(_row.c.next_attempt <= bindparam("now"), _row.c.created > bindparam("now")),
                *left_out,
            )
            .order_by(_row.c.next_attempt, _row.c.created)
            .limit(bindparam("count"))
        )
    names = {f"without_{number}": name for number, name in enumerate(without)}
    return [NotificationRow(*row) for row in transaction.all(statement, now=now, count=count, **names)]


def waiting(transaction: Transaction) -> Waiting:
    """How much waits."""
    row = transaction.one(_WAITING)
    return Waiting(int(row[0]), int(row[1])) if row else Waiting(0, 0)


def newest_notifications(transaction: Transaction, *, state: str = "", count: int) -> list[NotificationRow]:
    """Up to ``count`` messages, of one state if it is given, the newest first."""
    if state:
        return [NotificationRow(*row) for row in transaction.all(_NEWEST_IN, wanted=state, count=count)]
    return [NotificationRow(*row) for row in transaction.all(_NEWEST, count=count)]


def settle_notification(transaction: Transaction, row: NotificationRow) -> bool:
    """Store how the attempts at a message went; False when it does not wait any more.

    Of one that is finished, ``next_attempt`` has to be the time of that.
    """
    return (
        transaction.execute(
            _SETTLE,
            wanted=row.id,
            new_state=row.state,
            new_attempts=row.attempts,
            new_next_attempt=row.next_attempt,
            new_finished=row.finished,
            new_problem=row.problem,
        )
        == 1
    )


def troubled_routes(transaction: Transaction) -> dict[str, str]:
    """The routes by which something waits that could not be delivered, each with a reason."""
    return {str(route): str(problem) for route, problem in transaction.all(_TROUBLED)}


def count_undelivered(transaction: Transaction) -> int:
    """How many messages wait although it was tried to deliver them."""
    row = transaction.one(_UNDELIVERED)
    return int(row[0]) if row else 0


def count_given_up(transaction: Transaction, since: int) -> int:
    """How many messages were given up since ``since``."""
    row = transaction.one(_GIVEN_UP, since=since)
    return int(row[0]) if row else 0


def sweep_notifications(transaction: Transaction, *, before: int) -> int:
    """Remove up to :data:`BATCH` of each kind of finished messages that were finished before ``before``; how many."""
    return sum(transaction.execute(_SWEEP, wanted=state, before=before) for state in (DELIVERED, GIVEN_UP))


def noted_lineages(
    transaction: Transaction, *, after: str, count: int, unowned: bool
) -> tuple[str | None, list[Noted]]:
    """Those of the ``count`` workloads after ``after`` that may be news: missed, failing, told of before, or ``unowned``.

    The first part is the id of the last of all that were looked at, None when there were none.
    """
    row = transaction.one(_WINDOW_END, after=after, count=count)
    if row is None or row[0] is None:
        return None, []
    last = str(row[0])
    statement = _NOTED_UNOWNED if unowned else _NOTED
    return last, [Noted(*found) for found in transaction.all(statement, after=after, last=last)]


def lineages_with(transaction: Transaction, ids: Iterable[str]) -> dict[str, LineageRow]:
    """The workloads with these ids, by id; those that are gone are left out."""
    found = (transaction.one(_ONE, wanted=wanted) for wanted in ids)
    return {row[0]: LineageRow(*row) for row in found if row}


def set_told(transaction: Transaction, told: Iterable[tuple[str, str]]) -> None:
    """Remember what was told of workloads: pairs of their id and that."""
    for lineage_id, text in told:
        transaction.execute(_TOLD, wanted=lineage_id, new_told=text)
