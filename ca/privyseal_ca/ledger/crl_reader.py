"""Reading a CRL (RFC 5280 section 5.1) of any length piece by piece, with bounded memory.

The entries are taken out while they pass. What remains, the same CertificateList without its entries, is small, and
cryptography reads it. The hash that the signature is about is computed on the way. A signature that is about the message
itself, such as Ed25519's, needs all of it: such a CRL is kept in memory.

This shares no code with what builds CRLs, so that a mistake there is found here.
"""

import hashlib
from calendar import timegm
from collections.abc import Iterator
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

_SEQUENCE: Final = 0x30
_INTEGER: Final = 0x02
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
#: Everything but the entries: names, extensions, signature. The largest of ours have a few hundred octets.
_MAX_FRAME: Final = 256 * 1024
_MAX_ENTRY: Final = 16 * 1024
#: Extensions of an entry that hold a reasonCode and nothing else, up to its value.
_REASON_ONLY: Final = bytes.fromhex("300c300a0603551d1504030a01")

_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
#: By the OBJECT IDENTIFIER in front of an AlgorithmIdentifier.
_HASHED_BY: Final = {
    bytes.fromhex("06082a8648ce3d040302"): "sha256",
    bytes.fromhex("06082a8648ce3d040303"): "sha384",
    bytes.fromhex("06082a8648ce3d040304"): "sha512",
    bytes.fromhex("06092a864886f70d01010b"): "sha256",
    bytes.fromhex("06092a864886f70d01010c"): "sha384",
    bytes.fromhex("06092a864886f70d01010d"): "sha512",
}


class Listed(NamedTuple):
    """One entry. ``reason`` is the CRLReason, None without one, and -1 when there are other extensions too."""

    serial: str
    revoked_at: int
    reason: int | None


class MalformedCrlError(Exception):
    """The octets are no CRL."""


class CrlReader:
    """Takes a CRL apart. Feed it all pieces, then finish."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._frame_begin = b""
        self._tail = bytearray()
        #: Octets of entries that are still to come; None before the entries begin.
        self._entries_left: int | None = None
        #: Octets behind the entries that are still to come, and how many of all of them are not signed.
        self._left = 0
        self._unsigned = 0
        self._hash: hashlib._Hash | None = None
        self._whole: bytearray | None = None
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.entries = 0

    def feed(self, piece: bytes) -> list[Listed]:
        """The entries that are complete with ``piece``.

        Raises:
            MalformedCrlError: this is no CRL.
        """
        self.sha256.update(piece)
        self.size += len(piece)
        if self._whole is not None:
            self._whole += piece
        self._waiting += piece
        if self._entries_left is None and not self._begin():
            return []
        listed = list(self._take_entries())
        self.entries += len(listed)
        if self._entries_left == 0:
            self._take_tail()
        return listed

    def finish(self) -> x509.CertificateRevocationList:
        """The CRL without its entries; its signature, which was about all of it, is not valid for this.

        Raises:
            MalformedCrlError: this is no CRL, or not all of one.
        """
        if self._entries_left != 0 or self._left:
            raise MalformedCrlError("it ends too early")
        signed_length = len(self._tail) - self._unsigned
        signed = _sequence(self._frame_begin + bytes(self._tail[:signed_length]))
        try:
            crl = x509.load_der_x509_crl(_sequence(signed + bytes(self._tail[signed_length:])))
            # Parsed when they are first asked for, and kept.
            list(crl.extensions)
        except (ValueError, x509.InvalidVersion, x509.DuplicateExtension) as error:
            raise MalformedCrlError(str(error)) from error
        return crl

    def signed_by(self, crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> bool:
        """Whether the key of ``certificate`` made the signature of ``crl``, which :meth:`finish` gave."""
        key = certificate.public_key()
        try:
            if self._whole is not None:
                return bool(x509.load_der_x509_crl(bytes(self._whole)).is_signature_valid(key))  # type: ignore[arg-type]
            if self._hash is None:
                return False
            prehashed = Prehashed(_HASHES[self._hash.name])
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(crl.signature, self._hash.digest(), ec.ECDSA(prehashed))
            elif isinstance(key, rsa.RSAPublicKey):
                key.verify(crl.signature, self._hash.digest(), padding.PKCS1v15(), prehashed)
            else:
                return False
        except (InvalidSignature, ValueError, TypeError):
            return False
        return True

    def _begin(self) -> bool:
        """Read up to the first entry; False when that has not come yet."""
        data = bytes(self._waiting[:_MAX_FRAME])
        try:
            outer_tag, outer, outer_length = _header(data, 0)
            signed_tag, begin, signed_length = _header(data, outer)
            if (outer_tag, signed_tag) != (_SEQUENCE, _SEQUENCE):
                raise MalformedCrlError("it is no CertificateList")
            position, algorithm = begin, b""
            for number, tags in enumerate(((_INTEGER,), (_SEQUENCE,), (_SEQUENCE,), _TIMES, _TIMES)):
                tag, content, length = _header(data, position)
                if tag not in tags:
                    if number == 4:
                        break  # nextUpdate may be absent
                    raise MalformedCrlError("a member of its TBSCertList is missing")
                if number == 1:
                    algorithm = data[content : content + length]
                position = content + length
            end_of_signed = begin + signed_length
            entries_begin, entries_length = position, 0
            if position < end_of_signed:
                tag, content, length = _header(data, position)
                if tag == _SEQUENCE:
                    entries_begin, entries_length = content, length
            if entries_begin > len(data):
                raise _ShortError
        except _ShortError:
            if len(self._waiting) >= _MAX_FRAME:
                raise MalformedCrlError("its names are too long") from None
            return False
        self._unsigned = outer + outer_length - end_of_signed
        self._frame_begin = data[begin:position]
        self._choose_hash(algorithm)
        self._hashed(data[outer:entries_begin])
        self._entries_left = entries_length
        self._left = end_of_signed - entries_begin - entries_length + self._unsigned
        if self._left > _MAX_FRAME or self._left < self._unsigned or self._unsigned < 0:
            raise MalformedCrlError("its lengths do not fit together")
        del self._waiting[:entries_begin]
        return True

    def _choose_hash(self, algorithm: bytes) -> None:
        name = next((name for oid, name in _HASHED_BY.items() if algorithm.startswith(oid)), None)
        if name is None:
            # What was fed until now is in the buffer still, as nothing was taken out of it.
            self._whole = bytearray(self._waiting)
        else:
            self._hash = hashlib.new(name)

    def _hashed(self, octets: bytes | bytearray) -> None:
        if self._hash is not None:
            self._hash.update(octets)

    def _take_entries(self) -> Iterator[Listed]:
        left = self._entries_left or 0
        data = bytes(self._waiting[:left])
        position = 0
        while position < left:
            try:
                tag, content, length = _header(data, position)
                if length > _MAX_ENTRY or tag != _SEQUENCE or content + length > left:
                    raise MalformedCrlError("one of its entries is malformed")
                if content + length > len(data):
                    break
                yield _entry(data, content, content + length)
            except _ShortError:
                if len(data) == left:
                    raise MalformedCrlError("one of its entries is malformed") from None
                break
            position = content + length
        self._hashed(data[:position])
        del self._waiting[:position]
        self._entries_left = left - position

    def _take_tail(self) -> None:
        octets = bytes(self._waiting)
        self._waiting.clear()
        if len(octets) > self._left:
            raise MalformedCrlError("there is something behind it")
        signed = self._left - self._unsigned
        if signed > 0:
            self._hashed(octets[:signed])
        self._tail += octets
        self._left -= len(octets)


class _ShortError(Exception):
    """More octets are needed."""


_TIMES: Final = (_UTC_TIME, _GENERALIZED_TIME)


def _header(data: bytes, position: int) -> tuple[int, int, int]:
    """Tag, begin of the content and its length, of the DER at ``position``."""
    if position + 2 > len(data):
        raise _ShortError
    tag, length = data[position], data[position + 1]
    content = position + 2
    if length >= 0x80:
        octets = length & 0x7F
        if not 1 <= octets <= 4:
            raise MalformedCrlError("a length is malformed")
        if content + octets > len(data):
            raise _ShortError
        length = int.from_bytes(data[content : content + octets])
        content += octets
    return tag, content, length


def _entry(data: bytes, begin: int, end: int) -> Listed:
    tag, content, length = _header(data, begin)
    time_tag, time, time_length = _header(data, content + length)
    extensions = data[time + time_length : end]
    if tag != _INTEGER or time_tag not in _TIMES or time + time_length > end:
        raise MalformedCrlError("one of its entries is malformed")
    serial = int.from_bytes(data[content : content + length], signed=True)
    reason: int | None = None
    if extensions:
        only = extensions.startswith(_REASON_ONLY) and len(extensions) == len(_REASON_ONLY) + 1
        reason = extensions[-1] if only else -1
    return Listed(f"{serial:032x}", _seconds(time_tag, data[time : time + time_length]), reason)


def _seconds(tag: int, text: bytes) -> int:
    """A time as RFC 5280 section 5.1.2.6 allows it, as seconds since the epoch."""
    digits = text[:-1]
    if not digits.isdigit() or text[-1:] != b"Z" or len(digits) != (12 if tag == _UTC_TIME else 14):
        raise MalformedCrlError("a time is malformed")
    if tag == _UTC_TIME:
        # RFC 5280 section 4.1.2.5.1: years from 50 on are of the last century.
        digits = (b"19" if digits[:2] >= b"50" else b"20") + digits
    return timegm((int(digits[:4]), *(int(digits[at : at + 2]) for at in range(4, 14, 2)), 0, 0, 0))


def _sequence(content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([_SEQUENCE, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([_SEQUENCE, 0x80 | len(octets)]) + octets + content
