"""What must hold when the dust has settled: what clients know is compared with what is kept and what is served.

Database and ledger are read by plain SQL. Three counts decide, and whatever else is wrong becomes a breach:

lost
    a client has a certificate, and the store does not have exactly that one, or its order has another one.
duplicated
    an order with two certificates, by the ledger or by what its client received.
unrecorded
    a certificate without its entries, an intent before an issued one, or a signature over a certificate without an intent.
"""

import hashlib
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.error import HTTPError

from cryptography.x509 import ocsp

from chaos.record import Received, Record
from chaos.watch import Watch, scopes
from chaos.world import GONE, Rows, World
from fakes import status_client
from privyseal_ca.errors import LedgerError
from privyseal_ca.issuance.record import issued_entry
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, open_note
from privyseal_ca.ledger.proofs import Receipt, verify_receipt
from privyseal_ca.ledger.tree import TreeHasher, leaf_hash

_PAGE: Final = 5000
#: CRLs say within ``status.interval`` what is revoked, and the next checkpoint covers it within a second; on a busy machine.
_PUBLISHED_SECONDS: Final = 20.0
#: Of the default profile in seconds: a day, and ten minutes before it for clocks that are wrong.
_LIFETIME: Final = 86_400 + 600
_ENDS: Final = ("certificate.issued", "certificate.abandoned", "issuer.certified")
_BUSY: Final = (ocsp.OCSPResponseStatus.TRY_LATER, ocsp.OCSPResponseStatus.INTERNAL_ERROR)


@dataclass
class Found:
    """What is wrong, each with the round that it belongs to where that is known."""

    lost: list[tuple[int, str]] = field(default_factory=list)
    duplicated: list[tuple[int, str]] = field(default_factory=list)
    unrecorded: list[tuple[int, str]] = field(default_factory=list)
    #: How many serials were abandoned, which is nothing wrong.
    abandoned: int = 0


@dataclass
class _Serial:
    """What the ledger says of a serial."""

    purpose: str
    intent: int
    tbs: str
    #: Kind and index of what followed.
    ends: list[tuple[str, int]] = field(default_factory=list)


class _Ledger:
    """All entries, read once."""

    def __init__(self, rows: Rows, sizes: Iterable[int], record: Record) -> None:
        self.serials: dict[str, _Serial] = {}
        self.leaves: list[bytes] = []
        self.revoked: set[str] = set()
        #: The root at each of ``sizes``.
        self.roots: dict[int, bytes] = {}
        wanted, tree = set(sizes), TreeHasher()
        for entry in _entries(rows):
            self._take(json.loads(entry), len(self.leaves), record)
            leaf = leaf_hash(entry)
            self.leaves.append(leaf)
            tree.append(leaf)
            if tree.size in wanted:
                self.roots[tree.size] = tree.root()

    def _take(self, members: dict[str, Any], index: int, record: Record) -> None:
        kind, payload = members["kind"], members["payload"]
        if kind == "certificate.intent":
            if payload["serial"] in self.serials:
                record.breach(f"the serial {payload['serial']} has two intents")
            self.serials[payload["serial"]] = _Serial(payload["purpose"], index, payload["tbs_sha256"])
        elif kind in _ENDS and payload["serial"] in self.serials:
            self.serials[payload["serial"]].ends.append((kind, index))
        elif kind == "certificate.revoked":
            self.revoked.add(payload["serial"])


def _entries(rows: Rows) -> Iterator[bytes]:
    first = 0
    while page := rows.all(f"SELECT entry FROM ledger_entry WHERE idx >= {first} ORDER BY idx LIMIT {_PAGE}"):  # noqa: S608
        first += len(page)
        for (entry,) in page:
            yield bytes(entry)


def check_kept(rows: Rows, record: Record, watch: Watch, found: Found) -> None:
    """Compare what clients know with the database. Nothing may be in flight."""
    ledger = _Ledger(rows, watch.notes, record)
    turns = {received.order: received.turn for received in record.received if received.order}
    _check_received(rows, record, ledger, found)
    _check_orders(rows, record, ledger, turns, found)
    for size, note in watch.notes.items():
        text, _ = open_note(note, [NoteVerifier.parse(watch.vkey)])
        if Checkpoint.parse(text).root != ledger.roots.get(size):
            record.breach(f"the checkpoint of {size} entries that was served is not that of the entries")


def _check_received(rows: Rows, record: Record, ledger: _Ledger, found: Found) -> None:
    stored = {serial: bytes(der) for serial, der in rows.all("SELECT serial, der FROM certificate")}
    orders = dict(rows.all("SELECT id, serial FROM acme_order"))
    revoked = {serial for (serial,) in rows.all("SELECT serial FROM revocation")}
    for received in record.received:
        serial = received.serial
        if stored.get(serial) != received.der or (received.order and orders.get(received.order) != serial):
            found.lost.append((received.turn, serial))
        known = ledger.serials.get(serial)
        issued = [index for kind, index in known.ends if kind == "certificate.issued"] if known else []
        tbs = hashlib.sha256(received.certificate.tbs_certificate_bytes).hexdigest()
        if (
            known is None
            or known.tbs != tbs
            or not any(
                known.intent < index and ledger.leaves[index] == leaf_hash(issued_entry(received.der))
                for index in issued
            )
        ):
            found.unrecorded.append((received.turn, serial))
        if (lifetime := received.lifetime) > _LIFETIME:
            record.breach(f"the certificate {serial} lives {lifetime:.0f} s, longer than its profile says")
        if received.revoked and not (serial in revoked and serial in ledger.revoked):
            record.breach(f"the revocation of {serial} was acknowledged and is not in store and ledger")
    for serial in stored.keys() - ledger.serials.keys():
        found.unrecorded.append((0, serial))


def _check_orders(rows: Rows, record: Record, ledger: _Ledger, turns: dict[str, int], found: Found) -> None:
    certificates: defaultdict[str, list[str]] = defaultdict(list)
    for serial, known in ledger.serials.items():
        kinds = Counter(kind for kind, _ in known.ends)
        if kinds.total() != 1:
            record.breach(f"the intent of {serial} has {kinds.total()} ends instead of one")
        if kinds["certificate.issued"]:
            certificates[known.purpose].append(serial)
    for purpose, serials in certificates.items():
        order = purpose.removeprefix("order:")
        if order != purpose and (len(serials) > 1 or order in record.twice):
            found.duplicated.append((turns.get(order, 0), order))
    # Orders that no ledger knows of twice, and of which a client has two certificates all the same.
    counted = {order for _, order in found.duplicated}
    found.duplicated += [(turns.get(order, 0), order) for order in record.twice if order not in counted]
    for (order,) in rows.all("SELECT id FROM acme_order WHERE state = 'processing'"):
        record.breach(f"the order {order} hangs in processing")
    for (serial,) in rows.all("SELECT serial FROM intent"):
        record.breach(f"the intent of {serial} is still open")
    revoked = {serial for (serial,) in rows.all("SELECT serial FROM revocation")}
    for serial, known in ledger.serials.items():
        if "certificate.abandoned" in {kind for kind, _ in known.ends}:
            found.abandoned += 1
            if serial not in revoked:
                record.breach(f"the serial {serial} was abandoned and is not revoked")


def check_signatures(signed: Iterable[tuple[int, bytes]], rows: Rows, record: Record, found: Found) -> None:
    """Compare what the issuing key signed, each the beginning of a message with its round, with the intents in the ledger."""
    intents = {
        json.loads(entry)["payload"]["serial"] for entry in _entries(rows) if b'"kind":"certificate.intent"' in entry
    }
    times: Counter[str] = Counter()
    for turn, message in signed:
        serial = serial_signed(message)
        if serial is not None:
            times[serial] += 1
            if serial not in intents:
                found.unrecorded.append((turn, f"signature over the certificate {serial}"))
    for serial, count in times.items():
        if count > 1:
            record.breach(f"the certificate {serial} was signed {count} times")


def serial_signed(message: bytes) -> str | None:
    """The serial in the beginning of a TBSCertificate (RFC 5280 section 4.1), as 32 hex digits; None for a TBSCertList.

    A certificate's version is in an explicit tag 0, a CRL's is a bare INTEGER.
    """
    length = message[1]
    at = 2 + (length & 0x7F if length & 0x80 else 0)
    if message[0] != 0x30 or message[at : at + 6] != b"\xa0\x03\x02\x01\x02\x02":
        return None
    begin = at + 7
    return f"{int.from_bytes(message[begin : begin + message[at + 6]], 'big'):032x}"


def check_round(world: World, record: Record, turn: int) -> None:
    """Compare a little of what came in a round, while everything goes on."""
    received = [each for each in record.received if each.turn == turn]
    for each in received:
        rows = world.rows.all(f"SELECT der FROM certificate WHERE serial = '{each.serial}'")  # noqa: S608
        if [bytes(der) for (der,) in rows] != [each.der]:
            record.breach(f"the certificate {each.serial} is not in the store after round {turn}")
    for each in [each for each in record.received if each.revoked][-3:]:
        _check_ocsp(world, each, record)


def check_served(world: World, record: Record, watch: Watch, chance: random.Random) -> None:
    """Compare what clients know with what is served, by a service that has nothing else to do now."""
    _check_receipts(world, record, watch)
    revoked = [each for each in record.received if each.revoked]
    for each in revoked:
        _check_ocsp(world, each, record)
    others = [each for each in record.received if not each.revoked]
    for each in chance.sample(others, min(len(others), 20)):
        _check_ocsp(world, each, record)
    _check_crls(world, record, watch, {each.certificate.serial_number for each in revoked})


def _check_receipts(world: World, record: Record, watch: Watch) -> None:
    verifiers = [NoteVerifier.parse(watch.vkey)]
    deadline = time.monotonic() + _PUBLISHED_SECONDS
    for each in record.received:
        while (receipt := _receipt(world, each)) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if receipt is None:
            record.breach(f"there is no receipt for {each.serial}")
            return
        try:
            verify_receipt(Receipt.parse(receipt.decode()), issued_entry(each.der), verifiers)
        except LedgerError as error:
            record.breach(f"the receipt for {each.serial} does not verify: {error.message}")


def _receipt(world: World, received: Received) -> bytes | None:
    try:
        return world.get_if_there(f"ledger/proof/{received.serial}")
    except HTTPError:
        return None


def _check_ocsp(world: World, received: Received, record: Record) -> None:
    """A certificate that its client knows to be revoked is never good again, and one that is not is never revoked."""
    try:
        answer = status_client.ask(received.certificate, received.issuer, url=f"{world.server.http_url}/ocsp")
    except GONE:
        return
    if answer.response_status in _BUSY:
        return
    status = answer.certificate_status
    if received.revoked and status is not ocsp.OCSPCertStatus.REVOKED:
        record.breach(f"OCSP says {status.name} of {received.serial}, whose revocation was acknowledged")
    if not received.revoked and status is not ocsp.OCSPCertStatus.GOOD:
        record.breach(f"OCSP says {status.name} of {received.serial}, which nobody revoked")


def _check_crls(world: World, record: Record, watch: Watch, revoked: set[int]) -> None:
    full, *parts = scopes(world)
    deadline = time.monotonic() + _PUBLISHED_SECONDS
    while True:
        for scope in (full, *parts):
            if der := world.get_if_there(scope):
                watch.crl(scope, der)
        listed = {serial for scope in parts for serial in watch.listed(scope)}
        missing = revoked - (watch.listed(full) & listed)
        if not missing:
            return
        if time.monotonic() > deadline:
            record.breach(f"{len(missing)} revocations were acknowledged and are on no CRL")
            return
        time.sleep(0.1)


def check_verify(world: World, record: Record, watch: Watch, chance: random.Random, since: int) -> None:
    """``privyseal ledger verify``, also from ``since`` checkpoints that were seen in the trial. The service has ended."""
    sizes = sorted(watch.notes)
    chosen = {*sizes[:1], *chance.sample(sizes, min(len(sizes), since - 1))}
    done = world.server.command("ledger", "verify", "--json", expect=None)
    if done.returncode or json.loads(done.stdout)["in_flight"]:
        record.breach(f"ledger verify gives {done.returncode}: {done.stdout.strip()} {done.stderr.strip()}")
    for size in sorted(chosen):
        file = world.folder / f"checkpoint-{size}"
        file.write_bytes(watch.notes[size])
        done = world.server.command("ledger", "verify", "--since", file, "--json", expect=None)
        if done.returncode:
            record.breach(
                f"ledger verify --since the checkpoint of {size}: {done.stdout.strip()} {done.stderr.strip()}"
            )
