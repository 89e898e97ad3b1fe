"""The state of a workload: whether it renews, and since when it does not. A pure function of what is known and of the time.

What is alerted is a renewal that was missed: the deadline has passed and nothing has taken the certificate's place. How many
days are left says nothing, for a healthy workload renews in its window however long that is.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

#: CRLReason of a workload that is gone for good (RFC 5280 section 5.3.1).
CESSATION: Final = 5
#: After this part of its life a certificate that is still there was not renewed in time, however late its client usually is.
_LATEST: Final = 0.9


class State(StrEnum):
    """From what is well to what is over."""

    #: Its window has not begun.
    CURRENT = "current"
    #: Its window has begun.
    DUE = "due"
    #: The deadline has passed, and its client has asked since the window began: it knows, and does not renew.
    OVERDUE = "overdue"
    #: The deadline has passed, and its client has not asked since the window began.
    SILENT = "silent"
    #: Its last attempt at a certificate failed.
    FAILING = "failing"
    #: Its certificate is revoked, and there is no other.
    REVOKED = "revoked"
    #: It is not expected to renew any more.
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the state depends on. Times are seconds since the epoch, 0 for never or unknown."""

    not_before: int
    not_after: int
    window_start: int
    window_end: int
    deadline: int
    polled_at: int
    attempts: int
    attempted_at: int
    revoked_at: int
    revocation_reason: int | None
    #: When somebody took it out, or something ended it.
    retired_at: int
    renews: bool
    missed_at: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """The state now, since when a renewal is missed (0: none is), and when to look again."""

    state: State
    missed_at: int
    next_look: int
    #: Whether time has retired it.
    over: bool = False


#: In thousandths of a life: what goes by a clock of its own renews before this, as far as is known (two thirds, and a twelfth).
_USUAL: Final = 750
#: When nothing but news can change a state.
NEVER: Final = 2**62


def deadline_of(
    not_before: int, not_after: int, window_end: int, *, polls: bool, poll: int, usual: int, delay: float
) -> int:
    """Until when a renewal is in time.

    Clients that ask renew in their window, or when they run next after it: ``poll`` seconds later, or ``delay``, a part of the
    life, if that is longer, as those that run twice a day need. Others go by a clock of their own, at two thirds of the life
    or where they are told to: they have ``delay`` more than that or than they took the last time (``usual``, in thousandths of
    a life).
    """
    life = not_after - not_before
    latest = (
        window_end + max(poll, int(life * delay))
        if polls
        else int(not_before + life * (max(usual, _USUAL) / 1000 + delay))
    )
    # Always some time before the end: a deadline that comes too late tells nobody in time.
    return max(window_end, min(latest, int(not_before + life * _LATEST)))


def judge(facts: Facts, now: int, *, retire_after: int) -> Judgement:
    """The state at ``now``. ``retire_after``: how many seconds after its certificate's end a workload counts as gone."""
    gone = _gone_at(facts, retire_after)
    if facts.retired_at or now >= gone:
        return Judgement(State.RETIRED, 0, NEVER, over=not facts.retired_at)
    if not facts.not_after:
        # It has never had one: it fails until it succeeds, or until it has given up.
        return Judgement(State.FAILING, 0, gone)
    if not facts.renews:
        return Judgement(State.REVOKED if facts.revoked_at else State.CURRENT, 0, gone)
    late = now >= facts.deadline
    begun = late or now >= facts.window_start
    return Judgement(
        _state(facts, begun=begun, late=late),
        (facts.missed_at or facts.deadline) if late else 0,
        gone if late else facts.deadline if begun else min(facts.window_start, facts.deadline),
    )


def _state(facts: Facts, *, begun: bool, late: bool) -> State:
    if facts.revoked_at:
        return State.REVOKED
    if facts.attempts:
        return State.FAILING
    if late:
        return State.OVERDUE if facts.polled_at >= facts.window_start else State.SILENT
    return State.DUE if begun else State.CURRENT


def _gone_at(facts: Facts, retire_after: int) -> int:
    """When time retires the workload, if nothing is heard of it."""
    if facts.revoked_at and facts.revocation_reason == CESSATION:
        return facts.revoked_at
    if not facts.renews and facts.not_after:
        return facts.not_after
    # Who still tries, and fails, is not gone.
    return max(facts.not_after, facts.attempted_at if facts.attempts else 0) + retire_after
