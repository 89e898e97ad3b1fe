"""Reading CRLs of which nobody knows yet who made them: whatever they hold, memory has a bound, and what is wrong is told as such."""

from typing import Final

from cryptography import x509

from privyseal_ca.ledger.crl_reader import CrlReader, Listed, MalformedCrlError

#: Octets that wait for the end of an entry: the longest one, and the piece that came last, are far below.
_MOST_WAITING: Final = 1 << 20
#: Octets of a CRL whose signature needs all of it in memory, as one by Ed25519 does.
_MOST_WHOLE: Final = 256 << 20


class StrangeCrlReader(CrlReader):
    """A reader for CRLs that anybody may have made."""

    def feed(self, piece: bytes) -> list[Listed]:
        """As that of every reader.

        Raises:
            MalformedCrlError: this is no CRL, or needs more memory than one does.
        """
        try:
            found = super().feed(piece)
        except ValueError as error:
            raise MalformedCrlError("it has a date that no calendar has") from error
        if len(self._waiting) > _MOST_WAITING:
            raise MalformedCrlError("one of its entries has no end")
        if self._whole is not None and len(self._whole) > _MOST_WHOLE:
            raise MalformedCrlError(
                f"its signature is of a kind that needs all of it, and it is longer than {_MOST_WHOLE} octets"
            )
        return found

    def finish(self) -> x509.CertificateRevocationList:
        """As that of every reader.

        Raises:
            MalformedCrlError: this is no CRL, or not all of one.
        """
        try:
            return super().finish()
        except x509.UnsupportedGeneralNameType as error:
            raise MalformedCrlError("an extension has a name of an unknown type") from error
