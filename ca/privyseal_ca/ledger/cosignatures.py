"""Cosignatures: a witness's word that a checkpoint continues every other one of its log that the witness saw (promise P6).

C2SP tlog-cosignature, the Ed25519 kind (``cosignature/v1``): a signature line of the note, made over the note's text and the
time at which the witness saw it. A log's own key is of another type and cannot be taken for a witness's, nor the reverse.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from privyseal_ca.errors import LedgerError
from privyseal_ca.hsm.signer import PublicKey
from privyseal_ca.ledger.note import (
    DASH,
    KEY_ID_BYTES,
    MAX_NOTE,
    MAX_SIGNATURES,
    MAX_SIZE,
    check_name,
    decode_base64,
    encode_base64,
    signature_of,
    split_note,
)

#: Characters of a witness's verification key.
MAX_VKEY: Final = 1024
#: Bytes of a witness's answer: a few lines.
MAX_ANSWER: Final = 1 << 16

# C2SP signed-note, "Signature types".
_COSIGNATURE: Final = b"\x04"
_KEY_BYTES: Final = 32
_TIME_BYTES: Final = 8
_SIGNATURE_BYTES: Final = 64
_VKEY_PARTS: Final = 3


def cosigned_message(text: str, timestamp: int) -> bytes:
    """What a witness signs: a header, the time in seconds since the epoch, and the note's whole text.

    Raises:
        LedgerError: a time that is negative or above 2^63 - 1.
    """
    if not 0 <= timestamp <= MAX_SIZE:
        raise LedgerError("The time of a cosignature is between 0 and 2^63 - 1.")
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()


@dataclass(frozen=True, slots=True)
class CosignatureVerifier:
    """A witness's public key, and the name it goes by."""

    name: str
    #: The four bytes that its signatures begin with.
    key_id: bytes
    key: ed25519.Ed25519PublicKey

    @classmethod
    def for_key(cls, name: str, public_key: PublicKey) -> Self:
        """The verifier of an Ed25519 key.

        Raises:
            LedgerError: another kind of key; or a name that is empty, longer than 255 bytes of UTF-8, or has a space, a
                plus or a control character.
        """
        check_name(name)
        if not isinstance(public_key, ed25519.Ed25519PublicKey):
            raise LedgerError("Witnesses sign with Ed25519.", hint="Use a token that has it.")
        hashed = name.encode() + b"\n" + _COSIGNATURE + public_key.public_bytes_raw()
        return cls(name, hashlib.sha256(hashed).digest()[:KEY_ID_BYTES], public_key)

    @classmethod
    def parse(cls, vkey: str) -> Self:
        """The verifier that :meth:`vkey` gives the text of.

        Raises:
            LedgerError: malformed, a key of another type such as a log's, or an id that is not the key's.
        """
        # Base64 has pluses too.
        parts = vkey.split("+", 2) if len(vkey) <= MAX_VKEY else []
        if len(parts) != _VKEY_PARTS:
            raise LedgerError("The witness's verification key is not of the form name+id+key.")
        name, key_id, encoded = parts
        key = decode_base64(encoded, "key of the witness's verification key")
        if key[:1] != _COSIGNATURE or len(key) != 1 + _KEY_BYTES:
            raise LedgerError(
                "The verification key is not that of a witness: it is not of type 4 (Ed25519 cosignatures).",
                hint="`privyseal witness vkey` prints it on the witness.",
            )
        verifier = cls.for_key(name, ed25519.Ed25519PublicKey.from_public_bytes(key[1:]))
        if verifier.key_id.hex() != key_id:
            raise LedgerError("The witness's verification key has an id that is not that of its key.")
        return verifier

    def vkey(self) -> str:
        """The verification key as text: ``name+hex(id)+base64(0x04 || key)`` (C2SP signed-note)."""
        return f"{self.name}+{self.key_id.hex()}+{encode_base64(_COSIGNATURE + self.key.public_bytes_raw())}"

    def timestamp(self, text: str, signature: bytes) -> int | None:
        """When this witness cosigned the note with ``text``, in seconds since the epoch; ``None`` when it did not.

        ``signature`` is what a signature line has behind the key id.
        """
        if len(signature) != _TIME_BYTES + _SIGNATURE_BYTES:
            return None
        timestamp = int.from_bytes(signature[:_TIME_BYTES])
        if timestamp > MAX_SIZE:
            return None
        try:
            self.key.verify(signature[_TIME_BYTES:], cosigned_message(text, timestamp))
        except InvalidSignature:
            return None
        return timestamp

    def line(self, text: str, timestamp: int, signature: bytes) -> str:
        """The signature line, with its end, for the Ed25519 ``signature`` over :func:`cosigned_message`.

        Raises:
            LedgerError: the signature is not by this key over this text and time.
        """
        whole = timestamp.to_bytes(_TIME_BYTES) + signature
        if self.timestamp(text, whole) != timestamp:
            raise LedgerError(f"The signature is not by the witness's key {self.name}+{self.key_id.hex()}.")
        return f"{DASH}{self.name} {encode_base64(self.key_id + whole)}\n"


def cosignatures(note: bytes, verifiers: Iterable[CosignatureVerifier]) -> dict[str, int]:
    """Who of these witnesses cosigned a note, by name, and when, in seconds since the epoch.

    Signatures by other keys, the log's own among them, are ignored: whether the log signed is for
    :func:`privyseal_ca.ledger.note.open_note`. Of two cosignatures by the same witness the later counts.

    Raises:
        LedgerError: a malformed note, a wrong cosignature by one of these witnesses, or two witnesses with one name or key.
    """
    known = _by_name(verifiers)
    text, lines = split_note(note)
    return {name: timestamp for name, (timestamp, _) in _found(text, lines, known).items()}


def answered_lines(answer: bytes, note: bytes, verifiers: Iterable[CosignatureVerifier]) -> dict[str, tuple[int, str]]:
    """Time and line of each of these witnesses' cosignatures over ``note`` in the ``answer`` to add-checkpoint.

    Raises:
        LedgerError: the answer is too long or does not consist of signature lines, or as :func:`cosignatures`.
    """
    if len(answer) > MAX_ANSWER:
        raise LedgerError(f"A witness's answer has at most {MAX_ANSWER} bytes.")
    text, _ = split_note(note)
    _, lines = split_note(text.encode() + b"\n" + answer)
    if len(lines) != answer.count(b"\n"):
        raise LedgerError("The witness's answer does not consist of signature lines.")
    return _found(text, lines, _by_name(verifiers))


def merged(note: bytes, lines: Iterable[str]) -> bytes:
    """``note`` with the cosignatures ``lines``, each with its end, whose keys have none in it yet or one of an earlier time.

    Text and first line, which is the log's own signature, stay as they are, and all others where they are. A line takes the
    place of the earlier one by its key, or comes last. The lines are not verified here.

    Raises:
        LedgerError: a malformed note or line, or more lines or bytes than a note has.
    """
    text, present = split_note(note)
    at = {signature_of(line)[:2]: number for number, line in reversed(list(enumerate(present)))}
    for each in lines:
        line = each.removesuffix("\n")
        name, key_id, signature = signature_of(line)
        number = at.setdefault((name, key_id), len(present))
        if number == len(present):
            present.append(line)
        elif number and _time(signature) > _time(signature_of(present[number])[2]) >= 0:
            present[number] = line
    whole = (text + "\n" + "".join(f"{line}\n" for line in present)).encode()
    if len(present) > MAX_SIGNATURES or len(whole) > MAX_NOTE:
        raise LedgerError(f"A note has at most {MAX_SIGNATURES} signatures and {MAX_NOTE} bytes.")
    return whole


def _time(signature: bytes) -> int:
    """The time that a cosignature claims, before it is verified; -1 for what has not the form of one."""
    return int.from_bytes(signature[:_TIME_BYTES]) if len(signature) == _TIME_BYTES + _SIGNATURE_BYTES else -1


def _found(text: str, lines: Iterable[str], known: Mapping[str, CosignatureVerifier]) -> dict[str, tuple[int, str]]:
    found: dict[str, tuple[int, str]] = {}
    for line in lines:
        name, key_id, signature = signature_of(line)
        verifier = known.get(name)
        if verifier is None or verifier.key_id != key_id:
            continue
        timestamp = verifier.timestamp(text, signature)
        if timestamp is None:
            raise LedgerError(f"The note has a wrong cosignature by the witness {name}+{key_id.hex()}.")
        if name not in found or timestamp > found[name][0]:
            found[name] = timestamp, f"{line}\n"
    return found


def _by_name(verifiers: Iterable[CosignatureVerifier]) -> dict[str, CosignatureVerifier]:
    known: dict[str, CosignatureVerifier] = {}
    for verifier in verifiers:
        if known.setdefault(verifier.name, verifier) != verifier:
            raise LedgerError(f"Two witnesses have the name {verifier.name}.", hint="Give each a name of its own.")
    # What is signed does not say who signs (tlog-cosignature): each must have a key of its own, or one counts as two.
    if len({verifier.key.public_bytes_raw() for verifier in known.values()}) < len(known):
        raise LedgerError("Two witnesses have the same key.", hint="Name each witness once, with a key of its own.")
    return known
