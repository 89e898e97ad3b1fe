"""Witnesses as tests need them: one in this process behind real HTTP, one in a process of its own, and logs to be witnessed.

A :class:`TestLog` is a log whose key is the test's, so that it can contradict itself. :func:`witnessing` serves a witness with
a key in a real token; :class:`WitnessProcess` is ``privyseal witness serve`` with a home.
"""

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ed25519

from fakes.checkpoints import ORIGIN
from fakes.dns import LOOPBACK, free_port
from fakes.process import PRIVYSEAL, START_SECONDS, STOP_SECONDS, CommandFailedError, clean_environment, run_command
from fakes.service import FakeClock
from fakes.tree_tiles import MemoryTiles, numbered
from privyseal_acme.listener import Listener
from privyseal_ca.hsm.signer import SigningKey
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, note_with
from privyseal_ca.ledger.proofs import consistency_proof
from privyseal_ca.ledger.tiles import root_of
from privyseal_ca.sections import LedgerSettings, WitnessSettings
from privyseal_ca.telemetry.metrics import WitnessMetrics
from privyseal_ca.witness.protocol import Submission
from privyseal_ca.witness.server import witness_app
from privyseal_ca.witness.state import WitnessState
from privyseal_ca.witness.witness import Witness

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TestLog:
    """A log of ``entries`` whose key the test has. Logs with one ``key`` and other entries are a split view."""

    __test__ = False

    def __init__(
        self,
        origin: str = ORIGIN,
        *,
        key: ed25519.Ed25519PrivateKey | None = None,
        entries: Sequence[bytes] | None = None,
    ) -> None:
        self.origin = origin
        self.key = key or ed25519.Ed25519PrivateKey.generate()
        self.tiles = MemoryTiles(numbered(300) if entries is None else entries)
        self.verifier = NoteVerifier.for_key(origin, self.key.public_key())

    def forked(self, at: int) -> "TestLog":
        """Another log that is the same up to the entry ``at``."""
        entries = [*self.tiles.entries[:at], *(b"forked %d" % index for index in range(len(self.tiles.entries) - at))]
        return TestLog(self.origin, key=self.key, entries=entries)

    def checkpoint(self, size: int) -> Checkpoint:
        """The checkpoint of ``size``."""
        return Checkpoint(self.origin, size, root_of(self.tiles, size))

    def note(self, size: int) -> bytes:
        """The same, signed."""
        return self.sign(self.checkpoint(size).text())

    def sign(self, text: str) -> bytes:
        """A note with ``text``."""
        return note_with(text, self.verifier, self.key.sign(text.encode()))

    def submission(self, old: int, new: int) -> bytes:
        """The body that asks a witness at ``old`` to cosign ``new``."""
        return Submission(old, tuple(consistency_proof(self.tiles, old, new)), self.note(new)).body()


@dataclass(frozen=True)
class Witnessing:
    """A witness that is served."""

    url: str
    witness: Witness
    state: WitnessState
    clock: FakeClock
    home: Path

    @property
    def settings(self) -> WitnessSettings:
        """How a ledger names it."""
        return WitnessSettings(vkey=self.witness.verifier.vkey(), url=self.url)


@asynccontextmanager
async def witnessing(
    home: Path, key: SigningKey, *, name: str = "witness.example/w1", port: int = 0
) -> AsyncIterator[Witnessing]:
    """A witness in ``home``, which may have been one before."""
    state, clock = WitnessState(home), FakeClock()
    with state.serving():
        witness = Witness(state, key, name, clock)
        app = witness_app(witness, state, WitnessMetrics())
        async with Listener(app, LOOPBACK, port, grace=1) as listener:
            yield Witnessing(f"http://{LOOPBACK}:{listener.port}", witness, state, clock, home)


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[str]:
    """Something that answers every request with ``handler`` and is no witness; its URL."""
    app = web.Application(client_max_size=1 << 20)
    app.router.add_route("*", "/{path:.*}", handler)
    async with Listener(app, LOOPBACK, 0, grace=0.1) as listener:
        yield f"http://{LOOPBACK}:{listener.port}"


def ledger_settings(*witnesses: WitnessSettings, **more: Any) -> LedgerSettings:
    """Settings with these witnesses, which are waited for as long as a busy machine needs."""
    return LedgerSettings.model_validate(
        {"witnesses": [each.model_dump() for each in witnesses], "witness_timeout": 5.0, **more}
    )


class WitnessProcess:
    """A home with a witness, and its ``privyseal witness serve`` when it runs. May be stopped, killed and started again."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        made = self.json("init", "--name", name, "--listen", f"{LOOPBACK}:{self.port}")
        self.vkey: str = made["vkey"]

    @property
    def setting(self) -> dict[str, str]:
        """How a ledger names it."""
        return {"vkey": self.vkey, "url": self.url}

    @property
    def log(self) -> str:
        """What it wrote to standard error since it was started first."""
        return self.home.with_name(f"{self.home.name}.err").read_text(encoding="utf-8")

    def command(self, *arguments: str | Path, expect: int | None = 0) -> "subprocess.CompletedProcess[str]":
        """Run ``privyseal witness`` with ``arguments`` for this home."""
        return run_command(PRIVYSEAL, "witness", *arguments, "--home", self.home, expect=expect)

    def json(self, *arguments: str | Path, expect: int | None = 0) -> Any:
        """The document of ``privyseal witness ... --json``."""
        return json.loads(self.command(*arguments, "--json", expect=expect).stdout)

    def start(self) -> None:
        """Start it and wait until it is ready."""
        assert self._process is None, "the witness is running already"
        with self.home.with_name(f"{self.home.name}.err").open("ab") as err:
            self._process = subprocess.Popen(
                [PRIVYSEAL, "witness", "serve", "--home", self.home],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/healthz", timeout=5):  # noqa: S310 (plain, loopback)
                    return
            except OSError:
                time.sleep(0.02)
        raise CommandFailedError(f"privyseal witness serve is not ready\n{self.log}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and give the exit code."""
        assert self._process is not None, "the witness is not running"
        process, self._process = self._process, None
        process.send_signal(number)
        return process.wait(STOP_SECONDS)

    def close(self) -> None:
        """End it however it is."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
