"""An entry as an event of the Open Cybersecurity Schema Framework, version 1.5.0.

Everything that the schema has no attribute for stands in ``unmapped``, the whole payload included, so nothing is lost.
``metadata.uid`` is the log's origin and the index of the entry: who gets an event twice sees it there.
"""

from datetime import datetime
from typing import Any, Final

from privyseal_ca.export.meaning import (
    ACCOUNT_CHANGE,
    APPLICATION_LIFECYCLE,
    OTHER,
    Meaning,
    meaning_of,
    severity_of,
)
from privyseal_ca.export.record import Record
from privyseal_ca.ledger.entries import Kind

OCSF_VERSION: Final = "1.5.0"
PRODUCT: Final = "Privy Seal"

_SUCCESS, _FAILURE = 1, 2
_POLICY = 5
#: user.type_id: an administrator, and what the schema has no word for.
_ADMIN = 2
#: observable.type_id by what stands before the colon of a name, and that of anything that identifies.
_NAME_TYPES: Final = {
    "dns": (1, "Hostname"),
    "ip": (2, "IP Address"),
    "uri": (6, "URL String"),
    "email": (5, "Email Address"),
}
_HASH, _SERIAL = (8, "Hash"), (37, "Serial Number")
_MAX_OBSERVABLES: Final = 100


def ocsf_event(record: Record, *, origin: str, version: str) -> dict[str, Any]:
    """The event of an entry of the log ``origin``, exported by ``version`` of this program."""
    members = record.members
    kind, payload = members["kind"], members["payload"]
    meaning = meaning_of(kind)
    event_class, activity = meaning.event_class, meaning.activity
    activity_name = meaning.activity_name or event_class.activities[activity]
    severity = severity_of(kind, payload)
    failed = meaning.failed
    product = {"name": PRODUCT, "vendor_name": PRODUCT, "version": version}
    event: dict[str, Any] = {
        "activity_id": activity,
        "activity_name": activity_name,
        "category_uid": event_class.category_uid,
        "category_name": event_class.category,
        "class_uid": event_class.uid,
        "class_name": event_class.name,
        "type_uid": event_class.uid * 100 + activity,
        "type_name": f"{event_class.name}: {'Other' if activity == OTHER else activity_name}",
        "severity_id": int(severity),
        "severity": severity.name.capitalize(),
        "status_id": _FAILURE if failed else _SUCCESS,
        "status": "Failure" if failed else "Success",
        "time": milliseconds(members["time"]),
        "timezone_offset": 0,
        "message": f"{kind}: {_title(meaning, payload)}",
        "metadata": {
            "version": OCSF_VERSION,
            "product": product,
            "uid": f"{origin}#{record.index}",
            "sequence": record.index,
            "event_code": kind,
            "correlation_uid": members["correlation"],
            "log_name": "ledger",
            "log_provider": origin,
            "log_version": str(members["v"]),
            "original_time": members["time"],
        },
        "unmapped": {"actor": members["actor"], "leaf_hash": record.leaf_hash.hex(), "payload": payload},
    }
    if failed:
        event["status_detail"] = str(payload.get("problem") or payload.get("reason") or "")
    if observables := _observables(payload):
        event["observables"] = observables
    return event | _subject(meaning, kind, members, product)


def milliseconds(text: str) -> int:
    """An entry's time as milliseconds since the epoch."""
    moment = datetime.fromisoformat(text)
    return int(moment.timestamp()) * 1000 + moment.microsecond // 1000


def _subject(meaning: Meaning, kind: str, members: dict[str, Any], product: dict[str, str]) -> dict[str, Any]:
    """What the class of the event says about who did something to what."""
    payload = members["payload"]
    if meaning.event_class is APPLICATION_LIFECYCLE:
        return {"app": product}
    actor = _actor(members["actor"])
    if meaning.event_class is ACCOUNT_CHANGE:
        # An account acts for itself, unless its payload names it.
        account = str(payload.get("account") or members["actor"].removeprefix("account:"))
        user = {"uid": account, "type_id": OTHER, "type": meaning.noun}
        return {"actor": actor, "user": user}
    entity: dict[str, Any] = {"type_id": OTHER, "type": meaning.noun, "name": _title(meaning, payload)}
    if uid := _text(payload, meaning.uid):
        entity["uid"] = uid
    if kind == Kind.POLICY_CHANGED:
        entity |= {"type_id": _POLICY, "type": "Policy", "policy": {"name": entity["name"]}}
        if uid:
            entity["policy"]["uid"] = uid
    return {"actor": actor, "entity": entity}


def _actor(actor: str) -> dict[str, Any]:
    who, _, name = actor.partition(":")
    match who:
        case "operator":
            return {"user": {"name": name, "type_id": _ADMIN, "type": "Admin"}}
        case "account":
            return {"user": {"uid": name, "type_id": OTHER, "type": "ACME account"}}
        case "service":
            return {"app_name": PRODUCT}
        case "issuer":
            return {"app_name": PRODUCT, "app_uid": name}
        case _:
            return {"user": {"uid": actor, "type_id": OTHER, "type": "Other"}}


def _title(meaning: Meaning, payload: dict[str, Any]) -> str:
    return _text(payload, meaning.label) or _text(payload, meaning.uid) or meaning.noun


def _text(payload: dict[str, Any], member: str | None) -> str | None:
    value = None if member is None else payload.get(member)
    return None if value is None else str(value)


def _observables(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """What somebody would search for: names, serial numbers, hashes. At most a hundred."""
    found: list[dict[str, Any]] = []

    def add(member: str, kind: tuple[int, str], value: str) -> None:
        if len(found) < _MAX_OBSERVABLES:
            found.append({"name": f"unmapped.payload.{member}", "type_id": kind[0], "type": kind[1], "value": value})

    if isinstance(serial := payload.get("serial"), str):
        add("serial", _SERIAL, serial)
    for member in ("certificate_sha256", "spki_sha256"):
        if isinstance(value := payload.get(member), str):
            add(member, _HASH, value)
    names = payload.get("names")
    for name in names if isinstance(names, list) else ():
        prefix, _, value = str(name).partition(":")
        if prefix in _NAME_TYPES and value:
            add("names", _NAME_TYPES[prefix], value)
    return found
