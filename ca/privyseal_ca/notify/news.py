"""What is news of a workload, and which routes it goes by. Pure.

What was told last stands with the workload (``told``): one word for its condition, ``missed:`` or ``failing:`` with the time
that it began at, and ``unowned``. A condition that stays is no news; one that ends is told once, as recovered.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from privyseal_ca.fleet.states import State
from privyseal_ca.fleet_sections import CRITICALITIES
from privyseal_ca.notification_sections import KINDS, RouteSettings
from privyseal_ca.store.notifications import Noted

#: States in which nothing is wrong any more.
_WELL: Final = frozenset({State.CURRENT, State.DUE})
_RANKS: Final = {word: rank for rank, word in enumerate(CRITICALITIES)}
# One plain address: nothing in it ends it, or adds another, inside of a URL or a mail's head.
_ADDRESS: Final = re.compile(r"[A-Za-z0-9._+=-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z0-9-]{2,63}")

#: Whether anybody is to be told news of a kind of a workload.
Wanted = Callable[[str, Noted], bool]

#: What news are ordered by, the most urgent first; at the end the workload's id.
Urgency = tuple[int, int, int, str]


class Change(NamedTuple):
    """What is to be told of a workload, and what was told of it then."""

    noted: Noted
    kinds: tuple[str, ...]
    told: str


def look(noted: Noted, now: float, *, patience: int, wanted: Wanted) -> Change | None:
    """What is news of a workload; None when nothing is and nothing has to be remembered.

    ``patience``: how many seconds a workload fails before anybody is told. What nobody wants to be told stays news.
    """
    before = noted.told.split()
    old = next((word for word in before if word != "unowned"), "")
    kinds, condition = [], old
    new = _condition(noted, now, patience)
    kind = new.partition(":")[0]
    if noted.retired_at:
        condition = ""
    elif new and new != old and wanted(kind, noted):
        condition = new
        kinds.append(kind)
    elif old and not new and noted.state in _WELL:
        condition = ""
        kinds.append("recovered")
    unowned = "unowned" in before
    if noted.owner or noted.retired_at:
        unowned = False
    elif not unowned and noted.serial and wanted("unowned", noted):
        unowned = True
        kinds.append("unowned")
    told = " ".join(word for word in (condition, "unowned" if unowned else "") if word)
    return Change(noted, tuple(kinds), told) if kinds or told != noted.told else None


def condition_of(noted: Noted, now: float, *, patience: int) -> tuple[str, int]:
    """What is wrong with a workload now, ``missed``, ``failing`` or nothing, and since when."""
    kind, _, since = _condition(noted, now, patience).partition(":")
    return kind, int(since or 0)


def _condition(noted: Noted, now: float, patience: int) -> str:
    if noted.retired_at:
        return ""
    if noted.missed_at:
        return f"missed:{noted.missed_at}"
    if noted.state == State.FAILING and 0 < noted.failing_since <= now - patience:
        return f"failing:{noted.failing_since}"
    return ""


def takes(route: RouteSettings, kind: str) -> bool:
    """Whether a route is for news of a kind at all."""
    if route.kinds:
        return kind in route.kinds
    return kind != "system" or not (route.owners or route.teams or route.environments or route.to_owner)


def fits(route: RouteSettings, noted: Noted) -> bool:
    """Whether a workload fulfils the conditions of a route."""
    for wanted, value in (
        (route.owners, noted.owner),
        (route.teams, noted.team),
        (route.environments, noted.environment),
        (route.criticality, noted.criticality),
    ):
        if wanted and value not in wanted:
            return False
    return not route.to_owner or bool(address_of(noted.owner))


def address_of(owner: str) -> str:
    """The mail address that an owner is; empty when it is none."""
    return owner if len(owner) <= 254 and _ADDRESS.fullmatch(owner) else ""


def recipient_of(route: RouteSettings, noted: Noted) -> str:
    """Who gets what a route has of a workload: the owner's address, or empty for whoever the route's URLs say."""
    return address_of(noted.owner) if route.to_owner else ""


def routes_for(routes: Sequence[RouteSettings], kind: str, noted: Noted) -> list[RouteSettings]:
    """The routes that news of a kind of a workload goes by."""
    return [route for route in routes if takes(route, kind) and fits(route, noted)]


def urgency(kind: str, noted: Noted) -> Urgency:
    """What comes first in a message: the most critical workloads, then the worst that happened, then what lasts longest."""
    rank = _RANKS.get(noted.criticality, len(_RANKS))
    return rank, KINDS.index(kind), noted.missed_at or noted.failing_since, noted.id
