"""The OCSP request in the path of a GET (RFC 6960 appendix A.1, RFC 9919), as clients and proxies really write it."""

import binascii
from typing import Final
from urllib.parse import unquote_to_bytes

#: Characters of path that are looked at; RFC 9919 has clients use POST above 255.
LONGEST: Final = 1024

#: ``-_`` are the alphabet for URLs; a ``+`` may have become a space on the way.
_ALPHABET: Final = bytes.maketrans(b"-_ ", b"+/+")
_LINE_ENDS: Final = b"\r\n"
_SEQUENCE: Final = 0x30
#: Characters of base64 that show the tag and the length of what they encode.
_HEAD: Final = 8


def request_in_path(path: str) -> bytes | None:
    """The DER that ``path``, everything after ``/ocsp``, encodes, or None when it is not all there.

    Percent-encoding may be there twice, once or not at all, padding may be missing, and slashes may stand before and after.
    Inside, a slash is a character of base64. The length in the DER tells where the request ends, so that nothing is guessed.
    """
    data = path.encode("ascii", "replace")
    for _ in range(2):
        if b"%" in data:
            data = unquote_to_bytes(data)
    data = data.translate(_ALPHABET, _LINE_ENDS).lstrip(b"/")
    size = _der_size(data[:_HEAD])
    if size is None:
        return None
    characters = -(-size * 4 // 3)
    if len(data) < characters or data[characters:].strip(b"=/"):
        return None
    return _decoded(data[:characters])


def _der_size(head: bytes) -> int | None:
    """How many octets the SEQUENCE has that ``head`` is the beginning of, tag and length included (X.690 section 8.1.3)."""
    octets = _decoded(head[: len(head.rstrip(b"=")) // 4 * 4])
    if not octets or octets[0] != _SEQUENCE:
        return None
    length = octets[1]
    if length < 0x80:
        return 2 + length
    following = length - 0x80
    if following not in {1, 2} or len(octets) < 2 + following:
        return None
    return 2 + following + int.from_bytes(octets[2 : 2 + following])


def _decoded(characters: bytes) -> bytes | None:
    try:
        return binascii.a2b_base64(characters + b"=" * (-len(characters) % 4), strict_mode=True)
    except binascii.Error:
        return None
