"""http-01 (RFC 8555 section 8.3; for addresses RFC 8738)."""

import hashlib
import hmac
import re
import ssl
from dataclasses import dataclass
from ipaddress import IPv6Address
from urllib.parse import SplitResult, urljoin, urlsplit

from privyseal_acme.validation.attempt import Attempt
from privyseal_acme.validation.challenge import ChallengeTask
from privyseal_acme.validation.exchange import Exchange
from privyseal_acme.validation.outcome import ValidationFailedError, printable

_USER_AGENT = "privyseal (ACME http-01 validation)"
_BODY_SLACK = 512
_MAX_URL = 2048
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_WHITESPACE = b" \t\r\n\v\f"
# A host name as DNS has them (RFC 1123 section 2.1), with the underscore that internal names use.
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?")


@dataclass(frozen=True, slots=True)
class _Hop:
    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port as the Host field has them (RFC 9110 section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


class Http01:
    """Fetches the key authorization from the well-known path of the identifier."""

    def __init__(self, http_port: int, tls_port: int, redirects: int) -> None:
        self._ports = {"http": http_port, "https": tls_port}
        self._allowed_ports = {80, 443, http_port, tls_port}
        self._redirects = redirects
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False
        # The certificate is what the target is trying to get: a redirect to https proves no less without it.
        self._tls.verify_mode = ssl.CERT_NONE

    async def check(self, task: ChallengeTask, attempt: Attempt) -> None:
        """Return when the identifier serves the key authorization.

        Raises:
            ValidationFailedError: it does not.
            TimeoutError: the attempt's time is over.
        """
        expected = task.key_authorization.encode("ascii")
        hop = _Hop("http", task.value, self._ports["http"], f"/.well-known/acme-challenge/{task.token}")
        visited = {hop}
        while True:
            answer = await self._get(hop, attempt, len(expected) + _BODY_SLACK)
            if answer.status not in _REDIRECTS:
                return _compare(answer, expected, hop, attempt)
            hop = self._follow(hop, answer)
            if hop in visited:
                raise ValidationFailedError("connection", f"The redirects go in a circle, through {hop.authority}.")
            if len(visited) > self._redirects:
                raise ValidationFailedError("connection", f"More than {self._redirects} redirects.")
            visited.add(hop)

    async def _get(self, hop: _Hop, attempt: Attempt, max_body: int) -> Exchange:
        targets = await attempt.targets(hop.host)
        request = (
            f"GET {hop.path} HTTP/1.1\r\nHost: {hop.authority}\r\nUser-Agent: {_USER_AGENT}\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n"
        ).encode("ascii")
        # The ssl module sends no SNI for an address, as RFC 6066 section 3 has it.
        tls, name = (self._tls, hop.host) if hop.scheme == "https" else (None, None)
        transport, exchange = await attempt.connect(lambda: Exchange(request, max_body), targets, hop.port, tls, name)
        try:
            attempt.evidence.waiting = ("connection", f"The answer of {hop.authority}")
            await exchange.answered()
        finally:
            transport.abort()
        attempt.evidence.add(
            "requests", {"host": printable(hop.authority), "scheme": hop.scheme, "status": exchange.status}
        )
        return exchange

    def _follow(self, hop: _Hop, answer: Exchange) -> _Hop:
        """The hop that the answer's Location names (RFC 9110 section 10.2.2), if it is one to be followed."""
        try:
            parts = _location(hop, answer.location)
            host, port = _host(parts), parts.port
        except ValueError as error:
            raise ValidationFailedError(
                "connection", f"{hop.authority} redirects with a missing or malformed Location."
            ) from error
        if parts.scheme not in self._ports:
            raise ValidationFailedError(
                "connection", f"{hop.authority} redirects to something else than http or https.", permanent=True
            )
        if port is None:
            port = self._ports[parts.scheme]
        if port not in self._allowed_ports:
            raise ValidationFailedError(
                "connection", f"{hop.authority} redirects to port {port}, which is not allowed.", permanent=True
            )
        path = parts.path or "/"
        return _Hop(parts.scheme, host, port, f"{path}?{parts.query}" if parts.query else path)


def _location(hop: _Hop, location: bytes) -> SplitResult:
    # What is not visible ASCII has no place in a URI, and would end up in the next request's head.
    if not 0 < len(location) <= _MAX_URL or not all(0x21 <= byte <= 0x7E for byte in location):
        raise ValueError("not a URI reference")
    return urlsplit(urljoin(hop.url, location.decode("ascii")))


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if parts.username is not None or parts.password is not None:
        raise ValueError("user information in a redirect")
    # A scope, as in `fe80::1%eth0`, would pick an interface of this machine.
    if ":" in host and "%" not in host:
        return str(IPv6Address(host))
    if not _NAME.fullmatch(host):
        raise ValueError("not a host name")
    return host.removesuffix(".")


def _compare(answer: Exchange, expected: bytes, hop: _Hop, attempt: Attempt) -> None:
    if answer.status != 200:
        raise ValidationFailedError(
            "incorrectResponse", f"{hop.authority} answered with status {answer.status}, not 200."
        )
    attempt.evidence.note("digest", hashlib.sha256(answer.body).hexdigest())
    # Section 8.3: the server SHOULD ignore whitespace at the end of the body.
    if answer.oversized or not hmac.compare_digest(answer.body.rstrip(_WHITESPACE), expected):
        size = f"more than {len(answer.body)}" if answer.oversized else str(len(answer.body))
        raise ValidationFailedError(
            "incorrectResponse",
            f"{hop.authority} answered with {size} bytes that are not the key authorization of this challenge.",
        )
