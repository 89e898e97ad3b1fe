"""Finalize (RFC 8555 section 7.4) and the work behind it: from a ready order to a certificate, whatever is away meanwhile.

The order is the queue: ``processing`` with its CSR in the database. An issuance that cannot go on because the token or the
database is away leaves it there, and :meth:`IssuanceDesk.run` takes it up again, the most urgent first (promise P5). Every
other failure ends the order.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

import orjson
import structlog

from privyseal_acme.flow.context import Context
from privyseal_acme.flow.fleet_notes import subject_of
from privyseal_acme.flow.orders import OrderFlow, OrderView, view_of
from privyseal_acme.protocol.ari import parse_certificate_id
from privyseal_acme.protocol.encoding import decode
from privyseal_acme.protocol.messages import Finalize
from privyseal_acme.protocol.problems import Problem, malformed, problem_for, try_again, unauthorized
from privyseal_acme.protocol.transitions import order_status
from privyseal_acme.store import orders
from privyseal_acme.store.accounts import AccountRow, find_account, is_account_key
from privyseal_acme.store.orders import OrderRow
from privyseal_ca.errors import (
    CsrRefusedError,
    IssuerNotValidError,
    KeyRefusedError,
    PrivySealError,
    SignatureUncertainError,
    SignerMisconfiguredError,
    SignerUnavailableError,
    StoreError,
)
from privyseal_ca.identifiers import Identifier
from privyseal_ca.issuance.authority import Claim, Requester
from privyseal_ca.issuance.issuers import Issuer
from privyseal_ca.issuance.profile import Profile
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.issuance.template import CertificateRequest
from privyseal_ca.policy.csr import VettedCsr, vet_csr
from privyseal_ca.policy.names import NamePolicy
from privyseal_ca.store.certificates import CertificateRow, blocked_key_reason, find_certificate
from privyseal_ca.store.statement import Transaction

_log = structlog.get_logger("finalize")

#: How many orders are looked at in one go, the oldest first, and how many of them are worked on at the same time.
_DRAIN, _DRAIN_AT_ONCE = 4096, 32
_DRAIN_PAUSE = 1.0
_LEAST_PAUSE = 0.02
_FOREVER = 2**62


class OrderTakenError(PrivySealError):
    """Another request has finalized the order first."""


class IssuanceDesk:
    """Issues the certificates of orders.

    ``refused`` says why the ledger is not what was signed, or is empty: until it is again, orders wait (promise P7).
    """

    def __init__(self, context: Context, order_flow: OrderFlow, refused: Callable[[], str] = lambda: "") -> None:
        self._context = context
        self._orders = order_flow
        self._refused = refused
        self._working: dict[str, asyncio.Task[None]] = {}
        #: By the id of a parked order the issuer whose token was away.
        self._parked: dict[str, Issuer] = {}
        self._wake = asyncio.Event()
        context.metrics.queue_depth.labels("orders").set_function(lambda: len(self._working))

    async def finalize(self, account: AccountRow, order_id: str, message: Finalize, correlation: str) -> OrderView:
        """Check the CSR, begin issuance, and wait for it a little."""
        csr = _decode_csr(message.csr)
        view = await self._orders.read(account, order_id)
        now = self._context.clock.now()
        status = order_status(view.row.state, view.row.expires, view.statuses, now)  # type: ignore[arg-type]
        if status in {"processing", "valid"} and view.row.csr == csr:
            # The same request again, after its answer was lost: the same answer.
            return view
        if status != "ready":
            raise Problem("orderNotReady", f"The order is {status}, not ready.")
        try:
            request = await self._vet(view.row, csr, account)
        except Problem as problem:
            if view.row.profile in self._context.profiles:
                self._context.metrics.issuances.labels(view.row.profile, "refused").inc()
            self._context.fleet.failed(subject_of(view.row), problem, now, stage="finalize")
            raise

        def claim(transaction: Transaction) -> None:
            self._claim(transaction, view.row, csr, correlation)

        # Whoever meets another finalize of the order waits for that one: one issuance at a time for one order (P4).
        task = self._working.get(view.row.id)
        if task is None:
            if len(self._working) >= self._context.settings.hsm.queue:
                # Before anything is claimed: the order stays ready, and no serial is spent on a queue that is full (P12).
                raise try_again(
                    "Too many orders wait for the signing token. Finalize the order again later.", denied="order_queue"
                )
            task = self._work(view.row.id, self._issue(view.row, csr, account.actor, correlation, request, claim))
        await asyncio.wait({task}, timeout=self._context.settings.acme.finalize_wait)
        if task.done() and not task.cancelled() and isinstance(error := task.exception(), StoreError | Problem):
            raise error
        view = await self._orders.read(account, order_id)
        if view.row.csr is None and not task.done():
            raise try_again("The database has not taken the request yet. Finalize the order again.", seconds=1)
        if view.row.csr != csr and view.row.state != "invalid":
            raise Problem("orderNotReady", "The order was finalized by another request, or is not ready any more.")
        if view.row.state == "processing" and task.done():
            self._wake.set()
        return view

    async def run(self) -> None:
        """Take up, for ever, whatever orders were left processing (P4 at start, P5 later)."""
        while True:
            pause = _DRAIN_PAUSE
            try:
                if await self._drain():
                    # While orders wait for the token it is asked as often as its breaker lets it be.
                    pause = min(_DRAIN_PAUSE, max(_LEAST_PAUSE, self._context.settings.hsm.retry_after))
            except StoreError as error:
                _log.info("orders wait for the database", error=str(error))
            except Exception:  # noqa: BLE001 (the orders that wait have nobody else)
                _log.exception("orders not taken up")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
            self._wake.clear()

    async def close(self, grace: float) -> None:
        """Let issuances in flight end, for up to ``grace`` seconds; what is left over is taken up at the next start."""
        tasks = list(self._working.values())
        if not tasks:
            return
        await asyncio.wait(tasks, timeout=grace)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self) -> bool:
        """Take up what can be issued now; whether orders are left that wait for the token."""
        context = self._context
        count = await context.store.read(orders.count_processing)
        context.metrics.parked.set(max(0, count - len(self._working)))
        if not count or self._refused():
            return False
        if not self._can_issue():
            await self._look_after_tokens()
        if not self._can_issue():
            return True
        waiting = await context.store.read(_most_urgent)
        self._parked = {order: self._parked[order] for order in waiting if order in self._parked}
        # One whose own issuer's token is still away, while another issuer's is there, is left where it is.
        urgent = [order for order in waiting if order not in self._parked or self._parked[order].key.available]
        if urgent:
            await context.authority.close_intents()
        # The first goes alone: a token that is back and still cannot sign costs one serial, not one for each order.
        taken, now = urgent, 1
        while urgent and self._can_issue():
            batch = {self._work(order, self._resume(order)) for order in urgent[:now] if order not in self._working}
            if batch:
                await asyncio.wait(batch)
            urgent = urgent[now:]
            # What the queue has no room for would spend a serial each; half of the room is left to everybody else.
            room = context.settings.hsm.queue - len(self._working)
            now = max(1, min(_DRAIN_AT_ONCE, room // 2))
        if count > _DRAIN and any(order not in self._parked for order in taken):
            self._wake.set()
        return not self._can_issue()

    async def _look_after_tokens(self) -> None:
        """Reconnect to tokens whose pause is over: work that signs nothing costs no serial when they are still away."""
        for issuer in self._context.authority.issuers:
            if not issuer.key.available:
                with suppress(SignerUnavailableError, SignerMisconfiguredError, SignatureUncertainError):
                    await issuer.key.run(lambda _: None)

    def _can_issue(self) -> bool:
        return not self._refused() and any(issuer.key.available for issuer in self._context.authority.issuers)

    def _work(self, order_id: str, issuance: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run ``issuance`` whether or not anybody waits for it."""

        def forget(task: "asyncio.Task[None]") -> None:
            self._working.pop(order_id, None)
            if not task.cancelled() and isinstance(error := task.exception(), StoreError):
                _log.warning("order still waits", order=order_id, error=str(error))

        task = asyncio.get_running_loop().create_task(issuance)
        self._working[order_id] = task
        task.add_done_callback(forget)
        return task

    async def _resume(self, order_id: str) -> None:
        """Issue for an order that is processing already, under a new serial."""
        row, account = await self._context.store.read(lambda tx: _with_account(tx, order_id))
        if row is None or row.state != "processing" or row.csr is None:
            return
        try:
            if account is None or account.status != "valid":
                # Section 7.3.6: what was pending is cancelled.
                raise unauthorized("The account was deactivated.")
            request = await self._vet(row, row.csr, account)
        except Problem as problem:
            await self._end(row, row.csr, problem)
            return

        def still_waits(transaction: Transaction) -> None:
            current = orders.find_order(transaction, order_id)
            if current is None or current.state != "processing":
                raise OrderTakenError("The order has ended meanwhile.")

        with suppress(OrderTakenError):
            await self._issue(row, row.csr, account.actor, row.correlation, request, still_waits)

    async def _issue(
        self, row: OrderRow, csr: bytes, actor: str, correlation: str, request: CertificateRequest, claim: Claim
    ) -> None:
        """Once the order is processing, every exit ends it or leaves it waiting for what is away."""
        self._parked.pop(row.id, None)
        if self._refused():
            await self._park(row, claim)
            return
        requester = Requester(actor=actor, correlation=correlation, purpose=f"order:{row.id}")

        def complete(transaction: Transaction, certificate: CertificateRow) -> None:
            if not orders.finish(transaction, row.id, certificate.serial):
                raise OrderTakenError("The order is not processing any more.")

        try:
            await self._context.authority.issue(request, requester, claim=claim, complete=complete)
        except (SignerUnavailableError, IssuerNotValidError):
            # Nothing may have been claimed yet when the token was known to be away: park the order.
            self._parked[row.id] = self._context.authority.issuers.choose(request.profile, request.key_type)
            await self._park(row, claim)
        except SignatureUncertainError:
            self._wake.set()
        except StoreError:
            raise
        except (OrderTakenError, Problem):
            raise
        except PrivySealError as error:
            _log.error("issuance failed", order=row.id, error=str(error), correlation=correlation)
            await self._end(row, csr, problem_for(error))
        except Exception:  # noqa: BLE001 (no exit leaves a processing order without an end)
            _log.exception("issuance failed", order=row.id, correlation=correlation)
            await self._end(row, csr, Problem("serverInternal", "The certificate could not be issued."))

    async def _park(self, row: OrderRow, claim: Claim) -> None:
        def unit(transaction: Transaction) -> None:
            current = orders.find_order(transaction, row.id)
            if current is not None and current.state == "open":
                claim(transaction)

        await self._context.store.write(unit)

    async def _end(self, row: OrderRow, csr: bytes, problem: Problem) -> None:
        document = orjson.dumps(problem.document()).decode()
        self._context.fleet.failed(subject_of(row), problem, self._context.clock.now(), stage="issuance")

        def unit(transaction: Transaction) -> None:
            current = orders.find_order(transaction, row.id)
            # An order that another CSR was accepted for is not this one's to end.
            if current is not None and current.csr in {None, csr}:
                orders.fail(transaction, row.id, document)

        await self._context.store.write(unit)

    def _claim(self, transaction: Transaction, row: OrderRow, csr: bytes, correlation: str) -> None:
        """Ready to processing, by compare-and-set, while the authorizations still stand (section 7.1.6)."""
        now = self._context.clock.now()
        view = view_of(transaction, row, now)
        if order_status("open", row.expires, view.statuses, now) != "ready" or not orders.begin_processing(
            transaction, row.id, csr=csr, correlation=correlation
        ):
            raise OrderTakenError("The order is not ready any more.")

    async def _vet(self, row: OrderRow, csr: bytes, account: AccountRow) -> CertificateRequest:
        """The CSR of an order as a vetted request.

        Raises:
            Problem: badCSR, invalidProfile or rejectedIdentifier; the order stays as it is.
            StoreError: the database failed.
        """
        context = self._context
        names = tuple(Identifier(kind, value) for kind, value in orjson.loads(row.identifiers))
        profile = context.profiles.get(row.profile)
        if profile is None:
            raise Problem("invalidProfile", "The profile of the order does not exist any more.")
        try:
            _check_policy(context.policy_of(account), profile, names)
            vetted = vet_csr(csr, names, context.key_policy)
            profile.check_key_type(vetted.key_type)
            await context.store.read(lambda tx: _check_key(tx, vetted))
        except (CsrRefusedError, KeyRefusedError) as error:
            raise Problem("badCSR", str(error)) from error
        except StoreError:
            raise  # says nothing about the CSR
        except PrivySealError as error:
            raise problem_for(error) from error
        return CertificateRequest(
            profile=profile,
            names=names,
            public_key=vetted.public_key,
            spki_der=vetted.spki_der,
            spki_sha256=vetted.spki_sha256,
            key_type=vetted.key_type,
            not_before=row.not_before,
            not_after=row.not_after,
            ordered=row.created,
        )


def _with_account(transaction: Transaction, order_id: str) -> tuple[OrderRow | None, AccountRow | None]:
    row = orders.find_order(transaction, order_id)
    return row, None if row is None else find_account(transaction, row.account_id)


def _check_policy(policy: NamePolicy | None, profile: Profile, names: Iterable[Identifier]) -> None:
    """The policy of newOrder may have been narrowed since then, when the service was started anew (promise P11)."""
    if policy is None:
        raise unauthorized("The policy of this account does not exist any more; ask the operators.")
    if policy.profiles and profile.name not in policy.profiles:
        raise Problem("invalidProfile", "The profile of the order is not for this account any more.")
    for name in names:
        policy.check(name)


def _check_key(transaction: Transaction, vetted: VettedCsr) -> None:
    """Keys of accounts and keys that were compromised are never certified (RFC 8555 section 11.1)."""
    if is_account_key(transaction, vetted.spki_sha256):
        raise KeyRefusedError(
            "The key of the CSR is the key of an account.", hint="Make a key for the certificate alone."
        )
    if (reason := blocked_key_reason(transaction, vetted.spki_sha256)) is not None:
        raise KeyRefusedError(f"The key of the CSR is blocked ({reason}).", hint="Make a new key.")


def _most_urgent(transaction: Transaction) -> list[str]:
    """The ids of the orders to take up next, the most urgent first (P5)."""
    waiting = orders.processing_orders(transaction, count=_DRAIN)
    urgency = {order_id: _urgency(transaction, replaces) for order_id, replaces in waiting}
    return sorted(urgency, key=urgency.__getitem__)


def _urgency(transaction: Transaction, replaces: str | None) -> int:
    """When the certificate that an order replaces ends; orders that replace nothing come last."""
    if replaces is None:
        return _FOREVER
    with suppress(Problem):
        predecessor = find_certificate(transaction, serial_text(parse_certificate_id(replaces)[1]))
        if predecessor is not None:
            return predecessor.not_after
    return _FOREVER


def _decode_csr(text: str) -> bytes:
    try:
        return decode(text)
    except ValueError:
        raise malformed("The csr is not base64url without padding.") from None
