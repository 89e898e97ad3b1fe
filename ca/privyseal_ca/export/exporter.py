"""Handing the ledger on, at least once and in its order: see ``docs/export.md``.

1. Entries are read from the database, a batch at a time, and checked against their leaf hashes.
2. They are sent. A slow receiver makes this step slow, and nothing else: what is not sent stays in the database.
3. Now and then the target confirms that what was sent has arrived.
4. Only then the cursor moves, in the export's own row.

Whatever ends the process in between, the next one begins at the cursor: entries may be sent twice and are never left out.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from privyseal_ca.clock import Clock
from privyseal_ca.errors import ExportError, LedgerBehindError, LedgerError, PrivySealError, StoreUnavailableError
from privyseal_ca.export.formats import Render
from privyseal_ca.export.record import Record, checked, missing
from privyseal_ca.export.targets import Stop, StoppedError, Target
from privyseal_ca.ledger.log import StoredEntry, entries, size
from privyseal_ca.store.engine import Store
from privyseal_ca.store.exports import (
    MAX_EXPORTS,
    ExportRow,
    add_export,
    all_exports,
    find_export,
    keep_export,
    move_export,
    set_export,
    set_export_problem,
)
from privyseal_ca.store.statement import Transaction

DEFAULT_BATCH: Final = 256
MAX_BATCH: Final = 1000
#: At most so many batches are sent before they are confirmed; one after what was sent could not be confirmed.
_MOST_BATCHES: Final = 64
#: How often the database is asked for more, and how often the row says that there is nothing more. In seconds.
_POLL: Final = 1.0
_SEEN: Final = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
#: The text of a problem is cut to this many characters.
_MAX_PROBLEM: Final = 500


class OvertakenError(ExportError):
    """Another process uses the same cursor."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be exported."""

    store: Store
    #: The name of the cursor; None for an export that keeps none and writes nothing to the database.
    name: str | None
    #: The kinds of entries that go out; empty for all of them.
    kinds: Collection[str] = ()
    #: How many entries are in memory at once.
    batch: int = DEFAULT_BATCH


class Report(NamedTuple):
    """What an export did."""

    #: The entries that were sent, repetitions included.
    sent: int
    #: The index at which the next run goes on.
    next: int
    #: How many entries the ledger has.
    size: int


class Exporter:
    """One export of the ledger to one target."""

    def __init__(
        self,
        source: Source,
        target: Target,
        render: Render,
        *,
        clock: Clock,
        stop: Stop,
        tell: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._target = target
        self._render = render
        self._clock = clock
        self._stop = stop
        self._tell = tell
        self._monotonic = monotonic
        self._kinds = frozenset(source.kinds)
        #: The index behind what was sent, and behind what was confirmed.
        self._sent = self._confirmed = 0
        self._count = self._size = 0
        self._unconfirmed = 0
        self._window = _MOST_BATCHES
        self._due = 0.0
        #: When the row was written last; never yet.
        self._seen = float("-inf")
        self._troubled = False

    async def run(self, *, follow: bool, first: int | None = None) -> Report:
        """Export everything from the cursor on, or from the index ``first``; with ``follow`` until it is to stop.

        Raises:
            ExportError: the target does not take entries (with ``follow`` it is tried again instead), the cursor cannot be
                kept, or another process moves it.
            LedgerError: an entry is missing or not what it was. It is not exported, and nothing after it. LedgerBehindError: the
                ledger ends before ``first``, or before the cursor.
            StoreUnavailableError: the database is away (with ``follow`` it is tried again instead).
        """
        await self._claim(first)
        pause = _FIRST_PAUSE
        try:
            while True:
                before = self._confirmed
                try:
                    await self._hand_over(follow=follow)
                    break
                except (ExportError, LedgerError, StoreUnavailableError) as error:
                    self._begin_again()
                    await self._note(error)
                    if not follow or isinstance(error, LedgerError | OvertakenError):
                        raise
                if self._confirmed > before:
                    pause = _FIRST_PAUSE
                if await self._stop.wait(pause):
                    break
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            await asyncio.to_thread(self._target.close)
        return Report(self._count, self._confirmed, self._size)

    async def _claim(self, first: int | None) -> None:
        """Find where to begin; make the row where there is none."""
        name, at = self._source.name, int(self._clock.now())
        if name is None:
            self._sent = self._confirmed = first or 0
            return

        def unit(transaction: Transaction) -> int | None:
            row = find_export(transaction, name)
            if row is None:
                return first or 0 if add_export(transaction, ExportRow(name, first or 0, at, None)) else None
            if first is not None:
                set_export(transaction, name, first, at)
                return first
            # Not that it goes on: one that ends again and again at once has got nowhere.
            keep_export(transaction, name)
            return row.next

        if first is not None and first > (have := await self._source.store.read(size)):
            # Kept, it would leave out what comes until then.
            raise _behind(first, have)
        try:
            begin = await self._source.store.write(unit)
        except StoreUnavailableError as error:
            raise ExportError(
                f"The cursor {name} cannot be kept: {error.message}",
                hint="An export writes one row of the table ledger_export. If the database is busy, try again; if it is read-only, "
                "run the export where the service runs, or write to standard output without --name, which keeps no cursor.",
            ) from error
        if begin is None:
            raise ExportError(
                f"There are {MAX_EXPORTS} exports already.",
                hint="`privyseal ledger exports` lists them; remove one with --remove.",
            )
        self._sent = self._confirmed = begin

    async def _hand_over(self, *, follow: bool) -> None:
        """Send and confirm until there is nothing left, or, with ``follow``, until it is to stop."""
        while not self._stop.asked:
            found = await self._read()
            await self._send(found)
            more = len(found) == self._source.batch
            idle = not more and not follow
            if self._sent > self._confirmed:
                if idle or self._unconfirmed >= self._window or self._monotonic() >= self._due:
                    await self._confirm()
            elif not more and self._monotonic() - self._seen >= _SEEN:
                await self._move(self._confirmed)
            if idle and self._sent == self._confirmed:
                return
            if not more and await self._stop.wait(_POLL):
                break
        await self._end(follow=follow)

    async def _end(self, *, follow: bool) -> None:
        """Confirm what was sent, if that can be done quickly: otherwise the next run sends it again."""
        if self._sent == self._confirmed:
            return
        try:
            await self._confirm()
        except (ExportError, StoreUnavailableError) as error:
            if not follow:
                raise
            self._tell(f"what was sent last is sent again by the next run: {error.message}")
            self._begin_again()

    async def _read(self) -> Sequence[StoredEntry]:
        first, count = self._sent, self._source.batch

        def unit(transaction: Transaction) -> tuple[list[StoredEntry], int]:
            return list(entries(transaction, first=first, count=count)), size(transaction)

        found, self._size = await self._source.store.read(unit)
        if first > self._size:
            raise _behind(first, self._size)
        return found

    async def _send(self, found: Sequence[StoredEntry]) -> None:
        """Send what is wanted of ``found``, which follows what was sent last."""
        records = [checked(stored, index) for index, stored in enumerate(found, self._sent)]
        if len(found) < min(self._source.batch, self._size - self._sent):
            raise missing(self._sent + len(found))
        if not found:
            return
        wanted = [self._render(record) for record in records if self._wants(record)]
        if self._sent == self._confirmed:
            self._due = self._monotonic() + self._target.pause
        if wanted:
            try:
                await asyncio.to_thread(self._target.send, wanted, self._stop)
            except StoppedError:
                # A part of the batch may have been sent; none of it counts.
                self._begin_again()
                return
            self._count += len(wanted)
        self._unconfirmed += 1
        self._sent += len(found)

    def _wants(self, record: Record) -> bool:
        return not self._kinds or record.members["kind"] in self._kinds

    async def _confirm(self) -> None:
        try:
            await asyncio.to_thread(self._target.confirm, self._stop)
        except ExportError:
            # A receiver that is slow may manage less at once.
            self._window = max(1, self._window // 2)
            raise
        self._window = min(2 * self._window, _MOST_BATCHES)
        await self._move(self._sent)
        self._unconfirmed = 0

    async def _move(self, to: int) -> None:
        """Move the cursor."""
        name, expected, at = self._source.name, self._confirmed, int(self._clock.now())
        if name is not None:

            def unit(transaction: Transaction) -> bool:
                # Where an earlier attempt failed after it was committed, the row is there already.
                return any(move_export(transaction, name, begin, to, at) for begin in (expected, to))

            if not await self._source.store.write(unit):
                raise OvertakenError(
                    f"Another process has moved the cursor {name}, or removed it.",
                    hint="Give each export a name of its own with --name.",
                )
        self._confirmed = to
        self._seen = self._monotonic()
        if self._troubled:
            self._troubled = False
            self._tell("the export goes on")

    def _begin_again(self) -> None:
        """Forget what was sent and not confirmed."""
        self._target.close()
        self._sent = self._confirmed
        self._unconfirmed = 0

    async def _note(self, error: PrivySealError) -> None:
        """Say what is wrong, in the export's row as well, where that can be done."""
        if not self._troubled:
            self._tell(f"the export does not go on: {error}")
        self._troubled = True
        name = self._source.name
        if name is not None and not isinstance(error, StoreUnavailableError | OvertakenError):
            text = error.message[:_MAX_PROBLEM]
            try:
                await self._source.store.write(lambda tx: set_export_problem(tx, name, text))
            except StoreUnavailableError as failure:
                self._tell(f"that cannot be recorded: {failure.message}")


def _behind(first: int, have: int) -> LedgerBehindError:
    return LedgerBehindError(
        f"The export is to go on at entry {first}, and the ledger has only {have}.",
        hint="Was an older database put back? If the ledger is right, go on with --from INDEX.",
    )


async def listed(store: Store) -> tuple[list[ExportRow], int]:
    """Every export, and the size of the ledger."""
    return await store.read(lambda tx: (all_exports(tx), size(tx)))
