"""The objects of RFC 8555 section 7.1 as clients see them, from rows and the time."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from privyseal_acme.protocol.encoding import encode
from privyseal_acme.protocol.transitions import (
    AuthorizationStatus,
    authorization_status,
    challenge_status,
    order_status,
)
from privyseal_acme.protocol.urls import Urls
from privyseal_acme.store.accounts import AccountRow
from privyseal_acme.store.authorizations import AuthorizationRow
from privyseal_acme.store.orders import OrderRow
from privyseal_ca.clock import rfc3339

#: The challenge types that can prove an identifier of each type (RFC 8738 section 7: no DNS challenges for addresses).
CHALLENGES = {
    "dns": ("http-01", "dns-01", "tls-alpn-01", "dns-account-01"),
    "ip": ("http-01", "tls-alpn-01"),
}
_WILDCARD_CHALLENGES = ("dns-01", "dns-account-01")


def challenge_token(seed: bytes, challenge_type: str) -> str:
    """The token of one challenge: 128 bits that nobody can guess who does not know the seed (section 8)."""
    return encode(hashlib.sha256(seed + challenge_type.encode()).digest()[:16])


def offered_challenges(row: AuthorizationRow, enabled: Iterable[str]) -> list[str]:
    """The challenge types of an authorization; the attempted one stays even when it was disabled meanwhile."""
    possible = _WILDCARD_CHALLENGES if row.wildcard else CHALLENGES.get(row.identifier_type, ())
    allowed = set(enabled)
    return [name for name in possible if name in allowed or name == row.attempted]


def account_object(row: AccountRow, urls: Urls) -> dict[str, Any]:
    """An account (section 7.1.2)."""
    document: dict[str, Any] = {
        "status": row.status,
        "contact": orjson.loads(row.contact),
        "orders": urls.orders(row.id),
    }
    if row.terms_agreed:
        document["termsOfServiceAgreed"] = True
    if row.eab is not None:
        document["externalAccountBinding"] = orjson.loads(row.eab)
    return document


def order_object(row: OrderRow, statuses: Sequence[AuthorizationStatus], urls: Urls, now: float) -> dict[str, Any]:
    """An order (section 7.1.3)."""
    status = order_status(row.state, row.expires, statuses, now)  # type: ignore[arg-type]
    document: dict[str, Any] = {
        "status": status,
        "expires": rfc3339(row.expires),
        "identifiers": [{"type": kind, "value": value} for kind, value in orjson.loads(row.identifiers)],
        "authorizations": [urls.authorization(item) for item in orjson.loads(row.authorizations)],
        "finalize": urls.finalize(row.id),
        "profile": row.profile,
    }
    if row.not_before is not None:
        document["notBefore"] = rfc3339(row.not_before)
    if row.not_after is not None:
        document["notAfter"] = rfc3339(row.not_after)
    if row.replaces is not None:
        document["replaces"] = row.replaces
    if status == "valid" and row.serial is not None:
        document["certificate"] = urls.certificate(row.serial)
    if row.error is not None:
        document["error"] = orjson.loads(row.error)
    return document


def authorization_object(row: AuthorizationRow, enabled: Iterable[str], urls: Urls, now: float) -> dict[str, Any]:
    """An authorization (section 7.1.4). A valid one shows only the challenge that made it so."""
    status = authorization_status(row.state, row.expires, now)  # type: ignore[arg-type]
    offered = offered_challenges(row, enabled)
    if row.state in {"valid", "invalid"} and row.attempted is not None:
        offered = [row.attempted]
    document: dict[str, Any] = {
        "identifier": {"type": row.identifier_type, "value": row.value},
        "status": status,
        "expires": rfc3339(row.expires),
        "challenges": [challenge_object(row, name, urls) for name in offered],
    }
    if row.wildcard:
        document["wildcard"] = True
    return document


def challenge_object(row: AuthorizationRow, challenge_type: str, urls: Urls) -> dict[str, Any]:
    """A challenge (section 7.1.5)."""
    attempted = row.attempted == challenge_type
    document: dict[str, Any] = {
        "type": challenge_type,
        "url": urls.challenge(row.id, challenge_type),
        "status": challenge_status(
            row.state,  # type: ignore[arg-type]
            attempted=attempted,
            validated=row.validated is not None,
        ),
        "token": challenge_token(row.seed, challenge_type),
    }
    if attempted and row.validated is not None:
        document["validated"] = rfc3339(row.validated)
    if attempted and row.error is not None:
        document["error"] = orjson.loads(row.error)
    return document
