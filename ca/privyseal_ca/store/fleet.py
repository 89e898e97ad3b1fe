"""Statements on workloads. Only the process that leads writes states; commands write what operators decide."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, and_, bindparam, case, delete, func, insert, or_, select, update

from privyseal_ca.store.fleet_tables import Lineage, LineageCertificate
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import Certificate, Revocation

_lineage = Lineage.__table__  # type: ignore[attr-defined]
_member = LineageCertificate.__table__  # type: ignore[attr-defined]
_certificate = Certificate.__table__  # type: ignore[attr-defined]
_revocation = Revocation.__table__  # type: ignore[attr-defined]

#: The fact that says up to which entry of the ledger certificates, and revocations, have been followed.
FOLLOWED_FACT: Final = "fleet-followed"
#: The fact with the hash of what attributes were last given by.
RULES_FACT: Final = "fleet-rules"
#: The fact with the latest moment, in seconds since the epoch, at which states were judged.
JUDGED_FACT: Final = "fleet-judged"


class LineageRow(NamedTuple):
    """A workload; the fields are those of the table, in its order."""

    id: str
    requester: str
    names: str = ""
    profile: str = ""
    names_hash: bytes = b""
    serial: str = ""
    issuer_id: str = ""
    not_before: int = 0
    not_after: int = 0
    certificates: int = 0
    created: int = 0
    renewed_at: int = 0
    usual: int = 0
    owner: str = ""
    team: str = ""
    service: str = ""
    environment: str = ""
    criticality: str = ""
    labels: str = ""
    sources: str = ""
    renews: int = 0
    polled_at: int = 0
    window_start: int = 0
    window_end: int = 0
    deadline: int = 0
    attempts: int = 0
    failing_since: int = 0
    attempted_at: int = 0
    attempt: str = ""
    state: str = ""
    state_since: int = 0
    missed_at: int = 0
    revoked_at: int = 0
    retired_at: int = 0
    retired_by: str = ""
    retired_reason: str = ""
    next_look: int = 0
    told: str = ""


class NewCertificate(NamedTuple):
    """What is followed of a certificate."""

    ledger_index: int
    serial: str
    issuer_id: str
    profile: str
    requester: str
    names: str
    not_before: int
    not_after: int


_INSERT = Statement(insert(_lineage))
_BY_ID = Statement(select(_lineage).where(_lineage.c.id == bindparam("wanted")))
_BY_SERIAL = Statement(select(_lineage).where(_lineage.c.serial == bindparam("wanted")))
_BY_MEMBER = Statement(
    select(_lineage).join(_member, _member.c.lineage_id == _lineage.c.id).where(_member.c.serial == bindparam("wanted"))
)
#: The one whose certificate ends first is the one that a certificate without a predecessor replaces; those that are gone come
#: last, however many they are.
_BY_NAMES = Statement(
    select(_lineage)
    .where(_lineage.c.names_hash == bindparam("wanted"))
    .order_by(case((_lineage.c.retired_at > 0, 1), else_=0), _lineage.c.not_after, _lineage.c.created)
    .limit(64)
)
_PAGE = Statement(
    select(_lineage).where(_lineage.c.id > bindparam("after")).order_by(_lineage.c.id).limit(bindparam("count"))
)
_TROUBLED = Statement(
    select(_lineage)
    .where(
        _lineage.c.id > bindparam("after"),
        _lineage.c.retired_at == 0,
        _lineage.c.state.in_(["overdue", "silent", "failing", "revoked"]),
    )
    .order_by(_lineage.c.id)
    .limit(bindparam("count"))
)
_DUE = Statement(
    select(_lineage)
    .where(_lineage.c.next_look <= bindparam("now"))
    .order_by(_lineage.c.next_look)
    .limit(bindparam("count"))
    # What an operator says of an account while its workloads are judged marks them again, after that.
    .with_for_update(skip_locked=True)
)
_IS_MEMBER = Statement(select(_member.c.serial).where(_member.c.serial == bindparam("wanted")))
_ADD_MEMBER = Statement(insert(_member))
_MOVE_MEMBER = Statement(
    update(_member).values(lineage_id=bindparam("new_lineage")).where(_member.c.serial == bindparam("wanted"))
)
_MEMBERS = Statement(
    select(_member.c.serial)
    .where(_member.c.lineage_id == bindparam("wanted"), _member.c.not_before < bindparam("before"))
    .order_by(_member.c.not_before.desc(), _member.c.serial)
    .limit(bindparam("count"))
)
_FORGET = Statement(
    delete(_lineage).where(
        _lineage.c.id == bindparam("wanted"),
        _lineage.c.serial == bindparam("seen_serial"),
        _lineage.c.retired_at == bindparam("seen_retired_at"),
    )
)
#: Those without a certificate have no members.
_FORGET_UNBORN = Statement(
    delete(_lineage).where(
        _lineage.c.names_hash == bindparam("wanted"), _lineage.c.serial == "", _lineage.c.id != bindparam("but")
    )
)
_FORGET_MEMBERS = Statement(delete(_member).where(_member.c.lineage_id == bindparam("wanted")))
_UNBORN = Statement(
    select(func.count()).select_from(
        select(_lineage.c.id)
        .where(_lineage.c.requester == bindparam("requester"), _lineage.c.serial == "", _lineage.c.retired_at == 0)
        .limit(bindparam("count"))
        .subquery()
    )
)
_NEW = Statement(
    select(*(_certificate.c[name] for name in NewCertificate._fields))
    .where(_certificate.c.ledger_index > bindparam("index"))
    .order_by(_certificate.c.ledger_index)
    .limit(bindparam("count"))
)
_NEW_REVOCATIONS = Statement(
    select(_revocation.c.ledger_index, _revocation.c.serial)
    .where(_revocation.c.ledger_index > bindparam("index"))
    .order_by(_revocation.c.ledger_index)
    .limit(bindparam("count"))
)
#: Past this tenth of its life a certificate's window is settled (:data:`privyseal_ca.renewal.due.SETTLED`).
_SETTLED_TENTHS: Final = 3
_settled = _lineage.c.not_before * 10 + (_lineage.c.not_after - _lineage.c.not_before) * _SETTLED_TENTHS
_POLLED = Statement(
    update(_lineage)
    .values(
        polled_at=bindparam("moment"),
        next_look=case(
            (
                # The first question of all makes another deadline, as does the first about a settled window; the first in a
                # window another state. The others are news to nobody, however many they are.
                or_(
                    _lineage.c.polled_at == 0,
                    and_(_lineage.c.polled_at * 10 < _settled, bindparam("settled_by", type_=BigInteger) >= _settled),
                    and_(
                        _lineage.c.polled_at < _lineage.c.window_start,
                        bindparam("begun_by", type_=BigInteger) >= _lineage.c.window_start,
                    ),
                ),
                0,
            ),
            else_=_lineage.c.next_look,
        ),
    )
    .where(_lineage.c.serial == bindparam("wanted"), _lineage.c.polled_at < bindparam("moment"))
)
#: What is written by others than who judges.
_NEWS: Final = ("serial", "next_look", "polled_at", "attempts", "retired_at")
_changes: dict[tuple[str, ...], Statement] = {}
_LOOK_ALL = Statement(
    update(_lineage)
    .values(next_look=0)
    .where(
        _lineage.c.id >= bindparam("first"),
        _lineage.c.id <= bindparam("last"),
        or_(_lineage.c.retired_at == 0, _lineage.c.retired_at > bindparam("now")),
    )
)
_LOOK_REQUESTER = Statement(
    update(_lineage)
    .values(next_look=0)
    .where(_lineage.c.requester == bindparam("requester"), _lineage.c.retired_at == 0)
)


def add_lineage(transaction: Transaction, row: LineageRow) -> None:
    """Record a new workload."""
    transaction.execute(_INSERT, **row._asdict())


def change_lineage(transaction: Transaction, lineage_id: str, **changes: str | int | bytes) -> bool:
    """Set columns of a workload; False when it is not there."""
    names = tuple(sorted(changes))
    statement = _changes.get(names)
    if statement is None:
        values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in names}
        statement = _changes[names] = Statement(
            update(_lineage).values(values).where(_lineage.c.id == bindparam("wanted"))
        )
    parameters = {f"new_{name}": value for name, value in changes.items()}
    return transaction.execute(statement, wanted=lineage_id, **parameters) == 1


def find_lineage(transaction: Transaction, lineage_id: str) -> LineageRow | None:
    """The workload with the id."""
    row = transaction.one(_BY_ID, wanted=lineage_id)
    return LineageRow(*row) if row else None


def lineage_of_newest(transaction: Transaction, serial: str) -> LineageRow | None:
    """The workload whose newest certificate has the serial."""
    row = transaction.one(_BY_SERIAL, wanted=serial)
    return LineageRow(*row) if row else None


def lineage_of(transaction: Transaction, serial: str) -> LineageRow | None:
    """The workload that a certificate belongs to, its newest or an earlier one."""
    row = transaction.one(_BY_MEMBER, wanted=serial)
    return LineageRow(*row) if row else None


def lineages_by_names(transaction: Transaction, names_hash: bytes) -> list[LineageRow]:
    """The workloads of one requester, profile and set of names, the one whose certificate ends first before others."""
    return [LineageRow(*row) for row in transaction.all(_BY_NAMES, wanted=names_hash)]


def page_of_lineages(transaction: Transaction, *, after: str = "", count: int = 500) -> list[LineageRow]:
    """Up to ``count`` workloads whose id is after ``after``, by id."""
    return [LineageRow(*row) for row in transaction.all(_PAGE, after=after, count=count)]


def troubled_lineages(transaction: Transaction, *, after: str = "", count: int = 500) -> list[LineageRow]:
    """Up to ``count`` workloads that somebody has to look after and whose id is after ``after``, by id."""
    return [LineageRow(*row) for row in transaction.all(_TROUBLED, after=after, count=count)]


def lineages_to_look_at(transaction: Transaction, now: int, *, count: int) -> list[LineageRow]:
    """Up to ``count`` workloads whose state may have changed by ``now``."""
    return [LineageRow(*row) for row in transaction.all(_DUE, now=now, count=count)]


def judge_lineage(transaction: Transaction, seen: LineageRow, **changes: str | int) -> bool:
    """Set columns of a workload that is still as it was ``seen``; False when there has been news, which are judged next."""
    names = ("judged", *sorted(changes))
    statement = _changes.get(names)
    if statement is None:
        values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in names[1:]}
        same = [_lineage.c[name] == bindparam(f"seen_{name}") for name in _NEWS]
        statement = _changes[names] = Statement(
            update(_lineage).values(values).where(_lineage.c.id == bindparam("wanted"), *same)
        )
    parameters = {f"new_{name}": value for name, value in changes.items()}
    parameters |= {f"seen_{name}": getattr(seen, name) for name in _NEWS}
    return transaction.execute(statement, wanted=seen.id, **parameters) == 1


def forget_lineage(transaction: Transaction, seen: LineageRow) -> bool:
    """Remove a workload, and which certificates were its, unless it is back since it was ``seen``."""
    forgotten = (
        transaction.execute(_FORGET, wanted=seen.id, seen_serial=seen.serial, seen_retired_at=seen.retired_at) == 1
    )
    if forgotten:
        transaction.execute(_FORGET_MEMBERS, wanted=seen.id)
    return forgotten


def forget_unborn(transaction: Transaction, names_hash: bytes, *, but: str) -> None:
    """Remove the workloads of one requester, profile and set of names that never had a certificate, ``but`` one."""
    transaction.execute(_FORGET_UNBORN, wanted=names_hash, but=but)


def look_at_these(transaction: Transaction, ids: Sequence[str], now: int) -> None:
    """Have the states of these neighbours, given in order, judged anew: of those that live, or were retired later than ``now``."""
    if ids:
        transaction.execute(_LOOK_ALL, first=ids[0], last=ids[-1], now=now)


def look_at_requester(transaction: Transaction, requester: str) -> int:
    """Have the states of a requester's workloads judged anew; how many there are."""
    return transaction.execute(_LOOK_REQUESTER, requester=requester)


def add_member(transaction: Transaction, serial: str, lineage_id: str, not_before: int) -> None:
    """Count a certificate among a workload's."""
    transaction.execute(_ADD_MEMBER, serial=serial, lineage_id=lineage_id, not_before=not_before)


def move_member(transaction: Transaction, serial: str, lineage_id: str) -> None:
    """Count a certificate among another workload's."""
    transaction.execute(_MOVE_MEMBER, wanted=serial, new_lineage=lineage_id)


def members(transaction: Transaction, lineage_id: str, *, before: int = 2**62, count: int = 100) -> list[str]:
    """Serials of up to ``count`` certificates of a workload that began before ``before``, the newest first."""
    return [str(row[0]) for row in transaction.all(_MEMBERS, wanted=lineage_id, before=before, count=count)]


def count_unborn(transaction: Transaction, requester: str, *, most: int) -> int:
    """How many workloads of a requester have never had a certificate, counted up to ``most``."""
    row = transaction.one(_UNBORN, requester=requester, count=most)
    return int(row[0]) if row else 0


def new_certificates(transaction: Transaction, index: int, *, count: int) -> list[NewCertificate]:
    """The first ``count`` certificates after ledger index ``index``, in order."""
    return [NewCertificate(*row) for row in transaction.all(_NEW, index=index, count=count)]


def new_revocations(transaction: Transaction, index: int, *, count: int) -> list[tuple[int, str]]:
    """Ledger index and serial of the first ``count`` revocations after ledger index ``index``, in order."""
    return [(int(row[0]), str(row[1])) for row in transaction.all(_NEW_REVOCATIONS, index=index, count=count)]


def note_polls(transaction: Transaction, polls: Iterable[tuple[str, int]]) -> list[str]:
    """Write down when renewal information was asked for, by serial; the serials that are no workload's yet."""
    return [
        serial
        for serial, moment in polls
        if not transaction.execute(_POLLED, wanted=serial, moment=moment, begun_by=moment, settled_by=10 * moment)
        and transaction.one(_IS_MEMBER, wanted=serial) is None
    ]
