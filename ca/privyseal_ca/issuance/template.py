"""From a vetted request to a certificate that lacks only its signature (RFC 5280 section 4).

Times. ``notBefore`` is now less the profile's backdating, which helps relying parties whose clocks are behind; the
lifetime counts from now, so that a client gets all of it. Both ends belong to the validity (RFC 5280 section 4.1.2.5):
a certificate of 86400 seconds issued at ``t`` ends at ``t + 86399``. An issuer's own validity cuts off both ends of what
was not asked for explicitly; what was asked for is given exactly or refused (RFC 8555 section 7.4).
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from privyseal_ca.clock import rfc3339
from privyseal_ca.errors import ConfigurationError, IssuerNotValidError, KeyRefusedError, ProfileRefusedError
from privyseal_ca.hsm.signer import PrivateKey
from privyseal_ca.identifiers import Identifier
from privyseal_ca.issuance.constraints import check_constraints
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.issuance.profile import Profile, usages_for
from privyseal_ca.policy.keys import CertifiableKey, key_type

SERIAL_OCTETS: Final = 16
MAX_COMMON_NAME: Final = 64  # ub-common-name, RFC 5280 appendix A.1
LATEST_START: Final = 6 * 3600  # how many seconds ahead a certificate may be asked to begin

SignatureHash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512

_NO_REV_AVAIL: Final = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.56"), b"\x05\x00")  # RFC 9608: NULL
_EMPTY_SUBJECT: Final = x509.Name([])
_KEY_ID_OCTETS: Final = 20


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """What is to be certified: vetted against policy, profile and the requester's proof of control."""

    profile: Profile
    names: tuple[Identifier, ...]
    """In the order in which they go into the certificate."""
    public_key: CertifiableKey
    spki_der: bytes
    spki_sha256: bytes
    key_type: str
    not_before: float | None = None
    """Begin of the validity that was asked for, in seconds since the epoch."""
    not_after: float | None = None
    """End of the validity that was asked for, in seconds since the epoch."""
    ordered: float | None = None
    """When the validity was asked for and found possible, in seconds since the epoch; None when that is now."""
    common_name: str = ""
    """The subject of a certificate without names, which only profiles of the authority itself have."""


@dataclass(frozen=True, slots=True)
class IssuerIdentity:
    """What of an issuer goes into the certificates that it issues, or limits them."""

    name: str
    certificate: x509.Certificate
    subject: x509.Name
    public_key: CertifiableKey
    key_type: str
    key_id: bytes
    """Subject key identifier of the issuer, authority key identifier of what it issues."""
    pointers: Pointers
    not_before: int
    not_after: int
    name_constraints: x509.NameConstraints | None
    der: bytes = field(repr=False)

    def __hash__(self) -> int:
        return hash(self.der)

    @classmethod
    def from_certificate(cls, certificate: x509.Certificate, *, name: str, pointers: Pointers) -> "IssuerIdentity":
        """The identity in an issuer's ``certificate``.

        Raises:
            ConfigurationError: it is no certificate that may issue others, or it lacks its key identifier.
        """
        try:
            extensions = certificate.extensions
            basic_constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
            key_usage = extensions.get_extension_for_class(x509.KeyUsage).value
            key_id = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
            public_key = certificate.public_key()
            kind = key_type(public_key)
        except (
            ValueError,
            x509.ExtensionNotFound,
            x509.DuplicateExtension,
            UnsupportedAlgorithm,
            KeyRefusedError,
        ) as error:
            raise ConfigurationError(
                f"The certificate of issuer {name} cannot be used: {error}", hint="Import a CA certificate (RFC 5280)."
            ) from error
        if not basic_constraints.ca or not key_usage.key_cert_sign or not certificate.subject.rdns:
            raise ConfigurationError(
                f"The certificate of issuer {name} does not let it issue certificates.",
                hint="Import one with a subject, basicConstraints CA and keyUsage keyCertSign.",
            )
        constraints = [ext.value for ext in extensions if isinstance(ext.value, x509.NameConstraints)]
        return cls(
            name=name,
            certificate=certificate,
            subject=certificate.subject,
            public_key=public_key,  # type: ignore[arg-type]  # key_type let only these pass
            key_type=kind,
            key_id=key_id,
            pointers=pointers,
            not_before=int(certificate.not_valid_before_utc.timestamp()),
            not_after=int(certificate.not_valid_after_utc.timestamp()),
            name_constraints=constraints[0] if constraints else None,
            der=certificate.public_bytes(Encoding.DER),
        )

    def sign(self, key: PrivateKey, tbs: bytes) -> bytes:
        """The signature of this issuer's ``key`` over ``tbs``, by the algorithm of :func:`signature_hash`.

        Raises whatever ``key`` raises.
        """
        digest = signature_hash(self.public_key)
        if isinstance(key, ec.EllipticCurvePrivateKey) and digest is not None:
            return key.sign(tbs, ec.ECDSA(digest))
        if isinstance(key, rsa.RSAPrivateKey) and digest is not None:
            return key.sign(tbs, padding.PKCS1v15(), digest)
        if isinstance(key, ed25519.Ed25519PrivateKey) and digest is None:
            return key.sign(tbs)
        raise TypeError("the key is not of the issuer's kind")


@dataclass(frozen=True, slots=True)
class Template:
    """A certificate without signature. Times are seconds since the epoch, both inclusive."""

    request: CertificateRequest
    builder: x509.CertificateBuilder
    serial: int
    not_before: int
    not_after: int
    crl_shard: int | None
    """The part of the issuer's CRL that the certificate names; None when it names none of them."""
    shape: Hashable
    """Equal for certificates that differ only in values which cannot make one of them break a rule alone."""


@asn1.sequence
class _SubjectPublicKeyInfo:
    algorithm: asn1.TLV
    subject_public_key: asn1.BitString


def new_serial(random_bytes: Callable[[int], bytes]) -> int:
    """A serial of 127 random bits, positive and at most 16 octets in DER (RFC 5280 section 4.1.2.2)."""
    while True:
        serial = int.from_bytes(random_bytes(SERIAL_OCTETS), "big") & ((1 << (8 * SERIAL_OCTETS - 1)) - 1)
        if serial:
            return serial


def key_identifier(spki_der: bytes) -> bytes:
    """The subject key identifier of a key: RFC 7093 section 2 method 1."""
    spki = asn1.decode_der(_SubjectPublicKeyInfo, spki_der)
    return sha256(spki.subject_public_key.as_bytes()).digest()[:_KEY_ID_OCTETS]


def signature_hash(issuer_key: CertifiableKey) -> SignatureHash | None:
    """The hash that an issuer with this key signs with; none for Ed25519, which hashes itself (RFC 8410)."""
    return _SIGNATURE_HASHES[key_type(issuer_key)]


def build_template(request: CertificateRequest, issuer: IssuerIdentity, *, serial: int, now: float) -> Template:
    """The certificate that ``issuer`` is to sign for ``request`` at ``now`` (seconds since the epoch).

    Raises:
        ProfileRefusedError: names, key or times that the profile or the issuer's own validity do not allow.
        NameRefusedError: a kind of name that the profile does not have, or a name outside the issuer's constraints.
    """
    profile = request.profile
    profile.check_key_type(request.key_type)
    profile.check_names(request.names)
    if issuer.name_constraints is not None:
        for name in request.names:
            check_constraints(name, issuer.name_constraints)
    not_before, not_after = check_validity(
        profile,
        issuer,
        not_before=request.not_before,
        not_after=request.not_after,
        now=now,
        ordered=request.ordered,
    )
    shard = issuer.pointers.shard_of(serial) if profile.crl == "shard" else None
    common_name = _common_name(request)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]) if common_name else _EMPTY_SUBJECT
    builder = (
        _prototype(profile, issuer, request.key_type, shard)
        .subject_name(subject)
        .public_key(request.public_key)
        .serial_number(serial)
        .not_valid_before(datetime.fromtimestamp(not_before, UTC))
        .not_valid_after(datetime.fromtimestamp(not_after, UTC))
        .add_extension(x509.SubjectKeyIdentifier(key_identifier(request.spki_der)), critical=False)
    )
    if request.names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([name.general_name() for name in request.names]),
            critical=not common_name,  # RFC 5280 section 4.2.1.6
        )
    shape = (
        profile.digest,
        issuer,
        request.key_type,
        bool(common_name),
        frozenset(map(_kind, request.names)),
        len(request.names) == 1,
        datetime.fromtimestamp(not_after, UTC).year < 2050,  # UTCTime or GeneralizedTime
    )
    return Template(request, builder, serial, not_before, not_after, shard, shape)


@lru_cache(maxsize=4096)
def _prototype(
    profile: Profile, issuer: IssuerIdentity, subscriber_key_type: str, shard: int | None
) -> x509.CertificateBuilder:
    """All that is the same in every certificate of a profile, an issuer, a kind of key and a part of the CRL."""
    usages = usages_for(profile.key_usage, subscriber_key_type)
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (
            x509.KeyUsage(
                digital_signature="digitalSignature" in usages,
                content_commitment="contentCommitment" in usages,
                key_encipherment="keyEncipherment" in usages,
                data_encipherment=False,
                key_agreement="keyAgreement" in usages,
                key_cert_sign=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            True,
        ),
        (x509.ExtendedKeyUsage([x509.ObjectIdentifier(oid) for oid in profile.extended_key_usage]), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.AuthorityKeyIdentifier(issuer.key_id, None, None), False),
    ]
    pointers = issuer.pointers
    access = []
    if profile.ocsp:
        access.append(x509.AccessDescription(AuthorityInformationAccessOID.OCSP, _uri(pointers.ocsp)))
    if profile.aia_ca_issuers:
        access.append(x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, _uri(pointers.ca_issuers)))
    if access:
        extensions.append((x509.AuthorityInformationAccess(access), False))
    if profile.crl != "none":
        extensions.append((x509.CRLDistributionPoints([distribution_point(pointers.crl(shard))]), False))
    if shard is not None and pointers.deltas:
        extensions.append((x509.FreshestCRL([distribution_point(pointers.delta(shard))]), False))
    if profile.ocsp_no_check:
        extensions.append((x509.OCSPNoCheck(), False))
    if profile.no_rev_avail:
        extensions.append((_NO_REV_AVAIL, False))
    builder = x509.CertificateBuilder().issuer_name(issuer.subject)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder


def distribution_point(url: str) -> x509.DistributionPoint:
    """A CRL's place as certificates and CRLs name it (RFC 5280 section 4.2.1.13)."""
    return x509.DistributionPoint([_uri(url)], None, None, None)


def _uri(url: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(url)


def _kind(name: Identifier) -> str:
    """The kind of a name, as fine as a linter could tell names apart."""
    match name.type:
        case "dns":
            return "dns" + "*" * name.wildcard + "x" * ("xn--" in name.value) + "." * ("." in name.value)
        case "ip":
            return "ip6" if ":" in name.value else "ip4"
        case "uri":
            return name.value.partition(":")[0]
        case "email":
            return "@"


def _common_name(request: CertificateRequest) -> str:
    """Never an address: some clients read a common name as a DNS name and stop at one (seen with certbot)."""
    if request.profile.nameless:
        return request.common_name
    if request.profile.subject == "none":
        return ""
    candidates = (name.value for name in request.names if name.type == "dns" and len(name.value) <= MAX_COMMON_NAME)
    return next(candidates, "")


def check_validity(
    profile: Profile,
    issuer: IssuerIdentity,
    *,
    not_before: float | None,
    not_after: float | None,
    now: float,
    ordered: float | None = None,
) -> tuple[int, int]:
    """Both ends of the validity, inclusive, in seconds since the epoch, for what was asked for (None: nothing).

    A notBefore that was possible at the time ``ordered`` stays so, however long proof or an outage took (promise P5).

    Raises:
        IssuerNotValidError: the issuer is not valid now.
        ProfileRefusedError: profile and issuer do not allow it.
    """
    now = int(now)
    if not issuer.not_before <= now < issuer.not_after:
        raise IssuerNotValidError(
            f"The issuer {issuer.name} is not valid at {rfc3339(now)}, the time of this authority's clock.",
            hint="Its operators must set the clock right, or replace the issuer.",
        )
    asked = now if not_before is None or ordered is None else min(now, int(ordered))
    earliest = max(asked - profile.backdate, issuer.not_before)
    begin = earliest
    start = now  # what the lifetime is measured from
    if not_before is not None:
        begin = _whole_seconds(not_before)
        if not earliest <= begin <= now + LATEST_START:
            raise ProfileRefusedError(
                "The notBefore that was asked for is not possible.",
                hint=f"Leave it out, or ask for a time within the next {LATEST_START // 3600} hours.",
            )
        start = max(asked, begin)
    latest = min(start + profile.max_lifetime - 1, issuer.not_after)
    end = min(start + profile.lifetime - 1, issuer.not_after)
    if not_after is not None:
        end = _whole_seconds(not_after)
    if not max(start, now) < end <= latest:
        raise ProfileRefusedError(
            "The validity that was asked for is not possible.",
            hint=f"Leave notAfter out, or ask for at most {profile.max_lifetime} seconds and not beyond the issuer's end.",
        )
    return begin, end


def _whole_seconds(moment: float) -> int:
    if moment != int(moment):
        raise ProfileRefusedError(
            "A certificate cannot begin or end within a second (RFC 5280 section 4.1.2.5).",
            hint="Ask for times without fractions of seconds.",
        )
    return int(moment)


_SIGNATURE_HASHES: Final[dict[str, SignatureHash | None]] = {
    "ec-p256": hashes.SHA256(),
    "ec-p384": hashes.SHA384(),
    "ec-p521": hashes.SHA512(),
    "rsa": hashes.SHA256(),
    "ed25519": None,
}
