"""One thread, to which every call into one PKCS#11 module goes.

python-pkcs11 initialises modules without locking, so that two threads in one module may abort the process: calls into
a module are made on its one thread. Coroutines hand over work and wait; a hop there and back costs one queue and one
wake-up of the event loop, and answers that are ready together share that wake-up.
"""

import asyncio
import concurrent.futures
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from privyseal_ca.errors import SignatureUncertainError, SignerUnavailableError

T = TypeVar("T")

Start = Callable[[], None]
"""Called by a task when it is about to do what must not happen after its caller has gone."""


class _AbandonedError(Exception):
    """The caller is gone; the task must not start."""


class Worker:
    """The thread of one module. ``monotonic`` gives seconds that never go back."""

    def __init__(self, name: str, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._process = os.getpid()
        self._busy_since: float | None = None
        self._stopping = False
        self._last: Callable[[], None] = lambda: None
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended.set_running_or_notify_cancel()  # it ends whether or not anybody goes on waiting for that
        self._mailbox: _Mailbox | None = None

    @property
    def here(self) -> bool:
        """Whether the caller is on this thread."""
        return threading.get_ident() == self._thread.ident

    @property
    def waiting(self) -> int:
        """How many tasks wait for the thread."""
        return self._requests.qsize()

    def hangs(self, patience: float) -> bool:
        """Whether one task has been running for more than ``patience`` seconds."""
        since = self._busy_since
        return since is not None and self._monotonic() - since > patience

    def serves(self, patience: float) -> bool:
        """Whether a task handed over now is expected to be run."""
        return not self._stopping and self._process == os.getpid() and not self.hangs(patience)

    async def call(
        self,
        task: Callable[[Start], T],
        *,
        patience: float,
        limit: int,
        signs: bool = False,
        begin: float | None = None,
    ) -> T:
        """Run ``task`` on the thread and give its result, or raise what it raised.

        ``task`` calls ``start`` before it does anything that cannot be undone. When the caller has waited ``patience``
        seconds, or is cancelled, before that, the task is skipped, or stops at ``start``; likewise when it has not started
        ``begin`` seconds after it was handed over, for callers who have another token to go to.

        Raises:
            SignerUnavailableError: ``limit`` requests wait already, the thread hangs or has ended, or ``patience`` or
                ``begin`` passed before the task started.
            SignatureUncertainError: ``patience`` passed after the start of a task that ``signs``.
        """
        self._admit(patience if begin is None else min(begin, patience), limit)
        return await self._ask(task, patience, signs=signs, begin=begin)

    async def stop(self, last: Callable[[], None], patience: float) -> bool:
        """End the thread after what already waits, and then ``last``, which raises nothing.

        False when that takes more than ``patience`` seconds: then the thread hangs in the token, and does both when it goes on.
        """
        self._stopping = True
        if not self._thread.is_alive():
            last()
            return True
        self._last = last
        self._requests.put(None)
        try:
            async with asyncio.timeout(patience):
                await asyncio.wrap_future(self._ended)
        except TimeoutError:
            return False
        return True

    async def _ask(
        self, task: Callable[[Start], T], patience: float, *, signs: bool = False, begin: float | None = None
    ) -> T:
        loop = asyncio.get_running_loop()
        mailbox = self._mailbox
        if mailbox is None or mailbox.loop is not loop:
            mailbox = self._mailbox = _Mailbox(loop)
        request = _Request(task, loop.create_future(), mailbox)
        timers = [loop.call_later(patience, request.expire, patience, signs)]
        if begin is not None:
            timers.append(loop.call_later(begin, request.withdraw, begin))
        self._requests.put(request)
        try:
            result: T = await request.future
            return result
        finally:
            for timer in timers:
                timer.cancel()
            request.claim()

    def _admit(self, patience: float, limit: int) -> None:
        if self._process != os.getpid():
            raise SignerUnavailableError(
                "This token was opened before the process forked, and PKCS#11 does not survive that.",
                hint="Open keys after the fork, in the process that uses them.",
            )
        if self._stopping:
            raise SignerUnavailableError("The token was closed.", hint="The service is stopping.")
        if self.hangs(patience):
            raise SignerUnavailableError(
                f"The token has not answered for more than {patience:g} seconds.",
                hint="Look at the token or its network; requests are taken again when it answers.",
            )
        if self._requests.qsize() >= limit:
            raise SignerUnavailableError(
                f"{limit} requests wait for the token already.", hint="Try again in a few seconds."
            )
        if not self._thread.is_alive():
            self._thread.start()

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None:
            if not request.claimed:
                self._busy_since = self._monotonic()
                request.run()
                self._busy_since = None
                request.mailbox.put(request)
        try:
            self._last()
        finally:
            self._ended.set_result(None)


class _Request:
    """One task on its way to the thread and back."""

    __slots__ = ("_claim", "_started", "error", "future", "mailbox", "result", "task")

    def __init__(self, task: Callable[[Start], Any], future: "asyncio.Future[Any]", mailbox: "_Mailbox") -> None:
        self.task = task
        self.future = future
        self.mailbox = mailbox
        self.result: Any = None
        self.error: BaseException | None = None
        # Taken once: by the thread that starts the task, or by the caller who gives up. A lock makes that atomic.
        self._claim = threading.Lock()
        self._started = False

    @property
    def claimed(self) -> bool:
        return self._claim.locked()

    def claim(self) -> bool:
        """Take the task, unless the other side has."""
        return self._claim.acquire(blocking=False)

    def start(self) -> None:
        """For the task: may be called again by one that is tried a second time."""
        if not (self._started or self.claim()):
            raise _AbandonedError
        self._started = True

    def run(self) -> None:
        try:
            self.result = self.task(self.start)
        except StopIteration as error:  # a future does not take it (PEP 479)
            self.error = RuntimeError("the work raised StopIteration")
            self.error.__cause__ = error
        except BaseException as error:  # noqa: BLE001 (carried to the caller, whatever it is)
            self.error = error

    def expire(self, patience: float, signs: bool) -> None:
        """On the event loop: the caller has waited long enough."""
        if self.future.done():
            return
        started = not self.claim()
        if started and signs:
            self.future.set_exception(
                SignatureUncertainError(
                    f"The token did not finish within {patience:g} seconds; it may have made a signature.",
                    hint="Treat what was to be signed as spent.",
                )
            )
            return
        self.future.set_exception(
            SignerUnavailableError(
                f"The token did not answer within {patience:g} seconds.",
                hint="What was begun may still be carried out: look before trying again."
                if started
                else "Try again later.",
            )
        )

    def withdraw(self, begin: float) -> None:
        """On the event loop: a task that has not started by now is not to."""
        if not self.future.done() and self.claim():
            self.future.set_exception(
                SignerUnavailableError(f"The token did not begin within {begin:g} seconds.", hint="Try again later.")
            )

    def settle(self) -> None:
        """On the event loop: hand over the answer."""
        # The error's traceback leads back here: let go of it.
        error, self.error = self.error, None
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(self.result)


class _Mailbox:
    """Answers for one event loop. Those that come before it looks share one wake-up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._answers: deque[_Request] = deque()
        self._ringing = False

    def put(self, request: _Request) -> None:
        self._answers.append(request)
        if not self._ringing:
            self._ringing = True
            try:
                self.loop.call_soon_threadsafe(self._empty)
            except RuntimeError:  # the loop is closed, and nobody waits any more
                self._answers.clear()

    def _empty(self) -> None:
        # Before the answers are taken: an answer that comes after this line rings again.
        self._ringing = False
        while self._answers:
            self._answers.popleft().settle()
