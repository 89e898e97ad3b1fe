"""Units of work and the one writer that groups them (DESIGN section 4, promise P3).

A unit of work is a plain function of a :class:`Transaction`. Units that arrive while a commit is under way are run
together in the next transaction, each in a savepoint of its own, so that the cost of one durable commit is shared and
the failure of one unit spoils no other. ``write`` returns only after the commit is durable.

With SQLite the statements, microseconds each, run on the event loop's thread. The commit, which waits for the disk, runs
on the writer's thread, one hop for a whole group, unless the disk has lately been so fast that the hop would cost more
than the wait. With PostgreSQL the group runs on the writer's thread.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Protocol, TypeVar

from privyseal_ca.errors import PrivySealError, StoreError, StoreUnavailableError
from privyseal_ca.store.backends import Backend, ServiceLock
from privyseal_ca.store.guards import guarded
from privyseal_ca.store.lone_reader import LoneReader
from privyseal_ca.store.statement import Transaction

_log = logging.getLogger(__name__)

T = TypeVar("T")
Unit = Callable[[Transaction], T]

_GROUP = 256
#: How often a read is tried that another process's first change spoils.
_READINGS = 3
#: Commits that take less than this many seconds on average are made on the event loop's thread.
_SHORT_COMMIT = 0.0004
#: After this many commits the database's log is written back, on the writer's thread.
_CHECKPOINT = 200
#: The share of the newest commit in that average, and how much a slow one weighs at most.
_NEWEST, _SLOWEST = 0.1, 0.01


class Watch(Protocol):
    """Told of every group on the event loop; must not fail or wait. What ``waits`` gives comes back when its unit has ended."""

    def waits(self) -> object | None:
        """A unit begins to wait."""
        ...

    def committed(self, waited: Sequence[object], *, units: int, seconds: float, failed: bool) -> None:
        """A group of so many ``units`` has ended; its commit took ``seconds``, which are 0 where it ``failed`` before."""
        ...


class _Pending:
    """A unit that waits, then its outcome."""

    __slots__ = ("error", "future", "mark", "unit", "value")

    def __init__(self, unit: Unit[Any], future: "asyncio.Future[Any]", mark: object | None) -> None:
        self.unit = unit
        self.future = future
        self.mark = mark
        self.value: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        """Hand the outcome to whoever waits."""
        # The error's traceback leads back here: let go of it.
        error, self.error = self.error, None
        if self.future.done():
            return
        if error is None:
            self.future.set_result(self.value)
        else:
            self.future.set_exception(error)


class Store:
    """One database as seen by one process. Belongs to the event loop it was opened on.

    With ``read_only`` it never writes: it makes no writing connection, changes no file, and stands no writer in the way.
    """

    def __init__(
        self, backend: Backend, *, queue: int, readers: int = 1, group_commit: bool = True, read_only: bool = False
    ) -> None:
        self._backend = backend
        self._read_only = read_only
        self._lone = backend.lone_reader() if read_only else None
        self._limit = queue
        self._group_commit = group_commit
        self._waiting: deque[_Pending] = deque()
        self._closing = False
        self._writer: Any = None
        self._reader: Any = None
        self._reader_local = threading.local()
        self._pooled: list[Any] = []
        self._readers = readers
        self._reader_pool: ThreadPoolExecutor | None = None
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._idle = asyncio.Event()
        self._idle.set()
        #: How long a commit takes, in seconds; unknown at first, so the first ones are made off the loop.
        self._commit_seconds = _SLOWEST
        self._commits = 0
        #: Of the group that is under way, once it is committed.
        self._took = 0.0
        self.watch: Watch | None = None
        #: Whether the last use of the database went well; readiness is derived from it.
        self.available = False
        #: Gives the error for every change, where none may be made now.
        self.refusal: Callable[[], PrivySealError] | None = None

    async def open(self) -> None:
        """Connect.

        Raises:
            StoreUnavailableError: the database cannot be reached.
        """
        self._loop = asyncio.get_running_loop()
        if not self._read_only:
            self._writer = self._backend.connect(writing=True)
        if not self._backend.inline:
            self._reader_pool = ThreadPoolExecutor(self._readers, thread_name_prefix="store-reader")
        elif self._lone is None:
            self._reader = self._backend.connect(writing=False)
        if self._read_only:
            try:
                await self.read(lambda _: None)
            except StoreUnavailableError:
                await self.close()
                raise
            return
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()
        self.available = True

    @property
    def waiting(self) -> int:
        """How many units wait for a group."""
        return len(self._waiting)

    def lock_service(self) -> ServiceLock:
        """Claim the database for this service until the result is closed.

        Raises:
            StoreUnavailableError: another service has it.
        """
        return self._backend.lock_service()

    async def close(self) -> None:
        """Finish what waits, then disconnect."""
        self._closing = True
        await self._idle.wait()
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
        if self._reader_pool is not None:
            await asyncio.to_thread(self._reader_pool.shutdown)
        for connection in (self._lone, self._reader, self._writer, *self._pooled):
            if connection is not None:
                with suppress(self._backend.errors):
                    connection.close()
        self.available = False

    async def write(self, unit: Unit[T]) -> T:
        """Run ``unit`` in a transaction and give its result once that is durable.

        The unit may be run only once and must not wait for anything. An exception from it undoes the unit and is raised here.

        Raises:
            StoreConflictError: a constraint refused the unit.
            StoreUnavailableError: the queue is full, or the database failed, or this process only reads. After a
                failed commit the unit may still turn out to be stored: callers that cannot bear this look before they try again.
        """
        if self._read_only:
            raise StoreUnavailableError(
                "This process only reads the database.", hint="Changes are made by the service and by other commands."
            )
        if self.refusal is not None:
            raise self.refusal()
        if self._closing:
            raise StoreUnavailableError("The service is stopping.", hint="Try again in a moment.")
        if len(self._waiting) >= self._limit:
            raise StoreUnavailableError("Too many changes wait for the database.", hint="Try again in a moment.")
        mark = None if self.watch is None else self.watch.waits()
        pending = _Pending(guarded(unit), self._loop.create_future(), mark)
        self._waiting.append(pending)
        if self._idle.is_set():
            self._idle.clear()
            if self._group_commit:
                # Units of requests that are handled in the same turn of the loop join the group.
                self._loop.call_soon(self._start_group)
            else:
                self._start_group()
        result: T = await pending.future
        return result

    async def read(self, unit: Unit[T]) -> T:
        """Run ``unit``, which must only read, and give its result. It sees everything that ``write`` has returned for.

        Raises:
            StoreUnavailableError: the database failed.
        """
        if self._lone is not None:
            return self._read_alone(self._lone, unit)
        if self._reader_pool is None:
            # The writer's cache holds what it wrote; the reader's is empty after every commit of another connection.
            idle = self._idle.is_set() and self._writer is not None
            return self._read(lambda: self._begin_reading(self._writer if idle else self._reader), unit)
        return await self._loop.run_in_executor(self._reader_pool, self._read, self._begin_reading_pooled, unit)

    def _read_alone(self, lone: LoneReader, unit: Unit[T]) -> T:
        """Read once more where another process began to write just then."""
        for _ in range(_READINGS):
            try:
                result = self._read(lambda: self._begin_reading(lone.connection()), unit)
            except StoreUnavailableError:
                self.available = False
                lone.close()
                raise
            if lone.holds():
                return result
        raise StoreUnavailableError("The database was changed while it was read.", hint="Try again in a moment.")

    def _read(self, begin: Callable[[], Any], unit: Unit[T]) -> T:
        connection = None
        try:
            connection = begin()
            cursor = connection.cursor()
            try:
                result = unit(Transaction(cursor, self._backend.dialect))
            finally:
                cursor.execute("COMMIT")
        except self._backend.errors as error:
            if connection is not None:
                with suppress(self._backend.errors):
                    connection.rollback()
            raise self._failure(error) from error
        if self._read_only:
            self.available = True
        return result

    def _begin_reading(self, connection: Any) -> Any:
        connection.execute("BEGIN")
        return connection

    def _begin_reading_pooled(self) -> Any:
        """This thread's connection, or a new one where it died since its last use, as in a restart of the server."""
        connection = getattr(self._reader_local, "connection", None)
        if connection is not None:
            try:
                connection.execute("BEGIN")
            except self._backend.errors:
                self._reader_local.connection = None
                self._pooled.remove(connection)
                with suppress(self._backend.errors):
                    connection.close()
            else:
                return connection
        connection = self._reader_local.connection = self._backend.connect(writing=False)
        self._pooled.append(connection)
        connection.execute("BEGIN")
        return connection

    # The writer. `_start_group` and `_finish_group` run on the loop, jobs on the writer's thread; a group is in exactly
    # one of them at a time, so the writing connection is never used by two threads at once.

    def _start_group(self) -> None:
        group = [self._waiting.popleft() for _ in range(min(len(self._waiting), _GROUP))]
        try:
            begun = self._backend.inline and self._writer is not None
            if begun:
                self._writer.execute(self._backend.begin)
        except self._backend.errors:
            # Another process writes, or the connection is dead: the writer's thread waits or connects, not the loop.
            begun = False
        if not begun:
            self._jobs.put(lambda: self._run_group(group, begun=False))
            return
        lost = None
        try:
            self._apply(group)
            if self._group_commit and self._commit_seconds > _SHORT_COMMIT:
                self._jobs.put(lambda: self._run_group(group, begun=True))
                return
            self._commit()
        except Exception as error:  # noqa: BLE001 (whatever it is, somebody waits for an answer)
            lost = self._abandon(group, error)
        self._finish_group(group, lost)

    def _run_group(self, group: Sequence[_Pending], *, begun: bool) -> None:
        lost = None
        try:
            if not begun:
                self._begin()
                self._apply(group)
            self._commit()
        except Exception as error:  # noqa: BLE001 (whatever it is, somebody waits for an answer)
            lost = self._abandon(group, error)
        self._loop.call_soon_threadsafe(self._finish_group, group, lost)

    def _finish_group(self, group: Sequence[_Pending], lost: StoreError | None) -> None:
        if self.watch is not None:
            marks = [pending.mark for pending in group if pending.mark is not None]
            self.watch.committed(marks, units=len(group), seconds=self._took, failed=lost is not None)
            self._took = 0.0
        for pending in group:
            pending.settle()
        if lost is not None:
            # Whoever waits would wait for the same, a time limit after each other: they are told now. Nothing of theirs ran.
            waiting, self._waiting = self._waiting, deque()
            self._fail(waiting, lost)
            for pending in waiting:
                pending.settle()
        if self._backend.inline and self._commits >= _CHECKPOINT and self._writer is not None:
            self._commits = 0
            self._jobs.put(self._write_back)
        else:
            self._go_on()

    def _write_back(self) -> None:
        """Write the log back on the writer's thread, in a group's place: only then can the log begin anew."""
        try:
            self._backend.checkpoint(self._writer)
        except self._backend.errors as error:
            _log.warning("the database's log was not written back: %s", error)
        self._loop.call_soon_threadsafe(self._go_on)

    def _go_on(self) -> None:
        if self._waiting:
            self._start_group()
        else:
            self._idle.set()

    def _begin(self) -> None:
        """Begin on the writer's thread; on a new connection where the old one is dead, since nothing was done on it yet."""
        if self._writer is not None:
            try:
                self._backend.begin_patiently(self._writer)
            except self._backend.errors as error:
                if self._backend.is_busy(error):
                    raise
                self._disconnect()
            else:
                return
        self._writer = self._backend.connect(writing=True)
        self._backend.begin_patiently(self._writer)

    def _apply(self, group: Sequence[_Pending]) -> None:
        """Run each unit of ``group``, in a savepoint unless it is alone."""
        cursor = self._writer.cursor()
        transaction = Transaction(cursor, self._backend.dialect)
        alone = len(group) == 1
        for pending in group:
            if not alone:
                cursor.execute("SAVEPOINT unit")
            try:
                pending.value = pending.unit(transaction)
            except self._backend.errors as error:
                pending.error = self._failure(error)
                if isinstance(pending.error, StoreUnavailableError):
                    raise  # not the unit's own fault, and the units after it might each wait as long for the same lock
            except Exception as error:  # noqa: BLE001 (handed to the caller of write)
                pending.error = error
            if pending.error is not None:
                cursor.execute("ROLLBACK" if alone else "ROLLBACK TO SAVEPOINT unit")
                if alone:
                    cursor.execute(self._backend.begin)
            if not alone:
                cursor.execute("RELEASE SAVEPOINT unit")

    def _commit(self) -> None:
        begun = perf_counter()
        self._writer.execute("COMMIT")
        self._took = perf_counter() - begun
        self._commit_seconds += (min(self._took, _SLOWEST) - self._commit_seconds) * _NEWEST
        self._commits += 1
        self.available = True

    def _abandon(self, group: Sequence[_Pending], error: Exception) -> StoreError:
        """The transaction failed as a whole: nobody is told of success, and the next group has a new connection."""
        failure = error if isinstance(error, StoreError) else self._failure(error)
        self.available = False
        self._fail(group, failure)
        self._disconnect()
        return failure

    def _disconnect(self) -> None:
        connection, self._writer = self._writer, None
        if connection is not None:
            with suppress(self._backend.errors):
                connection.close()

    def _fail(self, group: Iterable[_Pending], error: StoreError) -> None:
        for pending in group:
            # One for each: an error that is raised in many tasks would collect the frames of all of them.
            pending.error = type(error)(error.message, hint=error.hint)

    def _failure(self, error: Exception) -> StoreError:
        failure = self._backend.translate(error)
        if isinstance(failure, StoreUnavailableError):
            self.available = False
        return failure

    def _work(self) -> None:
        """The writer's thread."""
        while (job := self._jobs.get()) is not None:
            job()
