"""A year in some seconds: time leaps by hours, each process does what is due, clients do what they do, and all of it is looked at.

After each leap, and before anybody has done anything, what is published must hold: nobody says when the next leap ends.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from fakes.acme_client import JwsKey
from fakes.service import FakeClock
from privyseal_acme.protocol.keys import parse_jwk
from privyseal_acme.protocol.messages import NewAccount
from privyseal_acme.store.accounts import AccountRow
from privyseal_acme.validation.outcome import ValidationProblem
from privyseal_ca.config import Settings
from privyseal_ca.errors import PrivySealError
from privyseal_ca.revocation.revoke import ADMINISTRATOR_REASONS, KEY_COMPROMISE, REASONS, revoke_certificate
from privyseal_ca.store.certificates import find_certificate, find_revocation
from privyseal_ca.store.statement import Transaction
from simulation import diary
from simulation.clients import Clients
from simulation.inspection import BrokenPromiseError, Inspector
from simulation.process import Process, World
from simulation.surroundings import Database, Network, Token
from simulation.troubles import Loss, Lost, Troubles, make_troubles
from simulation.workloads import DAY, HOUR, PROFILES, Fate, FleetPlan, Workload, make_fleet

#: How far time leaps, in hours, rather far than not.
LEAPS: Final = (1.0, 6.0)
_PROCESSES: Final = 2
_ACCOUNTS: Final = 40
#: How many steps lie between two looks that take longer.
_LONG_LOOK: Final = 25
#: Who does not lead has little to do but to see whether somebody does and what was published: a turn in so many is enough,
#: a day at most.
_FOLLOWERS_TURN: Final = 4

PROFILE: Final = """
description = "Workloads of the simulation"
lifetime = {lifetime}
max_lifetime = {lifetime}
key_types = ["ec-p256"]
key_usage = ["digitalSignature"]
extended_key_usage = ["serverAuth", "clientAuth"]
san_types = ["dns"]
ocsp = {ocsp}
"""


def simulated_settings(profiles: Path, lifetime: float) -> dict[str, Mapping[str, Any]]:
    """Sections of settings under which a year is little work.

    Certificates live long, one CRL part and one hash for OCSP are kept, responses and CRLs live as long as they may for the
    outages to matter, clients ask once a day. Everything else is as by default.
    """
    profiles.mkdir(exist_ok=True)
    for name, ocsp in zip(PROFILES, ("false", "true"), strict=True):
        (profiles / f"{name}.toml").write_text(PROFILE.format(lifetime=int(lifetime), ocsp=ocsp), encoding="utf-8")
    return {
        "issuance": {"profiles_dir": str(profiles), "default_profile": PROFILES[1]},
        "renewal": {"poll": 86_400},
        "status": {
            "interval": 60,
            "crl_shards": 1,
            "crl_refresh": 86_400,
            "crl_lifetime": 5 * 86_400,
            "ocsp_hashes": ("sha256",),
            "ocsp_lifetime": 15 * 86_400,
            "responder_lifetime": 90 * 86_400,
            "canary_lifetime": 30 * 86_400,
        },
        "fleet": {"rules": [{"name": "all", "dns": ["internal"], "owner": "simulation"}]},
    }


@dataclass
class Report:
    """What happened."""

    steps: int = 0
    renewals: int = 0
    polls: int = 0
    answers: int = 0
    expired: int = 0
    missed: int = 0
    #: What the product counted, by result.
    counted: Counter[str] = field(default_factory=Counter)
    lost: Counter[Loss] = field(default_factory=Counter)
    #: Runs of jobs whose writes were refused because another process had taken the lead.
    refused: int = 0
    leaders: int = 0
    token_hours: float = 0.0
    database_hours: float = 0.0


class Year:
    """One run. Everything that happens by chance comes from ``seed``."""

    def __init__(
        self, settings: Settings, plan: FleetPlan, *, seed: int, days: float, without: frozenset[str] = frozenset()
    ) -> None:
        self._clock = FakeClock()
        self._begin = self._clock.now()
        self._end = self._begin + days * DAY
        chances = _chances(seed)
        self._leaps, self._fates, self._chance = next(chances), next(chances), next(chances)
        self._plan = plan
        self.troubles: Troubles = make_troubles(next(chances), self._begin + 2 * DAY, self._end)
        self._pending: list[Lost] = sorted(self.troubles.leaders, key=lambda lost: lost.begin)
        self._token = Token(self._clock.now)
        self._database = Database(settings.database_url)
        self._by_name: dict[str, Workload] = {}
        self._world = World(
            settings=settings,
            clock=self._clock,
            token=self._token,
            database=self._database,
            network=Network(self._problem_of),
            random=next(chances),
            diary=diary.Diary(),
            without=without,
        )
        path = settings.database_url.removeprefix("sqlite:///")
        self._inspector = Inspector(path, self.troubles, next(chances))
        self._clients = Clients(next(chances))
        self._fleet: Sequence[Workload] = ()
        self._processes: list[Process] = []
        #: Those that stand still, and those to be started, with the moment at which they go on.
        self._still: dict[Process, float] = {}
        self._woken: list[Process] = []
        self._starts: list[float] = [self._begin] * _PROCESSES
        self._all: list[Process] = []
        self.report = Report()

    async def run(self) -> Report:
        """Live through it.

        Raises:
            BrokenPromiseError: something did not hold.
        """
        await self._settle_down()
        try:
            while self._clock.now() < self._end:
                await self._step()
            await self._finish()
        finally:
            self._inspector.close()
            self._token.away = self._database.away = False
            for process in self._processes:
                await process.wake()
                await process.stop()
        return self.report

    async def _settle_down(self) -> None:
        await self._start_processes()
        first = self._processes[0]
        await first.store.write(diary.create)
        accounts = [await self._account(first) for _ in range(min(_ACCOUNTS, self._plan.size))]
        self._fleet = self._inspector.fleet = make_fleet(self._plan, accounts, self._fates, self._begin, self._end)
        self._by_name = {workload.name: workload for workload in self._fleet}

    @staticmethod
    async def _account(process: Process) -> AccountRow:
        result = await process.accounts.create(
            parse_jwk(JwsKey("ES256").jwk), NewAccount(), url="", address="127.0.0.1", correlation="simulation"
        )
        return result.account

    def _problem_of(self, name: str) -> ValidationProblem | None:
        if self._by_name[name].reachable(self._clock.now()):
            return None
        return ValidationProblem("connection", "Connecting to port 80 failed: no route to host.")

    async def _step(self) -> None:
        least, most = LEAPS
        leap = (least + (most - least) * self._leaps.betavariate(4, 1)) * HOUR
        self._clock.advance(leap)
        now = self._clock.now()
        self.report.steps += 1
        if not self._database.away:
            await self._inspector.ask(self._running(), now)
        self._look()
        self._token.away, self._database.away = self.troubles.token_away(now), self.troubles.database_away(now)
        self.report.token_hours += self._token.away * leap / HOUR
        self.report.database_hours += self._database.away * leap / HOUR
        at_work = await self._lose_leaders(now)
        await self._go_on(now)
        await self._start_processes()
        for process in self._in_turn():
            await process.turn()
        await self._run_clients(now, at_work)
        await self._revoke(now)
        self._look()
        if not self._database.away:
            self._inspector.look_at_fleet(now, LEAPS[1] * HOUR)
            if self.report.steps % _LONG_LOOK == 0:
                self._inspector.look_at_all(now)
                await self._read_diary()

    def _look(self) -> None:
        self._inspector.look(self._running(), self._clock.now())

    def _running(self) -> list[Process]:
        return [process for process in self._processes if process not in self._still]

    def _leader(self) -> Process | None:
        return max((process for process in self._running() if process.leadership.fence), key=_fence, default=None)

    def _in_turn(self) -> list[Process]:
        """Who gets a turn: the leader first, for as long as there is one, and who stood still until now."""
        leader, running = self._leader(), self._running()
        others = [process for process in running if process is not leader]
        if leader is None:
            self._chance.shuffle(others)
            return others
        everybody = self.report.steps % _FOLLOWERS_TURN == 0
        return [leader, *(process for process in others if everybody or process in self._woken)]

    # Troubles

    async def _lose_leaders(self, now: float) -> Lost | None:
        """Lose the leader when it is time. A loss that is to come while clients wait is handed back."""
        leader = self._leader()
        if leader is None or not self._pending or self._pending[0].begin > now:
            return None
        lost = self._pending.pop(0)
        self.report.lost[lost.how] += 1
        match lost.how:
            case Loss.KILLED_AT_WORK:
                return lost
            case Loss.KILLED:
                await self._kill(leader, lost)
            case Loss.STOPPED:
                self._processes.remove(leader)
                self._starts.append(lost.end)
                await leader.stop()
            case Loss.PAUSED:
                self._still[leader] = lost.end
            case Loss.PAUSED_AT_WORK:
                leader.hold()
                await leader.turn()
                self._still[leader] = lost.end
        return None

    async def _kill(self, process: Process, lost: Lost) -> None:
        self._processes.remove(process)
        self._starts.append(lost.end)
        await process.kill()

    async def _go_on(self, now: float) -> None:
        self._woken = [process for process, end in self._still.items() if end <= now]
        for process in self._woken:
            del self._still[process]
            await process.wake()

    async def _start_processes(self) -> None:
        now = self._clock.now()
        for start in [start for start in self._starts if start <= now]:
            process = Process(f"process-{len(self._all)}", self._world)
            try:
                await process.start()
            except PrivySealError:
                if not (self._token.away or self._database.away):
                    raise
                # Whoever looks after processes starts it again.
                continue
            self._starts.remove(start)
            self._processes.append(process)
            self._all.append(process)

    # Clients

    async def _run_clients(self, now: float, at_work: Lost | None) -> None:
        running = self._running()
        if not running:
            return
        front = self._leader() or running[0]
        whole = not (self._token.away or self._database.away)
        due = [workload for workload in self._fleet if workload.wakes <= now]
        tasks = []
        for workload in due:
            if not workload.runs(now):
                workload.wakes = workload.away[1]
            else:
                tasks.append(asyncio.create_task(self._clients.run(workload, front, now, whole=whole and not at_work)))
        if at_work is not None:
            for _ in range(self._chance.randrange(40)):
                await asyncio.sleep(0)
            await self._kill(front, at_work)
            for task in tasks:
                task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def _revoke(self, now: float) -> None:
        """What operators do about those that are gone and those whose key was stolen."""
        running = self._running()
        for workload in self._fleet:
            if workload.revoked > now or workload.held is None or not running or self._database.away:
                continue
            reason = REASONS["cessationOfOperation"] if workload.fate is Fate.LEAVES else KEY_COMPROMISE
            serial = workload.held.serial
            workload.revoked = float("inf")

            def unit(transaction: Transaction, serial: str = serial, reason: int = reason) -> None:
                row = find_certificate(transaction, serial)
                assert row is not None
                if find_revocation(transaction, row.issuer_id, serial) is None:
                    revoke_certificate(
                        transaction,
                        row,
                        reason=reason,
                        allowed_reasons=ADMINISTRATOR_REASONS,
                        actor="operator:simulation",
                        correlation="simulation",
                        now=now,
                    )

            await running[0].store.write(unit)

    # The end

    async def _read_diary(self) -> None:
        running = self._running()
        if running and (faults := await self._world.diary.faults(running[0])):
            raise BrokenPromiseError("; ".join(faults[:5]))

    async def _finish(self) -> None:
        self._token.away = self._database.away = False
        await self._read_diary()
        report = self.report
        report.renewals = sum(workload.renewals for workload in self._fleet)
        report.polls, report.answers = self._clients.polls, self._inspector.answers
        report.expired, report.missed = self._inspector.expired, len(self._inspector.missed)
        report.leaders = max((process.leadership.fence or 0 for process in self._processes), default=0)
        for process in self._all:
            report.refused += process.refused
            for result in ("in_time", "late", "missed"):
                counted = process.metrics.registry.get_sample_value("privyseal_renewals_total", {"result": result})
                report.counted[result] += int(counted or 0)


def _chances(seed: int) -> Iterator[Random]:
    """One source of chance for each matter, so that a change of one leaves the others as they were."""
    first = Random(seed)  # noqa: S311 (to be the same again)
    while True:
        yield Random(first.random())  # noqa: S311


def _fence(process: Process) -> int:
    return process.leadership.fence or 0
