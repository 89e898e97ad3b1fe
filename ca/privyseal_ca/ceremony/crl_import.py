"""The CRL of a CA whose key is elsewhere, such as an offline root, taken in to be served beside our own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from privyseal_ca.ceremony.certificates import ca_public_key, subject_key_identifier
from privyseal_ca.ceremony.root_crl import publish
from privyseal_ca.ceremony.transcript import Transcript
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.revocation.published import FULL
from privyseal_ca.store.crls import CrlRow, find_crl, newest_part, unpublished
from privyseal_ca.store.issuers import IssuerRow, all_issuers, chains
from privyseal_ca.store.statement import Transaction

_MAX_FILE: Final = 10 << 20
_MAX_NUMBER: Final = 2**53 - 1  # of the integers that a ledger entry can hold
_CLOCK_TOLERANCE: Final = 300
#: Extensions that say nothing about which certificates the list is about.
_HARMLESS: Final = (
    x509.AuthorityKeyIdentifier,
    x509.CRLNumber,
    x509.AuthorityInformationAccess,
    x509.FreshestCRL,
)


@dataclass(frozen=True, slots=True)
class ImportedCrl:
    """What was taken in."""

    row: CrlRow
    signer: x509.Certificate
    #: Issuers of this authority that it lists.
    revoked: tuple[IssuerRow, ...]


def read_crl(path: Path) -> x509.CertificateRevocationList:
    """The CRL in a file, PEM or DER.

    Raises:
        ConfigurationError: it cannot be read, is larger than 10 MiB, or is no CRL.
    """
    try:
        content = path.read_bytes() if path.stat().st_size <= _MAX_FILE else b""
        if b"-----BEGIN" in content:
            return x509.load_pem_x509_crl(content)
        return x509.load_der_x509_crl(content)
    except (OSError, ValueError, x509.InvalidVersion) as error:
        raise ConfigurationError(
            f"{path} holds no CRL that can be read.", hint="Give a file with one CRL of at most 10 MiB, PEM or DER."
        ) from error


async def import_crl(transcript: Transcript, crl: x509.CertificateRevocationList) -> ImportedCrl:
    """Publish ``crl`` when a CA above an issuer of this authority has signed it, and it is newer than the one that is known.

    Raises:
        ConfigurationError: it is not signed by such a CA, is not current, covers only a part, or does not follow the last one.
        StoreError: the database failed.
    """
    signer = _signer(crl, await transcript.store.read(_cas_elsewhere))
    identifier = subject_key_identifier(signer).digest.hex()
    number = _check(crl, now=transcript.clock.now())
    before = await transcript.store.read(lambda tx: find_crl(tx, identifier, FULL)) or unpublished(identifier, FULL)
    this_update = int(crl.last_update_utc.timestamp())
    # What a restore withdrew may be taken in again, and nothing older.
    withdrawn = 0 if before.number else await transcript.store.read(lambda tx: newest_part(tx, identifier, FULL))
    if number < withdrawn:
        raise _refused(f"its number {number} is below {withdrawn}, that of the one before", "Give a newer one.")
    if number <= before.number:
        raise _refused(f"its number {number} is not above {before.number}, that of the one before", "Give a newer one.")
    if this_update < before.this_update:
        raise _refused("it is older than the one before, although its number is higher", "Ask the CA that signed it.")
    row = before._replace(
        number=number,
        this_update=this_update,
        next_update=int(crl.next_update_utc.timestamp()) if crl.next_update_utc else 0,
        entries=len(crl),
        through=0,  # it has nothing from this ledger
    )
    row = await publish(transcript, row, crl.public_bytes(Encoding.DER), old_number=before.number)
    revoked = await transcript.store.read(lambda tx: _listed(tx, crl, signer))
    return ImportedCrl(row, signer, tuple(revoked))


def _cas_elsewhere(transaction: Transaction) -> list[x509.Certificate]:
    """The CAs above our issuers whose keys are not ours."""
    rows = all_issuers(transaction)
    own = {row.id for row in rows}
    found: dict[str, x509.Certificate] = {}
    for row in rows:
        for pem in chains(transaction, row.id):
            for certificate in x509.load_pem_x509_certificates(pem.encode()):
                found.setdefault(subject_key_identifier(certificate).digest.hex(), certificate)
    return [certificate for identifier, certificate in found.items() if identifier not in own]


def _signer(crl: x509.CertificateRevocationList, cas: list[x509.Certificate]) -> x509.Certificate:
    for certificate in cas:
        if certificate.subject == crl.issuer and _verifies(crl, certificate):
            return certificate
    raise _refused(
        "no root or CA above an issuer here, with its key elsewhere, has signed it",
        "`privyseal issuer show` prints the chains. For a root in a token here, use `privyseal crl root`.",
    )


def _verifies(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        allowed = True  # RFC 5280 section 6.3.3 (f): the bit counts where there is a key usage
    else:
        allowed = usage.crl_sign
    return allowed and crl.is_signature_valid(ca_public_key(certificate))


def _check(crl: x509.CertificateRevocationList, *, now: float) -> int:
    """The crlNumber of a CRL that is current and about everything its issuer has signed (RFC 5280 section 5.2)."""
    if crl.last_update_utc.timestamp() > now + _CLOCK_TOLERANCE:
        raise _refused("its thisUpdate is in the future", "Check the clocks of this machine and of the CA.")
    if crl.next_update_utc is None or crl.next_update_utc.timestamp() <= now:
        raise _refused("it has no nextUpdate, or that has passed", "Have the CA sign a new one.")
    try:
        extensions = list(crl.extensions)
    except (ValueError, x509.DuplicateExtension) as error:
        raise _refused("an extension is malformed", "Ask the CA that signed it.") from error
    number = None
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.CRLNumber):
            number = value.crl_number
        if isinstance(value, x509.DeltaCRLIndicator):
            raise _refused("it is a delta CRL", "Give the complete one.")
        if isinstance(value, x509.IssuingDistributionPoint) and not _covers_cas(value):
            raise _refused("it covers only a part of what its issuer has signed", "Give the complete one.")
        if extension.critical and not isinstance(value, (*_HARMLESS, x509.IssuingDistributionPoint)):
            raise _refused(f"its critical extension {extension.oid.dotted_string} is not known", "Leave it out.")
    if number is None or not 0 < number <= _MAX_NUMBER:
        raise _refused("it has no crlNumber from 1 to 2^53 - 1 (RFC 5280 section 5.2.3)", "Sign it with one.")
    return number


def _covers_cas(value: x509.IssuingDistributionPoint) -> bool:
    """Whether a list with this extension speaks about every CA; one that is bound to a URL counts only at that URL."""
    return not (
        value.full_name
        or value.relative_name
        or value.only_contains_user_certs
        or value.only_contains_attribute_certs
        or value.indirect_crl
        or value.only_some_reasons
    )


def _listed(transaction: Transaction, crl: x509.CertificateRevocationList, signer: x509.Certificate) -> list[IssuerRow]:
    identifier = subject_key_identifier(signer)
    found = []
    for row in all_issuers(transaction):
        for pem in chains(transaction, row.id):
            first, *above = x509.load_pem_x509_certificates(pem.encode())
            listed = crl.get_revoked_certificate_by_serial_number(first.serial_number) is not None
            if above and subject_key_identifier(above[0]) == identifier and listed:
                found.append(row)
                break
    return found


def _refused(why: str, hint: str) -> ConfigurationError:
    return ConfigurationError(f"The CRL is refused: {why}.", hint=hint)
