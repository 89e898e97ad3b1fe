"""What a selection means: patterns that know where a label ends, and times as the ledger has them."""

import json
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privyseal_ca.cli.selecting import _seconds
from privyseal_ca.errors import PolicyError
from privyseal_ca.revocation.selection import NamePattern, Preview, Selection
from privyseal_ca.store.revoking import MatchRow


def names(*texts: str) -> str:
    return json.dumps(texts)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("a.corp.example", "dns:a.corp.example"),
        ("A.Corp.EXAMPLE", "dns:a.corp.example"),
        ("*.corp.example", "dns:a.corp.example"),
        ("*.corp.example", "dns:*.corp.example"),
        ("web-*.corp.example", "dns:web-17.corp.example"),
        ("web-?.corp.example", "dns:web-1.corp.example"),
        ("web-[0-4].corp.example", "dns:web-3.corp.example"),
        ("**.corp.example", "dns:a.corp.example"),
        ("**.corp.example", "dns:a.b.c.corp.example"),
        ("a.**.example", "dns:a.b.a.example"),
        ("**.a.**.b", "dns:x.a.a.b.a.y.b"),
        ("**", "dns:localhost"),
        ("10.0.*.*", "ip:10.0.3.4"),
        ("10.**", "ip:10.0.3.4"),
        ("2001:db8:**", "ip:2001:db8::1"),
        ("2001:0DB8:0:0:0:0:0:1", "ip:2001:db8::1"),
        ("x[]ab]y.example", "dns:xay.example"),
        ("spiffe://corp/ns/*/sa/*", "uri:spiffe://corp/ns/prod/sa/web"),
        ("spiffe://corp/**", "uri:spiffe://corp/ns/prod/sa/web"),
        ("spiffe://CORP/ns/web", "uri:spiffe://corp/ns/Web"),
        ("*@corp.example", "email:ops@corp.example"),
    ],
)
def test_what_matches(pattern: str, name: str) -> None:
    text = names("dns:other.example", name)
    parsed = NamePattern(pattern)
    assert parsed.matches(text)
    assert parsed.literal in text.lower()


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("corp.example", "dns:notcorp.example"),
        ("corp.example", "dns:a.corp.example"),
        ("*.corp.example", "dns:corp.example"),
        ("*.corp.example", "dns:a.b.corp.example"),
        ("*corp.example", "dns:a.corp.example"),
        ("**.corp.example", "dns:corp.example"),
        ("a?c.example", "dns:a.c.example"),
        ("web-[!0-4].corp.example", "dns:web-3.corp.example"),
        ("10.0.*", "ip:10.0.3.4"),
        ("10.0.0.1", "ip:10.0.0.11"),
        ("10.0.0.?", "ip:10.0.0.11"),
        ("spiffe://corp/*", "uri:spiffe://corp/ns/prod"),
        ("a%", "dns:ab"),
        ("a_c", "dns:abc"),
        ("dns:a.example", "dns:a.example"),
        ("*", "other:a"),
    ],
)
def test_what_does_not_match(pattern: str, name: str) -> None:
    assert not NamePattern(pattern).matches(names(name))


def test_a_certificate_without_names_matches_nothing() -> None:
    assert not NamePattern("**").matches("[]")


@pytest.mark.parametrize("pattern", ["", "a" * 2049, "a\0b", "a\nb", "\x1b[0m", "bücher.example"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(PolicyError, match="pattern"):
        NamePattern(pattern)


def by_definition(pattern: list[str], labels: list[str]) -> bool:
    """``**`` by trying everything."""
    if not pattern:
        return not labels
    if pattern[0] == "**":
        return any(by_definition(pattern[1:], labels[taken:]) for taken in range(1, len(labels) + 1))
    return bool(labels) and pattern[0] in {labels[0], "*"} and by_definition(pattern[1:], labels[1:])


@given(
    st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=7),
    st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_labels_match_as_they_are_defined_to(pattern: list[str], labels: list[str]) -> None:
    found = NamePattern(".".join(pattern)).matches(names("dns:" + ".".join(labels)))
    assert found == by_definition(pattern, labels)


@given(
    st.text("aB.*?[]-1", min_size=1, max_size=12),
    st.lists(st.text("aAbB1-.*", min_size=1, max_size=12), min_size=1, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_what_matches_has_the_pattern_literal_in_it(pattern: str, values: list[str]) -> None:
    text = names(*(f"dns:{value}" for value in values))
    parsed = NamePattern(pattern)
    if parsed.matches(text):
        assert parsed.literal in text.lower()


def test_a_pattern_of_many_stars_is_no_burden() -> None:
    long = NamePattern(".".join(["**", "a*a*a*a*b"] * 60))
    assert not long.matches(names("dns:" + ".".join(["a" * 63] * 20), "uri:" + "a" * 2000))


NOTHING: dict[str, Any] = dict.fromkeys(
    ("account", "name", "issuer", "profile", "key", "issued_after", "issued_before")
)


def test_a_selection_survives_its_job() -> None:
    selection = Selection(
        **NOTHING | {"account": "x", "name": "*.a", "key": "ab" * 32, "issued_after": 0}, first=3, end=9
    )
    again = Selection.load(json.dumps(selection.document()))
    assert again == selection
    assert selection.document().keys() == {"account", "name", "key", "issued_after", "first", "end"}
    assert str(again) == f"account x, name *.a, key {'ab' * 32}, issued-after 1970-01-01T00:00:00Z"


def test_a_preview_tells_apart_a_bounded_number_of_requesters() -> None:
    preview = Preview()
    for number in range(5000):
        preview.add(MatchRow(str(number), "[]", "mtls", f"account:{number}", 10, None), spare_own=True, now=5)
    assert preview.total == 5000
    assert len(preview.requesters) <= 1001
    assert preview.requesters.total() == 5000
    assert preview.requesters["others"] == 4000
    assert len(preview.sample) == 10


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-02", 86_400),
        ("1970-01-01T00:01:00Z", 60),
        ("1970-01-01t01:00:00+01:00", 0),
        ("1970-01-01 00:00:01.000z", 1),
        ("9999-12-31", 253_402_214_400),
    ],
)
def test_times(text: str, seconds: int) -> None:
    assert _seconds(text, "--issued-after") == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2026-13-01",
        "2026-1-1",
        "20260101",
        "2026-01-01T10",
        "2026-01-01T10:00:00",
        "0",
        "٢٠٢٦-01-01",
        # An entry of the same second would be hit or spared by mistake.
        "2026-01-01T10:00:00.5Z",
        # As text, such years stand after all others: "issued before" would be everything.
        "0999-01-01",
        "0001-01-01T00:00:00+23:59",
        "1969-12-31T23:59:59Z",
        "9999-12-31T23:59:59-23:59",
    ],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(click.BadParameter):
        _seconds(text, "--issued-after")
