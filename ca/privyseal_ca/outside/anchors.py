"""The certificates of a log's CAs, as its server hands them out: enough to verify what the CAs signed."""

from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from privyseal_ca.outside.findings import Code, FindingError
from privyseal_ca.outside.source import HttpLedger

_ROOTS: Final = "roots.pem"
_MOST: Final = 1 << 20
#: What certificates raise that others have made up.
_MALFORMED: Final = (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


class Anchors:
    """CA certificates below a base URL. ``recorded`` has the hashes that the log's entries say, by the id of the CA."""

    def __init__(self, source: HttpLedger, recorded: dict[str, set[str]] | None) -> None:
        self._source = source
        self._recorded = recorded
        self._roots: list[x509.Certificate] | None = None
        self._known: dict[str, list[x509.Certificate]] = {}

    async def roots(self) -> list[x509.Certificate]:
        """The trust anchors.

        Raises:
            FindingError: they are malformed.
            StatusUnavailableError, LedgerError: they cannot be read.
        """
        if self._roots is None:
            self._roots = await self._read(_ROOTS)
        return self._roots

    async def of(self, issuer: str) -> list[x509.Certificate]:
        """The certificates of the CA with the id ``issuer`` that lead to a root, and are in the log where it was read.

        Raises:
            FindingError: there is none, or it does not.
            StatusUnavailableError, LedgerError: they cannot be read.
        """
        if issuer not in self._known:
            self._known[issuer] = await self._find(issuer)
        return self._known[issuer]

    async def _find(self, issuer: str) -> list[x509.Certificate]:
        roots = await self.roots()
        own = [root for root in roots if key_id(root) == issuer]
        chain = [] if own else await self._read(f"issuers/{issuer}.pem")
        if not own:
            links = pairwise(chain)
            if (
                not chain
                or key_id(chain[0]) != issuer
                or not all(_signed_by(child, parent) for child, parent in links)
                or not any(_signed_by(chain[-1], root) for root in roots)
            ):
                raise FindingError(Code.CRL, f"The certificate of the CA {issuer} does not lead to one of the roots.")
            own = chain[:1]
        recorded = None if self._recorded is None else self._recorded.get(issuer)
        if recorded is not None:
            own = [each for each in own if each.fingerprint(hashes.SHA256()).hex() in recorded]
            if not own:
                raise FindingError(
                    Code.CRL, f"The certificate of the CA {issuer} that is served is not one that is in the log."
                )
        return own

    async def _read(self, path: str) -> list[x509.Certificate]:
        content = await self._source.file(path, _MOST)
        try:
            return x509.load_pem_x509_certificates(content) if content else []
        except _MALFORMED as error:
            raise FindingError(Code.CRL, f"{self._source.base_url}/{path} holds no certificates.") from error


def key_id(certificate: x509.Certificate) -> str:
    """The id of a CA: its subject key identifier in lower-case hex; empty when it has none."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    except (x509.ExtensionNotFound, *_MALFORMED):
        return ""


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (TypeError, InvalidSignature, UnsupportedAlgorithm, *_MALFORMED):
        return False
    return True
