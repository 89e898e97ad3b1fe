"""CRLs and OCSP responses as a relying party must find them, checked by code that did not build them.

Nothing here reads a database or a clock, and nothing is shared with what builds CRLs and responses: what they must be is
written down a second time. Findings are sentences for the person on call; none repeats what a stranger sent (promise P10).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha1, sha256
from typing import Final, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from privyseal_ca.clock import rfc3339
from privyseal_ca.revocation.published import PublishedCrl

#: How far the clock of who signed may be ahead.
SKEW: Final = 5
#: An OCSP response holds one SingleResponse and one certificate; a larger one is none.
MAX_OCSP: Final = 64 * 1024

_NUMBER_OCTETS: Final = 20  # RFC 5280 section 5.2.3
_KNOWN_CRL_EXTENSIONS: Final = (
    x509.AuthorityKeyIdentifier,
    x509.CRLNumber,
    x509.DeltaCRLIndicator,
    x509.IssuingDistributionPoint,
    x509.FreshestCRL,
)
_HASHES: Final = {"sha1": sha1, "sha256": sha256}
_OCSP_HASHES: Final[dict[str, hashes.SHA1 | hashes.SHA256]] = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256()}  # noqa: S303
_STATUSES: Final[Mapping[ocsp.OCSPCertStatus, Literal["good", "revoked", "unknown"]]] = {
    ocsp.OCSPCertStatus.GOOD: "good",
    ocsp.OCSPCertStatus.REVOKED: "revoked",
    ocsp.OCSPCertStatus.UNKNOWN: "unknown",
}
_PARSE_ERRORS: Final = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion)

E = TypeVar("E", bound=x509.ExtensionType)


@asn1.sequence
class _SubjectPublicKeyInfo:
    algorithm: asn1.TLV
    subject_public_key: asn1.BitString


@dataclass(frozen=True, slots=True)
class SeenCrl:
    """A CRL as it was found. Times are seconds since the epoch."""

    sha256: bytes
    number: int = 0
    this_update: int = 0
    next_update: int = 0
    listed: frozenset[int] = frozenset()
    """Those of the serials asked for that it lists."""
    problems: tuple[str, ...] = ()
    """What is wrong with it at any time."""


@dataclass(frozen=True, slots=True)
class SeenResponse:
    """An OCSP response as it was found. Times are seconds since the epoch."""

    status: Literal["good", "revoked", "unknown", "error"]
    """``error`` for what is not signed, or no response at all."""
    this_update: int = 0
    next_update: int = 0
    revoked_at: int | None = None
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class _Findings:
    """What was found wrong so far."""

    problems: list[str] = field(default_factory=list)

    def unless(self, good: bool, problem: str) -> None:
        if not good:
            self.problems.append(problem)


def check_crl(
    der: bytes,
    *,
    issuer: x509.Certificate,
    expected: PublishedCrl,
    url: str,
    now: float,
    must_list: Collection[int] = (),
) -> list[str]:
    """Everything that is wrong with ``der``, found where the CRL of ``expected``'s scope must be; nothing when it is good.

    Args:
        issuer: the certificate of who must have signed it.
        expected: names the scope, and the lowest number that may be found there.
        url: where it is served, which ends as the distribution point that certificates name; for a delta CRL that of its base, whose scope it
            has (RFC 5280 section 5.2.4).
        now: seconds since the epoch.
        must_list: serials that it must list.
    """
    seen = inspect_crl(der, issuer=issuer, shard=expected.shard, delta=expected.delta, url=url, serials=must_list)
    problems = [*seen.problems, *crl_problems(seen, least=expected.number, now=now)]
    if set(must_list) - seen.listed:
        problems.append("does not list what was revoked")
    return problems


def inspect_crl(
    der: bytes,
    *,
    issuer: x509.Certificate,
    shard: int | None,
    delta: bool,
    url: str,
    serials: Collection[int] = (),
) -> SeenCrl:
    """What stands in a CRL, and what is wrong with it whatever the time. The arguments are those of :func:`check_crl`."""
    digest = sha256(der).digest()
    try:
        crl = x509.load_der_x509_crl(der)
        extensions = crl.extensions
        next_update = crl.next_update_utc
        findings = _Findings()
        findings.unless(crl.issuer == issuer.subject, "names another issuer")
        findings.unless(_is_signed(crl, issuer), "is not signed by the issuer's key")
        _check_crl_extensions(findings, extensions, issuer, delta=delta)
        _check_scope(findings, extensions, shard, url)
        number = _found(extensions, x509.CRLNumber)
        return SeenCrl(
            digest,
            number=number.value.crl_number if number else 0,
            this_update=_seconds(crl.last_update_utc),
            next_update=_seconds(next_update) if next_update else 0,
            listed=frozenset(
                serial for serial in serials if crl.get_revoked_certificate_by_serial_number(serial) is not None
            ),
            problems=tuple(findings.problems),
        )
    except _PARSE_ERRORS:
        return SeenCrl(digest, problems=("is not a CRL",))


def crl_problems(seen: SeenCrl, *, least: int, now: float) -> Iterator[str]:
    """What is wrong with a CRL now, when its number must be ``least`` or higher."""
    if not seen.this_update:
        return  # it is no CRL
    if seen.number < least:
        yield f"is an old one: number {seen.number} after {least} was published"
    yield from _time_problems(seen.this_update, seen.next_update, now)


def check_ocsp(
    der: bytes,
    *,
    issuer: x509.Certificate,
    serial: int,
    hash_name: str,
    now: float,
    revoked_at: int | None = None,
) -> list[str]:
    """Everything that is wrong with the response ``der`` to the query of :func:`ocsp_request`; nothing when it is good.

    Args:
        issuer: the certificate of who issued ``serial``.
        now: seconds since the epoch.
        revoked_at: when ``serial`` was revoked, in seconds since the epoch; None when it was not.
    """
    seen = inspect_ocsp(der, issuer=issuer, serial=serial, hash_name=hash_name, now=now)
    problems = list(seen.problems)
    wanted = "good" if revoked_at is None else "revoked"
    if seen.status not in {wanted, "error"}:
        problems.append(f"says {seen.status}")
    elif seen.revoked_at != revoked_at and seen.status == "revoked":
        problems.append("gives another time of revocation")
    return problems


def inspect_ocsp(der: bytes, *, issuer: x509.Certificate, serial: int, hash_name: str, now: float) -> SeenResponse:
    """What an OCSP response says, and what is wrong with it now. The arguments are those of :func:`check_ocsp`."""
    try:
        response = ocsp.load_der_ocsp_response(der)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            return SeenResponse("error", problems=(f"is the error {response.response_status.name.lower()}",))
        singles = list(response.responses)
        if len(singles) != 1:
            return SeenResponse("error", problems=(f"answers for {len(singles)} certificates",))
        findings = _Findings()
        _check_cert_id(findings, singles[0], issuer, serial, hash_name)
        _check_responder(findings, response, issuer, now)
        return _read_single(findings, singles[0], now)
    except _PARSE_ERRORS:
        return SeenResponse("error", problems=("is not an OCSP response",))


def ocsp_request(issuer: x509.Certificate, serial: int, hash_name: str) -> bytes:
    """The request (DER) for the status of ``serial``, with a CertID of ``sha1`` or ``sha256`` (RFC 6960 section 4.1.1)."""
    name_hash, key_hash = _issuer_hashes(issuer, hash_name)
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(name_hash, key_hash, serial, _OCSP_HASHES[hash_name])
    return builder.build().public_bytes(Encoding.DER)


def _check_crl_extensions(
    findings: _Findings, extensions: x509.Extensions, issuer: x509.Certificate, *, delta: bool
) -> None:
    """RFC 5280 sections 5.2.1, 5.2.3, 5.2.4."""
    authority = _found(extensions, x509.AuthorityKeyIdentifier)
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    findings.unless(authority is not None and authority.value.key_identifier == own, "names another issuer's key")
    number = _found(extensions, x509.CRLNumber)
    good = number is not None and not number.critical and 0 <= number.value.crl_number < 1 << (8 * _NUMBER_OCTETS - 1)
    findings.unless(good, "has no usable number")
    base = _found(extensions, x509.DeltaCRLIndicator)
    findings.unless(delta or base is None, "is a delta CRL where a complete one must be")
    if delta:
        good = base is not None and base.critical and number is not None
        findings.unless(
            good and base is not None and number is not None and base.value.crl_number <= number.value.crl_number,
            "is no delta CRL",
        )
    unknown = [item for item in extensions if item.critical and not isinstance(item.value, _KNOWN_CRL_EXTENSIONS)]
    findings.unless(not unknown, "has a critical extension that nobody knows")


def _check_scope(findings: _Findings, extensions: x509.Extensions, shard: int | None, url: str) -> None:
    """RFC 5280 section 5.2.5. A full CRL has no issuing distribution point, so that it serves for any certificate."""
    point = _found(extensions, x509.IssuingDistributionPoint)
    if shard is None:
        findings.unless(point is None, "is one part of the list where all of it must be")
        return
    if point is None:
        findings.problems.append("does not say of which part it is")
        return
    scope = point.value
    findings.unless(point.critical, "has an issuingDistributionPoint that is not critical")
    names = [name.value for name in scope.full_name or () if isinstance(name, x509.UniformResourceIdentifier)]
    findings.unless(
        # What stands before the path is as it was when certificates named the part: the public URL may be another by now.
        len(names) == 1 and len(scope.full_name or ()) == 1 and names[0].endswith(url[url.rindex("/crl/") :]),
        "is for another distribution point",
    )
    others = (
        scope.only_contains_ca_certs,
        scope.indirect_crl,
        scope.only_contains_attribute_certs,
        scope.only_some_reasons,
        scope.relative_name,
    )
    findings.unless(scope.only_contains_user_certs and not any(others), "is for other kinds of certificates")


def _check_cert_id(
    findings: _Findings, single: ocsp.OCSPSingleResponse, issuer: x509.Certificate, serial: int, hash_name: str
) -> None:
    """Whether the response is for what was asked (RFC 6960 section 3.2 step 1)."""
    found = (single.hash_algorithm.name, single.issuer_name_hash, single.issuer_key_hash, single.serial_number)
    findings.unless(found == (hash_name, *_issuer_hashes(issuer, hash_name), serial), "answers for another certificate")


def _check_responder(findings: _Findings, response: ocsp.OCSPResponse, issuer: x509.Certificate, now: float) -> None:
    """Whether somebody signed whom the issuer has certified for that (RFC 6960 sections 3.2 and 4.2.2.2)."""
    if response.responder_key_hash is None:
        findings.problems.append("names its responder otherwise than by key")  # RFC 9919 section 3.2.1
        return
    delegate = next(
        (each for each in response.certificates if _key_hash(each, "sha1") == response.responder_key_hash), None
    )
    if delegate is None:
        findings.problems.append("does not hold its responder's certificate")
        return
    findings.unless(
        _verifies(lambda: delegate.verify_directly_issued_by(issuer)), "has a responder that the issuer did not certify"
    )
    findings.unless(_verifies(lambda: _verify(delegate, response)), "is not signed by the responder that it names")
    usages = _found(delegate.extensions, x509.ExtendedKeyUsage)
    findings.unless(
        usages is not None and ExtendedKeyUsageOID.OCSP_SIGNING in usages.value,
        "has a responder that may not sign responses",
    )
    findings.unless(
        _found(delegate.extensions, x509.OCSPNoCheck) is not None, "has a responder whose own status must be checked"
    )
    begin, end = _seconds(delegate.not_valid_before_utc), _seconds(delegate.not_valid_after_utc)
    findings.unless(begin <= now + SKEW and now <= end, "has a responder whose certificate is not valid now")


def _read_single(findings: _Findings, single: ocsp.OCSPSingleResponse, now: float) -> SeenResponse:
    this_update = _seconds(single.this_update_utc)
    next_update = _seconds(single.next_update_utc) if single.next_update_utc else 0
    findings.problems.extend(_time_problems(this_update, next_update, now))
    revoked = single.revocation_time_utc
    return SeenResponse(
        _STATUSES[single.certificate_status],
        this_update,
        next_update,
        None if revoked is None else _seconds(revoked),
        tuple(findings.problems),
    )


def _time_problems(this_update: int, next_update: int, now: float) -> Iterator[str]:
    if this_update > now + SKEW:
        yield f"is from the future: thisUpdate {rfc3339(this_update)}"
    if next_update <= now:
        yield f"is out of date since {rfc3339(next_update)}" if next_update else "has no nextUpdate"


def _is_signed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    key = issuer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
        return False
    try:
        return crl.is_signature_valid(key)
    except _PARSE_ERRORS:
        return False


def _verify(signer: x509.Certificate, response: ocsp.OCSPResponse) -> None:
    """Raise ``InvalidSignature`` unless ``signer``'s key signed ``response``."""
    key, digest = signer.public_key(), response.signature_hash_algorithm
    signature, tbs = response.signature, response.tbs_response_bytes
    if isinstance(key, ec.EllipticCurvePublicKey) and digest is not None:
        key.verify(signature, tbs, ec.ECDSA(digest))
    elif isinstance(key, rsa.RSAPublicKey) and digest is not None:
        key.verify(signature, tbs, padding.PKCS1v15(), digest)
    elif isinstance(key, ed25519.Ed25519PublicKey) and digest is None:
        key.verify(signature, tbs)
    else:
        raise InvalidSignature


def _verifies(check: Callable[[], None]) -> bool:
    try:
        check()
    except (InvalidSignature, *_PARSE_ERRORS):
        return False
    return True


def _issuer_hashes(issuer: x509.Certificate, hash_name: str) -> tuple[bytes, bytes]:
    """issuerNameHash and issuerKeyHash of a CertID (RFC 6960 section 4.1.1)."""
    return _HASHES[hash_name](issuer.subject.public_bytes()).digest(), _key_hash(issuer, hash_name)


def _key_hash(certificate: x509.Certificate, hash_name: str) -> bytes:
    """The hash over the content of the subjectPublicKey bit string, without tag and length."""
    encoded = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    spki = asn1.decode_der(_SubjectPublicKeyInfo, encoded)
    return _HASHES[hash_name](spki.subject_public_key.as_bytes()).digest()


def _found(extensions: x509.Extensions, kind: type[E]) -> x509.Extension[E] | None:
    try:
        return extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
