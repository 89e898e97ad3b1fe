"""Responses about certificates that exist: signed, then kept, unless what they say has changed meanwhile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from privyseal_ca.clock import Clock
from privyseal_ca.revocation.ocsp_response import CertStatus, Revoked, Statement
from privyseal_ca.revocation.published import OcspAnswer
from privyseal_ca.revocation.responders import Responder
from privyseal_ca.sections import StatusSettings
from privyseal_ca.store.certificates import RevocationRow
from privyseal_ca.store.engine import Store
from privyseal_ca.store.ocsp import ResponseRow, keep_response
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

#: For how many seconds an answer holds that may soon be another.
PASSING: Final = 60


@dataclass(frozen=True, slots=True)
class Wanted:
    """A response that is to be made: for a serial and the hash of its CertID, good unless there is a ``revocation``."""

    serial: str
    hash_name: str
    revocation: RevocationRow | None


def _nothing(_: Transaction) -> None:
    pass


class ResponseMaker:
    """Signs responses about issued or revoked certificates and keeps them in the database."""

    def __init__(self, *, store: Store, clock: Clock, settings: StatusSettings, metrics: Metrics) -> None:
        self._store = store
        self._clock = clock
        self._lifetime = settings.ocsp_lifetime
        self._metrics = metrics

    async def sign(self, responder: Responder, wanted: Sequence[Wanted], *, reason: str) -> list[ResponseRow]:
        """A response for each of ``wanted``, in one job of the token; ``reason`` is what the metric says.

        Raises the errors of :meth:`privyseal_ca.hsm.signer.SigningKey.run`.
        """
        now = int(self._clock.now())
        until = min(now + self._lifetime, responder.not_after)
        statements = [
            Statement(responder.query(each.hash_name, int(each.serial, 16)), status_of(each.revocation), now, until)
            for each in wanted
        ]
        signed = await responder.sign(statements)
        self._metrics.ocsp_signed.labels(reason).inc(len(signed))
        return [
            ResponseRow(
                serial=each.serial,
                hash=each.hash_name,
                issuer_id=responder.issuer.id,
                revoked=int(each.revocation is not None),
                this_update=now,
                next_update=until,
                refresh_at=now + (until - now) // 2,
                der=der,
            )
            for each, der in zip(wanted, signed, strict=True)
        ]

    async def make(
        self,
        responder: Responder,
        wanted: Sequence[Wanted],
        *,
        reason: str,
        together: Callable[[Transaction], None] = _nothing,
    ) -> None:
        """Sign and keep. What was revoked meanwhile is signed again, as revoked. ``together`` is as in :meth:`keep`.

        Raises:
            SignerError: nothing, or not all, was signed.
            StoreError: what was signed could not be kept.
        """
        left: Sequence[Wanted] = wanted
        while True:
            rows = await self.sign(responder, left, reason=reason) if left else []
            left = await self.keep(rows, together)
            if not left:
                return

    async def keep(
        self, rows: Sequence[ResponseRow], together: Callable[[Transaction], None] = _nothing
    ) -> list[Wanted]:
        """Keep ``rows``, but for those that say good of what is revoked by now: these are what is still wanted.

        ``together`` is a change that becomes durable with the last of the responses, when nothing is left.

        Raises:
            StoreError: the database failed.
        """

        def unit(transaction: Transaction) -> list[Wanted]:
            left = [
                Wanted(row.serial, row.hash, revocation)
                for row in rows
                if (revocation := keep_response(transaction, row)) is not None
            ]
            if not left:
                together(transaction)
            return left

        return await self._store.write(unit)


def status_of(revocation: RevocationRow | None) -> CertStatus:
    """What a response says of a certificate that exists, or whose serial is revoked."""
    return "good" if revocation is None else Revoked(revocation.revoked_at, revocation.reason)


def answer_of(row: ResponseRow, now: float) -> OcspAnswer:
    """The answer that a kept response is at ``now``."""
    return OcspAnswer(
        der=row.der,
        this_update=row.this_update,
        next_update=row.next_update,
        # Past its half it is about to be replaced.
        fresh_until=row.refresh_at if now < row.refresh_at else min(int(now) + PASSING, row.next_update),
        serial=row.serial,
        keep=True,
    )
