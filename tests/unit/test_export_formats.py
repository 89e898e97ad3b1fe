"""The formats of the export: every kind of entry as valid OCSF, as RFC 5424 says, and as lines that give back the entry."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from privyseal_ca.errors import LedgerError
from privyseal_ca.export.formats import FORMATS, Render, Sender, renderer
from privyseal_ca.export.meaning import MEANINGS, meaning_of
from privyseal_ca.export.ocsf import OCSF_VERSION, milliseconds, ocsf_event
from privyseal_ca.export.record import Record, checked
from privyseal_ca.export.syslog import DEFAULT_MAX_MESSAGE, MIN_MESSAGE, octet_counted, syslog_message
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import StoredEntry
from privyseal_ca.ledger.tree import leaf_hash

ORIGIN = "ca.test/ledger"
SENDER = Sender(ORIGIN, "ca.corp.example", "1.2.3")
#: The schema that events say they follow, and the newest there is: events must be valid in both.
SCHEMAS = (OCSF_VERSION, "1.8.0")
DOCS = Path(__file__).parents[2] / "docs"
#: Members that payloads have, each as its kind might; every kind is tried with all of them and with none.
FULL: dict[str, Any] = {
    "account": "acct1", "authorization": "authz1", "certificate_sha256": "ab" * 32, "id": "c36e2c344bd8086d",
    "identifier": "a.example", "issuer": "c36e2c344bd8086d", "job": "job1", "kid": "kid1", "label": "lab \"el\" ]\\",
    "name": "büro", "names": ["dns:*.a.example", "dns:a.example", "email:x@a.example", "ip:2001:db8::1", "uri:spiffe://a/b"],
    "organization": "Örg \U0001f512", "problem": "connection", "reason": 1, "serial": "0d" * 16, "sha256": "cd" * 32,
    "spki_sha256": "ef" * 32, "subject": "CN=x",
}  # fmt: skip
ACTORS = ("service", "account:acct1", "operator:root", "operator:uid-7", "issuer:c36e2c344bd8086d", "certificate-key")


def record(
    kind: str = Kind.ISSUED, *, index: int = 7, actor: str = "service", payload: dict[str, Any] | None = None
) -> Record:
    entry = encode_entry(
        kind, time=1795266531.25, actor=actor, correlation="c0", payload=FULL if payload is None else payload
    )  # type: ignore[arg-type]
    return checked(StoredEntry(index, leaf_hash(entry), entry), index)


def render(name: str, *, stream: bool = False, max_message: int = DEFAULT_MAX_MESSAGE) -> Render:
    return renderer(name, SENDER, stream=stream, max_message=max_message)


def event_of(*arguments: Any, **options: Any) -> dict[str, Any]:
    return ocsf_event(record(*arguments, **options), origin=ORIGIN, version="1.2.3")


@cache
def schema(version: str) -> dict[str, Any]:
    found: dict[str, Any] = get_ocsf_schema(version)
    return found


@cache
def validator(version: str, class_uid: int) -> jsonschema.Draft202012Validator:
    (name,) = (name for name, known in schema(version)["classes"].items() if known["uid"] == class_uid)
    return jsonschema.Draft202012Validator(OcsfJsonSchemaEmbedded(schema(version)).get_class_schema(name))


# OCSF


@pytest.mark.parametrize("version", SCHEMAS)
@pytest.mark.parametrize("kind", Kind)
def test_every_kind_is_a_valid_event(kind: Kind, version: str) -> None:
    assert kind in MEANINGS
    for payload in (FULL, {}, {"names": [], "reason": None}):
        event = event_of(kind, payload=payload)
        validator(version, event["class_uid"]).validate(event)


@pytest.mark.parametrize("actor", ACTORS)
def test_every_actor_is_valid(actor: str) -> None:
    for kind in (Kind.ACCOUNT_CREATED, Kind.EAB_CREATED):
        event = event_of(kind, actor=actor)
        validator(OCSF_VERSION, event["class_uid"]).validate(event)
        assert event["unmapped"]["actor"] == actor
    assert event_of(Kind.EAB_CREATED, actor="operator:root")["actor"]["user"]["name"] == "root"


@pytest.mark.parametrize("kind", Kind)
def test_words_are_those_of_the_numbers(kind: Kind) -> None:
    event = event_of(kind)
    (known,) = (known for known in schema(OCSF_VERSION)["classes"].values() if known["uid"] == event["class_uid"])
    assert event["class_name"] == known["caption"]
    assert (event["category_uid"], event["category_name"]) == (known["category_uid"], known["category_name"])
    for number, word in (("severity_id", "severity"), ("status_id", "status"), ("type_uid", "type_name")):
        assert event[word] == known["attributes"][number]["enum"][str(event[number])]["caption"]
    if event["activity_id"] != 99:
        assert (
            event["activity_name"] == known["attributes"]["activity_id"]["enum"][str(event["activity_id"])]["caption"]
        )


def test_what_is_not_valid_is_noticed() -> None:
    for broken in ({"severity_id": 9}, {"entity": {}}, {"payload": {}}, {"time": "now"}, {"class_uid": 3001}):
        event = event_of() | broken
        with pytest.raises(jsonschema.ValidationError):
            validator(OCSF_VERSION, 3004).validate(event)


def test_an_event_says_where_it_is_from() -> None:
    event = event_of(index=41)
    assert event["metadata"]["uid"] == f"{ORIGIN}#41"
    assert event["metadata"]["sequence"] == 41
    assert event["metadata"]["product"]["version"] == "1.2.3"
    assert event["time"] == 1795266531250
    assert event["unmapped"]["payload"] == FULL
    assert event["unmapped"]["leaf_hash"] == record().leaf_hash.hex()
    found = {(item["type"], item["value"]) for item in event["observables"]}
    assert {("Hostname", "a.example"), ("IP Address", "2001:db8::1"), ("Serial Number", "0d" * 16)} <= found


def test_failures_and_compromises_stand_out() -> None:
    failed = event_of(Kind.AUTHORIZATION_FAILED)
    assert (failed["status"], failed["status_detail"]) == ("Failure", "connection")
    assert event_of(Kind.REVOKED, payload={"reason": 4})["severity"] == "Low"
    assert event_of(Kind.REVOKED, payload={"reason": 1})["severity"] == "High"
    assert event_of(Kind.ACCOUNT_DEACTIVATED, payload={"reason": "keyCompromise"})["severity"] == "High"


def test_a_kind_of_a_newer_program_is_an_event_too() -> None:
    event = event_of("something.new")
    validator(OCSF_VERSION, event["class_uid"]).validate(event)
    assert event["metadata"]["event_code"] == "something.new"
    assert meaning_of("something.new").noun == "Ledger entry"


def test_observables_are_bounded() -> None:
    assert len(event_of(payload={"names": [f"dns:{number}.example" for number in range(1000)]})["observables"]) == 100


def test_milliseconds_are_exact() -> None:
    # Binary fractions of these are not: 0.001 * 1000 may be 0 or 1.
    for number in range(1000):
        assert milliseconds(f"2026-11-21T10:00:00.{number:03d}Z") % 1000 == number


# JSON lines


@given(st.text(max_size=40), st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_line_gives_back_the_entry(text: str, number: int) -> None:
    stored = record(payload={"a": text, "b": [number, None, True], "z": {"y": text}})
    line = render("jsonl")(stored)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    document = json.loads(line)
    assert document.keys() == {"index", "leaf_hash", "entry"}
    assert rfc8785.dumps(document["entry"]) == stored.entry
    assert leaf_hash(stored.entry).hex() == document["leaf_hash"]


@pytest.mark.parametrize("name", FORMATS)
@given(text=st.text(max_size=40))
def test_one_line_each(name: str, text: str) -> None:
    line = render(name)(record(actor=f"operator:{text}", payload={"name": text}))
    assert line.endswith(b"\n")
    assert len(line.splitlines()) == 1 or b"\n" not in line[:-1]


# Syslog

_MESSAGE = re.compile(
    rb"<(?P<priority>[0-9]{1,3})>1 (?P<time>\S+) (?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48}) (?P<process>[!-~]{1,128}) "
    rb"(?P<id>[!-~]{1,32}) (?P<data>(?:\[[!-~]+?(?: [!-~]{1,32}=\"(?:[^\"\\\]]|\\.)*\")*\])+) (?P<text>.*)",
    re.DOTALL,
)
_PARAMETER = re.compile(rb' ([!-~]{1,32})="((?:[^"\\\]]|\\.)*)"')


def parsed(message: bytes) -> tuple[dict[str, bytes], dict[str, str], dict[str, Any]]:
    """Header, parameters and MSG by the grammar of RFC 5424 section 6."""
    match = _MESSAGE.fullmatch(message)
    assert match, message
    parameters = {
        name.decode(): re.sub(r"\\(.)", r"\1", value.decode()) for name, value in _PARAMETER.findall(match["data"])
    }
    return match.groupdict(), parameters, json.loads(match["text"])


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_is_a_message(kind: Kind) -> None:
    stored = record(kind, actor='operator:a"b]c\\d\ne')
    header, parameters, document = parsed(syslog(stored))
    assert header["id"].decode() == kind
    assert header["time"] == b"2026-11-21T13:08:51.250Z"
    assert header["host"] == b"ca.corp.example"
    assert int(header["priority"]) // 8 == 13
    assert 2 <= int(header["priority"]) % 8 <= 6
    assert parameters["actor"] == 'operator:a"b]c\\d\N{REPLACEMENT CHARACTER}e'
    assert (parameters["index"], parameters["leafHash"], parameters["log"]) == ("7", stored.leaf_hash.hex(), ORIGIN)
    assert rfc8785.dumps(document["entry"]) == stored.entry
    assert header["text"].isascii()


def syslog(stored: Record, max_message: int = DEFAULT_MAX_MESSAGE, hostname: str = "ca.corp.example") -> bytes:
    return syslog_message(stored, origin=ORIGIN, hostname=hostname, version="1.2.3", max_message=max_message)


@pytest.mark.parametrize("payload", [{"a": "x" * 60_000}, {"a": "\U0001f512" * 15_000}])
def test_a_long_message_goes_without_its_payload_and_says_so(payload: dict[str, Any]) -> None:
    stored = record(Kind.AUTHORIZATION_FAILED, payload=payload)
    message = syslog(stored)
    assert len(message) < MIN_MESSAGE
    _, parameters, document = parsed(message)
    assert document["truncated"] is True
    assert document["size"] == len(stored.entry)
    assert "payload" not in document["entry"]
    assert parameters["leafHash"] == leaf_hash(stored.entry).hex()
    _, _, whole = parsed(syslog(stored, 262144))
    assert rfc8785.dumps(whole["entry"]) == stored.entry


def test_no_message_is_longer_than_the_least() -> None:
    stored = record(actor="operator:" + "\\\u1234" * 4000, payload={"a": "x" * 10_000})
    assert len(syslog(stored, MIN_MESSAGE, "h" * 1000)) <= MIN_MESSAGE


def test_a_host_without_a_name() -> None:
    assert parsed(syslog(record(), hostname="\u00fc \n"))[0]["host"] == b"-"


def test_octets_are_counted() -> None:
    message = syslog(record())
    assert octet_counted(message) == str(len(message)).encode() + b" " + message
    assert render("syslog", stream=True)(record()) == octet_counted(message)
    assert render("syslog")(record()) == message + b"\n"


# What goes in


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (StoredEntry(8, record().leaf_hash, record().entry), "missing"),
        (StoredEntry(7, b"\0" * 32, record().entry), "leaf hash"),
        (StoredEntry(7, leaf_hash(b"{}"), b"{}"), "canonical"),
        (StoredEntry(7, leaf_hash(b"\xff"), b"\xff"), "not JSON"),
        (StoredEntry(7, b"", "text"), "leaf hash"),  # type: ignore[arg-type]
    ],
)
def test_what_is_not_an_entry_is_not_exported(stored: StoredEntry, words: str) -> None:
    with pytest.raises(LedgerError, match=words):
        checked(stored, 7)


# The page


def test_the_page_has_the_table() -> None:
    rows = re.findall(
        r"^\| `([a-z.-]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$",
        (DOCS / "export.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert {row[0]: tuple(row[1:]) for row in rows} == {
        kind: (
            f"{meaning.event_class.name} {meaning.event_class.uid}",
            f"{meaning.activity_name or meaning.event_class.activities[meaning.activity]} {meaning.activity}",
            meaning.noun,
            meaning.severity.name.capitalize() + (", failure" if meaning.failed else ""),
        )
        for kind, meaning in MEANINGS.items()
    }
