"""Checking the whole ledger against itself, the tables and every certificate (promises P2, P3, P4 and P6).

Entries are read in pages and forgotten; what is kept grows with the issuances in flight and the serials revoked. What is
said of revocations is checked in :mod:`privyseal_ca.ledger.audit_revocations`, CRLs in
:mod:`privyseal_ca.ledger.audit_crls`, keys in :mod:`privyseal_ca.ledger.audit_keys`, checkpoints and tiles in :mod:`privyseal_ca.ledger.audit_checkpoints`. The check
runs beside a service at work: it ends at the size that the ledger has when everything else has been looked at.

What it cannot see is a ledger that somebody rewrote as a whole, tables included. For that, keep a checkpoint elsewhere and
give it as ``since``, or size and root of an earlier check as ``expected``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.audit_checkpoints import CheckpointAudit, require_continued
from privyseal_ca.ledger.audit_crls import CrlAudit
from privyseal_ca.ledger.audit_errors import AuditError, wrong, wrong_about
from privyseal_ca.ledger.audit_keys import KeyAudit
from privyseal_ca.ledger.audit_restores import RestoreAudit
from privyseal_ca.ledger.audit_revocations import RevocationAudit
from privyseal_ca.ledger.audit_tables import (
    count_certificates,
    end_of_ledger,
    pointers_agree,
    row_agrees,
    unrecorded_certificates,
)
from privyseal_ca.ledger.cosignatures import CosignatureVerifier
from privyseal_ca.ledger.entries import Kind, Payload, decode_entry
from privyseal_ca.ledger.log import StoredEntry, entries, size
from privyseal_ca.ledger.note import Checkpoint
from privyseal_ca.ledger.tree import TreeHasher, leaf_hash
from privyseal_ca.store.certificates import find_certificate
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import IssuerRow, all_issuers, chains
from privyseal_ca.store.statement import Transaction

_PAGE: Final = 500

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What a check that found nothing wrong has seen."""

    size: int
    root: bytes
    certificates: int
    ca_certificates: int
    revoked: int
    abandoned: int
    in_flight: int
    #: The current CRLs.
    crls: int
    #: Stored checkpoints and stored full tiles.
    checkpoints: int = 0
    tiles: int = 0
    #: The checkpoint kept elsewhere that the ledger continues, if one was given.
    since: Checkpoint | None = None
    #: Certificates that are known by their entries only, since a restore brought back these entries.
    lost: int = 0
    #: Keys in tokens that entries attest.
    keys: int = 0


@dataclass(frozen=True, slots=True)
class Expected:
    """Size and root of an earlier check, kept elsewhere."""

    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class _Intent:
    """What an intent says of the certificate that is to follow."""

    issuer: str
    tbs_sha256: str
    requester: str
    profile: str | None


@dataclass(slots=True)
class _Seen:
    """What the entries so far leave to be compared."""

    #: Intents that nothing has followed yet, by serial.
    open: dict[str, _Intent] = field(default_factory=dict)
    issued: int = 0
    #: SHA-256 of every CA certificate, and their serials with the id of the CA that signed each.
    ca_certificates: set[str] = field(default_factory=set)
    ca_serials: dict[str, str] = field(default_factory=dict)


class Auditor:
    """One check of a ledger.

    ``issued_entry`` rebuilds the ``certificate.issued`` entry from a certificate's DER; ``progress`` is told how many
    entries of how many have been checked. ``since`` is a verified checkpoint that the ledger has to continue. Cosignatures by
    ``witnesses`` have to be right.
    """

    def __init__(
        self,
        store: Store,
        *,
        issued_entry: Callable[[bytes], bytes],
        expected: Expected | None = None,
        since: Checkpoint | None = None,
        progress: Progress | None = None,
        witnesses: Sequence[CosignatureVerifier] = (),
    ) -> None:
        self._store = store
        self._issued_entry = issued_entry
        self._expected = expected
        self._since = since
        self._progress = progress
        self._tree = TreeHasher()
        self._seen = _Seen()
        #: The certificates of the CAs whose keys are here, and of those above them, by the id of the CA.
        self._cas: dict[str, list[x509.Certificate]] = {}
        self._above: dict[str, list[x509.Certificate]] = {}
        self._own_roots: set[str] = set()
        self._issuers: list[IssuerRow] = []
        self._keys = KeyAudit()
        self._revocations = RevocationAudit(self._seen.ca_serials)
        self._restores = RestoreAudit()
        self._crls = CrlAudit(
            store, certificates_of=lambda ca: self._above.get(ca, ()), is_own=lambda ca: ca in self._cas
        )
        self._checkpoints = CheckpointAudit(witnesses)
        self._checks: dict[Kind, Callable[[Transaction, int, dict[str, Any]], None]] = {
            Kind.KEY_GENERATED: lambda _, index, members: self._keys.generated(index, members["payload"]),
            Kind.INTENT: self._intent,
            Kind.ISSUED: self._issued,
            Kind.ABANDONED: self._abandoned,
            Kind.ISSUER_CERTIFIED: self._certified,
            Kind.REVOKED: self._revocations.certificate_revoked,
            Kind.ISSUER_REVOKED: self._revocations.issuer_revoked,
            Kind.KEY_BLOCKED: self._revocations.key_blocked,
            Kind.REVOCATION_STARTED: self._revocations.job_started,
            Kind.REVOCATION_FINISHED: self._revocations.job_finished,
            Kind.REVOCATION_RESTORED: self._revocations.revocation_restored,
            Kind.CRL_PUBLISHED: self._crls.published,
            Kind.AUTHORITY_RESTORED: self._restored,
        }

    async def run(self) -> AuditReport:
        """Check everything.

        Raises:
            AuditError: the first thing that is wrong.
            StoreError: the database failed.
        """
        await self._store.read(self._load_cas)
        await self._entries_until(await self._store.read(self._begin))
        await self._revocations.look_for_unrecorded(self._store)
        await self._store.read(self._load_cas)
        await self._crls.contents()
        end, in_flight = await self._store.read(self._end)
        await self._entries_until(end)
        self._compare(in_flight)
        await self._checkpoints.finish(self._store, self._tree)
        await self._store.read(self._count_certificates)
        return AuditReport(
            size=self._tree.size,
            root=self._tree.root(),
            certificates=self._seen.issued,
            ca_certificates=len(self._seen.ca_certificates),
            revoked=len(self._revocations.seen) - self._revocations.abandoned,
            abandoned=self._revocations.abandoned,
            in_flight=len(in_flight),
            crls=self._crls.checked,
            checkpoints=self._checkpoints.checkpoints,
            tiles=self._checkpoints.tiles,
            since=self._since,
            lost=self._restores.lost,
            keys=self._keys.checked,
        )

    def _begin(self, transaction: Transaction) -> int:
        """The size to begin with, which is read last: it covers the checkpoints and tiles that were seen."""
        self._checkpoints.look(transaction)
        end = size(transaction)
        self._compare_known(end)
        self._checkpoints.compare_size(end)
        return end

    # The entries, one after the other.

    async def _entries_until(self, end: int) -> None:
        self._compare_known(end)
        while self._tree.size < end:
            await self._store.read(partial(self._page, count=min(_PAGE, end - self._tree.size)))
            if self._progress is not None:
                self._progress(self._tree.size, end)

    def _page(self, transaction: Transaction, *, count: int) -> None:
        first = self._tree.size
        for stored in entries(transaction, first=first, count=count):
            self._entry(transaction, stored)
        if self._tree.size != first + count:
            raise wrong(self._tree.size, "is missing")

    def _entry(self, transaction: Transaction, stored: StoredEntry) -> None:
        index = self._tree.size
        if stored.index != index:
            raise wrong(index, "is missing")
        # SQLite keeps whatever type somebody puts into a column.
        if not isinstance(stored.entry, bytes) or leaf_hash(stored.entry) != stored.leaf_hash:
            raise wrong(index, "does not have the leaf hash that was stored with it")
        try:
            members = decode_entry(stored.entry)
            kind = Kind(members["kind"])
        except LedgerError as error:
            raise wrong(index, "is not in canonical form") from error
        except ValueError as error:
            raise wrong(index, "is of a kind that this program does not know") from error
        check = self._checks.get(kind)
        if check is not None:
            try:
                check(transaction, index, {**members, "entry": stored.entry})
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise wrong(index, f"({kind}) lacks a member that its kind has, or one is malformed") from error
        self._tree.append(stored.leaf_hash)
        self._compare_known(None)
        self._checkpoints.append(transaction, index, stored.leaf_hash)

    def _compare_known(self, end: int | None) -> None:
        """Compare with what was kept elsewhere; with the ledger's size ``end`` where it is known."""
        if self._since is not None:
            require_continued(self._since, self._tree, end)
        expected = self._expected
        if expected is None:
            return
        if end is not None and end < expected.size:
            raise AuditError(f"The ledger has {end} entries, fewer than the {expected.size} it had before.")
        if self._tree.size == expected.size and self._tree.root() != expected.root:
            raise AuditError(
                f"The first {expected.size} entries are not those of the earlier check: their root is now "
                f"{self._tree.root().hex()}."
            )

    def _intent(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        payload: Payload = members["payload"]
        serial, issuer = payload["serial"], payload["issuer"]
        earlier = find_certificate(transaction, serial)
        if (
            serial in self._seen.open
            or serial in self._seen.ca_serials
            or (issuer, serial) in self._revocations.seen
            or (earlier is not None and earlier.ledger_index < index)
        ):
            raise wrong(index, f"({Kind.INTENT}) is for the serial {serial}, which was used before")
        self._seen.open[serial] = _Intent(issuer, payload["tbs_sha256"], members["actor"], payload.get("profile"))

    def _issued(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        payload: Payload = members["payload"]
        serial = payload["serial"]
        wrong_here = partial(wrong_about, index, Kind.ISSUED, serial)
        intent = self._close(index, Kind.ISSUED, payload)
        row = find_certificate(transaction, serial)
        if row is None or row.ledger_index != index:
            raise wrong_here("has no row in the certificates table")
        # By these two certificates are selected to be revoked, or spared.
        if (row.requester, row.profile) != (intent.requester, intent.profile):
            raise wrong_here("has a row whose requester or profile is not that of its intent")
        self._seen.issued += 1
        if row.der == b"":
            if not row_agrees(row, payload):
                raise wrong_here("has a row whose columns are not those of the entry")
            self._restores.certificate_lost(index, serial)
            return
        try:
            rebuilt = self._issued_entry(row.der)
            certificate = x509.load_der_x509_certificate(row.der)
        except Exception as error:  # whatever a parser finds in bytes that may be anything
            raise wrong_here("has a certificate in its row that cannot be parsed") from error
        if rebuilt != members["entry"]:
            raise wrong_here("does not follow from the certificate in its row")
        if not row_agrees(row, payload) or not pointers_agree(row, certificate):
            raise wrong_here("has a row whose columns are not those of the certificate")
        if not any(_signed_by(certificate, issuer) for issuer in self._cas.get(payload["issuer"], ())):
            raise wrong_here("is for a certificate that its issuer did not sign")

    def _abandoned(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        self._close(index, Kind.ABANDONED, members["payload"])
        self._revocations.certificate_abandoned(transaction, index, members)

    def _certified(self, transaction: Transaction, index: int, members: dict[str, Any]) -> None:
        payload: Payload = members["payload"]
        serial, issuer = payload["serial"], payload["issuer"]
        wrong_here = partial(wrong_about, index, Kind.ISSUER_CERTIFIED, serial)
        if not payload["imported"]:
            self._close(index, Kind.ISSUER_CERTIFIED, payload)
        elif issuer in self._own_roots:
            raise wrong_here("says that the certificate came from elsewhere, but this authority's own root signed it")
        fingerprint = payload["certificate_sha256"]
        found = self._find_ca(payload["id"], fingerprint)
        if found is None:
            self._load_cas(transaction)  # it may be newer than this check
            found = self._find_ca(payload["id"], fingerprint)
        if found is None:
            self._restores.ca_lost(index, fingerprint)
        elif _tbs_sha256(found) != payload["tbs_sha256"] or f"{found.serial_number:032x}" != serial:
            raise wrong_here("does not follow from the certificate")
        else:
            self._keys.certified(index, serial, found)
        self._seen.ca_certificates.add(fingerprint)
        self._seen.ca_serials[serial] = issuer

    def _restored(self, _: Transaction, index: int, members: dict[str, Any]) -> None:
        self._restores.restored(index, members["payload"], self._tree.root())
        self._crls.restored(index)

    def _find_ca(self, issuer_id: str, fingerprint: str) -> x509.Certificate | None:
        return next((ca for ca in self._cas.get(issuer_id, ()) if _sha256(ca) == fingerprint), None)

    def _close(self, index: int, kind: Kind, payload: Payload) -> _Intent:
        """Match an entry with the intent that must stand before it (promise P2)."""
        intent = self._seen.open.pop(payload["serial"], None)
        if intent is None:
            raise wrong_about(index, kind, payload["serial"], "has no intent before it")
        if (intent.issuer, intent.tbs_sha256) != (payload["issuer"], payload["tbs_sha256"]):
            raise wrong_about(index, kind, payload["serial"], "is not what its intent says")
        return intent

    # What the entries cannot show: rows without entries.

    def _load_cas(self, transaction: Transaction) -> None:
        self._issuers = all_issuers(transaction)
        for issuer in self._issuers:
            if issuer.state == "root":
                self._own_roots.add(issuer.id)
            parsed = [x509.load_pem_x509_certificates(chain.encode()) for chain in chains(transaction, issuer.id)]
            for chain in parsed:
                for certificate, above in zip(chain, [*chain[1:], chain[-1]], strict=True):
                    if not _signed_by(certificate, above):
                        raise AuditError(f"A chain of issuer {issuer.name} does not verify.")
            self._cas[issuer.id] = [chain[0] for chain in parsed]
            for certificate in (certificate for chain in parsed for certificate in chain):
                known = self._above.setdefault(_key_id(certificate), [])
                if certificate not in known:
                    known.append(certificate)

    def _end(self, transaction: Transaction) -> tuple[int, set[str]]:
        self._checkpoints.look(transaction)
        found = end_of_ledger(transaction)
        if found is None:
            raise AuditError("The ledger has no head.")
        end, last, in_flight = found
        if end != last:
            raise AuditError(f"The ledger's head says {end} entries, and the last one would make it {last}.")
        self._checkpoints.compare_size(end)
        return end, in_flight

    def _compare(self, in_flight: set[str]) -> None:
        self._restores.compare()
        self._keys.compare(self._issuers)
        self._revocations.compare()
        self._crls.compare()
        for serial in sorted(self._seen.open.keys() ^ in_flight):
            raise AuditError(
                f"The intent for serial {serial} was neither fulfilled nor abandoned and is not in flight."
                if serial in self._seen.open
                else f"An issuance of serial {serial} is in flight without an intent."
            )
        for issuer_id, certificates in self._cas.items():
            if any(_sha256(certificate) not in self._seen.ca_certificates for certificate in certificates):
                raise AuditError(f"A certificate of issuer {issuer_id} has no {Kind.ISSUER_CERTIFIED} entry.")

    def _count_certificates(self, transaction: Transaction) -> None:
        """Every issued entry has a row of its own, so that equal numbers leave no row without an entry."""
        end = self._tree.size
        if count_certificates(transaction, end) == self._seen.issued:
            return
        for serial, index in unrecorded_certificates(transaction, end):
            raise AuditError(f"The certificate {serial} has no {Kind.ISSUED} entry; its row names the index {index}.")
        raise AuditError("The number of certificates is not that of the entries.")


def _key_id(certificate: x509.Certificate) -> str:
    """The id of a CA: its subject key identifier in hex."""
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def _tbs_sha256(certificate: x509.Certificate) -> str:
    """The SHA-256 of the TBSCertificate in hex."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(certificate.tbs_certificate_bytes)
    return digest.finalize().hex()


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _sha256(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()
