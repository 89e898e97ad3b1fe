"""Certificate identifiers of RFC 9773 section 4.1."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privyseal_acme.protocol.ari import certificate_id, parse_certificate_id
from privyseal_acme.protocol.problems import Problem

VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "ari.json").read_text(encoding="utf-8"))


def test_the_published_identifier() -> None:
    key_id, serial = bytes.fromhex(VECTOR["key_identifier"]), VECTOR["serial"]
    assert serial.to_bytes(5, "big").hex() == VECTOR["serial_octets"]
    assert certificate_id(key_id, serial) == VECTOR["identifier"]
    assert parse_certificate_id(VECTOR["identifier"]) == (key_id, serial)


@given(st.binary(min_size=1, max_size=32), st.integers(1, 2**159 - 1))
def test_round_trip(key_id: bytes, serial: int) -> None:
    assert parse_certificate_id(certificate_id(key_id, serial)) == (key_id, serial)


@given(st.text(max_size=60) | st.from_regex(r"[A-Za-z0-9_-]{0,30}\.[A-Za-z0-9_-]{0,30}", fullmatch=True))
def test_any_text(text: str) -> None:
    try:
        key_id, serial = parse_certificate_id(text)
    except Problem as problem:
        refused = problem.type
    else:
        refused = ""
        assert certificate_id(key_id, serial) == text
    assert refused in {"", "malformed"}


@pytest.mark.parametrize(
    "text",
    ["", ".", "AAAA", "AAAA.", ".AQ", "AAAA.AA", "AAAA.AAE", "AAAA._w", "AAAA.AQ.AQ", "AAAA.AQ=", "AAAA." + "B" * 28],
)
def test_refused(text: str) -> None:
    with pytest.raises(Problem):
        parse_certificate_id(text)
