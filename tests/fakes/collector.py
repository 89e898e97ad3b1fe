"""Receivers of exported entries: rsyslogd as it is installed, and a socket that behaves as badly as a test wants it."""

import contextlib
import datetime as dt
import ipaddress
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fakes.dns import LOOPBACK, free_port

SECONDS = 30.0


def eventually(check: Callable[[], Any], what: str = "nothing happened", seconds: float = SECONDS) -> Any:
    """What ``check`` gives as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


def certificate(folder: Path, name: str = "receiver") -> tuple[Path, Path]:
    """A certificate for the loopback address that signs itself, and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


#: The lines for rsyslog of the page that users read.
_PAGE = Path(__file__).parents[2] / "docs" / "export.md"
_BLOCK = re.compile(r"^### rsyslog\n\n```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: Besides, a port without TLS, and a file of what it understood of each message.
_MORE = """
global(workDirectory="{folder}")
module(load="imptcp")
template(name="fields" type="list" option.jsonf="on") {{
    property(outname="sd" name="structured-data" format="jsonf")
    property(outname="id" name="msgid" format="jsonf")
    property(outname="host" name="hostname" format="jsonf")
    property(outname="severity" name="syslogseverity-text" format="jsonf")
    property(outname="time" name="timereported" dateFormat="rfc3339" format="jsonf")
    property(outname="msg" name="msg" format="jsonf")
}}
ruleset(name="keep") {{ action(type="omfile" file="{fields}" template="fields") }}
input(type="imptcp" address="{host}" port="{tcp}" ruleset="keep")
"""


class Rsyslogd:
    """A real rsyslogd with the lines of ``docs/export.md``, on ports and with files of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.tcp, self.tls = free_port(), free_port()
        self.certificate, key = certificate(folder)
        self._fields, self._lines = folder / "fields", folder / "lines"
        block = _BLOCK.search(_PAGE.read_text(encoding="utf-8"))
        assert block, "docs/export.md has no lines for rsyslog"
        config = block[1]
        for there, here in (
            ("/etc/rsyslog.d/ca.pem", str(self.certificate)),
            ("/etc/rsyslog.d/server.pem", str(self.certificate)),
            ("/etc/rsyslog.d/server.key", str(key)),
            ("/var/log/privyseal.jsonl", str(self._lines)),
            ('port="6514"', f'address="{LOOPBACK}" port="{self.tls}"'),
        ):
            assert there in config, there
            config = config.replace(there, here)
        config += _MORE.format(folder=folder, fields=self._fields, host=LOOPBACK, tcp=self.tcp)
        (folder / "config").write_text(config)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("rsyslogd") or "/usr/sbin/rsyslogd"
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-n", "-f", self._folder / "config", "-i", self._folder / "pid"], stdout=log, stderr=log
            )
        for port in (self.tcp, self.tls):
            eventually(lambda port=port: _listens(port), f"look at {self._folder / 'log'}")  # type: ignore[misc]

    def stop(self) -> None:
        """End it in order: what it has read, it writes."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(SECONDS)

    def received(self) -> list[dict[str, Any]]:
        """The fields of every message that came without TLS and was written so far."""
        return _json_lines(self._fields)

    def lines(self) -> list[dict[str, Any]]:
        """Every message that came by TLS and was written so far."""
        return _json_lines(self._lines)

    def indexes(self) -> list[int]:
        """The indexes of what came without TLS, in their order."""
        return [json.loads(fields["msg"])["index"] for fields in self.received()]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in whole]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), 1):
        return True
    return False


@contextlib.contextmanager
def rsyslogd(folder: Path) -> Iterator[Rsyslogd]:
    """Its process, started."""
    server = Rsyslogd(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


#: What happens to a connection that was accepted, on a thread of its own.
Handler = Callable[[socket.socket], None]


class Collector:
    """A listener whose connections are handled as a test says, and may be handled otherwise later."""

    def __init__(self, handler: Handler, context: ssl.SSLContext | None = None) -> None:
        self.handler = handler
        self._context = context
        self.received: list[bytes] = []
        self.connections = 0
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            self.handler(connection)

    def read_all(self, connection: socket.socket) -> None:
        """Read until the end, keep it, and close."""
        parts = []
        while data := connection.recv(65536):
            parts.append(data)
        self.received.append(b"".join(parts))
        if isinstance(connection, ssl.SSLSocket):
            connection = connection.unwrap()
        connection.close()

    def lines(self) -> list[dict[str, Any]]:
        """JSON lines of what :meth:`read_all` kept."""
        return [json.loads(line) for line in b"".join(self.received).splitlines()]

    def close(self) -> None:
        """Stop listening, and drop every connection."""
        for each in (self._listener, *self._open):
            each.close()


@contextlib.contextmanager
def collector(handler: Handler | None = None, context: ssl.SSLContext | None = None) -> Iterator[Collector]:
    """A listener; without a ``handler`` it reads everything."""
    made = Collector(lambda _: None, context)
    made.handler = handler or made.read_all
    try:
        yield made
    finally:
        made.close()
