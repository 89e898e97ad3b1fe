"""One process of the authority: the parts that the service is made of, on a database that others use as well.

Only listeners and what needs them are missing: the server's own certificate, nonces, the watcher. The jobs are the service's.
Several processes share the token's thread, as all who open a module in one process of the machine do.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from fakes.service import FakeClock
from privyseal_acme import service as composition
from privyseal_acme.checkpointing import open_checkpointer
from privyseal_acme.flow.accounts import AccountFlow
from privyseal_acme.flow.authorizations import AuthorizationFlow
from privyseal_acme.flow.context import Context
from privyseal_acme.flow.finalize import IssuanceDesk
from privyseal_acme.flow.fleet import Fleet
from privyseal_acme.flow.orders import OrderFlow
from privyseal_acme.flow.renewal import RenewalFlow
from privyseal_acme.flow.validation import ValidationQueue
from privyseal_acme.leases import Leadership
from privyseal_acme.opening import load_anchors, load_issuers, load_profiles, rate_limits
from privyseal_acme.protocol.urls import Urls
from privyseal_acme.publication import Publication, open_publication
from privyseal_acme.scheduler import PROCESS, Job, Scheduler
from privyseal_ca.config import Settings
from privyseal_ca.issuance.authority import Authority
from privyseal_ca.issuance.lint import Linter
from privyseal_ca.policy.keys import KeyPolicy
from privyseal_ca.policy.names import NamePolicy
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.telemetry.figures import count_expiring
from privyseal_ca.telemetry.metrics import Metrics
from simulation.diary import Diary
from simulation.surroundings import Busy, Database, Network, Token, Turnstile

#: Time leaps by hours: what is due every few seconds is due once in each leap. With less than this between two runs,
#: timers would begin work while the simulated time stands still.
LEAST_INTERVAL: Final = 900.0
#: Work that only shows figures, and work for which some days are nothing, is done that often. What clients wait for is not.
RARE_INTERVAL: Final = 2 * 86_400.0
RARE: Final = frozenset(
    {
        "blocked-accounts",
        "checkpoints",
        "completeness",
        "compromised-keys",
        "expiring",
        "export-figures",
        "fleet-figures",
        "responders",
        "retention",
    }
)


@dataclass(frozen=True)
class World:
    """What all processes have in common."""

    settings: Settings
    clock: FakeClock
    token: Token
    database: Database
    network: Network
    random: Random
    diary: Diary
    #: Jobs that are not done, to see that this is found out.
    without: frozenset[str] = frozenset()


class Process:
    """A process that runs from :meth:`start` until it is stopped or killed, and only when it is given a turn."""

    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self._world = world
        self._turnstile = Turnstile()
        self._busy = Busy()
        self._stack = AsyncExitStack()
        self.metrics = Metrics()
        self.context: Context
        self.store: Store
        self.leadership: Leadership
        self.publication: Publication
        self.renewals: RenewalFlow
        self.accounts: AccountFlow
        self.orders: OrderFlow
        self.authorizations: AuthorizationFlow
        self.validations: ValidationQueue
        self.desk: IssuanceDesk
        self._scheduler: Scheduler

    async def start(self) -> None:
        """Open everything, publish once, and begin with scheduled work.

        Raises:
            PrivySealError: the token or the database is away.
        """
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        await self.settle()

    async def turn(self) -> None:
        """Look about twice, as it does within two seconds, and do what is due: after a leap, a leader first has to know that
        it leads still."""
        for _ in range(2):
            await self._turnstile.turn()
        await self.settle()

    async def settle(self) -> None:
        """Return when everything that has begun is done, or stands in front of the gate."""
        # What was begun just now takes its first step.
        await asyncio.sleep(0)
        while self._busy.count > self._busy.held:
            self._busy.changed.clear()
            await self._busy.changed.wait()

    def hold(self) -> None:
        """Stand still in the middle of the work that begins next: the turn that begins it ends as soon as it has begun."""
        self._busy.shut()

    @property
    def refused(self) -> int:
        """How many runs of jobs ended because another process leads."""
        return self._busy.refused

    async def wake(self) -> None:
        """Go on in the middle of the work, without having looked about."""
        self._busy.open()
        while self._busy.count:
            self._busy.changed.clear()
            await self._busy.changed.wait()

    async def stop(self) -> None:
        """End in order: what is under way ends, the lease is given up."""
        await self._stack.aclose()

    async def kill(self) -> None:
        """End as by SIGKILL: nothing is given up and nothing tidied; the kernel closes what is open."""
        self._scheduler._timer.shutdown(wait=False)
        # The timer's end comes with the next turn of the loop.
        await asyncio.sleep(0)
        tasks = [*self._scheduler._tasks, *self.desk._working.values(), *self.validations._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.store.close()
        await self._hsm.close()

    async def _open(self, stack: AsyncExitStack) -> None:
        world, settings, clock = self._world, self._world.settings, self._world.clock
        self.store = store = world.database.open(settings)
        await store.open()
        stack.push_async_callback(store.close)
        self._hsm = hsm = world.token.open(settings)
        stack.push_async_callback(hsm.close)
        metrics = self.metrics
        issuers = await load_issuers(store, hsm, settings)
        wrapping_uri = await store.read(lambda tx: find_fact(tx, "wrapping-key"))
        assert wrapping_uri is not None
        wrapping_key = await hsm.open_wrapping_key(wrapping_uri)
        authority = Authority(
            store=store,
            issuers=issuers,
            linter=Linter(),
            clock=clock,
            random_bytes=world.random.randbytes,
            metrics=metrics,
        )
        self.context = context = Context(
            settings=settings,
            store=store,
            authority=authority,
            wrapping_key=wrapping_key,
            profiles=load_profiles(settings),
            policies={name: NamePolicy(policy, name=name) for name, policy in settings.policy.items()},
            key_policy=KeyPolicy(settings.keys),
            limits=rate_limits(settings, clock),
            urls=Urls(settings.server.public_https),
            clock=clock,
            random_bytes=world.random.randbytes,
            metrics=metrics,
        )
        checkpointer = await open_checkpointer(context, hsm)
        stack.push_async_callback(checkpointer.close)
        anchors = await load_anchors(store, settings.home)
        self.publication = await open_publication(context, hsm, anchors, stack)
        self.accounts, self.orders, self.renewals = AccountFlow(context), OrderFlow(context), RenewalFlow(context)
        self.desk = IssuanceDesk(context, self.orders, lambda: checkpointer.refused)
        stack.push_async_callback(self.desk.close, 5)
        self.validations = ValidationQueue(context, world.network)  # type: ignore[arg-type]  # what it asks of a validator
        stack.push_async_callback(self.validations.close)
        self.authorizations = AuthorizationFlow(context, self.validations)
        jobs = [
            Job("token-probe", 2.0, hsm.probe, PROCESS),
            Job("validations", 15.0, self.validations.resume, PROCESS),
            Job("checkpoints", 0.5, checkpointer.sign_due, PROCESS),
            Job("expiring", 60.0, lambda: count_expiring(store, metrics, clock), PROCESS),
            Job("orders", 1.0, self.desk._drain, PROCESS),
            *self.publication.jobs(),
            *composition._sweeps(context),
            *composition._fleet_jobs(Fleet.of(context, self.renewals)),
            Job("diary", LEAST_INTERVAL, lambda: world.diary.write(self)),
        ]
        self.leadership = Leadership(
            store, clock, holder=self.name, seconds=settings.scheduler.lease, monotonic=clock.now
        )
        await self.publication.begin()
        self._scheduler = Scheduler(
            [self._slowed(job) for job in jobs if job.name not in world.without],
            self.leadership,
            store,
            clock,
            metrics,
            random=world.random.random,
            sleep=self._turnstile.sleep,
        )
        await stack.enter_async_context(self._scheduler.running())

    def _slowed(self, job: Job) -> Job:
        least = RARE_INTERVAL if job.name in RARE else LEAST_INTERVAL
        return replace(job, every=max(job.every, least), work=self._busy.watch(job.work))
