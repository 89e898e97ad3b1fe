"""Asking for the status of a certificate as a relying party does: by OCSP and by CRL, where the certificate says."""

from time import monotonic, sleep
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

_OPENER = build_opener(ProxyHandler({}))
_PATIENCE = 5.0


def ocsp_url(certificate: x509.Certificate) -> str:
    """The OCSP responder that ``certificate`` names."""
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    (url,) = (each.access_location.value for each in access if each.access_method == AuthorityInformationAccessOID.OCSP)
    return str(url)


def crl_url(certificate: x509.Certificate) -> str:
    """The CRL that ``certificate`` names."""
    (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    return str((point.full_name or [])[0].value)


def issuer_of(certificate: x509.Certificate) -> x509.Certificate:
    """The certificate of the CA that issued ``certificate``, from where that says (caIssuers)."""
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    (url,) = (
        each.access_location.value for each in access if each.access_method == AuthorityInformationAccessOID.CA_ISSUERS
    )
    return x509.load_der_x509_certificate(get(str(url))[0])


def get(url: str) -> tuple[bytes, Any]:
    """Body and headers."""
    with _OPENER.open(url, timeout=10) as answer:
        return answer.read(), answer.headers


def fetch_crl(url: str) -> x509.CertificateRevocationList:
    """The CRL at ``url``."""
    return x509.load_der_x509_crl(get(url)[0])


def ask(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    *,
    algorithm: hashes.HashAlgorithm | None = None,
    nonce: bytes | None = None,
    url: str = "",
) -> ocsp.OCSPResponse:
    """What the responder says by POST."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, algorithm or hashes.SHA1())  # noqa: S303
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return post(url or ocsp_url(certificate), builder.build().public_bytes(Encoding.DER))


def ask_serial(serial: int, issuer: x509.Certificate, url: str) -> ocsp.OCSPResponse:
    """What the responder says of a serial."""
    key_hash = x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest
    digest = hashes.Hash(hashes.SHA1())  # noqa: S303
    digest.update(issuer.subject.public_bytes())
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(digest.finalize(), key_hash, serial, hashes.SHA1())  # noqa: S303
    return post(url, builder.build().public_bytes(Encoding.DER))


def post(url: str, der: bytes) -> ocsp.OCSPResponse:
    """The answer to an OCSP request."""
    request = Request(url, data=der, headers={"Content-Type": "application/ocsp-request"})  # noqa: S310
    with _OPENER.open(request, timeout=10) as answer:
        return ocsp.load_der_ocsp_response(answer.read())


def eventually(holds: Any, *, seconds: float = _PATIENCE) -> float:
    """Return, once ``holds``, how many seconds that took; it fails when they were more than ``seconds``."""
    begun = monotonic()
    while not holds():
        assert monotonic() - begun < seconds, f"not within {seconds} s"
        sleep(0.02)
    return monotonic() - begun
