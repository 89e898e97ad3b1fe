"""Work that is done again and again for as long as a service runs."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from typing import Any

import structlog

from privyseal_ca.errors import PrivySealError

_log = structlog.get_logger("service")


class Attempt:
    """Work that may fail now and succeed later.

    A failure is logged when it is another than that of the time before, and its end is.
    """

    def __init__(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        self._what = what
        self._work = work
        self._before = ""

    async def __call__(self) -> str:
        """Do it; why it failed, or an empty text."""
        failure = ""
        try:
            await self._work()
        except PrivySealError as error:
            failure = str(error)
            if failure != self._before:
                _log.warning("background work failed", work=self._what, error=failure)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not this task was cancelled, but something that it waited for.
            failure = "CancelledError"
            if failure != self._before:
                _log.exception("background work failed", work=self._what)
        except Exception as error:  # noqa: BLE001 (nobody waits for this task: what is to happen again must not end unnoticed)
            failure = type(error).__name__
            if failure != self._before:
                _log.exception("background work failed", work=self._what)
        if self._before and not failure:
            _log.info("background work succeeds again", work=self._what)
        self._before = failure
        return failure


async def repeat(seconds: float, what: str, work: Callable[[], Awaitable[object]]) -> None:
    """Do ``work`` every ``seconds``, for ever; the next turn tries again what failed."""
    attempt = Attempt(what, work)
    while True:
        await asyncio.sleep(seconds)
        await attempt()


async def begin(what: str, work: Callable[[], Awaitable[object]]) -> None:
    """Do ``work`` for the first time; what fails now is done in the background."""
    try:
        await work()
    except PrivySealError as error:
        _log.warning("background work begins later", work=what, error=str(error))


def in_background(stack: AsyncExitStack, works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Have ``works`` done until ``stack`` is left."""
    tasks = [asyncio.create_task(work) for work in works]

    async def stop() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    stack.push_async_callback(stop)
