"""Base64url as ACME uses it (RFC 8555 section 6.1): without padding, and nothing else."""

import binascii
import re

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_FORBIDDEN = re.compile(r"[+/=]").search
#: What the last character may be when it stands for 2 or 4 bits only: the others of its bits are zero.
_LAST = {2: frozenset("AQgw"), 3: frozenset("AEIMQUYcgkosw048")}


def encode(data: bytes) -> str:
    """``data`` as base64url without padding."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").replace(b"+", b"-").replace(b"/", b"_").decode()


def decode(text: str) -> bytes:
    """The bytes that ``text`` stands for.

    Raises:
        ValueError: a character outside the alphabet, padding included, or bits that no encoder would set.
    """
    if _FORBIDDEN(text):
        raise ValueError("not base64url")
    raw = text.encode("ascii").translate(_TO_STANDARD)
    rest = len(raw) % 4
    if rest in _LAST and text[-1] not in _LAST[rest]:
        raise ValueError("not canonical base64url")
    return binascii.a2b_base64(raw + b"=" * (-rest % 4), strict_mode=True)
