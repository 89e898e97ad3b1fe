"""From when the time is counted for which an order is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from privyseal_acme.flow.retention import kept_from
from privyseal_ca.sections import RetentionSettings

EXPIRES, NOW = 1000, 50_000
moments = st.none() | st.integers(0, 10**9)


@pytest.mark.parametrize("state", ["open", "invalid"])
def test_what_has_no_certificate_counts_from_its_expiry(state: str) -> None:
    assert kept_from(state, expires=EXPIRES, certificate_ends=None, replaced_ends=NOW, now=NOW) == EXPIRES


@pytest.mark.parametrize(
    ("certificate_ends", "replaced_ends", "expected"),
    [(None, None, 1000), (999, None, 1000), (1001, None, 1001), (1001, 1002, 1002), (1003, 1002, 1003), (5, 6, 1000)],
)
def test_a_certificate_counts_until_it_and_what_it_replaced_have_ended(
    certificate_ends: int | None, replaced_ends: int | None, expected: int
) -> None:
    found = kept_from("valid", expires=EXPIRES, certificate_ends=certificate_ends, replaced_ends=replaced_ends, now=NOW)
    assert found == expected


@given(certificate_ends=moments, replaced_ends=moments, expires=st.integers(0, 10**9))
def test_what_is_worked_on_has_not_ended(certificate_ends: int | None, replaced_ends: int | None, expires: int) -> None:
    found = kept_from(
        "processing", expires=expires, certificate_ends=certificate_ends, replaced_ends=replaced_ends, now=NOW
    )
    assert found == NOW


@given(state=st.sampled_from(["open", "invalid", "valid"]), certificate_ends=moments, replaced_ends=moments)
def test_nothing_counts_from_before_its_expiry(
    state: str, certificate_ends: int | None, replaced_ends: int | None
) -> None:
    found = kept_from(state, expires=EXPIRES, certificate_ends=certificate_ends, replaced_ends=replaced_ends, now=NOW)
    assert found >= EXPIRES


@pytest.mark.parametrize("name", ["orders", "authorizations"])
@pytest.mark.parametrize("value", [-1, 0, 86_399, 3650 * 86_400 + 1])
def test_times_have_bounds(name: str, value: int) -> None:
    with pytest.raises(ValidationError):
        RetentionSettings(**{name: value})
