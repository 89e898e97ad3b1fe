"""What CA certificates look like, and how they are checked once they are signed."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID

from privyseal_ca.ceremony.plan import BACKDATE, ISSUING_LIFETIME, ROOT_LIFETIME, NameSpace
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.hsm.signer import PrivateKey, PublicKey
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.issuance.standin import stand_in_for
from privyseal_ca.issuance.template import distribution_point, key_identifier, signature_hash

_KEY_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class CaTemplate:
    """Everything of a CA certificate but its signature."""

    builder: x509.CertificateBuilder
    #: The key that is to sign it.
    signer: PublicKey
    serial: int
    not_after: int
    tbs: bytes

    @property
    def tbs_sha256(self) -> bytes:
        """The hash that the intent carries (promise P2)."""
        return hashlib.sha256(self.tbs).digest()

    def sign(self, key: PrivateKey) -> x509.Certificate:
        """The certificate, signed by ``key``."""
        return self.builder.sign(key, signature_hash(self.signer))


def root_template(key: PublicKey, subject: x509.Name, *, serial: int, now: float) -> CaTemplate:
    """A self-signed root of ten years."""
    moment = _second(now)
    builder = _ca_builder(key, subject, (moment - BACKDATE, moment + ROOT_LIFETIME), path_length=None)
    return _finish(builder.issuer_name(subject), key, serial, moment + ROOT_LIFETIME)


def issuing_template(
    key: PublicKey,
    subject: x509.Name,
    root: x509.Certificate,
    names: NameSpace,
    *,
    pointers: Pointers | None,
    serial: int,
    now: float,
) -> CaTemplate:
    """An intermediate of three years, or as long as the root lasts, under which there is no other CA.

    It names the root's certificate and CRL where ``pointers``, the root's, say that they are; there is no OCSP for it. It has no extended key usage: what leaves are for is the profiles' affair, and a usage missing here would break every
    profile that is added later.
    """
    moment = _second(now)
    not_after = min(moment + ISSUING_LIFETIME, root.not_valid_after_utc)
    signer = ca_public_key(root)
    builder = _ca_builder(key, subject, (moment - BACKDATE, not_after), path_length=0)
    builder = builder.issuer_name(root.subject).add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key_identifier(root)), critical=False
    )
    constraints = names.extension()
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    if pointers is not None:
        for extension in _pointing(pointers):
            builder = builder.add_extension(extension, critical=False)
    return _finish(builder, signer, serial, not_after)


def request(key: PrivateKey, subject: x509.Name, names: NameSpace) -> x509.CertificateSigningRequest:
    """A request (RFC 2986) for an intermediate, which asks for what :func:`issuing_template` would give but for the pointers:
    where a root elsewhere publishes is its own affair.
    """
    public_key = key.public_key()
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_KEY_USAGE, critical=True)
        .add_extension(own_identifier(public_key), critical=False)
    )
    constraints = names.extension()
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    return builder.sign(key, signature_hash(public_key))


def check_base_url(url: str) -> None:
    """Return when ``url`` can stand in a certificate, which holds ASCII (RFC 5280 section 4.2.1.6).

    Raises:
        ConfigurationError: it cannot.
    """
    if not url.isascii():
        raise ConfigurationError(
            "server.http_url has characters that no certificate can hold.", hint="Write its host in ASCII (xn--...)."
        )


def check_ca_certificate(certificate: x509.Certificate, issuer: x509.Certificate, *, now: float) -> None:
    """Return when ``certificate`` is a CA certificate, valid at ``now``, that ``issuer`` has signed.

    Raises:
        ConfigurationError: it is not, for the first reason that is found.
    """
    moment = datetime.fromtimestamp(now, UTC)
    if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
        raise _refused("it is not valid now", "Check its validity and this machine's clock.")
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        subject_key_identifier(certificate)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise _refused(
            f"an extension is missing or malformed ({error})", "Sign the request with CA extensions."
        ) from error
    if not constraints.ca:
        raise _refused("its basic constraints do not say CA:TRUE", "Sign the request with CA extensions.")
    if not usage.key_cert_sign:
        raise _refused("its key usage lacks keyCertSign", "Sign the request with keyCertSign and cRLSign.")
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise _refused("it was not signed by the given root", "Give the root whose key signed it.") from error


def ca_public_key(certificate: x509.Certificate) -> PublicKey:
    """The public key of a CA certificate.

    Raises:
        ConfigurationError: a kind of key that tokens here do not hold.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
        raise _refused("its key is neither EC, RSA nor Ed25519", "Use one of those kinds.")
    return key


def subject_key_identifier(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    """The extension (RFC 5280 section 4.2.1.2).

    Raises:
        x509.ExtensionNotFound: it is missing.
    """
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value


def own_identifier(key: PublicKey) -> x509.SubjectKeyIdentifier:
    """The subject key identifier of a CA key made here (RFC 7093 section 2 method 1); in hex it is the issuer's id."""
    return x509.SubjectKeyIdentifier(key_identifier(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)))


def tbs_sha256(certificate: x509.Certificate) -> str:
    """The SHA-256 of the TBSCertificate in hex."""
    return hashlib.sha256(certificate.tbs_certificate_bytes).hexdigest()


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 of the certificate in hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def pem(*certificates: x509.Certificate) -> str:
    """``certificates`` as PEM, in the order given."""
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates)


def _ca_builder(
    key: PublicKey, subject: x509.Name, validity: tuple[datetime, datetime], *, path_length: int | None
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_KEY_USAGE, critical=True)
        .add_extension(own_identifier(key), critical=False)
    )


def _pointing(pointers: Pointers) -> tuple[x509.AuthorityInformationAccess, x509.CRLDistributionPoints]:
    """Where the issuer's certificate (RFC 5280 section 4.2.2.1) and its CRL (section 4.2.1.13) are."""
    access = x509.AccessDescription(
        AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(pointers.ca_issuers)
    )
    points = x509.CRLDistributionPoints([distribution_point(pointers.crl(None))])
    return x509.AuthorityInformationAccess([access]), points


def _finish(builder: x509.CertificateBuilder, signer: PublicKey, serial: int, not_after: datetime) -> CaTemplate:
    complete = builder.serial_number(serial)
    return CaTemplate(complete, signer, serial, int(not_after.timestamp()), _unsigned_tbs(complete, signer))


def _unsigned_tbs(builder: x509.CertificateBuilder, signer: PublicKey) -> bytes:
    """The TBSCertificate that the holder of ``signer`` is going to sign."""
    return builder.sign(stand_in_for(signer), signature_hash(signer)).tbs_certificate_bytes


def _second(now: float) -> datetime:
    return datetime.fromtimestamp(int(now), UTC)


def _refused(why: str, hint: str) -> ConfigurationError:
    return ConfigurationError(f"The CA certificate is refused: {why}.", hint=hint)
