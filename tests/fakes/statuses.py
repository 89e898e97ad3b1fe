"""An issuer of CRLs and OCSP responses with software keys, good ones and every kind of wrong ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from privyseal_ca.revocation.published import PublishedCrl

HOUR = 3600
DAY = 24 * HOUR


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass
class FakeIssuer:
    """An issuer at ``now``, with an OCSP responder."""

    now: float
    common_name: str = "Status Tests CA"
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    algorithm: Any = field(default_factory=hashes.SHA256)

    def __post_init__(self) -> None:
        self.certificate = self.certify(self.key.public_key(), name(self.common_name), [], ca=True)
        self.responder_key = ec.generate_private_key(ec.SECP256R1())
        self.responder = self.delegate(self.responder_key)

    @property
    def id(self) -> str:
        return x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()).digest.hex()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def certify(
        self,
        public_key: Any,
        subject: x509.Name,
        extensions: Iterable[x509.ExtensionType],
        *,
        ca: bool = False,
        begin: float = -DAY,
        end: float = 30 * DAY,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .issuer_name(name(self.common_name))
            .subject_name(subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment(self.now + begin))
            .not_valid_after(moment(self.now + end))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.key, self.algorithm)

    def delegate(
        self,
        key: Any,
        *,
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.OCSP_SIGNING,
        nocheck: bool = True,
        **times: float,
    ) -> x509.Certificate:
        """The certificate of a responder."""
        extensions: list[x509.ExtensionType] = [x509.ExtendedKeyUsage([usage])]
        if nocheck:
            extensions.append(x509.OCSPNoCheck())
        return self.certify(key.public_key(), name("responder"), extensions, **times)

    def crl(
        self,
        number: int = 7,
        serials: Iterable[int] = (),
        *,
        point: str | None = None,
        critical: bool = True,
        user_certs: bool = True,
        base: int | None = None,
        key: Any = None,
        issuer_name: str | None = None,
        aki: x509.AuthorityKeyIdentifier | None = None,
        this_update: float = -60,
        next_update: float = DAY,
        extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
        without: type[x509.ExtensionType] | None = None,
    ) -> bytes:
        """A CRL; ``point`` is the distribution point of a part, None for all of the list."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name(issuer_name or self.common_name))
            .last_update(moment(self.now + this_update))
            .next_update(moment(self.now + next_update))
        )
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (aki or own, False),
            (x509.CRLNumber(number), False),
            *extra,
        ]
        if point is not None:
            extensions.append((distribution(point, user_certs=user_certs), critical))
        if base is not None:
            extensions.append((x509.DeltaCRLIndicator(base), True))
        for extension, is_critical in extensions:
            if without is None or not isinstance(extension, without):
                builder = builder.add_extension(extension, critical=is_critical)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment(self.now)).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(key or self.key, self.algorithm).public_bytes(Encoding.DER)

    def published(self, der: bytes, *, number: int = 7, shard: int | None = None, delta: bool = False) -> PublishedCrl:
        """How a source describes ``der``."""
        crl = x509.load_der_x509_crl(der)
        assert crl.next_update_utc is not None
        return PublishedCrl(
            self.id,
            shard,
            delta,
            number,
            int(crl.last_update_utc.timestamp()),
            int(crl.next_update_utc.timestamp()),
            len(der),
            sha256(der).digest(),
        )

    def response(
        self,
        serial: int,
        hash_name: str = "sha1",
        *,
        revoked_at: float | None = None,
        status: ocsp.OCSPCertStatus | None = None,
        this_update: float = -60,
        next_update: float = DAY,
        responder: x509.Certificate | None = None,
        key: Any = None,
        by_name: bool = False,
        enclosed: bool = True,
        issuer: "FakeIssuer | None" = None,
    ) -> bytes:
        """An OCSP response for ``serial``."""
        subject = self.certify(ec.generate_private_key(ec.SECP256R1()).public_key(), name("leaf"), [])
        responder = responder or self.responder
        if status is None:
            status = ocsp.OCSPCertStatus.GOOD if revoked_at is None else ocsp.OCSPCertStatus.REVOKED
        algorithm = hashes.SHA1() if hash_name == "sha1" else hashes.SHA256()  # noqa: S303 (of a CertID)
        request = ocsp.OCSPRequestBuilder().add_certificate(subject, (issuer or self).certificate, algorithm)
        ids = request.build()
        builder = (
            ocsp.OCSPResponseBuilder()
            .add_response_by_hash(
                ids.issuer_name_hash,
                ids.issuer_key_hash,
                serial,
                ids.hash_algorithm,
                status,
                moment(self.now + this_update),
                moment(self.now + next_update) if next_update else None,
                None if revoked_at is None else moment(revoked_at),
                None,
            )
            .responder_id(ocsp.OCSPResponderEncoding.NAME if by_name else ocsp.OCSPResponderEncoding.HASH, responder)
        )
        if enclosed:
            builder = builder.certificates([responder])
        return builder.sign(key or self.responder_key, hashes.SHA256()).public_bytes(Encoding.DER)


def distribution(url: str, *, user_certs: bool = True) -> x509.IssuingDistributionPoint:
    return x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier(url)],
        relative_name=None,
        only_contains_user_certs=user_certs,
        only_contains_ca_certs=False,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )


def unsigned(status: ocsp.OCSPResponseStatus) -> bytes:
    return ocsp.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(Encoding.DER)
