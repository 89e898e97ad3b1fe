"""Work that is repeated for as long as the service runs: one failure must not be the end of it."""

import asyncio
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from privyseal_acme import service
from privyseal_acme.background import repeat
from privyseal_acme.service import _keep
from privyseal_ca.errors import LedgerBehindError, ServiceLockLostError, SignerUnavailableError, StoreUnavailableError


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

    task = asyncio.create_task(repeat(0, "work", work))
    try:
        await asyncio.wait_for(enough.wait(), 10)
        assert not task.done()
    finally:
        task.cancel()


async def test_a_failure_that_lasts_is_logged_once() -> None:
    away, defect = StoreUnavailableError("The database is away."), RuntimeError("a defect")
    outcomes: Iterator[Exception | None] = iter([away, away, away, None, None, away, defect, defect, None])
    enough = asyncio.Event()

    async def work() -> None:
        outcome = next(outcomes, enough)
        if outcome is enough:
            enough.set()
        elif isinstance(outcome, Exception):
            raise outcome

    with capture_logs() as logs:
        task = asyncio.create_task(repeat(0, "work", work))
        await asyncio.wait_for(enough.wait(), 10)
        task.cancel()
    assert [line["log_level"] for line in logs] == ["warning", "info", "warning", "error", "info"]


async def test_it_ends_when_it_is_cancelled() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(repeat(0, "work", work))
    await asyncio.wait_for(begun.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Claim:
    """A claim on a database that answers as it is told."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = iter(answers)

    def keep(self) -> None:
        answer = next(self.answers)
        if answer is not None:
            raise answer

    def close(self) -> None:
        pass


class Keeper:
    """Looks whether the database is what it was, as it is told."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = iter(answers)

    async def watch(self) -> None:
        answer = next(self.answers)
        if answer is not None:
            raise answer


async def test_a_service_that_lost_its_database_is_told_once_it_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_LOCK_SECONDS", 0)
    claim = Claim(None, StoreUnavailableError("away"), None, ServiceLockLostError("taken"))
    lost = asyncio.Event()
    await asyncio.wait_for(_keep(claim, Keeper(None, None), lost), 10)  # type: ignore[arg-type]
    assert lost.is_set()
    assert next(claim.answers, "none left") == "none left"


async def test_so_is_one_whose_database_was_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_LOCK_SECONDS", 0)
    keeper = Keeper(None, StoreUnavailableError("away"), RuntimeError("a defect"), LedgerBehindError("put back"))
    lost = asyncio.Event()
    await asyncio.wait_for(_keep(Claim(None, None, None, None), keeper, lost), 10)  # type: ignore[arg-type]
    assert lost.is_set()
    assert next(keeper.answers, "none left") == "none left"
