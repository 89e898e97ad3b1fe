"""What OCSP costs, and how soon a revocation is seen.

Three parts. (1) Requests per second and server CPU per request of cached OCSP answers by GET and POST, beside a bare aiohttp
handler on the same listener that returns the same octets with the same headers: both in one server process, in alternating
rounds, asked over kept-alive connections by this process. (2) OCSP responses that are signed for their nonce, by the real
service with its token (SoftHSM2). (3) Seconds from an ACME revocation to the CRL and the OCSP response that say so.
"""

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import uvloop
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID
from multidict import CIMultiDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fakes.acme_client import AcmeClient
from fakes.dns import knot
from fakes.http01 import http01_responder
from fakes.process import served
from fakes.status_sources import MemoryOcsp, Reply, exchange
from privyseal_acme.listener import Listener
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.web.status import Anchors, Readiness, status_app

_LOOPBACK = "127.0.0.1"
_SERIALS = 256
_HEADERS = ("content-type", "cache-control", "last-modified", "expires", "etag", "access-control-allow-origin")

Handler = Callable[[web.Request], Awaitable[web.Response]]


# The two servers of part 1, in a process of their own


async def ready() -> Readiness:
    return Readiness({})


def bare(sample: Reply) -> Handler:
    """A handler that takes a body when there is one, and returns what ``sample`` has."""
    headers = CIMultiDict({name.title(): sample.headers[name] for name in _HEADERS})

    async def handle(request: web.Request) -> web.Response:
        if request.method == "POST":
            await request.read()
        return web.Response(body=sample.body, headers=headers)

    return handle


async def serve() -> None:
    """Serve both until standard input ends; say where, and which requests are known."""
    source = MemoryOcsp()
    # A slash would cost the bare handler's route more than it needs.
    while "/" in b64encode(source.request(1)[:60]).decode():
        source = MemoryOcsp()
    requests: list[bytes] = []
    while len(requests) < _SERIALS:
        serial = secrets.randbits(127)
        request = source.request(serial)
        if "/" not in b64encode(request).decode():
            source.statuses[serial] = "good"
            requests.append(request)
    paths = [f"/ocsp/{b64encode(request).decode()}" for request in requests]
    product = status_app(Anchors(b"", {}), Metrics(), ready, ocsp=source)
    async with Listener(product, _LOOPBACK, 0, grace=1) as measured:
        app = web.Application()
        for path in paths:
            handler = bare(await exchange(measured.port, quote(path)))
            app.router.add_get(path, handler)
        app.router.add_post("/ocsp", handler)
        async with Listener(app, _LOOPBACK, 0, grace=1) as baseline:
            facts = {"bare": baseline.port, "product": measured.port, "requests": [each.hex() for each in requests]}
            print(json.dumps(facts), flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


# Load


class Asker(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, take: Callable[[], bytes | None], finished: Callable[[], None]) -> None:
        self._take = take
        self._finished = finished
        self._transport: asyncio.Transport
        self._received = b""
        self.failures = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._next()

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        head = received.find(b"\r\n\r\n")
        if head >= 0:
            at = received.lower().find(b"content-length: ", 0, head) + 16
            if len(received) >= head + 4 + int(received[at : received.index(b"\r\n", at)]):
                # An unsigned error has five octets.
                self.failures += not received.startswith(b"HTTP/1.1 200") or len(received) - head < 64
                self._received = b""
                self._next()
                return
        self._received = received

    def _next(self) -> None:
        request = self._take()
        if request is None:
            self._transport.close()
            self._finished()
        else:
            self._transport.write(request)


async def ask(port: int, requests: Sequence[bytes], count: int, connections: int) -> float:
    """Send ``count`` requests; the seconds it took."""
    loop = asyncio.get_running_loop()
    source = (requests[number % len(requests)] for number in range(count))
    done, running = asyncio.Event(), connections

    def finished() -> None:
        nonlocal running
        running -= 1
        if not running:
            done.set()

    begun = time.perf_counter()
    askers = [Asker(lambda: next(source, None), finished) for _ in range(connections)]
    for asker in askers:
        await loop.create_connection(lambda asker=asker: asker, _LOOPBACK, port)  # type: ignore[misc]
    await done.wait()
    wall = time.perf_counter() - begun
    if any(asker.failures for asker in askers):
        raise RuntimeError(f"{sum(asker.failures for asker in askers)} requests were not answered")
    return wall


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its threads, as the kernel's scheduler counts it in nanoseconds."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


def http_get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {_LOOPBACK}\r\n\r\n".encode()


def http_post(body: bytes) -> bytes:
    head = f"POST /ocsp HTTP/1.1\r\nHost: {_LOOPBACK}\r\nContent-Type: application/ocsp-request\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


# Part 1


async def compare(facts: dict[str, Any], pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Alternating rounds against both servers."""
    bodies = [bytes.fromhex(text) for text in facts["requests"]]
    loads = {
        "GET": [http_get(f"/ocsp/{quote(b64encode(body).decode(), safe='')}") for body in bodies],
        "POST": [http_post(body) for body in bodies],
    }
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number in range(options.rounds + 1):
        for method, requests in loads.items():
            for name in ("bare", "product"):
                cpu = cpu_seconds(pid)
                wall = await ask(facts[name], requests, options.requests, options.connections)
                cpu = cpu_seconds(pid) - cpu
                if number:  # the first round fills the cache and warms up
                    rows.setdefault((method, name), []).append((options.requests / wall, cpu / options.requests * 1e6))
    result: dict[str, Any] = {}
    for method in loads:
        bare, product = rows[method, "bare"], rows[method, "product"]
        result[method] = {
            "bare_requests_per_second": round(statistics.median(rate for rate, _ in bare)),
            "cached_requests_per_second": round(statistics.median(rate for rate, _ in product)),
            "bare_cpu_microseconds": round(statistics.median(cpu for _, cpu in bare), 1),
            "cached_cpu_microseconds": round(statistics.median(cpu for _, cpu in product), 1),
            # Of each pair of neighbours, so that what else the machine did counts for both.
            "share": round(statistics.median(b[1] / p[1] for b, p in zip(bare, product, strict=True)), 3),
        }
    return result


def cached(options: argparse.Namespace) -> dict[str, Any]:
    """Part 1."""
    command = [sys.executable, __file__, "--serve"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if server.stdout is None:
            raise RuntimeError("the server has no output")
        return uvloop.run(compare(json.loads(server.stdout.readline()), server.pid, options))
    finally:
        server.communicate(timeout=10)


# Parts 2 and 3


def fetched(url: str, body: bytes | None = None) -> bytes:
    """The body of an answer; empty when there is none yet."""
    headers = {"Content-Type": "application/ocsp-request"} if body else {}
    request = urllib.request.Request(url, body, headers)  # noqa: S310 (the service's own URL)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return bytes(answer.read())
    except urllib.error.HTTPError:
        return b""


def until(found: Callable[[], bool]) -> float:
    """When it was so first."""
    deadline = time.monotonic() + 60
    while not found():
        if time.monotonic() > deadline:
            raise RuntimeError("not seen within a minute")
        time.sleep(0.02)
    return time.monotonic()


class Leaf:
    """A certificate with its issuer, and where its status is."""

    def __init__(self, chain: Sequence[x509.Certificate]) -> None:
        self.certificate, self.issuer = chain[:2]
        extensions = self.certificate.extensions
        access = extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
        self.ocsp = next(each for each in access if each.access_method == AuthorityInformationAccessOID.OCSP)
        self.ocsp_url: str = self.ocsp.access_location.value
        points = extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        self.crl_url: str = (points[0].full_name or [])[0].value

    def request(self, nonce: bytes | None = None) -> bytes:
        """An OCSP request (DER)."""
        builder = ocsp.OCSPRequestBuilder().add_certificate(self.certificate, self.issuer, hashes.SHA1())  # noqa: S303
        if nonce:
            builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
        return builder.build().public_bytes(Encoding.DER)

    def revoked_in_ocsp(self) -> bool:
        """Whether OCSP says that it is revoked."""
        der = fetched(self.ocsp_url, self.request())
        response = ocsp.load_der_ocsp_response(der)
        return (
            response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
            and response.certificate_status is ocsp.OCSPCertStatus.REVOKED
        )

    def revoked_in_crl(self) -> bool:
        """Whether its CRL lists it."""
        der = fetched(self.crl_url)
        serial = self.certificate.serial_number
        return bool(der) and x509.load_der_x509_crl(der).get_revoked_certificate_by_serial_number(serial) is not None


def revocation_seconds(client: AcmeClient, rounds: int) -> dict[str, Any]:
    """Part 3."""
    in_crl, in_ocsp = [], []
    for _ in range(rounds):
        leaf = Leaf(client.issue(f"r{secrets.token_hex(4)}.test").chain)
        # What was asked before is in the caches.
        fetched(leaf.ocsp_url, leaf.request())
        fetched(leaf.crl_url)
        begun = time.monotonic()
        answer = client.revoke(leaf.certificate.public_bytes(Encoding.DER))
        if answer.status != 200:
            raise RuntimeError(f"not revoked: {answer.body.decode()}")
        in_ocsp.append(until(leaf.revoked_in_ocsp) - begun)
        in_crl.append(until(leaf.revoked_in_crl) - begun)
    return {
        "crl_seconds": {"median": round(statistics.median(in_crl), 2), "max": round(max(in_crl), 2)},
        "ocsp_seconds": {"median": round(statistics.median(in_ocsp), 2), "max": round(max(in_ocsp), 2)},
    }


def signed(leaf: Leaf, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Part 2."""
    port = urlsplit(leaf.ocsp_url).port or 80
    rates, costs = [], []
    for _ in range(options.rounds):
        requests = [http_post(leaf.request(os.urandom(32))) for _ in range(options.signatures)]
        cpu = cpu_seconds(pid)
        wall = uvloop.run(ask(port, requests, len(requests), options.connections))
        costs.append((cpu_seconds(pid) - cpu) / len(requests) * 1e6)
        rates.append(len(requests) / wall)
    return {"per_second": round(statistics.median(rates)), "cpu_microseconds": round(statistics.median(costs))}


def live(options: argparse.Namespace) -> dict[str, Any]:
    """Parts 2 and 3."""
    with (
        tempfile.TemporaryDirectory(prefix="privyseal-bench-") as folder,
        knot(Path(folder, "dns"), zones=("test",)) as resolver,
        http01_responder() as responder,
    ):
        resolver.set("*.test", "A", _LOOPBACK)
        settings = {"VALIDATION__HTTP_PORT": str(responder.port), "VALIDATION__RESOLVERS": resolver.address}
        with served(Path(folder, "home"), settings) as server:
            client = AcmeClient(server.directory, server.roots, http01=responder)
            client.register()
            leaf = Leaf(client.issue("signed.test").chain)
            return {
                "signed": signed(leaf, server.pid, options),
                "revocation": revocation_seconds(client, options.revocations),
            }


def main() -> None:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000, help="requests in one round")
    parser.add_argument("--signatures", type=int, default=2000, help="requests with a nonce in one round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--revocations", type=int, default=10)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=("cached", "live"), help="part 1, or parts 2 and 3")
    parser.add_argument("--serve", action="store_true", help="be the server of part 1")
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve())
        return
    figures: dict[str, Any] = {}
    if options.only != "live":
        figures["cached"] = cached(options)
    if options.only != "cached":
        figures |= live(options)
    if options.json:
        print(json.dumps(figures))
        return
    for part, rows in figures.items():
        print(part)
        for name, value in rows.items():
            print(f"  {name:12} {value if not isinstance(value, dict) else json.dumps(value)}")


if __name__ == "__main__":
    main()
