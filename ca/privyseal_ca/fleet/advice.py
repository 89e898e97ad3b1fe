"""What is told of a workload in its owner's words: what is wrong, what was seen, what to do next. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from privyseal_ca.clock import rfc3339
from privyseal_ca.fleet.failures import clean, cut, parse_failure, seen_in
from privyseal_ca.fleet.remedies import remedy
from privyseal_ca.fleet.states import State
from privyseal_ca.store.fleet import LineageRow

#: How many characters each text has at most.
MOST_WHAT: Final = 400
MOST_SEEN: Final = 1000
MOST_DO: Final = 700

#: What a row says who retired it when nobody did: it was gone for too long.
BY_TIME: Final = "time"

_UNITS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


@dataclass(frozen=True, slots=True)
class Advice:
    """Three short texts of whole sentences in one line each, without control characters."""

    #: The state, and what it means for the workload.
    what: str
    #: What that is based on.
    seen: str
    #: The next step.
    do: str


def advise(row: LineageRow, now: float) -> Advice:
    """What to tell the owner of the workload at ``now``. There is something to say of every state."""
    tell = _TEXTS.get(row.state, _well)
    advice = tell(row, now)
    return Advice(cut(advice.what, MOST_WHAT), cut(advice.seen, MOST_SEEN), cut(advice.do, MOST_DO))


def span(seconds: float) -> str:
    """A length of time in its largest unit, such as ``3 days``."""
    whole = int(abs(seconds))
    for length, unit in _UNITS:
        if whole >= length:
            count = whole // length
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "a moment"


def _at(moment: int, now: float) -> str:
    return (
        f"{rfc3339(moment)} ({span(now - moment)} ago)"
        if moment <= now
        else f"{rfc3339(moment)} (in {span(moment - now)})"
    )


def _well(row: LineageRow, now: float) -> Advice:
    if not row.renews:
        return Advice(
            f"It is not expected to renew. {_certificate(row, now)}",
            _asked(row, now),
            "Nothing: nobody is told when it ends.",
        )
    window = f" It is to be renewed from {_at(row.window_start, now)} on." if row.window_start else ""
    return Advice(f"It is well. {_certificate(row, now)}{window}", _asked(row, now), "Nothing.")


def _due(row: LineageRow, now: float) -> Advice:
    until = f" The renewal counts as missed if it has not come by {_at(row.deadline, now)}." if row.deadline else ""
    return Advice(
        f"It is time to renew. {_certificate(row, now)}{until}",
        f"The window to renew in is from {rfc3339(row.window_start)} to {rfc3339(row.window_end)}. {_asked(row, now)}",
        "Nothing yet: the client renews when it runs next.",
    )


def _overdue(row: LineageRow, now: float) -> Advice:
    return Advice(
        _missed("The renewal is overdue: the client asks when to renew, but does not renew.", row, now),
        f"{_window(row)} {_asked(row, now)} No order came.",
        "See the client's log: most often a hook fails, or it may renew at certain hours only. Renew by hand (with certbot: "
        f"`certbot renew`), and see that its hooks succeed. {_gone(row)}",
    )


def _silent(row: LineageRow, now: float) -> Advice:
    return Advice(
        _missed("The renewal is overdue, and nothing is heard of the client.", row, now),
        f"{_window(row)} {_asked(row, now)} No order came.",
        "See that the machine is up, that the client's timer runs (with certbot: `systemctl list-timers`), and that it reaches "
        f"the directory of this server. Then renew by hand and see what it says. {_gone(row)}",
    )


def _failing(row: LineageRow, now: float) -> Advice:
    failure = parse_failure(row.attempt)
    attempts = f"{row.attempts} attempts have" if row.attempts != 1 else "One attempt has"
    since = f"{attempts} failed since {rfc3339(row.failing_since)}, the last at {_at(row.attempted_at, now)}."
    if row.not_after:
        what = _missed("The client asks for a new certificate, and does not get it.", row, now)
    else:
        what = "The workload has never had a certificate: the client asks for one, and does not get it."
    gone = f" {_gone(row)}" if not row.not_after else ""
    return Advice(f"{what} {since}", seen_in(failure), f"{remedy(failure)}{gone}")


def _revoked(row: LineageRow, now: float) -> Advice:
    when = f" at {_at(row.revoked_at, now)}" if row.revoked_at else ""
    what = f"Its certificate was revoked{when}, and nothing has taken its place: those who check will refuse it."
    if row.attempts:
        failure = parse_failure(row.attempt)
        return Advice(f"{what} Attempts at a new one fail.", seen_in(failure), f"{remedy(failure)} {_gone(row)}")
    return Advice(
        what,
        f"Certificate {row.serial} is on the revocation list. {_asked(row, now)}",
        "Have the client make a new key and a new certificate now (with certbot: `certbot renew --force-renewal`); where the key "
        f"was stolen, find out how first. {_gone(row)}",
    )


def _retired(row: LineageRow, now: float) -> Advice:
    when = f" since {_at(row.retired_at, now)}" if row.retired_at else ""
    reason = f" The reason: '{clean(row.retired_reason)}'." if row.retired_reason else ""
    if row.retired_by not in {"", BY_TIME}:
        seen = f"It was taken out of the fleet by {clean(row.retired_by)}.{reason}"
    elif row.not_after:
        seen = f"Nothing took the place of its certificate, which ended at {_at(row.not_after, now)}.{reason}"
        if row.revoked_at:
            seen = f"Its certificate was revoked at {_at(row.revoked_at, now)}, and nothing took its place.{reason}"
    else:
        seen = f"It never had a certificate; the last attempt at one was at {_at(row.attempted_at, now)}.{reason}"
    return Advice(
        f"It is retired{when}: nobody is told of it any more.",
        seen,
        f"Nothing. It comes back with its next certificate, or with `privyseal fleet resume {row.id}`.",
    )


def _certificate(row: LineageRow, now: float) -> str:
    if not row.not_after:
        return "It has no certificate."
    if row.not_after <= now:
        return f"Its certificate ended at {_at(row.not_after, now)}: it has no valid one."
    return f"Its certificate is valid until {_at(row.not_after, now)}."


def _missed(what: str, row: LineageRow, now: float) -> str:
    missed = f" It counts as missed since {rfc3339(row.missed_at)}." if row.missed_at else ""
    return f"{what} {_certificate(row, now)}{missed}"


def _window(row: LineageRow) -> str:
    if not row.window_start:
        return f"The renewal should have come by {rfc3339(row.deadline)}."
    return (
        f"The window to renew in was from {rfc3339(row.window_start)} to {rfc3339(row.window_end)}, the deadline "
        f"{rfc3339(row.deadline)}."
    )


def _asked(row: LineageRow, now: float) -> str:
    """When renewal information (RFC 9773) was last asked for."""
    if not row.polled_at:
        return "The client has never asked when to renew this certificate (ARI)."
    return f"The client last asked when to renew at {_at(row.polled_at, now)}."


def _gone(row: LineageRow) -> str:
    return f'If the workload is gone: `privyseal fleet retire {row.id} --reason "gone"`.'


_TEXTS: Final[Mapping[str, Callable[[LineageRow, float], Advice]]] = {
    State.CURRENT: _well,
    State.DUE: _due,
    State.OVERDUE: _overdue,
    State.SILENT: _silent,
    State.FAILING: _failing,
    State.REVOKED: _revoked,
    State.RETIRED: _retired,
}
