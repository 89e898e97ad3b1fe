"""CAA (RFC 8659, RFC 8657): the meaning of a set of records."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.challenge_servers import ACCOUNT_URL, challenge_task
from privyseal_acme.validation.caa import Issuer, Property, parse_issuer, permits

OURS = ("ca.corp", "Other-Name.corp.")


def allowed(*records: tuple[int, str, str | bytes], wildcard: bool = False, type_: str = "http-01") -> bool:
    task = challenge_task(type_, "host.test", wildcard=wildcard)
    return permits([Property(*record) for record in records], task, OURS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ca.corp", Issuer("ca.corp")),
        ("  ca.corp\t", Issuer("ca.corp")),
        ("ca.corp;", Issuer("ca.corp")),
        ("ca.corp ; ", Issuer("ca.corp")),
        ("ca.corp; a=b", Issuer("ca.corp", (("a", "b"),))),
        ("ca.corp;a = b ;C-d=e;", Issuer("ca.corp", (("a", "b"), ("c-d", "e")))),
        ("ca.corp; a=", Issuer("ca.corp", (("a", ""),))),
        ("ca.corp; a=b=c", Issuer("ca.corp", (("a", "b=c"),))),
        (";", Issuer("")),
        ("", Issuer("")),
        ("; a=b", Issuer("")),
        ("ca.corp a=b", Issuer("")),
        ("ca.corp; a b", Issuer("")),
        ("ca.corp; =b", Issuer("")),
        ("ca.corp; -a=b", Issuer("")),
        ("ca.corp; a=b c", Issuer("")),
        ("ca.corp;; a=b", Issuer("")),
        ("ca.corp; a=b;;", Issuer("")),
        ("ca..corp", Issuer("")),
        ("ca.corp.", Issuer("")),
        ("-ca.corp", Issuer("")),
        ("ca.corp\n", Issuer("")),
        (b"ca.corp\xff", Issuer("")),
    ],
)
def test_the_grammar_of_section_4_2(value: str | bytes, expected: Issuer) -> None:
    assert parse_issuer(value) == expected


@given(st.text(string.printable, max_size=60))
def test_no_value_breaks_the_parser(value: str) -> None:
    issuer = parse_issuer(value)
    assert issuer.domain == "" or value.strip(" \t").startswith(issuer.domain)


LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True)


@given(
    st.lists(LABELS, min_size=1, max_size=4).map(".".join),
    st.lists(st.tuples(LABELS, st.text("!-:<>?@AZ[]az~=/", max_size=10)), max_size=4),
    st.sampled_from(["", " ", "\t "]),
)
def test_what_is_written_by_the_grammar_is_read(domain: str, parameters: list[tuple[str, str]], gap: str) -> None:
    written = ";".join(f"{gap}{tag}{gap}={gap}{value}{gap}" for tag, value in parameters)
    assert parse_issuer(f"{gap}{domain}{gap};{written}") == Issuer(domain, tuple(parameters))


def test_issue() -> None:
    assert allowed((0, "issue", "ca.corp"))
    assert allowed((0, "ISSUE", "CA.CORP"))
    assert allowed((0, "issue", "other-name.corp"))
    assert allowed((0, "issue", "else.corp"), (0, "issue", "ca.corp"))
    assert not allowed((0, "issue", "else.corp"))
    assert not allowed((0, "issue", ";"))
    assert not allowed((0, "issue", "%%%"))
    assert not allowed((0, "issue", "xca.corp"))


def test_sets_without_issue_do_not_restrict() -> None:
    assert allowed((0, "iodef", "mailto:a@b"))
    assert allowed((128, "iodef", "mailto:a@b"))
    assert allowed((0, "unheard", "of"))
    assert allowed((0, "issuemail", ";"))


def test_an_unknown_critical_property_forbids() -> None:
    assert not allowed((128, "unheard", "of"))
    assert not allowed((128, "unheard", "of"), (0, "issue", "ca.corp"))
    assert not allowed((255, "unheard", ""))
    assert allowed((1, "unheard", "of"))
    assert allowed((128, "issue", "ca.corp"))


def test_a_tag_that_is_not_ascii_is_unknown() -> None:
    task = challenge_task("http-01", "host.test")
    assert permits([Property(0, b"issue\xff", ";")], task, OURS)
    assert not permits([Property(128, b"issue\xff", ";")], task, OURS)


def test_issuewild_replaces_issue_for_wildcards() -> None:
    assert allowed((0, "issuewild", ";"))
    assert not allowed((0, "issuewild", ";"), wildcard=True)
    assert not allowed((0, "issue", "ca.corp"), (0, "issuewild", ";"), wildcard=True)
    assert allowed((0, "issue", ";"), (0, "issuewild", "ca.corp"), wildcard=True)
    assert not allowed((0, "issue", ";"), (0, "issuewild", "ca.corp"))
    assert allowed((0, "issue", "ca.corp"), wildcard=True)
    assert not allowed((0, "issue", "else.corp"), wildcard=True)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (f"accounturi={ACCOUNT_URL}", True),
        (f"AccountURI={ACCOUNT_URL}", True),
        (f"accounturi={ACCOUNT_URL}/", False),
        (f"accounturi={ACCOUNT_URL.upper()}", False),
        ("accounturi=", False),
        (f"accounturi={ACCOUNT_URL}; accounturi={ACCOUNT_URL}", False),
        ("validationmethods=http-01", True),
        ("validationmethods=dns-01,http-01", True),
        ("validationmethods=dns-01", False),
        ("validationmethods=http-01x", False),
        ("validationmethods=HTTP-01", False),
        ("validationmethods=", False),
        ("validationmethods=http-01; validationmethods=http-01", False),
        ("unknown=1", True),
        (f"accounturi={ACCOUNT_URL}; validationmethods=dns-01", False),
    ],
)
def test_account_and_method_bind(parameters: str, expected: bool) -> None:
    """RFC 8657 sections 3 and 4."""
    assert allowed((0, "issue", f"ca.corp; {parameters}")) is expected


def test_one_satisfied_property_is_enough() -> None:
    assert allowed((0, "issue", "ca.corp; accounturi=https://else.example"), (0, "issue", "ca.corp"))
