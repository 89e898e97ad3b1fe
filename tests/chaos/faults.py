"""What goes wrong on purpose: a fault is put in, lasts for a while, and is lifted. Here, what befalls the process.

Another kind of fault is another class with ``name``, ``lasts``, ``inject`` and ``lift``, and a line in :mod:`chaos.plan`.
"""

import os
import random
import signal
import time
from typing import Final, Protocol

from chaos.record import Record
from chaos.world import World

#: A finalize takes about this long from its first octet to its answer, on a machine that is busy.
_FINALIZE_SECONDS: Final = 0.03
#: A start takes about this long until requests are answered.
_START_SECONDS: Final = 1.2

#: In seconds.
_LONGEST_STEP: Final = 2 * 3600


class Fault(Protocol):
    """Something that goes wrong and ends."""

    name: str
    #: The shortest and the longest time that it lasts, in seconds.
    lasts: tuple[float, float]

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        """Have it go wrong, now or at the moment that the fault is about."""
        ...

    def lift(self, world: World) -> None:
        """Have it go right. What must recover does so from here on."""
        ...


class Kill:
    """SIGKILL at a moment that nobody chose."""

    name = "killed at any moment"
    lasts = (0.0, 0.0)

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        world.kill()

    def lift(self, world: World) -> None:
        world.server.start()


class KillAfter(Kill):
    """SIGKILL while the service works on a request of one kind."""

    def __init__(self, step: str, seconds: float = _FINALIZE_SECONDS) -> None:
        self.name = f"killed after {step} was sent"
        self._step = step
        self._seconds = seconds

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        # Where nobody sends one, any moment is as good.
        record.await_begin(self._step, 10)
        time.sleep(chance.uniform(0, self._seconds))
        world.kill()


class KillStarting(Kill):
    """SIGKILL, and again while it starts: what a start does must survive itself."""

    name = "killed while it starts"

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        world.kill()
        self.start_and_kill(world, chance)

    @staticmethod
    def start_and_kill(world: World, chance: random.Random) -> None:
        """Begin a start and end it."""
        world.server.start(wait=False)
        time.sleep(chance.uniform(0.2, _START_SECONDS))
        world.kill()


class Stop:
    """The process stands still, as in a machine that is moved or swaps."""

    name = "process stands still"
    lasts = (0.5, 3.0)

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        os.kill(world.server.pid, signal.SIGSTOP)

    def lift(self, world: World) -> None:
        os.kill(world.server.pid, signal.SIGCONT)


class ClockSteps:
    """The service's clock is wrong for a while, by seconds or by hours: it steps twice, there and back."""

    lasts = (0.3, 2.0)

    def __init__(self, name: str, direction: int) -> None:
        self.name = name
        self._direction = direction

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        # As often by seconds as by hours.
        world.clock.step(self._direction * int(_LONGEST_STEP ** chance.random()))

    def lift(self, world: World) -> None:
        world.clock.step(0)


class KilledWhileWrong(ClockSteps):
    """SIGKILL and a start while the clock is wrong, in either direction."""

    def __init__(self) -> None:
        super().__init__("killed and started while the clock is wrong", 1)

    def inject(self, world: World, record: Record, chance: random.Random) -> None:
        self._direction = chance.choice((-1, 1))
        super().inject(world, record, chance)
        world.kill()
        world.server.start()
