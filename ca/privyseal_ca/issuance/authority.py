"""The issuance cycle (DESIGN section 2 step 5), the only writer of certificates.

1. Profile, names and key become a template: everything of the certificate but its signature.
2. The template is linted; what was linted can be signed once, and nothing else can.
3. An intent with the hash of the TBSCertificate becomes durable (P2), together with the requester's own change of state.
4. The token signs exactly the linted bytes.
5. The finished certificate is checked by code that did not build it.
6. Certificate, ``issued`` entry and the requester's change of state become durable in one commit (P3).

Whatever ends the cycle between 3 and 6, the process included, leaves an intent behind. :meth:`Authority.close_intents`
puts its serial on the revocation list, so that a signature which may exist is worth nothing (P4).
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import structlog

from privyseal_ca.clock import Clock
from privyseal_ca.errors import (
    LintError,
    ProfileRefusedError,
    SignatureUncertainError,
    SignerMisconfiguredError,
    SignerUnavailableError,
    StoreError,
    StoreUnavailableError,
)
from privyseal_ca.issuance.check import check_certificate
from privyseal_ca.issuance.intents import CEREMONY_REQUESTER, abandon_intent
from privyseal_ca.issuance.issuers import Issuer, IssuerSet
from privyseal_ca.issuance.lint import LintedCertificate, Linter
from privyseal_ca.issuance.record import certificate_row, issued_entry, names_text, serial_text
from privyseal_ca.issuance.template import CertificateRequest, build_template, new_serial
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.certificates import (
    CertificateRow,
    IntentRow,
    add_certificate,
    close_intent,
    find_certificate,
    open_intent,
    open_intents,
)
from privyseal_ca.store.engine import Store
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.telemetry.tracing import NO_TRACING, Span, Tracing

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = structlog.get_logger("issuance")


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asked for a certificate, and by which request."""

    actor: str
    correlation: str
    #: What it is for, such as an order's id; goes into the intent entry.
    purpose: str


#: The requester's own change of state that must become durable together with the intent. An exception from it
#: stops the issuance before anything was signed.
Claim = Callable[[Transaction], None]
#: The requester's own change of state that must become durable together with the certificate.
Completion = Callable[[Transaction, CertificateRow], None]


class Authority:
    """Issues certificates."""

    def __init__(
        self,
        *,
        store: Store,
        issuers: IssuerSet,
        linter: Linter,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        metrics: Metrics,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._store = store
        self.issuers = issuers
        self._linter = linter
        self._clock = clock
        self._random_bytes = random_bytes
        self._metrics = metrics
        self._tracing = tracing
        self._in_flight: set[str] = set()

    async def issue(
        self,
        request: CertificateRequest,
        requester: Requester,
        *,
        claim: Claim,
        complete: Completion,
        issuer: Issuer | None = None,
    ) -> CertificateRow:
        """Run the issuance cycle for a vetted ``request``; ``issuer`` is for certificates of the authority itself.

        Raises:
            ProfileRefusedError: the request does not fit its profile or no issuer can serve it.
            LintError: the certificate would break, or broke, a rule.
            SignerUnavailableError: nothing was signed; the same request may be made again.
            SignatureUncertainError: as before, after the serial was put on the revocation list.
            StoreError: the database failed. The intent may be left behind for :meth:`close_intents`.
        """
        with self._tracing.span("issuance", requester.correlation) as span:
            span.note("privyseal.profile", request.profile.name)
            try:
                row = await self._issue(request, requester, issuer, claim, complete, span)
            except BaseException as error:
                self._metrics.issuances.labels(request.profile.name, result_of(error)).inc()
                raise
        self._metrics.issuances.labels(request.profile.name, "issued").inc()
        self._metrics.issued.labels(request.profile.name).inc()
        return row

    async def _issue(
        self,
        request: CertificateRequest,
        requester: Requester,
        issuer: Issuer | None,
        claim: Claim,
        complete: Completion,
        span: Span,
    ) -> CertificateRow:
        """The cycle itself."""
        issuer = issuer or self.issuers.choose(request.profile, request.key_type)
        if not issuer.key.available:
            raise SignerUnavailableError("The token with the issuer's key is away.", hint="Try again later.")

        with self._stage("template"):
            template = build_template(
                request, issuer.identity, serial=new_serial(self._random_bytes), now=self._clock.now()
            )
            linted = self._linter.lint(template, issuer.identity)
        serial = serial_text(linted.serial)
        self._in_flight.add(serial)
        span.note("privyseal.serial", serial)
        try:
            begin = partial(self._begin, request, requester, issuer, linted, claim)
            with self._stage("intent"):
                await self._store.write(begin)
            try:
                tbs = linted.tbs
                with self._stage("sign"):
                    signature = await _sign(issuer, tbs)
                with self._stage("check"):
                    der = self._linter.assemble(linted, signature)
                    check_certificate(
                        der, linted_tbs=tbs, issuer=issuer.identity, request=request, serial=linted.serial
                    )
                    entry = issued_entry(der)
            except BaseException as error:
                await self._abandon_after(serial, error)
                raise
            try:
                finish = partial(self._finish, request, requester, issuer, linted, der, entry, complete)
                with self._stage("record"):
                    row = await self._store.write(finish)
            except StoreUnavailableError:
                raise  # it may be stored all the same: close_intents looks
            except Exception as error:
                await self._abandon_after(serial, error)
                raise
        finally:
            self._in_flight.discard(serial)
        return row

    def _begin(
        self,
        request: CertificateRequest,
        requester: Requester,
        issuer: Issuer,
        linted: LintedCertificate,
        claim: Claim,
        transaction: Transaction,
    ) -> None:
        """The unit of work of step 3."""
        claim(transaction)
        serial = serial_text(linted.serial)
        open_intent(
            transaction,
            IntentRow(
                serial=serial,
                issuer_id=issuer.id,
                tbs_sha256=linted.tbs_sha256,
                not_after=linted.template.not_after,
                requester=requester.actor,
                correlation=requester.correlation,
                crl_shard=linted.template.crl_shard,
            ),
        )
        append(
            transaction,
            encode_entry(
                Kind.INTENT,
                time=self._clock.now(),
                actor=requester.actor,
                correlation=requester.correlation,
                payload={
                    # Where its revocation is told: with these two, a restore can rebuild the row without the certificate (P8).
                    "crl_shard": linted.template.crl_shard,
                    "issuer": issuer.id,
                    "names": names_text(request.names),
                    "not_after": linted.template.not_after,
                    "not_before": linted.template.not_before,
                    "ocsp": request.profile.ocsp,
                    "profile": request.profile.name,
                    "profile_sha256": request.profile.digest,
                    "purpose": requester.purpose,
                    "serial": serial,
                    "spki_sha256": request.spki_sha256.hex(),
                    "tbs_sha256": linted.tbs_sha256.hex(),
                },
            ),
        )

    def _finish(
        self,
        request: CertificateRequest,
        requester: Requester,
        issuer: Issuer,
        linted: LintedCertificate,
        der: bytes,
        entry: bytes,
        complete: Completion,
        transaction: Transaction,
    ) -> CertificateRow:
        """The unit of work of step 6."""
        serial = serial_text(linted.serial)
        if not close_intent(transaction, serial):
            raise StoreError(f"The intent for serial {serial} was closed by somebody else.")
        row = certificate_row(
            der,
            serial=serial,
            issuer_id=issuer.id,
            profile=request.profile.name,
            requester=requester.actor,
            names=request.names,
            not_before=linted.template.not_before,
            not_after=linted.template.not_after,
            spki_sha256=request.spki_sha256,
            ledger_index=append(transaction, entry),
            crl_shard=linted.template.crl_shard,
            ocsp=request.profile.ocsp,
        )
        add_certificate(transaction, row)
        complete(transaction, row)
        return row

    async def _abandon_after(self, serial: str, error: BaseException) -> None:
        """Close the intent for ``serial`` after ``error``; when the database is away too, it waits for close_intents."""
        try:
            if await self._store.write(lambda tx: self._abandon(tx, serial, type(error).__name__)):
                self._metrics.abandoned.inc()
        except StoreError as store_error:
            _log.error("intent left open", serial=serial, error=str(store_error))

    def _abandon(self, transaction: Transaction, serial: str, reason: str) -> bool:
        return any(
            self._abandon_row(transaction, row, reason) for row in open_intents(transaction) if row.serial == serial
        )

    def _abandon_row(self, transaction: Transaction, row: IntentRow, reason: str) -> bool:
        return abandon_intent(transaction, row, actor=row.requester, reason=reason, now=self._clock.now())

    async def close_intents(self) -> int:
        """Abandon every intent that no issuance of this process is working on; how many there were.

        Called at start, when nothing is in flight, and now and then, for the database may have been away at the end of one.
        """

        def unit(transaction: Transaction) -> int:
            stale = [
                row
                for row in open_intents(transaction)
                if row.serial not in self._in_flight and row.requester != CEREMONY_REQUESTER
            ]
            return sum(self._abandon_row(transaction, row, "interrupted") for row in stale)

        closed = await self._store.write(unit)
        if closed:
            self._metrics.abandoned.inc(closed)
            _log.warning("unfinished intents closed", count=closed)
        return closed

    async def find(self, serial: str) -> CertificateRow | None:
        """The certificate with ``serial``."""
        return await self._store.read(lambda tx: find_certificate(tx, serial))

    @contextmanager
    def _stage(self, name: str) -> "Iterator[None]":
        begun = perf_counter()
        try:
            with self._tracing.span(name):
                yield
        finally:
            self._metrics.stage_seconds.labels(name).observe(perf_counter() - begun)


def result_of(error: BaseException) -> str:
    """How an issuance that ended with ``error`` is counted."""
    if isinstance(error, (ProfileRefusedError, LintError)):
        return "refused"
    return "uncertain" if isinstance(error, SignatureUncertainError) else "failed"


async def _sign(issuer: Issuer, tbs: bytes) -> bytes:
    """The issuer's signature over ``tbs``. A token that only a person can bring back is away like any other."""
    try:
        return await issuer.key.run(lambda key: issuer.identity.sign(key, tbs))
    except SignerMisconfiguredError as error:
        if issuer.key.available:
            raise
        raise SignerUnavailableError(error.message, hint=error.hint) from error
