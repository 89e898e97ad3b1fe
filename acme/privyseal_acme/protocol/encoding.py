"""Base64url as ACME uses it (RFC 8555 section 6.1): without padding, and nothing else."""

import binascii

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_FORBIDDEN = frozenset("+/=")


def encode(data: bytes) -> str:
    """``data`` as base64url without padding."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").replace(b"+", b"-").replace(b"/", b"_").decode()


def decode(text: str) -> bytes:
    """The bytes that ``text`` stands for.

    Raises:
        ValueError: a character outside the alphabet, padding included, or bits that no encoder would set.
    """
    if not _FORBIDDEN.isdisjoint(text):
        raise ValueError("not base64url")
    raw = text.encode("ascii").translate(_TO_STANDARD)
    data = binascii.a2b_base64(raw + b"=" * (-len(raw) % 4), strict_mode=True)
    if encode(data) != text:
        raise ValueError("not canonical base64url")
    return data
