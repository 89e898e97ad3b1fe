"""The states of workloads, judged when they may have changed: by time, or because something was heard of them.

Every workload says when it is to be looked at next; what nothing happens to is left alone. So the work grows with what
happens and not with the size of the fleet.
"""

from functools import partial
from hashlib import sha256
from time import perf_counter
from typing import Any, Final

from privyseal_acme.flow.context import Context
from privyseal_acme.flow.fleet_owners import Owners
from privyseal_acme.flow.renewal import RenewalFlow, Suggestion, is_critical
from privyseal_ca.fleet.states import Facts, Judgement, deadline_of, judge
from privyseal_ca.renewal.due import SETTLED, DueCounts, due_share
from privyseal_ca.renewal.windows import COUNTED_EVERY, Reason
from privyseal_ca.store.certificates import RevocationRow, find_certificate, find_revocation
from privyseal_ca.store.fleet import (
    RULES_FACT,
    LineageRow,
    forget_lineage,
    judge_lineage,
    lineages_to_look_at,
    look_at_these,
    page_of_lineages,
)
from privyseal_ca.store.issuers import all_issuers, find_fact, set_fact
from privyseal_ca.store.statement import Transaction

#: Workloads in one unit of work: a few milliseconds.
_BATCH: Final = 25
_PAGE: Final = 200
#: How long one run goes on, in seconds; the next takes up the rest.
_LONGEST: Final = 5.0
#: What has to be renewed at once has this many poll intervals.
_POLLS_AT_ONCE: Final = 2
_AT_ONCE: Final = frozenset({Reason.KEY, Reason.REVOKED, Reason.ISSUER})
#: After this part of its life a certificate that has to be renewed at once, and was not, is too late.
_LATEST: Final = 0.9


class FleetJudge:
    """Sets states, windows and deadlines, and counts the renewals that were missed."""

    def __init__(self, context: Context, owners: Owners, renewal: RenewalFlow) -> None:
        self._context = context
        self._owners = owners
        self._renewal = renewal

    async def judge(self) -> int:
        """Judge what is to be looked at by now; how many workloads that were.

        Raises:
            StoreError: the database did not do it. What was judged before stays.
        """
        begun, judged = perf_counter(), 0
        await self._follow_rules()
        while perf_counter() - begun < _LONGEST:
            counts = await self._renewal.counts()
            seen, missed = await self._context.store.write(partial(self._batch, counts))
            judged += seen
            self._context.metrics.renewals.labels("missed").inc(missed)
            if seen < _BATCH:
                break
        return judged

    async def _follow_rules(self) -> None:
        """Have every workload looked at again when the rules are others than before, or an issuer was retired."""
        store = self._context.store
        before, digest = await store.read(lambda tx: (find_fact(tx, RULES_FACT), self._digest(tx)))
        if before == digest:
            return
        after = ""
        while ids := [row.id for row in await store.read(partial(page_of_lineages, after=after, count=_PAGE))]:
            await store.write(partial(look_at_these, ids=ids))
            after = ids[-1]
        await store.write(lambda tx: set_fact(tx, RULES_FACT, digest))

    def _digest(self, transaction: Transaction) -> str:
        """Another one whenever attributes or windows of workloads that nothing was heard of may be others."""
        settings = self._context.settings
        retired = sorted(issuer.id for issuer in all_issuers(transaction) if issuer.state == "retired")
        parts = [settings.fleet.model_dump_json(), settings.renewal.model_dump_json(), *retired]
        return sha256("\n".join(parts).encode()).hexdigest()

    def _batch(self, counts: DueCounts, transaction: Transaction) -> tuple[int, int]:
        now = int(self._context.clock.now())
        rows = lineages_to_look_at(transaction, now, count=_BATCH)
        return len(rows), sum(self._look(transaction, row, counts, now) for row in rows)

    def _look(self, transaction: Transaction, row: LineageRow, counts: DueCounts, now: int) -> bool:
        """Judge one workload; whether its renewal is missed since this moment."""
        settings = self._context.settings.fleet
        # Attempts of somebody who never had a certificate say nothing once they have given up.
        kept = settings.forget_after if row.serial else 0
        if row.retired_at and now >= row.retired_at + kept:
            forget_lineage(transaction, row.id)
            return False
        attribution = self._owners.of(transaction, row.requester, row.names, row.profile)
        owned: dict[str, Any] = self._owners.columns(attribution)
        row = row._replace(**owned)
        certificate = find_certificate(transaction, row.serial) if row.serial else None
        window: dict[str, Any] = {}
        revocation = None
        if certificate is not None:
            revocation = find_revocation(transaction, row.issuer_id, row.serial)
            found = self._renewal.suggestion(transaction, certificate, counts, critical=is_critical(row))
            window = {
                "window_start": found.window.start,
                "window_end": found.window.end,
                "deadline": self._deadline(row, found, now),
            }
            row = row._replace(**window)
        judgement = judge(_facts(row, revocation), now, retire_after=settings.retire_after)
        over = judgement.over and not row.retired_at
        retired_at = now if over else row.retired_at
        changed = judge_lineage(
            transaction,
            row,
            **owned,
            **window,
            state=judgement.state.value,
            state_since=row.state_since if row.state == judgement.state else now,
            missed_at=judgement.missed_at,
            revoked_at=revocation.revoked_at if revocation else 0,
            retired_at=retired_at,
            retired_by="time" if over else row.retired_by,
            next_look=retired_at + kept if retired_at else _next_look(row, judgement, now),
        )
        return changed and bool(judgement.missed_at) and not row.missed_at

    def _deadline(self, row: LineageRow, found: Suggestion, now: int) -> int:
        delay = self._context.settings.fleet.usual_delay
        polls, window = row.polled_at > 0, found.window
        if window.reason in _AT_ONCE and (polls or window.reason != Reason.ISSUER):
            if (row.window_start, row.window_end) == (window.start, window.end):
                return row.deadline
            # Counted from when it is known, for nobody was told before.
            latest = int(row.not_before + (row.not_after - row.not_before) * _LATEST)
            return max(now, min(now + _POLLS_AT_ONCE * found.retry_after, latest))
        end = max(window.end, row.not_before)
        if polls and row.polled_at < _settled_at(row):
            # Some ask once, choose a moment and never ask again: it may lie anywhere in the range.
            life = row.not_after - row.not_before
            part = due_share(life) + self._context.settings.renewal.spread / 2
            end = max(end, int(row.not_before + life * part))
        return deadline_of(
            row.not_before,
            row.not_after,
            end,
            polls=polls,
            poll=found.retry_after,
            usual=row.usual,
            delay=delay,
        )


def _facts(row: LineageRow, revocation: RevocationRow | None) -> Facts:
    return Facts(
        not_before=row.not_before,
        not_after=row.not_after,
        window_start=row.window_start,
        window_end=row.window_end,
        deadline=row.deadline,
        polled_at=row.polled_at,
        attempts=row.attempts,
        attempted_at=row.attempted_at,
        revoked_at=revocation.revoked_at if revocation else 0,
        revocation_reason=revocation.reason if revocation else None,
        retired_at=row.retired_at,
        renews=bool(row.renews),
        missed_at=row.missed_at,
    )


def _settled_at(row: LineageRow) -> int:
    """When the window of the newest certificate is settled."""
    return int(row.not_before + SETTLED * (row.not_after - row.not_before) + COUNTED_EVERY + 1)


def _next_look(row: LineageRow, judgement: Judgement, now: int) -> int:
    """When the state may change, or when the window is settled, if that comes first."""
    settled = _settled_at(row)
    return min(judgement.next_look, settled) if row.serial and now < settled else max(judgement.next_look, now + 1)
