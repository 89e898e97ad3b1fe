"""Whether each new certificate is in the ledger as promised (P2, P3), looked up while the service runs.

``privyseal ledger verify`` checks everything, and somebody has to run it. This looks at what is new, once: the entries between
where it stopped and what the newest checkpoint covers, and the certificates' rows that name them. A certificate is complete
when the entry at its index is the one that follows from its row, has the hash that the tree has of it, and closes an intent
for the same serial, issuer, TBSCertificate, requester and profile. An entry without a row is as wrong as a row without an entry.

What no checkpoint covers yet waits for the next look. That checkpoints are late is told by what signs them.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from time import perf_counter
from typing import Any, Final, NamedTuple

import orjson
import structlog
from sqlalchemy import bindparam, select

from privyseal_ca.clock import Clock, rfc3339_milliseconds
from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.checkpoint_rows import latest_checkpoint
from privyseal_ca.ledger.entries import Kind, Payload, encode_members
from privyseal_ca.ledger.log import size
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.store.engine import Store
from privyseal_ca.store.renewals import issued_after
from privyseal_ca.store.statement import Row, Statement, Transaction
from privyseal_ca.store.tables import Certificate, LedgerEntry
from privyseal_ca.telemetry.metrics import Metrics

_log = structlog.get_logger("ledger")

_entry = LedgerEntry.__table__  # type: ignore[attr-defined]
_certificate = Certificate.__table__  # type: ignore[attr-defined]

#: Entries read at a time, two milliseconds of the event loop, and how often in one look.
_PAGE: Final = 400
_PAGES: Final = 1000
#: After a page that took longer than so many seconds to judge the next is half as long, down to so many entries: clients choose
#: how many names certificates have.
_LONGEST_STEP: Final = 0.003
_LEAST: Final = 20
#: With which certificates a start begins: those of so many seconds.
_SINCE: Final = 86400
#: How far before them intents are looked for, in seconds and in entries, whichever is further: a signature may take a while.
_BEFORE: Final = 300
_BEFORE_ENTRIES: Final = 10_000
#: Intents that are remembered; no service has as many under way.
_MOST_OPEN: Final = 100_000
#: What one look logs and remembers of what is wrong; all of it is counted.
_MOST_TOLD: Final = 100
_LONGEST_PAUSE: Final = 0.1

_ENTRIES = Statement(
    select(_entry.c.idx, _entry.c.leaf_hash, _entry.c.entry)
    .where(_entry.c.idx >= bindparam("first"), _entry.c.idx < bindparam("end"))
    .order_by(_entry.c.idx)
)
_COLUMNS = ("ledger_index", "serial", "issuer_id", "profile", "requester", "names", "not_before", "not_after")
_CERTIFICATES = Statement(
    select(*(_certificate.c[name] for name in _COLUMNS), _certificate.c.spki_sha256, _certificate.c.der)
    .where(_certificate.c.ledger_index >= bindparam("first"), _certificate.c.ledger_index < bindparam("end"))
    .order_by(_certificate.c.ledger_index)
    # An index has one certificate. Where somebody has put many there, they need not all be looked at.
    .limit(2 * _PAGE)
)
_BEYOND = Statement(
    select(_certificate.c.ledger_index, _certificate.c.serial)
    .where(_certificate.c.ledger_index >= bindparam("end"))
    .order_by(_certificate.c.ledger_index.desc())
    .limit(_MOST_TOLD)
)


@dataclass(frozen=True, slots=True)
class Looked:
    """What one look found: certificates by how they are, those that nothing covers yet not among them."""

    complete: int
    incomplete: int
    #: Whether it came to the end of what is covered.
    finished: bool


class _Claim(NamedTuple):
    """A certificate's row."""

    ledger_index: int
    serial: str
    issuer_id: str
    profile: str
    requester: str
    names: str
    not_before: int
    not_after: int
    spki_sha256: bytes
    der: bytes


class _Intent(NamedTuple):
    issuer: str
    tbs_sha256: str
    requester: str
    profile: str


class _Beginning(NamedTuple):
    """From which entry on intents are looked for, and from which on certificates."""

    entry: int
    certificate: int


class _Page(NamedTuple):
    """Entries, the rows of certificates that name them, and up to where there are more."""

    entries: Sequence[Row]
    claims: Sequence[_Claim]
    covered: int


class Completeness:
    """Looks up new certificates, from those of the last day on. What it knows is of this process, and begins anew with it."""

    def __init__(self, *, store: Store, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        #: The next entry, and from which on certificates are judged; nothing yet while it is None.
        self._next: int | None = None
        self._first = 0
        self._open: dict[str, _Intent] = {}
        #: Serials of rows whose index the ledger does not have, told once.
        self._beyond: set[str] = set()
        #: The ledger's size at the look before, and whether it was told that no checkpoint covers that.
        self._before = 0
        self._late = False
        self._complete = 0
        self._incomplete = 0
        #: How many entries the next page has at most.
        self._count = _PAGE
        for result in ("complete", "incomplete"):
            metrics.audited.labels(result)

    async def look(self) -> Looked:
        """Look up a bounded number of what is new; to be called once a minute.

        Raises:
            StoreUnavailableError: the database is away. The next look goes on where this one stopped.
        """
        self._complete = self._incomplete = 0
        at = self._next
        if at is None:
            begin = await self._store.read(partial(_beginning, now=self._clock.now()))
            at, self._first = begin.entry, begin.certificate
        finished = False
        for _ in range(_PAGES):
            begun, complete, count = perf_counter(), self._complete, min(self._count, _PAGE)
            page = await self._store.read(partial(_page, first=at, count=count))
            end = max(at, min(at + count, page.covered))
            judged = perf_counter()
            self._judge(page, range(at, end))
            slow = perf_counter() - judged > _LONGEST_STEP
            self._count = max(count // 2, _LEAST) if slow else 2 * count
            self._metrics.audited.labels("complete").inc(self._complete - complete)
            at = self._next = end
            finished = end >= page.covered
            if finished:
                break
            # Half of the time is everybody else's.
            await asyncio.sleep(min(perf_counter() - begun, _LONGEST_PAUSE))
        await self._look_beyond()
        return Looked(self._complete, self._incomplete, finished)

    async def _look_beyond(self) -> None:
        """What nothing covers although it was there a minute ago, and rows with an index that the ledger does not have."""
        end, covered, beyond = await self._store.read(_end)
        late = covered < self._before
        if late and not self._late:
            _log.warning("entries of the ledger wait for a checkpoint", first=covered, size=self._before)
        self._before, self._late = end, late
        for index, serial in beyond:
            if serial not in self._beyond:
                self._tell(index, serial, "the ledger has no entry of its index")
                if len(self._beyond) < _MOST_TOLD:
                    self._beyond.add(serial)

    def _judge(self, page: _Page, span: range) -> None:
        claims: dict[int, list[_Claim]] = {}
        for claim in page.claims:
            claims.setdefault(claim.ledger_index, []).append(claim)
        for index, leaf, entry in page.entries:
            kind = _kind_of(entry)
            claimed = claims.pop(index, ())
            if kind == Kind.ISSUED:
                self._issued(index, leaf, entry, claimed)
                continue
            if kind == Kind.INTENT:
                self._intent(leaf, entry)
            elif kind in {Kind.ABANDONED, Kind.ISSUER_CERTIFIED}:
                self._open.pop(_text(_members(entry)[1], "serial"), None)
            for claim in claimed:
                self._tell(index, claim.serial, "the entry of its index is another")
        for index, missing in claims.items():
            for claim in missing:
                self._tell(index, claim.serial, "the entry of its index is missing")
        if len(page.entries) != len(span):
            # Whatever else is missing may have been a certificate's, which is then gone with it.
            there = {row[0] for row in page.entries} | claims.keys()
            lost = [index for index in span if index not in there]
            if lost:
                self._tell(lost[0], "", f"{len(lost)} entries are missing from this one on, not all of them in a row")

    def _intent(self, leaf: object, entry: bytes) -> None:
        members, payload = _members(entry)
        if leaf_hash(entry) != leaf:
            # Whatever it says is not what was promised: its certificate has none.
            return
        if len(self._open) >= _MOST_OPEN:
            del self._open[next(iter(self._open))]
        self._open[_text(payload, "serial")] = _Intent(
            _text(payload, "issuer"), _text(payload, "tbs_sha256"), _text(members, "actor"), _text(payload, "profile")
        )

    def _issued(self, index: int, leaf: object, entry: bytes, claimed: Sequence[_Claim]) -> None:
        payload = _members(entry)[1]
        serial = _text(payload, "serial")
        intent = self._open.pop(serial, None)
        if index < self._first:
            return
        if not claimed:
            self._tell(index, serial, "no certificate has this entry")
        for claim in claimed:
            problem = _problem(claim, leaf, entry, payload, intent)
            if problem:
                self._tell(index, claim.serial, problem)
            else:
                self._complete += 1

    def _tell(self, index: int, serial: str, why: str) -> None:
        if index < self._first:
            return
        self._incomplete += 1
        self._metrics.audited.labels("incomplete").inc()
        if self._incomplete <= _MOST_TOLD:
            _log.error("a certificate is not in the ledger as it must be", serial=serial, index=index, why=why)


def _problem(claim: _Claim, leaf: object, entry: bytes, payload: Payload, intent: _Intent | None) -> str:
    """What is wrong with a certificate whose index has an entry ``certificate.issued``; empty when nothing is."""
    if payload.get("serial") != claim.serial:
        return "the entry of its index is that of another certificate"
    if leaf_hash(entry) != leaf:
        return "its entry does not have the hash that was stored with it"
    if entry != _expected(claim, payload):
        return "its entry does not follow from it"
    if intent is None:
        return "there is no intent before it"
    if intent != (claim.issuer_id, payload["tbs_sha256"], claim.requester, claim.profile):
        return "its intent was for something else"
    return ""


def _expected(claim: _Claim, payload: Payload) -> bytes | None:
    """The entry that the row and its certificate lead to. The hash of what was signed is the intent's to confirm.

    To parse the certificate would cost more than all the rest, and its hash is that of all of it. A restore may know a
    certificate by its entry only.
    """
    der_sha256 = sha256(claim.der).hexdigest() if claim.der else payload.get("certificate_sha256")
    try:
        return encode_members(
            Kind.ISSUED,
            rfc3339_milliseconds(claim.not_before),
            f"issuer:{claim.issuer_id}",
            claim.serial,
            {
                "certificate_sha256": der_sha256,
                "issuer": claim.issuer_id,
                "names": orjson.loads(claim.names),
                "not_after": claim.not_after,
                "not_before": claim.not_before,
                "serial": claim.serial,
                "spki_sha256": claim.spki_sha256.hex(),
                "tbs_sha256": payload.get("tbs_sha256"),
            },
        )
    except (LedgerError, TypeError, ValueError, OverflowError):
        # SQLite keeps whatever type somebody puts into a column.
        return None


def _beginning(transaction: Transaction, now: float) -> _Beginning:
    end = size(transaction)
    first = _first_since(transaction, now - _SINCE, end)
    earlier = min(_first_since(transaction, now - _SINCE - _BEFORE, end), first - _BEFORE_ENTRIES)
    return _Beginning(max(0, earlier), first)


def _first_since(transaction: Transaction, moment: float, end: int) -> int:
    """The first index, up to ``end``, after which certificates are valid from ``moment`` on: about in the order of the ledger."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        found = issued_after(transaction, middle - 1, count=1)
        if not found or found[0][1] >= moment:
            high = middle
        else:
            low = min(found[0][0] + 1, high)
    return low


def _page(transaction: Transaction, first: int, count: int) -> _Page:
    latest = latest_checkpoint(transaction)
    covered = 0 if latest is None else latest.size
    end = min(first + count, covered)
    if end <= first:
        return _Page((), (), covered)
    claims = [_Claim(*row) for row in transaction.all(_CERTIFICATES, first=first, end=end)]
    return _Page(transaction.all(_ENTRIES, first=first, end=end), claims, covered)


def _end(transaction: Transaction) -> tuple[int, int, list[Row]]:
    """The ledger's size, up to where it is covered, and certificates that say that they are beyond its end."""
    end, latest = size(transaction), latest_checkpoint(transaction)
    return end, 0 if latest is None else latest.size, transaction.all(_BEYOND, end=end)


_KIND: Final = b'"kind":"'


def _kind_of(entry: object) -> str:
    """The kind of an entry, without parsing it: in canonical form nothing before it can hold these octets."""
    if not isinstance(entry, bytes):
        return ""
    begin = entry.find(_KIND) + len(_KIND)
    end = entry.find(b'"', begin)
    return entry[begin:end].decode(errors="replace") if end > begin >= len(_KIND) else ""


def _members(entry: bytes) -> tuple[dict[str, Any], Payload]:
    """The members of an entry and its payload; none where somebody has made something else of it."""
    try:
        members = orjson.loads(entry)
    except orjson.JSONDecodeError:
        return {}, {}
    payload = members.get("payload") if isinstance(members, dict) else None
    return (members, payload) if isinstance(payload, dict) else ({}, {})


def _text(members: dict[str, Any], name: str) -> str:
    value = members.get(name)
    return value if isinstance(value, str) else ""
