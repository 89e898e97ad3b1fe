"""Issuers with software keys, requests and CSRs for tests of policy and issuance."""

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from privyseal_ca.hsm.signer import PrivateKey
from privyseal_ca.identifiers import Identifier, parse_identifier
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.issuance.profile import Profile, load_profiles
from privyseal_ca.issuance.template import CertificateRequest, IssuerIdentity, key_identifier, signature_hash
from privyseal_ca.policy.keys import key_type

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
YEAR = 365 * 86400


@cache
def key(kind: str) -> PrivateKey:
    """One key of each kind, the same throughout a run."""
    match kind:
        case "ec-p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ec-p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ec-p521":
            return ec.generate_private_key(ec.SECP521R1())
        case "rsa":
            return rsa.generate_private_key(65537, 2048)
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            raise ValueError(kind)


@cache
def issuer_key(kind: str) -> PrivateKey:
    """Like :func:`key`, but another."""
    return key.__wrapped__(kind)


def spki(public_key: Any) -> bytes:
    return bytes(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def names(*texts: str) -> tuple[Identifier, ...]:
    """Identifiers from ``type:value``."""
    return tuple(parse_identifier(*text.split(":", 1)) for text in texts)


def profile(name: str = "mtls") -> Profile:
    return load_profiles(None)[name]


def issuer(
    kind: str = "ec-p256",
    *,
    begin: float = NOW - YEAR,
    end: float = NOW + YEAR,
    constraints: x509.NameConstraints | None = None,
) -> IssuerIdentity:
    """A self-signed issuer with :func:`issuer_key`; good enough for what is below it."""
    private_key = issuer_key(kind)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test Issuing CA")])
    identifier = key_identifier(spki(private_key.public_key()))
    builder = (
        x509.CertificateBuilder()
        .issuer_name(subject)
        .subject_name(subject)
        .public_key(private_key.public_key())
        .serial_number(4711)
        .not_valid_before(datetime.fromtimestamp(begin, UTC))
        .not_valid_after(datetime.fromtimestamp(end, UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, True, True, False, False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(identifier), critical=False)
    )
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    certificate = builder.sign(private_key, signature_hash(private_key.public_key()))
    return IssuerIdentity.from_certificate(
        certificate, name="test", pointers=Pointers("http://ca.example", "test", shards=8)
    )


def request(
    *texts: str, kind: str = "ec-p256", of: Profile | None = None, begin: float | None = None, end: float | None = None
) -> CertificateRequest:
    public_key = key(kind).public_key()
    der = spki(public_key)
    return CertificateRequest(
        profile=of or profile(),
        names=names(*(texts or ("dns:web.corp.example",))),
        public_key=public_key,
        spki_der=der,
        spki_sha256=sha256(der).digest(),
        key_type=key_type(public_key),
        not_before=begin,
        not_after=end,
    )


def csr(
    *texts: str,
    kind: str = "ec-p256",
    subject: Iterable[x509.NameAttribute[Any]] = (),
    extensions: Iterable[x509.ExtensionType] = (),
    private_key: Any = None,
    algorithm: Any = None,
) -> bytes:
    """A request for ``texts`` (``type:value``) in DER."""
    private_key = private_key or key(kind)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(list(subject)))
    if texts:
        general_names = [name.general_name() for name in names(*texts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(general_names), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    hashed = None if isinstance(private_key, ed25519.Ed25519PrivateKey) else algorithm or hashes.SHA256()
    return builder.sign(private_key, hashed).public_bytes(Encoding.DER)
