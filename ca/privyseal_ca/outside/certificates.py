"""Whether certificates that somebody has are in the log, at places that the log's receipts agree with."""

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from privyseal_ca.errors import LedgerError
from privyseal_ca.issuance.record import issued_entry, serial_text
from privyseal_ca.ledger.ca_entries import certified_payload
from privyseal_ca.ledger.proofs import Receipt, verify_inclusion
from privyseal_ca.ledger.tiles import WIDTH
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.outside.findings import Code, Finding, FindingError
from privyseal_ca.outside.signed import LogKeys
from privyseal_ca.outside.source import HttpLedger
from privyseal_ca.outside.tiles import CheckedTiles


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate that somebody has."""

    #: What people call it: the name of its file.
    name: str
    certificate: x509.Certificate

    @property
    def serial(self) -> str:
        """32 lower-case hex digits."""
        return serial_text(self.certificate.serial_number)

    def entry(self) -> bytes | None:
        """The entry that the log must have for it; None when it cannot be rebuilt, as that of a CA cannot."""
        try:
            if any(
                isinstance(each.value, x509.BasicConstraints) and each.value.ca for each in self.certificate.extensions
            ):
                return None
            return issued_entry(self.certificate.public_bytes(Encoding.DER))
        except (
            ValueError,
            LedgerError,
            x509.ExtensionNotFound,
            x509.DuplicateExtension,
            x509.UnsupportedGeneralNameType,
        ):
            return None


class CertificateCheck:
    """Looks for certificates in the log whose tiles are ``tiles``."""

    def __init__(self, source: HttpLedger, keys: LogKeys) -> None:
        self._source = source
        self._keys = keys
        #: By serial. One is asked for once: of a log that grows all the time there would always be a newer one.
        self._receipts: dict[str, Receipt | None] = {}

    async def place(self, held: Held, tiles: CheckedTiles, found: dict[bytes, int]) -> int | None:
        """The index of the entry for ``held``; None when a newer checkpoint is needed to say that.

        ``found`` has the places of leaves that were looked for while the log was read.

        Raises:
            FindingError: it is not in the log, or the receipt contradicts the log.
            StatusUnavailableError: no checkpoint covers it yet, or the log cannot be read.
            LedgerError: the receipt is malformed.
        """
        entry = held.entry()
        index = None if entry is None else found.get(leaf_hash(entry))
        if held.serial not in self._receipts:
            self._receipts[held.serial] = await self._source.receipt(held.serial)
        receipt = self._receipts[held.serial]
        if receipt is None:
            if index is not None:
                return index
            raise _missing(held, "no entry for it, and its server has no receipt")
        if entry is None:
            entry = receipt.extra
            if _certified(entry) != held.certificate.fingerprint(hashes.SHA256()).hex():
                raise _missing(held, "a receipt that is for something else")
        seen = self._keys.open(receipt.checkpoint, f"the receipt of {held.serial}")
        _verify(held, receipt, leaf_hash(entry), seen.checkpoint.size, seen.checkpoint.root)
        if seen.checkpoint.size > tiles.checkpoint.size:
            return None
        # The receipt's checkpoint belongs to the log that was read, and so does the place that it says.
        if await tiles.root_at(seen.checkpoint.size) != seen.checkpoint.root:
            raise FindingError(
                Code.SPLIT_VIEW,
                f"The receipt of {held.name} (serial {held.serial}) is about another log than the one that is served, signed by "
                "the same key.",
                index=receipt.index,
                notes=(seen.text(),),
            )
        if (await tiles.tile(0, receipt.index // WIDTH))[receipt.index % WIDTH] != leaf_hash(entry):
            raise _missing(held, f"another entry at the index {receipt.index} that its receipt says")
        return receipt.index


def not_shown(held: Held, error: LedgerError) -> Finding:
    """``error``, which came up while ``held`` was looked for."""
    if isinstance(error, FindingError):
        return error.finding
    return Finding(Code.CERTIFICATE, f"The receipt of {held.name} (serial {held.serial}): {error.message}")


def _verify(held: Held, receipt: Receipt, leaf: bytes, size: int, root: bytes) -> None:
    try:
        verify_inclusion(leaf, receipt.index, size, receipt.proof, root)
    except LedgerError as error:
        raise _missing(held, f"a receipt that does not prove it: {error.message.rstrip('.')}") from error


def _missing(held: Held, what: str) -> FindingError:
    return FindingError(
        Code.CERTIFICATE,
        f"The certificate in {held.name} (serial {held.serial}) is not shown to be in the log, which has {what}.",
    )


def _certified(entry: bytes) -> object:
    """The hash of the certificate that an ``issuer.certified`` entry is about."""
    try:
        return certified_payload(entry).get("certificate_sha256")
    except LedgerError:
        return None
