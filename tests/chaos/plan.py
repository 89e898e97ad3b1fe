"""Which trials there are."""

from functools import partial

from chaos import database_faults, faults, token_faults
from chaos.faults import Fault
from chaos.trials import Trial
from chaos.world import made_world
from fakes.disk import Mode

KILLS: tuple[Fault, ...] = (
    faults.Kill(),
    faults.KillAfter("finalize"),
    faults.KillAfter("revokeCert"),
    faults.KillStarting(),
)
TOKEN: tuple[Fault, ...] = (
    token_faults.SignFails(signed=False),
    token_faults.SignFails(signed=True),
    token_faults.OtherCallFails(),
    token_faults.SignHangs(),
    token_faults.Slow(),
    token_faults.Gone(),
    token_faults.SessionsLost(),
)
SQLITE: tuple[Fault, ...] = (
    database_faults.WriteLock(),
    database_faults.Disk(Mode.FULL, "disk is full"),
    database_faults.Disk(Mode.READ_ONLY, "disk is read-only"),
    database_faults.Disk(Mode.BROKEN, "disk fails to write"),
    database_faults.Disk(Mode.SYNC_LOST, "disk fails to sync, data lost"),
    database_faults.Disk(Mode.SYNC_UNCERTAIN, "disk fails to sync, data kept"),
)
POSTGRESQL: tuple[Fault, ...] = (
    database_faults.PostgresqlCrash(),
    database_faults.PostgresqlRestart(),
    database_faults.PostgresqlFrozen(),
    database_faults.BackendsTerminated(),
    database_faults.BackendKilled(),
    database_faults.ReadOnlyDatabase(),
)
CLOCK: tuple[Fault, ...] = (
    faults.ClockSteps("clock steps forward and back", 1),
    faults.ClockSteps("clock steps back and forward", -1),
    faults.KilledWhileWrong(),
)
OTHERS: tuple[Fault, ...] = (faults.Stop(),)


def trials(rounds: int) -> list[Trial]:
    """All of them: ``rounds`` kills, and of the other faults a few of each kind."""
    sqlite, postgresql = partial(made_world, database="sqlite"), partial(made_world, database="postgresql")
    each = max(1, rounds // 40)
    third, some = rounds // 3, rounds // 5
    return [
        Trial("kill", partial(sqlite, shim=True), KILLS, rounds - third - some, kill_first_start=True),
        # Programs of others need more time than a client that does nothing but ask.
        Trial("kill, default home", sqlite, KILLS, some, between=4, lego=True, kill_first_start=True),
        Trial("kill, PostgreSQL", partial(postgresql, shim=True), KILLS, third, kill_first_start=True),
        Trial("token", partial(sqlite, shim=True), TOKEN, each * len(TOKEN)),
        # An issuer does not issue before its own certificate begins.
        Trial("clock", partial(sqlite, age=86_400), CLOCK, each * len(CLOCK)),
        Trial("disk", sqlite, SQLITE + OTHERS, each * len(SQLITE + OTHERS)),
        Trial("database server", partial(postgresql, shim=True), POSTGRESQL, each * len(POSTGRESQL)),
    ]
