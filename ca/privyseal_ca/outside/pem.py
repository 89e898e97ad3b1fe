"""The CRLs in a PEM file of any length, one after the other (RFC 7468)."""

from base64 import b64decode
from binascii import Error
from collections.abc import AsyncIterator
from typing import Final

from cryptography import x509

from privyseal_ca.ledger.crl_reader import CrlReader, MalformedCrlError
from privyseal_ca.outside.crl_reading import StrangeCrlReader

_BEGIN: Final = b"-----BEGIN X509 CRL-----"
_END: Final = b"-----END X509 CRL-----"
_LONGEST_LINE: Final = 1024
#: CRLs in one file: far more than any authority has.
_MOST: Final = 10_000


async def crls_in_bundle(
    pieces: AsyncIterator[bytes],
) -> AsyncIterator[tuple[CrlReader, x509.CertificateRevocationList]]:
    """Each CRL in the file that ``pieces`` make.

    Raises:
        MalformedCrlError: it is no such file.
    """
    reader: CrlReader | None = None
    count = 0
    async for lines in _lines(pieces):
        # Several lines at a time, for a reader is not made for pieces of 48 octets.
        octets = bytearray()
        for line in lines:
            if line == _BEGIN and reader is None:
                reader = StrangeCrlReader()
            elif line == _END and reader is not None:
                reader.feed(bytes(octets))
                octets.clear()
                yield reader, reader.finish()
                reader, count = None, count + 1
                if count > _MOST:
                    raise MalformedCrlError(f"there are more than {_MOST}")
            elif reader is not None:
                octets += _decoded(line)
            else:
                raise MalformedCrlError("it is not PEM")
        if reader is not None:
            reader.feed(bytes(octets))
    if reader is not None:
        raise MalformedCrlError("it ends too early")


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """The lines, several at a time."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise MalformedCrlError("it is not PEM")
        if lines:
            yield lines
    if rest:
        yield [rest]


def _decoded(encoded: bytes) -> bytes:
    try:
        return b64decode(encoded, validate=True)
    except (Error, ValueError) as error:
        raise MalformedCrlError("it is not PEM") from error
