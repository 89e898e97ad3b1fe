"""The full CRLs of every CA in one file of PEM, as nginx, HAProxy and libpq take them: made while it is read, never as a whole."""

from binascii import b2a_base64
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Final

from privyseal_ca.errors import StatusUnavailableError
from privyseal_ca.revocation.published import CrlSource, PublishedCrl

#: Its name below the public base URL, and in the folder that `status publish` writes.
BUNDLE: Final = "crls.pem"

_BEGIN: Final = b"-----BEGIN X509 CRL-----\n"
_END: Final = b"-----END X509 CRL-----\n"
#: Strict PEM (RFC 7468) has 64 characters in each line but the last, which are 48 octets.
_LINE, _LINE_OCTETS = 64, 48


@dataclass(frozen=True)
class CrlBundle:
    """The file that holds ``members``. The same members make the same octets, wherever they are read from."""

    members: tuple[PublishedCrl, ...]

    @classmethod
    def of(cls, published: Iterable[PublishedCrl]) -> "CrlBundle":
        """Those of ``published`` that list all that a CA has revoked, in the order of the CAs' ids."""
        full = (crl for crl in published if crl.shard is None and not crl.delta)
        return cls(tuple(sorted(full, key=lambda crl: crl.issuer_id)))

    @cached_property
    def size(self) -> int:
        """Its octets."""
        return sum(_size(crl.size) for crl in self.members)

    @cached_property
    def sha256(self) -> bytes:
        """What tells it from others: the SHA-256 over those of its members."""
        return sha256(b"".join(crl.sha256 for crl in self.members)).digest()

    @property
    def this_update(self) -> int:
        """When its newest member was made."""
        return max(crl.this_update for crl in self.members)

    @property
    def next_update(self) -> int:
        """When the first of its members ends."""
        return min(crl.next_update for crl in self.members)

    async def read(self, source: CrlSource) -> AsyncIterator[bytes]:
        """The file in pieces of bounded size. No member is ended that is not what it should be.

        Raises:
            StatusUnavailableError: a member cannot be read, or was replaced meanwhile.
        """
        for crl in self.members:
            async for piece in _pem(crl, source.read(crl)):
                yield piece


def pem_of(der: bytes) -> bytes:
    """A CRL as strict PEM (RFC 7468)."""
    return _BEGIN + _lines(der) + _END


async def _pem(crl: PublishedCrl, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield _BEGIN
    hashed, size, rest = sha256(), 0, b""
    async for piece in pieces:
        size += len(piece)
        if size > crl.size:
            break
        hashed.update(piece)
        rest += piece
        whole = len(rest) - len(rest) % _LINE_OCTETS
        yield _lines(rest[:whole])
        rest = rest[whole:]
    if size != crl.size or hashed.digest() != crl.sha256:
        raise StatusUnavailableError(f"CRL {crl.number} of {crl.issuer_id} is not the one that was published.")
    yield _lines(rest) + _END


def _lines(octets: bytes) -> bytes:
    text = b2a_base64(octets, newline=False)
    return b"".join(text[begin : begin + _LINE] + b"\n" for begin in range(0, len(text), _LINE))


def _size(octets: int) -> int:
    """How long the PEM of a CRL of ``octets`` is."""
    characters = -(-octets // 3) * 4
    return len(_BEGIN) + characters + -(-characters // _LINE) + len(_END)
