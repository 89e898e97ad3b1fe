"""The small parts: names and values of dns challenges, resolvers' addresses, evidence, certificates, error edges."""

import json
import logging
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from fakes.challenge_servers import KEY_AUTHORIZATION, challenge_certificate, challenge_task
from privyseal_acme.validation import validator as validator_module
from privyseal_acme.validation.attempt import Attempt
from privyseal_acme.validation.challenge import ChallengeTask
from privyseal_acme.validation.dns01 import dns01_name, dns_account01_name, expected_value
from privyseal_acme.validation.outcome import Evidence, printable
from privyseal_acme.validation.resolver import parse_resolvers
from privyseal_acme.validation.tlsalpn01 import certificate_fault
from privyseal_acme.validation.validator import Validator
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.sections import ValidationSettings

DER = challenge_certificate("a.test", KEY_AUTHORIZATION)[0].public_bytes(serialization.Encoding.DER)


class FixedClock:
    def now(self) -> float:
        return 1_795_255_200.25


def test_the_names_of_dns_challenges() -> None:
    task = challenge_task("dns-account-01", "www.example.org", wildcard=True)
    assert dns01_name(task) == "_acme-challenge.www.example.org"
    assert dns_account01_name(task) == "_h5zlfqoi7m5jaytl._acme-challenge.www.example.org"


def test_the_value_of_dns_challenges() -> None:
    """RFC 8555 section 8.4; the digest was computed with OpenSSL."""
    key_authorization = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
    assert expected_value(key_authorization) == b"lCM7cZyQXcVHK2nnW3jjAhNT3Fvm18UN-kWZZknKoYM"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1", "127.0.0.1:53"),
        ("127.0.0.1:8053", "127.0.0.1:8053"),
        ("::1", "[::1]:53"),
        ("[::1]", "[::1]:53"),
        ("[fd00::1]:5353", "[fd00::1]:5353"),
    ],
)
def test_resolvers(text: str, expected: str) -> None:
    assert parse_resolvers([text]) == (expected,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dns.corp",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:x",
        "[::1",
        "[::1]x",
        "[::1]:",
        "0.0.0.0",  # noqa: S104
    ],
)
def test_resolvers_that_are_no_addresses(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"validation\.resolvers"):
        parse_resolvers([text])
    with pytest.raises(ConfigurationError):
        Validator(ValidationSettings(resolvers=(text,)), clock=FixedClock())


@given(st.one_of(st.text(max_size=400), st.binary(max_size=400)), st.integers(4, 300))
def test_printable_is_short_plain_and_as_long_in_json(text: str | bytes, limit: int) -> None:
    result = printable(text, limit)
    assert len(result) <= limit
    assert result.isascii()
    assert result.isprintable() or not result
    assert json.dumps(result) == f'"{result}"'


@given(st.lists(st.tuples(st.sampled_from(["dns", "connections", "requests"]), st.text(max_size=300)), max_size=100))
def test_evidence_is_bounded(entries: list[tuple[str, str]]) -> None:
    evidence = Evidence()
    for kind, text in entries:
        evidence.add(kind, {"name": printable(text), "records": [printable(text, 64)] * 8, "count": 3})
        evidence.note("digest", "0" * 64)
    assert len(json.dumps(evidence.facts())) < 3600


def test_evidence_says_when_something_was_left_out() -> None:
    evidence = Evidence()
    for _ in range(100):
        evidence.add("dns", {"name": "x" * 200})
    assert evidence.facts()["truncated"] == 1


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate(der: bytes) -> None:
    assert certificate_fault(der, challenge_task("tls-alpn-01", "a.test")) == "is malformed or not self-signed"


@given(st.data())
def test_a_damaged_certificate_never_raises_nor_passes_with_other_contents(data: st.DataObject) -> None:
    der = bytearray(DER)
    der[data.draw(st.integers(0, len(der) - 1))] ^= data.draw(st.integers(1, 255))
    if not certificate_fault(bytes(der), challenge_task("tls-alpn-01", "a.test")):
        # One signature has more than one encoding; what it signs has not.
        contents = x509.load_der_x509_certificate(DER).tbs_certificate_bytes
        assert x509.load_der_x509_certificate(bytes(der)).tbs_certificate_bytes == contents


async def test_an_unforeseen_fault_fails_the_challenge_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_name: str, _task: ChallengeTask, _attempt: Attempt) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(validator_module, "check_txt", broken)
    checker = Validator(ValidationSettings(attempts=1), clock=FixedClock())
    with caplog.at_level(logging.ERROR):
        outcome = await checker.check(challenge_task("dns-01", "a.test"))
    assert outcome.problem is not None
    assert outcome.problem.type == "serverInternal"
    assert "inside" not in outcome.problem.detail
    assert "inside" in caplog.text
    assert KEY_AUTHORIZATION not in caplog.text


async def test_the_evidence_says_what_when_and_how_often(monkeypatch: pytest.MonkeyPatch) -> None:
    async def proven(_name: str, _task: ChallengeTask, attempt: Attempt) -> None:
        attempt.evidence.note("digest", "00")

    monkeypatch.setattr(validator_module, "check_txt", proven)
    checker = Validator(ValidationSettings(), clock=FixedClock())
    outcome = await checker.check(challenge_task("dns-01", "a.test"))
    milliseconds: Any = outcome.evidence.pop("milliseconds")
    assert isinstance(milliseconds, int)
    assert outcome.evidence == {
        "type": "dns-01",
        "identifier": {"type": "dns", "value": "a.test"},
        "at": "2026-11-21T10:00:00.250Z",
        "attempts": 1,
        "digest": "00",
    }
