"""A database without a service, receivers and a clock: what notifications are tried on.

When a :class:`Desk` ends, nothing of a URL's secrets may be in the log, in an error, in the metrics or in the database.
"""

import logging
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from fakes.lineages import NOW
from fakes.receivers import Hook, MailServer, hook, mail_server
from fakes.service import FakeClock
from privyseal_acme.flow.notifications import Notifier
from privyseal_ca.config import Settings
from privyseal_ca.errors import JobFailedError
from privyseal_ca.notify import deliver as delivering
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.fleet import LineageRow, add_lineage, change_lineage, find_lineage
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.notifications import NotificationRow, newest_notifications
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

SECRET = "t0psecret"
HOUR = 3600
#: 2026-11-21T10:00:00Z, after the digest of the day.
START = NOW
WEB_HOOK = f"json://user:{SECRET}@127.0.0.1:{{port}}/{SECRET}/hook"
TO_OWNER = f"mailto://user:{SECRET}@127.0.0.1:{{port}}?from=ca@corp.example&to={{{{owner}}}}&format=text"


@dataclass
class Desk:
    """A database without a service, receivers, and a clock."""

    store: Store
    home: Path
    mail: MailServer
    hook: Hook
    stack: AsyncExitStack
    clock: FakeClock = field(default_factory=lambda: FakeClock(START))
    metrics: Metrics = field(default_factory=Metrics)
    errors: list[str] = field(default_factory=list)

    def url_file(self, name: str, *lines: str) -> str:
        path = self.home / name
        path.write_text("".join(f"{line}\n" for line in lines))
        path.chmod(0o600)
        return name

    def settings(self, *routes: dict[str, Any], **more: Any) -> Settings:
        """With the routes; where one has no file, it goes to the web hook."""
        if not (self.home / "hook").exists():
            self.url_file("hook", WEB_HOOK.format(port=self.hook.port))
            self.url_file("owners", TO_OWNER.format(port=self.mail.port))
        named = [{"url_file": "owners" if each.get("to_owner") else "hook", **each} for each in routes]
        return Settings(notifications={"routes": named, **more}).model_copy(update={"home": self.home})

    def notifier(self, *routes: dict[str, Any], deliver: Any = delivering.deliver, **more: Any) -> Notifier:
        return Notifier(
            store=self.store,
            settings=self.settings(*(routes or ({"name": "ops"},)), **more),
            clock=self.clock,
            random_bytes=os.urandom,
            metrics=self.metrics,
            deliver=deliver,
        )

    async def add(self, *rows: LineageRow) -> None:
        def unit(transaction: Transaction) -> None:
            for row in rows:
                add_lineage(transaction, row)

        await self.store.write(unit)

    async def change(self, lineage_id: str, **columns: Any) -> None:
        assert await self.store.write(partial(change_lineage, lineage_id=lineage_id, **columns))

    async def told(self, lineage_id: str) -> str:
        row = await self.store.read(partial(find_lineage, lineage_id=lineage_id))
        assert row is not None
        return row.told

    async def rows(self) -> list[NotificationRow]:
        return await self.store.read(partial(newest_notifications, count=1000))

    async def fails(self, notifier: Notifier) -> str:
        """What the job says, which has to fail."""
        with pytest.raises(JobFailedError) as caught:
            await notifier.run()
        self.errors.append(str(caught.value))
        return caught.value.message

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@asynccontextmanager
async def desk_on(url: str, home: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Desk]:
    # As the service has it: of libraries, what goes wrong.
    caplog.set_level(logging.WARNING)
    async with AsyncExitStack() as stack:
        store = Store(backend_for(url, durable=False, timeout=5), queue=256)
        await store.open()
        stack.push_async_callback(store.close)
        mail = await stack.enter_async_context(mail_server())
        web_hook = await stack.enter_async_context(hook())
        there = Desk(store, home, mail, web_hook, stack)
        with capture_logs() as logs:
            yield there
        logged = [record.getMessage() for record in caplog.get_records("call")]
        kept = [*await there.rows(), *logs, *logged, *there.errors, generate_latest(there.metrics.registry)]
        assert SECRET not in repr(kept)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the schema and nothing else."""
    path = tmp_path_factory.mktemp("empty") / "store.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest_asyncio.fixture
async def desk(tmp_path: Path, folder: Path, empty: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Desk]:
    url = f"sqlite:///{shutil.copy(empty, tmp_path)}"
    async with desk_on(url, folder, caplog) as there:
        yield there


@pytest_asyncio.fixture
async def anywhere(folder: Path, migrated_url: str, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Desk]:
    """On both databases."""
    async with desk_on(migrated_url, folder, caplog) as there:
        yield there


def private(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return str(path)
