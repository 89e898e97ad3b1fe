"""The servers of relying parties, as processes on free ports: nginx, HAProxy, Apache; and curl and OpenSSL to try them with."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fakes.dns import LOOPBACK, free_port
from fakes.process import clean_environment, run_command
from fakes.relying import APP, OWN, TRUST, Identity, Relying, adapted

_PATIENCE = 15.0
_MODULES = Path("/usr/lib/apache2/modules")
#: curl was refused: by an HTTP status, in the handshake, or right after it, which is when TLS 1.3 looks at a client's certificate.
_REFUSED = frozenset({22, 35, 55, 56})


class Program:
    """A program that serves, with what it wrote."""

    def __init__(self, folder: Path, command: Sequence[str | Path], ports: Sequence[int]) -> None:
        self.folder = folder
        self.port = ports[0]
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(lambda: all(map(self._accepts, ports)))
        except BaseException:
            self.stop()
            raise

    @property
    def log(self) -> str:
        """Everything that the program wrote."""
        files = [self._output, *self.folder.glob("*.log")]
        return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    @property
    def reload(self) -> tuple[str, ...]:
        """The command that has nginx or Apache read its files anew."""
        return ("kill", "-HUP", str(self._process.pid))

    def stop(self) -> None:
        """End the program."""
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _accepts(self, port: int) -> bool:
        assert self._process.poll() is None, f"{self._process.args!r} ended\n{self.log}"
        with socket.socket() as probe:
            return probe.connect_ex((LOOPBACK, port)) == 0


@contextmanager
def program(folder: Path, command: Sequence[str | Path], *ports: int) -> Iterator[Program]:
    """A program that accepts connections at ``ports``, stopped at the end."""
    one = Program(folder, command, ports)
    try:
        yield one
    finally:
        one.stop()


def daemon(name: str) -> str:
    """Where a server's program is; not everybody has the folder in their PATH."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    assert found, f"install {name}: deploy/setup.sh test"
    return found


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not so after {_PATIENCE} s"
        time.sleep(0.05)


def _placed(text: str, own: Identity, relying: Relying) -> str:
    """A configuration of the page with the folders of this test, as far as it names them."""
    there = {OWN: own.folder, TRUST: relying.folder}
    return adapted(text, {old: new for old, new in there.items() if old in text})


@contextmanager
def nginx(folder: Path, server: str, own: Identity, relying: Relying) -> Iterator[Program]:
    """Nginx with the page's ``server`` block."""
    folder.mkdir()
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    block = adapted(_placed(server, own, relying), {"listen 443 ssl": f"listen {LOOPBACK}:{port} ssl"})
    configuration = f"""
        daemon off;
        user {pwd.getpwuid(os.getuid()).pw_name};
        pid {folder}/pid;
        error_log {folder}/error.log info;
        events {{ worker_connections 64; }}
        http {{
            access_log off;
            {" ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)}
            {block}
        }}
        """
    (folder / "nginx.conf").write_text(configuration, encoding="utf-8")
    command = (daemon("nginx"), "-p", folder, "-e", folder / "error.log", "-c", folder / "nginx.conf")
    with program(folder, command, port) as one:
        yield one


@contextmanager
def haproxy(folder: Path, frontend: str, own: Identity, relying: Relying) -> Iterator[Program]:
    """HAProxy with the page's ``frontend``, and its runtime interface at ``folder/admin.sock``."""
    folder.mkdir()
    port = free_port()
    section = adapted(_placed(frontend, own, relying), {"bind :443 ssl": f"bind {LOOPBACK}:{port} ssl"})
    configuration = f"""
global
    stats socket {folder}/admin.sock level admin
defaults
    mode http
    timeout client 10s
    timeout connect 10s
    timeout server 10s
{section}
"""
    (folder / "haproxy.cfg").write_text(configuration, encoding="utf-8")
    command = (daemon("haproxy"), "-W", "-db", "-f", folder / "haproxy.cfg")
    with program(folder, command, port) as one:
        yield one


@contextmanager
def apache(folder: Path, host: str, own: Identity, relying: Relying) -> Iterator[Program]:
    """Apache with the page's virtual host."""
    folder.mkdir()
    port = free_port()
    section = adapted(_placed(host, own, relying), {"<VirtualHost *:443>": f"<VirtualHost {LOOPBACK}:{port}>"})
    modules = ("mpm_event", "authz_core", "alias", "socache_shmcb", "ssl")
    loaded = "\n".join(f"LoadModule {each}_module {_MODULES}/mod_{each}.so" for each in modules)
    configuration = f"""
{loaded}
ServerRoot {folder}
DefaultRuntimeDir {folder}
PidFile {folder}/pid
ErrorLog {folder}/error.log
LogLevel warn ssl:info
User "#65534"
Group "#65534"
StartServers 1
ServerLimit 2
ThreadLimit 8
ThreadsPerChild 8
MinSpareThreads 1
MaxRequestWorkers 16
Listen {LOOPBACK}:{port}
Redirect 204 /
{section}
"""
    (folder / "apache.conf").write_text(configuration, encoding="utf-8")
    with program(folder, (daemon("apache2"), "-DFOREGROUND", "-f", folder / "apache.conf"), port) as one:
        yield one


def reload_haproxy(one: Program) -> None:
    """Have HAProxy start a new worker with its files as they are now."""
    one.signal(signal.SIGUSR2)


def curl(
    relying: Relying, port: int, client: Identity | None = None, *options: str | Path, expect: int | None = 0
) -> "subprocess.CompletedProcess[str]":
    """Fetch a page of :data:`APP` at ``port``; HTTP errors are failures."""
    mutual = ("--cert", client.pem, "--key", client.key) if client else ()
    return run_command(
        *("curl", "-sSf", "--max-time", "10", "--cacert", relying.roots, *mutual, *options),
        *("--connect-to", f"{APP}:{port}:{LOOPBACK}:{port}", f"https://{APP}:{port}/"),
        expect=expect,
    )


def accepted(relying: Relying, port: int, client: Identity) -> bool:
    """Whether the server at ``port`` serves ``client``, in a connection of its own."""
    done = curl(relying, port, client, expect=None)
    assert done.returncode in {0, *_REFUSED}, done.stderr
    return done.returncode == 0


def stapled(relying: Relying, port: int) -> str:
    """The certificate status in the OCSP response that the server at ``port`` staples; empty when there is none."""
    done = run_command(
        *("openssl", "s_client", "-connect", f"{LOOPBACK}:{port}", "-servername", APP, "-status"),
        *("-CAfile", relying.roots),
        # Not zero where the server wants a client's certificate, of which it speaks last.
        expect=None,
    )
    assert "Verify return code: 0 (ok)" in done.stdout, done.stdout + done.stderr
    _, _, status = done.stdout.partition("Cert Status: ")
    assert status or "OCSP response: no response sent" in done.stdout, done.stdout
    return status.partition("\n")[0]
