"""The formats in which entries go out, each with its framing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from privyseal_ca.export.ocsf import ocsf_event
from privyseal_ca.export.record import Record
from privyseal_ca.export.syslog import ascii_json, octet_counted, syslog_message

FORMATS: Final = ("jsonl", "ocsf", "syslog")

#: An entry as the octets that are sent, framing included.
Render = Callable[[Record], bytes]


@dataclass(frozen=True, slots=True)
class Sender:
    """What formats say about where entries come from."""

    #: The log's name, as its checkpoints have it.
    origin: str
    #: The name of this machine.
    hostname: str
    #: The version of this program.
    version: str


def json_line(record: Record) -> bytes:
    """One line: index, leaf hash in hex, and the entry's own octets, which are canonical JSON (RFC 8785) already."""
    return b'{"index":%d,"leaf_hash":"%s","entry":%s}\n' % (
        record.index,
        record.leaf_hash.hex().encode(),
        record.entry,
    )


def renderer(name: str, sender: Sender, *, stream: bool, max_message: int) -> Render:
    """What writes entries in the format ``name``; ``stream`` is whether they go over the network.

    JSON is one object a line everywhere. Syslog messages are counted in octets on the network, and end with a line feed, which
    none of them contains, in a file (RFC 6587 section 3.4).
    """
    if name == "jsonl":
        return json_line

    def ocsf(record: Record) -> bytes:
        return ascii_json(ocsf_event(record, origin=sender.origin, version=sender.version)) + b"\n"

    def syslog(record: Record) -> bytes:
        message = syslog_message(
            record, origin=sender.origin, hostname=sender.hostname, version=sender.version, max_message=max_message
        )
        return octet_counted(message) if stream else message + b"\n"

    return ocsf if name == "ocsf" else syslog
