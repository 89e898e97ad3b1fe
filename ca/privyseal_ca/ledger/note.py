"""Signed notes and checkpoints: what the ledger says of itself, in a form that anyone can check (promise P6).

C2SP signed-note and tlog-checkpoint. A note is text, an empty line, and a line for each signature. What stands in it
counts only when a known key signed it.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from privyseal_ca.errors import LedgerError
from privyseal_ca.hsm.signer import PublicKey

#: Bytes of a note. Sixteen signatures, which every verifier must accept, are far below even when they are post-quantum.
MAX_NOTE: Final = 1 << 20
#: Signature lines of a note.
MAX_SIGNATURES: Final = 100
#: Bytes of a key's name and of an origin: C2SP tlog-cosignature gives a name a length of 8 bits.
MAX_NAME: Final = 255
#: Entries of a tree: indexes fit into the 64-bit integers of databases and of other programs.
MAX_SIZE: Final = 2**63 - 1

_HASH_BYTES: Final = 32
#: Bytes of a key id.
KEY_ID_BYTES: Final = 4
#: What a signature line begins with: U+2014 and a space.
DASH: Final = "\u2014 "
_CONTROL: Final = re.compile("[\x00-\x09\x0b-\x1f]")
_DECIMAL: Final = re.compile("0|[1-9][0-9]{0,18}")
_KEY_ID: Final = re.compile("[0-9a-f]{8}")
# C2SP signed-note, "Signature types".
_ED25519: Final = b"\x01"
_ECDSA: Final = b"\x02"
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
_VKEY_HINT: Final = (
    "Give what `privyseal ledger vkey` prints, for a witness `privyseal witness vkey`, or the file with it as @FILE."
)


def encode_base64(data: bytes) -> str:
    """``data`` in the standard base64 of RFC 4648 section 4."""
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: str, what: str) -> bytes:
    """The bytes whose only base64 form is ``text``; ``what`` names them in the error.

    Raises:
        LedgerError: not base64, without its padding, or with bits set that stand for nothing.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LedgerError(f"The {what} is not base64.") from error
    if encode_base64(data) != text:
        raise LedgerError(f"The {what} is not in the one base64 form that it has.")
    return data


def decode_hash(text: str, what: str) -> bytes:
    """The SHA-256 hash in base64 ``text``. Raises LedgerError as :func:`decode_base64`, and for any other length."""
    data = decode_base64(text, what)
    if len(data) != _HASH_BYTES:
        raise LedgerError(f"The {what} has {len(data)} bytes; a SHA-256 hash has {_HASH_BYTES}.")
    return data


def decode_number(text: str, what: str) -> int:
    """The number of at most 2^63 - 1 in ASCII digits without leading zeros. Raises LedgerError for everything else."""
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_SIZE:
        raise LedgerError(f"The {what} is not a decimal number below 2^63 without leading zeros.")
    return int(text)


@dataclass(frozen=True, slots=True)
class NoteVerifier:
    """A public key that may have signed a note, and the name it goes by."""

    name: str
    #: The four bytes that its signatures begin with.
    key_id: bytes
    key: PublicKey

    @classmethod
    def for_key(cls, name: str, public_key: PublicKey) -> Self:
        """The verifier of an Ed25519 key, or of an ECDSA key on P-256, P-384 or P-521.

        Raises:
            LedgerError: another kind of key; or a name that is empty, longer than 255 bytes of UTF-8, or has a space, a
                plus or a control character.
        """
        check_name(name)
        kind, encoded = _encoded(public_key)
        # An ECDSA key has the same id under every name (C2SP signed-note, type 0x02).
        hashed = encoded if kind == _ECDSA else name.encode() + b"\n" + kind + encoded
        return cls(name, hashlib.sha256(hashed).digest()[:KEY_ID_BYTES], public_key)

    @classmethod
    def parse(cls, vkey: str) -> Self:
        """The verifier that :meth:`vkey` gives the text of.

        Raises:
            LedgerError: malformed, an unknown type of key, or an id that is not the key's.
        """
        # Base64 has pluses too.
        parts = vkey.split("+", 2) if len(vkey) <= _MAX_VKEY else []
        if len(parts) != _VKEY_PARTS or not _KEY_ID.fullmatch(parts[1]):
            raise LedgerError("The verifier key is not of the form name+id+key.", hint=_VKEY_HINT)
        name, key_id, encoded = parts
        key = decode_base64(encoded, "key of the verifier key")
        verifier = cls.for_key(name, _decoded(key[:1], key[1:]))
        if verifier.key_id.hex() != key_id:
            raise LedgerError("The verifier key's id is not that of its key.", hint=_VKEY_HINT)
        if verifier.vkey() != vkey:
            raise LedgerError("The verifier key's key is not in the one form that it has.", hint=_VKEY_HINT)
        return verifier

    def vkey(self) -> str:
        """The verifier key as text: ``name+hex(id)+base64(type || key)`` (C2SP signed-note).

        The key is 32 bytes for Ed25519 and the DER of the SubjectPublicKeyInfo for ECDSA.
        """
        kind, encoded = _encoded(self.key)
        return f"{self.name}+{self.key_id.hex()}+{encode_base64(kind + encoded)}"

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is this key's over ``message``, the UTF-8 of a note's text.

        Ed25519 as in RFC 8032; ECDSA over SHA-256 on every curve, r and s as DER (RFC 3279 section 2.2.3).
        """
        try:
            if isinstance(self.key, ed25519.Ed25519PublicKey):
                self.key.verify(signature, message)
            elif isinstance(self.key, ec.EllipticCurvePublicKey):
                self.key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            else:
                return False
        except InvalidSignature:
            return False
        return True


_MAX_VKEY: Final = 1024
_VKEY_PARTS: Final = 3


def note_with(text: str, verifier: NoteVerifier, signature: bytes) -> bytes:
    """The note with ``text`` and the signature that the key of ``verifier`` made over its UTF-8.

    Raises:
        LedgerError: the text is empty, has a control character, does not end with a line feed or is too long; or the
            signature is not that key's.
    """
    message = _utf8(text, "note's text")
    if not text.endswith("\n") or _CONTROL.search(text):
        raise LedgerError("A note's text consists of lines, each with its end and without control characters.")
    if not verifier.verify(message, signature):
        raise LedgerError(f"The signature is not by the key {verifier.name}+{verifier.key_id.hex()}.")
    line = f"{DASH}{verifier.name} {encode_base64(verifier.key_id + signature)}\n"
    note = message + b"\n" + line.encode()
    if len(note) > MAX_NOTE:
        raise LedgerError(f"A note has at most {MAX_NOTE} bytes.")
    return note


def open_note(note: bytes, verifiers: Iterable[NoteVerifier]) -> tuple[str, list[NoteVerifier]]:
    """The text of a note, and which of the keys signed it: each once, in the order of the lines, and at least one.

    Signatures by other keys are ignored. Every signature by one of these keys is checked.

    Raises:
        LedgerError: malformed, larger than 1 MiB, more than 100 signatures, a wrong signature by one of the keys, two by
            the same one, none by any, or two different keys with the same name and id.
    """
    known = _by_name_and_id(verifiers)
    text, lines = split_note(note)
    message = text.encode()
    signed: list[NoteVerifier] = []
    for line in lines:
        name, key_id, signature = signature_of(line)
        verifier = known.get((name, key_id))
        if verifier is None:
            continue
        if verifier in signed:
            raise LedgerError(f"The note has two signatures by the key {name}+{key_id.hex()}.")
        if not verifier.verify(message, signature):
            raise LedgerError(f"The note has a wrong signature by the key {name}+{key_id.hex()}.")
        signed.append(verifier)
    if not signed:
        raise LedgerError(
            "The note has no signature by a known key.", hint="Compare the verifier key with that of its owners."
        )
    return text, signed


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Size and root of a ledger at one moment (C2SP tlog-checkpoint). There is no time in it."""

    #: Which ledger.
    origin: str
    #: How many entries it had.
    size: int
    #: The root of the tree over them, 32 bytes.
    root: bytes
    #: Lines whose meaning only their author knows. This ledger writes none.
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """The text of the note.

        Raises:
            LedgerError: an empty origin or extension, one with a control character or longer than it may be; a size that
                is negative or above 2^63 - 1; a root that is no SHA-256 hash, or not the one that an empty tree has.
        """
        if len(_utf8(self.origin, "origin")) > MAX_NAME:
            raise LedgerError(f"A checkpoint's origin has at most {MAX_NAME} bytes.")
        for line in (self.origin, *self.extensions):
            if not line or "\n" in line or _CONTROL.search(line):
                raise LedgerError("A line of a checkpoint is empty or has a control character.")
        if not 0 <= self.size <= MAX_SIZE:
            raise LedgerError("A checkpoint's size is between 0 and 2^63 - 1.")
        if len(self.root) != _HASH_BYTES or (self.size == 0 and self.root != _EMPTY_ROOT):
            raise LedgerError("A checkpoint's root is not one that a tree of its size can have.")
        lines = (self.origin, str(self.size), encode_base64(self.root), *self.extensions)
        text = "".join(f"{line}\n" for line in lines)
        if len(_utf8(text, "checkpoint")) > MAX_NOTE:
            raise LedgerError(f"A checkpoint has at most {MAX_NOTE} bytes.")
        return text

    @classmethod
    def parse(cls, text: str) -> Self:
        """The checkpoint whose :meth:`text` is ``text``.

        Raises:
            LedgerError: malformed, or as :meth:`text`.
        """
        if len(text) > MAX_NOTE:
            raise LedgerError(f"A checkpoint has at most {MAX_NOTE} bytes.")
        lines = text.split("\n")
        if len(lines) < _CHECKPOINT_LINES + 1 or lines.pop():
            raise LedgerError("A checkpoint has a line each for origin, size and root.")
        checkpoint = cls(
            lines[0],
            decode_number(lines[1], "checkpoint's size"),
            decode_hash(lines[2], "checkpoint's root"),
            tuple(lines[3:]),
        )
        checkpoint.text()
        return checkpoint


_CHECKPOINT_LINES: Final = 3


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise LedgerError(f"The {what} is not Unicode text.") from error


def check_name(name: str) -> None:
    """Refuse, by a LedgerError, what cannot be a key's name (C2SP signed-note)."""
    spaced = any(character.isspace() for character in name[: MAX_NAME + 1])
    if not name or "+" in name or spaced or _CONTROL.search(name) or len(_utf8(name, "key's name")) > MAX_NAME:
        raise LedgerError(f"A key's name has 1 to {MAX_NAME} bytes, no spaces, no plus and no control characters.")


def _encoded(key: PublicKey) -> tuple[bytes, bytes]:
    """The type and the bytes that stand for a key in a verifier key."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        return _ED25519, key.public_bytes_raw()
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES):
        return _ECDSA, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    raise LedgerError("Notes are signed with Ed25519, or with ECDSA on P-256, P-384 or P-521.")


def _decoded(kind: bytes, encoded: bytes) -> PublicKey:
    """The reverse of :func:`_encoded`."""
    try:
        if kind == _ED25519:
            return ed25519.Ed25519PublicKey.from_public_bytes(encoded)
        if kind == _ECDSA:
            key = load_der_public_key(encoded)
            if isinstance(key, ec.EllipticCurvePublicKey):
                return key
    except (ValueError, UnsupportedAlgorithm) as error:
        raise LedgerError("The verifier key's key is malformed.", hint=_VKEY_HINT) from error
    raise LedgerError("The verifier key is neither of type 1 (Ed25519) nor of type 2 (ECDSA).", hint=_VKEY_HINT)


def _by_name_and_id(verifiers: Iterable[NoteVerifier]) -> dict[tuple[str, bytes], NoteVerifier]:
    known: dict[tuple[str, bytes], NoteVerifier] = {}
    for verifier in verifiers:
        if known.setdefault((verifier.name, verifier.key_id), verifier) != verifier:
            raise LedgerError(f"Two known keys have the name and id {verifier.name}+{verifier.key_id.hex()}.")
    return known


def split_note(note: bytes) -> tuple[str, list[str]]:
    """Text and signature lines: the last empty line is between them.

    Raises:
        LedgerError: malformed, larger than 1 MiB, or more than 100 signatures.
    """
    if len(note) > MAX_NOTE:
        raise LedgerError(f"A note has at most {MAX_NOTE} bytes.")
    try:
        whole = note.decode()
    except UnicodeDecodeError as error:
        raise LedgerError("The note is not UTF-8.") from error
    if _CONTROL.search(whole):
        raise LedgerError("The note has a control character other than line feed.")
    end = whole.rfind("\n\n")
    if end < 0 or not whole.endswith("\n") or end + 2 == len(whole):
        raise LedgerError("The note is not text, an empty line and whole signature lines.")
    lines = whole[end + 2 : -1].split("\n", MAX_SIGNATURES)
    if len(lines) > MAX_SIGNATURES:
        raise LedgerError(f"The note has more than {MAX_SIGNATURES} signatures.")
    return whole[: end + 1], lines


def signature_of(line: str) -> tuple[str, bytes, bytes]:
    """Name, key id and signature of a signature line, without its end. Raises LedgerError when it is none."""
    name, space, encoded = line.removeprefix(DASH).partition(" ")
    if not line.startswith(DASH) or not space:
        raise LedgerError("A signature line of the note is malformed.")
    check_name(name)
    data = decode_base64(encoded, "signature of the note")
    if len(data) <= KEY_ID_BYTES:
        raise LedgerError("A signature of the note is too short.")
    return name, data[:KEY_ID_BYTES], data[KEY_ID_BYTES:]
