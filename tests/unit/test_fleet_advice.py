"""What owners are told: of every state, of every problem, and of what real checks against real servers have seen."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.challenge_servers import (
    KEY_AUTHORIZATION,
    TOKEN,
    WELL_KNOWN,
    Server,
    challenge_certificate,
    challenge_task,
    http_server,
    raw_server,
    response,
    server_tls,
    silent,
    until_closed,
)
from fakes.dns import Knot, free_port, knot
from fakes.lineages import DAY, NOW, attempt, late, lineage
from privyseal_acme.flow.fleet_notes import FleetNotes, Subject
from privyseal_acme.protocol.problems import STATUS, Problem, problem_for
from privyseal_acme.validation.validator import Validator
from privyseal_ca.clock import SystemClock
from privyseal_ca.errors import CsrRefusedError, NameRefusedError
from privyseal_ca.fleet.advice import MOST_DO, MOST_SEEN, MOST_WHAT, Advice, advise, span
from privyseal_ca.fleet.failures import Failure, parse_failure
from privyseal_ca.fleet.remedies import remedy
from privyseal_ca.fleet.states import State
from privyseal_ca.sections import ValidationSettings

PATH = WELL_KNOWN + TOKEN


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Knot]:
    with knot(tmp_path_factory.mktemp("knot"), broken=("broken.test",)) as server:
        for name in ("web", "tls", "caa"):
            server.set(f"{name}.test", "A", "127.0.0.1")
        server.set("elsewhere.test", "A", "192.0.2.7")
        server.set("_acme-challenge.old.test", "TXT", '"value-of-yesterday"')
        server.set("caa.test", "CAA", '0 issue "other-ca.test"')
        yield server


async def told(names: Knot, challenge: str, value: str, **settings: Any) -> Advice:
    """What the owner of a workload is told after a real check of ``value`` that failed."""
    usual = {"resolvers": (names.address,), "timeout": 5, "attempts": 1}
    validator = Validator(ValidationSettings(**{**usual, **settings}), clock=SystemClock())
    outcome = await validator.check(challenge_task(challenge, value))
    await validator.close()
    assert outcome.problem is not None
    # The way that it takes into the row.
    notes = FleetNotes()
    notes.failed(
        Subject("account:one", "mtls", (f"dns:{value}",)),
        Problem(outcome.problem.type, outcome.problem.detail),
        NOW,
        stage="validation",
        seen=outcome.evidence,
        challenge=challenge,
        identifier=f"dns:{value}",
    )
    [(_, noted)] = notes.take_attempts(5)
    row = late(
        state="failing", attempts=noted.count, failing_since=NOW - DAY, attempted_at=noted.last, attempt=noted.document
    )
    advice = advise(row, NOW)
    check(advice)
    assert challenge in advice.seen
    assert outcome.evidence["at"] in advice.seen
    return advice


def check(advice: Advice) -> None:
    """Whole sentences in one bounded line each, that say something."""
    for text, most in ((advice.what, MOST_WHAT), (advice.seen, MOST_SEEN), (advice.do, MOST_DO)):
        assert 5 < len(text) <= most
        assert text.isprintable()
        assert not text.endswith("..."), text
        assert text.rstrip("'\"").endswith((".", "`")), text
        assert "  " not in text
        assert "None" not in text


@asynccontextmanager
async def web(*answers: bytes) -> AsyncIterator[int]:
    async with http_server({PATH: answers[0]} if answers else {}) as server:
        yield server.port


def redirect_to(port: int) -> bytes:
    return response("302 Found", b"", f"Location: https://web.test:{port}/")


async def no_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _state: Server) -> None:
    writer.write(response("400 Bad Request"))
    await until_closed(reader)


# http-01


async def test_nothing_listens(names: Knot) -> None:
    port = free_port()
    advice = await told(names, "http-01", "web.test", http_port=port)
    assert f"127.0.0.1 port {port}: refused." in advice.seen
    assert "A of web.test: 127.0.0.1" in advice.seen
    assert f"Nothing listens at 127.0.0.1 port {port}" in advice.do


async def test_a_firewall_drops(names: Knot) -> None:
    """A full backlog drops the handshake, as a firewall would."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        advice = await told(names, "http-01", "web.test", http_port=port, timeout=0.5)
    assert f"Connecting to 127.0.0.1 port {port} took longer" in advice.seen
    assert f"Nothing answers at 127.0.0.1 port {port}: most often a firewall" in advice.do


async def test_a_server_that_says_nothing(names: Knot) -> None:
    async with raw_server(silent) as server:
        advice = await told(names, "http-01", "web.test", http_port=server.port, timeout=0.3)
    assert "took longer than" in advice.seen
    assert "gives no complete HTTP answer" in advice.do


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("404 Not Found", "no file for the challenge"),
        ("403 Forbidden", "forbids the request"),
        ("401 Unauthorized", "asks for a login"),
        ("502 Bad Gateway", "in trouble (status 502)"),
        ("410 Gone", "with status 200"),
    ],
)
async def test_a_status_that_is_not_ok(names: Knot, status: str, expected: str) -> None:
    async with web(response(status)) as port:
        advice = await told(names, "http-01", "web.test", http_port=port)
    assert f"http://web.test:{port} answered with status {status[:3]}." in advice.seen
    assert expected in advice.do
    assert f"127.0.0.1 port {port}" in advice.do or status[:3] == "403" or status[:3] == "401"


async def test_another_page(names: Knot) -> None:
    async with web(response("200 OK", b"<h1>It works!</h1>")) as port:
        advice = await told(names, "http-01", "web.test", http_port=port)
    assert "18 bytes that are not the key authorization" in advice.seen
    assert "a default page, another site, or another client's answer" in advice.do


async def test_a_redirect_that_is_not_followed(names: Knot) -> None:
    async with web(response("302 Found", b"", "Location: http://web.test:99/")) as port:
        advice = await told(names, "http-01", "web.test", http_port=port)
    assert "answered with status 302" in advice.seen
    assert "without redirects" in advice.do


async def test_a_redirect_to_broken_tls(names: Knot) -> None:
    async with raw_server(no_tls) as broken, web(redirect_to(broken.port)) as port:
        advice = await told(names, "http-01", "web.test", http_port=port, tls_port=broken.port)
    assert "(tls)" in advice.seen
    assert f"A redirect led to https at 127.0.0.1 port {broken.port}" in advice.do


async def test_a_redirect_to_nowhere(names: Knot) -> None:
    nowhere = free_port()
    async with web(redirect_to(nowhere)) as port:
        advice = await told(names, "http-01", "web.test", http_port=port, tls_port=nowhere)
    assert f"A redirect led to 127.0.0.1 port {nowhere}, where no connection could be made (refused)" in advice.do


async def test_an_address_outside(names: Knot) -> None:
    networks = {"allowed_networks": (ip_network("127.0.0.0/8"),)}
    advice = await told(names, "http-01", "elsewhere.test", **networks)
    assert "192.0.2.7: not in the allowed networks." in advice.seen
    assert "does not connect to 192.0.2.7" in advice.do
    assert "validation.allowed_networks" in advice.do


@pytest.mark.parametrize(
    ("challenge", "name", "seen", "do"),
    [
        ("http-01", "missing.test", "A of missing.test: NXDOMAIN", "Add an A or AAAA record for missing.test"),
        ("http-01", "x.broken.test", "SERVFAIL", "no usable answer for x.broken.test (SERVFAIL)"),
        ("dns-01", "missing.test", "No TXT record was found", "make the TXT record _acme-challenge.missing.test"),
        ("dns-01", "x.broken.test", "SERVFAIL", "no usable answer for _acme-challenge.x.broken.test (SERVFAIL)"),
        ("dns-01", "old.test", "'value-of-yesterday'", "_acme-challenge.old.test holds other values"),
        ("dns-account-01", "missing.test", "NXDOMAIN", "make the TXT record _"),
    ],
)
async def test_dns(names: Knot, challenge: str, name: str, seen: str, do: str) -> None:
    advice = await told(names, challenge, name)
    assert seen in advice.seen
    assert do in advice.do


async def test_caa(names: Knot) -> None:
    async with web(response("200 OK", KEY_AUTHORIZATION.encode())) as port:
        advice = await told(names, "http-01", "caa.test", http_port=port, caa=True, caa_identities=("privyseal.test",))
    assert "other-ca.test" in advice.seen
    assert "The CAA records of caa.test forbid it" in advice.do


# tls-alpn-01


async def tls_told(names: Knot, tls: ssl.SSLContext | None) -> Advice:
    async with raw_server(lambda reader, _writer, _state: until_closed(reader), tls=tls) as server:
        return await told(names, "tls-alpn-01", "tls.test", tls_port=server.port, timeout=1)


async def test_a_proxy_that_does_not_know_the_protocol(names: Knot, tmp_path: Path) -> None:
    advice = await tls_told(
        names, server_tls(tmp_path, *challenge_certificate("tls.test", KEY_AUTHORIZATION), ["h2", "http/1.1"])
    )
    assert "tls" in advice.seen
    assert "acme-tls/1" in advice.do


async def test_a_server_without_protocols(names: Knot, tmp_path: Path) -> None:
    advice = await tls_told(names, server_tls(tmp_path, *challenge_certificate("tls.test", KEY_AUTHORIZATION), []))
    assert "with the protocol (ALPN) none." in advice.seen
    assert "is not the client: it chose no protocol instead of acme-tls/1" in advice.do


async def test_the_certificate_of_another_challenge(names: Knot, tmp_path: Path) -> None:
    certificate = challenge_certificate("tls.test", "of.another")
    advice = await tls_told(names, server_tls(tmp_path, *certificate, ["acme-tls/1"]))
    assert "with the protocol (ALPN) acme-tls/1." in advice.seen
    assert "shows another certificate" in advice.do


async def test_no_tls_at_all(names: Knot) -> None:
    async with raw_server(no_tls) as server:
        advice = await told(names, "tls-alpn-01", "tls.test", tls_port=server.port)
    assert f"127.0.0.1 port {server.port}: TLS: " in advice.seen
    assert f"The TLS handshake at 127.0.0.1 port {server.port} failed" in advice.do


async def test_a_server_that_waits_for_something_else_than_tls(names: Knot) -> None:
    async with raw_server(silent) as server:
        advice = await told(names, "tls-alpn-01", "tls.test", tls_port=server.port, timeout=0.3)
    assert f"Nothing answers at 127.0.0.1 port {server.port}, or it does not speak TLS" in advice.do


# Orders and requests


@pytest.mark.parametrize(
    ("stage", "problem", "do"),
    [
        (
            "order",
            problem_for(NameRefusedError("dns", "x.test", "x.test is not in the policy default.")),
            "ask the operators to allow it in the policy",
        ),
        ("order", Problem("rateLimited", "Too many new orders of this account."), "once or twice a day"),
        ("order", Problem("rateLimited", "Too many failed validations of this account."), "Mend their cause first"),
        ("order", Problem("invalidProfile", "There is no such profile for this account."), "meta.profiles"),
        (
            "order",
            Problem("malformed", "The certificate to be replaced was not issued here."),
            "order the certificate anew",
        ),
        (
            "order",
            Problem("unauthorized", "The policy of this account does not exist any more; ask the operators."),
            "Ask",
        ),
        ("finalize", Problem("unauthorized", "The account was deactivated."), "external account key"),
        (
            "finalize",
            problem_for(
                CsrRefusedError("The request does not have exactly the names of the order (more: dns:b.test).")
            ),
            "exactly the names that it orders",
        ),
        ("finalize", Problem("badCSR", "The key of the CSR is the key of an account."), "make a new key"),
        ("finalize", Problem("badCSR", "The key of the CSR is blocked (keyCompromise)."), "make a new key"),
        ("finalize", Problem("badCSR", "The RSA modulus has 1024 bits."), "another kind or size of key"),
        ("finalize", Problem("badCSR", "The signature of the request does not hold."), "plain request"),
        ("finalize", Problem("malformed", "The csr is not base64url without padding."), "no well-formed request"),
        ("issuance", Problem("serverInternal", "The certificate could not be issued."), "fault is the authority's"),
        (
            "validation",
            Problem("unauthorized", "The authorization expired before its challenge was validated."),
            "too late",
        ),
    ],
    ids=lambda value: f"{value.type}-{len(value.detail)}" if isinstance(value, Problem) else None,
)
def test_what_is_refused(stage: str, problem: Problem, do: str) -> None:
    row = lineage(
        state="failing", attempts=1, attempt=attempt(stage, problem.type, problem.detail), attempted_at=NOW - 9
    )
    advice = advise(row._replace(failing_since=NOW - 9), NOW)
    check(advice)
    assert problem.detail in advice.seen
    assert do in advice.do


@pytest.mark.parametrize("problem", sorted(STATUS))
@pytest.mark.parametrize("stage", ["order", "validation", "finalize", "issuance"])
def test_every_problem_has_its_next_step(stage: str, problem: str) -> None:
    unknown = remedy(Failure(stage, "neverHeardOf"))
    assert remedy(Failure(stage, problem)) != unknown
    for challenge in ("", "http-01", "dns-01", "dns-account-01", "tls-alpn-01"):
        text = attempt(stage, problem, "Why.", challenge=challenge, identifier="dns:a.test")
        check(advise(late(state="failing", attempts=3, failing_since=NOW - DAY, attempted_at=NOW, attempt=text), NOW))


# States


@pytest.mark.parametrize(
    ("row", "what", "seen", "do"),
    [
        (lineage(), "It is well. Its certificate is valid until", "has never asked", "Nothing."),
        (lineage(polled_at=NOW - 3600), "It is well.", "last asked when to renew at 2026-11-21T09:00:00Z (1 hour ago)", "Nothing."),
        (lineage(renews=0), "not expected to renew", "never asked", "Nothing: nobody is told"),
        (lineage(state="due", window_start=NOW - DAY), "It is time to renew.", "The window to renew in is from", "Nothing yet"),
        (late(state="overdue", polled_at=NOW - 60), "asks when to renew, but does not renew", "(1 minute ago). No order", "a hook"),
        (late(), "of the client. Its certificate is valid until 2026-11-26T10:00:00Z (in 5 days). It counts as missed since 2026-11-19T",
         "has never asked when to renew this certificate (ARI)", "the client's timer runs"),
        (late(not_after=NOW - 60), "ended at 2026-11-21T09:59:00Z (1 minute ago): it has no valid one.", "never", "fleet retire w1"),
        (lineage(state="revoked", revoked_at=NOW - 7200), "was revoked at 2026-11-21T08:00:00Z (2 hours ago)", "revocation list", "new key"),
        (lineage(state="retired", retired_at=NOW - 1, retired_by="operator:jo", retired_reason="sold"), "It is retired since",
         "taken out of the fleet by operator:jo. The reason: 'sold'.", "fleet resume w1"),
        (late(state="retired", retired_at=NOW - 1, retired_by="time", not_after=NOW - 20 * DAY), "It is retired", "which ended at", "Nothing"),
        (lineage(state="failing", serial="", not_before=0, not_after=0, attempts=1, failing_since=NOW, attempted_at=NOW,
                 attempt=attempt("order", "rejectedIdentifier", "No.", identifier="dns:a.test")),
         "has never had a certificate", "The order was refused for a.test (rejectedIdentifier).", "does not have a.test"),
    ],
    ids=["well", "polls", "not-expected", "due", "overdue", "silent", "ended", "revoked", "retired", "gone", "unborn"],
)  # fmt: skip
def test_the_states(row: Any, what: str, seen: str, do: str) -> None:
    advice = advise(row, NOW)
    check(advice)
    assert what in advice.what
    assert seen in advice.seen
    assert do in advice.do


def test_every_state_has_words_of_its_own() -> None:
    said = {advise(late(state=state.value, polled_at=NOW, revoked_at=NOW), NOW).what for state in State}
    assert len(said) == len(State)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_evidence = st.fixed_dictionaries(
    {},
    optional={
        "dns": _json | st.lists(st.fixed_dictionaries({"records": _json, "count": _json, "type": _json, "name": _json}), max_size=9),
        "connections": st.lists(st.fixed_dictionaries({"port": _json, "address": _json, "result": _json}), max_size=9),
        "requests": st.lists(st.fixed_dictionaries({"status": _json, "host": _json}), max_size=9),
        "at": _json, "attempts": _json, "alpn": _json, "tls": _json, "caa": _json,
    },
)  # fmt: skip


@given(
    st.sampled_from(["validation", "order", "finalize", ""]),
    st.sampled_from([*sorted(STATUS), "", "none"]),
    st.text(max_size=1200),
    st.sampled_from(["http-01", "dns-01", "tls-alpn-01", ""]),
    st.text(max_size=300),
    _evidence | _json,
    st.sampled_from(list(State)),
)
def test_whatever_strangers_sent_stays_short_and_harmless(
    stage: str, problem: str, detail: str, challenge: str, identifier: str, seen: Any, state: State
) -> None:
    text = attempt(stage, problem, detail, challenge=challenge, identifier=identifier, seen=seen)
    row = late(state=state.value, attempts=1, failing_since=NOW, attempted_at=NOW, attempt=text, revoked_at=NOW)
    advice = advise(row, NOW)
    for told_text, most in ((advice.what, MOST_WHAT), (advice.seen, MOST_SEEN), (advice.do, MOST_DO)):
        assert 0 < len(told_text) <= most
        assert not any(
            ord(each) < 0x20 or 0x7F <= ord(each) < 0xA0 or each in "\u2028\u202e\u2066" for each in told_text
        )


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '"text"', "5", '{"seen": []}', '{"type": {}}'])
def test_a_row_that_holds_no_attempt(text: str) -> None:
    assert parse_failure(text) == Failure()
    advise(late(state="failing", attempt=text, attempts=1, failing_since=NOW, attempted_at=NOW), NOW)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "a moment"), (1, "1 second"), (59, "59 seconds"), (3599, "59 minutes"), (7200, "2 hours"), (-90000, "1 day"), (9e6, "104 days")],
)  # fmt: skip
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text
