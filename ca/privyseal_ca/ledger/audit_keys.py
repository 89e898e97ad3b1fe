"""Checking that each CA has a key that was generated in a token, and was attested before the CA was certified (promise P1).

What a token said of a key stands in its ``key.generated`` entry. A row, or a certificate, that is for any other key was put
there by somebody.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

import orjson
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privyseal_ca.hsm.attributes import PROTECTION
from privyseal_ca.ledger.audit_errors import AuditError, wrong, wrong_about
from privyseal_ca.ledger.entries import Kind, Payload
from privyseal_ca.store.issuers import IssuerRow

_KEY: Final = "is for a key that no entry before it attests"


class _Attested(NamedTuple):
    uri: str
    algorithm: str


class KeyAudit:
    """What the entries so far attest. What is kept grows with the keys."""

    def __init__(self) -> None:
        #: By the hash of the SubjectPublicKeyInfo in hex.
        self._attested: dict[str, _Attested] = {}

    @property
    def checked(self) -> int:
        """How many keys are attested."""
        return len(self._attested)

    def generated(self, index: int, payload: Payload) -> None:
        """``key.generated``: its attributes have to be those of a key that cannot leave its token."""
        if "spki_sha256" not in payload:
            return  # the wrapping key has no public half, and is attested by working
        unprotected = _unprotected(payload["attributes"])
        if unprotected:
            raise wrong(index, f"({Kind.KEY_GENERATED}) is for a key that is not protected: {', '.join(unprotected)}")
        self._attested[payload["spki_sha256"]] = _Attested(payload["uri"], payload["algorithm"])

    def certified(self, index: int, serial: str, certificate: x509.Certificate) -> None:
        """``issuer.certified`` for a CA whose key is here."""
        if _spki_sha256(certificate) not in self._attested:
            raise wrong_about(index, Kind.ISSUER_CERTIFIED, serial, _KEY)

    def compare(self, issuers: Iterable[IssuerRow]) -> None:
        """Raise for the first of ``issuers`` whose row says something else of its key than the entries."""
        for issuer in issuers:
            try:
                said = orjson.loads(issuer.attestation)
                attested = self._attested.get(said["spki_sha256"])
                agrees = (
                    attested == (issuer.key_uri, issuer.algorithm) == (said["uri"], said["algorithm"])
                    and not _unprotected(said["attributes"])
                )  # fmt: skip
            except (ValueError, TypeError, KeyError, AttributeError):
                agrees = False
            if not agrees:
                raise AuditError(
                    f"The row of issuer {issuer.name} is for a key that no {Kind.KEY_GENERATED} entry attests."
                )


def _unprotected(attributes: dict[str, bool]) -> list[str]:
    return [f"CKA_{name}" for name, value in PROTECTION.items() if attributes.get(name) is not value]


def _spki_sha256(certificate: x509.Certificate) -> str:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()
