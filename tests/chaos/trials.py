"""A trial: clients that order all the time, faults one after the other, and the checks at the end."""

import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from chaos.checks import Found, check_kept, check_round, check_served, check_signatures, check_verify
from chaos.client import LegoWorker, Worker
from chaos.faults import Fault, KillStarting
from chaos.record import Record
from chaos.watch import Watch, Watcher
from chaos.world import ZONE, World
from fakes.process import CommandFailedError

_STARTS_KILLED: Final = 2
#: The shim keeps 8192 signatures.
_ROOM: Final = 6000
_SHOWN: Final = 1500
#: How often it is looked whether the service still runs while everybody waits for it, in seconds.
_LOOK: Final = 0.5
#: What a client needs to finish an order, however busy the machine.
_ORDER_SECONDS: Final = 30.0

Say = Callable[[str], None]


@dataclass
class Tally:
    """What became of all faults of one kind in one trial."""

    fault: str
    database: str
    injected: int = 0
    acknowledged: int = 0
    lost: int = 0
    duplicated: int = 0
    unrecorded: int = 0
    #: Seconds from lifting each fault until a client received its next certificate.
    recovery: list[float] = field(default_factory=list)


@dataclass
class Outcome:
    """What a trial found."""

    name: str
    tallies: list[Tally]
    breaches: list[str]
    retries: Mapping[str, int]
    #: Where everything is, when something was wrong; else None.
    kept: Path | None = None
    checkpoints: int = 0
    proofs: int = 0
    crls: int = 0
    #: How many certificates a program of somebody else got.
    programs: int = 0
    revoked: int = 0
    #: Serials that a fault cost; shows that faults came while certificates were made.
    abandoned: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing was wrong."""
        wrong = sum(each.lost + each.duplicated + each.unrecorded for each in self.tallies)
        return not wrong and not self.breaches


class MakeWorld(Protocol):
    """Makes the place of a trial in a folder."""

    def __call__(self, folder: Path) -> AbstractContextManager[World]:
        """The world, whose service has never run."""
        ...


@dataclass(frozen=True)
class Trial:
    """What is tried. Every kind of fault comes about as often as any other."""

    name: str
    world: MakeWorld
    faults: Sequence[Fault]
    rounds: int
    clients: int = 6
    #: The longest pause of a client between two orders, in seconds.
    pause: float = 0.02
    #: The longest time between two faults, in seconds; the next one comes at any moment of it.
    between: float = 0.6
    lego: bool = False
    #: Whether the first start of the home is killed too.
    kill_first_start: bool = False
    #: For how many seconds clients ask for one thing again, and how long recovery may take. Faults are shorter by far.
    patience: float = 90.0
    #: How many of the checkpoints that were seen are given to ``ledger verify --since``; all are compared with the entries.
    since: int = 3

    def run(self, folder: Path, seed: str, say: Say) -> Outcome:
        """Do it in ``folder``, which is removed unless something was wrong."""
        record = Record()
        watch = Watch(record)
        with self.world(folder) as world:
            running = Running(self, world, record, watch, seed, say)
            try:
                outcome = running.run()
            except CommandFailedError as error:
                # The end of a log says why; all of it is kept.
                record.breach(str(error)[-_SHOWN:])
                outcome = running.outcome(Found())
            if not outcome.clean:
                world.keep_database()
                (folder / "breaches").write_text("\n".join([f"seed {seed}", *outcome.breaches, ""]), encoding="utf-8")
                outcome.kept = folder
        if outcome.clean:
            shutil.rmtree(folder)
        return outcome


class Running:
    """A trial under way."""

    def __init__(self, trial: Trial, world: World, record: Record, watch: Watch, seed: str, say: Say) -> None:
        self._trial = trial
        self._world = world
        self._record = record
        self._watch = watch
        self._seed = f"{seed} {trial.name}"
        self._chance = random.Random(self._seed)  # noqa: S311 (moments, not secrets)
        self._say = say
        self._tallies = {fault.name: Tally(fault.name, world.database) for fault in trial.faults}
        #: Which kind of fault each round had. What comes before the first belongs to the first.
        self._kinds = [trial.faults[0].name]

    def run(self) -> Outcome:
        """Start, break, mend, look."""
        world, record = self._world, self._record
        if self._trial.kill_first_start:
            for _ in range(_STARTS_KILLED):
                KillStarting.start_and_kill(world, self._chance)
                world.take_signatures(0)
        world.server.start()
        watcher = Watcher(world, record, self._watch, seed=self._seed)
        watcher.start()
        workers = self._workers()
        for worker in workers:
            worker.start()
        try:
            self._rounds()
        except CommandFailedError as error:
            record.breach(str(error)[-_SHOWN:])
        finally:
            if record.breaches:
                # Whoever waits for an answer that does not come is let go.
                record.over.set()
                world.server.close()
            for worker in workers:
                worker.finish()
            for worker in workers:
                worker.join(2 * self._trial.patience + _ORDER_SECONDS)
                if worker.is_alive():
                    record.breach(f"{worker.name} does not end")
            watcher.finish()
        return self._judge()

    def _workers(self) -> list[Worker | LegoWorker]:
        trial, world = self._trial, self._world
        workers: list[Worker | LegoWorker] = [
            Worker(
                number,
                world.server,
                world.http01,
                self._record,
                zone=ZONE,
                seed=self._seed,
                pause=trial.pause,
                patience=trial.patience,
            )
            for number in range(1, trial.clients + 1)
        ]
        if trial.lego:
            workers.append(
                LegoWorker(world.server, world.folder / "lego", self._record, zone=ZONE, patience=trial.patience)
            )
        return workers

    def _rounds(self) -> None:
        record = self._record
        if not self._recovered(0, "before the first fault"):
            return
        order = spread(self._trial.faults, self._trial.rounds, self._chance)
        for turn, fault in enumerate(order, start=1):
            time.sleep(self._chance.uniform(0, self._trial.between))
            self._kinds.append(fault.name)
            record.turn = turn
            if not self._strike(fault):
                return
            check_round(self._world, record, turn - 1)
            self._make_room()
            if turn % 10 == 0 or turn == len(order):
                self._say(
                    f"{self._trial.name}: {turn} of {len(order)} faults, {len(record.received)} certificates, "
                    f"{len(record.breaches)} breaches"
                )
            if record.breaches:
                return

    def _strike(self, fault: Fault) -> bool:
        """One fault; whether the service has recovered from it."""
        tally = self._tallies[fault.name]
        fault.inject(self._world, self._record, self._chance)
        tally.injected += 1
        try:
            time.sleep(self._chance.uniform(*fault.lasts))
        finally:
            # What is received from here on is not from before the fault.
            before = len(self._record.received)
            begun = time.monotonic()
            if not self._world.alive:
                self._world.take_signatures(self._record.turn)
            fault.lift(self._world)
        if not self._recovered(before, f"after {fault.name} (round {self._record.turn})"):
            return False
        tally.recovery.append(time.monotonic() - begun)
        return True

    def _recovered(self, before: int, when: str) -> bool:
        """Wait until clients have more than so many certificates."""
        deadline = time.monotonic() + self._trial.patience
        while not self._record.await_received(before, _LOOK):
            if not self._world.alive:
                self._record.breach(f"the service does not run {when}: {self._world.server.log[-_SHOWN:]}")
                return False
            if self._record.breaches:
                return False
            if time.monotonic() > deadline:
                self._record.breach(f"no certificate for {self._trial.patience:.0f} s {when}")
                return False
        return True

    def _make_room(self) -> None:
        """Where no fault ends the service, the shim's log of signatures has to be emptied now and then all the same."""
        shim = self._world.shim
        if shim is not None and shim.signature_count > _ROOM:
            self._world.kill()
            self._world.take_signatures(self._record.turn)
            self._world.server.start()

    def _judge(self) -> Outcome:
        world, record, found = self._world, self._record, Found()
        if not self._watch.vkey:
            record.breach("the ledger's verification key was never served")
            return self.outcome(found)
        # A service that does not recover has nothing to serve; what it left is looked at all the same.
        if not record.over.is_set():
            check_served(world, record, self._watch, self._chance)
            code = world.server.stop()
            if code:
                record.breach(f"the service ended with {code}")
        check_verify(world, record, self._watch, self._chance, self._trial.since)
        check_kept(world.rows, record, self._watch, found)
        world.take_signatures(record.turn)
        check_signatures(world.signed, world.rows, record, found)
        return self.outcome(found)

    def outcome(self, found: Found) -> Outcome:
        """What was found, by kinds of faults."""
        record = self._record
        for received in record.received:
            self._tally(received.turn).acknowledged += 1
        for turn, _ in found.lost:
            self._tally(turn).lost += 1
        for turn, _ in found.duplicated:
            self._tally(turn).duplicated += 1
        for turn, _ in found.unrecorded:
            self._tally(turn).unrecorded += 1
        details = [
            f"{what}: {each} (round {turn})"
            for what, items in (
                ("lost", found.lost),
                ("duplicated", found.duplicated),
                ("unrecorded", found.unrecorded),
            )
            for turn, each in items
        ]
        return Outcome(
            self._trial.name,
            list(self._tallies.values()),
            record.breaches + details,
            dict(sorted(record.retries.items())),
            checkpoints=len(self._watch.notes),
            proofs=self._watch.proofs,
            crls=self._watch.crls,
            programs=sum(not each.order for each in record.received),
            revoked=sum(each.revoked for each in record.received),
            abandoned=found.abandoned,
        )

    def _tally(self, turn: int) -> Tally:
        return self._tallies[self._kinds[turn]]


def spread(faults: Sequence[Fault], rounds: int, chance: random.Random) -> list[Fault]:
    """``rounds`` faults in an order that nobody chose, each kind as often as any other."""
    order = [faults[at % len(faults)] for at in range(rounds)]
    chance.shuffle(order)
    return order
