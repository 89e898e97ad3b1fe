"""Clients as they are: they order, and whatever goes wrong, all they do is to ask again."""

import json
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from chaos.record import Received, Record
from chaos.world import GONE
from fakes.acme_client import PROBLEM_PREFIX, AcmeClient, Response, challenge_of, make_csr
from fakes.clients import Lego
from fakes.http01 import Http01
from fakes.process import CommandFailedError, ServerProcess

#: Real clients wait as long as Retry-After says; here nobody waits longer than this, for faults are short too.
_LONGEST_WAIT: Final = 0.3
#: Without a Retry-After.
_WAIT: Final = 0.1
#: A client revokes one of so many of its certificates.
_REVOKED: Final = 4
_AGAIN: Final = frozenset({429, 500, 502, 503, 504})


class RefusedError(Exception):
    """An answer that asking again does not change."""

    def __init__(self, answer: Response) -> None:
        self.problem = problem_of(answer)
        super().__init__(f"{answer.status} {self.problem}: {answer.body[:300].decode(errors='replace')}")


class HangsError(Exception):
    """Asking again has led nowhere for as long as a client has patience."""


class OverError(Exception):
    """The trial cannot go on."""


def problem_of(answer: Response) -> str:
    """The type of a problem without ACME's prefix; empty when it is none."""
    try:
        return str(json.loads(answer.body)["type"]).removeprefix(PROBLEM_PREFIX)
    except (ValueError, KeyError, TypeError):
        return ""


class Worker(threading.Thread):
    """One account that orders certificates for names below ``zone``, one after the other, and revokes some of them."""

    def __init__(
        self,
        number: int,
        server: ServerProcess,
        http01: Http01,
        record: Record,
        *,
        zone: str,
        seed: str,
        pause: float,
        patience: float,
    ) -> None:
        """In seconds: ``pause`` is the longest pause between two orders; for ``patience`` it asks for one thing again."""
        super().__init__(name=f"client-{number}", daemon=True)
        self._client = AcmeClient(server.directory, server.roots, http01=http01)
        self._record = record
        self._zone = zone
        self._pause = pause
        self._patience = patience
        self._chance = random.Random(f"{seed} client {number}")  # noqa: S311 (moments, not secrets)
        self._number = number
        self._last = threading.Event()

    def finish(self) -> None:
        """Have it end with the order that is under way."""
        self._last.set()

    def run(self) -> None:
        """Order until told to finish."""
        made = 0
        try:
            self._again("newAccount", self._register)
            while not self._last.is_set():
                made += 1
                received = self._order(f"c{self._number}-{made}.{self._zone}")
                if made % _REVOKED == 2:
                    self._revoke(received)
                self._last.wait(self._chance.uniform(0, self._pause))
        except (RefusedError, HangsError) as error:
            self._record.breach(f"{self.name} cannot finish order {made}: {error}")
        except OverError:
            pass
        except Exception as error:  # noqa: BLE001 (a thread has nobody else to tell)
            self._record.breach(f"{self.name} ended: {error!r}")
        finally:
            self._client.close()

    def _register(self) -> Response:
        answer = self._client.new_account()
        if answer.status < 400:
            self._client.account = answer.headers["Location"]
        return answer

    def _order(self, name: str) -> Received:
        client = self._client
        created = self._again("newOrder", lambda: client.new_order(name))
        url = created.headers["Location"]
        for authorization in created.json["authorizations"]:
            self._authorize(authorization)
        csr = make_csr([name], ec.generate_private_key(ec.SECP256R1()))
        deadline = time.monotonic() + self._patience
        while (order := self._again("order", lambda: client.post(url))).json["status"] != "valid":
            status = order.json["status"]
            if time.monotonic() > deadline:
                raise HangsError(f"the order {url} is still {status} after {self._patience:.0f} s")
            if status == "ready":
                self._finalize(order, csr)
            elif status == "invalid":
                raise RefusedError(order)
            else:
                self._wait(order)
        downloaded = self._again("certificate", lambda: client.post(order.json["certificate"]))
        leaf, issuer = x509.load_pem_x509_certificates(downloaded.body)[:2]
        return self._record.receive(url.rpartition("/")[2], leaf.public_bytes(Encoding.DER), issuer)

    def _authorize(self, url: str) -> None:
        client = self._client
        authorization = self._again("authorization", lambda: client.post(url)).json
        challenge = challenge_of(authorization, "http-01")
        client.prepare(authorization["identifier"]["value"], challenge)
        self._again("challenge", lambda: client.post(challenge["url"], {}))
        deadline = time.monotonic() + self._patience
        while (answer := self._again("authorization", lambda: client.post(url))).json["status"] == "pending":
            if time.monotonic() > deadline:
                raise HangsError(f"the authorization {url} is still pending after {self._patience:.0f} s")
            self._wait(answer)
        if answer.json["status"] != "valid":
            raise RefusedError(answer)

    def _finalize(self, order: Response, csr: bytes) -> None:
        def ask() -> Response:
            self._record.begin("finalize")
            return self._client.finalize(order, csr)

        try:
            self._again("finalize", ask)
        except RefusedError as refused:
            # The state has gone on meanwhile; the order says how.
            if refused.problem != "orderNotReady":
                raise

    def _revoke(self, received: Received) -> None:
        def ask() -> Response:
            self._record.begin("revokeCert")
            return self._client.revoke(received.der)

        try:
            self._again("revokeCert", ask)
        except RefusedError as refused:
            if refused.problem != "alreadyRevoked":
                raise
        received.revoked = True

    def _again(self, what: str, ask: Callable[[], Response]) -> Response:
        """The first answer that is none of those that say to ask again."""
        deadline = time.monotonic() + self._patience
        while True:
            answer: Response | None = None
            try:
                answer = ask()
            except GONE as error:
                # The nonce may have been used.
                self._client.nonce = None
                why = type(error).__name__
            else:
                if answer.status < 400:
                    return answer
                why = f"{answer.status} {problem_of(answer)}".rstrip()
                if answer.status not in _AGAIN and problem_of(answer) != "badNonce":
                    raise RefusedError(answer)
            self._record.retried(f"{what}: {why}")
            if time.monotonic() > deadline:
                raise HangsError(f"{what} has met {why} for {self._patience:.0f} s")
            self._wait(answer)

    def _wait(self, answer: Response | None) -> None:
        """As long as the answer says, within reason; else a moment."""
        asked = "" if answer is None else answer.headers["Retry-After"] or ""
        longest = min(float(asked), _LONGEST_WAIT) if asked.isdigit() else _LONGEST_WAIT if answer is None else _WAIT
        if self._record.over.wait(self._chance.uniform(longest / 4, longest)):
            raise OverError


class LegoWorker(threading.Thread):
    """lego, run again with the same arguments until it has its certificate, for one name after the other."""

    def __init__(self, server: ServerProcess, folder: Path, record: Record, *, zone: str, patience: float) -> None:
        super().__init__(name="lego", daemon=True)
        folder.mkdir()
        self._lego = Lego(server, folder)
        self._patience = patience
        self._record = record
        self._zone = zone
        self._last = threading.Event()

    def finish(self) -> None:
        """Have it end with the certificate that it wants now."""
        self._last.set()

    def run(self) -> None:
        """Get certificates until told to finish."""
        made = 0
        while not self._last.is_set():
            made += 1
            name = f"lego-{made}.{self._zone}"
            deadline: float | None = None
            try:
                while not self._certificate(name):
                    self._record.retried("lego: run again")
                    if self._record.over.is_set():
                        return
                    # It begins anew each time, and cannot finish as long as faults come faster than it is.
                    if deadline is None and self._last.is_set():
                        deadline = time.monotonic() + self._patience
                    if deadline is not None and time.monotonic() > deadline:
                        self._record.breach(
                            f"lego has no certificate for {name} {self._patience:.0f} s after the last fault"
                        )
                        return
            except Exception as error:  # noqa: BLE001 (a thread has nobody else to tell)
                self._record.breach(f"lego ended: {error!r}")
                return

    def _certificate(self, name: str) -> bool:
        """Run it once; lego gives up by itself when it meets an error."""
        try:
            self._lego(*self._lego.tls, "--domains", name, "run")
        except (CommandFailedError, subprocess.TimeoutExpired):
            return False
        leaf, issuer = x509.load_pem_x509_certificates(self._lego.certificate(name).read_bytes())[:2]
        self._record.receive("", leaf.public_bytes(Encoding.DER), issuer)
        return True
