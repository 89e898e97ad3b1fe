"""The service as its owners run it: ``privyseal init`` and ``privyseal serve`` as processes of their own, on free ports."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fakes.dns import LOOPBACK, free_port

PRIVYSEAL = Path(sys.executable).with_name("privyseal")
START_SECONDS = 30.0
STOP_SECONDS = 30.0


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without what was set for a home or the way out of this machine, and with ``more``."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PRIVYSEAL_") and name != "SOFTHSM2_CONF" and not name.lower().endswith("_proxy")
    }
    return {**kept, **more}


class CommandFailedError(AssertionError):
    """A command gave another exit code than the test expects."""


def run_command(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    expect: int | None = 0,
    timeout: float = 60,
) -> "subprocess.CompletedProcess[str]":
    """Run ``command`` to its end with nobody at its standard input. ``expect=None`` accepts every exit code."""
    done = subprocess.run(
        [str(part) for part in command],
        env=dict(env) if env is not None else clean_environment(),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if expect is not None and done.returncode != expect:
        shown = " ".join(str(part) for part in command)
        raise CommandFailedError(f"{shown}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


class ServerProcess:
    """One home, and its ``privyseal serve`` when it runs. May be stopped, killed and started again."""

    def __init__(
        self,
        home: Path,
        settings: Mapping[str, str] | None = None,
        *,
        command: Sequence[str | Path] = (PRIVYSEAL, "serve"),
    ) -> None:
        """``settings`` are overrides such as ``{"VALIDATION__TIMEOUT": "1"}``; ``command`` is what ends up as the service."""
        self.home = home
        self._command = command
        self.https_port = free_port()
        self.http_port = free_port()
        #: Where clients answer http-01 and tls-alpn-01.
        self.challenge_port = free_port()
        self.tls_challenge_port = free_port()
        self.settings = {
            "SERVER__HTTPS": f"{LOOPBACK}:{self.https_port}",
            "SERVER__HTTP": f"{LOOPBACK}:{self.http_port}",
            "VALIDATION__HTTP_PORT": str(self.challenge_port),
            "VALIDATION__TLS_PORT": str(self.tls_challenge_port),
            **(settings or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every command of this home."""
        overrides = {f"PRIVYSEAL_{name}": value for name, value in self.settings.items()}
        return clean_environment(PRIVYSEAL_HOME=str(self.home), **overrides)

    @property
    def https_url(self) -> str:
        """The base URL of the TLS listener."""
        return f"https://{LOOPBACK}:{self.https_port}"

    @property
    def http_url(self) -> str:
        """The base URL of the plain listener."""
        return f"http://{LOOPBACK}:{self.http_port}"

    @property
    def directory(self) -> str:
        """The ACME directory."""
        return f"{self.https_url}/acme/directory"

    @property
    def roots(self) -> Path:
        """The trust anchors."""
        return self.home / "roots.pem"

    @property
    def pid(self) -> int:
        """The service's process id."""
        assert self._process is not None, "the service is not running"
        return self._process.pid

    @property
    def output(self) -> str:
        """What the service wrote to standard output since it was started first."""
        return self._file("out").read_text(encoding="utf-8")

    @property
    def log(self) -> str:
        """What the service wrote to standard error since it was started first."""
        return self._file("err").read_text(encoding="utf-8")

    def command(self, *arguments: str | Path, expect: int | None = 0) -> "subprocess.CompletedProcess[str]":
        """Run ``privyseal`` with ``arguments`` for this home."""
        return run_command(PRIVYSEAL, *arguments, env=self.environment, expect=expect)

    def json(self, *arguments: str | Path, expect: int | None = 0) -> Any:
        """The document of ``privyseal ... --json``."""
        return json.loads(self.command(*arguments, "--json", expect=expect).stdout)

    def init(self, *arguments: str) -> None:
        """Make the home."""
        self.command("init", *arguments)

    def start(self, *, wait: bool = True) -> None:
        """Start the service and wait until it is ready."""
        assert self._process is None, "the service is running already"
        with self._file("out").open("ab") as out, self._file("err").open("ab") as err:
            self._process = subprocess.Popen(
                self._command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until ``/readyz`` answers 200."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise CommandFailedError(f"privyseal serve ended\n{self.log}")
            if self._ready():
                return
            time.sleep(0.02)
        raise CommandFailedError(f"privyseal serve is not ready after {START_SECONDS} s\n{self.log}")

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http_url}/readyz", timeout=5) as answer:  # noqa: S310 (plain, loopback)
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and give the exit code."""
        assert self._process is not None, "the service is not running"
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise CommandFailedError(f"privyseal serve did not end within {STOP_SECONDS} s\n{self.log}") from None

    def close(self) -> None:
        """End the service however it is."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _file(self, name: str) -> Path:
        return self.home.with_name(f"{self.home.name}.{name}")


@contextlib.contextmanager
def served(
    home: Path, settings: Mapping[str, str] | None = None, *, init: tuple[str, ...] = (), named: bool = False
) -> Iterator[ServerProcess]:
    """A fresh home with its service ready. At the end it is stopped as its owner would, and has to exit with 0.

    ``named`` sets ``server.http_url``, so that the intermediate's certificate points to the root's CRL.
    """
    server = ServerProcess(home, settings)
    if named:
        server.settings["SERVER__HTTP_URL"] = server.http_url
    try:
        server.init(*init)
        server.start()
        yield server
        if server._process is not None:
            code = server.stop()
            assert code == 0, f"privyseal serve ended with {code}\n{server.log}"
    finally:
        server.close()
