"""What an entry says about the life of a serial or a CRL: the part of it that later entries are compared with.

Facts are what a check has to remember. They are also the lines of a monitor's journal: a check that goes on where another ended
takes them in again, by the same code.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final, Self

import orjson

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.entries import VERSION, Kind, decode_entry
from privyseal_ca.outside.findings import wrong_entry

_HEX32: Final = re.compile("[0-9a-f]{32}")
_HASH: Final = re.compile("[0-9a-f]{64}")
_ID: Final = re.compile("[0-9a-f]{1,64}")
_SCOPE: Final = re.compile("full|0|[1-9][0-9]{0,9}")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")

#: By kind: members that have to be there, and members that older entries lack.
_MEMBERS: Final[dict[Kind, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    Kind.INTENT: (("issuer", "names", "not_after", "serial", "tbs_sha256"), ("not_before", "spki_sha256")),
    Kind.ISSUED: (("issuer", "names", "not_after", "not_before", "serial", "spki_sha256", "tbs_sha256"), ()),
    Kind.ABANDONED: (("issuer", "serial", "tbs_sha256"), ("not_after",)),
    Kind.REVOKED: (("issuer", "not_after", "reason", "serial"), ()),
    Kind.ISSUER_CERTIFIED: (
        ("certificate_sha256", "id", "imported", "issuer", "not_after", "serial", "tbs_sha256"),
        ("not_before",),
    ),
    Kind.REVOCATION_RESTORED: (("issuer", "not_after", "reason", "revoked_at", "serial"), ()),
    Kind.AUTHORITY_RESTORED: (("from_size", "to_size"), ()),
    Kind.ISSUER_REVOKED: (("issuer", "not_after", "reason", "serial"), ()),
    Kind.CRL_PUBLISHED: (
        ("base", "delta_sha256", "issuer", "next_update", "number", "scope", "sha256", "this_update", "through"),
        (),
    ),
}
_TEXTS: Final = {
    "certificate_sha256": _HASH,
    "id": _ID,
    "issuer": _ID,
    "scope": _SCOPE,
    "serial": _HEX32,
    "sha256": _HASH,
    "spki_sha256": _HASH,
    "tbs_sha256": _HASH,
}
_NUMBERS: Final = frozenset({"from_size", "number", "reason", "through", "to_size"})
_TIMES: Final = frozenset({"next_update", "not_after", "not_before", "revoked_at", "this_update"})
#: The end of the year 9999, which no certificate outlives (RFC 5280 section 4.1.2.5).
_LAST: Final = 253402300799


@dataclass(frozen=True, slots=True)
class Fact:
    """What one entry says."""

    index: int
    kind: Kind
    #: When the entry says that it was made, in seconds since the epoch.
    time: float
    said: dict[str, Any]

    def line(self) -> bytes:
        """As it stands in a journal."""
        return orjson.dumps([self.index, self.kind, self.time, self.said]) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """The fact in a line of a journal.

        Raises:
            LedgerError: it is none.
        """
        try:
            index, kind, time, said = orjson.loads(line)
            return cls(int(index), Kind(kind), float(time), dict(said))
        except (ValueError, TypeError) as error:
            raise LedgerError("A line of the journal is malformed.") from error


def fact_of(index: int, entry: bytes) -> tuple[float, Fact | None]:
    """The time of an entry, and the fact in it; None when later entries do not depend on it.

    Raises:
        FindingError: it is not in canonical form, of no known kind or version, or lacks what its kind has.
    """
    kind, members = _members(index, entry)
    time = _seconds(index, kind, members["time"])
    said = _said(index, kind, members["payload"])
    if not said:
        return time, None
    if "names" in said:
        # They are only compared: there may be many, and this is kept.
        said["names"] = sha256(orjson.dumps(said["names"])).hexdigest()
    if kind is Kind.ISSUED:
        _check_issued(index, members, said)
        # The intent has what is compared: nothing later asks for this.
        del said["not_before"]
    return time, Fact(index, kind, time, said)


def _members(index: int, entry: bytes) -> tuple[Kind, dict[str, Any]]:
    """The kind and the members of an entry whose outer form is right."""
    try:
        members = decode_entry(entry)
    except LedgerError as error:
        raise wrong_entry(index, f"is not in canonical form: {error.message.rstrip('.')}") from error
    if members["v"] != VERSION:
        raise wrong_entry(index, "has a version that this program does not know")
    try:
        kind = Kind(members["kind"])
    except ValueError as error:
        raise wrong_entry(index, "is of a kind that this program does not know") from error
    if not all(isinstance(members[name], str) for name in ("actor", "correlation", "time")):
        raise wrong_entry(index, f"({kind}) is malformed")
    return kind, members


def _said(index: int, kind: Kind, payload: object) -> dict[str, Any]:
    """What is kept of a payload, each member well-formed; empty for kinds that nothing depends on."""
    if not isinstance(payload, dict):
        raise wrong_entry(index, f"({kind}) is malformed: its payload is no object")
    needed, optional = _MEMBERS.get(kind, ((), ()))
    for name in needed:
        if name not in payload:
            raise wrong_entry(index, f"({kind}) lacks the member {name}")
    said = {name: payload[name] for name in (*needed, *optional) if name in payload}
    for name, value in said.items():
        if not _is_well_formed(name, value):
            raise wrong_entry(index, f"({kind}) has a malformed member {name}")
    return said


def _check_issued(index: int, members: dict[str, Any], said: dict[str, Any]) -> None:
    """What makes the entry one that can be rebuilt from the certificate (docs/ledger.md)."""
    if (members["actor"], members["correlation"]) != (f"issuer:{said['issuer']}", said["serial"]):
        raise wrong_entry(index, f"({Kind.ISSUED}) does not have the actor and the correlation that follow from it")
    if _seconds(index, Kind.ISSUED, members["time"]) != said["not_before"]:
        raise wrong_entry(index, f"({Kind.ISSUED}) does not have the begin of the validity for its time")
    if said["not_before"] >= said["not_after"]:
        raise wrong_entry(index, f"({Kind.ISSUED}, serial {said['serial']}) ends before it begins")


def _is_well_formed(name: str, value: object) -> bool:
    if name in _TEXTS:
        return isinstance(value, str) and _TEXTS[name].fullmatch(value) is not None
    if name in _NUMBERS:
        return type(value) is int
    if name in _TIMES:
        return type(value) is int and 0 <= value <= _LAST
    return _OTHERS[name](value)


_OTHERS: Final[dict[str, Callable[[Any], bool]]] = {
    "base": lambda value: value is None or type(value) is int,
    "delta_sha256": lambda value: value is None or (isinstance(value, str) and _HASH.fullmatch(value) is not None),
    "imported": lambda value: isinstance(value, bool),
    "names": lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
}


def _seconds(index: int, kind: Kind, text: str) -> float:
    """The time of an entry as seconds since the epoch."""
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise wrong_entry(index, f"({kind}) has a malformed time") from error
