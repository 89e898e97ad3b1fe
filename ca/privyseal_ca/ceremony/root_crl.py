"""The CRL of the root: what intermediates are no longer to be trusted.

Programs that check every CA of a chain, such as those on OpenSSL with ``X509_V_FLAG_CRL_CHECK_ALL``, want a CRL of the root
even when it lists nothing. The root's key is at hand in ceremonies only, so its CRL is valid for long, and each ceremony
that opens the key signs a new one. A root whose key is elsewhere gives its CRL as a file.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from privyseal_ca.ceremony.certificates import ca_public_key, subject_key_identifier
from privyseal_ca.ceremony.imports import require_issuer
from privyseal_ca.ceremony.issuers import Root
from privyseal_ca.ceremony.transcript import Transcript
from privyseal_ca.clock import CLOCK_STEP
from privyseal_ca.errors import (
    AlreadyRevokedError,
    ConfigurationError,
    SignatureUncertainError,
)
from privyseal_ca.hsm.signer import PrivateKey
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.issuance.template import signature_hash
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.ledger.log import size
from privyseal_ca.revocation.published import FULL
from privyseal_ca.store.certificates import RevocationRow, add_revocation, find_revocation
from privyseal_ca.store.crls import (
    CrlRow,
    ListedRow,
    Part,
    add_part,
    find_crl,
    listed_from,
    newest_part,
    remove_parts,
    replace_crl,
    reserve_crls,
    unpublished,
)
from privyseal_ca.store.issuers import IssuerRow, chains, set_issuer_state
from privyseal_ca.store.statement import Transaction

#: A year and a month: a yearly ceremony keeps it fresh.
LIFETIME: Final = timedelta(days=396)
#: Octets of one piece of a CRL in the database.
_PIECE: Final = 256 * 1024
_MAX_PIECES: Final = 1000
#: How many intermediates a root may have revoked before this stops being one small file.
_MAX_ENTRIES: Final = 10_000

#: CRLReason (RFC 5280 section 5.3.1) of those that fit a CA.
CA_REASONS: Final = {
    "unspecified": 0,
    "cACompromise": 2,
    "affiliationChanged": 3,
    "superseded": 4,
    "cessationOfOperation": 5,
    "privilegeWithdrawn": 9,
}
_FLAGS: Final = {
    1: x509.ReasonFlags.key_compromise,
    2: x509.ReasonFlags.ca_compromise,
    3: x509.ReasonFlags.affiliation_changed,
    4: x509.ReasonFlags.superseded,
    5: x509.ReasonFlags.cessation_of_operation,
    9: x509.ReasonFlags.privilege_withdrawn,
}


@dataclass(frozen=True, slots=True)
class _Basis:
    """What a new CRL is made from, all of one moment."""

    #: The current CRL; its number is 0 when there is none.
    previous: CrlRow
    through: int
    #: What the root has revoked.
    revoked: tuple[ListedRow, ...]
    #: The highest number that was ever used: after a restore, that of a CRL which is lost (promise P8).
    number: int


async def renew_root_crl(transcript: Transcript, root: Root) -> CrlRow:
    """Sign a CRL of ``root`` with the next number that lists what it has revoked, and publish it.

    An entry leaves only after it was on a CRL that is younger than the end of its certificate (RFC 5280 section 5).

    Raises:
        ConfigurationError: the root has expired, or another ceremony published a CRL at the same time.
        SignerError: nothing usable was signed.
        StoreError: the database failed.
    """
    basis = await transcript.store.read(lambda tx: _basis(tx, root.id))
    previous = basis.previous
    now = int(transcript.clock.now())
    # A clock that was put back a little must not make the new CRL look older than the one before.
    this_update = previous.this_update if now < previous.this_update <= now + CLOCK_STEP else now
    end = int(root.certificate.not_valid_after_utc.timestamp())
    if this_update >= end:
        raise ConfigurationError("The root has expired, so its CRL is of no use.", hint="Make a new home with `init`.")
    # What ended before the previous CRL was on it after its end.
    ended = min(previous.this_update, now)
    revoked = [row for row in basis.revoked if row.not_after >= ended or row.ledger_index >= previous.through]
    row = previous._replace(
        number=basis.number + 1,
        this_update=this_update,
        next_update=min(this_update + int(LIFETIME.total_seconds()), end),
        entries=len(revoked),
        through=basis.through,
    )
    builder = _builder(root, row, revoked)

    def sign(key: PrivateKey) -> x509.CertificateRevocationList:
        return builder.sign(key, signature_hash(root.key.public_key))

    crl = await root.key.run(sign)
    if not crl.is_signature_valid(ca_public_key(root.certificate)):
        raise SignatureUncertainError("The token's signature on the root's CRL is not valid.", hint="Try again.")
    der = crl.public_bytes(Encoding.DER)
    return await publish(transcript, row, der, old_number=previous.number)


async def root_crl_is_due(transcript: Transcript, root: Root) -> bool:
    """Whether there is no CRL of ``root``, or one that does not list all that it has revoked."""

    basis = await transcript.store.read(lambda tx: _basis(tx, root.id))
    return basis.previous.number == 0 or any(row.ledger_index >= basis.previous.through for row in basis.revoked)


async def publish(transcript: Transcript, row: CrlRow, der: bytes, *, old_number: int) -> CrlRow:
    """Store ``der``, the CRL that ``row`` describes, with its entry in one transaction (promise P3).

    ``old_number`` is that of the CRL before it; 0 when it is the first.

    Raises:
        StoreConflictError: number ``old_number`` is no longer the current one.
        StoreError: the database failed.
    """
    row = row._replace(size=len(der), sha256=sha256(der).digest())
    payload = {
        "base": None,
        "delta_sha256": None,
        "entries": row.entries,
        "issuer": row.issuer_id,
        "next_update": row.next_update,
        "number": row.number,
        "scope": row.scope,
        "sha256": row.sha256.hex(),
        "this_update": row.this_update,
        "through": row.through,
    }

    scope = (row.issuer_id, row.scope)

    def unit(transaction: Transaction) -> None:
        reserve_crls(transaction, [scope])
        replace_crl(transaction, row, old_number=old_number)
        if not old_number:  # a restore may have left an empty piece with the number of the CRL that it withdrew
            remove_parts(transaction, *scope, first=0, below=row.number + 1, kept=-1, count=_MAX_PIECES)
        for position, begin in enumerate(range(0, len(der), _PIECE)):
            piece = der[begin : begin + _PIECE]
            add_part(transaction, Part(row.issuer_id, row.scope, row.number, 0, position, piece))
        # Whoever is being served the one before may read it to its end.
        remove_parts(
            transaction, row.issuer_id, row.scope, first=0, below=old_number, kept=old_number, count=_MAX_PIECES
        )
        transcript.append(transaction, Kind.CRL_PUBLISHED, payload)

    await transcript.store.write(unit)
    return row


async def revoke_issuer(transcript: Transcript, root: Root, name: str, *, reason: int) -> IssuerRow:
    """Revoke every certificate of the issuer ``name`` that ``root`` has signed, and publish the root's CRL.

    An issuer that is still active is retired with it.

    Args:
        reason: one of :data:`CA_REASONS`.

    Raises:
        AlreadyRevokedError: it was revoked before.
        ConfigurationError: there is no such issuer, or ``root`` has signed none of its certificates.
        SignerError: nothing usable was signed. The revocation stands; ``privyseal crl root`` signs the CRL.
        StoreError: the database failed.
    """

    def unit(transaction: Transaction) -> IssuerRow:
        row = require_issuer(transaction, name)
        fresh = _not_revoked(transaction, root, row)
        if row.state == "active":
            set_issuer_state(transaction, row.id, "retired")
            transcript.append(transaction, Kind.ISSUER_RETIRED, {"id": row.id, "name": row.name, "was": row.state})
        for certificate in fresh:
            _revoke(transcript, transaction, root, row, certificate, reason)
        return row

    row = await transcript.store.write(unit)
    await renew_root_crl(transcript, root)
    return row


def _not_revoked(transaction: Transaction, root: Root, row: IssuerRow) -> list[x509.Certificate]:
    if row.state == "root":
        raise ConfigurationError(
            "A root cannot be revoked: its own CRL is the only one that could say so.",
            hint="Have relying parties remove it from what they trust.",
        )
    signed = _signed_by(root, chains(transaction, row.id))
    if not signed:
        raise ConfigurationError(
            f"The root here has signed no certificate of issuer {row.name}.",
            hint="Have the root that did so revoke it, then take its CRL with `privyseal crl import`.",
        )
    fresh = [
        certificate
        for certificate in signed
        if find_revocation(transaction, root.id, serial_text(certificate.serial_number)) is None
    ]
    if not fresh:
        raise AlreadyRevokedError(
            f"Issuer {row.name} is revoked already.", hint="`privyseal crl root` signs the root's CRL anew."
        )
    return fresh


def _revoke(
    transcript: Transcript,
    transaction: Transaction,
    root: Root,
    row: IssuerRow,
    certificate: x509.Certificate,
    reason: int,
) -> None:
    serial = serial_text(certificate.serial_number)
    not_after = int(certificate.not_valid_after_utc.timestamp())
    now = transcript.clock.now()
    index = transcript.append(
        transaction,
        Kind.ISSUER_REVOKED,
        {
            "id": row.id,
            "issuer": root.id,
            "name": row.name,
            "not_after": not_after,
            "reason": reason,
            "serial": serial,
        },
    )
    add_revocation(
        transaction,
        RevocationRow(
            issuer_id=root.id,
            serial=serial,
            revoked_at=int(now),
            reason=reason or None,
            not_after=not_after,
            crl_shard=None,
            ledger_index=index,
        ),
    )


def _signed_by(root: Root, pems: list[str]) -> list[x509.Certificate]:
    own = subject_key_identifier(root.certificate)
    found: dict[int, x509.Certificate] = {}
    for pem in pems:
        first, *above = x509.load_pem_x509_certificates(pem.encode())
        if above and subject_key_identifier(above[0]) == own:
            found[first.serial_number] = first
    return list(found.values())


def _basis(transaction: Transaction, root_id: str) -> _Basis:
    # What is committed after the size was read belongs to the next CRL.
    through = size(transaction)
    previous = find_crl(transaction, root_id, FULL) or unpublished(root_id, FULL)
    revoked = listed_from(transaction, root_id, None, through=through, after=(0, ""), count=_MAX_ENTRIES + 1)
    if len(revoked) > _MAX_ENTRIES:
        raise ConfigurationError(f"The root has revoked more than {_MAX_ENTRIES} CAs.", hint="Make a new root.")
    number = max(previous.number, newest_part(transaction, root_id, FULL))
    return _Basis(previous, through, tuple(revoked), number)


def _builder(root: Root, row: CrlRow, revoked: list[ListedRow]) -> x509.CertificateRevocationListBuilder:
    identifier = subject_key_identifier(root.certificate)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.certificate.subject)
        .last_update(datetime.fromtimestamp(row.this_update, UTC))
        .next_update(datetime.fromtimestamp(row.next_update, UTC))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(x509.CRLNumber(row.number), critical=False)
    )
    for revocation in revoked:
        builder = builder.add_revoked_certificate(_entry(revocation))
    return builder


def _entry(row: ListedRow) -> x509.RevokedCertificate:
    entry = (
        x509.RevokedCertificateBuilder()
        .serial_number(int(row.serial, 16))
        .revocation_date(datetime.fromtimestamp(row.revoked_at, UTC))
    )
    # Without a reason the extension is left out (RFC 5280 section 5.3.1).
    if row.reason:
        entry = entry.add_extension(x509.CRLReason(_FLAGS[row.reason]), critical=False)
    return entry.build()
