"""The finished certificate, checked by code that did not build it.

Nothing here is shared with :mod:`privyseal_ca.issuance.template`: what a certificate must be is written down a second
time, from the standards and from what was asked, so that one mistake does not pass twice.
"""

from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privyseal_ca.errors import LintError, NameRefusedError
from privyseal_ca.identifiers import from_general_name
from privyseal_ca.issuance.constraints import is_permitted, is_permitted_subject
from privyseal_ca.issuance.template import CertificateRequest, IssuerIdentity

_Names = x509.SubjectAlternativeName
_NO_REV_AVAIL: Final = "2.5.29.56"
# Each extension that a leaf may have, and whether it is critical (RFC 5280 section 4.2.1). That of subjectAltName
# depends on the subject.
_REQUIRED: Final = {
    "2.5.29.14": False,  # subjectKeyIdentifier
    "2.5.29.15": True,  # keyUsage
    "2.5.29.19": True,  # basicConstraints
    "2.5.29.35": False,  # authorityKeyIdentifier
    "2.5.29.37": False,  # extKeyUsage
}
_POSSIBLE: Final = {
    "1.3.6.1.5.5.7.1.1": False,  # authorityInfoAccess
    "2.5.29.31": False,  # cRLDistributionPoints
    "2.5.29.46": False,  # freshestCRL
}
_OCSP_NO_CHECK: Final = "1.3.6.1.5.5.7.48.1.5"
_OCSP_SIGNING: Final = "1.3.6.1.5.5.7.3.9"


def check_certificate(
    der: bytes, *, linted_tbs: bytes, issuer: IssuerIdentity, request: CertificateRequest, serial: int
) -> x509.Certificate:
    """The certificate in ``der``, when it is what ``request`` and its profile asked ``issuer`` for.

    Raises:
        LintError: it is not; it must never leave this process, and its serial is to be revoked.
    """
    # 1. It parses, as version 3, and holds exactly the octets that were linted.
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
        names = set()
        if request.names:
            names = {from_general_name(name) for name in extensions.get_extension_for_class(_Names).value}
    except (
        ValueError,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.ExtensionNotFound,
        NameRefusedError,
    ) as error:
        raise _wrong("does not parse") from error
    _require(certificate.tbs_certificate_bytes == linted_tbs, "is not what was linted")
    _require(certificate.version is x509.Version.v3, "has another version than 3")
    _require(certificate.serial_number == serial, "has another serial number")

    # 2. It has the extensions of a leaf, critical where they must be, and no others.
    _check_extensions(certificate, request)

    # 3. The issuer signed it, by name, key identifier and key (RFC 5280 section 6.1.3).
    try:
        certificate.verify_directly_issued_by(issuer.certificate)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise _wrong("is not signed by its issuer") from error
    authority = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    _require(authority.key_identifier == own.digest, "names another issuer's key")

    # 4. It certifies the requester's key, for the names that were asked, which the issuer may certify.
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    _require(spki == request.spki_der, "certifies another key")
    _require(names == set(request.names), "has other names")
    _check_subject(certificate, request)
    constraints = issuer.name_constraints
    _require(
        is_permitted_subject(certificate.subject, constraints)
        and all(is_permitted(name, constraints) for name in names),
        "is outside its issuer's name constraints",
    )

    # 5. It may be used for what the profile says, and never to issue.
    _check_usages(extensions, request)

    # 6. It is valid for no longer than profile and issuer allow.
    _check_times(certificate, issuer, request)

    # 7. It says where to ask whether it is revoked, and that is where the answers are.
    _check_pointers(extensions, issuer, request, serial)
    return certificate


def _check_extensions(certificate: x509.Certificate, request: CertificateRequest) -> None:
    found = {extension.oid.dotted_string: extension.critical for extension in certificate.extensions}
    allowed = {**_REQUIRED, **_POSSIBLE}
    if request.names:
        allowed["2.5.29.17"] = not certificate.subject.rdns
    if request.profile.no_rev_avail:
        allowed[_NO_REV_AVAIL] = False
    if request.profile.ocsp_no_check:
        # Of a responder nobody can ask whether it is revoked (RFC 6960 section 4.2.2.2.1).
        allowed = {**_REQUIRED, _OCSP_NO_CHECK: False}
        _require(_OCSP_NO_CHECK in found, "lacks the extension nocheck")
    for oid, critical in found.items():
        _require(allowed.get(oid) == critical, f"has the extension {oid}, which it may not have or not in this way")
    _require(found.keys() >= _REQUIRED.keys(), "lacks an extension")
    _require(request.profile.no_rev_avail == (_NO_REV_AVAIL in found), "lacks the extension noRevAvail")


def _check_subject(certificate: x509.Certificate, request: CertificateRequest) -> None:
    attributes = list(certificate.subject)
    if request.profile.nameless:
        _require(
            [(attribute.oid.dotted_string, attribute.value) for attribute in attributes]
            == [("2.5.4.3", request.common_name)],
            "has another subject",
        )
        return
    if request.profile.subject == "none":
        _require(not attributes, "has a subject")
        return
    dns_names = {name.value for name in request.names if name.type == "dns"}
    _require(
        len(attributes) <= 1
        and all(
            attribute.oid.dotted_string == "2.5.4.3" and attribute.value in dns_names and len(attribute.value) <= 64
            for attribute in attributes
        ),
        "has a subject that is not one of its DNS names",
    )


def _check_usages(extensions: x509.Extensions, request: CertificateRequest) -> None:
    profile = request.profile
    basic_constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    _require(not basic_constraints.ca, "is a CA certificate")
    eku = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    _require({oid.dotted_string for oid in eku} == set(profile.extended_key_usage), "has other extended key usages")
    _require(
        (_OCSP_SIGNING in profile.extended_key_usage) == profile.ocsp_no_check
        and (not profile.ocsp_no_check or profile.extended_key_usage == (_OCSP_SIGNING,)),
        "may sign OCSP responses without being a responder's alone",
    )
    bits = extensions.get_extension_for_class(x509.KeyUsage).value
    rsa, elliptic = request.key_type == "rsa", request.key_type.startswith("ec-")
    asked = set(profile.key_usage)
    _require(
        bits.digital_signature == ("digitalSignature" in asked)
        and bits.content_commitment == ("contentCommitment" in asked)
        and bits.key_encipherment == (rsa and "keyEncipherment" in asked)
        and bits.key_agreement == (elliptic and "keyAgreement" in asked)
        and not (bits.data_encipherment or bits.key_cert_sign or bits.crl_sign),
        "has other key usages",
    )


def _check_pointers(
    extensions: x509.Extensions, issuer: IssuerIdentity, request: CertificateRequest, serial: int
) -> None:
    profile, pointers = request.profile, issuer.pointers
    base = f"{pointers.base_url}/crl/{pointers.issuer_id}"
    part = f"{base}/{pointers.first_shard + serial % pointers.shards}"
    lists = {"none": [], "full": [f"{base}.crl"], "shard": [f"{part}.crl"]}[profile.crl]
    deltas = [f"{part}-delta.crl"] if profile.crl == "shard" and pointers.deltas else []
    found = {extension.oid.dotted_string: extension.value for extension in extensions}
    _require(_points(found.get("2.5.29.31")) == lists, "names another CRL")
    _require(_points(found.get("2.5.29.46")) == deltas, "names another delta CRL")
    access = found.get("1.3.6.1.5.5.7.1.1")
    responders = [
        description.access_location.value
        for description in (access if isinstance(access, x509.AuthorityInformationAccess) else ())
        if description.access_method.dotted_string == "1.3.6.1.5.5.7.48.1"
    ]
    _require(responders == ([f"{pointers.base_url}/ocsp"] if profile.ocsp else []), "names another OCSP responder")


def _points(extension: x509.ExtensionType | None) -> list[str]:
    """The URLs of distribution points, each of which has one and nothing else."""
    if not isinstance(extension, x509.CRLDistributionPoints | x509.FreshestCRL):
        return []
    return [
        point.full_name[0].value
        if point.full_name is not None and len(point.full_name) == 1 and point.reasons is point.crl_issuer is None
        else ""
        for point in extension
    ]


def _check_times(certificate: x509.Certificate, issuer: IssuerIdentity, request: CertificateRequest) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    signed_by = issuer.certificate
    _require(
        signed_by.not_valid_before_utc <= begin < end <= signed_by.not_valid_after_utc,
        "is valid when its issuer is not",
    )
    inclusive = int((end - begin).total_seconds()) + 1
    profile = request.profile
    _require(inclusive <= profile.max_lifetime + profile.backdate, "is valid for longer than its profile allows")
    for asked, given in ((request.not_before, begin), (request.not_after, end)):
        _require(asked is None or datetime.fromtimestamp(asked, UTC) == given, "has other times than were asked for")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise _wrong(problem)


def _wrong(problem: str) -> LintError:
    return LintError(
        f"The finished certificate {problem}.",
        hint="It was not handed out. This is a defect of this software or of the token; report it to the operators.",
    )
