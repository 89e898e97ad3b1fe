"""A backup that a process of its own makes: to read and encrypt a database is heavy, and nobody who is served waits for it.

:meth:`Apart.run` starts ``python -m privyseal_ca.recovery.apart``, hands it an :class:`Order` and takes what became of it, both
as JSON through pipes. It makes the file and nothing else: what the ledger says of it is written by whoever ordered it.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from privyseal_ca.config import Settings
from privyseal_ca.errors import BackupError, PrivySealError
from privyseal_ca.recovery.age_keys import read_recipients
from privyseal_ca.recovery.backup import Made, Plan, make_backup, new_file
from privyseal_ca.recovery.contents import Manifest
from privyseal_ca.sections import DatabaseSettings, IssuanceSettings

#: How much the process lets others go first, from 0 to 19.
_NICE = 10


class Order(BaseModel):
    """What is to be backed up, for whom, and where to. It has no PIN: a backup needs no token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path
    database: DatabaseSettings
    issuance: IssuanceSettings
    recipients: tuple[str, ...]
    #: The file, which must not be there.
    path: Path
    #: The present, in seconds since the epoch.
    now: float
    #: The version of the program.
    program: str


class _Outcome(BaseModel):
    """A backup that is complete, or why there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest: Manifest | None = None
    manifest_sha256: str = ""
    bytes: int = 0
    left_out: list[str] = []
    error: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class _Moment:
    """A clock that stands."""

    moment: float

    def now(self) -> float:
        """Seconds since the epoch."""
        return self.moment


class Apart:
    """One backup, made elsewhere. May be stopped from another thread than the one that waits for it."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self) -> Made:
        """Have it made, and wait.

        Raises:
            BackupError: it could not be made. There is no file.
        """
        # What is set for the service is in the order, as far as it matters; the PIN may be among the rest.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PRIVYSEAL_")}
        try:
            self._process = subprocess.Popen(  # noqa: S603 (this program itself)
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                # An interrupt at a terminal is the service's own to handle.
                start_new_session=True,
            )
        except OSError as error:
            raise BackupError(
                f"No process could be started for the backup: {error.strerror}.",
                hint="Check the limits of the service: memory, processes.",
            ) from error
        if self._stopped:
            self.stop()
        content, _ = self._process.communicate(self._order.model_dump_json().encode())
        try:
            outcome = _Outcome.model_validate_json(content)
        except ValidationError:
            raise BackupError(
                f"The process that made the backup ended with code {self._process.returncode} and said nothing.",
                hint="Look at the log and at the machine's memory; try `privyseal backup create`.",
            ) from None
        if outcome.manifest is None:
            raise BackupError(outcome.error, hint=outcome.hint)
        return Made(outcome.manifest, outcome.manifest_sha256, outcome.bytes, outcome.left_out)

    def stop(self, *, kill: bool = False) -> None:
        """Have it end without a backup; what it has written so far it removes itself, unless it is killed."""
        self._stopped = True
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)


def _make(order: Order) -> Made:
    settings = Settings(database=order.database, issuance=order.issuance).model_copy(update={"home": order.home})
    plan = Plan(read_recipients(order.recipients))
    with new_file(order.path) as target:
        return make_backup(
            settings, plan, target, clock=_Moment(order.now), program=order.program, progress=lambda _: None
        )


def _outcome(given: bytes) -> _Outcome:
    try:
        made = _make(Order.model_validate_json(given))
    except PrivySealError as error:
        return _Outcome(error=error.message, hint=error.hint)
    except Exception as error:  # noqa: BLE001 (told to whoever waits, without what it says: that may be a secret)
        return _Outcome(
            error=f"The backup failed with {type(error).__name__}.", hint="Try `privyseal backup create`; it says more."
        )
    return _Outcome(
        manifest=made.manifest, manifest_sha256=made.manifest_sha256, bytes=made.bytes, left_out=made.left_out
    )


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    # An exception, so that the unfinished file is removed on the way out.
    raise SystemExit(1)


def main() -> None:
    """The process's own part: an order on standard input, its outcome on standard output."""
    signal.signal(signal.SIGTERM, _end)
    with suppress(OSError):  # a sandbox may not let it
        os.nice(_NICE)
    outcome = _outcome(sys.stdin.buffer.read())
    sys.stdout.buffer.write(outcome.model_dump_json().encode())


if __name__ == "__main__":
    main()
