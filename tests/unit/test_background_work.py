"""Work that is repeated for as long as the service runs: one failure must not be the end of it."""

import asyncio
from collections.abc import Iterator

import pytest

from privyseal_acme.service import _repeat
from privyseal_ca.errors import SignerUnavailableError


@pytest.mark.parametrize("failure", [SignerUnavailableError("The token is away."), RuntimeError("a defect")])
async def test_work_goes_on_after_a_failure(failure: Exception) -> None:
    enough = asyncio.Event()
    outcomes: Iterator[Exception | None] = iter([failure, None, failure, None])

    async def work() -> None:
        outcome = next(outcomes, None)
        if outcome is not None:
            raise outcome
        if next(outcomes, None) is None:
            enough.set()

    task = asyncio.create_task(_repeat(0, "work", work))
    try:
        await asyncio.wait_for(enough.wait(), 10)
        assert not task.done()
    finally:
        task.cancel()


async def test_it_ends_when_it_is_cancelled() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(_repeat(0, "work", work))
    await asyncio.wait_for(begun.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
