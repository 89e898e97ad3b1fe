"""What a stranger's connections can cost a listener (promise P12): their number, and the time that each may take."""

import asyncio
import gzip
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
import uvloop
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from privyseal_acme.listener import Bounds, Listener
from privyseal_ca.errors import ConfigurationError

PATIENCE = 30
#: So long that a test which depends on it fails by its own time limit.
NEVER = 1000.0
GET = b"GET / HTTP/1.1\r\nHost: ca.test\r\n\r\n"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def run(test: Coroutine[Any, Any, None]) -> None:
    """On the event loop that the product uses."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await test

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


async def fine(_: web.Request) -> web.StreamResponse:
    return web.Response(text="fine")


@pytest.fixture(scope="module")
def server_tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@asynccontextmanager
async def listening(
    handler: Handler = fine, *, tls: ssl.SSLContext | None = None, grace: float = 5, **bounds: float
) -> AsyncIterator[int]:
    """A listener; its port."""
    app = web.Application(client_max_size=65_536)
    app.router.add_route("*", "/", handler)
    waits: dict[str, Any] = {"head": NEVER, "idle": NEVER, "unread": NEVER, "patience": NEVER, **bounds}
    async with Listener(app, "127.0.0.1", 0, grace=grace, tls=tls, bounds=Bounds(**waits)) as listener:
        yield listener.port


def client_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def connect(port: int, *, tls: bool = False, send: bytes = b"") -> Pair:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_tls() if tls else None)
    writer.write(send)
    return reader, writer


async def answer(pair: Pair, request: bytes = GET) -> bytes:
    """The head and body of the answer to ``request``."""
    reader, writer = pair
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return head + await reader.readexactly(int(length.partition(b":")[2]))


async def ended(pair: Pair) -> bytes:
    """What came until the end of the connection."""
    reader, writer = pair
    received = b""
    with suppress(ConnectionError, ssl.SSLError):
        received = await reader.read()
    writer.close()
    return received


# The time that each may take


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: ca.test\r\nX-Slow: ",
        b"\r\n\r\n\r\n",
        bytes.fromhex("1603010200010001fc0303"),
    ],
)
@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
def test_who_never_comes_to_a_request_is_let_go(server_tls: ssl.SSLContext, beginning: bytes, over_tls: bool) -> None:
    async def test() -> None:
        async with listening(tls=server_tls if over_tls else None, head=0.3) as port:
            # Over TLS the same bytes are a handshake that goes no further, or none at all.
            await ended(await connect(port, send=beginning))
            await ended(await connect(port, tls=over_tls, send=beginning))
            assert b" 200 " in await answer(await connect(port, tls=over_tls))

    run(test())


def test_a_head_that_trickles_in_gains_no_time(server_tls: ssl.SSLContext) -> None:
    async def test() -> None:
        async with listening(tls=server_tls, head=0.3) as port:
            reader, writer = await connect(port, tls=True, send=b"GET / HTTP/1.1\r\nHost: ca.test\r\nX: ")
            end = asyncio.ensure_future(ended((reader, writer)))
            while not end.done():
                writer.write(b"x")
                await asyncio.wait({end}, timeout=0.02)
            assert b" 200 " not in await end

    run(test())


def test_who_has_asked_once_has_time(server_tls: ssl.SSLContext) -> None:
    async def test() -> None:
        async with listening(tls=server_tls, head=0.3) as port:
            good = await connect(port, tls=True)
            await answer(good)
            # It outlives one that came later and says nothing.
            await ended(await connect(port, tls=True))
            assert b" 200 " in await answer(good)

    run(test())


def test_who_asks_for_nothing_more_is_let_go(server_tls: ssl.SSLContext) -> None:
    async def test() -> None:
        async with listening(tls=server_tls, idle=0.3) as port:
            pair = await connect(port, tls=True)
            await answer(pair)
            assert await ended(pair) == b""

    run(test())


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
def test_who_does_not_read_is_let_go(server_tls: ssl.SSLContext, over_tls: bool) -> None:
    async def test() -> None:
        lost = asyncio.Event()

        async def flood(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                while True:
                    await response.write(bytes(1 << 20))
            finally:
                lost.set()

        async with listening(flood, tls=server_tls if over_tls else None, unread=0.5) as port:
            pair = await connect(port, tls=over_tls, send=GET)
            pair[1].transport.pause_reading()  # type: ignore[attr-defined]
            await lost.wait()
            pair[1].close()

    run(test())


def test_who_asks_on_without_reading_is_let_go() -> None:
    async def large(_: web.Request) -> web.StreamResponse:
        return web.Response(body=bytes(1 << 20))

    async def test() -> None:
        async with listening(large, unread=0.5) as port:
            _, writer = await connect(port)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            # Nobody takes in so many requests whose answers nobody takes in.
            writer.write(GET * 1_000_000)
            with pytest.raises(ConnectionError):
                await writer.drain()
            writer.close()

    run(test())


# Their number


def test_the_one_waited_for_longest_makes_room(server_tls: ssl.SSLContext) -> None:
    async def test() -> None:
        async with listening(tls=server_tls, connections=2, patience=0) as port:
            first, second = [await connect(port, tls=True) for _ in range(2)]
            await answer(first)
            await answer(second)
            await answer(first)
            third = await connect(port, tls=True)
            assert b" 200 " in await answer(third)
            assert await ended(second) == b""
            assert b" 200 " in await answer(first)

    run(test())


def test_handshakes_that_stand_still_make_room(server_tls: ssl.SSLContext) -> None:
    async def test() -> None:
        async with listening(tls=server_tls, connections=4, patience=0) as port:
            stale = [await connect(port, send=bytes.fromhex("160301")) for _ in range(40)]
            assert b" 200 " in await answer(await connect(port, tls=True))
            for pair in stale[:30]:
                assert await ended(pair) == b""

    run(test())


def test_bodies_that_do_not_come_make_room() -> None:
    async def read(request: web.Request) -> web.StreamResponse:
        return web.Response(text=str(len(await request.read())))

    async def test() -> None:
        async with listening(read, grace=0.1, connections=2, patience=0) as port:
            stale = [
                await connect(port, send=b"POST / HTTP/1.1\r\nHost: ca.test\r\nContent-Length: 9\r\n\r\nx")
                for _ in range(2)
            ]
            pair = await connect(port)
            assert (await answer(pair, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")).endswith(b"3")
            assert await ended(stale[0]) == b""

    run(test())


def test_who_is_being_answered_is_safe() -> None:
    async def test() -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        async def slow(_: web.Request) -> web.StreamResponse:
            begun.set()
            await go.wait()
            return web.Response(text="slow")

        async with listening(slow, connections=1, patience=0) as port:
            first = await connect(port, send=GET)
            await begun.wait()
            # It is not begun with before there is room.
            second = await connect(port, send=GET)
            go.set()
            assert b" 200 " in await answer(first, b"")
            assert b" 200 " in await answer(second, b"")

    run(test())


def test_a_newcomer_waits_for_those_that_just_came() -> None:
    async def test() -> None:
        async with listening(connections=1, patience=0.3) as port:
            first = await connect(port)
            second = await connect(port, send=GET)
            assert b" 200 " in await answer(first)
            assert b" 200 " in await answer(second, b"")

    run(test())


def test_there_are_descriptors_left_for_the_rest_of_the_process(tmp_path: Path) -> None:
    program = tmp_path / "listener.py"
    program.write_text(
        """
import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from aiohttp import web
import uvloop
from privyseal_acme.listener import Bounds, Listener

async def needs_one(_):
    with open("/dev/null"):
        return web.Response(text="fine")

async def main():
    app = web.Application()
    app.router.add_get("/", needs_one)
    async with Listener(app, "127.0.0.1", 0, grace=1, bounds=Bounds(patience=0)) as listener:
        print(listener.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""
    )

    async def test() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        silent = [await connect(port) for _ in range(200)]
        assert b" 200 " in await answer(await connect(port))
        for _, writer in silent:
            writer.close()
        await process.communicate(b"")
        assert process.returncode == 0

    run(test())


# What a request may be


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: ca.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: ca.test\r\nX: " + b"x" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: ca.test\r\n" + b"X: x\r\n" * 100 + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"<script>secret</script> / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03secret",
    ],
)
def test_what_is_no_request(request_text: bytes) -> None:
    async def test() -> None:
        async with listening() as port:
            with structlog.testing.capture_logs() as logs:
                text = await ended(await connect(port, send=request_text))
            assert text.split(b" ")[1] == b"400"
            assert text.endswith(b"\r\n\r\nBad Request\n")
            # One line without a trace: whoever knocks often fills no disk.
            assert [set(entry) for entry in logs] == [{"event", "log_level", "status", "reason", "remote"}]
            assert b" 200 " in await answer(await connect(port))

    run(test())


def test_a_fault_shows_nothing() -> None:
    async def fault(_: web.Request) -> web.StreamResponse:
        raise RuntimeError("secret")

    async def test() -> None:
        async with listening(fault) as port:
            with structlog.testing.capture_logs() as logs:
                text = await ended(await connect(port, send=GET.replace(b"\r\n\r\n", b"\r\nAccept: text/html\r\n\r\n")))
            assert text.split(b" ")[1] == b"500"
            assert text.endswith(b"\r\n\r\nInternal Server Error\n")
            assert [entry["log_level"] for entry in logs] == ["error"]

    run(test())


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x"])
def test_nothing_is_inflated(encoding: str) -> None:
    async def size(request: web.Request) -> web.StreamResponse:
        return web.Response(text=str(len(await request.read())))

    async def test() -> None:
        body = gzip.compress(bytes(20_000_000))
        head = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
        async with listening(size) as port:
            assert (await answer(await connect(port), head.encode() + body)).endswith(b"%d" % len(body))

    run(test())


# Beginning and end


def test_the_end_waits_for_answers_and_for_nobody_else(server_tls: ssl.SSLContext) -> None:
    async def test() -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        async def slow(_: web.Request) -> web.StreamResponse:
            begun.set()
            await go.wait()
            return web.Response(text="slow")

        async with listening(slow, tls=server_tls, grace=NEVER) as port:
            asked = await connect(port, tls=True, send=GET)
            await begun.wait()
            silent = await connect(port, tls=True)
            half = await connect(port, send=bytes.fromhex("160301"))
            asyncio.get_running_loop().call_soon(go.set)
        assert b" 200 " in await answer(asked, b"")
        assert await ended(silent) == b""
        assert await ended(half) == b""
        with pytest.raises(ConnectionRefusedError):
            await connect(port)

    run(test())


def test_a_port_that_is_taken() -> None:
    async def test() -> None:
        async with listening() as port:
            with pytest.raises(ConfigurationError, match=f"{port} cannot be listened on"):
                async with Listener(web.Application(), "127.0.0.1", port, grace=1):
                    pass

    run(test())


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid"])
def test_an_address_that_is_not_here(host: str) -> None:
    async def test() -> None:
        with pytest.raises(ConfigurationError, match="cannot be listened on"):
            async with Listener(web.Application(), host, 0, grace=1):
                pass

    run(test())
