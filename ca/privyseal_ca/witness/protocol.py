"""What is sent to a witness (C2SP tlog-witness): an old size, a consistency proof and a checkpoint."""

from dataclasses import dataclass
from typing import Final, Self

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.note import decode_hash, decode_number, encode_base64

#: The media type of the size in the answer 409.
SIZE_TYPE: Final = "text/x.tlog.size"
#: Octets of a submission: its proof, and a note with more signatures than any log has.
MAX_SUBMISSION: Final = 256 * 1024
#: Hashes of a proof.
MAX_HASHES: Final = 63

_OLD: Final = "old "


@dataclass(frozen=True, slots=True)
class Submission:
    """A request to cosign."""

    #: The size that the witness is thought to have.
    old: int
    #: The consistency proof from there to the checkpoint.
    proof: tuple[bytes, ...]
    #: The checkpoint, as the signed note that it is, byte for byte.
    note: bytes

    def body(self) -> bytes:
        """What is sent."""
        lines = (f"{_OLD}{self.old}", *map(encode_base64, self.proof), "")
        return "".join(f"{line}\n" for line in lines).encode() + self.note

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """The submission in ``body``; whether the note is one is for others to say.

        Raises:
            LedgerError: malformed, too long, or more than 63 hashes.
        """
        if len(body) > MAX_SUBMISSION:
            raise LedgerError(f"A submission has at most {MAX_SUBMISSION} bytes.")
        head, empty, note = body.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n", MAX_HASHES + 1)
        except UnicodeDecodeError as error:
            raise LedgerError("The submission's proof is not ASCII.") from error
        old = lines.pop(0)
        if not empty or not note or not old.startswith(_OLD):
            raise LedgerError("A submission is a line with the old size, a proof, an empty line and a checkpoint.")
        if len(lines) > MAX_HASHES:
            raise LedgerError(f"A proof has at most {MAX_HASHES} hashes.")
        return cls(
            decode_number(old.removeprefix(_OLD), "old size"),
            tuple(decode_hash(line, "hash in the proof") for line in lines),
            note,
        )


def parse_size(body: bytes) -> int | None:
    """The size in the answer 409, or None when there is none."""
    try:
        text = body.decode("ascii")
        return decode_number(text.removesuffix("\n"), "size")
    except (UnicodeDecodeError, LedgerError):
        return None
