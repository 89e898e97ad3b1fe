"""tls-alpn-01 (RFC 8737; for addresses RFC 8738 section 6)."""

import asyncio
import hashlib
import hmac
import ssl
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from privyseal_acme.validation.attempt import Attempt
from privyseal_acme.validation.challenge import ChallengeTask
from privyseal_acme.validation.outcome import ValidationFailedError, printable

ALPN = "acme-tls/1"
ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
# DER of OCTET STRING with 32 bytes (RFC 8737 section 3: the extension's value is an Authorization).
_OCTET_STRING_32 = b"\x04\x20"


class TlsAlpn01:
    """Asks for the challenge certificate with the sole protocol ``acme-tls/1``."""

    def __init__(self, tls_port: int) -> None:
        self._port = tls_port
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls.check_hostname = False
        # Section 3: the certificate is self-signed, and its contents are what is checked.
        self._tls.verify_mode = ssl.CERT_NONE
        self._tls.set_alpn_protocols([ALPN])

    async def check(self, task: ChallengeTask, attempt: Attempt) -> None:
        """Return when the identifier presents the certificate of RFC 8737 section 3.

        Raises:
            ValidationFailedError: it does not.
            TimeoutError: the attempt's time is over.
        """
        targets = await attempt.targets(task.value)
        # RFC 8738 section 6: an address is named by its name in the reverse tree, as SNI carries no addresses.
        name = ip_address(task.value).reverse_pointer if task.identifier_type == "ip" else task.value
        transport, _ = await attempt.connect(asyncio.Protocol, targets, self._port, self._tls, name)
        try:
            connection: ssl.SSLObject = transport.get_extra_info("ssl_object")
            protocol = connection.selected_alpn_protocol()
            certificate = connection.getpeercert(binary_form=True) or b""
            attempt.evidence.note("tls", printable(connection.version() or ""))
            attempt.evidence.note("alpn", printable(protocol or ""))
            attempt.evidence.note("digest", hashlib.sha256(certificate).hexdigest())
        finally:
            transport.abort()
        if protocol != ALPN:
            raise ValidationFailedError("tls", f"{task.value} port {self._port} did not negotiate the protocol {ALPN}.")
        fault = certificate_fault(certificate, task)
        if fault:
            raise ValidationFailedError(
                "incorrectResponse", f"The certificate of {task.value} port {self._port} {fault}."
            )


def certificate_fault(der: bytes, task: ChallengeTask) -> str:
    """What is wrong with the certificate ``der`` for ``task``, as the rest of a sentence; empty when nothing is."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.verify_directly_issued_by(certificate)
        return _extensions_fault(certificate.extensions, task)
    except x509.ExtensionNotFound as error:
        missing = "acmeIdentifier" if error.oid == ACME_IDENTIFIER else "subjectAltName"
        return f"has no {missing} extension"
    except (InvalidSignature, TypeError, UnsupportedAlgorithm):
        return "is not signed by its own key"
    except (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return "is malformed or not self-signed"


def _extensions_fault(extensions: x509.Extensions, task: ChallengeTask) -> str:
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    identifier = extensions.get_extension_for_oid(ACME_IDENTIFIER)
    if not _names_only(names, task):
        return f"does not have exactly one subjectAltName, {task.value}"
    if not identifier.critical:
        return "has an acmeIdentifier extension that is not critical"
    expected = _OCTET_STRING_32 + hashlib.sha256(task.key_authorization.encode("ascii")).digest()
    if not hmac.compare_digest(identifier.value.public_bytes(), expected):
        return "has an acmeIdentifier that is not the SHA-256 of this challenge's key authorization"
    return ""


def _names_only(names: x509.SubjectAlternativeName, task: ChallengeTask) -> bool:
    """Whether there is a single name, and it is the task's (RFC 8737 section 3, RFC 8738 section 6)."""
    match list(names):
        case [x509.DNSName(value=value)]:
            return task.identifier_type == "dns" and value.lower() == task.value.lower()
        case [x509.IPAddress(value=value)]:
            return task.identifier_type == "ip" and value == ip_address(task.value)
        case _:
            return False
