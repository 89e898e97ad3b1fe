"""What clients know: every answer that they were given is a promise that the service made them.

A :class:`Record` belongs to one trial. It is written by the threads of clients and watchers, and read at the end by the checks
in :mod:`chaos.checks`, which compare it with what is in the database and what is served.
"""

import threading
from dataclasses import dataclass, field

from cryptography import x509


@dataclass
class Received:
    """A certificate that a client received: it was acknowledged."""

    #: The last part of the order's URL; empty for a program that does not say.
    order: str
    der: bytes
    #: The fault round in which it came.
    turn: int
    issuer: x509.Certificate
    #: Whether the client was told that it is revoked.
    revoked: bool = False

    @property
    def certificate(self) -> x509.Certificate:
        """It, parsed."""
        return x509.load_der_x509_certificate(self.der)

    @property
    def serial(self) -> str:
        """Its serial as 32 hex digits."""
        return f"{self.certificate.serial_number:032x}"

    @property
    def lifetime(self) -> float:
        """Seconds from notBefore to notAfter."""
        certificate = self.certificate
        return (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds()


@dataclass
class Record:
    """Everything that was seen from outside during a trial."""

    #: The fault round that is under way.
    turn: int = 0
    received: list[Received] = field(default_factory=list)
    #: Orders whose client has two different certificates.
    twice: list[str] = field(default_factory=list)
    #: What must never happen and is none of lost, duplicated, unrecorded.
    breaches: list[str] = field(default_factory=list)
    #: How often clients asked again, by what they had seen.
    retries: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        #: Set when a trial cannot go on: nobody waits for anything any more.
        self.over = threading.Event()
        self._changed = threading.Condition()
        self._begun: dict[str, int] = {}

    def receive(self, order: str, der: bytes, issuer: x509.Certificate) -> Received:
        """A client has a certificate."""
        received = Received(order, der, self.turn, issuer)
        with self._changed:
            if order and any(each.order == order and each.der != der for each in self.received):
                self.twice.append(order)
            self.received.append(received)
            self._changed.notify_all()
        return received

    def breach(self, what: str) -> None:
        """Something happened that must not."""
        with self._changed:
            if what not in self.breaches:
                self.breaches.append(what)
            self._changed.notify_all()

    def retried(self, why: str) -> None:
        """A client asks again."""
        with self._changed:
            self.retries[why] = self.retries.get(why, 0) + 1

    def begin(self, step: str) -> None:
        """A client is about to send a request of this kind; see :meth:`await_begin`."""
        with self._changed:
            self._begun[step] = self._begun.get(step, 0) + 1
            self._changed.notify_all()

    def await_begin(self, step: str, seconds: float) -> bool:
        """Wait until some client begins such a request, for at most so long."""
        with self._changed:
            before = self._begun.get(step, 0)
            return self._changed.wait_for(lambda: self._begun.get(step, 0) > before, seconds)

    def await_received(self, more_than: int, seconds: float) -> bool:
        """Wait until clients have more certificates than that, for at most so long."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.received) > more_than, seconds)
