"""What a ledger entry is: canonical JSON (RFC 8785) with version, kind, time, actor, correlation id and payload.

``docs/ledger.md`` specifies every kind. Payloads hold only text, integers, booleans, lists and objects with ASCII member
names: for those the encoding here is byte for byte that of RFC 8785, which a property test holds it to. Fractions, which
RFC 8785 writes as ECMAScript does, are refused.
"""

import os
import pwd
from enum import StrEnum
from typing import Any

import orjson

from privyseal_ca.clock import rfc3339_milliseconds
from privyseal_ca.errors import LedgerError

VERSION = 1
#: An entry bundle gives each entry a length of 16 bits (C2SP tlog-tiles).
MAX_ENTRY = 65535
_MAX_INTEGER = 2**53 - 1

Payload = dict[str, Any]


class Kind(StrEnum):
    """What an entry records."""

    CEREMONY_STARTED = "ceremony.started"
    CEREMONY_FINISHED = "ceremony.finished"
    TOKEN_INITIALISED = "token.initialised"  # noqa: S105 (a PKCS#11 token, not a secret)
    KEY_GENERATED = "key.generated"
    CSR_WRITTEN = "issuer.csr"
    ISSUER_CERTIFIED = "issuer.certified"
    ISSUER_ACTIVATED = "issuer.activated"
    ISSUER_RETIRED = "issuer.retired"
    ISSUER_REVOKED = "issuer.revoked"
    SERVICE_STARTED = "service.started"
    SERVICE_STOPPED = "service.stopped"
    EAB_CREATED = "eab.created"
    EAB_REVOKED = "eab.revoked"
    EAB_DESCRIBED = "eab.described"
    ACCOUNT_CREATED = "account.created"
    ACCOUNT_UPDATED = "account.updated"
    ACCOUNT_KEY_CHANGED = "account.key-changed"
    ACCOUNT_DEACTIVATED = "account.deactivated"
    ACCOUNT_DESCRIBED = "account.described"
    AUTHORIZATION_VALIDATED = "authorization.validated"
    AUTHORIZATION_FAILED = "authorization.failed"
    AUTHORIZATION_DEACTIVATED = "authorization.deactivated"
    INTENT = "certificate.intent"
    ISSUED = "certificate.issued"
    ABANDONED = "certificate.abandoned"
    REVOKED = "certificate.revoked"
    KEY_BLOCKED = "key.blocked"
    REVOCATION_STARTED = "revocation.started"
    REVOCATION_FINISHED = "revocation.finished"
    CRL_PUBLISHED = "crl.published"
    SETTINGS_CHANGED = "settings.changed"
    POLICY_CHANGED = "policy.changed"
    PROFILE_CHANGED = "profile.changed"
    BACKUP_MADE = "backup.made"
    AUTHORITY_RESTORED = "authority.restored"
    REVOCATION_RESTORED = "revocation.restored"
    LINEAGE_RETIRED = "lineage.retired"
    LINEAGE_RESUMED = "lineage.resumed"


SERVICE_ACTOR = "service"


def operator_actor() -> str:
    """The actor of a command: the operating system's name for whoever runs it."""
    uid = os.getuid()
    try:
        return f"operator:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"operator:uid-{uid}"


def encode_entry(kind: Kind, *, time: float, actor: str, correlation: str, payload: Payload) -> bytes:
    """The bytes of an entry, which are what the tree hashes.

    Args:
        time: seconds since the epoch.
        actor: who did it: ``account:ID``, ``operator:NAME``, ``issuer:ID`` or ``service``.
        correlation: the id that the log line of the request carries too.

    Raises:
        LedgerError: the entry would be larger than 65,535 bytes or holds what canonical JSON has no single form for.
    """
    return encode_members(kind, rfc3339_milliseconds(time), actor, correlation, payload)


def encode_members(kind: Kind, time: str, actor: str, correlation: str, payload: Payload) -> bytes:
    """As :func:`encode_entry`, with the time as the RFC 3339 text that stands in the entry."""
    _check(payload)
    encoded = orjson.dumps(
        {
            "v": VERSION,
            "kind": kind,
            "time": time,
            "actor": actor,
            "correlation": correlation,
            "payload": payload,
        },
        option=orjson.OPT_SORT_KEYS,
    )
    if len(encoded) > MAX_ENTRY:
        raise LedgerError(f"A ledger entry of kind {kind} would have {len(encoded)} bytes; {MAX_ENTRY} is the limit.")
    return encoded


def decode_entry(entry: bytes) -> dict[str, Any]:
    """The members of an entry.

    Raises:
        LedgerError: the bytes are not the canonical form of an entry.
    """
    try:
        members = orjson.loads(entry)
        canonical = orjson.dumps(members, option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, TypeError) as error:
        raise LedgerError(f"A ledger entry is not JSON: {error}.") from error
    if canonical != entry or not isinstance(members, dict) or members.keys() != _MEMBERS:
        raise LedgerError("A ledger entry is not in canonical form.")
    _check(members)
    return members


_MEMBERS = {"v", "kind", "time", "actor", "correlation", "payload"}


def _check(value: object) -> None:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return
    if kind is int:
        if not -_MAX_INTEGER <= value <= _MAX_INTEGER:  # type: ignore[operator]
            raise LedgerError("A ledger entry cannot hold an integer beyond 2^53 - 1.")
    elif kind is dict:
        for name, member in value.items():  # type: ignore[attr-defined]
            if type(name) is not str or not name.isascii():
                raise LedgerError("A ledger entry's member names are ASCII text.")
            _check(member)
    elif kind is list or kind is tuple:
        for item in value:  # type: ignore[attr-defined]
            _check(item)
    else:
        raise LedgerError(f"A ledger entry cannot hold a {kind.__name__}.")
