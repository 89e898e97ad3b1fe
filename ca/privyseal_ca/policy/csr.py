"""Certificate requests (RFC 2986): parsed once, and reduced to what the authority certifies, a key and names.

Of a request only the public key is used, after its signature has shown that the requester has the private key. Names
have to be those of the order; everything else that it asks for is ignored when harmless, and refused when no honest
client would ask for it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from privyseal_ca.errors import CsrRefusedError, KeyRefusedError, MalformedNameError, NameRefusedError
from privyseal_ca.identifiers import Identifier, from_general_name, parse_dns, parse_email, parse_ip, shown
from privyseal_ca.policy.keys import CertifiableKey, KeyPolicy, key_type

MAX_CSR: Final = 32 * 1024  # octets
MAX_EXTENSIONS: Final = 16
MAX_ATTRIBUTES: Final = 16
_NAMES_SHOWN: Final = 5

_EXTENSION_REQUESTS: Final = frozenset(
    {
        "1.2.840.113549.1.9.14",  # RFC 2985 section 5.4.2
        "1.3.6.1.4.1.311.2.1.14",  # Microsoft's copy of it, which no parser here reads
    }
)
_SIGNATURE_HINT: Final = "Sign the request with its own key and SHA-256, SHA-384 or SHA-512."
_WEAK_HASHES: Final = frozenset({"md5", "sha1"})


@dataclass(frozen=True, slots=True)
class VettedCsr:
    """What of a request may go into a certificate."""

    public_key: CertifiableKey
    spki_der: bytes
    """The SubjectPublicKeyInfo, encoded anew, so that one key has one encoding."""
    spki_sha256: bytes
    """SHA-256 of :attr:`spki_der`: what account keys and revoked keys are compared by."""
    key_type: str
    identifiers: frozenset[Identifier]


def vet_csr(der: bytes, ordered: Collection[Identifier], keys: KeyPolicy) -> VettedCsr:
    """The key and the names of the request ``der``, whose names are exactly ``ordered`` (RFC 8555 section 7.4).

    Raises:
        CsrRefusedError: malformed, too large, badly signed, other names than ordered, or absurd wishes.
        KeyRefusedError: the key is not good enough.
    """
    csr = _parsed(der)
    public_key = _public_key(csr)
    spki_der = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    keys.check(public_key, spki_der=spki_der)
    _check_signature(csr)
    names = _alternative_names(csr) | _common_name(csr.subject)
    wanted = frozenset(ordered)
    if names != wanted:
        raise _other_names(names, wanted)
    return VettedCsr(public_key, spki_der, sha256(spki_der).digest(), key_type(public_key), names)


def _parsed(der: bytes) -> x509.CertificateSigningRequest:
    if len(der) > MAX_CSR:
        raise CsrRefusedError(
            f"The request has {len(der)} octets, more than {MAX_CSR}.", hint="Ask for fewer names or use a smaller key."
        )
    try:
        return x509.load_der_x509_csr(der)
    except (ValueError, x509.InvalidVersion):
        raise CsrRefusedError(
            "The request is no PKCS #10 request of version 1 in DER (RFC 2986).",
            hint="Send the DER encoding, base64url without padding, of what `openssl req -new` makes.",
        ) from None


def _public_key(csr: x509.CertificateSigningRequest) -> CertifiableKey:
    try:
        public_key = csr.public_key()
    except (ValueError, UnsupportedAlgorithm):
        # Explicit curve parameters and points off their curve end here too.
        raise KeyRefusedError(
            "The public key of the request is malformed or of an unknown kind.",
            hint="Use ECDSA on P-256, P-384 or P-521, RSA, or Ed25519.",
        ) from None
    key_type(public_key)
    return public_key  # type: ignore[return-value]  # key_type let only these pass


def _check_signature(csr: x509.CertificateSigningRequest) -> None:
    try:
        digest = csr.signature_hash_algorithm
        valid = (digest is None or digest.name not in _WEAK_HASHES) and csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, TypeError):
        valid = False
    if not valid:
        raise CsrRefusedError("The signature of the request does not hold.", hint=_SIGNATURE_HINT)


def _alternative_names(csr: x509.CertificateSigningRequest) -> frozenset[Identifier]:
    """The names in the extensions asked for; the other extensions are looked at, and left to the profile."""
    try:
        attributes = [attribute.oid.dotted_string for attribute in csr.attributes]
        extensions = csr.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise CsrRefusedError(
            "The attributes or extensions of the request are malformed or occur twice.",
            hint="Ask for one subjectAltName extension with the ordered names, and nothing else.",
        ) from None
    if len(attributes) > MAX_ATTRIBUTES or sum(oid in _EXTENSION_REQUESTS for oid in attributes) > 1:
        raise CsrRefusedError(
            "The request has too many attributes.", hint="Put all extensions into one extensionRequest attribute."
        )
    if len(extensions) > MAX_EXTENSIONS:
        raise CsrRefusedError(
            f"The request asks for more than {MAX_EXTENSIONS} extensions.", hint="Ask for subjectAltName only."
        )
    names: frozenset[Identifier] = frozenset()
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            try:
                names = frozenset([from_general_name(name) for name in value])
            except NameRefusedError as error:
                raise CsrRefusedError(f"A name in the request is refused: {error.message}", hint=error.hint) from None
        elif _is_absurd(value):
            raise CsrRefusedError(
                "The request asks for a certificate that could issue others.",
                hint="Leave basicConstraints, keyUsage and nameConstraints to the profile.",
            )
    return names


def _is_absurd(value: x509.ExtensionType) -> bool:
    match value:
        case x509.BasicConstraints():
            return value.ca
        case x509.KeyUsage():
            return value.key_cert_sign or value.crl_sign
        case x509.NameConstraints():
            return True
        case _:
            return False


def _common_name(subject: x509.Name) -> frozenset[Identifier]:
    """The name in the subject's common name, which counts as one more that is asked for (RFC 8555 section 7.4)."""
    if not subject.rdns:
        return frozenset()
    values = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if not values:
        return frozenset()
    if len(values) > 1:
        raise CsrRefusedError("The subject of the request has several common names.", hint="Leave the subject empty.")
    text = values[0].value
    if not isinstance(text, str):
        raise CsrRefusedError("The common name of the request is no text.", hint="Leave the subject empty.")
    try:
        return frozenset((_parsed_common_name(text),))
    except MalformedNameError as error:
        raise CsrRefusedError(
            f"The common name of the request is no name that was ordered: {error.message}",
            hint="Leave the subject empty, or give an ordered name as its common name.",
        ) from None


def _parsed_common_name(text: str) -> Identifier:
    if "@" in text:
        return parse_email(text)
    try:
        return parse_ip(text)
    except MalformedNameError:
        return parse_dns(text)


def _other_names(names: frozenset[Identifier], wanted: frozenset[Identifier]) -> CsrRefusedError:
    parts = [
        f"{what}: {', '.join(shown(name.value) for name in sorted(group)[:_NAMES_SHOWN])}"
        + (f" and {len(group) - _NAMES_SHOWN} more" if len(group) > _NAMES_SHOWN else "")
        for what, group in (("not ordered", names - wanted), ("ordered but not asked for", wanted - names))
        if group
    ]
    return CsrRefusedError(
        f"The request does not have exactly the names of the order ({'; '.join(parts)}).",
        hint="Put all ordered names, and no others, into the subjectAltName extension.",
    )
