"""The certificates that relying parties fetch, from the database: the roots, and every CA with its chain."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from privyseal_ca.errors import ConfigurationError
from privyseal_ca.store.issuers import all_issuers, chains
from privyseal_ca.store.statement import Transaction


@dataclass(frozen=True, slots=True)
class PublishedCertificates:
    """Roots, and CA certificates by the id of the issuer."""

    roots_pem: bytes
    #: DER, and PEM with the chain.
    issuers: Mapping[str, tuple[bytes, bytes]]


def ended_issuers(issuers: Mapping[str, tuple[bytes, bytes]], now: float) -> Set[str]:
    """The ids of those whose certificates have expired: nothing of theirs is valid, and they sign no CRL any more."""
    return {
        issuer_id
        for issuer_id, (der, _) in issuers.items()
        if x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp() < now
    }


def published_certificates(transaction: Transaction, roots_file: Path) -> PublishedCertificates:
    """What is in the database, and in ``roots_file``; without such a file the roots are those at the ends of the chains.

    Raises:
        ConfigurationError: the file is there and cannot be read, or holds no certificates.
    """
    issuers: dict[str, tuple[bytes, bytes]] = {}
    ends: dict[bytes, x509.Certificate] = {}
    for row in all_issuers(transaction):
        for position, pem in enumerate(chains(transaction, row.id)):
            certificates = x509.load_pem_x509_certificates(pem.encode())
            if position == 0:
                issuers[row.id] = certificates[0].public_bytes(Encoding.DER), pem.encode()
            if certificates[-1].issuer == certificates[-1].subject:
                ends[certificates[-1].public_bytes(Encoding.DER)] = certificates[-1]
    roots_pem = _read(roots_file) or b"".join(root.public_bytes(Encoding.PEM) for root in ends.values())
    try:
        roots = x509.load_pem_x509_certificates(roots_pem) if roots_pem else []
    except ValueError as error:
        raise ConfigurationError(f"{roots_file} holds something else than certificates.") from error
    for root in roots:
        key_id = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
        issuers.setdefault(key_id, (root.public_bytes(Encoding.DER), root.public_bytes(Encoding.PEM)))
    return PublishedCertificates(roots_pem, issuers)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
