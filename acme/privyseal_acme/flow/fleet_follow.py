"""Certificates become workloads: each new one continues a lineage, or begins one.

Nothing of this is in the path of an order. A job reads the certificates that came since it last did, in the order of the ledger,
and keeps how far it is in the transaction that writes what came of them. So nothing is missed and nothing counted twice,
whatever happens in between.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final

import orjson

from privyseal_acme.flow.fleet_notes import Attempts, FleetNotes, Subject, names_hash, subject_of
from privyseal_acme.flow.fleet_owners import Owners
from privyseal_acme.protocol.ari import parse_certificate_id
from privyseal_acme.protocol.problems import Problem
from privyseal_acme.protocol.urls import new_resource_id
from privyseal_acme.store.orders import find_order, order_of_certificate, page_of_orders
from privyseal_ca.clock import Clock
from privyseal_ca.fleet.states import State
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

#: Certificates, revocations and notes in one unit of work: a few milliseconds.
_BATCH: Final = 50
#: How long one run goes on, in seconds; the next takes up the rest.
_LONGEST: Final = 5.0
#: Workloads of one requester that never had a certificate: what somebody invents who may not have one costs that much.
_MOST_UNBORN: Final = 32
#: Orders of an account that are looked through for the one that an authorization belongs to.
_ORDERS: Final = 64


@dataclass(frozen=True, slots=True)
class _Followed:
    """Up to which index of the ledger certificates and revocations are followed."""

    certificates: int = -1
    revocations: int = -1


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
    ) -> None:
        self._store = store
        self._owners = owners
        self._notes = notes
        self._clock = clock
        self._random_bytes = random_bytes
        self._metrics = metrics

    async def follow(self) -> int:
        """Take up new certificates and revocations; how many there were.

        Raises:
            StoreError: the database did not do it. What was followed before stays.
        """
        begun, followed = perf_counter(), 0
        while perf_counter() - begun < _LONGEST:
            count, results = await self._store.write(self._batch)
            followed += count
            # Counted once it is durable: a unit that is undone counts nothing.
            for result in results:
                self._metrics.renewals.labels(result).inc()
            if count < _BATCH:
                break
        return followed

    async def write_notes(self) -> None:
        """Write down what clients asked and what they failed at.

        Raises:
            StoreError: the database did not do it. The notes are kept for the next time.
        """
        polls = self._notes.take_polls(10 * _BATCH)
        attempts = self._notes.take_attempts(_BATCH)
        while polls or attempts:
            try:
                unknown = await self._store.write(partial(self._write_notes, polls, attempts))
            except BaseException:
                self._notes.give_back(polls, attempts)
                raise
            # Of certificates that are not followed yet. What is left of those that are no workload's ends with the next run.
            now = self._clock.now()
            self._notes.give_back(
                (serial, moment) for serial, moment in polls if serial in unknown and now - moment < 60
            )
            if len(polls) < 10 * _BATCH and len(attempts) < _BATCH:
                break
            polls, attempts = self._notes.take_polls(10 * _BATCH), self._notes.take_attempts(_BATCH)

    # Certificates

    def _batch(self, transaction: Transaction) -> tuple[int, list[str]]:
        followed = _parse(find_fact(transaction, FOLLOWED_FACT))
        rows = new_certificates(transaction, followed.certificates, count=_BATCH)
        results = [result for row in rows if (result := self._take_up(transaction, row))]
        revoked = new_revocations(transaction, followed.revocations, count=_BATCH)
        for _, serial in revoked:
            row = lineage_of_newest(transaction, serial)
            if row is not None:
                change_lineage(transaction, row.id, next_look=0)
        if rows or revoked:
            certificates = rows[-1].ledger_index if rows else followed.certificates
            revocations = revoked[-1][0] if revoked else followed.revocations
            set_fact(transaction, FOLLOWED_FACT, f"{certificates} {revocations}")
        return max(len(rows), len(revoked)), results

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
        row = found._replace(
            **_FRESH,
            id=lineage_id,
            serial=predecessor,
            not_before=certificate.not_before if certificate else 0,
            not_after=certificate.not_after if certificate else 0,
            certificates=1,
            told="",
        )
        add_lineage(transaction, row)
        move_member(transaction, predecessor, lineage_id)
        change_lineage(transaction, found.id, certificates=max(1, found.certificates - 1))
        return row

    # Notes

    def _write_notes(
        self, polls: list[tuple[str, int]], attempts: list[tuple[Subject, Attempts]], transaction: Transaction
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
        page = page_of_orders(transaction, account, before=(2**62, ""), count=_ORDERS)
        rows = [row for order_id, _ in page if (row := find_order(transaction, order_id)) is not None]
        return [subject_of(row) for row in rows if subject.authorization in orjson.loads(row.authorizations)]

    def _write_attempts(self, transaction: Transaction, subject: Subject, noted: Attempts) -> None:
        before = None
        if subject.replaces is not None:
            with suppress(Problem):
                before = lineage_of(transaction, serial_text(parse_certificate_id(subject.replaces)[1]))
        if before is None or before.requester != subject.requester:
            candidates = lineages_by_names(transaction, names_hash(subject.requester, subject.profile, subject.names))
            before = min(candidates, key=lambda each: (each.retired_at > 0, each.not_after), default=None)
        if before is None:
            self._begin_without(transaction, subject, noted)
        elif noted.last > before.renewed_at:
            # What failed before the newest certificate was ordered has been overcome.
            back: dict[str, Any] = {} if before.serial else {"retired_at": 0, "retired_by": "", "retired_reason": ""}
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
