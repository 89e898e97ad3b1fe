"""A publisher of CRLs over a real store and a real token, with a clock that tests turn."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fakes.issuing import NOW, YEAR, issuer_key, spki
from fakes.service import FakeClock
from privyseal_ca.hsm.signer import SigningKey
from privyseal_ca.issuance.issuers import Issuer, make_issuer
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.issuance.template import key_identifier, signature_hash
from privyseal_ca.ledger.entries import Kind, decode_entry, encode_entry
from privyseal_ca.ledger.log import append, entries
from privyseal_ca.revocation.publisher import CrlPublisher
from privyseal_ca.revocation.stored_crls import StoredCrls
from privyseal_ca.sections import StatusSettings
from privyseal_ca.store.certificates import RevocationRow, add_revocation
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import IssuerRow
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

BASE_URL = "http://ca.example"


def issuer_of(
    key: SigningKey,
    name: str = "issuing-1",
    *,
    base_url: str = BASE_URL,
    crl_sign: bool = True,
    end: float = NOW + YEAR,
) -> Issuer:
    """An issuer whose key is in a token; its certificate is of no importance here but for what it says."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    identifier = key_identifier(spki(key.public_key))
    root = issuer_key("ec-p256")
    certificate = (
        x509.CertificateBuilder()
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")]))
        .subject_name(subject)
        .public_key(key.public_key)
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(NOW - YEAR, UTC))
        .not_valid_after(datetime.fromtimestamp(end, UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, True, crl_sign, False, False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(identifier), critical=False)
        .sign(root, signature_hash(root.public_key()))
    )
    row = IssuerRow(identifier.hex(), name, "active", key.uri, "", "", None, 0, 0)
    pem = certificate.public_bytes(Encoding.PEM).decode()
    return make_issuer(row, [pem], key, pointers=Pointers(base_url, row.id, shards=4))


def pointing(issuer: Issuer, settings: StatusSettings) -> Issuer:
    """``issuer`` with the number of parts that ``settings`` say."""
    pointers = replace(issuer.identity.pointers, shards=settings.crl_shards)
    return replace(issuer, identity=replace(issuer.identity, pointers=pointers))


@dataclass
class Desk:
    """A publisher and what it publishes."""

    store: Store
    issuers: Sequence[Issuer]
    clock: FakeClock = field(default_factory=lambda: FakeClock(NOW))
    settings: StatusSettings = field(default_factory=lambda: StatusSettings(crl_shards=2))
    metrics: Metrics = field(default_factory=Metrics)
    publisher: CrlPublisher = field(init=False)
    crls: StoredCrls = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self, **changes: Any) -> None:
        """A new publisher, which knows only what is in the database."""
        self.settings = StatusSettings(**{**self.settings.model_dump(), **changes})
        self.issuers = [pointing(issuer, self.settings) for issuer in self.issuers]
        self.publisher = CrlPublisher(
            store=self.store, issuers=self.issuers, settings=self.settings, clock=self.clock, metrics=self.metrics
        )
        self.crls = StoredCrls(self.store)

    async def publish(self, **lanes: bool) -> int:
        """Publish what is due, and look at it."""
        published = await self.publisher.publish_due(**lanes)
        await self.crls.refresh()
        return published

    async def revoke(
        self, *serials: int, shard: int | None = 0, reason: int | None = 1, ends: float = 30 * 86400, of: int = 0
    ) -> None:
        """Revoke serials whose certificates end in ``ends`` seconds, each with an entry in the ledger."""
        now, issuer_id = int(self.clock.now()), self.issuers[of].id

        def unit(transaction: Transaction) -> None:
            for serial in serials:
                entry = encode_entry(Kind.REVOKED, time=now, actor="test", correlation="test", payload={})
                index = append(transaction, entry)
                row = RevocationRow(issuer_id, f"{serial:032x}", now, reason, now + int(ends), shard, index)
                add_revocation(transaction, row)

        await self.store.write(unit)

    async def der(self, shard: int | None = None, *, delta: bool = False, of: int = 0) -> bytes:
        """The DER of a CRL as it is served."""
        crl = self.crls.find(self.issuers[of].id, shard, delta=delta)
        assert crl is not None
        return b"".join([piece async for piece in self.crls.read(crl)])

    async def crl(
        self, shard: int | None = None, *, delta: bool = False, of: int = 0
    ) -> x509.CertificateRevocationList:
        """A CRL as it is served, its signature verified."""
        crl = x509.load_der_x509_crl(await self.der(shard, delta=delta, of=of))
        assert crl.is_signature_valid(self.issuers[of].identity.public_key)
        return crl

    async def serials(self, shard: int | None = None, *, delta: bool = False, of: int = 0) -> set[int]:
        """What a CRL lists."""
        listed = [entry.serial_number for entry in await self.crl(shard, delta=delta, of=of)]
        assert len(set(listed)) == len(listed)
        return set(listed)

    async def number(self, shard: int | None = None, *, of: int = 0) -> int:
        """The crlNumber of a CRL."""
        return (await self.crl(shard, of=of)).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    async def entries(self, kind: Kind = Kind.CRL_PUBLISHED) -> list[dict[str, Any]]:
        """The payloads of the ledger's entries of a kind."""
        found = await self.store.read(lambda tx: [decode_entry(each.entry) for each in entries(tx, count=100_000)])
        return [entry["payload"] for entry in found if entry["kind"] == kind]
