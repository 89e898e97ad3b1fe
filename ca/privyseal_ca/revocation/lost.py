"""Certificates that are known by their entries only, since a restore brought back the entry and not the certificate.

Whoever has the certificate can give it back: the entry follows from it, its hash included, so it is that one or none.
"""

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID

from privyseal_ca.errors import LedgerError
from privyseal_ca.issuance.record import issued_entry
from privyseal_ca.ledger.log import entries
from privyseal_ca.revocation.published import scope_name
from privyseal_ca.store.certificates import CertificateRow, find_certificate, find_revocation
from privyseal_ca.store.crls import find_crl, reserve_crls
from privyseal_ca.store.rebuilding import adopt_der, withdraw_crl
from privyseal_ca.store.statement import Transaction


def is_lost(row: CertificateRow) -> bool:
    """Whether the certificate itself is not here."""
    return not row.der


def is_certificate_of(transaction: Transaction, row: CertificateRow, der: bytes) -> bool:
    """Whether ``der`` is the certificate of ``row``; of one that is lost the ledger's entry tells."""
    return der == row.der or (is_lost(row) and _follows(transaction, row, der))


def adopt(transaction: Transaction, row: CertificateRow, der: bytes) -> CertificateRow:
    """Give ``row``, which is lost, its certificate again; the row as it is then.

    What the certificate says of its part of the CRL counts: where that was not known, a revocation moves to that part.

    Raises:
        LedgerError: ``der`` is another certificate.
    """
    if not _follows(transaction, row, der):
        raise LedgerError(
            f"The certificate is not the one with the serial {row.serial} that was issued here: the ledger's entry does not "
            "follow from it.",
            hint="Ask where it comes from.",
        )
    shard, ocsp = _pointers(x509.load_der_x509_certificate(der))
    adopt_der(transaction, row.serial, row.issuer_id, der, crl_shard=shard, ocsp=ocsp)
    if shard != row.crl_shard and find_revocation(transaction, row.issuer_id, row.serial) is not None:
        for part in (part for part in (row.crl_shard, shard) if part is not None):
            _renew(transaction, row.issuer_id, scope_name(part))
    return find_certificate(transaction, row.serial) or row


def _renew(transaction: Transaction, issuer_id: str, scope: str) -> None:
    """Have the CRL of a part made anew at once."""
    reserve_crls(transaction, [(issuer_id, scope)])
    crl = find_crl(transaction, issuer_id, scope)
    if crl is not None and crl.number:
        withdraw_crl(transaction, issuer_id, scope, crl.number)


def _follows(transaction: Transaction, row: CertificateRow, der: bytes) -> bool:
    stored = next(entries(transaction, first=row.ledger_index, count=1), None)
    try:
        return stored is not None and stored.index == row.ledger_index and stored.entry == issued_entry(der)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.InvalidVersion):
        return False


def _pointers(certificate: x509.Certificate) -> tuple[int | None, bool]:
    """The part of the CRL that a certificate names, and whether it names the OCSP responder."""
    shard: int | None = None
    ocsp = False
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.CRLDistributionPoints):
            names = [str(name.value) for point in value for name in point.full_name or ()]
            part = names[0].rpartition("/")[2].removesuffix(".crl") if names else ""
            # The CRL of all of it is called by the issuer's id, which is longer than any part's number.
            shard = int(part) if part.isdigit() and len(part) < _ID else None
        elif isinstance(value, x509.AuthorityInformationAccess):
            ocsp = any(access.access_method == AuthorityInformationAccessOID.OCSP for access in value)
    return shard, ocsp


_ID = 20
