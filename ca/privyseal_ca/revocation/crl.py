"""CRLs (RFC 5280 section 5) of any length, put together as a stream with bounded memory.

cryptography's builder makes everything but the list of revoked certificates, signed by a stand-in. That TBSCertList is
taken apart, and the entries, encoded here, go between its nextUpdate and its extensions. They are collected first, in
memory and beyond a few megabytes in a temporary file, because the lengths in front of them come before the hash begins;
then they are hashed and written out in pieces. ECDSA and RSA sign the hash in the token. Ed25519 signs the message itself
(RFC 8032), so a CRL of an Ed25519 issuer is held in memory as a whole while it is signed: 45 bytes an entry.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding

from privyseal_ca.errors import SignerError
from privyseal_ca.hsm.signer import PrivateKey
from privyseal_ca.issuance.standin import stand_in_for
from privyseal_ca.issuance.template import IssuerIdentity, distribution_point, signature_hash

#: Octets of the largest piece that a CRL is written in.
PIECE: Final = 256 * 1024
_IN_MEMORY: Final = 4 * 1024 * 1024

#: Of the entry extension reasonCode (RFC 5280 section 5.3.1): Extensions up to the ENUMERATED's value.
_REASON_CODE: Final = bytes.fromhex("300c300a0603551d1504030a01")

#: What an entry is made from: the serial as hex digits, when it was revoked in seconds since the epoch, and the CRLReason.
Revoked = tuple[str, int, int | None]


@dataclass(frozen=True, slots=True)
class CrlOutline:
    """What a CRL says besides its list. Times are seconds since the epoch."""

    issuer: IssuerIdentity
    number: int
    this_update: int
    next_update: int
    url: str | None = None
    """Of one part of the issuer's CRL, as its certificates name it; None for the full CRL, which has no restriction."""
    freshest: str | None = None
    """Where the delta CRL of this part is."""
    base: int | None = None
    """The number of the CRL that this delta CRL is relative to; None for a complete one."""

    def extensions(self) -> Iterator[tuple[x509.ExtensionType, bool]]:
        """The extensions (RFC 5280 section 5.2), each with whether it is critical."""
        yield x509.AuthorityKeyIdentifier(self.issuer.key_id, None, None), False
        yield x509.CRLNumber(self.number), False
        if self.base is not None:
            yield x509.DeltaCRLIndicator(self.base), True
        yield from pointer_extensions(self.url, self.freshest)


def pointer_extensions(url: str | None, freshest: str | None) -> Iterator[tuple[x509.ExtensionType, bool]]:
    """The extensions that hold URLs: issuingDistributionPoint, with the certificates' name for it, and freshestCRL."""
    if url is not None:
        restriction = x509.IssuingDistributionPoint(
            full_name=distribution_point(url).full_name,
            relative_name=None,
            only_contains_user_certs=True,
            only_contains_ca_certs=False,
            only_some_reasons=None,
            indirect_crl=False,
            only_contains_attribute_certs=False,
        )
        yield restriction, True
    if freshest is not None:
        yield x509.FreshestCRL([distribution_point(freshest)]), False


def names_pointers(tail: bytes, url: str | None, freshest: str | None) -> bool:
    """Whether the CRL whose DER ends with ``tail`` holds the extensions of these URLs.

    Extensions stand behind the list and before the signature, so that a few kilobytes of the end are enough.
    """
    return all(extension.public_bytes() in tail for extension, _ in pointer_extensions(url, freshest))


@asn1.sequence
class _CertificateList:
    tbs_cert_list: asn1.TLV
    signature_algorithm: asn1.TLV
    signature: asn1.BitString


@asn1.sequence
class _TbsCertList:
    version: asn1.TLV
    signature: asn1.TLV
    issuer: asn1.TLV
    this_update: asn1.TLV
    next_update: asn1.TLV
    extensions: asn1.TLV


@dataclass(frozen=True, slots=True)
class FinishedCrl:
    """A signed CRL, to be read as often as is wanted until what it was assembled in is closed."""

    size: int
    """Octets of DER."""
    sha256: bytes
    entries: int
    pieces: Callable[[], Iterator[bytes]]
    """Its DER in pieces of :data:`PIECE` octets, the last shorter. Blocks on a file: not for the event loop."""


class CrlAssembly(AbstractContextManager["CrlAssembly"]):
    """A CRL while it is made: entries are added, it is signed, it is read. Blocks on hashing and files.

    One thread at a time. Leaving the context gives back the temporary file.
    """

    def __init__(self, outline: CrlOutline) -> None:
        self._issuer = outline.issuer
        self._hash = signature_hash(outline.issuer.public_key)
        self._before, self._after, self._algorithm = _split(outline, self._hash)
        self._entries: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 (__exit__)
        self._size = 0
        self._count = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entries.close()

    def add(self, revoked: Iterable[Revoked]) -> None:
        """Add entries to the list, in any order. Each serial at most once."""
        encoded = [encode_entry(*each) for each in revoked]
        self._size += self._entries.write(b"".join(encoded))
        self._count += len(encoded)

    def to_be_signed(self) -> bytes:
        """What :func:`sign_crl` signs: the hash of the TBSCertList, or for Ed25519 the TBSCertList."""
        if self._hash is None:
            return b"".join(self._tbs())
        digest = hashes.Hash(self._hash)
        for chunk in self._tbs():
            digest.update(chunk)
        return digest.finalize()

    def finish(self, to_be_signed: bytes, signature: bytes) -> FinishedCrl:
        """The CRL with ``signature`` over what :meth:`to_be_signed` gave.

        Raises:
            SignerError: the signature is not the issuer's.
        """
        try:
            _verify(self._issuer, self._hash, to_be_signed, signature)
        except InvalidSignature as error:
            raise SignerError(
                f"The token's signature over a CRL of issuer {self._issuer.name} does not verify.",
                hint="Check the token and the key with `privyseal doctor`.",
            ) from error
        end = self._algorithm + asn1.encode_der(asn1.BitString(signature, 0))
        tbs = sum(map(len, self._tbs_header())) + self._size + len(self._after)
        header = _header(0x30, tbs + len(end))

        def pieces() -> Iterator[bytes]:
            return _repiece(header, self._tbs(), end)

        whole = hashlib.sha256()
        for piece in pieces():
            whole.update(piece)
        return FinishedCrl(len(header) + tbs + len(end), whole.digest(), self._count, pieces)

    def _tbs_header(self) -> tuple[bytes, bytes, bytes]:
        # RFC 5280 section 5.1.2.6: absent when nothing is revoked.
        list_header = _header(0x30, self._size) if self._count else b""
        content = len(self._before) + len(list_header) + self._size + len(self._after)
        return _header(0x30, content), self._before, list_header

    def _tbs(self) -> Iterator[bytes]:
        yield from self._tbs_header()
        self._entries.seek(0)
        while chunk := self._entries.read(PIECE):
            yield chunk
        yield self._after


def sign_crl(issuer: IssuerIdentity, to_be_signed: bytes) -> Callable[[PrivateKey], bytes]:
    """Work for :meth:`privyseal_ca.hsm.signer.SigningKey.run`: the signature over what an assembly gave to be signed."""
    digest = signature_hash(issuer.public_key)

    def work(key: PrivateKey) -> bytes:
        if isinstance(key, ec.EllipticCurvePrivateKey) and digest is not None:
            return key.sign(to_be_signed, ec.ECDSA(Prehashed(digest)))
        if isinstance(key, rsa.RSAPrivateKey) and digest is not None:
            return key.sign(to_be_signed, padding.PKCS1v15(), Prehashed(digest))
        if isinstance(key, ed25519.Ed25519PrivateKey) and digest is None:
            return key.sign(to_be_signed)
        raise TypeError("the key is not of the issuer's kind")

    return work


def encode_entry(serial: str, revoked_at: int, reason: int | None) -> bytes:
    """One element of revokedCertificates (RFC 5280 section 5.1.2.6). ``serial`` is an even number of hex digits, at most 40."""
    octets = bytes.fromhex(serial).lstrip(b"\0") or b"\0"
    if octets[0] & 0x80:
        octets = b"\0" + octets
    rest = _entry_rest(revoked_at, reason)
    # At most 55 octets: every length has the short form.
    return b"\x30%c\x02%c%b%b" % (2 + len(octets) + len(rest), len(octets), octets, rest)


@lru_cache(maxsize=8192)
def _entry_rest(revoked_at: int, reason: int | None) -> bytes:
    """revocationDate and crlEntryExtensions: what many entries have in common."""
    moment = datetime.fromtimestamp(revoked_at, UTC)
    # RFC 5280 section 5.1.2.6 by way of 5.1.2.4: UTCTime through 2049, GeneralizedTime after.
    date = (
        b"\x17\x0d" + moment.strftime("%y%m%d%H%M%SZ").encode()
        if moment.year < 2050
        else b"\x18\x0f" + moment.strftime("%Y%m%d%H%M%SZ").encode()
    )
    # Section 5.3.1: unspecified is said by leaving the extension out.
    return date + _REASON_CODE + bytes((reason,)) if reason else date


def _split(outline: CrlOutline, digest: hashes.HashAlgorithm | None) -> tuple[bytes, bytes, bytes]:
    """The TBSCertList's content before and after the list, and the AlgorithmIdentifier that follows it."""
    issuer = outline.issuer
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(datetime.fromtimestamp(outline.this_update, UTC))
        .next_update(datetime.fromtimestamp(outline.next_update, UTC))
    )
    for extension, critical in outline.extensions():
        builder = builder.add_extension(extension, critical)
    unsigned = builder.sign(stand_in_for(issuer.public_key), digest)  # type: ignore[arg-type]
    whole = asn1.decode_der(_CertificateList, unsigned.public_bytes(Encoding.DER))
    tbs = asn1.decode_der(_TbsCertList, unsigned.tbs_certlist_bytes)
    before = (tbs.version, tbs.signature, tbs.issuer, tbs.this_update, tbs.next_update)
    return (
        b"".join(map(asn1.encode_der, before)),
        asn1.encode_der(tbs.extensions),
        asn1.encode_der(whole.signature_algorithm),
    )


def _verify(issuer: IssuerIdentity, digest: hashes.HashAlgorithm | None, signed: bytes, signature: bytes) -> None:
    key = issuer.public_key
    if isinstance(key, ec.EllipticCurvePublicKey) and digest is not None:
        key.verify(signature, signed, ec.ECDSA(Prehashed(digest)))
    elif isinstance(key, rsa.RSAPublicKey) and digest is not None:
        key.verify(signature, signed, padding.PKCS1v15(), Prehashed(digest))
    elif isinstance(key, ed25519.Ed25519PublicKey) and digest is None:
        key.verify(signature, signed)
    else:
        raise TypeError("the key is not of the issuer's kind")


def _header(tag: int, length: int) -> bytes:
    """Identifier and length octets in DER (X.690 sections 8.1 and 10.1)."""
    if length < 0x80:
        return bytes((tag, length))
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(octets))) + octets


def _repiece(header: bytes, tbs: Iterable[bytes], end: bytes) -> Iterator[bytes]:
    """``header``, ``tbs`` and ``end`` in a row, cut anew."""
    waiting = bytearray(header)
    for chunk in tbs:
        waiting += chunk
        while len(waiting) >= PIECE:
            yield bytes(waiting[:PIECE])
            del waiting[:PIECE]
    waiting += end
    while waiting:
        yield bytes(waiting[:PIECE])
        del waiting[:PIECE]
