"""``privyseal init`` and ``privyseal serve`` with the shim of :mod:`fakes.shim` as their PKCS#11 module."""

import sqlite3
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.acme_client import AcmeClient, Response, make_csr
from fakes.outages import readiness
from fakes.process import ServerProcess
from fakes.shim import Shim, make_tokens
from privyseal_ca.hsm import softhsm
from privyseal_ca.ledger.entries import decode_entry

_PIN = "user-pin-of-the-tests"
_PATIENCE = 20.0
#: The label of the intermediate's key, which `privyseal init` chooses.
ISSUING_KEY = "issuing-1"


class ShimServer(ServerProcess):
    """A home whose root and intermediate are in tokens behind ``shim``."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / "home", {"HSM__RETRY_AFTER": "0.02", **(settings or {})})
        self._conf = softhsm.embed(folder / "softhsm")
        self.shim = Shim(folder / "shim", softhsm_conf=self._conf)
        self._pin_file = folder / "pin"

    @property
    def environment(self) -> dict[str, str]:
        """As for an embedded token, whose files the product guards against processes that are killed while SoftHSM writes."""
        return {**super().environment, softhsm.CONF_VARIABLE: str(self._conf)}

    def init(self, *arguments: str) -> None:
        """Make tokens and home."""
        self._pin_file.write_text(f"{_PIN}\n", encoding="utf-8")
        self._pin_file.chmod(0o600)
        make_tokens(self.shim, "root", "issuing", pin=_PIN)
        pin = str(self._pin_file)
        super().init(
            *("--pkcs11-module", str(self.shim.path), "--root-token", "root", "--root-pin-file", pin),
            *("--issuing-token", "issuing", "--pin-file", pin, *arguments),
        )

    def parts(self) -> dict[str, str]:
        """The parts of readiness."""
        parts: dict[str, str] = readiness(self.http_url)["parts"]
        return parts

    def metric(self, name: str) -> float:
        """The value of a metric that has no other label than those in ``name``."""
        with urllib.request.urlopen(f"{self.http_url}/metrics", timeout=10) as answer:  # noqa: S310 (plain, loopback)
            lines: list[str] = answer.read().decode().splitlines()
        return float(next(line.rpartition(" ")[2] for line in lines if line.rpartition(" ")[0] == name))

    @property
    def database_url(self) -> str:
        """The database, which tests read beside the service."""
        return f"sqlite:///{self.home / 'privyseal.db'}"

    def entries(self) -> list[dict[str, Any]]:
        """Every entry of the ledger, read beside the service."""
        with closing(sqlite3.connect(f"file:{self.home / 'privyseal.db'}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT entry FROM ledger_entry ORDER BY idx").fetchall()
        return [decode_entry(entry) for (entry,) in rows]

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None


@contextmanager
def shim_served(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[ShimServer]:
    """A fresh home with its service ready. At the end the faults are lifted, and it has to stop with exit code 0."""
    server = ShimServer(folder, settings)
    try:
        server.init()
        server.start()
        yield server
        server.shim.lift()
        if server.running:
            assert server.stop() == 0, server.log
    finally:
        server.shim.lift()
        server.close()


class Order:
    """A ready order with its CSR."""

    def __init__(self, client: AcmeClient, name: str, **members: Any) -> None:
        self.client = client
        self.name = name
        self.order = client.ready_order(name, **members)
        self.url: str = self.order.headers["Location"]
        self.id = self.url.rpartition("/")[2]
        self.csr = make_csr([name], ec.generate_private_key(ec.SECP256R1()))

    def finalize(self) -> Response:
        """Hand the CSR in, by whoever's connection it is."""
        return self.client.finalize(self.order, self.csr)

    def park(self) -> Response:
        """Finalize while the token cannot be used: the order waits, and the client is told for how long to."""
        answer = self.finalize()
        assert answer.status == 200, answer.body
        assert answer.json["status"] == "processing"
        assert int(answer.headers["Retry-After"]) >= 1
        return answer

    def finish(self) -> x509.Certificate:
        """The certificate, got by asking again and nothing else."""
        answer = self.client.poll(self.url, ("processing",))
        assert answer.json["status"] == "valid", answer.body
        return self.client.download(answer.json["certificate"])[0]


def wait_until(what: str, true: Any, patience: float = _PATIENCE) -> None:
    """Poll until ``true()``."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, f"still not so: {what}"
        time.sleep(0.02)
