"""The states of workloads, judged when they may have changed: by time, or because something was heard of them.

Every workload says when it is to be looked at next; what nothing happens to is left alone. So the work grows with what
happens and not with the size of the fleet.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from time import perf_counter
from typing import Any, Final

import structlog

from privyseal_acme.flow.context import Context
from privyseal_acme.flow.fleet_follow import LONGEST_UNIT, UNREADABLE
from privyseal_acme.flow.fleet_owners import Owners
from privyseal_acme.flow.renewal import RenewalFlow, Suggestion, is_critical
from privyseal_ca.clock import CLOCK_STEP
from privyseal_ca.fleet.states import Facts, Judgement, deadline_of, judge
from privyseal_ca.renewal.due import SETTLED, DueCounts, due_share
from privyseal_ca.renewal.windows import COUNTED_EVERY, Reason
from privyseal_ca.store.certificates import RevocationRow, find_certificate, find_revocation
from privyseal_ca.store.fleet import (
    JUDGED_FACT,
    RULES_FACT,
    LineageRow,
    change_lineage,
    forget_lineage,
    judge_lineage,
    lineages_to_look_at,
    look_at_these,
    page_of_lineages,
)
from privyseal_ca.store.issuers import all_issuers, find_fact, set_fact
from privyseal_ca.store.statement import Transaction

_log = structlog.get_logger("fleet")

#: Workloads in one unit of work: a few milliseconds.
_BATCH: Final = 20
_PAGE: Final = 200
#: How long one run goes on, in seconds; the next takes up the rest. Half of that time is everybody else's.
_LONGEST: Final = 10.0
_LONGEST_PAUSE: Final = 0.1
#: After how many seconds one is looked at again that could not be understood.
_UNREADABLE_PAUSE: Final = 3600
#: What has to be renewed at once has this many poll intervals.
_POLLS_AT_ONCE: Final = 2
_AT_ONCE: Final = frozenset({Reason.KEY, Reason.REVOKED, Reason.ISSUER})
#: After this part of its life a certificate that has to be renewed at once, and was not, is too late.
_LATEST: Final = 0.9
#: Who retires what is heard of no more.
_TIME: Final = "time"


class FleetJudge:
    """Sets states, windows and deadlines, and counts the renewals that were missed.

    ``behind`` says whether certificates were issued that are not followed yet: as long as they are not, nothing is judged.
    """

    def __init__(self, context: Context, owners: Owners, renewal: RenewalFlow, behind: Callable[[], bool]) -> None:
        self._context = context
        self._owners = owners
        self._renewal = renewal
        self._behind = behind
        #: The latest moment at which anything was judged.
        self._judged = 0

    async def judge(self) -> int:
        """Judge what is to be looked at by now; how many workloads that were.

        Raises:
            StoreError: the database did not do it. What was judged before stays.
        """
        begun, judged = perf_counter(), 0
        if self._behind():
            return 0
        await self._look_again()
        while (start := perf_counter()) - begun < _LONGEST:
            counts = await self._renewal.counts()
            seen, missed, more = await self._context.store.write(partial(self._batch, counts))
            judged += seen
            self._context.metrics.renewals.labels("missed").inc(missed)
            if not more:
                break
            await asyncio.sleep(min(perf_counter() - start, _LONGEST_PAUSE))
        return judged

    async def _look_again(self) -> None:
        """Have every workload looked at again when rules or issuers are others than before, or the clock was set back."""
        store, now = self._context.store, int(self._context.clock.now())
        before, digest, judged = await store.read(
            lambda tx: (find_fact(tx, RULES_FACT), self._digest(tx), find_fact(tx, JUDGED_FACT))
        )
        self._judged = max(self._judged, int(judged or 0))
        back = now < self._judged - CLOCK_STEP
        if before == digest and not back:
            return
        after = ""
        while ids := [row.id for row in await store.read(partial(page_of_lineages, after=after, count=_PAGE))]:
            start = perf_counter()
            await store.write(partial(look_at_these, ids=ids, now=now))
            await asyncio.sleep(min(perf_counter() - start, _LONGEST_PAUSE))
            after = ids[-1]

        def done(transaction: Transaction) -> None:
            set_fact(transaction, RULES_FACT, digest)
            if back:
                set_fact(transaction, JUDGED_FACT, str(now))

        await store.write(done)
        if back:
            self._judged = now

    def _digest(self, transaction: Transaction) -> str:
        """Another one whenever attributes or windows of workloads that nothing was heard of may be others."""
        settings = self._context.settings
        retired = sorted(issuer.id for issuer in all_issuers(transaction) if issuer.state == "retired")
        parts = [settings.fleet.model_dump_json(), settings.renewal.model_dump_json(), *retired]
        return sha256("\n".join(parts).encode()).hexdigest()

    def _batch(self, counts: DueCounts, transaction: Transaction) -> tuple[int, int, bool]:
        now = int(self._context.clock.now())
        rows = lineages_to_look_at(transaction, now, count=_BATCH)
        begun, seen, missed = perf_counter(), 0, 0
        for row in rows:
            missed += self._try_to_look(transaction, row, counts, now)
            seen += 1
            if perf_counter() - begun > LONGEST_UNIT:
                break
        if rows and now > self._judged:
            self._judged = now
            set_fact(transaction, JUDGED_FACT, str(now))
        return seen, missed, seen < len(rows) or seen == _BATCH

    def _try_to_look(self, transaction: Transaction, row: LineageRow, counts: DueCounts, now: int) -> bool:
        try:
            return self._look(transaction, row, counts, now)
        except UNREADABLE:
            # All that are to be looked at after it would not be judged either.
            _log.exception("a workload cannot be judged", lineage=row.id)
            change_lineage(transaction, row.id, next_look=now + _UNREADABLE_PAUSE)
            return False

    def _look(self, transaction: Transaction, seen: LineageRow, counts: DueCounts, now: int) -> bool:
        """Judge one workload; whether its renewal is missed since this moment."""
        settings = self._context.settings.fleet
        row = _by_now(seen, now)
        # Attempts of somebody who never had a certificate say nothing once they have given up.
        kept = settings.forget_after if row.serial else 0
        if row.retired_at and now >= row.retired_at + kept:
            forget_lineage(transaction, seen)
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
            seen,
            **owned,
            **window,
            polled_at=row.polled_at,
            attempted_at=row.attempted_at,
            state=judgement.state.value,
            state_since=row.state_since if row.state == judgement.state else now,
            missed_at=judgement.missed_at,
            revoked_at=revocation.revoked_at if revocation else 0,
            retired_at=retired_at,
            retired_by=_TIME if over else row.retired_by,
            next_look=retired_at + kept if retired_at else _next_look(row, judgement, now),
        )
        return changed and bool(judgement.missed_at) and not row.missed_at

    def _deadline(self, row: LineageRow, found: Suggestion, now: int) -> int:
        delay = self._context.settings.fleet.usual_delay
        polls, window = row.polled_at > 0, found.window
        life = row.not_after - row.not_before
        if window.reason in _AT_ONCE and (polls or window.reason != Reason.ISSUER):
            latest = int(row.not_before + life * _LATEST)
            same = (row.window_start, row.window_end) == (window.start, window.end)
            # One that is later than both was set by a clock that was wrong.
            if same and row.deadline <= max(now, latest):
                return row.deadline
            # Counted from when it is known, for nobody was told before.
            return max(now, min(now + _POLLS_AT_ONCE * found.retry_after, latest))
        end = max(window.end, row.not_before)
        if polls and row.polled_at < _settled_at(row):
            # Some ask once, choose a moment and never ask again: it may lie anywhere in the range.
            part = due_share(life) + self._context.settings.renewal.spread / 2
            end = max(end, int(row.not_before + life * part))
        deadline = deadline_of(
            row.not_before,
            row.not_after,
            end,
            polls=polls,
            poll=found.retry_after,
            usual=row.usual,
            delay=delay,
        )
        if deadline >= row.deadline:
            return deadline
        # Who asks for the first time, or is to be earlier than was said before, has the usual delay from now on.
        return min(row.deadline, max(deadline, now + max(found.retry_after, int(life * delay))))


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


def _by_now(row: LineageRow, now: int) -> LineageRow:
    """``row`` without what only a clock can have written that was ahead: that time has retired it, and what was heard later."""
    if row.retired_by == _TIME and row.retired_at > now:
        row = row._replace(retired_at=0, retired_by="")
    return row._replace(polled_at=min(row.polled_at, now), attempted_at=min(row.attempted_at, now))


def _settled_at(row: LineageRow) -> int:
    """When the window of the newest certificate is settled."""
    return int(row.not_before + SETTLED * (row.not_after - row.not_before) + COUNTED_EVERY + 1)


def _next_look(row: LineageRow, judgement: Judgement, now: int) -> int:
    """When the state may change, or when the window is settled, if that comes first."""
    settled = _settled_at(row)
    return min(judgement.next_look, settled) if row.serial and now < settled else max(judgement.next_look, now + 1)
