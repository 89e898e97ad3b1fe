"""A small authority with a software key that keeps the ledger's promises, for tests of `ledger verify` to break."""

import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID

from fakes.service import FakeClock
from privyseal_ca.hsm.attributes import PROTECTION
from privyseal_ca.hsm.signer import PrivateKey, PublicKey
from privyseal_ca.identifiers import parse_dns
from privyseal_ca.issuance.issuers import Issuer
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.issuance.record import certificate_row, issued_entry, serial_text
from privyseal_ca.issuance.template import IssuerIdentity, distribution_point, key_identifier, signature_hash
from privyseal_ca.ledger.audit import Auditor, AuditReport, Expected
from privyseal_ca.ledger.audit_errors import AuditError
from privyseal_ca.ledger.entries import Kind, Payload, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.revocation.publisher import CrlPublisher
from privyseal_ca.revocation.revoke import ADMINISTRATOR_REASONS, revoke_certificate
from privyseal_ca.sections import StatusSettings
from privyseal_ca.store.backends import SqliteBackend
from privyseal_ca.store.certificates import (
    CertificateRow,
    IntentRow,
    RevocationRow,
    add_certificate,
    add_revocation,
    close_intent,
    find_certificate,
    open_intent,
)
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import IssuerRow, add_chain, add_issuer
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

T = TypeVar("T")
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
DAY = timedelta(days=1)
BASE_URL = "http://ca.example"


def spki(key: Any) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


@dataclass(frozen=True)
class SoftwareKey:
    """A key that needs no token."""

    private: PrivateKey
    uri: str = "pkcs11:object=k"
    available: bool = True

    @property
    def public_key(self) -> PublicKey:
        return self.private.public_key()

    async def run(self, work: Callable[[PrivateKey], T]) -> T:
        return work(self.private)


@dataclass
class Authority:
    """The authority: its key, and its ledger and tables in SQLite."""

    store: Store
    path: Path
    key: PrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    serials: list[str] = field(default_factory=list)
    clock: FakeClock = field(default_factory=lambda: FakeClock(NOW))
    ca: x509.Certificate = field(init=False)

    @property
    def id(self) -> str:
        return key_identifier(spki(self.key.public_key())).hex()

    def certificate(
        self, serial: int, name: str | None, *, shard: int | None = None, ocsp: bool = False
    ) -> x509.Certificate:
        """A leaf for ``name``, or the CA's own certificate."""
        moment = datetime.fromtimestamp(NOW, UTC)
        ca = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA")])
        subject_key: PrivateKey = self.key if name is None else ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .issuer_name(ca)
            .subject_name(ca if name is None else x509.Name([]))
            .public_key(subject_key.public_key())
            .serial_number(serial)
            .not_valid_before(moment - DAY)
            .not_valid_after(moment + (30 * DAY if name is None else DAY))
            .add_extension(x509.AuthorityKeyIdentifier(bytes.fromhex(self.id), None, None), critical=False)
        )
        if name is None:
            builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
            builder = builder.add_extension(x509.SubjectKeyIdentifier(bytes.fromhex(self.id)), critical=False)
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        else:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        if shard is not None:
            point = distribution_point(self.pointers.crl(shard))
            builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
        if ocsp:
            location = x509.UniformResourceIdentifier(self.pointers.ocsp)
            access = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, location)
            builder = builder.add_extension(x509.AuthorityInformationAccess([access]), critical=False)
        return builder.sign(self.key, signature_hash(self.key.public_key()))

    @property
    def pointers(self) -> Pointers:
        return Pointers(BASE_URL, self.id, shards=2)

    def record(self, transaction: Transaction, kind: Kind, payload: Payload, *, actor: str = "operator:tests") -> int:
        return append(transaction, encode_entry(kind, time=NOW, actor=actor, correlation="c", payload=payload))

    def intend(self, transaction: Transaction, certificate: x509.Certificate) -> None:
        digest = sha256(certificate.tbs_certificate_bytes).digest()
        serial = serial_text(certificate.serial_number)
        open_intent(transaction, IntentRow(serial, self.id, digest, int(NOW), "account:a", "c", None))
        payload = {"issuer": self.id, "profile": "mtls", "serial": serial, "tbs_sha256": digest.hex()}
        self.record(transaction, Kind.INTENT, payload, actor="account:a")

    def finish(
        self,
        transaction: Transaction,
        certificate: x509.Certificate,
        name: str,
        *,
        shard: int | None = None,
        ocsp: bool = False,
    ) -> CertificateRow:
        der = certificate.public_bytes(Encoding.DER)
        serial = serial_text(certificate.serial_number)
        close_intent(transaction, serial)
        row = certificate_row(
            der,
            serial=serial,
            issuer_id=self.id,
            profile="mtls",
            requester="account:a",
            names=[parse_dns(name)],
            not_before=int(certificate.not_valid_before_utc.timestamp()),
            not_after=int(certificate.not_valid_after_utc.timestamp()),
            spki_sha256=sha256(
                certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            ).digest(),
            ledger_index=append(transaction, issued_entry(der)),
            crl_shard=shard,
            ocsp=ocsp,
        )
        add_certificate(transaction, row)
        return row

    async def begin(self) -> None:
        certificate = self.certificate(1, None)
        self.ca = certificate
        pem = certificate.public_bytes(Encoding.PEM).decode()

        attestation = {
            "uri": "pkcs11:object=k",
            "algorithm": "ec-p256",
            "spki_sha256": sha256(spki(self.key.public_key())).hexdigest(),
            "attributes": dict(PROTECTION),
        }

        def unit(transaction: Transaction) -> None:
            self.record(transaction, Kind.KEY_GENERATED, {"label": "root", **attestation})
            self.intend(transaction, certificate)
            close_intent(transaction, serial_text(1))
            text = json.dumps(attestation)
            add_issuer(
                transaction, IssuerRow(self.id, "root", "root", "pkcs11:object=k", "ec-p256", text, None, 0, int(NOW))
            )
            add_chain(transaction, self.id, pem)
            self.record(
                transaction,
                Kind.ISSUER_CERTIFIED,
                {
                    "certificate_sha256": certificate.fingerprint(hashes.SHA256()).hex(),
                    "id": self.id,
                    "imported": False,
                    "issuer": self.id,
                    "serial": serial_text(1),
                    "tbs_sha256": sha256(certificate.tbs_certificate_bytes).hexdigest(),
                },
            )

        await self.store.write(unit)

    async def issue(self, name: str, *, shard: int | None = None, ocsp: bool = False) -> str:
        certificate = self.certificate(int.from_bytes(os.urandom(15)), name, shard=shard, ocsp=ocsp)
        await self.store.write(lambda tx: self.intend(tx, certificate))
        row = await self.store.write(lambda tx: self.finish(tx, certificate, name, shard=shard, ocsp=ocsp))
        self.serials.append(row.serial)
        return row.serial

    async def abandon(self) -> str:
        certificate = self.certificate(int.from_bytes(os.urandom(15)), "abandoned.test")
        serial = serial_text(certificate.serial_number)

        def unit(transaction: Transaction) -> None:
            close_intent(transaction, serial)
            index = self.record(
                transaction,
                Kind.ABANDONED,
                {
                    "issuer": self.id,
                    "serial": serial,
                    "reason": "interrupted",
                    "tbs_sha256": sha256(certificate.tbs_certificate_bytes).hexdigest(),
                },
            )
            add_revocation(transaction, RevocationRow(self.id, serial, int(NOW), 5, int(NOW), None, index))

        await self.store.write(lambda tx: self.intend(tx, certificate))
        await self.store.write(unit)
        return serial

    async def revoke(self, serial: str, *, reason: int = 4) -> None:
        def unit(transaction: Transaction) -> None:
            row = find_certificate(transaction, serial)
            assert row is not None
            revoke_certificate(
                transaction,
                row,
                reason=reason,
                allowed_reasons=ADMINISTRATOR_REASONS,
                actor="operator:tests",
                correlation="c",
                now=NOW + 0.25,
            )

        await self.store.write(unit)

    async def publish(self, **settings: Any) -> int:
        """Publish the CRLs that are due; how many."""
        identity = IssuerIdentity.from_certificate(self.ca, name="root", pointers=self.pointers)
        publisher = CrlPublisher(
            store=self.store,
            issuers=[Issuer(self.id, identity, SoftwareKey(self.key), ())],
            settings=StatusSettings(**{"crl_shards": 2, **settings}),
            clock=self.clock,
            metrics=Metrics(),
        )
        return await publisher.publish_due()

    async def audit(self, expected: Expected | None = None) -> AuditReport:
        return await Auditor(self.store, issued_entry=issued_entry, expected=expected).run()

    def tamper(self, *statements: tuple[str, tuple[object, ...]]) -> None:
        """Change the database behind everybody's back."""
        with closing(sqlite3.connect(self.path)) as connection:
            for statement, parameters in statements:
                assert connection.execute(statement, parameters).rowcount > 0, statement
            connection.commit()

    def entry(self, index: int) -> dict[str, object]:
        with closing(sqlite3.connect(self.path)) as connection:
            row = connection.execute("SELECT entry FROM ledger_entry WHERE idx = ?", (index,)).fetchone()
        return dict(json.loads(row[0]))

    def index(self, kind: Kind, number: int = 0) -> int:
        with closing(sqlite3.connect(self.path)) as connection:
            rows = connection.execute("SELECT idx, entry FROM ledger_entry ORDER BY idx").fetchall()
        return int([index for index, entry in rows if json.loads(entry)["kind"] == kind][number])

    def rewrite(self, index: int, change: Callable[[dict[str, object]], None]) -> None:
        """Forge an entry together with its leaf hash."""
        members = self.entry(index)
        change(members)
        forged = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        self.tamper(
            ("UPDATE ledger_entry SET entry = ?, leaf_hash = ? WHERE idx = ?", (forged, leaf_hash(forged), index))
        )


@asynccontextmanager
async def opened_authority(path: Path, key: PrivateKey | None = None) -> AsyncIterator[Authority]:
    """An authority that has not issued yet, in the database ``path``."""
    migrate(f"sqlite:///{path}")
    store = Store(SqliteBackend(path, durable=False, timeout=5), queue=100)
    await store.open()
    authority = Authority(store, path) if key is None else Authority(store, path, key)
    await authority.begin()
    yield authority
    await store.close()


async def refused(authority: Authority, match: str, expected: Expected | None = None) -> int | None:
    with pytest.raises(AuditError, match=match) as caught:
        await authority.audit(expected)
    return caught.value.index
