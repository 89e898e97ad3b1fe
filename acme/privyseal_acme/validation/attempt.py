"""What one attempt at a challenge uses: its deadline, its lookups, its evidence, and the only way out to a target."""

import asyncio
import errno
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from privyseal_acme.validation.channel import ChannelPool
from privyseal_acme.validation.outcome import Evidence, ValidationFailedError, printable
from privyseal_acme.validation.resolver import Lookup
from privyseal_acme.validation.targets import IPAddress, TargetNetworks, canonical, in_order_of_preference

Protocol = TypeVar("Protocol", bound=asyncio.BaseProtocol)

_REASONS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.ECONNABORTED: "aborted",
    errno.EPIPE: "reset",
    errno.ETIMEDOUT: "timed out",
    errno.EHOSTUNREACH: "host unreachable",
    errno.ENETUNREACH: "network unreachable",
    errno.EADDRNOTAVAIL: "network unreachable",
}
# The machine's own shortage says nothing about the target.
_OWN_FAULTS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Attempt:
    """One attempt. A context manager: leaving it ends its DNS lookups; connections belong to who opened them."""

    __slots__ = ("_loop", "_networks", "deadline", "evidence", "lookup")

    def __init__(self, networks: TargetNetworks, channels: ChannelPool, timeout: float, evidence: Evidence) -> None:
        self._loop = asyncio.get_running_loop()
        self._networks = networks
        self.deadline = self._loop.time() + timeout
        self.evidence = evidence
        self.lookup = Lookup(channels, evidence)

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lookup.close()

    async def targets(self, host: str) -> list[IPAddress]:
        """The addresses of ``host``, a name or an address, that validation may connect to, in the order to try them.

        Raises:
            ValidationFailedError: it has none (``dns``), or none in the allowed networks (``unauthorized``, permanent).
        """
        try:
            found = [canonical(host)]
        except ValueError:
            found = [canonical(text) for text in await self.lookup.addresses(host)]
        permitted = []
        for address in dict.fromkeys(found):
            if self._networks.permits(address):
                permitted.append(address)
            else:
                self.evidence.add("connections", {"address": str(address), "result": "not in the allowed networks"})
        if not permitted:
            refused = ", ".join(str(address) for address in found[:3])
            raise ValidationFailedError(
                "unauthorized",
                f"{printable(host)} is at {refused}, outside the networks that this authority may connect to.",
                permanent=True,
            )
        return in_order_of_preference(permitted)

    async def connect(
        self,
        protocol: Callable[[], Protocol],
        targets: list[IPAddress],
        port: int,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
    ) -> tuple[asyncio.Transport, Protocol]:
        """A connection to the first of ``targets`` that takes one. Each gets its share of the time that is left.

        Raises:
            ValidationFailedError: ``connection``, or ``tls`` when the handshake failed.
            TimeoutError: the attempt's time is over.
        """
        reason = ""
        for index, target in enumerate(targets):
            address = str(target)
            self.evidence.waiting = ("connection", f"Connecting to {address} port {port}")
            others = len(targets) - index - 1
            share = (self.deadline - self._loop.time()) / (others + 1)
            try:
                # The last one needs no deadline of its own beside the attempt's.
                async with asyncio.timeout(share if others else None):
                    transport, made = await self._loop.create_connection(
                        protocol, address, port, ssl=tls, server_hostname=server_name
                    )
            except TimeoutError:
                if not others:
                    raise
                reason = "timed out"
            except ssl.SSLError as error:
                reason = _tls_reason(error)
                self._tried(address, port, f"TLS: {reason}")
                raise ValidationFailedError(
                    "tls", f"The TLS handshake with {address} port {port} failed: {reason}."
                ) from error
            except OSError as error:
                reason = _reason(error)
            else:
                self._tried(address, port, "connected")
                return transport, made
            self._tried(address, port, reason)
        raise ValidationFailedError("connection", f"No connection to {_listed(targets)} port {port}: {reason}.")

    def _tried(self, address: str, port: int, result: str) -> None:
        self.evidence.add("connections", {"address": address, "port": port, "result": result})


def _reason(error: OSError) -> str:
    if error.errno in _OWN_FAULTS:
        raise ValidationFailedError("serverInternal", "This server is short of sockets or memory.") from error
    return _REASONS.get(error.errno or 0, "reset" if isinstance(error, ConnectionError) else "failed")


def _tls_reason(error: ssl.SSLError) -> str:
    return printable((error.reason or "failed").replace("_", " ").lower(), 64)


def _listed(targets: list[IPAddress]) -> str:
    return " or ".join(str(target) for target in targets)
