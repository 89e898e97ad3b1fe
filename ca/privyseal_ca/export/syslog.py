"""An entry as a syslog message (RFC 5424), and how messages follow each other in a stream (RFC 6587, RFC 5425)."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from privyseal_ca.export.meaning import Severity, severity_of
from privyseal_ca.export.record import Record

#: Facility "log audit" (RFC 5424 section 6.2.1).
FACILITY: Final = 13
#: A name that is not registered with IANA needs a private enterprise number (RFC 5424 section 6.3.2). This is the one for
#: documentation (RFC 5612), which belongs to nobody: there is none of our own to use.
SD_ID: Final = "privyseal@32473"
APP_NAME: Final = "privyseal"
#: What a receiver keeps at least is 480 octets, and should be 2048 (RFC 5424 section 6.1); rsyslog's default is 8 KiB.
MIN_MESSAGE: Final = 2048
DEFAULT_MAX_MESSAGE: Final = 8192
MAX_MESSAGE: Final = 262144

_SEVERITIES: Final[Mapping[Severity, int]] = {
    Severity.INFORMATIONAL: 6,
    Severity.LOW: 5,  # notice
    Severity.MEDIUM: 4,  # warning
    Severity.HIGH: 3,  # error
    Severity.CRITICAL: 2,
}
#: The control character that JSON allows in text.
_DELETE: Final = b"\x7f"
#: In octets; so no message without a payload is longer than MIN_MESSAGE.
_MAX_HOSTNAME, _MAX_MSGID, _MAX_VALUE = 255, 32, 128


def syslog_message(record: Record, *, origin: str, hostname: str, version: str, max_message: int) -> bytes:
    """The message of an entry of the log ``origin``, without framing, of at most ``max_message`` octets.

    What would be longer is sent without the payload, and says so: it stays JSON, and the index leads to the rest.
    MSG is JSON in US-ASCII, which needs no byte order mark (RFC 5424 section 6.4); receivers hand MSG to JSON parsers with
    the mark on it.
    """
    members = record.members
    priority = FACILITY * 8 + _SEVERITIES[severity_of(members["kind"], members["payload"])]
    data = _structured(
        SD_ID,
        {
            "index": str(record.index),
            "kind": members["kind"],
            "actor": members["actor"],
            "correlation": members["correlation"],
            "leafHash": record.leaf_hash.hex(),
            "log": origin,
        },
    ) + _structured("origin", {"software": "Privy Seal", "swVersion": version[:32]})
    header = " ".join(
        (
            f"<{priority}>1",
            members["time"],
            _header_text(hostname, _MAX_HOSTNAME),
            APP_NAME,
            "-",
            _header_text(members["kind"], _MAX_MSGID),
            data,
            "",
        )
    ).encode()
    body = {"index": record.index, "leaf_hash": record.leaf_hash.hex(), "entry": members}
    message = header + ascii_json(body)
    if len(message) > max_message:
        # The other members are in the structured data.
        kept = {name: members[name] for name in ("kind", "time", "v")}
        message = header + ascii_json(body | {"entry": kept, "truncated": True, "size": len(record.entry)})
    return message


def octet_counted(message: bytes) -> bytes:
    """``message`` as it stands in a stream: behind its length (RFC 6587 section 3.4.1, RFC 5425 section 4.3)."""
    return b"%d " % len(message) + message


def _structured(name: str, parameters: Mapping[str, str]) -> str:
    """An SD-ELEMENT (RFC 5424 section 6.3)."""
    return f"[{' '.join((name, *(f'{key}={_value(value)}' for key, value in parameters.items())))}]"


def _value(text: str) -> str:
    """A quoted PARAM-VALUE: ``"``, ``\\`` and ``]`` are escaped (section 6.3.3), controls replaced."""
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    cut = printable.encode()[:_MAX_VALUE].decode(errors="ignore")
    escaped = cut.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")
    return f'"{escaped}"'


def _header_text(text: str, most: int) -> str:
    """PRINTUSASCII of at most ``most`` characters, or NILVALUE."""
    return "".join(character for character in text if "!" <= character <= "~")[:most] or "-"


def ascii_json(document: Mapping[str, Any]) -> bytes:
    """Compact JSON in printable US-ASCII: nothing that a terminal obeys, or that somebody takes for the end of a line."""
    encoded = orjson.dumps(document)
    if encoded.isascii() and _DELETE not in encoded:
        return encoded
    text = "".join(character if " " <= character <= "~" else _escaped(character) for character in encoded.decode())
    return text.encode("ascii")


def _escaped(character: str) -> str:
    # Beyond the basic plane JSON has two escapes, a surrogate pair (RFC 8259 section 7).
    pair = character.encode("utf-16-be")
    return "".join(f"\\u{pair[at]:02x}{pair[at + 1]:02x}" for at in range(0, len(pair), 2))
