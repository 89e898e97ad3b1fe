"""Copying what the database holds on revocation, and the ledger, into a folder: for web servers and for the status role
without a database.

There are two movements. :meth:`FolderPublisher.follow` takes over what changed: CRLs, the responses of what was revoked, and
those that were made lately. :meth:`FolderPublisher.sweep` goes through everything, a page at a time, and in the end removes
what is no longer there. Memory does not grow with the number of certificates but for eight octets for each response.

A folder outlives restores of the database, so nothing in it is replaced by what is older (promise P8).
"""

import asyncio
from array import array
from base64 import b64encode
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID

from privyseal_ca.clock import Clock
from privyseal_ca.config import ROOTS_FILE, Settings
from privyseal_ca.errors import ConfigurationError, StatusUnavailableError, StoreUnavailableError
from privyseal_ca.ledger.log import size
from privyseal_ca.revocation.anchors import PublishedCertificates, published_certificates
from privyseal_ca.revocation.crl_bundle import BUNDLE, CrlBundle
from privyseal_ca.revocation.folder import FolderStatus
from privyseal_ca.revocation.folder_ledger import LedgerPublisher
from privyseal_ca.revocation.folder_writer import FolderWriter
from privyseal_ca.revocation.manifest import (
    ROOTS,
    UNAUTHORIZED,
    CertIds,
    Manifest,
    ManifestCanary,
    ManifestCrl,
    ManifestIssuer,
    crl_file,
    describe_crl,
    ocsp_file,
    read_small,
)
from privyseal_ca.revocation.ocsp_response import unsigned_response
from privyseal_ca.revocation.published import Canary, OcspStatus, PublishedCrl
from privyseal_ca.revocation.stored_crls import StoredCrls
from privyseal_ca.store.canaries import canaries
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import all_issuers
from privyseal_ca.store.published import (
    PAGE,
    ResponseRow,
    responses_after,
    responses_of,
    responses_refreshed_after,
    revoked_since,
)
from privyseal_ca.store.statement import Transaction

#: Waiting for the disk is most of the work: so many files are written at the same time.
_WRITERS: Final = 8
#: How long after its thisUpdate a response may become visible in the database.
_LATENESS: Final = 30
#: How often CA certificates, which change by hand only, are looked at.
_CERTIFICATES_SECONDS: Final = 60
_CRL_ATTEMPTS: Final = 3


@dataclass(slots=True)
class Counts:
    """What was written and removed."""

    certificates: int = 0
    crls: int = 0
    #: How often the file with all full CRLs was made.
    bundles: int = 0
    responses: int = 0
    removed: int = 0
    #: What is not replaced because it is newer than what the database has.
    kept: int = 0

    def __bool__(self) -> bool:
        return bool(self.certificates or self.crls or self.bundles or self.responses or self.removed)


@dataclass
class _Sweep:
    """Where a sweep is."""

    serial: str = ""
    hash: str = ""
    #: The first eight octets of the SHA-256 of every path that is to stay.
    known: "array[int]" = field(default_factory=lambda: array("Q"))

    def remember(self, path: str) -> None:
        self.known.append(_short(path))

    def finish(self) -> Callable[[str], bool]:
        """Tells whether a path was remembered."""
        known = array("Q", sorted(self.known))

        def contains(path: str) -> bool:
            wanted = _short(path)
            position = bisect_left(known, wanted)
            return position < len(known) and known[position] == wanted

        return contains


class FolderPublisher:
    """Keeps the folder behind ``writer``, which is open, a copy of what ``store`` holds; ``progress`` is told what people
    should know."""

    def __init__(
        self, *, store: Store, writer: FolderWriter, settings: Settings, clock: Clock, progress: Callable[[str], None]
    ) -> None:
        self._store = store
        self._writer = writer
        self._roots = settings.home / ROOTS_FILE
        self._lifetime = settings.status.ocsp_lifetime
        self._clock = clock
        self._progress = progress
        self._crls = StoredCrls(store)
        self._files = FolderStatus(writer.folder, clock=clock, interval=0)
        self._threads = ThreadPoolExecutor(_WRITERS, thread_name_prefix="publish")
        self._certificates_at = -_CERTIFICATES_SECONDS * 1.0
        self._certificates = PublishedCertificates(b"", {})
        self._names: Mapping[str, str] = {}
        self._subjects: Mapping[str, bytes] = {}
        self._cert_ids: Mapping[str, CertIds] = {}
        self._canaries: Sequence[Canary] = ()
        #: The ledger's size up to which revocations were taken over, and when responses were.
        self._through = 0
        self._seen_at = int(clock.now())
        self._sweep: _Sweep | None = None
        self._told: set[str] = set()
        #: The ledger in the folder, which comes last: relying parties do not wait for it.
        self.ledger = LedgerPublisher(
            store=store, writer=writer, entries=settings.ledger.entries == "open", clock=clock, progress=progress
        )
        #: What was done since it was made, the ledger aside.
        self.counts = Counts()
        #: How many responses the last complete sweep found.
        self.responses = 0

    @property
    def manifest(self) -> Manifest:
        """What the folder holds."""
        return self._writer.manifest

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    async def publish(self) -> None:
        """Bring the whole folder up to date.

        Raises:
            StoreError: the database failed.
            StatusUnavailableError: a CRL could not be read.
            ConfigurationError: the folder cannot be written, or belongs to another authority.
        """
        await self._take_certificates()
        crls = await self._take_crls()
        await self._bundle(crls)
        # What was revoked before is what the sweep finds.
        self._through = await self._store.read(size)
        self._seen_at = int(self._clock.now())
        while not await self.sweep():
            pass
        self._finish(crls)
        await self.ledger.publish()

    async def follow(self) -> None:
        """Take over what changed since :meth:`publish` or the last call. Raises what that does."""
        if self._clock.now() - self._certificates_at >= _CERTIFICATES_SECONDS:
            await self._take_certificates()
        crls = await self._take_crls()
        await self._take_changes()
        await self._bundle(crls)
        self._finish(crls)
        await self.ledger.advance()

    async def sweep(self) -> bool:
        """Take over one page of all responses; True when it was the last and what is no longer there was removed."""
        sweep = self._sweep = self._sweep or _Sweep()
        rows = await self._store.read(lambda tx: responses_after(tx, sweep.serial, sweep.hash))
        await self._take(rows, sweep)
        if rows:
            sweep.serial, sweep.hash = rows[-1].serial, rows[-1].hash
        if len(rows) == PAGE:
            return False
        await asyncio.to_thread(self._remove_others, sweep)
        self.responses = len(sweep.known)
        self._sweep = None
        return True

    async def _take_certificates(self) -> None:
        """Roots, CA certificates and the names of the canaries."""

        def unit(transaction: Transaction) -> tuple[PublishedCertificates, dict[str, str]]:
            names = {row.id: row.name for row in all_issuers(transaction)}
            return published_certificates(transaction, self._roots), names

        certificates, self._names = await self._store.read(unit)
        known = {issuer.id for issuer in self._writer.manifest.issuers}
        if known and not known & certificates.issuers.keys():
            raise ConfigurationError(
                f"{self._writer.folder} holds what another authority published.", hint="Choose another folder."
            )
        files = {ROOTS: certificates.roots_pem, UNAUTHORIZED: unsigned_response(OcspStatus.UNAUTHORIZED)}
        for issuer_id, (der, pem) in certificates.issuers.items():
            files |= {f"issuers/{issuer_id}.cer": der, f"issuers/{issuer_id}.pem": pem}
        for path, content in files.items():
            self.counts.certificates += await asyncio.to_thread(self._writer.put, path, content)
        parsed = {name: x509.load_der_x509_certificate(der) for name, (der, _) in certificates.issuers.items()}
        self._subjects = {name: certificate.subject.public_bytes() for name, certificate in parsed.items()}
        self._cert_ids = {name: CertIds.of(certificate) for name, certificate in parsed.items()}
        self._names = {name: self._names.get(name) or _common_name(each) for name, each in parsed.items()}
        self._certificates = certificates
        self._certificates_at = self._clock.now()

    async def _take_crls(self) -> list[PublishedCrl]:
        """The CRLs that the folder holds now."""
        self._canaries = [Canary(*row[:5]) for row in await self._store.read(canaries)]
        await self._crls.refresh()
        if not self._crls.available:
            # What it knows of is of another time, or nothing at all: nothing may be removed for that.
            raise StoreUnavailableError("The CRLs cannot be read from the database.", hint="Try again in a moment.")
        before = {_scope(crl): crl for crl in (each.published() for each in self._writer.manifest.crls)}
        return [
            await self._take_crl(crl, before.get(_scope(crl)))
            for crl in list(self._crls.published())
            if crl.issuer_id in self._subjects
        ]

    async def _take_crl(self, crl: PublishedCrl, before: PublishedCrl | None) -> PublishedCrl:
        path = crl_file(crl.issuer_id, crl.shard, delta=crl.delta)
        held = await asyncio.to_thread(self._held, self._writer.folder / path, crl, before)
        if held == crl:
            return crl
        if held is not None and held.number >= crl.number:
            self._keep(path, f"is number {held.number}; the database has {crl.number}")
            return held
        for attempt in range(1, _CRL_ATTEMPTS + 1):
            try:
                await self._writer.stream(
                    path,
                    self._crls.read(crl),
                    time=crl.this_update,
                    digest=crl.sha256,
                    subject=self._subjects[crl.issuer_id],
                )
            except StatusUnavailableError:
                # A new one took its place meanwhile, whose number is higher.
                await self._crls.refresh()
                crl = self._crls.find(crl.issuer_id, crl.shard, delta=crl.delta) or crl
                if attempt == _CRL_ATTEMPTS:
                    raise
            else:
                break
        self.counts.crls += 1
        return crl

    async def _bundle(self, crls: Iterable[PublishedCrl]) -> None:
        """Put the full ones of ``crls``, which the folder holds, together, unless that was done before."""
        bundle = CrlBundle.of(crls)
        before = CrlBundle.of(each.published() for each in self._writer.manifest.crls)
        path = self._writer.folder / BUNDLE
        try:
            size = (await asyncio.to_thread(path.stat)).st_size
        except OSError:
            size = 0
        if (bundle, bundle.size) == (before, size):
            return
        if bundle.members:
            await self._writer.assemble(BUNDLE, bundle.read(self._files), time=bundle.this_update)
            self.counts.bundles += 1
        else:
            self.counts.removed += self._writer.remove(BUNDLE)

    def _held(self, path: Path, crl: PublishedCrl, before: PublishedCrl | None) -> PublishedCrl | None:
        """What the file at ``path`` is: the CRL that the manifest or the database says, or what it says itself."""
        try:
            state = path.stat()
        except OSError:
            return None
        stamp = state.st_size, int(state.st_mtime)
        same = {each for each in (crl, before) if each is not None and (each.size, each.this_update) == stamp}
        if len(same) == 1:
            return same.pop()
        found = describe_crl(path, crl.issuer_id, crl.shard, delta=crl.delta)
        if found is not None and found.this_update != stamp[1]:
            # Whoever reads it knows it by its time.
            self._writer.date(path, found.this_update)
        return found

    async def _take_changes(self) -> None:
        """The responses of what was revoked, and those that were made, since the last call."""
        began = int(self._clock.now())
        while rows := await self._store.read(partial(revoked_since, index=self._through)):
            found = await self._store.read(
                lambda tx: [row for each in rows for row in responses_of(tx, each.issuer_id, each.serial)]
            )
            await self._take(found)
            self._through = rows[-1].ledger_index + 1
        # A response is replaced at half of its life: those that were made last are those to be replaced last.
        since = partial(responses_refreshed_after, refresh_at=self._seen_at - _LATENESS + self._lifetime // 2)
        while page := await self._store.read(since):
            await self._take(page)
            last = page[-1]
            since = partial(
                responses_refreshed_after, refresh_at=last.refresh_at, serial=last.serial, hash_name=last.hash
            )
        self._seen_at = began

    async def _take(self, rows: Iterable[ResponseRow], sweep: _Sweep | None = None) -> None:
        """Write the responses of ``rows``; those that say good of what is revoked are removed until there are new ones."""
        loop = asyncio.get_running_loop()
        now = int(self._clock.now())
        work = []
        for row in rows:
            if row.issuer_id not in self._cert_ids:
                continue
            path = ocsp_file(self._cert_ids[row.issuer_id].query(row.hash, int(row.serial, 16)))
            if row.outdated:
                work.append(loop.run_in_executor(self._threads, self._remove, path))
                continue
            if sweep is not None:
                sweep.remember(path)
            if row.next_update > now:
                work.append(loop.run_in_executor(self._threads, self._put, path, row, now))
        for written, removed, kept in await asyncio.gather(*work):
            self.counts.responses += written
            self.counts.removed += removed
            self.counts.kept += kept

    def _put(self, path: str, row: ResponseRow, now: int) -> tuple[bool, bool, bool]:
        """Write one response; whether it was written, removed, kept."""
        try:
            kept = _stays(read_small(self._writer.folder / path), row, now)
        except (OSError, ValueError, UnsupportedAlgorithm):
            kept = False
        return not kept and self._writer.put(path, row.der, time=row.this_update), False, kept

    def _remove(self, path: str) -> tuple[bool, bool, bool]:
        return False, self._writer.remove(path), False

    def _finish(self, crls: Sequence[PublishedCrl]) -> None:
        """Write the manifest last, then remove what it does not name any more."""
        before = self._writer.manifest
        issuers = tuple(
            ManifestIssuer(
                id=issuer_id,
                name=self._names[issuer_id],
                certificate_sha256=sha256(der).hexdigest(),
                certificate=b64encode(der).decode(),
            )
            for issuer_id, (der, _) in self._certificates.issuers.items()
        )
        self._writer.write_manifest(
            Manifest(
                written_at=int(self._clock.now()),
                issuers=issuers,
                crls=tuple(ManifestCrl.of(crl) for crl in sorted(crls, key=_order)),
                canaries=tuple(ManifestCanary.of(canary) for canary in self._canaries),
            )
        )
        gone = {_file(each.published()) for each in before.crls} - {_file(crl) for crl in crls}
        for issuer in before.issuers:
            if issuer.id not in self._certificates.issuers:
                gone |= {f"issuers/{issuer.id}.cer", f"issuers/{issuer.id}.pem"}
        for path in sorted(gone):
            self.counts.removed += self._writer.remove(path)

    def _remove_others(self, sweep: _Sweep) -> None:
        contains = sweep.finish()
        for path in self._writer.responses():
            if not contains(path):
                self.counts.removed += self._writer.remove(path)

    def _keep(self, path: str, text: str) -> None:
        """Tell once that something is newer than the database."""
        if path not in self._told:
            self._told.add(path)
            self.counts.kept += 1
            self._progress(f"{path} {text}, and nothing goes back: was an older database restored?")


def _stays(der: bytes, row: ResponseRow, now: int) -> bool:
    """Whether the response ``der`` is not to be replaced by that of ``row``: what was told to be revoked remains so, and what
    is newer remains as long as it counts."""
    if der == row.der:
        return False
    held = ocsp.load_der_ocsp_response(der)
    if held.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL or held.next_update_utc is None:
        return False
    revoked = held.certificate_status is ocsp.OCSPCertStatus.REVOKED
    if revoked != bool(row.revoked):
        return revoked
    return held.this_update_utc.timestamp() > row.this_update and held.next_update_utc.timestamp() > now


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def _scope(crl: PublishedCrl) -> tuple[str, int | None, bool]:
    return crl.issuer_id, crl.shard, crl.delta


def _order(crl: PublishedCrl) -> tuple[str, int, bool]:
    return crl.issuer_id, -1 if crl.shard is None else crl.shard, crl.delta


def _file(crl: PublishedCrl) -> str:
    return crl_file(crl.issuer_id, crl.shard, delta=crl.delta)


def _short(path: str) -> int:
    return int.from_bytes(sha256(path.encode()).digest()[:8], "big")
