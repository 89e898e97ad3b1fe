"""The states of RFC 8555 section 7.1.6: the table, and that what has ended stays ended."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privyseal_acme.protocol.transitions import (
    AuthorizationState,
    AuthorizationStatus,
    OrderState,
    authorization_status,
    challenge_status,
    order_status,
)

EXPIRES = 1000
BEFORE, AT, AFTER = 999, 1000, 1001
AUTHORIZATION_STATES: tuple[AuthorizationState, ...] = ("pending", "processing", "valid", "invalid", "deactivated")
AUTHORIZATION_STATUSES: tuple[AuthorizationStatus, ...] = ("pending", "valid", "invalid", "deactivated", "expired")


@pytest.mark.parametrize(
    ("state", "in_time", "too_late"),
    [
        ("pending", "pending", "invalid"),
        ("processing", "pending", "invalid"),
        ("valid", "valid", "expired"),
        ("invalid", "invalid", "invalid"),
        ("deactivated", "deactivated", "deactivated"),
    ],
)
def test_authorizations(state: AuthorizationState, in_time: AuthorizationStatus, too_late: AuthorizationStatus) -> None:
    assert authorization_status(state, EXPIRES, BEFORE) == in_time
    assert authorization_status(state, EXPIRES, AT) == too_late
    assert authorization_status(state, EXPIRES, AFTER) == too_late


@pytest.mark.parametrize(
    ("state", "validated", "attempted"),
    [
        ("pending", False, "pending"),
        ("processing", False, "processing"),
        ("valid", True, "valid"),
        ("invalid", False, "invalid"),
        ("deactivated", True, "valid"),
        ("deactivated", False, "invalid"),
    ],
)
def test_challenges(state: AuthorizationState, validated: bool, attempted: str) -> None:
    assert challenge_status(state, attempted=True, validated=validated) == attempted
    assert challenge_status(state, attempted=False, validated=validated) == "pending"


_CHALLENGE_STEPS = {"pending": {"processing"}, "processing": {"valid", "invalid"}}
_AUTHORIZATION_STEPS = {"pending": {"valid", "invalid", "deactivated"}, "valid": {"expired", "deactivated"}}


class Model:
    """An authorization as the flows change it: each change says what state it expects, and looks at the time."""

    def __init__(self) -> None:
        self.state: AuthorizationState = "pending"
        self.expires, self.attempted, self.validated = EXPIRES, False, False

    def change(self, name: str, now: int) -> None:
        in_time = now < self.expires
        match name:
            case "respond" if self.state == "pending" and in_time:
                self.state, self.attempted = "processing", True
            case "succeed" if self.state == "processing":
                self.state = "valid" if in_time else "invalid"
                if in_time:
                    self.validated, self.expires = True, now + EXPIRES
            case "fail" if self.state == "processing":
                self.state = "invalid"
            case "give up" if self.state in {"pending", "processing", "valid"} and in_time:
                self.state = "deactivated"

    def statuses(self, now: int) -> tuple[str, str]:
        """Of the authorization and of the challenge."""
        return (
            authorization_status(self.state, self.expires, now),
            challenge_status(self.state, attempted=self.attempted, validated=self.validated),
        )


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.sampled_from(["respond", "succeed", "fail", "give up", "wait"]), st.integers(0, 700)), max_size=8
    )
)
def test_every_step_is_one_of_the_rfc(changes: list[tuple[str, int]]) -> None:
    """Along any path and any passing of time: no other steps, and so no way back from an end."""
    model, now = Model(), 0
    before = model.statuses(now)
    for name, pause in changes:
        now += pause
        # First time passes, then something happens.
        for change in ("wait", name):
            model.change(change, now)
            after = model.statuses(now)
            for old, new, steps in zip(before, after, (_AUTHORIZATION_STEPS, _CHALLENGE_STEPS), strict=True):
                assert new == old or new in steps.get(old, set()), (changes, before, after)
            before = after


@given(
    st.sampled_from(["open", "processing", "valid", "invalid"]),
    st.lists(st.sampled_from(AUTHORIZATION_STATUSES), max_size=4),
)
def test_orders(state: OrderState, statuses: list[AuthorizationStatus]) -> None:
    status = order_status(state, EXPIRES, statuses, BEFORE)
    if state != "open":
        assert status == state
        assert order_status(state, EXPIRES, statuses, AFTER) == state
        return
    assert order_status(state, EXPIRES, statuses, AT) == "invalid"
    if all(item == "valid" for item in statuses):
        assert status == "ready"
    elif {"invalid", "deactivated", "expired"} & set(statuses):
        assert status == "invalid"
    else:
        assert status == "pending"


def test_an_open_order_never_leaves_invalid() -> None:
    """Authorizations that ended do not come back, and neither does time: an order that they made invalid stays so."""
    ended: tuple[AuthorizationStatus, ...] = ("invalid", "deactivated", "expired")
    for bad, other, now in product(ended, AUTHORIZATION_STATUSES, (BEFORE, AT, AFTER)):
        assert order_status("open", EXPIRES, [bad, other], now) == "invalid"


def test_the_order_of_authorizations_does_not_matter() -> None:
    for first, second in product(AUTHORIZATION_STATUSES, repeat=2):
        assert order_status("open", EXPIRES, [first, second], BEFORE) == order_status(
            "open", EXPIRES, [second, first], BEFORE
        )
