"""OCSP requests, read with suspicion (RFC 6960 section 4.1, RFC 9919, RFC 9654)."""

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import OCSPExtensionOID

from privyseal_ca.revocation.published import OcspQuery, OcspStatus

#: Octets; one CertID with SHA-256, a long nonce and a signature with its certificate stay below it.
MAX_REQUEST: Final = 2048

#: The hashes of CertIDs that are answered, by name.
CERT_ID_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256()}  # noqa: S303 (RFC 6960 4.3)

# RFC 9654 section 2.1: what is longer, or empty, is malformed; what is shorter than a responder must repeat is ignored.
_SHORTEST_NONCE: Final = 16
_LONGEST_NONCE: Final = 128

#: Extensions whose meaning is heeded, so that they may be critical. Every answer is a basic response, the one kind that
#: AcceptableResponses could ask for (RFC 6960 section 4.4.3).
_UNDERSTOOD: Final = frozenset({OCSPExtensionOID.NONCE, OCSPExtensionOID.ACCEPTABLE_RESPONSES})

_BOOLEAN, _SEQUENCE, _EXTENSIONS = 0x01, 0x30, 0xA0


def parse_request(der: bytes) -> OcspQuery | OcspStatus:
    """What a request asks, or the status that it is to be answered with. Raises nothing, whatever ``der`` is.

    The request's own signature is ignored: who asks makes no difference to the answer.
    """
    if len(der) > MAX_REQUEST:
        return OcspStatus.MALFORMED_REQUEST
    try:
        request = ocsp.load_der_ocsp_request(der)
        extensions = list(request.extensions)
        hash_name = request.hash_algorithm.name
        cert_id = (request.issuer_name_hash, request.issuer_key_hash, request.serial_number)
    except UnsupportedAlgorithm:
        return OcspStatus.UNAUTHORIZED  # RFC 6960 section 2.3: nothing is known by such a CertID
    except (ValueError, NotImplementedError, x509.DuplicateExtension):
        return OcspStatus.MALFORMED_REQUEST
    critical = {extension.oid for extension in extensions if extension.critical}
    nonces = [extension.value for extension in extensions if isinstance(extension.value, x509.OCSPNonce)]
    if not (critical <= _UNDERSTOOD and all(_is_sound(nonce, der) for nonce in nonces)) or _has_critical_of_its_own(
        der
    ):
        return OcspStatus.MALFORMED_REQUEST
    if hash_name not in CERT_ID_HASHES:
        return OcspStatus.UNAUTHORIZED
    repeated = [nonce.nonce for nonce in nonces if len(nonce.nonce) >= _SHORTEST_NONCE]
    return OcspQuery(hash_name, *cert_id, repeated[0] if repeated else None)


def encode_request(query: OcspQuery) -> bytes:
    """The request as most clients make it: this CertID and nothing else, so that its octets can name the answer."""
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        query.issuer_name_hash, query.issuer_key_hash, query.serial, CERT_ID_HASHES[query.hash_name]
    )
    return builder.build().public_bytes(Encoding.DER)


def _is_sound(nonce: x509.OCSPNonce, der: bytes) -> bool:
    """Whether it has a length that there is, and is an OCTET STRING inside extnValue (RFC 9654 section 2.1).

    cryptography also takes extnValue itself for a nonce, as some did before RFC 6960; repeated, that would be another.
    """
    return 0 < len(nonce.nonce) <= _LONGEST_NONCE and x509.OCSPNonce(nonce.public_bytes()).public_bytes() in der


def _has_critical_of_its_own(der: bytes) -> bool:
    """Whether the one Request has a critical singleRequestExtension, none of which is known here (RFC 6960 section 4.1.2).

    cryptography does not tell of them, but it has made sure that the structure is as it must be.
    """
    tbs = _elements(_elements(der)[0][1])[0][1]
    requests = next(content for tag, content in _elements(tbs) if tag == _SEQUENCE)
    extensions = [content for tag, content in _elements(_elements(requests)[0][1]) if tag == _EXTENSIONS]
    return any(
        (_BOOLEAN, b"\xff") in _elements(extension)
        for wrapped in extensions
        for _, sequence in _elements(wrapped)
        for _, extension in _elements(sequence)
    )


def _elements(content: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element of well-formed DER, tags of one octet only."""
    elements = []
    position = 0
    while position < len(content):
        tag, length, start = content[position], content[position + 1], position + 2
        if length & 0x80:
            octets = length & 0x7F
            length, start = int.from_bytes(content[start : start + octets], "big"), start + octets
        position = start + length
        elements.append((tag, content[start:position]))
    return elements
