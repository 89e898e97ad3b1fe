"""Validations in the background: from a response to a challenge to the authorization's end (DESIGN section 2 step 3)."""

import asyncio
from dataclasses import dataclass
from time import perf_counter

import orjson
import structlog

from privyseal_acme.flow.context import Context
from privyseal_acme.flow.fleet_notes import Subject
from privyseal_acme.flow.objects import challenge_token
from privyseal_acme.protocol.problems import Problem, try_again, unauthorized
from privyseal_acme.store import accounts, authorizations
from privyseal_acme.store.accounts import AccountRow
from privyseal_acme.store.authorizations import AuthorizationRow
from privyseal_acme.validation.challenge import ChallengeTask
from privyseal_acme.validation.outcome import Outcome
from privyseal_acme.validation.validator import Validator
from privyseal_ca.errors import StoreError
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.statement import Transaction

_log = structlog.get_logger("validation")

_STORE_RETRY_SECONDS = 1.0
#: One account may have this part of the queue and of what runs: names that never answer hold up their own account only.
_SHARE = 4


@dataclass(slots=True)
class _Share:
    """What one account has of the queue."""

    slots: asyncio.Semaphore
    tasks: int = 0


class ValidationQueue:
    """Runs a bounded number of validations at a time, of all accounts and of each, and records how each ends.

    What is being validated is a state in the database: after a restart :meth:`resume` begins again whatever was not finished.
    """

    def __init__(self, context: Context, validator: Validator) -> None:
        self._context = context
        self._validator = validator
        self._slots = asyncio.Semaphore(context.settings.validation.concurrency)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._shares: dict[str, _Share] = {}
        context.metrics.queue_depth.labels("validation").set_function(lambda: len(self._tasks))

    def check_room(self, account: AccountRow) -> None:
        """Refuse more work while too much waits, of all accounts or of this one (promise P12).

        Raises:
            Problem: try again later.
        """
        limit = self._context.settings.validation.queue
        share = self._shares.get(account.id)
        if len(self._tasks) >= limit or (share is not None and share.tasks >= max(1, limit // _SHARE)):
            raise try_again("Too many validations are waiting at the moment.", seconds=10, denied="validation_queue")

    def add(self, row: AuthorizationRow, account: AccountRow) -> None:
        """Validate the attempted challenge of ``row``, unless that is going on already."""
        if row.id in self._tasks:
            return
        share = self._shares.get(account.id)
        if share is None:
            slots = asyncio.Semaphore(max(1, self._context.settings.validation.concurrency // _SHARE))
            share = self._shares[account.id] = _Share(slots)
        share.tasks += 1
        task = asyncio.get_running_loop().create_task(self._run(row, account, share))
        self._tasks[row.id] = task
        task.add_done_callback(lambda _: self._remove(row, share))

    def _remove(self, row: AuthorizationRow, share: _Share) -> None:
        del self._tasks[row.id]
        share.tasks -= 1
        if not share.tasks:
            del self._shares[row.account_id]

    async def resume(self) -> int:
        """Begin again with what an earlier process left unfinished; how many there were."""

        def unit(transaction: Transaction) -> list[tuple[AuthorizationRow, AccountRow | None]]:
            rows = authorizations.processing_authorizations(transaction)
            return [(row, accounts.find_account(transaction, row.account_id)) for row in rows]

        unfinished = await self._context.store.read(unit)
        for row, account in unfinished:
            if account is not None:
                self.add(row, account)
        return len(unfinished)

    async def close(self) -> None:
        """Stop. What is unfinished stays so in the database."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._validator.close()

    async def _run(self, row: AuthorizationRow, account: AccountRow, share: _Share) -> None:
        async with share.slots, self._slots:
            begun = perf_counter()
            with self._context.tracing.span("validation", row.correlation) as span:
                span.note("privyseal.challenge", row.attempted or "")
                outcome = await self._validator.check(self._task(row, account))
                span.note("privyseal.valid", outcome.valid)
            self._context.metrics.stage_seconds.labels("validation").observe(perf_counter() - begun)
        result = "valid" if outcome.valid else "invalid"
        self._context.metrics.validations.labels(row.attempted, result).inc()
        if not outcome.valid:
            self._context.limits.failed_validations.count(account.id)
            self._note(row, account, outcome)
        while True:
            try:
                await self._context.store.write(lambda tx: self._record(tx, row, account, outcome))
            except StoreError as error:
                # The outcome is kept until the database is back; the client sees `processing` meanwhile.
                _log.warning("validation waits for the database", authorization=row.id, error=str(error))
                await asyncio.sleep(_STORE_RETRY_SECONDS)
            else:
                break
        _log.info(
            "validated",
            authorization=row.id,
            challenge=row.attempted,
            result=result,
            problem=outcome.problem.type if outcome.problem else None,
            correlation=row.correlation,
        )

    def _note(self, row: AuthorizationRow, account: AccountRow, outcome: Outcome) -> None:
        """Have the workloads of the orders that need this authorization show what was seen."""
        if outcome.problem is not None:
            self._context.fleet.failed(
                Subject(account.actor, "", (), authorization=row.id, begun=row.created),
                Problem(outcome.problem.type, outcome.problem.detail),
                self._context.clock.now(),
                stage="validation",
                seen=outcome.evidence,
                challenge=row.attempted or "",
                identifier=f"{row.identifier_type}:{row.value}",
            )

    def _task(self, row: AuthorizationRow, account: AccountRow) -> ChallengeTask:
        challenge = row.attempted or ""
        token = challenge_token(row.seed, challenge)
        return ChallengeTask(
            type=challenge,
            identifier_type=row.identifier_type,
            value=row.value,
            wildcard=bool(row.wildcard),
            token=token,
            key_authorization=f"{token}.{account.thumbprint}",
            account_url=self._context.urls.account(account.id),
        )

    def _record(self, transaction: Transaction, row: AuthorizationRow, account: AccountRow, outcome: Outcome) -> None:
        """State and ledger entry together (P3). Nothing happens to what was deactivated meanwhile."""
        now = self._context.clock.now()
        problem = None
        if outcome.problem is not None:
            problem = Problem(outcome.problem.type, outcome.problem.detail)
        elif now >= row.expires:
            # What time has ended stays ended (RFC 8555 section 7.1.6).
            problem = unauthorized("The authorization expired before its challenge was validated.")
        finished = authorizations.finish_validation(
            transaction,
            row.id,
            state="valid" if problem is None else "invalid",
            expires=row.expires if problem else int(now) + self._context.settings.acme.authorization_lifetime,
            validated=None if problem else int(now),
            error=orjson.dumps(problem.document()).decode() if problem else None,
        )
        if not finished:
            return
        append(
            transaction,
            encode_entry(
                Kind.AUTHORIZATION_FAILED if problem else Kind.AUTHORIZATION_VALIDATED,
                time=now,
                actor=account.actor,
                correlation=row.correlation,
                payload={
                    "authorization": row.id,
                    "challenge": row.attempted,
                    "evidence": outcome.evidence,
                    "identifier": f"{row.identifier_type}:{row.value}",
                    "problem": problem.type if problem else None,
                    "wildcard": bool(row.wildcard),
                },
            ),
        )
