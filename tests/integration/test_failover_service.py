"""The real service under load while its tokens go, hang and come back, as its operators and clients see it."""

import itertools
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from fakes.acme_client import AcmeClient, make_csr
from fakes.dns import Knot
from fakes.http01 import Http01
from fakes.process import ServerProcess
from fakes.promises import check_promises
from fakes.shim import Shim, make_tokens
from fakes.two_tokens import LABEL, PIN, TwoTokens

_PATIENCE = 20.0
#: How soon orders have to go on after a token has gone. What a client waits between two questions is in it.
_FAILOVER_SECONDS = 5.0
_TIMEOUT = 1.0


class TwoTokenServer(ServerProcess):
    """A home whose issuing keys are in two tokens."""

    def __init__(self, folder: Path, tokens: TwoTokens, dns_server: Knot, http01: Http01) -> None:
        settings = {
            "VALIDATION__RESOLVERS": f'["{dns_server.address}"]',
            "VALIDATION__HTTP_PORT": str(http01.port),
            "HSM__RETRY_AFTER": "0.1",
            "HSM__TIMEOUT": str(_TIMEOUT),
        }
        super().__init__(folder / "home", settings)
        self.tokens = tokens
        self.pin_file = folder / "pin"
        self.pin_file.write_text(f"{PIN}\n", encoding="utf-8")
        self.pin_file.chmod(0o600)

    def make(self) -> None:
        """The ceremony, a first start, which makes the keys of responder and ledger, and what the HSM does then."""
        make_tokens(self.tokens.a, "root", LABEL, pin=PIN)
        pin = str(self.pin_file)
        self.init(
            *("--pkcs11-module", str(self.tokens.a.path), "--root-token", "root", "--root-pin-file", pin),
            *("--issuing-token", LABEL, "--pin-file", pin),
        )
        self.start()
        assert self.stop() == 0
        self.tokens.replicate()
        self.settings["HSM__REPLICAS"] = json.dumps([self.tokens.uri_b])


@pytest.fixture
def server(tmp_path: Path, dns_server: Knot, http01: Http01) -> Iterator[TwoTokenServer]:
    tokens = TwoTokens(tmp_path)
    made = TwoTokenServer(tmp_path, tokens, dns_server, http01)
    try:
        made.make()
        yield made
    finally:
        tokens.lift()
        made.close()


class Load:
    """Clients that order one certificate after the other."""

    def __init__(self, client: AcmeClient, clients: int) -> None:
        #: When each certificate was ordered, and when it was there.
        self.issued: list[tuple[float, float]] = []
        self.serials: set[int] = set()
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        self._numbers = itertools.count(1)
        self._threads = [threading.Thread(target=self._order, args=(client.twin(),)) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _order(self, client: AcmeClient) -> None:
        try:
            while not self._stop.is_set():
                begun = time.monotonic()
                issued = client.issue(f"load{next(self._numbers)}.test")
                self.serials.add(issued.certificate.serial_number)
                self.issued.append((begun, time.monotonic()))
        except BaseException as error:  # noqa: BLE001 (raised on the test's own thread)
            self.failures.append(error)
        finally:
            client.close()

    def goes_on(self) -> float:
        """Wait for a certificate that was ordered after now; the seconds until it was there."""
        now = time.monotonic()
        deadline = now + _PATIENCE
        while True:
            assert not self.failures, self.failures
            after = [end for begin, end in list(self.issued) if begin > now]
            if after:
                return min(after) - now
            assert time.monotonic() < deadline, "no certificate was issued"
            time.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_PATIENCE + 2 * _TIMEOUT)
        assert not any(thread.is_alive() for thread in self._threads)
        assert not self.failures, self.failures


def fetch(server: ServerProcess, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{server.http_url}{path}", timeout=10) as answer:  # noqa: S310 (plain, loopback)
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def readyz(server: ServerProcess) -> tuple[int, dict[str, str]]:
    code, body = fetch(server, "/readyz")
    parts: dict[str, str] = json.loads(body)["parts"]
    return code, parts


def metric(server: ServerProcess, name: str, token: str) -> float:
    readyz(server)  # which sets it
    wanted = f'{name}{{token="{token}"}}'
    lines = fetch(server, "/metrics")[1].splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted))


def until(what: str, true: Any) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"still not so: {what}"
        time.sleep(0.02)


def signs(shim: Shim) -> Any:
    before = shim.signature_count
    return lambda: shim.signature_count > before


def test_orders_go_on_while_tokens_go_hang_and_come_back(server: TwoTokenServer, http01: Http01) -> None:
    tokens = server.tokens
    a, b = tokens.a, tokens.b
    server.start()
    client = AcmeClient(server.directory, server.roots, http01=http01)
    client.register()
    until("the replica was looked at", lambda: metric(server, "privyseal_token_up", tokens.uri_b) == 1)
    assert readyz(server)[1]["redundancy"] == "ok"
    assert metric(server, "privyseal_token_keys", tokens.uri_a) > 3
    assert b.signature_count == 0, "the preferred token does the work"
    load = Load(client, 2)
    load.goes_on()

    # It goes away under load, and comes back.
    a.take_away()
    assert load.goes_on() < _FAILOVER_SECONDS
    until("the loss is seen", lambda: metric(server, "privyseal_token_up", tokens.uri_a) == 0)
    code, parts = readyz(server)
    assert (code, parts["token"]) == (200, "ok"), "one token is enough"
    assert tokens.uri_a in parts["redundancy"]
    assert fetch(server, "/readyz?part=redundancy")[0] == 503
    assert metric(server, "privyseal_token_keys", tokens.uri_b) > 3
    a.bring_back()
    until("it signs again", signs(a))
    until("all is well", lambda: readyz(server)[1]["redundancy"] == "ok")

    # It hangs while it signs: who waits for that signature waits for hsm.timeout, and nobody else.
    with a.hanging("C_Sign"):
        a.wait_until_hanging("C_Sign")
        assert load.goes_on() < _FAILOVER_SECONDS + _TIMEOUT
        until("the loss is seen", lambda: metric(server, "privyseal_token_up", tokens.uri_a) == 0)
        assert readyz(server)[0] == 200
    until("it signs again", signs(a))

    # Both are away: orders wait. Either brings them on.
    a.take_away()
    b.take_away()
    until("nothing is signed", lambda: readyz(server)[0] == 503)
    b.bring_back()
    assert load.goes_on() < _PATIENCE
    assert "the token with the key of" not in readyz(server)[1]["token"]
    a.bring_back()
    until("it signs again", signs(a))
    load.stop()
    client.close()

    assert server.stop() == 0
    report, histories = check_promises(f"sqlite:///{server.home / 'privyseal.db'}")
    issued = {history.certificate.serial for history in histories.values() if history.certificate is not None}
    assert {f"{serial:032x}" for serial in load.serials} <= issued
    # A token does one thing at a time: each of the four losses met one signature at most.
    assert report.abandoned <= 4
    assert a.signature_count + b.signature_count > len(load.serials)
    server.command("ledger", "verify")


def test_starts_with_either_token_away_and_what_operators_see(server: TwoTokenServer, http01: Http01) -> None:
    tokens = server.tokens
    tokens.a.take_away()
    server.start()
    client = AcmeClient(server.directory, server.roots, http01=http01)
    client.register()
    client.issue("without-a.test")
    assert tokens.b.signature_count > 0
    before = tokens.a.signature_count
    tokens.a.bring_back()
    until("it is used", lambda: metric(server, "privyseal_token_keys", tokens.uri_a) > 0)
    client.issue("with-a.test")
    assert tokens.a.signature_count > before
    assert server.stop() == 0

    tokens.b.take_away()
    server.start()
    again = client.twin()
    again.issue("without-b.test")
    shown = server.json("issuer", "show", "issuing-1")
    assert shown["key_uris"] == [shown["key_uri"], shown["key_uri"].replace(str(tokens.a.path), str(tokens.b.path))]
    findings = {each["what"]: each for each in server.json("doctor", expect=None)["findings"]}
    assert findings["key issuing-1"]["level"] == "ok"
    assert findings[f"token {tokens.uri_a}"]["level"] == "ok"
    assert "issuing-1" in findings[f"token {tokens.uri_a}"]["message"]
    assert findings[f"token {tokens.uri_b}"]["level"] == "warn"
    client.close()
    again.close()
    assert server.stop() == 0

    # With neither the start waits.
    tokens.a.take_away()
    server.start(wait=False)
    until("it waits", lambda: "waits to start" in server.log)
    tokens.b.bring_back()
    server.wait_until_ready()
    assert server.stop() == 0

    # Settings that make no sense stop it; test_hsm_replicas.py has them all.
    server.settings["HSM__REPLICAS"] = json.dumps([server.tokens.uri_a])
    done = server.command("serve", expect=1)
    assert "hsm.replicas names only" in done.stderr


def test_a_start_while_one_of_two_issuers_is_away(tmp_path: Path, dns_server: Knot, http01: Http01) -> None:
    """Their keys are in different tokens: what does not need the one that is away goes on."""
    settings = {
        "VALIDATION__RESOLVERS": f'["{dns_server.address}"]',
        "VALIDATION__HTTP_PORT": str(http01.port),
        "HSM__RETRY_AFTER": "0.1",
    }
    server = ServerProcess(tmp_path / "home", settings)
    try:
        server.init()
        pin = (server.home / "secrets" / "pin").read_text(encoding="utf-8").strip()
        before = set((server.home / "tokens").iterdir())
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", "second", "--so-pin", "so-pin", "--pin", pin],
            env={**os.environ, "SOFTHSM2_CONF": str(server.home / "softhsm2.conf")},
            capture_output=True,
            timeout=30,
            check=True,
        )
        (second,) = set((server.home / "tokens").iterdir()) - before
        server.command("issuer", "create", "second", "--key-type", "rsa-2048", "--token", "second")
        server.start()
        assert server.stop() == 0
        shutil.move(second, tmp_path / "away")
        server.start(wait=False)
        until("it answers", lambda: "serving" in server.log.rpartition("stopped")[2])
        code, parts = readyz(server)
        assert code == 503
        assert "second" in parts["token"]
        client = AcmeClient(server.directory, server.roots, http01=http01)
        client.register()
        client.issue("ec.test")
        order = client.ready_order("rsa.test")
        csr = make_csr(["rsa.test"], rsa.generate_private_key(65537, 2048))
        assert client.finalize(order, csr).json["status"] == "processing"
        shutil.move(tmp_path / "away", second)
        assert client.poll(order.headers["Location"], ("processing",)).json["status"] == "valid"
        server.wait_until_ready()
        client.close()
        assert server.stop() == 0
        server.command("ledger", "verify")
    finally:
        server.close()
