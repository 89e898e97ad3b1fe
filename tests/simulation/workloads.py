"""The fleet: workloads, how their clients renew, and what becomes of them in the year."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from fakes import issuing
from privyseal_acme.protocol.ari import certificate_id
from privyseal_acme.protocol.encoding import encode
from privyseal_acme.store.accounts import AccountRow
from privyseal_ca.store.certificates import CertificateRow

HOUR: Final = 3600.0
DAY: Final = 86_400.0

Period = tuple[float, float]


class Habit(Enum):
    """How a client renews: how often it asks (ARI), or that it goes by a clock of its own."""

    #: At Retry-After, from a third of the life on: before that no window begins (RFC 9773 section 4.3).
    STEADY = "steady"
    #: Runs twice a day, and asks when Retry-After has passed by then.
    TWICE_A_DAY = "twice a day"
    #: Runs every few days.
    SELDOM = "seldom"
    #: Never asks: renews at two thirds of the life.
    OWN_CLOCK = "own clock"


class Fate(Enum):
    """What becomes of a workload."""

    WELL = "well"
    #: Its client does not run for some days, which is not long enough to miss anything for good.
    PAUSES = "pauses"
    #: Its client does not run until after the certificate's end.
    BREAKS = "breaks"
    #: Its names cannot be validated for some days.
    UNREACHABLE = "unreachable"
    #: Its names cannot be validated until after the certificate's end.
    LOST = "lost"
    #: It is gone, and nobody says so.
    DIES = "dies"
    #: It is gone, and its certificate is revoked for that reason.
    LEAVES = "leaves"
    #: Its key is stolen.
    STOLEN = "stolen"


#: How many of a thousand; the rest are well.
FATES: Final = {
    Fate.PAUSES: 80,
    Fate.BREAKS: 30,
    Fate.UNREACHABLE: 50,
    Fate.LOST: 20,
    Fate.DIES: 25,
    Fate.LEAVES: 15,
    Fate.STOLEN: 15,
}
#: Shares of the fleet. Questions are most of a fleet's work, so few ask as often as they may.
HABITS: Final = {Habit.STEADY: 0.05, Habit.TWICE_A_DAY: 0.1, Habit.SELDOM: 0.45, Habit.OWN_CLOCK: 0.4}


#: Without and with OCSP. An OCSP response is made anew every week for each certificate that has one, the most frequent of all
#: signatures here, so not all have one.
PROFILES: Final = ("crl-only", "workload")
WITH_OCSP: Final = 0.3


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate that a workload has."""

    serial: str
    issuer_id: str
    begin: int
    end: int

    @classmethod
    def of(cls, row: CertificateRow) -> "Held":
        """What the client reads in it."""
        return cls(row.serial, row.issuer_id, row.not_before, row.not_after)

    @property
    def ari_id(self) -> str:
        """Its identifier in ARI."""
        return certificate_id(bytes.fromhex(self.issuer_id), int(self.serial, 16))

    def at(self, part: float) -> float:
        """The moment at which ``part`` of its life is over."""
        return self.begin + part * (self.end - self.begin)


@dataclass
class Workload:
    """A workload and its client."""

    name: str
    account: AccountRow
    profile: str
    habit: Habit
    fate: Fate
    #: When its client runs next.
    wakes: float
    #: Between which moments its client does not run, and its names cannot be validated.
    away: Period = (math.inf, math.inf)
    unreachable: Period = (math.inf, math.inf)
    #: When its certificate is revoked.
    revoked: float = math.inf
    held: Held | None = None
    #: The moment in the window that the client has chosen.
    chosen: float | None = None
    #: When it may ask again.
    asks: float = 0.0
    #: The order that is not finished.
    order: str | None = None
    #: Whether its orders say which certificate they replace, if it is one that asks.
    replaces: bool = True
    csr: str = ""
    #: The serial for which it asked for a successor while the authority was there, and when.
    asked: tuple[str, float] = ("", 0.0)
    renewals: int = 0
    expiries: int = 0
    serials: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.new_key()

    def new_key(self) -> None:
        """Make a key, and the request that it is certified by from now on."""
        self.csr = encode(issuing.csr(f"dns:{self.name}", private_key=ec.generate_private_key(ec.SECP256R1())))

    def runs(self, now: float) -> bool:
        """Whether its client does anything."""
        return not self.away[0] <= now < self.away[1]

    def reachable(self, now: float) -> bool:
        """Whether its names can be validated."""
        return not self.unreachable[0] <= now < self.unreachable[1]


@dataclass(frozen=True)
class FleetPlan:
    """What the fleet is made of. ``lifetime`` is that of its certificates, in seconds."""

    size: int
    lifetime: float
    #: How long it takes until all have their first certificate; a third comes in the first hours.
    arrival: float


def make_fleet(
    plan: FleetPlan, accounts: Sequence[AccountRow], random: Random, begin: float, end: float
) -> list[Workload]:
    """Workloads whose clients first run soon after ``begin``, with what becomes of them until ``end``."""
    habits, weights = list(HABITS), list(HABITS.values())
    fates = [fate for fate, share in FATES.items() for _ in range(math.ceil(plan.size * share / 1000))]
    fates += [Fate.WELL] * (plan.size - len(fates))
    random.shuffle(fates)
    fleet = []
    for number, fate in enumerate(fates):
        rushes = random.random() < 1 / 3
        workload = Workload(
            name=f"w{number}.sim.internal",
            account=accounts[number % len(accounts)],
            profile=PROFILES[random.random() < WITH_OCSP],
            habit=random.choices(habits, weights)[0],
            fate=fate,
            wakes=begin + random.random() * (3 * HOUR if rushes else plan.arrival),
        )
        _befall(workload, plan.lifetime, random, begin + plan.arrival, end)
        fleet.append(workload)
    return fleet


def _befall(workload: Workload, life: float, random: Random, begin: float, end: float) -> None:
    """Set when what becomes of ``workload`` does."""
    moment = begin + random.random() * (end - begin)
    #: Short enough for whoever begins to renew at three quarters of the life at the latest.
    some = random.uniform(0.01, 0.08) * life
    #: Beyond the end of what was renewed just before.
    long = random.uniform(1.02, 1.2) * life
    match workload.fate:
        case Fate.PAUSES:
            workload.away = moment, moment + some
        case Fate.BREAKS:
            workload.away = moment, moment + long
        case Fate.UNREACHABLE:
            workload.unreachable = moment, moment + some
        case Fate.LOST:
            workload.unreachable = moment, moment + long
        case Fate.DIES:
            workload.away = moment, math.inf
        case Fate.LEAVES:
            workload.away = moment, math.inf
            workload.revoked = moment
        case Fate.STOLEN:
            workload.revoked = moment
