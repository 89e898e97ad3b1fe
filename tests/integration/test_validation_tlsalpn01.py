"""tls-alpn-01 (RFC 8737, RFC 8738 section 6) against real TLS servers. Promise P12."""

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.challenge_servers import (
    KEY_AUTHORIZATION,
    Server,
    challenge_certificate,
    challenge_task,
    raw_server,
    server_tls,
    silent,
    until_closed,
)
from fakes.dns import Knot, knot
from privyseal_acme.validation.validator import Outcome, Validator
from privyseal_ca.clock import SystemClock
from privyseal_ca.sections import ValidationSettings

pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture"),
]

ALPN = ["acme-tls/1"]


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Knot]:
    with knot(tmp_path_factory.mktemp("knot")) as server:
        server.set("tls.test", "A", "127.0.0.1")
        yield server


async def check(names: Knot, value: str, port: int, **settings: Any) -> Outcome:
    settings = {"resolvers": (names.address,), "timeout": 5, "attempts": 1, "tls_port": port, **settings}
    validator = Validator(ValidationSettings(**settings), clock=SystemClock())
    outcome = await validator.check(challenge_task("tls-alpn-01", value))
    await validator.close()
    return outcome


async def answered(names: Knot, tls: ssl.SSLContext, value: str = "tls.test", host: str = "127.0.0.1") -> Outcome:
    async with raw_server(lambda reader, _writer, _state: until_closed(reader), host=host, tls=tls) as server:
        outcome = await check(names, value, server.port)
        await asyncio.wait_for(server.idle.wait(), 5)
        return outcome


def problem(outcome: Outcome) -> tuple[str, str]:
    assert not outcome.valid
    assert outcome.problem is not None
    return outcome.problem.type, outcome.problem.detail


async def test_a_challenge_certificate_proves_a_name(names: Knot, tmp_path: Path) -> None:
    seen: list[str | None] = []
    tls = server_tls(tmp_path, *challenge_certificate("TLS.test", KEY_AUTHORIZATION), ALPN, seen)
    outcome = await answered(names, tls)
    assert outcome.valid, outcome
    assert seen == ["tls.test"]
    assert outcome.evidence["alpn"] == "acme-tls/1"
    assert outcome.evidence["tls"] == "TLSv1.3"
    assert len(outcome.evidence["digest"]) == 64


@pytest.mark.parametrize(
    ("address", "sni"),
    [
        ("127.0.0.1", "1.0.0.127.in-addr.arpa"),
        ("::1", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa"),
    ],
)
async def test_an_address_is_asked_by_its_reverse_name(names: Knot, tmp_path: Path, address: str, sni: str) -> None:
    seen: list[str | None] = []
    tls = server_tls(tmp_path, *challenge_certificate(address, KEY_AUTHORIZATION), ALPN, seen)
    outcome = await answered(names, tls, address, address)
    assert outcome.valid, outcome
    assert seen == [sni]


async def test_tls_1_2_will_do(names: Knot, tmp_path: Path) -> None:
    tls = server_tls(tmp_path, *challenge_certificate("tls.test", KEY_AUTHORIZATION), ALPN)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    assert (await answered(names, tls)).valid


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_older_tls_will_not(names: Knot, tmp_path: Path) -> None:
    tls = server_tls(tmp_path, *challenge_certificate("tls.test", KEY_AUTHORIZATION), ALPN)
    tls.minimum_version = tls.maximum_version = ssl.TLSVersion.TLSv1_1
    tls.set_ciphers("ALL:@SECLEVEL=0")
    assert problem(await answered(names, tls))[0] in {"tls", "connection"}


@pytest.mark.parametrize("protocols", [[], ["h2", "http/1.1"]])
async def test_the_protocol_must_be_negotiated(names: Knot, tmp_path: Path, protocols: list[str]) -> None:
    tls = server_tls(tmp_path, *challenge_certificate("tls.test", KEY_AUTHORIZATION), protocols)
    type_, _ = problem(await answered(names, tls))
    assert type_ == "tls"


@pytest.mark.parametrize(
    ("arguments", "clause"),
    [
        ({"names": [x509.DNSName("other.test")]}, "exactly one subjectAltName"),
        ({"names": [x509.DNSName("tls.test"), x509.DNSName("other.test")]}, "exactly one"),
        ({"names": [x509.DNSName("tls.test"), x509.DNSName("tls.test")]}, "exactly one"),
        ({"names": [x509.RFC822Name("tls.test")]}, "exactly one"),
        ({"names": []}, "no subjectAltName"),
        ({"critical": False}, "not critical"),
        ({"value": b""}, "no acmeIdentifier"),
        ({"value": b"\x04\x20" + bytes(32)}, "not the SHA-256"),
        ({"value": b"\x04\x04abcd"}, "not the SHA-256"),
        ({"issuer": "a real authority"}, "not self-signed"),
        ({"signer": ec.generate_private_key(ec.SECP256R1())}, "not signed by its own key"),
    ],
)
async def test_certificates_that_prove_nothing(
    names: Knot, tmp_path: Path, arguments: dict[str, Any], clause: str
) -> None:
    certificate, key = challenge_certificate("tls.test", KEY_AUTHORIZATION, **arguments)
    type_, detail = problem(await answered(names, server_tls(tmp_path, certificate, key, ALPN)))
    assert type_ == "incorrectResponse"
    assert clause in detail


async def test_a_name_does_not_prove_an_address(names: Knot, tmp_path: Path) -> None:
    for wrong in ([x509.DNSName("127.0.0.1")], [x509.DNSName("1.0.0.127.in-addr.arpa")]):
        certificate, key = challenge_certificate("127.0.0.1", KEY_AUTHORIZATION, names=list(wrong))
        type_, _ = problem(await answered(names, server_tls(tmp_path, certificate, key, ALPN), "127.0.0.1"))
        assert type_ == "incorrectResponse"


async def test_another_key_authorization_proves_nothing(names: Knot, tmp_path: Path) -> None:
    certificate, key = challenge_certificate("tls.test", KEY_AUTHORIZATION + "x")
    assert problem(await answered(names, server_tls(tmp_path, certificate, key, ALPN)))[0] == "incorrectResponse"


async def test_a_server_that_hangs_in_the_handshake(names: Knot) -> None:
    async with raw_server(silent) as server:
        type_, detail = problem(await check(names, "tls.test", server.port, timeout=0.3))
        await asyncio.wait_for(server.idle.wait(), 5)
    assert type_ == "connection"
    assert "took longer than 0.3 seconds" in detail


async def test_a_server_that_does_not_speak_tls(names: Knot) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _state: Server) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await until_closed(reader)

    async with raw_server(serve) as server:
        assert problem(await check(names, "tls.test", server.port))[0] == "tls"
        await asyncio.wait_for(server.idle.wait(), 5)


async def test_an_address_in_a_forbidden_network_is_not_connected_to(names: Knot) -> None:
    names.set("meta.test", "A", "169.254.169.254")
    assert problem(await check(names, "meta.test", 443))[0] == "unauthorized"
