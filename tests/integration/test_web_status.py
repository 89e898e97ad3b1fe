"""The plain listener over real connections: what is served, with which headers, and what becomes of broken requests."""

import asyncio
import dataclasses
import hashlib
import json
import re
import socket
from base64 import b32encode, b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

import pytest
import uvloop
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fakes.service import FakeClock
from fakes.status_sources import ISSUER_ID, MemoryCrls, MemoryOcsp, Reply, exchange, read_reply
from privyseal_acme.listener import Listener
from privyseal_ca.revocation.ocsp_response import Revoked
from privyseal_ca.revocation.published import OcspStatus, PublishedCrl
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.web import streaming
from privyseal_ca.web.ocsp import OcspRoutes
from privyseal_ca.web.ocsp_cache import AnswerCache
from privyseal_ca.web.status import Anchors, Readiness, status_app

GOOD, UNKNOWN = 0x7F << 100, 0x7E << 100
OCSP_TYPE = {"Content-Type": "application/ocsp-request"}


class Status:
    """A listener with sources in memory and a clock that stands still."""

    def __init__(self, max_age: int = 60) -> None:
        self.clock = FakeClock()
        self.ocsp = MemoryOcsp(self.clock.now)
        self.ocsp.statuses[GOOD] = "good"
        self.crls = MemoryCrls(self.clock.now)
        self.metrics = Metrics()
        self.readiness = Readiness({"token": "", "database": ""})
        self.max_age = max_age
        self.port = 0

    async def ready(self) -> Readiness:
        return self.readiness

    def app(self) -> web.Application:
        return status_app(
            Anchors(b"PEM", {ISSUER_ID: (b"DER", b"PEM")}),
            self.metrics,
            self.ready,
            crls=self.crls,
            ocsp=self.ocsp,
            max_age=self.max_age,
            clock=self.clock,
        )

    @asynccontextmanager
    async def listening(self, app: web.Application | None = None) -> AsyncIterator["Status"]:
        async with Listener(app or self.app(), "127.0.0.1", 0, grace=1) as listener:
            self.port = listener.port
            yield self

    async def get(self, target: str | bytes, **options: Any) -> Reply:
        return await exchange(self.port, target, **options)

    async def ask(self, serial: int, **options: Any) -> Reply:
        return await self.get(path_of(self.ocsp.request(serial)), **options)

    async def post(self, body: bytes, *, target: str = "/ocsp", headers: dict[str, str] | None = None) -> Reply:
        sent = OCSP_TYPE if headers is None else headers
        return await exchange(self.port, target, method="POST", body=body, headers=sent)

    def counted(self, method: str, answer: str) -> float:
        return (
            self.metrics.registry.get_sample_value(
                "privyseal_ocsp_requests_total", {"method": method, "answer": answer}
            )
            or 0.0
        )


def path_of(request: bytes) -> str:
    return f"/ocsp/{quote(b64encode(request).decode(), safe='')}"


def status_of(reply: Reply) -> ocsp.OCSPResponseStatus:
    assert reply.status == 200, reply
    assert reply.headers["content-type"] == "application/ocsp-response"
    return ocsp.load_der_ocsp_response(reply.body).response_status


def certificate_status(reply: Reply) -> ocsp.OCSPCertStatus:
    assert status_of(reply) is ocsp.OCSPResponseStatus.SUCCESSFUL
    return ocsp.load_der_ocsp_response(reply.body).certificate_status


@pytest.fixture
async def status() -> AsyncIterator[Status]:
    async with asyncio.timeout(60), Status().listening() as listening:
        yield listening


# What OCSP answers say to caches


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_answer_says_how_long_it_may_be_kept(status: Status, method: str) -> None:
    """RFC 9919: these headers, and never no-store or no-cache."""
    request = status.ocsp.request(GOOD)
    for _ in ("signed", "cached"):
        reply = await (status.ask(GOOD) if method == "GET" else status.post(request))
        response = ocsp.load_der_ocsp_response(reply.body)
        assert reply.status == 200
        headers = {name: value for name, value in reply.headers.items() if name not in {"date", "server", "connection"}}
        assert headers == {
            "content-type": "application/ocsp-response",
            "content-length": str(len(reply.body)),
            "cache-control": "max-age=60, public, no-transform, must-revalidate",
            "last-modified": formatdate(response.this_update_utc.timestamp(), usegmt=True),
            "expires": formatdate(response.next_update_utc.timestamp(), usegmt=True),  # type: ignore[union-attr]
            "etag": f'"{hashlib.sha256(reply.body).hexdigest()}"',
            "access-control-allow-origin": "*",
        }
    assert status.ocsp.asked == 1
    assert status.counted(method.lower(), "signed") == status.counted(method.lower(), "cached") == 1


async def test_max_age_ends_with_the_answer(status: Status) -> None:
    status.ocsp.lifetime = 100
    ages = []
    for _ in range(5):
        ages.append(int((await status.ask(GOOD)).headers["cache-control"].partition(",")[0].removeprefix("max-age=")))
        # Later than fresh_until the source is asked again, and makes a new one.
        status.clock.advance(12)
    assert ages == [60, 60, 60, 60, 60]
    status.ocsp.lifetime = 40
    status.ocsp.revoke(GOOD)
    ages = []
    for _ in range(4):
        ages.append(int((await status.ask(GOOD)).headers["cache-control"].partition(",")[0].removeprefix("max-age=")))
        status.clock.advance(5)
    assert all(age <= 40 for age in ages)


async def test_an_answer_is_never_served_longer_than_its_source_wants(status: Status) -> None:
    await status.ask(GOOD)
    status.clock.advance(status.ocsp.lifetime / 2 - 1)
    await status.ask(GOOD)
    assert status.ocsp.asked == 1
    status.clock.advance(1)
    await status.ask(GOOD)
    assert status.ocsp.asked == 2


async def test_an_answer_with_a_nonce_is_for_one_request(status: Status) -> None:
    request = status.ocsp.request(GOOD, nonce=bytes(range(32)))
    for reply in (await status.post(request), await status.post(request), await status.get(path_of(request))):
        assert certificate_status(reply) is ocsp.OCSPCertStatus.GOOD
        nonce = ocsp.load_der_ocsp_response(reply.body).extensions.get_extension_for_class(x509.OCSPNonce)
        assert nonce.value.nonce == bytes(range(32))
        assert reply.headers["cache-control"] == "max-age=0, no-transform, must-revalidate"
        assert not {"etag", "expires", "last-modified"} & reply.headers.keys()
    assert status.ocsp.asked == 3


async def test_an_unknown_serial_is_asked_about_each_time(status: Status) -> None:
    for _ in range(2):
        reply = await status.ask(UNKNOWN)
        assert certificate_status(reply) is ocsp.OCSPCertStatus.UNKNOWN
        assert reply.headers["cache-control"] == "max-age=0, no-transform, must-revalidate"
    status.ocsp.statuses[UNKNOWN] = "good"
    assert certificate_status(await status.ask(UNKNOWN)) is ocsp.OCSPCertStatus.GOOD


@pytest.mark.parametrize("refusal", list(OcspStatus))
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unsigned_status_is_not_kept(status: Status, refusal: OcspStatus, method: str) -> None:
    status.ocsp.refusal = refusal
    request = status.ocsp.request(GOOD)
    reply = await (status.ask(GOOD) if method == "GET" else status.post(request))
    assert status_of(reply).value == refusal
    assert reply.headers["cache-control"] == "no-store"
    status.ocsp.refusal = None
    assert certificate_status(await status.ask(GOOD)) is ocsp.OCSPCertStatus.GOOD


async def test_every_refusal_is_counted(status: Status) -> None:
    names = {1: "malformed", 2: "error", 3: "try_later", 5: "error", 6: "unauthorized"}
    for refusal in OcspStatus:
        status.ocsp.refusal = refusal
        before = status.counted("get", names[refusal])
        await status.ask(GOOD)
        assert status.counted("get", names[refusal]) == before + 1


async def test_another_issuers_certificate_is_not_known_here(status: Status) -> None:
    assert status_of(await status.post(MemoryOcsp().request(GOOD))) is ocsp.OCSPResponseStatus.UNAUTHORIZED


# OCSP, asked conditionally


async def test_who_has_the_answer_is_told_so(status: Status) -> None:
    whole = await status.ask(GOOD)
    tag, date = whole.headers["etag"], whole.headers["last-modified"]
    earlier = formatdate(status.clock.now() - 10, usegmt=True)
    later = formatdate(status.clock.now() + 10, usegmt=True)
    for headers in (
        {"If-None-Match": tag},
        {"If-None-Match": f'"x", W/{tag}'},
        {"If-None-Match": "*"},
        {"If-None-Match": tag, "If-Modified-Since": earlier},
        {"If-Modified-Since": date},
        {"If-Modified-Since": later},
    ):
        reply = await status.ask(GOOD, headers=headers)
        assert (reply.status, reply.body) == (304, b""), headers
        for name in ("etag", "cache-control", "expires", "last-modified"):
            assert reply.headers[name] == whole.headers[name]
        assert "content-length" not in reply.headers
    assert status.counted("get", "not_modified") == 6
    for headers in (
        {"If-None-Match": '"x"'},
        {"If-None-Match": "garbage"},
        {"If-None-Match": '"x"', "If-Modified-Since": date},
        {"If-Modified-Since": earlier},
        {"If-Modified-Since": "yesterday"},
        {"If-Modified-Since": "Sun, 06 Nov 99999999999999999999 08:49:37 GMT"},
        {"If-Modified-Since": "Sun, 06 Nov 1994 99:99:99 GMT"},
        {"If-Modified-Since": ""},
    ):
        reply = await status.ask(GOOD, headers=headers)
        assert (reply.status, reply.body) == (200, whole.body), headers


async def test_a_revoked_certificate_is_never_not_modified(status: Status) -> None:
    good = (await status.ask(GOOD)).headers
    status.ocsp.revoke(GOOD)
    # Dates have whole seconds, and both answers may be of the same one.
    for condition in ({"If-None-Match": good["etag"]}, {"If-Modified-Since": good["last-modified"]}):
        reply = await status.ask(GOOD, headers=condition)
        assert certificate_status(reply) is ocsp.OCSPCertStatus.REVOKED


async def test_a_post_is_not_conditional(status: Status) -> None:
    request = status.ocsp.request(GOOD)
    tag = (await status.post(request)).headers["etag"]
    assert (await status.post(request, headers={**OCSP_TYPE, "If-None-Match": tag})).status == 200


async def test_head_is_get_without_a_body(status: Status) -> None:
    whole = await status.ask(GOOD)
    reply = await status.ask(GOOD, method="HEAD")
    assert reply.status == 200
    assert {**reply.headers, "date": ""} == {**whole.headers, "date": ""}
    assert (await status.ask(GOOD, method="HEAD", headers={"If-None-Match": whole.headers["etag"]})).status == 304


# Answers that are kept


async def test_a_revocation_is_seen_by_the_next_request(status: Status) -> None:
    request = status.ocsp.request(GOOD)
    for _ in range(2):
        assert certificate_status(await status.ask(GOOD)) is ocsp.OCSPCertStatus.GOOD
        assert certificate_status(await status.post(request)) is ocsp.OCSPCertStatus.GOOD
    status.ocsp.revoke(GOOD)
    assert certificate_status(await status.ask(GOOD)) is ocsp.OCSPCertStatus.REVOKED
    assert certificate_status(await status.post(request)) is ocsp.OCSPCertStatus.REVOKED


async def test_an_answer_that_a_revocation_overtakes_is_not_kept(status: Status) -> None:
    def overtaken() -> None:
        status.ocsp.delay = lambda: None
        status.ocsp.revoke(GOOD)

    status.ocsp.delay = overtaken
    assert certificate_status(await status.ask(GOOD)) is ocsp.OCSPCertStatus.GOOD
    assert certificate_status(await status.ask(GOOD)) is ocsp.OCSPCertStatus.REVOKED


async def test_only_good_requests_are_kept() -> None:
    status, cache, app = Status(), AnswerCache(), web.Application()
    OcspRoutes(status.ocsp, limit=60, clock=status.clock, metrics=status.metrics, cache=cache).register(app)
    async with status.listening(app):
        for target in ("/ocsp/", "/ocsp/AAAA", path_of(b"0\x03\x02\x01\x01"), path_of(status.ocsp.request(UNKNOWN))):
            await status.get(target)
        for body in (b"", b"garbage", bytes(2048), status.ocsp.request(GOOD, nonce=bytes(32))):
            await status.post(body)
        assert len(cache) == 0
        await status.ask(GOOD)
        await status.post(status.ocsp.request(GOOD))
        assert len(cache) == 2
        status.ocsp.revoke(GOOD)
        assert len(cache) == 0


# OCSP requests as they come


async def test_a_path_is_read_in_every_spelling(status: Status) -> None:
    text = b64encode(status.ocsp.request(GOOD)).decode()
    for spelling in (
        f"/ocsp/{text}",
        f"/ocsp/{quote(text, safe='')}",
        f"/ocsp/{quote(quote(text, safe=''), safe='')}",
        f"/ocsp/{text.rstrip('=')}",
        f"/ocsp/{urlsafe_b64encode(status.ocsp.request(GOOD)).decode()}",
        f"/ocsp//{text}",
        f"/ocsp/{text}/",
        f"/ocsp/{text}?x=y",
        f"/ocsp/{text}#fragment",
        f"http://127.0.0.1:{status.port}/ocsp/{text}",
    ):
        assert certificate_status(await status.get(spelling)) is ocsp.OCSPCertStatus.GOOD, spelling


async def test_slashes_in_the_path_are_base64(status: Status) -> None:
    serial = int.from_bytes(b"\x7f" + b"\xff" * 15)
    status.ocsp.statuses[serial] = Revoked(int(status.clock.now()), 1)
    text = b64encode(status.ocsp.request(serial)).decode()
    assert "//" in text
    for spelling in (text, text.replace("/", "%2F"), text.replace("/", "%252F"), text.replace("/", "_")):
        assert certificate_status(await status.get(f"/ocsp/{spelling}")) is ocsp.OCSPCertStatus.REVOKED


@pytest.mark.parametrize(
    "target",
    ["/ocsp", "/ocsp/", "/ocsp/garbage", "/ocsp/%", "/ocsp/MA", "/ocsp/../../etc/passwd", "/ocsp/%2e%2e/", "/ocsp/?x",
     "/ocsp/" + "A" * 1023],
)  # fmt: skip
async def test_a_path_that_is_no_request_is_malformed(status: Status, target: str) -> None:
    assert status_of(await status.get(target)) is ocsp.OCSPResponseStatus.MALFORMED_REQUEST
    assert status.counted("get", "malformed") == 1


@pytest.mark.parametrize("body", [b"", b"garbage", bytes(2048), b"0\x80", b"\x30\x03\x02\x01\x00"])
async def test_a_body_that_is_no_request_is_malformed(status: Status, body: bytes) -> None:
    assert status_of(await status.post(body)) is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


def sequence(content: bytes) -> bytes:
    """A DER SEQUENCE of less than 256 octets."""
    size = len(content)
    return b"\x30" + (bytes((size,)) if size < 0x80 else bytes((0x81, size))) + content


def broken_texts(request: bytes) -> Iterator[str]:
    """What clients, proxies and attackers make of the text of a good request."""
    text = b64encode(request).decode()
    yield from (
        text[:-1],
        text[: len(text) // 2],
        text[1:],
        f"A{text}",
        f"{text}AAAA",
        f"{text}{text}",
        f"{text}/{text}",
    )
    yield from (request.hex(), quote(request), quote(request.hex()), b32encode(request).decode())
    yield from (text.lower(), text.swapcase(), text[:20] + "*" + text[20:], text[:20] + "%00" + text[20:], text + "%00")
    yield from (
        text[:20] + "%ff" + text[20:],
        text[:20] + "%",
        text[:20] + "%4",
        quote(quote(quote(quote(text, safe="")))),
    )
    yield from (f"..%2f{text}", f"x/{text}", f"issuer/{text}", f"?{text}", f"{text[:40]}?{text[40:]}", f"#{text}")
    yield quote(f"-----BEGIN OCSP REQUEST-----\n{text}\n-----END OCSP REQUEST-----")
    indefinite = b"\x30\x80" + request[2:] + bytes(2)
    for der in (request[:-1], request + b"\0", request * 2, request[2:], b"\x31" + request[1:], indefinite):
        yield quote(b64encode(der).decode(), safe="")
    # Without the three SEQUENCEs around it; then none, and two, where there must be one.
    single = request[6:]
    assert sequence(sequence(sequence(single))) == request
    for count in (0, 2):
        yield quote(b64encode(sequence(sequence(sequence(single * count)))).decode(), safe="")


async def test_a_get_that_is_broken_is_never_an_answer(status: Status) -> None:
    """Each is made from a request whose answer would be good."""
    request = status.ocsp.request(GOOD)
    texts = list(broken_texts(request))
    for text in texts:
        reply = await status.get(f"/ocsp/{text}")
        assert reply.status in {200, 400, 414}, (text, reply)
        if reply.status == 200:
            assert status_of(reply) is ocsp.OCSPResponseStatus.MALFORMED_REQUEST, text
        assert reply.headers.get("cache-control", "no-store") == "no-store", text
    assert status.ocsp.asked == 0
    assert status.counted("get", "malformed") > len(texts) / 2
    assert certificate_status(await status.ask(GOOD)) is ocsp.OCSPCertStatus.GOOD


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("octets", "repeated"),
    [(0, None), (1, False), (15, False), (16, True), (32, True), (33, True), (128, True), (129, None)],
)
async def test_nonces_by_their_length(status: Status, method: str, octets: int, repeated: bool | None) -> None:
    """RFC 9654 section 2.1: repeated, left out or (None) malformed."""
    request = status.ocsp.request(GOOD, nonce=bytes(octets))
    reply = await (status.get(path_of(request)) if method == "GET" else status.post(request))
    if repeated is None:
        assert status_of(reply) is ocsp.OCSPResponseStatus.MALFORMED_REQUEST
        return
    assert certificate_status(reply) is ocsp.OCSPCertStatus.GOOD
    found = [
        extension.value.nonce
        for extension in ocsp.load_der_ocsp_response(reply.body).extensions
        if isinstance(extension.value, x509.OCSPNonce)
    ]
    assert found == ([bytes(octets)] if repeated else [])


async def test_a_path_that_is_too_long_is_refused(status: Status) -> None:
    reply = await status.get("/ocsp/" + "A" * 1024)
    assert (reply.status, reply.headers["cache-control"]) == (414, "no-store")


@pytest.mark.parametrize("target", ["/ocsp", "/ocsp/"])
@pytest.mark.parametrize(
    "kind",
    [None, "application/ocsp-request", "Application/OCSP-Request", "application/ocsp-request; charset=utf-8"],
)
async def test_a_post_may_say_nothing_of_its_type(status: Status, target: str, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    reply = await status.post(status.ocsp.request(GOOD), target=target, headers=headers)
    assert certificate_status(reply) is ocsp.OCSPCertStatus.GOOD


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/ocsp-response", "application/ocsp-requests", "x" * 999]
)
async def test_another_type_is_refused(status: Status, kind: str) -> None:
    reply = await status.post(status.ocsp.request(GOOD), headers={"Content-Type": kind})
    assert reply.status == 415
    assert status.counted("post", "malformed") == 1


@pytest.mark.parametrize("size", [2049, 3000, 1_000_000])
async def test_a_body_that_is_too_large_is_refused(status: Status, size: int) -> None:
    assert (await status.post(bytes(size))).status == 413


async def chunked(port: int, *chunks: bytes) -> Reply:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /ocsp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        for chunk in chunks:
            writer.write(chunk)
            await asyncio.sleep(0)
        return await read_reply(reader)
    finally:
        writer.close()


async def test_a_body_may_come_in_pieces(status: Status) -> None:
    request = status.ocsp.request(GOOD)
    pieces = [b"1\r\n" + request[at : at + 1] + b"\r\n" for at in range(len(request))]
    assert certificate_status(await chunked(status.port, *pieces, b"0\r\n\r\n")) is ocsp.OCSPCertStatus.GOOD


async def test_a_body_without_end_is_refused(status: Status) -> None:
    assert (await chunked(status.port, *[b"400\r\n" + bytes(1024) + b"\r\n"] * 5)).status == 413


async def test_a_body_that_is_no_http_is_refused(status: Status) -> None:
    assert (await chunked(status.port, b"3\r\nabc\r\n", b"zz\r\n")).status == 400


async def test_a_slow_body_is_not_waited_for() -> None:
    status, app = Status(), web.Application()
    OcspRoutes(status.ocsp, limit=60, clock=status.clock, metrics=status.metrics, patience=0.05).register(app)
    async with asyncio.timeout(20), status.listening(app):
        reader, writer = await asyncio.open_connection("127.0.0.1", status.port)
        writer.write(b"POST /ocsp HTTP/1.1\r\nHost: x\r\nContent-Length: 80\r\n\r\n0")
        assert (await read_reply(reader)).status == 408
        writer.close()


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("PUT", "/ocsp", {"GET", "HEAD", "POST"}),
        ("OPTIONS", "/ocsp/AAAA", {"GET", "HEAD"}),
        ("POST", "/ocsp/AAAA", {"GET", "HEAD"}),
        ("DELETE", "/ocsp/", {"GET", "HEAD", "POST"}),
        ("POST", f"/crl/{ISSUER_ID}.crl", {"GET", "HEAD"}),
        ("PUT", "/roots.pem", {"GET", "HEAD"}),
        ("POST", "/crls.pem", {"GET", "HEAD"}),
    ],
)
async def test_other_methods_are_refused(status: Status, method: str, target: str, allowed: set[str]) -> None:
    reply = await exchange(status.port, target, method=method, body=b"")
    assert reply.status == 405
    assert set(reply.headers["allow"].split(",")) == allowed


@pytest.mark.parametrize("target", ["/ocspx", "/ocsp.der", "/OCSP/AAAA", "/xocsp/AAAA", "/x/ocsp/AAAA"])
async def test_paths_beside_it_do_not_exist(status: Status, target: str) -> None:
    assert (await status.get(target)).status == 404


# HTTP/1.1 request targets are printable ASCII; the rest is what a parser refuses before any of this is reached.
TARGETS = st.one_of(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=300),
    st.text(alphabet="MEAw+/=_-%2F5 .", max_size=300).map(lambda text: text.replace(" ", "%20")),
    st.binary(max_size=200).map(lambda der: b64encode(der).decode()),
    st.binary(max_size=200).map(lambda der: quote(b64encode(b"0" + bytes((len(der),)) + der).decode(), safe="")),
)


def test_any_path_has_an_answer() -> None:
    status = Status()

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(TARGETS)
    @example("%")
    @example("%25%")
    @example("//")
    @example("MA==")
    def answered(text: str) -> None:
        reply = runner.run(status.get(f"/ocsp/{text}"))
        assert reply.status == 200 or 400 <= reply.status < 500, (text, reply)
        if reply.status == 200:
            assert status_of(reply) in ocsp.OCSPResponseStatus

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        serving = status.listening()
        runner.run(serving.__aenter__())
        try:
            answered()
        finally:
            runner.run(serving.__aexit__(None, None, None))


# CRLs


async def test_a_crl_says_how_long_it_may_be_kept(status: Status) -> None:
    crl = status.crls.publish()
    reply = await status.get(f"/crl/{ISSUER_ID}.crl")
    headers = {name: value for name, value in reply.headers.items() if name not in {"date", "server", "connection"}}
    assert (reply.status, reply.body) == (200, status.crls.der[crl.sha256])
    assert headers == {
        "content-type": "application/pkix-crl",
        "content-length": str(crl.size),
        "cache-control": "max-age=60, public, no-transform, must-revalidate",
        "last-modified": formatdate(crl.this_update, usegmt=True),
        "expires": formatdate(crl.next_update, usegmt=True),
        "etag": f'"{crl.sha256.hex()}"',
        "access-control-allow-origin": "*",
    }


async def test_every_scope_has_its_path(status: Status) -> None:
    full, shard, delta = status.crls.publish(), status.crls.publish(7), status.crls.publish(7, delta=True)
    for path, crl in ((".crl", full), ("/7.crl", shard), ("/7-delta.crl", delta)):
        assert (await status.get(f"/crl/{ISSUER_ID}{path}")).body == status.crls.der[crl.sha256]


async def test_who_has_the_crl_is_told_so(status: Status) -> None:
    status.crls.publish(0)
    whole = await status.get(f"/crl/{ISSUER_ID}/0.crl")
    given = status.crls.given
    for headers in ({"If-None-Match": whole.headers["etag"]}, {"If-Modified-Since": whole.headers["last-modified"]}):
        reply = await status.get(f"/crl/{ISSUER_ID}/0.crl", headers=headers)
        assert (reply.status, reply.body) == (304, b"")
        assert {name: reply.headers[name] for name in ("etag", "expires", "cache-control", "last-modified")} == {
            name: whole.headers[name] for name in ("etag", "expires", "cache-control", "last-modified")
        }
    assert status.crls.given == given
    # Another one in the same second, which dates do not tell apart.
    status.crls.publish(0)
    reply = await status.get(f"/crl/{ISSUER_ID}/0.crl", headers={"If-Modified-Since": whole.headers["last-modified"]})
    assert (reply.status, reply.body == whole.body) == (200, False)
    status.clock.advance(1)
    status.crls.publish(0)
    reply = await status.get(f"/crl/{ISSUER_ID}/0.crl", headers={"If-None-Match": whole.headers["etag"]})
    assert (reply.status, reply.body == whole.body) == (200, False)


async def test_head_reads_no_crl(status: Status) -> None:
    crl = status.crls.publish()
    reply = await status.get(f"/crl/{ISSUER_ID}.crl", method="HEAD")
    assert (reply.status, reply.headers["content-length"], status.crls.given) == (200, str(crl.size), 0)


async def test_a_crl_is_served_beyond_its_next_update(status: Status) -> None:
    crl = status.crls.publish()
    status.clock.advance(crl.next_update - crl.this_update - 10)
    reply = await status.get(f"/crl/{ISSUER_ID}.crl")
    assert reply.headers["cache-control"].startswith("max-age=10,")
    status.clock.advance(1000)
    reply = await status.get(f"/crl/{ISSUER_ID}.crl")
    assert (reply.status, reply.body) == (200, status.crls.der[crl.sha256])
    assert reply.headers["cache-control"].startswith("max-age=0,")


async def test_a_large_crl_comes_in_pieces(status: Status) -> None:
    crl = status.crls.publish(entries=30_000)
    status.crls.piece = 10_000
    reply = await status.get(f"/crl/{ISSUER_ID}.crl")
    assert reply.headers["content-length"] == str(crl.size)
    assert reply.body == status.crls.der[crl.sha256]


@pytest.mark.parametrize(
    "path",
    ["", "x", ".crl", "/.crl", f"{ISSUER_ID}", f"{ISSUER_ID}.crl/", f"{ISSUER_ID}.crl.crl", f"{ISSUER_ID}/.crl",
     f"{ISSUER_ID}/-1.crl", f"{ISSUER_ID}/999999.crl", f"{ISSUER_ID}/9999999.crl", f"{ISSUER_ID}/00.crl",
     f"{ISSUER_ID}/01.crl", f"{ISSUER_ID}/x.crl", f"{ISSUER_ID}/0x0.crl", f"{ISSUER_ID}/1.crl", f"{ISSUER_ID}/0-delta.crl",
     f"{ISSUER_ID}-delta.crl", f"{ISSUER_ID}/0-delta-delta.crl", f"{ISSUER_ID}/0.CRL", f"{ISSUER_ID}/0.crl%00",
     f"{ISSUER_ID}/%D9%A0.crl", f"{ISSUER_ID.upper()}.crl", "b2" * 8 + ".crl", "a" * 65 + ".crl",
     "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", f"..%2f{ISSUER_ID}.crl", f"{ISSUER_ID}/../0.crl", f"/{ISSUER_ID}.crl",
     "full.crl", f"{ISSUER_ID}/full.crl", f"{ISSUER_ID}/None.crl", "%00.crl", f"{ISSUER_ID}//0.crl"],
)  # fmt: skip
async def test_what_is_not_published_does_not_exist(status: Status, path: str) -> None:
    status.crls.publish()
    status.crls.publish(0)
    reply = await status.get(f"/crl/{path}")
    assert reply.status == 404, reply
    assert reply.headers["cache-control"] == "no-store"
    # Nothing of what was asked comes back.
    of_this_issuer = f"/crl/{ISSUER_ID}.crl\n/crl/{ISSUER_ID}/0.crl\n"
    of_all = f"/crl/{ISSUER_ID}.crl\n"
    head = "There is no such CRL. There are:\n"
    assert reply.body.decode() in {head + of_this_issuer, head + of_all}


async def test_a_line_end_in_a_path_is_no_end(status: Status) -> None:
    status.crls.publish(0)
    assert (await status.get(f"/crl/{ISSUER_ID}/0.crl%0a")).status == 404


async def test_a_refusal_names_what_there_is_and_not_too_much(status: Status) -> None:
    assert (await status.get(f"/crl/{ISSUER_ID}.crl")).body == b"There is no such CRL, and no other yet.\n"
    for shard in (None, *range(30)):
        status.crls.publish(shard, entries=0)
    status.crls.publish(issuer_id="b2" * 8, entries=0)
    of_the_issuer = (await status.get(f"/crl/{ISSUER_ID}/31.crl")).body.decode().splitlines()
    assert len(of_the_issuer) == 22
    assert of_the_issuer[-1] == "and 11 more"
    of_nobody = (await status.get("/crl/c3.crl")).body.decode().splitlines()
    assert of_nobody[1:] == [f"/crl/{ISSUER_ID}.crl", f"/crl/{'b2' * 8}.crl"]


async def test_a_crl_that_is_replaced_before_it_is_read_is_found_again(status: Status) -> None:
    old = status.crls.publish()

    def replaced(crl: object, piece: int) -> None:
        if crl == old and old.sha256 in status.crls.der:
            status.clock.advance(1)
            status.crls.publish(entries=5)
            del status.crls.der[old.sha256]

    status.crls.before_piece = replaced
    reply = await status.get(f"/crl/{ISSUER_ID}.crl")
    assert reply.status == 200
    assert x509.load_der_x509_crl(reply.body).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 2
    assert reply.headers["etag"] == f'"{hashlib.sha256(reply.body).hexdigest()}"'
    assert reply.headers["content-length"] == str(len(reply.body))


async def test_a_crl_that_cannot_be_read_is_to_be_asked_for_again(status: Status) -> None:
    del status.crls.der[status.crls.publish().sha256]
    reply = await status.get(f"/crl/{ISSUER_ID}.crl")
    assert (reply.status, reply.headers["cache-control"], reply.headers["retry-after"]) == (503, "no-store", "5")


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("fault", ["gone", "short", "long", "empty"])
def test_a_crl_that_ends_badly_is_broken_off(fault: str, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """No relying party may take half a list, or the mixture of two, for a whole one."""

    async def test() -> None:
        async with asyncio.timeout(20), Status().listening() as status:
            crl = status.crls.publish(entries=10_000)
            status.crls.piece = 50_000
            whole = status.crls.der[crl.sha256]
            ends = {"short": whole[:-1], "long": whole + b"x", "empty": whole[:100_000]}

            def fail(_: object, piece: int) -> None:
                if piece == 2 and fault == "gone":
                    del status.crls.der[crl.sha256]
                elif piece == 2:
                    status.crls.der[crl.sha256] = ends[fault]

            status.crls.before_piece = fail
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await status.get(f"/crl/{ISSUER_ID}.crl")
            status.crls.before_piece = lambda _crl, _piece: None
            status.crls.der[crl.sha256] = whole
            assert (await status.get(f"/crl/{ISSUER_ID}.crl")).body == whole

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(test())


async def test_who_reads_nothing_makes_nothing_pile_up(status: Status) -> None:
    crl = status.crls.publish()
    size = 64 * 1024 * 1024
    status.crls.der[crl.sha256] = bytes(size)
    status.crls._newest[ISSUER_ID, None, False] = type(crl)(
        crl.issuer_id, None, False, 2, crl.this_update, crl.next_update, size, crl.sha256
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", status.port, limit=65_536)
    writer.write(f"GET /crl/{ISSUER_ID}.crl HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    # Another request is answered meanwhile, again and again; the kernel's buffers fill, and nothing else does.
    given = -1
    while given != status.crls.given:
        given = status.crls.given
        for _ in range(50):
            await status.get("/healthz")
    assert given < size // 2
    writer.transport.abort()


async def test_who_reads_an_octet_now_and_then_is_not_waited_for(
    status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_PIECE_SECONDS", 0.3)
    octets = 32 * 1024 * 1024
    crl = status.crls.publish()
    status.crls.der[crl.sha256] = bytes(octets)
    status.crls._newest[ISSUER_ID, None, False] = dataclasses.replace(crl, size=octets)
    status.crls.piece = 256 * 1024
    with socket.socket() as slow:
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, ("127.0.0.1", status.port))
        await loop.sock_sendall(slow, f"GET /crl/{ISSUER_ID}.crl HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        for _ in range(20):
            await loop.sock_recv(slow, 1)
            await asyncio.sleep(0.05)
        # What the kernel had taken still comes; the rest does not.
        taken = 0
        async with asyncio.timeout(15):
            while piece := await loop.sock_recv(slow, 65536):
                taken += len(piece)
    assert 0 < taken < octets


# All full CRLs in one file


def pem(status: Status, *crls: PublishedCrl) -> bytes:
    return b"".join(x509.load_der_x509_crl(status.crls.der[crl.sha256]).public_bytes(Encoding.PEM) for crl in crls)


async def test_full_crls_come_together(status: Status) -> None:
    later = status.crls.publish(issuer_id="f0" * 8)
    status.clock.advance(10)
    first = status.crls.publish(issuer_id="0b" * 8)
    status.crls.publish(0)
    status.crls.publish(0, delta=True)
    reply = await status.get("/crls.pem")
    headers = {name: value for name, value in reply.headers.items() if name not in {"date", "server", "connection"}}
    assert (reply.status, reply.body) == (200, pem(status, first, later))
    assert headers == {
        "content-type": "application/x-pem-file",
        "content-length": str(len(reply.body)),
        "cache-control": "max-age=60, public, no-transform, must-revalidate",
        "last-modified": formatdate(first.this_update, usegmt=True),
        "expires": formatdate(later.next_update, usegmt=True),
        "etag": f'"{hashlib.sha256(first.sha256 + later.sha256).hexdigest()}"',
        "access-control-allow-origin": "*",
    }
    given = status.crls.given
    head = await status.get("/crls.pem", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert {name: head.headers[name] for name in headers} == headers
    assert status.crls.given == given


async def test_who_has_the_file_is_told_so_by_its_tag_alone(status: Status) -> None:
    """RFC 9110 section 13.1.3: a CRL that is new here may be older than one that the client has."""
    status.crls.publish()
    status.crls.publish(issuer_id="f0" * 8)
    whole = await status.get("/crls.pem")
    given = status.crls.given
    reply = await status.get("/crls.pem", headers={"If-None-Match": whole.headers["etag"]})
    assert (reply.status, reply.body, status.crls.given) == (304, b"", given)
    assert reply.headers["etag"] == whole.headers["etag"]
    status.crls.publish(issuer_id="f0" * 8)
    dated = {"If-Modified-Since": whole.headers["last-modified"]}
    for headers in (dated, {"If-None-Match": whole.headers["etag"]}, dated | {"If-None-Match": whole.headers["etag"]}):
        reply = await status.get("/crls.pem", headers=headers)
        assert (reply.status, reply.body == whole.body) == (200, False)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_no_crl_is_no_empty_file(status: Status, method: str) -> None:
    status.crls.publish(0)
    reply = await status.get("/crls.pem", method=method)
    assert (reply.status, reply.headers["cache-control"]) == (404, "no-store")
    assert (await status.get("/crls.pem/")).status == 404


async def test_the_file_is_kept_until_its_first_crl_ends(status: Status) -> None:
    old = status.crls.publish()
    status.clock.advance(old.next_update - old.this_update - 7)
    status.crls.publish(issuer_id="f0" * 8)
    assert (await status.get("/crls.pem")).headers["cache-control"].startswith("max-age=7,")


async def test_a_long_file_comes_in_pieces(status: Status) -> None:
    small = status.crls.publish(issuer_id="0b" * 8)
    large = status.crls.publish(issuer_id="f0" * 8, entries=60_000)
    status.crls.piece = 50_000
    reply = await status.get("/crls.pem")
    assert large.size > 1 << 20
    assert reply.headers["content-length"] == str(len(reply.body))
    assert reply.body == pem(status, small, large)


async def test_it_begins_anew_when_a_crl_is_replaced_before_the_headers(status: Status) -> None:
    first, old = status.crls.publish(issuer_id="0b" * 8), status.crls.publish(issuer_id="f0" * 8)

    def replaced(crl: object, piece: int) -> None:
        if crl == old and old.sha256 in status.crls.der:
            status.crls.publish(issuer_id="f0" * 8, entries=5)
            del status.crls.der[old.sha256]

    status.crls.before_piece = replaced
    reply = await status.get("/crls.pem")
    new = status.crls.find("f0" * 8, None, delta=False)
    assert new is not None
    assert (reply.status, reply.body) == (200, pem(status, first, new))
    assert reply.headers["etag"] == f'"{hashlib.sha256(first.sha256 + new.sha256).hexdigest()}"'


@pytest.mark.parametrize("fault", ["gone", "other"])
async def test_what_cannot_be_read_is_not_left_out(status: Status, fault: str) -> None:
    status.crls.publish(issuer_id="0b" * 8)
    crl = status.crls.publish(issuer_id="f0" * 8)
    if fault == "gone":
        del status.crls.der[crl.sha256]
    else:
        status.crls.der[crl.sha256] = bytes(crl.size)
    reply = await status.get("/crls.pem")
    assert (reply.status, reply.headers["cache-control"], reply.headers["retry-after"]) == (503, "no-store", "5")


@pytest.mark.parametrize("fault", ["gone", "short", "long", "other"])
async def test_a_file_that_ends_badly_is_broken_off(status: Status, fault: str) -> None:
    status.crls.publish(issuer_id="0b" * 8)
    crl = status.crls.publish(issuer_id="f0" * 8, entries=60_000)
    status.crls.piece = 50_000
    whole = status.crls.der[crl.sha256]
    last = -(-crl.size // 50_000) - 1
    ends = {"short": whole[:-1], "long": whole + b"x", "other": whole[:-1] + b"x"}

    def fail(failing: object, piece: int) -> None:
        if failing == crl and piece == last:
            if fault == "gone":
                del status.crls.der[crl.sha256]
            else:
                status.crls.der[crl.sha256] = ends[fault]

    status.crls.before_piece = fail
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await status.get("/crls.pem")


async def test_who_does_not_read_the_file_makes_nothing_pile_up(status: Status) -> None:
    crl = status.crls.publish()
    size = 64 * 1024 * 1024
    status.crls.der[crl.sha256] = bytes(size)
    status.crls._newest[ISSUER_ID, None, False] = dataclasses.replace(crl, size=size)
    reader, writer = await asyncio.open_connection("127.0.0.1", status.port, limit=65_536)
    writer.write(b"GET /crls.pem HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    given = -1
    while given != status.crls.given:
        given = status.crls.given
        for _ in range(50):
            await status.get("/healthz")
    assert given < size // 2
    writer.transport.abort()


# What was there before


async def test_public_files_may_be_read_by_every_origin(status: Status) -> None:
    for path in ("/roots.pem", f"/issuers/{ISSUER_ID}.cer", f"/issuers/{ISSUER_ID}.pem"):
        reply = await status.get(path)
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "*")
        assert (await status.get(path, method="HEAD")).status == 200


async def test_without_sources_there_is_no_status() -> None:
    status = Status()
    app = status_app(Anchors(b"", {}), status.metrics, status.ready)
    async with status.listening(app):
        assert (await status.ask(GOOD)).status == 404
        assert (await status.post(b"")).status == 404
        assert (await status.get(f"/crl/{ISSUER_ID}.crl")).status == 404
        assert (await status.get("/crls.pem")).status == 404


async def test_readiness_tells_of_each_part(status: Status) -> None:
    async def ask(query: str = "") -> tuple[int, Any]:
        reply = await status.get(f"/readyz{query}")
        return reply.status, json.loads(reply.body)

    assert await ask() == (200, {"ready": True, "parts": {"token": "ok", "database": "ok"}})
    parts = {"token": "", "database": "", "status": "a CRL is late"}
    status.readiness = Readiness(parts, advisory=frozenset({"status"}))
    shown = {"token": "ok", "database": "ok", "status": "a CRL is late"}
    assert await ask() == (200, {"ready": True, "parts": shown})
    assert await ask("?part=status") == (503, {"ready": False, "parts": {"status": "a CRL is late"}})
    assert await ask("?part=token") == (200, {"ready": True, "parts": {"token": "ok"}})
    status.readiness = Readiness({**parts, "token": "away"}, advisory=frozenset({"status"}))
    assert await ask() == (503, {"ready": False, "parts": {**shown, "token": "away"}})
    assert (await ask("?part=database"))[0] == 200


@pytest.mark.parametrize("part", ["x", "", "token,database", "x" * 1000, "%00", "%F0%9F%92%A9", "<script>"])
async def test_an_unknown_part_is_not_repeated(status: Status, part: str) -> None:
    reply = await status.get(f"/readyz?part={part}")
    assert (reply.status, reply.body) == (404, b"There is no such part. There are: token, database.\n")
    assert re.match("text/plain", reply.headers["content-type"])
