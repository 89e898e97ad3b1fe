"""OCSP responses: what is signed, and the few that are not (RFC 6960 section 4.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import new as new_hash
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from privyseal_ca.hsm.signer import PrivateKey
from privyseal_ca.issuance.template import signature_hash
from privyseal_ca.revocation.ocsp_request import CERT_ID_HASHES
from privyseal_ca.revocation.published import OcspQuery, OcspStatus

# CRLReason (RFC 5280 section 5.3.1). 0, unspecified, is said by leaving the reason out.
_REASONS: Final = {
    1: x509.ReasonFlags.key_compromise,
    2: x509.ReasonFlags.ca_compromise,
    3: x509.ReasonFlags.affiliation_changed,
    4: x509.ReasonFlags.superseded,
    5: x509.ReasonFlags.cessation_of_operation,
    6: x509.ReasonFlags.certificate_hold,
    8: x509.ReasonFlags.remove_from_crl,
    9: x509.ReasonFlags.privilege_withdrawn,
    10: x509.ReasonFlags.aa_compromise,
}


@dataclass(frozen=True, slots=True)
class Revoked:
    """The certificate was revoked at ``at`` (seconds since the epoch), for ``reason`` (a CRLReason) or none that was given."""

    at: int
    reason: int | None


CertStatus = Literal["good", "unknown"] | Revoked


@dataclass(frozen=True, slots=True)
class Statement:
    """What is to be said of the certificate in ``query``; its nonce is repeated. Times are seconds since the epoch."""

    query: OcspQuery
    status: CertStatus
    this_update: int
    next_update: int


@asn1.sequence
class _SubjectPublicKeyInfo:
    algorithm: asn1.TLV
    subject_public_key: asn1.BitString


def issuer_hashes(certificate: x509.Certificate, hash_name: str) -> tuple[bytes, bytes]:
    """issuerNameHash and issuerKeyHash of the CertIDs of what ``certificate`` issued (RFC 6960 section 4.1.1)."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key_bits = asn1.decode_der(_SubjectPublicKeyInfo, spki).subject_public_key.as_bytes()
    return new_hash(hash_name, certificate.subject.public_bytes()).digest(), new_hash(hash_name, key_bits).digest()


def sign_responses(key: PrivateKey, responder: x509.Certificate, statements: Sequence[Statement]) -> list[bytes]:
    """A signed response (DER) for each of ``statements``, which carries the ``responder``'s certificate.

    Meant for :meth:`privyseal_ca.hsm.signer.SigningKey.run`. producedAt is the machine's time of signing.
    Raises whatever ``key`` raises.
    """
    algorithm = signature_hash(key.public_key())
    # byKey, the same for every request (RFC 9919 section 3.2.1).
    base = ocsp.OCSPResponseBuilder().responder_id(ocsp.OCSPResponderEncoding.HASH, responder).certificates([responder])
    return [_filled(base, statement).sign(key, algorithm).public_bytes(Encoding.DER) for statement in statements]


def unsigned_response(status: OcspStatus) -> bytes:
    """The response (DER) that says only why there is no answer."""
    return _UNSIGNED[status]


def _filled(base: ocsp.OCSPResponseBuilder, statement: Statement) -> ocsp.OCSPResponseBuilder:
    query, status = statement.query, statement.status
    revoked = status if isinstance(status, Revoked) else None
    builder = base.add_response_by_hash(
        query.issuer_name_hash,
        query.issuer_key_hash,
        query.serial,
        CERT_ID_HASHES[query.hash_name],
        ocsp.OCSPCertStatus.REVOKED
        if revoked
        else ocsp.OCSPCertStatus.GOOD
        if status == "good"
        else ocsp.OCSPCertStatus.UNKNOWN,
        _time(statement.this_update),
        _time(statement.next_update),
        _time(revoked.at) if revoked else None,
        _REASONS.get(revoked.reason or 0) if revoked else None,
    )
    if query.nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(query.nonce), critical=False)
    return builder


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


_UNSIGNED: Final = {
    status: ocsp.OCSPResponseBuilder.build_unsuccessful(reason).public_bytes(Encoding.DER)
    for status, reason in (
        (OcspStatus.MALFORMED_REQUEST, ocsp.OCSPResponseStatus.MALFORMED_REQUEST),
        (OcspStatus.INTERNAL_ERROR, ocsp.OCSPResponseStatus.INTERNAL_ERROR),
        (OcspStatus.TRY_LATER, ocsp.OCSPResponseStatus.TRY_LATER),
        (OcspStatus.SIG_REQUIRED, ocsp.OCSPResponseStatus.SIG_REQUIRED),
        (OcspStatus.UNAUTHORIZED, ocsp.OCSPResponseStatus.UNAUTHORIZED),
    )
}
