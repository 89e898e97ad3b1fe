"""What the ledger and the store keep of a certificate."""

import hashlib
from collections.abc import Iterable

import orjson
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from privyseal_ca.clock import rfc3339_milliseconds
from privyseal_ca.identifiers import Identifier, from_general_name
from privyseal_ca.ledger.entries import Kind, encode_members
from privyseal_ca.store.certificates import CertificateRow


def serial_text(serial: int) -> str:
    """A serial as it is written everywhere: 32 lower-case hex digits."""
    return f"{serial:032x}"


def names_text(names: Iterable[Identifier]) -> list[str]:
    """Names as ``type:value``, sorted."""
    return sorted(f"{name.type}:{name.value}" for name in names)


def issued_entry(der: bytes) -> bytes:
    """The ``certificate.issued`` entry of the certificate ``der``, rebuilt from nothing but the certificate.

    Whoever holds a certificate can therefore check its inclusion without asking for the entry. That is why the entry's
    time is notBefore, its actor the issuer and its correlation the serial; when and for whom it was issued stands in the
    ``certificate.intent`` entry with the same serial.
    """
    certificate = x509.load_der_x509_certificate(der)
    return _issued_entry(certificate, der)


def _issued_entry(certificate: x509.Certificate, der: bytes) -> bytes:
    extensions = certificate.extensions
    issuer = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    names = [extension.value for extension in extensions if isinstance(extension.value, x509.SubjectAlternativeName)]
    spki = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    issuer_id = (issuer or b"").hex()
    serial = serial_text(certificate.serial_number)
    not_before = int(certificate.not_valid_before_utc.timestamp())
    return encode_members(
        Kind.ISSUED,
        rfc3339_milliseconds(not_before),
        f"issuer:{issuer_id}",
        serial,
        {
            "certificate_sha256": hashlib.sha256(der).hexdigest(),
            "issuer": issuer_id,
            "names": names_text(from_general_name(name) for general_names in names for name in general_names),
            "not_after": int(certificate.not_valid_after_utc.timestamp()),
            "not_before": not_before,
            "serial": serial,
            "spki_sha256": hashlib.sha256(spki).hexdigest(),
            "tbs_sha256": hashlib.sha256(certificate.tbs_certificate_bytes).hexdigest(),
        },
    )


def certificate_row(
    der: bytes,
    *,
    serial: str,
    issuer_id: str,
    profile: str,
    requester: str,
    names: Iterable[Identifier],
    not_before: int,
    not_after: int,
    spki_sha256: bytes,
    ledger_index: int,
    crl_shard: int | None,
    ocsp: bool,
) -> CertificateRow:
    """The row of a certificate that was just signed."""
    return CertificateRow(
        serial=serial,
        issuer_id=issuer_id,
        profile=profile,
        requester=requester,
        names=orjson.dumps(names_text(names)).decode(),
        not_before=not_before,
        not_after=not_after,
        spki_sha256=spki_sha256,
        ledger_index=ledger_index,
        der=der,
        crl_shard=crl_shard,
        ocsp=int(ocsp),
    )
