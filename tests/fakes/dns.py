"""DNS for tests: a real server, Knot DNS, for all that a real server says, and a scripted one for what none would."""

import asyncio
import contextlib
import random
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import dns.message
import dns.query
import dns.rcode
import dns.update

LOOPBACK = "127.0.0.1"


#: Below the ports that the system gives to outgoing connections: who asks again and again whether something listens on one of
#: those is given the very port in the end, is connected to itself, and takes the port away from who was to listen on it.
_PORTS = (20_000, 32_000)
_random = random.SystemRandom()


def free_port() -> int:
    """A port that is free for UDP and TCP on both loopback addresses."""
    for _ in range(50):
        with contextlib.ExitStack() as sockets:
            port = _random.randrange(*_PORTS)
            try:
                for family, kind, host in (
                    (socket.AF_INET, socket.SOCK_DGRAM, LOOPBACK),
                    (socket.AF_INET, socket.SOCK_STREAM, LOOPBACK),
                    (socket.AF_INET6, socket.SOCK_STREAM, "::1"),
                    (socket.AF_INET6, socket.SOCK_DGRAM, "::1"),
                ):
                    sockets.enter_context(socket.socket(family, kind)).bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


class Knot:
    """A running knotd, authoritative for ``zones``, changed by RFC 2136 updates. A zone in ``broken`` answers SERVFAIL."""

    def __init__(self, folder: Path, zones: Sequence[str] = ("test",), broken: Sequence[str] = ()) -> None:
        self.port = free_port()
        self._zones = tuple(zones)
        folder.mkdir(parents=True, exist_ok=True)
        for zone in zones:
            (folder / f"{zone}.zone").write_text(
                f"$ORIGIN {zone}.\n$TTL 3600\n@ SOA ns h 1 60 60 60 60\n@ NS ns\nns A 127.0.0.1\n", encoding="ascii"
            )
        served = "".join(
            f"  - domain: {zone}.\n    storage: {folder}\n    file: {zone}.zone\n    acl: tests\n"
            "    zonefile-sync: -1\n    journal-content: none\n"
            for zone in (*zones, *broken)
        )
        (folder / "knot.conf").write_text(
            f"server:\n  listen: [ 127.0.0.1@{self.port}, ::1@{self.port} ]\n  rundir: {folder}\n"
            "  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n  udp-max-payload: 1232\n"
            f"database:\n  storage: {folder / 'db'}\n"
            "log:\n  - target: stderr\n    any: error\n"
            "acl:\n  - id: tests\n    address: [ 127.0.0.1, ::1 ]\n    action: update\n"
            f"zone:\n{served}",
            encoding="ascii",
        )
        knotd = shutil.which("knotd") or "/usr/sbin/knotd"
        with (folder / "knotd.log").open("wb") as log:
            self._process = subprocess.Popen([knotd, "-c", str(folder / "knot.conf")], stderr=log, stdout=log)
        self._wait_until_ready()

    @property
    def address(self) -> str:
        """The server in the form of ``validation.resolvers``."""
        return f"{LOOPBACK}:{self.port}"

    def set(self, name: str, type_: str, *values: str, ttl: int = 3600) -> None:
        """Make ``values`` the whole set of records of this name and type; without values remove it."""
        zone = max((zone for zone in self._zones if f".{name}".endswith(f".{zone}")), key=len)
        update = dns.update.UpdateMessage(f"{zone}.")
        update.delete(f"{name}.", type_)
        for value in values:
            update.add(f"{name}.", ttl, type_, value)
        answer = dns.query.tcp(update, LOOPBACK, port=self.port, timeout=5)
        if answer.rcode() != dns.rcode.NOERROR:
            raise RuntimeError(f"knotd refused the update: {dns.rcode.to_text(answer.rcode())}")

    def stop(self) -> None:
        """End the server."""
        self._process.terminate()
        self._process.wait(10)

    def _wait_until_ready(self) -> None:
        question = dns.message.make_query(f"ns.{self._zones[0]}.", "A")
        for _ in range(500):
            if self._process.poll() is not None:
                raise RuntimeError("knotd did not start")
            with contextlib.suppress(OSError, EOFError):
                if dns.query.tcp(question, LOOPBACK, port=self.port, timeout=5).answer:
                    return
            time.sleep(0.01)
        raise RuntimeError("knotd does not answer")


@contextlib.contextmanager
def knot(folder: Path, zones: Sequence[str] = ("test",), broken: Sequence[str] = ()) -> Iterator[Knot]:
    """A :class:`Knot` that is stopped at the end."""
    server = Knot(folder, zones, broken)
    try:
        yield server
    finally:
        server.stop()


Script = Callable[[dns.message.Message, str], bytes | None]


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, script: Script) -> None:
        self._script = script

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._script(dns.message.from_wire(data), "udp")
        if answer is not None:
            self._transport.sendto(answer, addr)


@contextlib.asynccontextmanager
async def scripted_dns(script: Script) -> AsyncIterator[str]:
    """A server that answers each question with the bytes ``script(question, "udp" or "tcp")``; ``None`` is silence."""
    port = free_port()
    open_writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                answer = script(dns.message.from_wire(await reader.readexactly(length)), "tcp")
                if answer is not None:
                    writer.write(len(answer).to_bytes(2, "big") + answer)
        writer.close()

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(script), local_addr=(LOOPBACK, port))
    server = await asyncio.start_server(serve, LOOPBACK, port)
    try:
        yield f"{LOOPBACK}:{port}"
    finally:
        transport.close()
        server.close()
        for writer in open_writers:
            writer.close()
        await server.wait_closed()
