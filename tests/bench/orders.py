"""Complete orders per second and server CPU per certificate: `make bench`.

The server is the real command in a process of its own, with a token (SoftHSM2), the durable database and the ledger on. The
load is whole orders of seven signed requests (newOrder, authorization, challenge, authorization again, finalize, order,
certificate) by an account with an ES256 key, each for a name of its own, with http-01 over a real resolver (Knot DNS). CPU is
user plus system time of the server's process as the kernel counts it.
"""

import argparse
import asyncio
import hashlib
import json
import os
import secrets
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import uvloop
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fakes.dns import free_port, knot

_DOMAIN = "bench.internal"
_TICKS = os.sysconf("SC_CLK_TCK")
_ECDSA = ec.ECDSA(hashes.SHA256())


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


class Client:
    """One ES256 account over kept-alive connections."""

    def __init__(self, session: aiohttp.ClientSession, directory: dict[str, Any], tokens: dict[str, str]) -> None:
        self._session = session
        self._directory = directory
        self._tokens = tokens
        self._key = ec.generate_private_key(ec.SECP256R1())
        numbers = self._key.public_key().public_numbers()
        self._jwk = {"crv": "P-256", "kty": "EC", "x": b64(numbers.x.to_bytes(32)), "y": b64(numbers.y.to_bytes(32))}
        self._thumbprint = b64(hashlib.sha256(orjson.dumps(self._jwk, option=orjson.OPT_SORT_KEYS)).digest())
        self._kid: str | None = None
        self._nonces: list[str] = []
        self.csr_key = ec.generate_private_key(ec.SECP256R1())

    async def register(self) -> None:
        """Make the account."""
        _, headers = await self.post(self._directory["newAccount"], {"termsOfServiceAgreed": True})
        self._kid = headers["Location"]

    async def post(self, url: str, payload: object | None) -> tuple[bytes, Any]:
        """A signed POST; None makes it POST-as-GET."""
        if not self._nonces:
            async with self._session.head(self._directory["newNonce"]) as response:
                self._nonces.append(response.headers["Replay-Nonce"])
        protected: dict[str, Any] = {"alg": "ES256", "nonce": self._nonces.pop(), "url": url}
        protected |= {"kid": self._kid} if self._kid else {"jwk": self._jwk}
        head, body = b64(orjson.dumps(protected)), b64(b"" if payload is None else orjson.dumps(payload))
        r, s = decode_dss_signature(self._key.sign(f"{head}.{body}".encode(), _ECDSA))
        jws = {"protected": head, "payload": body, "signature": b64(r.to_bytes(32) + s.to_bytes(32))}
        async with self._session.post(
            url, data=orjson.dumps(jws), headers={"Content-Type": "application/jose+json"}
        ) as response:
            content = await response.read()
            self._nonces.append(response.headers["Replay-Nonce"])
            if response.status >= 400:
                raise RuntimeError(f"{response.status} {content.decode()}")
            return content, response.headers

    async def order(self, name: str) -> int:
        """One certificate; the number of signed requests it took."""
        names = [x509.DNSName(name)]
        csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.csr_key, hashes.SHA256())
            .public_bytes(serialization.Encoding.DER)
        )
        content, headers = await self.post(
            self._directory["newOrder"], {"identifiers": [{"type": "dns", "value": name}]}
        )
        order, order_url = orjson.loads(content), headers["Location"]
        url = order["authorizations"][0]
        authorization = orjson.loads((await self.post(url, None))[0])
        challenge = next(item for item in authorization["challenges"] if item["type"] == "http-01")
        self._tokens[challenge["token"]] = f"{challenge['token']}.{self._thumbprint}"
        await self.post(challenge["url"], {})
        requests = 3
        delay = 0.01
        while True:
            await asyncio.sleep(delay)
            requests += 1
            status = orjson.loads((await self.post(url, None))[0])["status"]
            if status != "pending":
                break
            delay = 0.05
        if status != "valid":
            raise RuntimeError(f"the authorization is {status}")
        order = orjson.loads((await self.post(order["finalize"], {"csr": b64(csr)}))[0])
        while order["status"] == "processing":
            await asyncio.sleep(0.05)
            order = orjson.loads((await self.post(order_url, None))[0])
            requests += 1
        order = orjson.loads((await self.post(order_url, None))[0])
        content, _ = await self.post(order["certificate"], None)
        if content.count(b"BEGIN CERTIFICATE") < 2:
            raise RuntimeError("the chain is short")
        return requests + 3


def cpu_seconds(pid: int) -> float:
    """User plus system time of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def make_orders(client: Client, remaining: Iterator[int]) -> int:
    """Orders, one after the other, until none remain for any client; the number of signed requests they took."""
    return sum([await client.order(f"w{secrets.token_hex(6)}.{_DOMAIN}") for _ in remaining])


async def load(
    directory_url: str, roots: Path, http_port: int, pid: int, options: argparse.Namespace
) -> list[dict[str, float]]:
    """Run the rounds."""
    tokens: dict[str, str] = {}

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=tokens.pop(request.match_info["token"]))

    app = web.Application()
    app.router.add_get("/.well-known/acme-challenge/{token}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", http_port).start()
    context = ssl.create_default_context(cafile=str(roots))
    results = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=0)) as session:
        async with session.get(directory_url) as response:
            directory = await response.json()
        clients = [Client(session, directory, tokens) for _ in range(options.concurrency)]
        await asyncio.gather(*(client.register() for client in clients))
        for number in range(options.rounds + 1):
            orders = options.orders if number else max(options.orders // 4, options.concurrency)
            remaining = iter(range(orders))
            cpu, wall = cpu_seconds(pid), time.perf_counter()
            requests = sum(await asyncio.gather(*(make_orders(client, remaining) for client in clients)))
            wall, cpu = time.perf_counter() - wall, cpu_seconds(pid) - cpu
            if number:  # the first round warms up
                results.append(
                    {
                        "certificates_per_second": round(orders / wall, 1),
                        "cpu_milliseconds_per_certificate": round(cpu / orders * 1000, 3),
                        "requests_per_certificate": round(requests / orders, 2),
                    }
                )
    await runner.cleanup()
    return results


def main() -> None:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=400, help="orders in one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--wrap", default="", help="a command to run the server under, such as a profiler")
    options = parser.parse_args()
    command = [*options.wrap.split(), str(Path(sys.executable).with_name("privyseal"))]
    with tempfile.TemporaryDirectory(prefix="privyseal-bench-") as folder:
        home, https, http, challenge = Path(folder, "home"), free_port(), free_port(), free_port()
        with knot(Path(folder, "dns"), zones=(_DOMAIN,)) as resolver:
            resolver.set(f"*.{_DOMAIN}", "A", "127.0.0.1")
            environment = os.environ | {
                "PRIVYSEAL_HOME": str(home),
                "PRIVYSEAL_SERVER__HTTPS": f"127.0.0.1:{https}",
                "PRIVYSEAL_SERVER__HTTP": f"127.0.0.1:{http}",
                "PRIVYSEAL_VALIDATION__HTTP_PORT": str(challenge),
                "PRIVYSEAL_VALIDATION__RESOLVERS": json.dumps([resolver.address]),
            }
            quiet = subprocess.DEVNULL
            subprocess.run([command[-1], "init"], env=environment, stdout=quiet, stderr=quiet, check=True)
            with Path(folder, "log").open("wb") as log:
                server = subprocess.Popen([*command, "serve"], env=environment, stdout=subprocess.PIPE, stderr=log)
            try:
                if server.stdout is None or not server.stdout.readline():
                    sys.exit("the server did not start:\n" + Path(folder, "log").read_text())
                results = uvloop.run(
                    load(
                        f"https://127.0.0.1:{https}/acme/directory", home / "roots.pem", challenge, server.pid, options
                    )
                )
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(30)
    summary = {
        name: {
            "min": min(row[name] for row in results),
            "median": statistics.median(row[name] for row in results),
            "max": max(row[name] for row in results),
        }
        for name in results[0]
    }
    if options.json:
        print(json.dumps({"rounds": results, "summary": summary}))
        return
    print(f"{options.rounds} rounds of {options.orders} orders, concurrency {options.concurrency}")
    for name, row in summary.items():
        print(
            f"{name.replace('_', ' '):36} median {row['median']:9.2f}   min {row['min']:9.2f}   max {row['max']:9.2f}"
        )


if __name__ == "__main__":
    main()
