"""http-01 (RFC 8555 section 8.3, RFC 8738) against real and hostile servers. Promises P10, P12."""

import asyncio
import gc
import json
import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import uvloop

from fakes.challenge_servers import (
    KEY_AUTHORIZATION,
    TOKEN,
    WELL_KNOWN,
    Pauses,
    Server,
    challenge_certificate,
    challenge_task,
    hostile,
    http_server,
    raw_server,
    read_head,
    response,
    server_tls,
    silent,
)
from fakes.dns import Knot, free_port, knot
from privyseal_acme.validation.validator import Outcome, Validator
from privyseal_ca.clock import SystemClock
from privyseal_ca.sections import ValidationSettings

pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture"),
]

PATH = WELL_KNOWN + TOKEN
GOOD = response("200 OK", KEY_AUTHORIZATION.encode())


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Knot]:
    with knot(tmp_path_factory.mktemp("knot")) as server:
        server.set("web.test", "A", "127.0.0.1")
        yield server


@pytest.fixture(autouse=True)
async def nothing_leaks() -> AsyncIterator[None]:
    """No socket stays open, and the loop has nothing to complain about."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    before = sockets()
    yield
    for _ in range(100):
        if sockets() <= before:
            break
        await asyncio.sleep(0.01)
    gc.collect()
    assert sockets() <= before
    assert complaints == []


def sockets() -> int:
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        try:
            found += str(fd.readlink()).startswith("socket:")
        except OSError:
            continue
    return found


async def check(names: Knot, value: str, *, sleep: Pauses | None = None, **settings: Any) -> Outcome:
    settings = {"resolvers": (names.address,), "timeout": 5, "attempts": 1, **settings}
    validator = Validator(ValidationSettings(**settings), clock=SystemClock(), sleep=sleep or Pauses())
    outcome = await validator.check(challenge_task("http-01", value))
    text = json.dumps(outcome.evidence)
    assert len(text) < 4096
    assert text.isascii()
    return outcome


def problem(outcome: Outcome) -> tuple[str, str]:
    assert not outcome.valid
    assert outcome.problem is not None
    return outcome.problem.type, outcome.problem.detail


async def test_a_name_that_serves_the_key_authorization_is_valid(names: Knot) -> None:
    async with http_server({PATH: GOOD}) as server:
        outcome = await check(names, "web.test", http_port=server.port)
        assert outcome.valid
        assert outcome.problem is None
        head = server.heads[0].decode()
        assert head.startswith(f"GET {PATH} HTTP/1.1\r\nHost: web.test:{server.port}\r\nUser-Agent: privyseal")
        assert "Connection: close" in head
        assert outcome.evidence["connections"] == [{"address": "127.0.0.1", "port": server.port, "result": "connected"}]
        assert outcome.evidence["requests"][0]["status"] == 200
        assert outcome.evidence["attempts"] == 1
        assert {"127.0.0.1"} == {each for lookup in outcome.evidence["dns"] for each in lookup["records"]}


async def test_the_default_port_is_not_in_the_host_field(names: Knot) -> None:
    # Redirected to the default port of https; the name of the field is what is looked at, as port 80 may be taken.
    async with raw_server(silent) as server:
        location = f"http://web.test:{server.port}/x"
        async with http_server({PATH: response("302 Found", b"", f"Location: {location}")}) as first:
            outcome = await check(names, "web.test", http_port=first.port, tls_port=server.port, timeout=0.5)
    assert problem(outcome)[0] == "connection"
    assert problem(outcome)[1] == f"The answer of web.test:{server.port} took longer than 0.5 seconds."


@pytest.mark.parametrize(("host", "value", "field"), [("127.0.0.1", "127.0.0.1", "127.0.0.1"), ("::1", "::1", "[::1]")])
async def test_an_address_is_asked_by_its_own_name(names: Knot, host: str, value: str, field: str) -> None:
    """RFC 8738 section 4."""
    async with http_server({PATH: GOOD}, host=host) as server:
        outcome = await check(names, value, http_port=server.port)
        assert outcome.valid
        assert f"Host: {field}:{server.port}\r\n".encode() in server.heads[0]
        assert "dns" not in outcome.evidence


async def test_ipv4_is_the_fallback_when_ipv6_refuses(names: Knot) -> None:
    names.set("dual.test", "A", "127.0.0.1")
    names.set("dual.test", "AAAA", "::1")
    async with http_server({PATH: GOOD}) as server:
        outcome = await check(names, "dual.test", http_port=server.port)
    assert outcome.valid
    tried = [(each["address"], each["result"]) for each in outcome.evidence["connections"]]
    assert tried == [("::1", "refused"), ("127.0.0.1", "connected")]


async def test_ipv6_is_preferred(names: Knot) -> None:
    names.set("six.test", "A", "127.0.0.1")
    names.set("six.test", "AAAA", "::1")
    async with http_server({PATH: GOOD}, host="::1") as server:
        outcome = await check(names, "six.test", http_port=server.port)
    assert outcome.valid
    assert [each["address"] for each in outcome.evidence["connections"]] == ["::1"]


async def test_an_address_that_hangs_leaves_time_for_the_next(names: Knot) -> None:
    """A full backlog drops the handshake, as a firewall would."""
    names.set("slow.test", "A", "127.0.0.1")
    names.set("slow.test", "AAAA", "::1")
    port = free_port()
    with (
        socket.socket(socket.AF_INET6) as full,
        socket.socket(socket.AF_INET6) as filler,
        socket.socket(socket.AF_INET6) as more,
    ):
        full.bind(("::1", port))
        full.listen(0)
        for each in (filler, more):
            each.setblocking(False)
            each.connect_ex(("::1", port))
        async with http_server({PATH: GOOD}, port=port):
            outcome = await check(names, "slow.test", http_port=port, timeout=1)
    assert outcome.valid
    tried = [(each["address"], each["result"]) for each in outcome.evidence["connections"]]
    assert tried == [("::1", "timed out"), ("127.0.0.1", "connected")]


async def test_an_ipv4_mapped_record_is_judged_and_reached_as_ipv4(names: Knot) -> None:
    names.set("mapped.test", "AAAA", "::ffff:127.0.0.1")
    names.set("metadata.test", "AAAA", "::ffff:169.254.169.254")
    async with http_server({PATH: GOOD}) as server:
        assert (await check(names, "mapped.test", http_port=server.port)).valid
        type_, detail = problem(await check(names, "metadata.test", http_port=server.port))
    assert type_ == "unauthorized"
    assert "169.254.169.254" in detail


@pytest.mark.parametrize("address", ["169.254.169.254", "8.8.8.8", "0.0.0.0", "224.0.0.1", "100.100.100.200"])  # noqa: S104
async def test_forbidden_networks_are_never_connected_to_nor_tried_again(names: Knot, address: str) -> None:
    names.set("forbidden.test", "A", address)
    pauses = Pauses()
    outcome = await check(names, "forbidden.test", attempts=3, sleep=pauses)
    assert problem(outcome)[0] == "unauthorized"
    assert outcome.evidence["connections"] == [{"address": address, "result": "not in the allowed networks"}]
    assert pauses.seconds == []


async def test_a_permitted_address_is_used_beside_a_forbidden_one(names: Knot) -> None:
    names.set("mixed.test", "A", "169.254.169.254", "127.0.0.1")
    async with http_server({PATH: GOOD}) as server:
        assert (await check(names, "mixed.test", http_port=server.port)).valid


async def test_denied_wins_over_allowed(names: Knot) -> None:
    async with http_server({PATH: GOOD}) as server:
        outcome = await check(names, "web.test", http_port=server.port, denied_networks=(ip_network("127.0.0.0/8"),))
        assert problem(outcome)[0] == "unauthorized"
        assert server.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(names: Knot, status: int) -> None:
    answers = {"/moved?a=b": GOOD}
    async with http_server(answers) as server:
        answers[PATH] = response(f"{status} Moved", b"look elsewhere", "Location: /moved?a=b#part")
        outcome = await check(names, "web.test", http_port=server.port)
    assert outcome.valid
    assert [each["status"] for each in outcome.evidence["requests"]] == [status, 200]


async def test_a_redirect_to_https_is_followed_whatever_its_certificate(names: Knot, tmp_path: Path) -> None:
    seen: list[str | None] = []
    names.set("other.test", "A", "127.0.0.1")
    tls = server_tls(tmp_path, *challenge_certificate("unrelated.test", ""), names_seen=seen)
    async with (
        http_server({"/x": GOOD}, tls=tls) as secure,
        http_server({PATH: response("301 Moved", b"", "Location: https://other.test/x")}) as server,
    ):
        outcome = await check(names, "web.test", http_port=server.port, tls_port=secure.port)
        assert outcome.valid, outcome
        assert seen == ["other.test"]
        location = f"https://127.0.0.1:{secure.port}/x"
        async with http_server({PATH: response("301 Moved", b"", f"Location: {location}")}) as second:
            assert (await check(names, "web.test", http_port=second.port, tls_port=secure.port)).valid
        assert seen == ["other.test", None]


async def test_a_redirect_without_a_port_means_the_configured_one(names: Knot) -> None:
    names.set("other.test", "A", "127.0.0.1")
    answers = {PATH: response("302 Found", b"", "Location: http://other.test/y"), "/y": GOOD}
    async with http_server(answers) as server:
        assert (await check(names, "web.test", http_port=server.port)).valid


@pytest.mark.parametrize(
    ("location", "type_", "clause"),
    [
        ("http://169.254.169.254/latest/meta-data/", "unauthorized", "169.254.169.254"),
        ("http://[::ffff:169.254.169.254]/", "unauthorized", "169.254.169.254"),
        ("http://evil.test/", "unauthorized", "169.254.169.254"),
        ("http://127.0.0.1:22/", "connection", "port 22"),
        ("ftp://web.test/x", "connection", "something else than http"),
        ("file:///etc/passwd", "connection", "malformed"),
        ("http://user:secret@web.test/", "connection", "malformed"),
        ("http://[fe80::1%25lo]/", "connection", "malformed"),
        ("http://web.test:99999/", "connection", "malformed"),
        ("http://a b/", "connection", "malformed"),
        ("http://web.test/\xe9", "connection", "malformed"),
        ("http://" + "a" * 3000 + "/", "connection", "malformed"),
        ("", "connection", "malformed"),
    ],
)
async def test_redirects_that_are_not_followed(names: Knot, location: str, type_: str, clause: str) -> None:
    names.set("evil.test", "A", "169.254.169.254")
    answer = b"HTTP/1.1 302 Found\r\nLocation: " + location.encode("latin-1") + b"\r\nContent-Length: 0\r\n\r\n"
    async with http_server({PATH: answer}) as server:
        found, detail = problem(await check(names, "web.test", http_port=server.port))
    assert found == type_
    assert clause in detail
    assert "secret" not in detail


async def test_a_circle_of_redirects_ends(names: Knot) -> None:
    answers = {
        PATH: response("302 Found", b"", "Location: /a"),
        "/a": response("302 Found", b"", "Location: /b"),
        "/b": response("302 Found", b"", "Location: /a"),
    }
    async with http_server(answers) as server:
        outcome = await check(names, "web.test", http_port=server.port)
        assert server.connections == 3
    assert "in a circle" in problem(outcome)[1]


async def test_redirects_are_counted(names: Knot) -> None:
    answers = {f"/{index}": response("302 Found", b"", f"Location: /{index + 1}") for index in range(30)}
    answers[PATH] = response("302 Found", b"", "Location: /0")
    async with http_server(answers) as server:
        outcome = await check(names, "web.test", http_port=server.port, redirects=20)
        assert server.connections == 21
    assert problem(outcome) == ("connection", "More than 20 redirects.")


@pytest.mark.parametrize(
    "answer",
    [
        response("200 OK", KEY_AUTHORIZATION.encode() + b"\r\n \t\n"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"
        + KEY_AUTHORIZATION.encode()[:5]
        + f"\r\n{len(KEY_AUTHORIZATION) - 5:x}\r\n".encode()
        + KEY_AUTHORIZATION.encode()[5:]
        + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + KEY_AUTHORIZATION.encode(),
        b"HTTP/1.0 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n" + KEY_AUTHORIZATION.encode(),
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + GOOD,
    ],
    ids=["whitespace", "chunked", "until-close", "http-1.0", "interim"],
)
async def test_forms_of_the_right_answer(names: Knot, answer: bytes) -> None:
    async with http_server({PATH: answer}) as server:
        outcome = await check(names, "web.test", http_port=server.port)
    assert outcome.valid, outcome


@pytest.mark.parametrize(
    ("answer", "type_", "clause"),
    [
        (response("200 OK", b"SECRET of another service"), "incorrectResponse", "25 bytes that are not"),
        (response("200 OK", b" " + KEY_AUTHORIZATION.encode()), "incorrectResponse", "not the key"),
        (response("200 OK", KEY_AUTHORIZATION.encode() + b"x"), "incorrectResponse", "not the key"),
        (response("200 OK", KEY_AUTHORIZATION.upper().encode()), "incorrectResponse", "not the key"),
        (response("200 OK", b""), "incorrectResponse", "0 bytes"),
        (response("200 OK", b"SECRET" * 1000), "incorrectResponse", "more than"),
        (response("200 OK", KEY_AUTHORIZATION.encode() + b"\n" * 600), "incorrectResponse", "more than"),
        (response("404 Not Found", KEY_AUTHORIZATION.encode()), "incorrectResponse", "status 404"),
        (response("201 Created", KEY_AUTHORIZATION.encode()), "incorrectResponse", "status 201"),
        (response("500 SECRET", b"SECRET"), "incorrectResponse", "status 500"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "incorrectResponse", "status 101"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + KEY_AUTHORIZATION.encode(), "connection", "closed before"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", "connection", "closed before"),
        (b"SSH-2.0-OpenSSH_9.9 SECRET\r\n", "connection", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20000 + b"\r\n\r\n", "connection", "head of the answer is too long"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 2000 + GOOD, "connection", "head of the answer is too long"),
    ],
)
async def test_wrong_answers_are_described_but_never_repeated(
    names: Knot, answer: bytes, type_: str, clause: str
) -> None:
    async with http_server({PATH: answer}) as server:
        outcome = await check(names, "web.test", http_port=server.port)
    found, detail = problem(outcome)
    assert (found, clause in detail) == (type_, True), detail
    assert "SECRET" not in detail + json.dumps(outcome.evidence)


@pytest.mark.parametrize(
    ("serve", "clause"),
    [
        (silent, "took longer than 0.3 seconds"),
        (hostile(then=lambda: b"x" * 65536), "not HTTP"),
        (hostile(head=b"HTTP/1.1 200 OK\r\n", then=lambda: b"X: y\r\n" * 1000), "head of the answer is too long"),
        (hostile(head=b"HTTP/1.1 200 OK\r\n\r\n", then=lambda: b"x" * 65536), "more than"),
        (
            hostile(head=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1", then=lambda: b";a=b" * 1000),
            "too long",
        ),
        (hostile(head=b"HTTP/1.1 200 OK\r\n", then=lambda: b"X", pause=0.02), "took longer than 0.3 seconds"),
        (hostile(head=b"HTTP/1.1 200 OK\r\n\r\n", then=lambda: b" ", pause=0.02), "took longer than 0.3 seconds"),
    ],
    ids=["hangs", "streams", "headers", "body", "chunks", "drips-head", "drips-body"],
)
async def test_hostile_servers_cost_a_bounded_time(names: Knot, serve: Any, clause: str) -> None:
    async with raw_server(serve) as server:
        started = asyncio.get_running_loop().time()
        outcome = await check(names, "web.test", http_port=server.port, timeout=0.3)
        assert asyncio.get_running_loop().time() - started < 2
        assert clause in problem(outcome)[1]
        await asyncio.wait_for(server.idle.wait(), 5)


async def test_a_connection_that_is_reset(names: Knot) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: Server) -> None:
        await read_head(reader, state)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.transport.abort()

    async with raw_server(reset) as server:
        type_, detail = problem(await check(names, "web.test", http_port=server.port))
    assert type_ == "connection"
    assert "before the answer was complete" in detail


async def test_a_refused_connection_names_address_and_port(names: Knot) -> None:
    port = free_port()
    outcome = await check(names, "web.test", http_port=port, attempts=3)
    assert problem(outcome) == ("connection", f"No connection to 127.0.0.1 port {port}: refused.")
    assert outcome.evidence["attempts"] == 3
    assert outcome.evidence["earlier"] == ["connection", "connection"]


async def test_no_more_than_four_addresses_are_tried(names: Knot) -> None:
    names.set("many.test", "A", *(f"127.0.0.{index}" for index in range(1, 40)))
    outcome = await check(names, "many.test", http_port=free_port())
    assert problem(outcome)[0] == "connection"
    assert len(outcome.evidence["connections"]) == 4


async def test_a_cancelled_check_leaves_nothing_behind(names: Knot) -> None:
    async with raw_server(silent) as server:
        validator = Validator(
            ValidationSettings(resolvers=(names.address,), http_port=server.port), clock=SystemClock()
        )
        running = asyncio.create_task(validator.check(challenge_task("http-01", "web.test")))
        await asyncio.wait_for(server.taken.wait(), 5)
        await validator.close()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.wait_for(server.idle.wait(), 5)


async def test_many_checks_at_once(names: Knot) -> None:
    async with http_server({PATH: GOOD}) as server:
        validator = Validator(
            ValidationSettings(resolvers=(names.address,), http_port=server.port), clock=SystemClock()
        )
        outcomes = await asyncio.gather(*(validator.check(challenge_task("http-01", "web.test")) for _ in range(100)))
        assert all(outcome.valid for outcome in outcomes)
        await validator.close()


async def test_the_system_resolver_knows_localhost_and_all_below_it(names: Knot) -> None:
    """RFC 6761 section 6.3."""
    async with http_server({PATH: GOOD}) as server:
        for name in ("localhost", "web.dev.localhost"):
            outcome = await check(names, name, http_port=server.port, resolvers=())
            assert outcome.valid, outcome
