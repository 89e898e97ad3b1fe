"""Payloads: strict types, unknown members ignored, and problems that repeat nothing."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privyseal_acme.protocol.messages import (
    AccountUpdate,
    AuthorizationUpdate,
    ChallengeResponse,
    Finalize,
    KeyChange,
    Message,
    NewAccount,
    NewAuthz,
    NewOrder,
    RevokeCert,
    parse_message,
)
from privyseal_acme.protocol.problems import Problem

KINDS: list[type[Message]] = [
    NewAccount, AccountUpdate, KeyChange, NewOrder, NewAuthz, AuthorizationUpdate, ChallengeResponse, Finalize, RevokeCert,
]  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_MEMBERS = sorted(
    {field.alias or name for kind in KINDS for name, field in kind.model_fields.items()} | {"type", "value"}
)


def refusal_of(kind: type[Message], payload: bytes) -> Problem | None:
    """The problem that ``payload`` gives; any other exception fails the test."""
    try:
        parse_message(kind, payload)
    except Problem as problem:
        return problem
    return None


@given(st.sampled_from(KINDS), st.binary(max_size=100))
def test_any_octets(kind: type[Message], payload: bytes) -> None:
    refusal = refusal_of(kind, payload)
    assert refusal is None or refusal.type == "malformed"


@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(_MEMBERS), _VALUES, max_size=6))
def test_any_members(kind: type[Message], members: dict[str, Any]) -> None:
    refusal = refusal_of(kind, json.dumps(members).encode())
    assert refusal is None or (refusal.type == "malformed" and len(refusal.detail) < 300)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b"1", b'"x"', b"{", b"[" * 2_000 + b"]" * 2_000])
def test_a_payload_is_an_object(kind: type[Message], payload: bytes) -> None:
    with pytest.raises(Problem):
        parse_message(kind, payload)


def test_unknown_members_are_ignored() -> None:
    assert parse_message(Finalize, b'{"csr": "AA", "more": {"deep": [1]}}').csr == "AA"


def test_messages_do_not_change() -> None:
    message = parse_message(Finalize, b'{"csr": "AA"}')
    with pytest.raises(ValueError, match="frozen"):
        message.csr = "BB"  # type: ignore[misc]


def test_names_of_python_are_not_the_wire_s() -> None:
    message = parse_message(NewAccount, b'{"terms_of_service_agreed": true, "only_return_existing": true}')
    assert not message.terms_of_service_agreed
    assert not message.only_return_existing


@pytest.mark.parametrize("text", ["2026-01-01T00:00:00Z", "2026-01-01T02:00:00+02:00", "2026-01-01T00:00:00.5Z"])
def test_times(text: str) -> None:
    message = parse_message(NewOrder, json.dumps({"identifiers": [], "notAfter": text}).encode())
    assert message.not_after is not None
    assert int(message.not_after.timestamp()) == 1767225600


def test_what_was_sent_is_not_repeated() -> None:
    with pytest.raises(Problem) as refused:
        parse_message(Finalize, b'{"csr": ["SECRET"]}')
    assert "SECRET" not in json.dumps(refused.value.document())
    assert "csr" in refused.value.detail
