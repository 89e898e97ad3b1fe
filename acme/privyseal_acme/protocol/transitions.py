"""The states of RFC 8555 section 7.1.6 as pure functions of what is stored and the time."""

from collections.abc import Sequence
from typing import Literal

OrderStatus = Literal["pending", "ready", "processing", "valid", "invalid"]
AuthorizationStatus = Literal["pending", "valid", "invalid", "deactivated", "expired"]
ChallengeStatus = Literal["pending", "processing", "valid", "invalid"]

OrderState = Literal["open", "processing", "valid", "invalid"]
AuthorizationState = Literal["pending", "processing", "valid", "invalid", "deactivated"]


def authorization_status(state: AuthorizationState, expires: int, now: float) -> AuthorizationStatus:
    """An authorization whose challenge is being validated is still ``pending``; time ends pending and valid ones.

    A pending authorization that ran out is ``invalid`` (it can never become valid), a valid one ``expired``.
    """
    if state in {"pending", "processing"}:
        return "pending" if now < expires else "invalid"
    if state == "valid" and now >= expires:
        return "expired"
    return state  # type: ignore[return-value]


def challenge_status(authorization: AuthorizationState, *, attempted: bool, validated: bool) -> ChallengeStatus:
    """Only the attempted challenge of an authorization ever leaves ``pending``.

    Deactivation ends the authorization, not what its challenge has come to: one that was valid stays so, one that was being
    validated can no longer become so.
    """
    if not attempted or authorization == "pending":
        return "pending"
    if authorization == "deactivated":
        return "valid" if validated else "invalid"
    return authorization


def order_status(
    state: OrderState, expires: int, authorizations: Sequence[AuthorizationStatus], now: float
) -> OrderStatus:
    """``ready`` when every authorization is valid; ``invalid`` when one can no longer become so, or time is up."""
    if state != "open":
        return state
    if now >= expires:
        return "invalid"
    if all(status == "valid" for status in authorizations):
        return "ready"
    if any(status not in {"pending", "valid"} for status in authorizations):
        return "invalid"
    return "pending"
