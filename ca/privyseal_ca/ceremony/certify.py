"""Certifying a CA key: the issuance cycle (promises P2 and P3) for the few certificates that no profile describes.

1. An intent with the hash of the TBSCertificate becomes durable.
2. The token signs.
3. The finished certificate is checked.
4. Its ``issuer.certified`` entry, the end of the intent and the caller's rows become durable in one commit.
"""

from collections.abc import Callable

from cryptography import x509

from privyseal_ca.ceremony.certificates import CaTemplate, check_ca_certificate, fingerprint, tbs_sha256
from privyseal_ca.ceremony.transcript import Transcript
from privyseal_ca.errors import StoreError
from privyseal_ca.hsm.signer import SigningKey
from privyseal_ca.issuance.intents import CEREMONY_REQUESTER, abandon_intent
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.ledger.ca_entries import note_ca_entry
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.store.certificates import (
    IntentRow,
    close_intent,
    open_intent,
    open_intents,
)
from privyseal_ca.store.statement import Transaction

Record = Callable[[Transaction, x509.Certificate], None]


async def certify(
    transcript: Transcript,
    key: SigningKey,
    issuer_id: str,
    template: CaTemplate,
    *,
    profile: str,
    issuer: x509.Certificate | None,
    record: Record,
) -> x509.Certificate:
    """Have ``key``, the CA with ``issuer_id``, sign ``template``, and store the result with ``record``.

    Args:
        profile: ``root`` or ``intermediate``, for the ledger.
        issuer: the certificate of ``key``; None when it signs its own.
        record: writes the rows that belong to the certificate.

    Raises:
        ConfigurationError: the finished certificate is not what it must be.
        SignerError: nothing usable was signed.
        StoreError: the database failed, or somebody else closed the intent.
    """
    await abandon_leftovers(transcript)
    await _open(transcript, issuer_id, template, profile)
    certificate = await key.run(template.sign)
    if certificate.tbs_certificate_bytes != template.tbs:
        raise StoreError(f"The certificate {serial_text(template.serial)} is not what its intent says.")
    check_ca_certificate(certificate, issuer or certificate, now=transcript.clock.now())

    def unit(transaction: Transaction) -> None:
        if not close_intent(transaction, serial_text(template.serial)):
            raise StoreError(
                f"The intent for serial {serial_text(template.serial)} was closed by somebody else.",
                hint="Another ceremony or a service ran at the same time. Try again.",
            )
        append_certified(transcript, transaction, certificate, issuer_id)
        record(transaction, certificate)

    await transcript.store.write(unit)
    return certificate


def append_certified(
    transcript: Transcript,
    transaction: Transaction,
    certificate: x509.Certificate,
    issuer_id: str,
    *,
    imported: bool = False,
) -> None:
    """Add the ``issuer.certified`` entry of a CA certificate; ``imported`` ones were signed elsewhere, without an intent."""
    subject_id = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    serial = serial_text(certificate.serial_number)
    index = transcript.append(
        transaction,
        Kind.ISSUER_CERTIFIED,
        {
            "certificate_sha256": fingerprint(certificate),
            "id": subject_id,
            "imported": imported,
            "issuer": issuer_id,
            "not_after": int(certificate.not_valid_after_utc.timestamp()),
            "not_before": int(certificate.not_valid_before_utc.timestamp()),
            "serial": serial,
            "subject": certificate.subject.rfc4514_string(),
            "tbs_sha256": tbs_sha256(certificate),
        },
    )
    note_ca_entry(transaction, serial, index)


async def abandon_leftovers(transcript: Transcript) -> None:
    """Close what an interrupted ceremony left open: the serial goes on the revocation list (promise P4)."""

    def unit(transaction: Transaction) -> None:
        for row in open_intents(transaction):
            if row.requester == CEREMONY_REQUESTER:
                abandon_intent(
                    transaction, row, actor=transcript.actor, reason="interrupted", now=transcript.clock.now()
                )

    await transcript.store.write(unit)


async def _open(transcript: Transcript, issuer_id: str, template: CaTemplate, profile: str) -> None:
    row = IntentRow(
        serial=serial_text(template.serial),
        issuer_id=issuer_id,
        tbs_sha256=template.tbs_sha256,
        not_after=template.not_after,
        requester=CEREMONY_REQUESTER,
        correlation=transcript.correlation,
        crl_shard=None,
    )
    payload = {
        "issuer": issuer_id,
        "names": [],
        "not_after": row.not_after,
        "profile": profile,
        "purpose": CEREMONY_REQUESTER,
        "serial": row.serial,
        "tbs_sha256": row.tbs_sha256.hex(),
    }
    await transcript.record(Kind.INTENT, payload, lambda tx: open_intent(tx, row))
