"""What each kind of entry means to those who watch for security: its OCSF class and activity, its subject, its severity.

One table for every format. ``docs/export.md`` shows it, and a test holds the page to it.
"""

from enum import IntEnum
from typing import Final, NamedTuple

from privyseal_ca.ledger.entries import Kind, Payload

#: CRLReason keyCompromise (RFC 5280 section 5.3.1).
_KEY_COMPROMISE: Final = 1


class Severity(IntEnum):
    """OCSF's severity_id."""

    INFORMATIONAL = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4
    CRITICAL = 5


class EventClass(NamedTuple):
    """A class of OCSF events."""

    uid: int
    name: str
    category_uid: int
    category: str
    #: The captions of the activities that are used here, by activity_id.
    activities: dict[int, str]


OTHER: Final = 99
ACCOUNT_CHANGE: Final = EventClass(
    3001, "Account Change", 3, "Identity & Access Management", {1: "Create", 5: "Disable"}
)
ENTITY_MANAGEMENT: Final = EventClass(
    3004,
    "Entity Management",
    3,
    "Identity & Access Management",
    {1: "Create", 3: "Update", 6: "Enroll", 9: "Disable", 10: "Activate", 11: "Deactivate"},
)
APPLICATION_LIFECYCLE: Final = EventClass(
    6002, "Application Lifecycle", 6, "Application Activity", {3: "Start", 4: "Stop"}
)


class Meaning(NamedTuple):
    """A kind of entry in those terms."""

    event_class: EventClass
    #: An activity_id of the class.
    activity: int
    #: What the entry is about.
    noun: str
    #: The member of the payload that identifies it, and the one that people call it by.
    uid: str | None = None
    label: str | None = None
    severity: Severity = Severity.INFORMATIONAL
    #: Whether what was tried did not succeed.
    failed: bool = False
    #: What the activity is called where the class has no name for it.
    activity_name: str | None = None


def _entity(
    activity: int,
    noun: str,
    uid: str | None = None,
    label: str | None = None,
    severity: Severity = Severity.INFORMATIONAL,
    *,
    failed: bool = False,
    called: str | None = None,
) -> Meaning:
    return Meaning(ENTITY_MANAGEMENT, activity, noun, uid, label, severity, failed, called)


def _account(activity: int, severity: Severity = Severity.LOW, *, called: str | None = None) -> Meaning:
    return Meaning(ACCOUNT_CHANGE, activity, "ACME account", severity=severity, activity_name=called)


_CREATE, _UPDATE, _ENROLL, _DISABLE, _ACTIVATE, _DEACTIVATE = 1, 3, 6, 9, 10, 11
_LOW, _MEDIUM, _HIGH, _CRITICAL = Severity.LOW, Severity.MEDIUM, Severity.HIGH, Severity.CRITICAL

MEANINGS: Final[dict[str, Meaning]] = {
    Kind.CEREMONY_STARTED: _entity(_CREATE, "Certificate authority", None, "organization", _HIGH),
    Kind.CEREMONY_FINISHED: _entity(_ACTIVATE, "Certificate authority", "issuer", None, _HIGH),
    Kind.TOKEN_INITIALISED: _entity(_CREATE, "PKCS#11 token", None, "label", _HIGH),
    Kind.KEY_GENERATED: _entity(_CREATE, "Key in a token", "spki_sha256", "label", _MEDIUM),
    Kind.CSR_WRITTEN: _entity(_CREATE, "Request for a CA certificate", "id", "name", _MEDIUM),
    Kind.ISSUER_CERTIFIED: _entity(_ENROLL, "Issuing CA", "id", "subject", _HIGH),
    Kind.ISSUER_ACTIVATED: _entity(_ACTIVATE, "Issuing CA", "id", "name", _HIGH),
    Kind.ISSUER_RETIRED: _entity(_DEACTIVATE, "Issuing CA", "id", "name", _HIGH),
    Kind.ISSUER_REVOKED: _entity(_DISABLE, "Issuing CA", "id", "name", _CRITICAL),
    Kind.SERVICE_STARTED: Meaning(APPLICATION_LIFECYCLE, 3, "Service"),
    Kind.SERVICE_STOPPED: Meaning(APPLICATION_LIFECYCLE, 4, "Service", severity=_LOW),
    Kind.EAB_CREATED: _entity(_CREATE, "External account key", "kid", "label", _LOW),
    Kind.EAB_REVOKED: _entity(_DEACTIVATE, "External account key", "kid", "label", _LOW),
    Kind.EAB_DESCRIBED: _entity(_UPDATE, "External account key", "kid", None, _LOW),
    Kind.LINEAGE_RETIRED: _entity(_DEACTIVATE, "Workload", "lineage", None, _LOW),
    Kind.LINEAGE_RESUMED: _entity(_ACTIVATE, "Workload", "lineage", None, _LOW),
    Kind.ACCOUNT_CREATED: _account(1),
    Kind.ACCOUNT_UPDATED: _account(OTHER, Severity.INFORMATIONAL, called="Update"),
    Kind.ACCOUNT_KEY_CHANGED: _account(OTHER, called="Key Change"),
    Kind.ACCOUNT_DEACTIVATED: _account(5),
    Kind.ACCOUNT_DESCRIBED: _account(OTHER, Severity.INFORMATIONAL, called="Describe"),
    Kind.AUTHORIZATION_VALIDATED: _entity(_ACTIVATE, "ACME authorization", "authorization", "identifier"),
    Kind.AUTHORIZATION_FAILED: _entity(
        _ACTIVATE, "ACME authorization", "authorization", "identifier", _LOW, failed=True
    ),
    Kind.AUTHORIZATION_DEACTIVATED: _entity(_DEACTIVATE, "ACME authorization", "authorization", "identifier"),
    Kind.INTENT: _entity(OTHER, "Certificate", "serial", called="Intent"),
    Kind.ISSUED: _entity(_ENROLL, "Certificate", "serial"),
    Kind.ABANDONED: _entity(_ENROLL, "Certificate", "serial", None, _MEDIUM, failed=True),
    Kind.REVOKED: _entity(_DISABLE, "Certificate", "serial", None, _LOW),
    Kind.KEY_BLOCKED: _entity(_DISABLE, "Public key", "spki_sha256", None, _HIGH),
    Kind.REVOCATION_STARTED: _entity(_CREATE, "Revocation of many certificates", "job", None, _HIGH),
    Kind.REVOCATION_FINISHED: _entity(OTHER, "Revocation of many certificates", "job", None, _MEDIUM, called="Finish"),
    Kind.REVOCATION_RESTORED: _entity(OTHER, "Revocation of a certificate", "serial", None, _HIGH, called="Restore"),
    Kind.CRL_PUBLISHED: _entity(_UPDATE, "Certificate revocation list", "sha256"),
    Kind.SETTINGS_CHANGED: _entity(_UPDATE, "Settings", "sha256", None, _MEDIUM),
    Kind.POLICY_CHANGED: _entity(_UPDATE, "Policy", "sha256", "name", _MEDIUM),
    Kind.PROFILE_CHANGED: _entity(_UPDATE, "Certificate profile", "sha256", "name", _MEDIUM),
    Kind.BACKUP_MADE: _entity(_CREATE, "Backup", None, None, _LOW),
    Kind.AUTHORITY_RESTORED: _entity(OTHER, "Certificate authority", None, None, _CRITICAL, called="Restore"),
}
#: That of a kind which a newer version of this program wrote.
UNKNOWN: Final = _entity(OTHER, "Ledger entry", called="Unknown")


def meaning_of(kind: str) -> Meaning:
    """What entries of ``kind`` mean."""
    return MEANINGS.get(kind, UNKNOWN)


def severity_of(kind: str, payload: Payload) -> Severity:
    """How much an entry matters: as its kind does, and high where a key was compromised."""
    severity = meaning_of(kind).severity
    # A canary is revoked as soon as it exists, without a reason: that is not news.
    if kind in {Kind.REVOKED, Kind.REVOCATION_STARTED} and payload.get("reason") == _KEY_COMPROMISE:
        return max(severity, Severity.HIGH)
    if kind == Kind.ACCOUNT_DEACTIVATED and "reason" in payload:
        return max(severity, Severity.HIGH)
    return severity
