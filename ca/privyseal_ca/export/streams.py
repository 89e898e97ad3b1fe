"""Entries over TCP (RFC 6587) and TLS (RFC 5425), at least once.

Neither syslog nor lines of JSON have acknowledgements. What can be known is this: once everything that was sent has been
acknowledged by the receiver's kernel, and the receiver then answers the end of our stream with the end of its own, its
program has read all of it. A kernel whose program ends without having read everything sends a reset instead, and an end that
came before ours says nothing: who only receives may close that direction at once. So every few seconds, when something was sent, the connection is closed in that order, and only then does the export's cursor move; the next
entries open another connection. With TLS the end is a close_notify alert, which nobody else can forge, and which a
receiver has to answer (RFC 5425 section 4.4).
"""

import contextlib
import fcntl
import os
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from privyseal_ca.errors import ExportError
from privyseal_ca.export.targets import POLL, Stop

_CONNECT_SECONDS: Final = 10.0
#: How long a receiver may take nothing at all, and how long it may take to read what it was sent last; and how long it has
#: for that when the export is to end. In seconds.
_PATIENCE: Final = 60.0
_LAST_PATIENCE: Final = 5.0
_CHUNK: Final = 1 << 16
#: A receiver has nothing to say; what it says all the same is read so far, and not looked at.
_MAX_ANSWER: Final = 1 << 16
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))

_Socket = socket.socket | ssl.SSLSocket


class TlsFiles(NamedTuple):
    """The files that TLS needs. They are read anew for every connection, so that renewed certificates count."""

    #: Trust anchors; None for those of the system.
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """What connections are made with: the receiver's name and chain are verified.

        Raises:
            ExportError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise _unusable("--ca-file", self.ca, error) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password=_no_password)
            except (OSError, ssl.SSLError, ValueError) as error:
                raise _unusable("--client-cert and --client-key", self.certificate, error) from error
        return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _unusable(option: str, path: Path | None, error: Exception) -> ExportError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ExportError(
        f"The file of {option} cannot be used: {path or 'the trust anchors of this system'}: {reason}.",
        hint="Give PEM files that this user can read, and a key without a password.",
    )


class StreamTarget:
    """A receiver at ``host``:``port``, over TLS when ``tls`` says by which files.

    Raises:
        ExportError: one of the files cannot be used.
    """

    pause = 5.0

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: TlsFiles | None = None,
        patience: float = _PATIENCE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if tls is not None:
            tls.context()
        self._host, self._port, self._tls = host, port, tls
        self._patience = patience
        self._monotonic = monotonic
        self._socket: _Socket | None = None

    @property
    def _name(self) -> str:
        return f"{self._host}:{self._port}"

    def send(self, entries: Sequence[bytes], stop: Stop) -> None:
        """Send ``entries``, as fast as the receiver takes them."""
        try:
            if self._socket is None:
                self._socket = self._connect()
            for at in range(0, len(data := b"".join(entries)), _CHUNK):
                self._send(self._socket, data[at : at + _CHUNK], stop)
        except OSError as error:
            self.close()
            raise self._failure(error) from error

    def confirm(self, stop: Stop) -> None:
        """Close the connection in a way that shows that the receiver has read everything."""
        connection = self._socket
        if connection is None:
            return
        limit = _Limit(stop, self._patience, self._monotonic)
        try:
            _drain(connection, limit)
            _require_open(connection)
            connection.settimeout(POLL)
            plain = _end_tls(connection, limit) if isinstance(connection, ssl.SSLSocket) else connection
            plain.shutdown(socket.SHUT_WR)
            _read_to_the_end(plain, limit)
        except TimeoutError as error:
            raise ExportError(
                f"{self._name} has not read what was sent last within {limit.seconds:g} s, or does not close connections "
                "that were closed to it.",
                hint="Look at the receiver. What was not confirmed is sent again.",
            ) from error
        except OSError as error:
            raise self._failure(error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Drop the connection."""
        connection, self._socket = self._socket, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def _connect(self) -> _Socket:
        context = None if self._tls is None else self._tls.context()
        try:
            connection = socket.create_connection((self._host, self._port), _CONNECT_SECONDS)
        except UnicodeError as error:
            raise OSError(0, "its name is not one that a host can have") from error
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, seconds in _KEEPALIVE:
                connection.setsockopt(socket.IPPROTO_TCP, option, seconds)
            if context is None:
                return connection
            return context.wrap_socket(connection, server_hostname=self._host)
        except BaseException:
            connection.close()
            raise

    def _send(self, connection: _Socket, data: bytes, stop: Stop) -> None:
        connection.settimeout(POLL)
        rest = memoryview(data)
        moved = self._monotonic()
        while rest:
            stop.check()
            try:
                rest = rest[connection.send(rest) :]
            except TimeoutError:
                if self._monotonic() - moved > self._patience:
                    raise TimeoutError(f"it has taken nothing for {self._patience:g} s") from None
            else:
                moved = self._monotonic()

    def _failure(self, error: OSError) -> ExportError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return ExportError(
                f"{self._name} is not who it should be: {error.verify_message.rstrip('.')}.",
                hint="Give the root of its certificate with --ca-file, and the name that stands in its certificate with --to.",
            )
        reason = error.strerror or str(error) or type(error).__name__
        return ExportError(
            f"{self._name} does not take entries: {reason.rstrip('.')}.",
            hint="Look at the receiver, its port and what is in between; the export goes on where it was.",
        )


class _Limit:
    """Until when something may take, which is sooner when the export is to end."""

    def __init__(self, stop: Stop, seconds: float, monotonic: Callable[[], float]) -> None:
        self._stop = stop
        self._monotonic = monotonic
        self._begun = monotonic()
        self.seconds = seconds
        self._hurried = False

    def check(self) -> None:
        """Raise TimeoutError when that has passed."""
        now = self._monotonic()
        if self._stop.asked and not self._hurried:
            self._hurried = True
            self.seconds = min(self.seconds, now - self._begun + _LAST_PATIENCE)
        if now - self._begun > self.seconds:
            raise TimeoutError


def _drain(connection: _Socket, limit: _Limit) -> None:
    """Wait until the receiver's kernel has acknowledged everything.

    It does so only while its program has the connection: what arrives for one that was closed is answered with a reset.
    """
    pause = 0.001
    while _unacknowledged(connection):
        limit.check()
        # What a reset leaves in the queue stays there.
        if broken := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(broken, os.strerror(broken))
        time.sleep(pause)
        pause = min(2 * pause, POLL)


def _require_open(connection: _Socket) -> None:
    """Raise OSError when the receiver has ended its stream already, which then cannot answer the end of ours."""
    connection.settimeout(0)
    try:
        if isinstance(connection, ssl.SSLSocket):
            # Looks at what TLS itself has to say, such as tickets.
            ended = not connection.recv(_CHUNK)
        else:
            ended = not connection.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, ssl.SSLWantReadError):
        return
    if ended:
        raise OSError(0, "it has closed the connection before the end of what was sent")


def _end_tls(connection: ssl.SSLSocket, limit: _Limit) -> socket.socket:
    """Send close_notify, and wait for that of the receiver; the connection below."""
    while True:
        try:
            return connection.unwrap()
        except TimeoutError:
            limit.check()


def _read_to_the_end(connection: socket.socket, limit: _Limit) -> None:
    connection.settimeout(POLL)
    answered = 0
    while answered <= _MAX_ANSWER:
        try:
            received = len(connection.recv(_CHUNK))
        except TimeoutError:
            limit.check()
            continue
        if not received:
            return
        answered += received
    raise OSError(0, "it sends data, as no receiver of a log does")


def _unacknowledged(connection: _Socket) -> int:
    """How many octets the other side's kernel has not acknowledged (Linux: SIOCOUTQ, which is TIOCOUTQ, see tcp(7))."""
    count: int = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    return count
