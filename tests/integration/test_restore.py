"""``privyseal restore``: into an empty home and database of either kind, all of it or nothing, and never half."""

import json
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, select, text
from sqlmodel import SQLModel

import privyseal_ca.issuance
from fakes.backups import Vault
from fakes.home import MakeSettings
from fakes.postgresql import Postgresql, copy_to_postgresql
from fakes.process import PRIVYSEAL, ServerProcess, clean_environment
from privyseal_ca.config import Settings
from privyseal_ca.errors import BackupError
from privyseal_ca.recovery import restore as restoring
from privyseal_ca.recovery.archive import Member
from privyseal_ca.recovery.contents import MANIFEST
from privyseal_ca.recovery.home_files import with_database
from privyseal_ca.recovery.restore import MARK
from privyseal_ca.store.dumping import DERIVED, loading, schema_of, snapshot

_PROFILE = Path(privyseal_ca.issuance.__file__).with_name("profiles") / "mtls.toml"


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


def rows_of(url: str) -> dict[str, list[str]]:
    """Every row that a backup holds, but for the facts of a restore."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        tables = {name: table for name, table in SQLModel.metadata.tables.items() if name not in DERIVED}
        found = {name: sorted(map(repr, connection.execute(select(table)))) for name, table in tables.items()}
    engine.dispose()
    found["fact"] = [row for row in found["fact"] if not row.startswith(("('restore'", "('ocsp-begun:"))]
    return found


def query(url: str, statement: str) -> list[Any]:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        found = list(result) if result.returns_rows else []
    engine.dispose()
    return found


def sqlite_of(home: Path) -> str:
    return f"sqlite:///{home / 'privyseal.db'}"


def is_usable(vault: Vault, home: Path) -> bool:
    """Whether commands take it for an authority."""
    document = vault.run("ledger", "show", "--home", home, expect=None)
    return document.exit_code == 0


# What comes back.


def test_all_of_it_comes_back(vault: Vault, settings: Settings) -> None:
    before = rows_of(settings.database_url)
    query(settings.database_url, "INSERT INTO fact VALUES ('ocsp-begun:x', '7')")
    query(
        settings.database_url,
        "INSERT INTO ocsp_response VALUES (hex(randomblob(16)), 'sha1', 'x', 0, 1, 2, 3, zeroblob(3))",
    )
    backup = vault.create(settings)
    home = vault.folder / "home"
    document = vault.restore(backup, home)
    assert rows_of(sqlite_of(home)) == before
    assert query(sqlite_of(home), "SELECT count(*) FROM ocsp_response") == [(0,)]
    # Without responses, they begin to be made from the first certificate on.
    assert query(sqlite_of(home), "SELECT * FROM fact WHERE name LIKE 'ocsp-begun:%'") == []
    assert query(sqlite_of(home), "PRAGMA integrity_check") == [("ok",)]
    assert document["settlement"] is None
    for name in ("roots.pem", "privyseal.toml"):
        assert (home / name).read_bytes() == (settings.home / name).read_bytes()
    assert sorted(path.name for path in home.iterdir() if "-" not in path.name) == [
        "privyseal.db",
        "privyseal.toml",
        "roots.pem",
    ]
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "privyseal.db").stat().st_mode & 0o777 == 0o600


def test_nothing_goes_on_before_it_is_settled(vault: Vault, settings: Settings) -> None:
    home = vault.folder / "home"
    text_ = vault.run("restore", vault.create(settings), "--identity", vault.key, "--home", home).stdout
    assert "will not start" in text_
    assert "privyseal recovery settle" in text_
    status = vault.json("recovery", "status", "--home", home, expect=1)
    size = query(sqlite_of(home), "SELECT size FROM ledger_head")[0][0]
    assert status["restored"]["size"] == size == status["size"]
    assert status["restored"]["by"].startswith("operator:")
    shutil.copytree(settings.home / "secrets", home / "secrets")
    assert "settle" in vault.json("eab", "create", "--home", home, expect=1)["hint"]
    # A backup of it would be one of something that may lack revocations.
    again = ("backup", "create", vault.folder / "b.age", "--recipient", vault.recipient, "--home", home)
    assert "settle" in vault.json(*again, expect=1)["hint"]
    assert query(sqlite_of(home), "SELECT size FROM ledger_head") == [(size,)]


@pytest.mark.postgresql
def test_from_each_kind_to_the_other(vault: Vault, make_settings: MakeSettings, postgresql: Postgresql) -> None:
    settings = make_settings()
    before = rows_of(settings.database_url)
    on_sqlite = vault.create(settings)
    url = postgresql.new_database()
    home = vault.folder / "postgresql"
    file = vault.folder / "url"
    file.write_text(f"{url}\n")
    vault.restore(on_sqlite, home, "--database", f"@{file}")
    assert rows_of(url) == before
    assert not (home / "privyseal.db").exists()
    assert tomllib.loads((home / "privyseal.toml").read_text())["database"]["url"] == url
    assert vault.run("ledger", "verify", "--home", home).stdout.endswith("ok\n")

    source = copy_to_postgresql(settings.database_url, postgresql)
    before = rows_of(source)
    on_postgresql = vault.create(make_settings(database={"url": source}), "p.age")
    back = vault.folder / "sqlite"
    vault.restore(on_postgresql, back)
    assert rows_of(sqlite_of(back)) == before


def test_a_backup_of_an_older_schema(vault: Vault, make_settings: MakeSettings) -> None:
    """It is taken before the migration, by the new program, and comes back into the new schema."""
    settings = make_settings()
    old = vault.folder / "old.db"
    schema = schema_of("0002")
    with (
        snapshot(settings.database_url, timeout=5) as taken,
        loading(f"sqlite:///{old}", "0002", timeout=5) as target,
    ):
        for table in taken.tables:
            if older := schema.get(table.name):
                columns = [table.columns.index(column) for column in older.columns]
                for page in taken.pages(table.name):
                    target.add(older, [tuple(row[column] for column in columns) for row in page])
        target.finish = lambda: None  # type: ignore[method-assign]
    older = settings.model_copy(update={"database": settings.database.model_copy(update={"url": f"sqlite:///{old}"})})
    backup = vault.create(older)
    assert vault.json("backup", "verify", backup, "--identity", vault.key)["schema"] == "0002"
    home = vault.folder / "home"
    assert vault.restore(backup, home)["schema"] == "0002"
    restored = rows_of(sqlite_of(home))
    assert restored == rows_of(make_settings().database_url)


def test_a_backup_of_a_newer_schema(vault: Vault, settings: Settings) -> None:
    def newer(content: bytes) -> bytes:
        return content.replace(b'"revision": "', b'"revision": "9')

    backup = vault.changed(
        vault.create(settings), lambda members: [Member(name, newer(content)) for name, content in members]
    )
    home = vault.folder / "home"
    assert "newer version" in vault.restore(backup, home, expect=1)["hint"]
    assert not home.exists()


# With tokens, and the service.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A home with tokens of its own, as ``privyseal init`` makes it, that has signed checkpoints."""
    server = ServerProcess(tmp_path_factory.mktemp("tokens") / "home")
    try:
        server.init()
        (server.home / "profiles").mkdir()
        (server.home / "profiles" / "short.toml").write_bytes(_PROFILE.read_bytes())
        yield server
    finally:
        server.close()


def test_the_service_goes_on_from_a_backup_with_tokens(server: ServerProcess, vault: Vault) -> None:
    server.start()
    backup = vault.folder / "with-tokens.age"
    arguments = ("backup", "create", backup, "--recipient", vault.recipient, "--with-tokens")
    document = server.json(*arguments)
    assert {"softhsm2.conf", "profiles/short.toml", "privyseal.toml", "roots.pem"} < set(document["files"])
    assert document["tokens"] is True
    assert document["origin"]
    secrets = {path.read_bytes().strip() for path in (server.home / "secrets").iterdir()}
    content = b"".join(member.content for member in vault.members(backup))
    assert not any(secret in content for secret in secrets)
    vkey = server.command("ledger", "vkey").stdout.strip()
    assert vault.json("backup", "verify", backup, "--identity", vault.key, "--vkey", vkey)["verified"] is True
    checkpoint = vault.folder / "checkpoint"
    assert server.stop() == 0

    restored = ServerProcess(vault.folder / "restored")
    try:
        run = vault.run("restore", backup, "--identity", vault.key, "--home", restored.home, "--vkey", vkey)
        assert "PIN" in run.stdout
        assert (restored.home / "profiles" / "short.toml").read_bytes() == _PROFILE.read_bytes()
        conf = (restored.home / "softhsm2.conf").read_text()
        assert f"directories.tokendir = {restored.home / 'tokens'}\n" in conf
        assert str(server.home) not in conf
        assert all(not path.stat().st_mode & 0o077 for path in (restored.home / "tokens").rglob("*"))
        shutil.copytree(server.home / "secrets", restored.home / "secrets")
        # All that came after the backup is missing, and the database of before has it.
        exported = vault.folder / "entries.jsonl"
        note = query(sqlite_of(server.home), "SELECT note FROM ledger_checkpoint ORDER BY size DESC LIMIT 1")[0][0]
        checkpoint.write_bytes(note)
        exported.write_text(server.command("ledger", "export", "--format", "jsonl", "--to", "-").stdout)
        restored.json("recovery", "settle", "--checkpoint", checkpoint, "--entries", exported, "--vkey", vkey)
        restored.start()
        assert restored.command("ledger", "verify", "--since", checkpoint).stdout.endswith("ok\n")
        assert restored.stop() == 0
    finally:
        restored.close()


# What stands in the way.


def test_a_home_that_is_not_empty(vault: Vault, settings: Settings) -> None:
    backup = vault.create(settings)
    home = vault.folder / "home"
    home.mkdir()
    (home / "mine").write_text("x")
    assert "mine" in vault.restore(backup, home, expect=1)["error"]
    assert [path.name for path in home.iterdir()] == ["mine"]
    (home / "mine").unlink()
    (home / "secrets").mkdir()
    (home / "secrets" / "pin").write_text("1234")
    vault.restore(backup, home)
    assert (home / "secrets" / "pin").read_text() == "1234"
    # It is there now.
    assert "not empty" in vault.restore(backup, home, expect=1)["error"]
    file = vault.folder / "file"
    file.write_text("x")
    assert vault.restore(backup, file, expect=1)["error"]
    assert file.read_text() == "x"


def test_a_database_that_is_not_empty(vault: Vault, settings: Settings, make_settings: MakeSettings) -> None:
    backup, used = vault.create(settings), make_settings().database_url
    before = rows_of(used)
    error = vault.restore(backup, vault.folder / "home", "--database", used, expect=1)
    assert "an authority" in error["error"]
    assert rows_of(used) == before
    foreign = vault.folder / "foreign.db"
    query(f"sqlite:///{foreign}", "CREATE TABLE theirs (a)")
    error = vault.restore(backup, vault.folder / "home", "--database", f"sqlite:///{foreign}", expect=1)
    assert "theirs" in error["error"]
    assert not is_usable(vault, vault.folder / "home")
    vault.restore(backup, vault.folder / "home")


@pytest.mark.postgresql
def test_a_postgresql_that_is_not_empty(vault: Vault, settings: Settings, postgresql: Postgresql) -> None:
    url = postgresql.new_database()
    query(url, "CREATE TABLE theirs (a text)")
    backup = vault.create(settings)
    error = vault.restore(backup, vault.folder / "home", "--database", url, expect=1)
    assert "theirs" in error["error"]
    assert vault.restore(backup, vault.folder / "home", "--database", "postgresql://x:secret@127.0.0.1:1/n", expect=1)
    assert query(url, "SELECT count(*) FROM theirs") == [(0,)]


def test_the_wrong_identity_leaves_nothing(vault: Vault, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other, home = Vault(tmp_path / "other"), vault.folder / "home"
    backup = vault.create(settings)
    assert "identity" in other.restore(backup, home, expect=1)["error"]
    assert not home.exists()
    digest = "0" * 64
    assert digest not in vault.restore(backup, home, "--manifest", digest, expect=1)["error"]
    assert not is_usable(vault, home)


@pytest.mark.parametrize(
    "member", [MANIFEST, "tables/secret/00000001.jsonl", "tables/ledger_entry/00000001.jsonl", "files/roots.pem"]
)
def test_what_is_wrong_at_the_end_undoes_all(vault: Vault, settings: Settings, member: str) -> None:
    backup = vault.create(settings)
    wrong = vault.changed(backup, lambda members: [each for each in members if each.name != member])
    home = vault.folder / "home"
    assert vault.restore(wrong, home, expect=1)["error"]
    assert not is_usable(vault, home)
    assert not (home / "privyseal.db").exists()
    # The same home takes the right one.
    vault.restore(backup, home)
    assert is_usable(vault, home)
    assert not (home / MARK).exists()


def test_what_the_audit_finds_does_not_count(vault: Vault, settings: Settings) -> None:
    """A backup that agrees with itself, of a database in which a revocation is missing its entry."""
    issuer = query(settings.database_url, "SELECT id FROM issuer WHERE state = 'active'")[0][0]
    values = f"'{issuer}', '{'0' * 32}', 1, 1, 4000000000, NULL, 2"
    query(settings.database_url, f"INSERT INTO revocation VALUES ({values})")  # noqa: S608 (the test's own)
    home = vault.folder / "home"
    assert vault.restore(vault.create(settings), home, expect=1)["error"]
    assert not is_usable(vault, home)


def test_an_authority_whose_ceremony_was_not_finished(vault: Vault, settings: Settings) -> None:
    def unfinished(content: bytes) -> bytes:
        return content.replace(b'["ceremony","finished"]', b'["ceremony","started"]')

    home = vault.folder / "home"
    backup = vault.create(settings)
    wrong = vault.changed(backup, lambda members: [Member(name, unfinished(content)) for name, content in members])
    assert vault.restore(wrong, home, expect=1)["error"]
    assert not is_usable(vault, home)


def test_settings_that_lead_out_of_the_home(vault: Vault, settings: Settings) -> None:
    """Profiles go into the home, whatever the settings in a backup say."""
    outside = vault.folder / "outside"
    files = {
        "roots.pem": b"",
        "privyseal.toml": f'[issuance]\nprofiles_dir = "{outside}"\n'.encode(),
        "profiles/x.toml": b"",
    }
    members = vault.members(vault.create(settings))
    manifest = json.loads(members[-1].content)
    manifest["files"] = [
        {"name": name, "size": len(content), "sha256": sha256(content).hexdigest()} for name, content in files.items()
    ]
    wrong = vault.packed(
        [
            members[0],
            *(Member(f"files/{name}", content) for name, content in files.items()),
            *(member for member in members if member.name.startswith("tables/")),
            Member(MANIFEST, json.dumps(manifest).encode()),
        ]
    )
    home = vault.folder / "home"
    assert "outside of the home" in vault.restore(wrong, home, expect=1)["error"]
    assert not outside.exists()
    assert not is_usable(vault, home)


# Interrupted.


@pytest.fixture
def large(settings: Settings, vault: Vault) -> Path:
    """A backup of some hundred KiB, so that a part of it can be read without the rest."""
    query(
        settings.database_url,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000) "
        "INSERT INTO fact SELECT i, hex(randomblob(60)) FROM n",
    )
    return vault.create(settings, "large.age")


def test_tokens_that_somebody_put_there_stay(vault: Vault, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restore that broke off the keys were copied by hand: they are perhaps the last copy."""
    backup, home = vault.create(settings), vault.folder / "home"
    _end_at(monkeypatch, "_audit")
    with pytest.raises(_EndError):
        vault.restore(backup, home)
    monkeypatch.undo()
    (home / "tokens").mkdir()
    (home / "tokens" / "key").write_text("the only one")
    assert "tokens" in vault.restore(backup, home, expect=1)["error"]
    assert (home / "tokens" / "key").read_text() == "the only one"
    (home / "tokens").rename(vault.folder / "tokens")
    vault.restore(backup, home)
    assert is_usable(vault, home)


def test_killed_while_it_reads(vault: Vault, large: Path) -> None:
    home = vault.folder / "home"
    command = [PRIVYSEAL, "restore", "-", "--identity", vault.key, "--home", home]
    content = large.read_bytes()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=clean_environment()
    ) as process:
        assert process.stdin is not None
        process.stdin.write(content[: len(content) // 2])
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while not list(home.glob("privyseal.db*restoring")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert (home / MARK).exists()
    assert not (home / "privyseal.db").exists()
    assert not is_usable(vault, home)
    assert "error" in vault.json("init", "--home", home, expect=1)
    assert vault.restore(large, home)["rows"]["fact"] > 9000
    assert is_usable(vault, home)


class _EndError(BaseException):
    """The end of the process, as far as the disk knows of it."""


def _ends(*_: object) -> None:
    raise _EndError


@pytest.mark.parametrize("step", ["write_home", "_audit", "_finish", "_let_count", "_set_finished", "put_in_place"])
def test_ended_at_each_step(vault: Vault, settings: Settings, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backup, home = vault.create(settings), vault.folder / "home"
    _end_at(monkeypatch, step)
    with pytest.raises(_EndError):
        vault.restore(backup, home)
    monkeypatch.undo()
    assert not is_usable(vault, home)
    vault.restore(backup, home)
    assert is_usable(vault, home)
    assert rows_of(sqlite_of(home)).keys()


@pytest.mark.postgresql
@pytest.mark.parametrize("step", ["_finish", "write_home", "_set_finished"])
def test_ended_at_each_step_on_postgresql(
    vault: Vault, settings: Settings, step: str, monkeypatch: pytest.MonkeyPatch, postgresql: Postgresql
) -> None:
    before = rows_of(settings.database_url)
    backup, home, url = vault.create(settings), vault.folder / "home", postgresql.new_database()
    _end_at(monkeypatch, step)
    with pytest.raises(_EndError):
        vault.restore(backup, home, "--database", url)
    monkeypatch.undo()
    assert not is_usable(vault, home)
    vault.restore(backup, home, "--database", url)
    assert is_usable(vault, home)
    assert rows_of(url) == before


def _end_at(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    owner: Any = restoring if hasattr(restoring, step) else restoring.Restore
    monkeypatch.setattr(owner, step, _ends)


# The settings file.


@pytest.mark.parametrize(
    "text_",
    [
        "",
        "[server]\nhttps = '127.0.0.1:1'\n",
        "[database]\nurl = 'old' # here\nqueue = 16\n\n[server]\nurl = 'x'\n",
        "# c\n[database]\nqueue = 16\n[server]\nhttps = 'x'",
        "[server]\n[database]",
        "[database]   # note\n\nurl='a'",
    ],
)
def test_a_new_database_in_the_settings(text_: str) -> None:
    url = 'postgresql://a@b/c?d="\\'
    try:
        changed = with_database(text_, url)
    except BackupError:
        assert text_ == "[server]\n[database]"
        return
    expected = tomllib.loads(text_)
    expected["database"] = {**expected.get("database", {}), "url": url}
    assert tomllib.loads(changed) == expected


@pytest.mark.parametrize(
    "text_", ["database = {url = 'a'}\n", "database.url = 'a'\n", "[database]\nurl = '''\n'''\n", "no toml"]
)
def test_settings_that_a_person_has_to_change(text_: str) -> None:
    with pytest.raises(BackupError) as raised:
        with_database(text_, "sqlite:///x")
    assert "PRIVYSEAL_DATABASE__URL" in raised.value.hint
