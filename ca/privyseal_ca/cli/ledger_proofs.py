"""``privyseal ledger vkey``, ``proof`` and ``verify-proof``: that a certificate is in the ledger, for those who do not trust it."""

from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from privyseal_ca.ceremony.files import write_file
from privyseal_ca.ceremony.imports import read_certificates
from privyseal_ca.cli.frame import Command, Invocation, pass_invocation
from privyseal_ca.cli.home import opened_store, run, settings_of
from privyseal_ca.cli.issued import named, require_certificate
from privyseal_ca.errors import ConfigurationError, LedgerError
from privyseal_ca.issuance.record import issued_entry, serial_text
from privyseal_ca.ledger.ca_entries import certified_payload, find_ca_entry
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier
from privyseal_ca.ledger.proofs import MAX_RECEIPT, Receipt, verify_receipt
from privyseal_ca.ledger.served import StoredLedger

_MAX_VKEY_FILE = 8192
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NOT_PROVED = (
    "Look whether certificate, receipt and key belong together. A fresh receipt is at /ledger/proof/SERIAL of the authority, or "
    "made by `privyseal ledger proof`; the key has to come from its owners."
)


@click.command("vkey", cls=Command)
@pass_invocation
def vkey(invocation: Invocation) -> None:
    """Show the key that verifies checkpoints, for those who check the ledger.

    Hand it over by a way that does not lead through this server: who has it needs nothing else to check what the server says.
    """
    settings = settings_of(invocation)

    async def work() -> str:
        async with opened_store(settings) as store:
            return await StoredLedger(store).vkey()

    verifier = NoteVerifier.parse(run(work()))
    text = verifier.vkey()
    url = f"{settings.server.public_http}/ledger"
    invocation.result({"vkey": text, "origin": verifier.name, "key_id": verifier.key_id.hex(), "url": url}, text)


@click.command("proof", cls=Command)
@click.argument("certificate", metavar="SERIAL|FILE")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the receipt to this file."
)
@pass_invocation
def proof(invocation: Invocation, certificate: str, out: Path | None) -> None:
    """Make the receipt of a certificate: the proof that the ledger has its entry.

    With it and the certificate, `privyseal ledger verify-proof` checks that on any machine, without this authority.
    """
    wanted = named(certificate)

    async def work() -> Receipt | None:
        async with opened_store(settings_of(invocation)) as store:
            await store.read(lambda tx: find_ca_entry(tx, wanted.serial) or require_certificate(tx, wanted))
            return await StoredLedger(store).receipt(wanted.serial)

    receipt = run(work())
    if receipt is None:
        raise LedgerError(
            f"The ledger has no entry for the certificate {wanted.serial}.", hint="Run `privyseal ledger verify`."
        )
    text = receipt.text()
    if out is not None:
        write_file(out, text.encode(), mode=0o644)
    document = {
        "serial": wanted.serial,
        "index": receipt.index,
        "size": _checkpoint(receipt).size,
        "proof": text,
        "file": None if out is None else str(out),
    }
    invocation.result(document, text.removesuffix("\n") if out is None else f"written: {out}")


@click.command("verify-proof", cls=Command)
@click.option(
    "--vkey",
    "verifier_key",
    required=True,
    metavar="VKEY|@FILE",
    help="The log's verification key, from a source that you trust, or a file with it.",
)
@click.argument("certificate", metavar="CERT", type=_FILE)
@click.argument("receipt_file", metavar="PROOF", type=_FILE)
@pass_invocation
def verify_proof(invocation: Invocation, verifier_key: str, certificate: Path, receipt_file: Path) -> None:
    """Check that a certificate is in the ledger, by its receipt alone.

    Needs no home, no database and no network: the entry is rebuilt from the certificate (the first one in CERT); that of a
    CA's own certificate is in the receipt, and has to have its hash. The exit code is 0 only when the receipt proves that the
    log with this key has that entry.
    """
    verifier = NoteVerifier.parse(key_text(verifier_key))
    found = read_certificates(certificate)[0]
    try:
        receipt = Receipt.parse(_text(receipt_file, MAX_RECEIPT))
        # What a receipt brings counts for CAs alone: the entry of any other certificate says its names, and is rebuilt.
        entry = _entry_of_ca(receipt.extra, found) if receipt.extra and _is_ca(found) else _entry(certificate, found)
        checkpoint = verify_receipt(receipt, entry, [verifier])
    except LedgerError as error:
        raise LedgerError(error.message, hint=error.hint or _NOT_PROVED) from error
    serial = serial_text(found.serial_number)
    document = {
        "verified": True,
        "serial": serial,
        "index": receipt.index,
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": checkpoint.root.hex(),
    }
    invocation.result(
        document,
        f"verified: certificate {serial} is entry {receipt.index} of {checkpoint.size} in {checkpoint.origin}",
    )


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return False


def _entry_of_ca(entry: bytes, certificate: x509.Certificate) -> bytes:
    """The ``entry`` that a receipt brings for a CA's certificate.

    Raises:
        LedgerError: it is not for that certificate.
    """
    if certified_payload(entry).get("certificate_sha256") != certificate.fingerprint(hashes.SHA256()).hex():
        raise LedgerError(
            "The entry in the receipt is not for this certificate.",
            hint="Give the CA's certificate that the receipt was made for.",
        )
    return entry


def _entry(path: Path, certificate: x509.Certificate) -> bytes:
    """The entry that ``certificate``, from the file ``path``, must have.

    Raises:
        LedgerError: no entry of this ledger could be for it.
    """
    try:
        return issued_entry(certificate.public_bytes(Encoding.DER))
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise LedgerError(
            f"The certificate in {path} is not of a kind that this ledger records.",
            hint="Give the certificate itself first, before those of the CAs.",
        ) from error


def _checkpoint(receipt: Receipt) -> Checkpoint:
    """The checkpoint in a receipt, which nobody verifies here."""
    return Checkpoint.parse(receipt.checkpoint.decode().rpartition("\n\n")[0] + "\n")


def key_text(text: str) -> str:
    """The verification key that is ``text``, or that is in a file whose name follows an @.

    Raises:
        ConfigurationError: the file cannot be read, is too big, or is not UTF-8.
    """
    return _text(Path(text[1:]), _MAX_VKEY_FILE).strip() if text.startswith("@") else text


def _text(path: Path, most: int) -> str:
    """What a file of at most ``most`` bytes holds.

    Raises:
        ConfigurationError: it cannot be read, is bigger, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ConfigurationError(f"{path} is too big to be what it should be.", hint="Look at what is in it.")
        return content.decode()
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}.", hint="Check its name and mode."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not text.", hint="Look at what is in it.") from error
