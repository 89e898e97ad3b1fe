"""What must hold in a database whatever has happened to the processes that used it (promises P2, P3 and P4)."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, select

from privyseal_acme.store.orders import OrderRow, count_processing, find_order
from privyseal_acme.store.tables import Order
from privyseal_ca.issuance.record import issued_entry
from privyseal_ca.ledger.audit import Auditor, AuditReport
from privyseal_ca.ledger.entries import Kind, decode_entry
from privyseal_ca.ledger.log import entries
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.certificates import (
    CertificateRow,
    RevocationRow,
    find_certificate,
    find_revocation,
    open_intents,
)
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Statement, Transaction

_order = Order.__table__  # type: ignore[attr-defined]
_ORDERS = Statement(select(_order.c.id).where(_order.c.state != bindparam("state")).order_by(_order.c.id))
_CESSATION_OF_OPERATION = 5


@dataclass(frozen=True)
class History:
    """What became of one order."""

    row: OrderRow
    #: The serials of its intents in their order, and what followed each.
    serials: dict[str, list[str]]
    certificate: CertificateRow | None

    @property
    def abandoned(self) -> list[str]:
        """The serials that came to nothing."""
        return [serial for serial, ends in self.serials.items() if ends == [Kind.ABANDONED]]


@dataclass
class _Reading:
    histories: dict[str, History] = field(default_factory=dict)
    revocations: dict[str, RevocationRow | None] = field(default_factory=dict)
    open: int = 0
    processing: int = 0


def check_promises(url: str) -> tuple[AuditReport, dict[str, History]]:
    """Check the whole database at ``url``, in which nothing may be in flight; every order's history by its id."""

    async def work() -> tuple[AuditReport, _Reading]:
        store = Store(backend_for(url, durable=True, timeout=10), queue=16)
        await store.open()
        try:
            report = await Auditor(store, issued_entry=issued_entry).run()
            return report, await store.read(_read)
        finally:
            await store.close()

    report, found = asyncio.run(work())
    assert report.in_flight == found.open == 0, "an intent is open"
    assert found.processing == 0, "an order hangs"
    for history in found.histories.values():
        _check(history, found.revocations)
    return report, found.histories


def _check(history: History, revocations: dict[str, RevocationRow | None]) -> None:
    ends = [end for each in history.serials.values() for end in each]
    assert all(len(each) == 1 for each in history.serials.values()), "an intent that did not end once"
    assert ends.count(Kind.ISSUED) == (history.row.state == "valid"), "an order has one certificate or none"
    for serial in history.abandoned:
        revocation = revocations[serial]
        assert revocation is not None, "an abandoned serial is not on the revocation list"
        assert revocation.reason == _CESSATION_OF_OPERATION
    if history.row.state == "valid":
        assert history.certificate is not None
        assert history.serials[history.certificate.serial] == [Kind.ISSUED]
        assert history.row.serial not in history.abandoned


def _read(transaction: Transaction) -> _Reading:
    found = _Reading(open=len(open_intents(transaction)), processing=count_processing(transaction))
    serials: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    ends: dict[str, list[str]] = {}
    first = 0
    while page := list(entries(transaction, first=first)):
        first += len(page)
        for stored in page:
            members: dict[str, Any] = decode_entry(stored.entry)
            payload = members["payload"]
            if members["kind"] == Kind.INTENT:
                ends[payload["serial"]] = serials[payload.get("purpose", "")].setdefault(payload["serial"], [])
            elif members["kind"] in {Kind.ISSUED, Kind.ABANDONED}:
                ends[payload["serial"]].append(members["kind"])
            if members["kind"] == Kind.ABANDONED:
                found.revocations[payload["serial"]] = find_revocation(
                    transaction, payload["issuer"], payload["serial"]
                )
    for (order_id,) in transaction.all(_ORDERS, state=""):
        row = find_order(transaction, order_id)
        assert row is not None
        certificate = find_certificate(transaction, row.serial) if row.serial else None
        found.histories[order_id] = History(row, serials[f"order:{order_id}"], certificate)
    return found
