"""Backups for tests: made and restored by the commands, and taken apart and put together otherwise."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyrage  # type: ignore[import-untyped]
from click.testing import CliRunner, Result

from privyseal_acme.cli import cli
from privyseal_ca.config import Settings
from privyseal_ca.recovery.archive import Member, decrypted, encrypt

Change = Callable[[list[Member]], Iterable[Member]]


@dataclass(frozen=True)
class Vault:
    """An identity that opens backups, in a folder for them."""

    folder: Path
    identity: Any = field(default_factory=pyrage.x25519.Identity.generate)

    @property
    def recipient(self) -> str:
        return str(self.identity.to_public())

    @property
    def key(self) -> Path:
        """The file with the identity."""
        path = self.folder / "key.txt"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(f"# public key: {self.recipient}\n{self.identity}\n")
        return path

    def run(
        self,
        *arguments: str | Path,
        settings: Settings | None = None,
        expect: int | None = 0,
        given: bytes | None = None,
    ) -> Result:
        """A command, for the home and the database of ``settings`` where there are any."""
        environment = {"PRIVYSEAL_HOME": str(self.folder / "nowhere")}
        if settings is not None:
            environment = {"PRIVYSEAL_HOME": str(settings.home), "PRIVYSEAL_DATABASE__URL": settings.database_url}
        result = CliRunner().invoke(cli, [*map(str, arguments)], env=environment, input=given)
        assert expect in {None, result.exit_code}, (arguments, result.output, result.exception)
        return result

    def json(self, *arguments: str | Path, settings: Settings | None = None, expect: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", settings=settings, expect=expect).stdout)

    def create(self, settings: Settings, name: str = "a.age", *options: str) -> Path:
        """A backup."""
        path = self.folder / name
        self.run("backup", "create", path, "--recipient", self.recipient, *options, settings=settings)
        return path

    def restore(self, backup: Path, home: Path, *options: str | Path, expect: int = 0) -> Any:
        """The document of ``privyseal restore``."""
        return self.json("restore", backup, "--identity", self.key, "--home", home, *options, expect=expect)

    def members(self, backup: Path) -> list[Member]:
        """What is in a backup."""
        with backup.open("rb") as file, decrypted(file, [self.identity]) as members:
            return list(members)

    def changed(self, backup: Path, change: Change, name: str = "changed.age") -> Path:
        """Another backup, with the members that ``change`` gives."""
        return self.packed(change(self.members(backup)), name)

    def packed(self, members: Iterable[Member], name: str = "packed.age") -> Path:
        """A file with these members, encrypted as a backup is."""
        path = self.folder / name
        with path.open("wb") as file:
            encrypt(members, file, [self.identity.to_public()])
        return path

    def sealed(self, content: bytes, name: str = "sealed.age") -> Path:
        """Any octets, encrypted as a backup is."""
        path = self.folder / name
        with path.open("wb") as file:
            pyrage.encrypt_io(io.BytesIO(content), file, [self.identity.to_public()])
        return path


def replaced(members: Sequence[Member], name: str, change: Callable[[bytes], bytes]) -> list[Member]:
    """The members, with the content of one changed."""
    assert any(member.name == name for member in members), name
    return [Member(each, change(content) if each == name else content) for each, content in members]
