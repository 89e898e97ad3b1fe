"""Real responders for http-01 and tls-alpn-01 on free loopback ports, the well-behaved and the hostile."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from privyseal_acme.validation.challenge import ChallengeTask

LOOPBACK = "127.0.0.1"
WELL_KNOWN = "/.well-known/acme-challenge/"
ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """A listening server: its port, the connections it has had, and the request heads it has seen."""

    port: int = 0
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)
    #: Set when a connection has been taken, and when every connection is gone.
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)


@contextlib.asynccontextmanager
async def raw_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter, Server], Awaitable[None]],
    *,
    host: str = LOOPBACK,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Server]:
    """A server that lets ``serve`` do what it likes with each connection."""
    state = Server()
    state.idle.set()
    running: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        state.connections += 1
        state.taken.set()
        state.idle.clear()
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await serve(reader, writer, state)
        finally:
            writer.close()
            running.discard(task)
            if not running:
                state.idle.set()

    server = await asyncio.start_server(connected, host, port, ssl=tls)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await state.idle.wait()


async def read_head(reader: asyncio.StreamReader, state: Server) -> tuple[str, dict[str, str]]:
    """The path and the fields of a request."""
    head = await reader.readuntil(b"\r\n\r\n")
    state.heads.append(head)
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    return first.split(" ")[1], {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def response(status: str, body: bytes = b"", *fields: str) -> bytes:
    """The bytes of a complete HTTP/1.1 answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextlib.asynccontextmanager
async def http_server(
    answers: dict[str, bytes], *, host: str = LOOPBACK, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Answers each path with the raw bytes of ``answers``, which may change while it runs; 404 for every other."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: Server) -> None:
        path, _ = await read_head(reader, state)
        writer.write(answers.get(path) or response("404 Not Found"))
        await writer.drain()

    async with raw_server(serve, host=host, port=port, tls=tls) as state:
        yield state


async def until_closed(reader: asyncio.StreamReader) -> None:
    """Return when the peer has gone."""
    with contextlib.suppress(OSError):
        while await reader.read(65536):
            pass


def hostile(*, then: Callable[[], bytes], head: bytes = b"", pause: float = 0) -> Callable[..., Awaitable[None]]:
    """Sends ``head`` and then ``then()`` for ever, with ``pause`` seconds in between."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: Server) -> None:
        await read_head(reader, state)
        writer.write(head)
        while not writer.is_closing():
            writer.write(then())
            await writer.drain()
            await asyncio.sleep(pause)

    return serve


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: Server) -> None:
    """Takes the connection and says nothing."""
    await until_closed(reader)


def challenge_certificate(
    name: str,
    key_authorization: str,
    *,
    names: list[x509.GeneralName] | None = None,
    critical: bool = True,
    value: bytes | None = None,
    issuer: str = "challenge",
    signer: ec.EllipticCurvePrivateKey | None = None,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The certificate of RFC 8737 section 3 for ``name``, or one that differs in a single respect."""
    key = ec.generate_private_key(ec.SECP256R1())
    if names is None:
        try:
            names = [x509.IPAddress(ip_address(name))]
        except ValueError:
            names = [x509.DNSName(name)]
    if value is None:
        value = b"\x04\x20" + sha256(key_authorization.encode()).digest()
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "challenge")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if value:
        builder = builder.add_extension(x509.UnrecognizedExtension(ACME_IDENTIFIER, value), critical=critical)
    return builder.sign(signer or key, hashes.SHA256()), key


def server_tls(
    folder: Path,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    protocols: list[str] | None = None,
    names_seen: list[str | None] | None = None,
) -> ssl.SSLContext:
    """A server's context with this certificate, these ALPN protocols, and SNI collected in ``names_seen``."""
    file = folder / f"{certificate.serial_number:x}.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    if protocols:
        context.set_alpn_protocols(protocols)
    if names_seen is not None:
        context.sni_callback = lambda _connection, name, _context: names_seen.append(name)
    return context


TOKEN = "bWluZSBpcyBhIHRva2VuIG9mIDE2IGJ5dGVz"
KEY_AUTHORIZATION = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
ACCOUNT_URL = "https://ca.example/acct/123"


def challenge_task(type_: str, value: str, *, wildcard: bool = False, account_url: str = ACCOUNT_URL) -> ChallengeTask:
    """A task for ``value`` with the token and key authorization above."""
    try:
        ip_address(value)
        identifier_type = "ip"
    except ValueError:
        identifier_type = "dns"
    return ChallengeTask(type_, identifier_type, value, wildcard, TOKEN, KEY_AUTHORIZATION, account_url)


class Pauses:
    """Stands in for ``asyncio.sleep``: notes the ``seconds`` and returns at once, after an optional ``event``."""

    def __init__(self, event: Callable[[], object] = lambda: None) -> None:
        self.seconds: list[float] = []
        self._event = event

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self._event()
