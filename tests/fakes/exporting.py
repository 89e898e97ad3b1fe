"""A ledger that grows, and ``privyseal ledger export`` in front of it, in this process or in one of its own."""

import asyncio
import contextlib
import json
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from fakes.home import MakeSettings
from fakes.process import PRIVYSEAL, clean_environment
from privyseal_acme.cli import cli
from privyseal_ca.config import Settings
from privyseal_ca.ledger.checkpoints import ORIGIN_FACT
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append, size
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import set_fact
from privyseal_ca.store.statement import Transaction

ORIGIN = "ca.test/ledger"
runner = CliRunner()


@contextlib.asynccontextmanager
async def opened(url: str) -> Any:
    store = Store(backend_for(url, durable=False, timeout=20), queue=64)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@dataclass
class Ledger:
    """A home whose ledger grows as a test wants it, and the command in front of it."""

    settings: Settings
    folder: Path

    def write(self, unit: Callable[[Transaction], Any]) -> Any:
        async def work() -> Any:
            async with opened(self.settings.database_url) as store:
                return await store.write(unit)

        return asyncio.run(work())

    def grow(self, count: int, *, octets: int = 0) -> int:
        """Add entries; the size."""

        def unit(transaction: Transaction) -> int:
            for number in range(count):
                kind = (Kind.EAB_CREATED, Kind.ACCOUNT_CREATED)[number % 2]
                payload = {"label": f"büro {number}", "filler": "x" * octets}
                append(transaction, encode_entry(kind, time=1.0, actor="operator:o", correlation="c", payload=payload))
            return size(transaction)

        return int(self.write(unit))

    @property
    def size(self) -> int:
        return int(self.write(size))

    def sql(self, statement: str, *values: Any) -> None:
        """Do what no command does."""
        path = self.settings.database_url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(statement, values)
            connection.commit()

    @property
    def environment(self) -> dict[str, str]:
        return clean_environment(
            PRIVYSEAL_HOME=str(self.settings.home),
            PRIVYSEAL_DATABASE__URL=self.settings.database_url,
            PRIVYSEAL_DATABASE__TIMEOUT="1",
        )

    def run(self, *arguments: str | Path, expect: int = 0) -> Result:
        result = runner.invoke(cli, ["ledger", *map(str, arguments)], env=self.environment)
        assert result.exit_code == expect, (arguments, result.output, result.exception)
        return result

    def json(self, *arguments: str | Path, expect: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", expect=expect).stdout)

    def export(self, form: str, to: str | Path, *more: str | Path, expect: int = 0) -> Any:
        return self.json("export", "--format", form, "--to", to, *more, expect=expect)

    def cursor(self) -> dict[str, Any]:
        (row,) = self.json("exports")
        assert isinstance(row, dict)
        return row

    @contextlib.contextmanager
    def process(self, form: str, to: str | Path, *more: str, **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
        """The command as a process of its own, which is killed at the end."""
        arguments = [PRIVYSEAL, "ledger", "export", "--format", form, "--to", to, *more]
        process = subprocess.Popen(
            arguments, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def indexes(path: Path) -> list[int]:
    """The indexes in a file of JSON lines, each of which must be whole."""
    content = path.read_bytes()
    assert content.endswith(b"\n")
    return [json.loads(line)["index"] for line in content.splitlines()]


def ended(process: "subprocess.Popen[bytes]", number: int = signal.SIGTERM) -> bytes:
    """End an export that follows, as its owner would; what it said."""
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, (output, errors)
    return errors


def exported_ledger(make_settings: MakeSettings, tmp_path: Path) -> Ledger:
    """A fresh home whose ledger has a name."""
    made = Ledger(make_settings(), tmp_path)
    made.write(lambda tx: set_fact(tx, ORIGIN_FACT, ORIGIN))
    return made
