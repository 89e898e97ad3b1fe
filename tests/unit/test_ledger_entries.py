"""Ledger entries are canonical JSON: byte for byte what RFC 8785 says."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from privyseal_ca.clock import rfc3339_milliseconds
from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.entries import MAX_ENTRY, Kind, Payload, decode_entry, encode_entry

_NAMES = st.text(alphabet=st.characters(max_codepoint=127), max_size=12)
_SCALARS = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=30)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=15,
)
PAYLOADS = st.dictionaries(_NAMES, _VALUES, max_size=6)


def entry(payload: Payload, *, time: float = 1.5, actor: str = "service", correlation: str = "c") -> bytes:
    """An entry with this payload."""
    return encode_entry(Kind.INTENT, time=time, actor=actor, correlation=correlation, payload=payload)


@settings(max_examples=300)
@given(PAYLOADS, st.floats(0, 4_000_000_000), st.text(max_size=20), st.text(max_size=20))
def test_the_encoding_is_that_of_rfc_8785(payload: Payload, time: float, actor: str, correlation: str) -> None:
    encoded = entry(payload, time=time, actor=actor, correlation=correlation)
    members: dict[str, Any] = {
        "v": 1,
        "kind": "certificate.intent",
        "time": rfc3339_milliseconds(time),
        "actor": actor,
        "correlation": correlation,
        "payload": payload,
    }
    assert encoded == rfc8785.dumps(members)
    assert decode_entry(encoded) == members


@pytest.mark.parametrize(
    "text",
    [
        '\u20ac$\x0f\nA\'B"\\\\"/',
        "\x00\x1f\x7f\x80",
        "\u2028\u2029",
        "\U0001f602",
        "\ufeff",
        "\\u0041",
        "</script>",
        "\r\t\b\f",
    ],
)
def test_the_strings_that_encoders_disagree_about(text: str) -> None:
    # The first is that of RFC 8785 section 3.2.2.
    assert entry({"text": text}) == rfc8785.dumps(json.loads(entry({"text": text})))


@pytest.mark.parametrize(
    "payload",
    [
        {"a": 1.5}, {"a": float("nan")}, {"a": 2**53}, {"a": -(2**53)}, {"a": b"x"}, {"a": {1, 2}}, {"a": object()},
        {"\u00e9": 1}, {"a": {"\u20ac": 1}}, {1: "a"}, {"a": {None: 1}}, {"a": [[1.0]]},
    ],
)  # fmt: skip
def test_what_has_no_single_form_is_refused(payload: Payload) -> None:
    with pytest.raises(LedgerError):
        entry(payload)


def test_the_largest_entry() -> None:
    room = MAX_ENTRY - len(entry({"a": ""}))
    assert len(entry({"a": "x" * room})) == MAX_ENTRY
    with pytest.raises(LedgerError):
        entry({"a": "x" * (room + 1)})


@given(st.binary(max_size=100))
def test_any_octets_are_an_entry_or_refused(octets: bytes) -> None:
    with pytest.raises(LedgerError):
        decode_entry(octets)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b'":', b'": ', 1),
        lambda text: text + b"\n",
        lambda text: text.replace(b'"v":1', b'"v":1.0'),
        lambda text: text.replace(b'"v":1', b'"v":1,"w":2'),
        lambda text: text.replace(b',"v":1', b""),
        lambda text: b'{"v":1,' + text[1:].replace(b',"v":1', b""),
        lambda text: text.replace(b"service", b"\\u0073ervice"),
        lambda text: b"[" + text + b"]",
    ],
)
def test_other_forms_of_the_same_are_no_entries(change: Callable[[bytes], bytes]) -> None:
    changed = change(entry({"a": 1}))
    assert changed != entry({"a": 1})
    with pytest.raises(LedgerError):
        decode_entry(changed)
