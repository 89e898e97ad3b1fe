"""Certificates become workloads: each new one continues a lineage, or begins one.

Nothing of this is in the path of an order. A job reads the certificates that came since it last did, in the order of the ledger,
and keeps how far it is in the transaction that writes what came of them. So nothing is missed and nothing counted twice,
whatever happens in between.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final

import orjson
import structlog

from privyseal_acme.flow.fleet_notes import Attempts, FleetNotes, Subject, names_hash, subject_of
from privyseal_acme.flow.fleet_owners import Owners
from privyseal_acme.protocol.ari import parse_certificate_id
from privyseal_acme.protocol.problems import Problem
from privyseal_acme.protocol.urls import new_resource_id
from privyseal_acme.store.orders import find_order, order_of_certificate, orders_with_authorization
from privyseal_ca.clock import Clock
from privyseal_ca.errors import StoreError, StoreUnavailableError
from privyseal_ca.fleet.states import State, deadline_of
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.store.certificates import find_certificate
from privyseal_ca.store.engine import Store
from privyseal_ca.store.fleet import (
    FOLLOWED_FACT,
    LineageRow,
    NewCertificate,
    add_lineage,
    add_member,
    change_lineage,
    count_unborn,
    forget_unborn,
    lineage_of,
    lineage_of_newest,
    lineages_by_names,
    move_member,
    new_certificates,
    new_revocations,
    note_polls,
)
from privyseal_ca.store.issuers import find_fact, set_fact
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

_log = structlog.get_logger("fleet")

#: Certificates and revocations, questions, and failed attempts in one unit of work: a few milliseconds.
_BATCH: Final = 25
_POLLS: Final = 200
_ATTEMPTS: Final = 10
#: After how many seconds a unit of work takes up no further certificate: requests wait for it.
LONGEST_UNIT: Final = 0.008
#: How long one run goes on, in seconds; the next takes up the rest. Half of that time is everybody else's.
_LONGEST: Final = 10.0
_LONGEST_PAUSE: Final = 0.1
#: For how many seconds at most nothing is judged because much is still to be followed.
_LONGEST_BEHIND: Final = 1800.0
#: How long questions about certificates are kept that are not followed yet, in seconds.
_KEPT: Final = 60
#: What a row that cannot be understood raises. What the database raises is not among them.
UNREADABLE: Final = (ValueError, TypeError, LookupError, ArithmeticError)
#: Workloads of one requester that never had a certificate: what somebody invents who may not have one costs that much.
_MOST_UNBORN: Final = 32
#: Orders of an account that are looked through for the one that an authorization belongs to, from its beginning on.
_ORDERS: Final = 256
#: The part of a life after which, and a delay later, renewals are late where no window was ever known.
_DELAY: Final = 0.05


@dataclass(frozen=True, slots=True)
class _Followed:
    """Up to which index of the ledger certificates and revocations are followed."""

    certificates: int = -1
    revocations: int = -1


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one unit of work took up, whether it left something, and how the renewals went that were among it."""

    count: int
    more: bool
    results: tuple[str, ...]


class FleetFollower:
    """Keeps the workloads true to what was issued, revoked, asked and tried."""

    def __init__(
        self,
        *,
        store: Store,
        owners: Owners,
        notes: FleetNotes,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        metrics: Metrics,
        timer: Callable[[], float] = perf_counter,
    ) -> None:
        self._store = store
        self._owners = owners
        self._notes = notes
        self._clock = clock
        self._random_bytes = random_bytes
        self._metrics = metrics
        self._timer = timer
        #: Since when no run has come to the end, by the timer; None while the last one has.
        self._behind_since: float | None = timer()

    @property
    def behind(self) -> bool:
        """Whether certificates may be there that were not followed yet, and workloads therefore seem not to renew that do.

        It ends after half an hour in any case: what is said then may be wrong, but somebody is told.
        """
        return self._behind_since is not None and self._timer() - self._behind_since < _LONGEST_BEHIND

    async def follow(self) -> int:
        """Take up new certificates and revocations; how many there were.

        Raises:
            StoreError: the database did not do it. What was followed before stays.
        """
        begun, followed = perf_counter(), 0
        while (start := perf_counter()) - begun < _LONGEST:
            batch = await self._store.write(self._batch)
            followed += batch.count
            # Counted once it is durable: a unit that is undone counts nothing.
            for result in batch.results:
                self._metrics.renewals.labels(result).inc()
            if not batch.more:
                self._behind_since = None
                return followed
            await asyncio.sleep(min(perf_counter() - start, _LONGEST_PAUSE))
        if self._behind_since is None:
            self._behind_since = self._timer()
        return followed

    async def write_notes(self) -> None:
        """Write down what clients asked and what they failed at.

        Raises:
            StoreError: the database did not do it. The notes are kept for the next time.
        """
        begun, early = perf_counter(), list[tuple[str, int]]()
        try:
            while (start := perf_counter()) - begun < _LONGEST:
                polls, attempts = self._notes.take_polls(_POLLS), self._notes.take_attempts(_ATTEMPTS)
                if not polls and not attempts:
                    break
                unknown = await self._write(polls, attempts)
                early += [each for each in polls if each[0] in unknown]
                await asyncio.sleep(min(perf_counter() - start, _LONGEST_PAUSE))
        finally:
            # Of certificates that are not followed yet. Not before the end: what is taken up next would be these again.
            now = self._clock.now()
            self._notes.give_back(each for each in early if abs(now - each[1]) < _KEPT)

    async def _write(self, polls: Sequence[tuple[str, int]], attempts: Sequence[tuple[Subject, Attempts]]) -> set[str]:
        """Write some notes; the serials among them that are no workload's yet."""
        try:
            return await self._store.write(partial(self._write_notes, polls, attempts))
        except (StoreError, *UNREADABLE) as error:
            if isinstance(error, StoreUnavailableError):
                self._notes.give_back(polls, attempts)
                raise
            if len(polls) + len(attempts) == 1:
                # It would be in the way of all others for ever.
                _log.warning("a note of the fleet cannot be written", error=type(error).__name__)
                return set()
        except BaseException:
            self._notes.give_back(polls, attempts)
            raise
        unknown = set[str]()
        for each in polls:
            unknown |= await self._write([each], [])
        for attempt in attempts:
            unknown |= await self._write([], [attempt])
        return unknown

    # Certificates

    def _batch(self, transaction: Transaction) -> _Batch:
        begun = perf_counter()
        followed = _parse(find_fact(transaction, FOLLOWED_FACT))
        certificates, revocations = followed.certificates, followed.revocations
        rows, count, results = new_certificates(transaction, certificates, count=_BATCH), 0, list[str]()
        for row in rows:
            results.append(self._try_to_take_up(transaction, row))
            certificates, count = row.ledger_index, count + 1
            if perf_counter() - begun > LONGEST_UNIT:
                break
        revoked = new_revocations(transaction, revocations, count=_BATCH)
        for index, serial in revoked:
            revocations = index
            newest = lineage_of_newest(transaction, serial)
            if newest is not None:
                change_lineage(transaction, newest.id, next_look=0)
        if rows or revoked:
            set_fact(transaction, FOLLOWED_FACT, f"{certificates} {revocations}")
        more = count < len(rows) or len(rows) == _BATCH or len(revoked) == _BATCH
        return _Batch(max(count, len(revoked)), more, tuple(filter(None, results)))

    def _try_to_take_up(self, transaction: Transaction, row: NewCertificate) -> str:
        try:
            return self._take_up(transaction, row)
        except UNREADABLE:
            # All that came after it would not be followed either.
            _log.exception("a certificate is left out of the fleet", serial=row.serial)
            return ""

    def _take_up(self, transaction: Transaction, row: NewCertificate) -> str:
        """Give a certificate its place; how the renewal went that it is, or an empty text."""
        if not row.requester.startswith("account:") or lineage_of(transaction, row.serial) is not None:
            return ""
        order = order_of_certificate(transaction, row.serial)
        ordered = order.created if order else row.not_before
        before = self._before(transaction, row, order.replaces if order else None)
        lineage_id = before.id if before else new_resource_id(ordered, self._random_bytes(12))
        attribution = self._owners.of(transaction, row.requester, row.names, row.profile)
        changes: dict[str, Any] = {
            **self._owners.columns(attribution),
            "names": row.names,
            "profile": row.profile,
            "names_hash": names_hash(row.requester, row.profile, orjson.loads(row.names)),
            "serial": row.serial,
            "issuer_id": row.issuer_id,
            "not_before": row.not_before,
            "not_after": row.not_after,
            "certificates": before.certificates + 1 if before else 1,
            "renewed_at": ordered,
            "usual": _usual(before, ordered),
            **_FRESH,
            "state_since": before.state_since if before and before.state == State.CURRENT else ordered,
        }
        if before is not None:
            change_lineage(transaction, before.id, **changes)
        else:
            blank = LineageRow(lineage_id, row.requester, created=ordered)
            add_lineage(transaction, blank._replace(**changes))
        add_member(transaction, row.serial, lineage_id, row.not_before)
        # What tried to become what this has become was the same workload, and would be taken for it the next time.
        forget_unborn(transaction, changes["names_hash"], but=lineage_id)
        if before is None or not before.deadline or not before.renews:
            return ""
        return "late" if before.missed_at or ordered > before.deadline else "in_time"

    def _before(self, transaction: Transaction, row: NewCertificate, replaces: str | None) -> LineageRow | None:
        """The workload that the certificate is for, when it had one before or tried to."""
        if replaces is not None:
            with suppress(Problem):
                predecessor = serial_text(parse_certificate_id(replaces)[1])
                found = lineage_of(transaction, predecessor)
                if found is not None and found.requester == row.requester:
                    if found.serial == predecessor:
                        return found
                    # Two workloads were taken for one, as both have the same account and names: from here on they are apart.
                    return self._apart(transaction, found, predecessor)
        hashed = names_hash(row.requester, row.profile, orjson.loads(row.names))
        candidates = lineages_by_names(transaction, hashed)
        return min(candidates, key=lambda each: (each.retired_at > 0, each.not_after), default=None)

    def _apart(self, transaction: Transaction, found: LineageRow, predecessor: str) -> LineageRow:
        lineage_id = new_resource_id(found.created, self._random_bytes(12))
        certificate = find_certificate(transaction, predecessor)
        begin, end = (certificate.not_before, certificate.not_after) if certificate else (0, 0)
        fresh = {
            **_FRESH,
            # Nobody was told a window as long as it was taken for another's.
            "deadline": deadline_of(begin, end, begin, polls=False, poll=0, usual=0, delay=_DELAY),
        }
        row = found._replace(
            **fresh,
            id=lineage_id,
            serial=predecessor,
            not_before=begin,
            not_after=end,
            certificates=1,
            told="",
        )
        add_lineage(transaction, row)
        move_member(transaction, predecessor, lineage_id)
        change_lineage(transaction, found.id, certificates=max(1, found.certificates - 1))
        return row

    # Notes

    def _write_notes(
        self,
        polls: Sequence[tuple[str, int]],
        attempts: Sequence[tuple[Subject, Attempts]],
        transaction: Transaction,
    ) -> set[str]:
        for subject, noted in attempts:
            for meant in self._subjects(transaction, subject):
                self._write_attempts(transaction, meant, noted)
        return set(note_polls(transaction, polls))

    def _subjects(self, transaction: Transaction, subject: Subject) -> list[Subject]:
        """The subject itself; of an authorization, the orders that name it."""
        if subject.authorization is None:
            return [subject]
        account = subject.requester.removeprefix("account:")
        rows = orders_with_authorization(
            transaction, account, subject.authorization, begun=subject.begun, count=_ORDERS
        )
        return [subject_of(row) for row in rows]

    def _write_attempts(self, transaction: Transaction, subject: Subject, noted: Attempts) -> None:
        order = find_order(transaction, subject.order) if subject.order else None
        if order is not None and order.state == "valid":
            # Finalized once more, with a better CSR.
            return
        before = None
        if subject.replaces is not None:
            with suppress(Problem):
                before = lineage_of(transaction, serial_text(parse_certificate_id(subject.replaces)[1]))
        if before is None or before.requester != subject.requester:
            candidates = lineages_by_names(transaction, names_hash(subject.requester, subject.profile, subject.names))
            before = min(candidates, key=lambda each: (each.retired_at > 0, each.not_after), default=None)
        if before is None:
            self._begin_without(transaction, subject, noted)
        elif noted.last > before.renewed_at or before.renewed_at > self._clock.now():
            # What failed before the newest certificate was ordered has been overcome. Who was only thought to be gone is not.
            gone = not before.serial or before.retired_by == "time"
            back: dict[str, Any] = {"retired_at": 0, "retired_by": "", "retired_reason": ""} if gone else {}
            change_lineage(
                transaction,
                before.id,
                attempts=before.attempts + noted.count,
                failing_since=before.failing_since or noted.first,
                attempted_at=max(before.attempted_at, noted.last),
                attempt=noted.document,
                next_look=0,
                **back,
            )

    def _begin_without(self, transaction: Transaction, subject: Subject, noted: Attempts) -> None:
        """A workload whose first certificate does not come."""
        if not subject.names:
            return
        if count_unborn(transaction, subject.requester, most=_MOST_UNBORN) >= _MOST_UNBORN:
            return
        names = orjson.dumps(list(subject.names)).decode()
        attribution = self._owners.of(transaction, subject.requester, names, subject.profile)
        lineage_id = new_resource_id(noted.first, self._random_bytes(12))
        columns: dict[str, Any] = self._owners.columns(attribution)
        add_lineage(
            transaction,
            LineageRow(
                lineage_id,
                subject.requester,
                created=noted.first,
                state_since=noted.first,
                names=names,
                profile=subject.profile,
                names_hash=names_hash(subject.requester, subject.profile, subject.names),
                attempts=noted.count,
                failing_since=noted.first,
                attempted_at=noted.last,
                attempt=noted.document,
                state=State.FAILING,
                **columns,
            ),
        )


#: What a new certificate leaves behind.
_FRESH: Final[Mapping[str, Any]] = {
    "polled_at": 0,
    "window_start": 0,
    "window_end": 0,
    "deadline": 0,
    "attempts": 0,
    "failing_since": 0,
    "attempted_at": 0,
    "attempt": "",
    "state": State.CURRENT.value,
    "missed_at": 0,
    "revoked_at": 0,
    "retired_at": 0,
    "retired_by": "",
    "retired_reason": "",
    "next_look": 0,
}


def _usual(before: LineageRow | None, ordered: int) -> int:
    """After how many thousandths of its life the predecessor was renewed; what was known when that says nothing."""
    if before is None or not before.serial or before.revoked_at or before.not_after <= before.not_before:
        return before.usual if before else 0
    part = (ordered - before.not_before) * 1000 // (before.not_after - before.not_before)
    return max(1, min(1000, part))


def _parse(fact: str | None) -> _Followed:
    if fact is None:
        return _Followed()
    certificates, revocations = fact.split(" ")
    return _Followed(int(certificates), int(revocations))
