"""The identifier of a certificate in ACME Renewal Information (RFC 9773 section 4.1)."""

from privyseal_acme.protocol.encoding import decode, encode
from privyseal_acme.protocol.problems import malformed

_MAX_SERIAL = 20


def certificate_id(key_id: bytes, serial: int) -> str:
    """Key identifier of the issuer and serial as DER content octets, a leading 00 kept, joined by a dot."""
    return f"{encode(key_id)}.{encode(serial.to_bytes(serial.bit_length() // 8 + 1, 'big'))}"


def parse_certificate_id(text: str) -> tuple[bytes, int]:
    """The issuer's key identifier and the serial.

    Raises:
        Problem: malformed.
    """
    key_id, dot, serial = text.partition(".")
    try:
        if not dot:
            raise ValueError("no dot")
        issuer, number = decode(key_id), decode(serial)
        if not issuer or not 0 < len(number) <= _MAX_SERIAL:
            raise ValueError("length")
        value = int.from_bytes(number, "big", signed=True)
        if value <= 0 or value.to_bytes(value.bit_length() // 8 + 1, "big") != number:
            raise ValueError("not the DER content of a positive integer")
    except ValueError:
        raise malformed(
            "The certificate identifier is not two base64url parts as RFC 9773 section 4.1 has them."
        ) from None
    return issuer, value
