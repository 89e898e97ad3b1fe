"""``privyseal backup``: made beside a service at work, of one moment, opened by others, and never of a damaged ledger."""

import asyncio
import gzip
import io
import json
import sqlite3
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from fakes.backups import Change, Vault, replaced
from fakes.home import MakeSettings
from fakes.postgresql import Postgresql, copy_to_postgresql
from fakes.process import PRIVYSEAL, clean_environment, run_command
from fakes.service import NewClient, StartService
from privyseal_ca.config import Settings
from privyseal_ca.errors import BackupError
from privyseal_ca.ledger.entries import Kind, decode_entry
from privyseal_ca.ledger.log import entries
from privyseal_ca.recovery.archive import Member
from privyseal_ca.recovery.backup import new_file
from privyseal_ca.recovery.contents import MANIFEST
from privyseal_ca.recovery.tables import decode_rows
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.dumping import DERIVED, Column, Table
from privyseal_ca.store.engine import Store


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


@pytest.fixture(scope="module")
def shared(settings_factory: MakeSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Vault, Path]:
    """A backup of an authority that has done nothing yet, and its vault."""
    vault = Vault(tmp_path_factory.mktemp("vault"))
    return vault, vault.create(settings_factory())


def last_entry(settings: Settings) -> tuple[int, dict[str, object]]:
    async def read() -> tuple[int, dict[str, object]]:
        store = Store(backend_for(settings.database_url, durable=True, timeout=5), queue=16)
        await store.open()
        try:
            newest = (await store.read(lambda tx: list(entries(tx))))[-1]
        finally:
            await store.close()
        return newest.index, decode_entry(newest.entry)

    return asyncio.run(read())


def query(settings: Settings, statement: str) -> None:
    with closing(sqlite3.connect(settings.database_url.removeprefix("sqlite:///"))) as connection:
        connection.execute(statement)
        connection.commit()


# Making one.


def test_what_it_holds_and_what_the_ledger_says_of_it(vault: Vault, make_settings: MakeSettings) -> None:
    settings = make_settings()
    path = vault.folder / "a.age"
    options = ("--recipient", vault.recipient, "--recipient", Vault(vault.folder).recipient)
    document = vault.json("backup", "create", path, *options, settings=settings)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == document["bytes"]
    assert sorted(each.name for each in vault.folder.iterdir()) == ["a.age"]
    assert document["files"] == ["roots.pem", "privyseal.toml"]
    assert document["rows"]["ledger_entry"] == document["size"]
    assert not DERIVED & document["rows"].keys()

    manifest = vault.members(path)[-1]
    assert manifest.name == MANIFEST
    assert sha256(manifest.content).hexdigest() == document["manifest_sha256"]
    index, entry = last_entry(settings)
    assert index == document["recorded"] == document["size"]
    assert entry["kind"] == Kind.BACKUP_MADE
    assert entry["payload"] == {
        "manifest_sha256": document["manifest_sha256"],
        "recipients": [sha256(text.encode()).hexdigest() for text in document["recipients"]],
        "root_sha256": document["root"],
        "size": document["size"],
        "tokens": False,
    }
    assert vault.run("ledger", "verify", settings=settings).output.endswith("ok\n")

    verified = vault.json("backup", "verify", path, "--identity", vault.key)
    assert {**document, **verified} == document | {"verified": True}


def test_other_programs_open_it(shared: tuple[Vault, Path], tmp_path: Path) -> None:
    """age, gzip and tar, and whoever knows JSON."""
    vault, backup = shared
    plain = subprocess.run(["age", "-d", "-i", vault.key, backup], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-xzf", "-", "-C", tmp_path], input=plain, check=True)
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    for table in manifest["tables"]:
        parts = sorted((tmp_path / "tables" / table["name"]).iterdir())
        content = b"".join(part.read_bytes() for part in parts)
        assert sha256(content).hexdigest() == table["sha256"]
        assert len(content.splitlines()) == table["rows"] + 1
    assert (tmp_path / "files" / "privyseal.toml").exists()


def test_a_recipient_of_age_and_its_identity(vault: Vault, make_settings: MakeSettings) -> None:
    key = vault.folder / "age.txt"
    subprocess.run(["age-keygen", "-o", key], check=True, capture_output=True)
    public = subprocess.run(["age-keygen", "-y", key], check=True, capture_output=True, text=True).stdout
    recipients = vault.folder / "recipients"
    recipients.write_text(f"# who may open it\n\n{public}{vault.recipient}\n")
    backup = vault.folder / "b.age"
    vault.run("backup", "create", backup, "--recipient", f"@{recipients}", settings=make_settings())
    for identity in (key, vault.key):
        assert vault.json("backup", "verify", backup, "--identity", identity)["verified"] is True


def test_an_identity_is_made_and_never_overwritten(vault: Vault, make_settings: MakeSettings) -> None:
    made = vault.folder / "identity"
    recipient = vault.run("backup", "identity", made).stdout.strip()
    assert made.stat().st_mode & 0o777 == 0o600
    assert "there already" in vault.json("backup", "identity", made, expect=1)["error"]
    backup = vault.folder / "b.age"
    vault.run("backup", "create", backup, "--recipient", recipient, "--no-settings", settings=make_settings())
    document = vault.json("backup", "verify", backup, "--identity", made)
    assert document["files"] == ["roots.pem"]
    made.chmod(0o644)
    assert "chmod 600" in vault.json("backup", "verify", backup, "--identity", made, expect=1)["hint"]


def test_through_pipes(vault: Vault, make_settings: MakeSettings) -> None:
    settings = make_settings()
    done = vault.run("backup", "create", "-", "--recipient", vault.recipient, "--json", settings=settings)
    # What people are told goes to the other stream: this one is the backup.
    document = json.loads(done.stderr[done.stderr.index("{") :])
    assert document["file"] is None
    assert document["bytes"] == len(done.stdout_bytes)
    verified = vault.run("backup", "verify", "-", "--identity", vault.key, given=done.stdout_bytes)
    assert verified.stdout.startswith("verified")


def test_beside_a_service_at_work(vault: Vault, start_service: StartService, new_client: NewClient) -> None:
    """Each is of one moment and passes the audit, whatever is issued and revoked meanwhile; and nobody waits for it."""
    service = start_service()
    client = new_client(service)
    first = client.issue("one.backup.test")
    backups = []
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(lambda: [client.revoke(client.issue(f"n{n}.backup.test").der) for n in range(12)])
        while not work.done():
            backups.append(vault.create(service.settings, f"{len(backups)}.age"))
        assert all(answer.status == 200 for answer in work.result())
    assert len(backups) > 1

    def document(*arguments: str | Path) -> dict[str, Any]:
        # Processes of their own: the service here writes its log to this one's standard output.
        document: dict[str, Any] = json.loads(run_command(PRIVYSEAL, *arguments, "--json").stdout)
        return document

    first_size = document("backup", "verify", backups[0], "--identity", vault.key)["size"]
    home = vault.folder / "home"
    restored = document("restore", backups[-1], "--identity", vault.key, "--home", home)
    assert restored["size"] > first_size
    assert restored["rows"]["certificate"] >= 1
    serial = f"{first.certificate.serial_number:032x}"
    assert document("cert", "show", serial, "--home", home)["serial"] == serial


def test_a_slow_reader_holds_nobody_up(vault: Vault, make_settings: MakeSettings) -> None:
    """The snapshot stays as it was as long as the backup takes, and others write all the while."""
    settings = make_settings()
    environment = clean_environment(PRIVYSEAL_HOME=str(settings.home), PRIVYSEAL_DATABASE__URL=settings.database_url)
    query(
        settings,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000) "
        "INSERT INTO blocked_key SELECT randomblob(32), hex(randomblob(40)), i FROM n",
    )
    command = [PRIVYSEAL, "backup", "create", "-", "--recipient", vault.recipient, "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        head = process.stdout.read(1000)
        query(settings, "INSERT INTO fact VALUES ('afterwards', 'x')")
        backup = vault.folder / "slow.age"
        backup.write_bytes(head + process.stdout.read())
        told = process.stderr.read()
        assert process.wait(30) == 0
    document = json.loads(told[told.index(b"{") :])
    facts = [member for member in vault.members(backup) if member.name.startswith("tables/fact/")]
    assert b'"ceremony"' in facts[0].content
    assert b"afterwards" not in facts[0].content
    assert document["rows"]["blocked_key"] == 9000


@pytest.mark.postgresql
def test_of_postgresql(vault: Vault, make_settings: MakeSettings, postgresql: Postgresql) -> None:
    url = copy_to_postgresql(make_settings().database_url, postgresql)
    settings = make_settings(database={"url": url})
    backup = vault.create(settings)
    assert vault.json("backup", "verify", backup, "--identity", vault.key)["rows"]["issuer"] == 2


# What is refused.


def test_what_stands_in_the_way(vault: Vault, make_settings: MakeSettings) -> None:
    settings = make_settings()
    taken = vault.folder / "taken"
    taken.write_text("mine")
    link = vault.folder / "link"
    link.symlink_to(vault.folder / "elsewhere")
    part = vault.folder / "c.age.part"
    part.symlink_to(taken)
    for path in (taken, link, vault.folder / "none" / "b.age", vault.folder / "c.age"):
        arguments = ("backup", "create", path, "--recipient", vault.recipient)
        assert path.name in vault.json(*arguments, settings=settings, expect=1)["error"]
    assert taken.read_text() == "mine"
    assert not (vault.folder / "elsewhere").exists()
    part.unlink()
    part.write_text("of an interrupted one")
    vault.create(settings, "c.age")
    assert not part.exists()


def test_a_backup_that_has_just_been_finished_is_not_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one gives the file its name between the moment in which it is opened here and that in which it is locked."""
    path, part = tmp_path / "a.age", tmp_path / "a.age.part"

    def finished(*_: int) -> None:
        path.hardlink_to(part)
        part.unlink()
        path.write_text("theirs")

    monkeypatch.setattr("privyseal_ca.recovery.backup.fcntl.flock", finished)
    with pytest.raises(BackupError, match="has written"), new_file(path):
        pass
    assert path.read_text() == "theirs"


@pytest.mark.parametrize(
    "recipient", ["age1nonsense", "", "AGE-SECRET-KEY-1QQ", "ssh-ed25519 AAAA", "@/nonexistent", "@/dev/null"]
)
def test_recipients_that_are_none(vault: Vault, make_settings: MakeSettings, recipient: str) -> None:
    arguments = ("backup", "create", vault.folder / "a.age", "--recipient", recipient)
    error = vault.json(*arguments, settings=make_settings(), expect=1)
    assert error["hint"]
    assert "SECRET" not in error["error"]
    assert list(vault.folder.iterdir()) == []


def test_tokens_that_are_elsewhere(vault: Vault, make_settings: MakeSettings) -> None:
    """The tests' tokens are not in the home, as an HSM is not."""
    arguments = ("backup", "create", vault.folder / "a.age", "--recipient", vault.recipient, "--with-tokens")
    assert "HSM" in vault.json(*arguments, settings=make_settings(), expect=1)["error"]
    assert list(vault.folder.iterdir()) == []


def test_where_there_is_no_authority(vault: Vault) -> None:
    arguments = ("backup", "create", vault.folder / "a.age", "--recipient", vault.recipient)
    assert "no authority" in vault.json(*arguments, expect=1)["error"]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE ledger_entry SET entry = replace(entry, 'key', 'kex') WHERE idx = 3",
        "UPDATE ledger_entry SET leaf_hash = zeroblob(32) WHERE idx = 5",
        "DELETE FROM ledger_entry WHERE idx = 4",
        "UPDATE ledger_head SET size = size + 1",
        "INSERT INTO ledger_checkpoint VALUES (3, zeroblob(32), CAST('no note' AS BLOB), 1)",
        "UPDATE fact SET value = CAST(x'ff' AS TEXT) WHERE name = 'ceremony'",
        "UPDATE issuer SET csr = 'text'",
    ],
)
def test_a_damaged_database_is_not_backed_up(vault: Vault, make_settings: MakeSettings, damage: str) -> None:
    settings = make_settings()
    query(settings, damage)
    arguments = ("backup", "create", vault.folder / "a.age", "--recipient", vault.recipient)
    error = vault.json(*arguments, settings=settings, expect=1)
    assert error["error"]
    assert list(vault.folder.iterdir()) == []


def test_a_full_disk(vault: Vault, make_settings: MakeSettings) -> None:
    arguments = [PRIVYSEAL, "backup", "create", "-", "--recipient", vault.recipient, "--json"]
    settings = make_settings()
    environment = clean_environment(PRIVYSEAL_HOME=str(settings.home), PRIVYSEAL_DATABASE__URL=settings.database_url)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(arguments, env=environment, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode != 0
    assert last_entry(settings)[1]["kind"] != Kind.BACKUP_MADE


def test_a_database_that_cannot_be_written_is_backed_up(vault: Vault, make_settings: MakeSettings) -> None:
    """That may be why somebody wants a backup."""
    settings = make_settings()
    query(settings, "CREATE TRIGGER full BEFORE INSERT ON ledger_entry BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    document = vault.json("backup", "create", vault.folder / "a.age", "--recipient", vault.recipient, settings=settings)
    assert document["recorded"] is None
    assert vault.json("backup", "verify", vault.folder / "a.age", "--identity", vault.key)["verified"] is True


# Verifying.


def test_the_right_backup_and_no_other(shared: tuple[Vault, Path]) -> None:
    vault, backup = shared
    digest = vault.json("backup", "verify", backup, "--identity", vault.key)["manifest_sha256"]
    arguments = ("backup", "verify", backup, "--identity", vault.key)
    vault.run(*arguments, "--manifest", digest)
    assert digest in vault.json(*arguments, "--manifest", "0" * 64, expect=1)["error"]
    vault.run(*arguments, "--manifest", "nonsense", expect=2)
    other = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert "whose key" in vault.json(*arguments, "--vkey", other, expect=1)["error"]


def test_another_identity(shared: tuple[Vault, Path], vault: Vault) -> None:
    assert "identity" in vault.json("backup", "verify", shared[1], "--identity", vault.key, expect=1)["error"]
    for content in ("", "# nothing\n", "AGE-SECRET-KEY-1NONSENSE\n", "\xff", "x" * 100_000):
        key = vault.folder / "other"
        key.touch(mode=0o600)
        key.write_bytes(content.encode("latin-1"))
        error = vault.json("backup", "verify", shared[1], "--identity", key, expect=1)
        assert "NONSENSE" not in str(error)


def test_every_flipped_or_missing_octet_is_found(shared: tuple[Vault, Path], tmp_path: Path) -> None:
    vault, backup = shared
    content = backup.read_bytes()
    wrong = tmp_path / "wrong.age"
    places = [0, 30, 100, 200, 230, *range(300, len(content), len(content) // 20), len(content) - 1]
    for place in places:
        for damaged in (content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :], content[:place]):
            wrong.write_bytes(damaged)
            assert "error" in vault.json("backup", "verify", wrong, "--identity", vault.key, expect=1), place
    wrong.write_bytes(content + b"\0")
    assert "error" in vault.json("backup", "verify", wrong, "--identity", vault.key, expect=1)


@pytest.mark.parametrize(
    "content", [b'["",""]\n' * (1 << 17), b"\n" * (1 << 20), b'["","' + b"x" * (5 << 20) + b'"]\n']
)
def test_rows_that_would_take_much_memory(content: bytes) -> None:
    with pytest.raises(BackupError, match="in one piece"):
        decode_rows(Table("fact", (Column("name", "text"), Column("value", "text"))), content)


def _table(members: list[Member], name: str) -> int:
    return next(number for number, member in enumerate(members) if member.name.startswith(f"tables/{name}/"))


def _swap(members: list[Member]) -> list[Member]:
    one, other = _table(members, "fact"), _table(members, "issuer")
    members[one], members[other] = members[other], members[one]
    return members


def _without(name: str) -> Change:
    return lambda members: [member for member in members if not member.name.startswith(name)]


def _with(*more: Member, at: int = 1) -> Change:
    return lambda members: [*members[:at], *more, *members[at:]]


def _edited(name: str, old: bytes, new: bytes) -> Change:
    def edit(content: bytes) -> bytes:
        assert old in content, (name, old)
        return content.replace(old, new, 1)

    return lambda members: replaced(members, name, edit)


_FACTS = "tables/fact/00000001.jsonl"


@pytest.mark.parametrize(
    "change",
    [
        _swap,
        _without("tables/fact/"),
        _without("tables/ledger_entry/"),
        _without("head.json"),
        _without("manifest.json"),
        _without("files/roots.pem"),
        lambda members: members[:-2],
        lambda members: [*members, members[-1]],
        lambda members: [*members[:-1], members[-2], members[-1]],
        lambda members: members[1:],
        lambda _: [],
        _edited(_FACTS, b'"finished"', b'"finishes"'),
        _edited(_FACTS, b'"text"', b'"bytes"'),
        _edited(_FACTS, b'["', b'[1,"'),
        _edited(_FACTS, b'"finished"', b"1"),
        _edited(_FACTS, b'"finished"]\n', b'"finished"'),
        _edited("files/privyseal.toml", b"[server]", b"[servez]"),
        _edited("tables/ledger_entry/00000001.jsonl", b"[3,", b"[4,"),
        _edited("tables/issuer/00000001.jsonl", b"root", b"roof"),
        _edited("head.json", b"privyseal-backup/1", b"privyseal-backup/2"),
        _edited("head.json", b'"revision":', b'"revisiom":'),
        _edited("head.json", b'"tokens": false', b'"tokens": true'),
        _edited("manifest.json", b'"rows":', b'"rowz":'),
        _edited("manifest.json", b'"size": ', b'"size": 1'),
        _with(Member("files/profiles/../../../tmp/x.toml", b"")),
        _with(Member("files/secrets/pin", b"1234")),
        _with(Member("files//etc/passwd", b"")),
        _with(Member("files/tokens/../x", b"")),
        _with(Member("files/tokens/a/b/c", b"")),
        _with(Member("files/roots.pem", b"")),
        _with(Member("tables/unknown/00000001.jsonl", b"")),
        _with(Member("tables/fact/00000002.jsonl", b"")),
        _with(Member("anything", b"")),
    ],
)
def test_what_is_put_together_otherwise(shared: tuple[Vault, Path], change: Change, tmp_path: Path) -> None:
    """Anybody can encrypt to a recipient: what comes out is compared all the same."""
    vault, backup = shared
    wrong = Vault(tmp_path, vault.identity).changed(backup, change)
    document = vault.json("backup", "verify", wrong, "--identity", vault.key, expect=1)
    assert document["error"]
    assert document["hint"]


def _tar(*members: tarfile.TarInfo) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.GNU_FORMAT) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(min(member.size, 1000))) if member.isreg() else None)
    return packed.getvalue()


def _info(name: str, kind: bytes = tarfile.REGTYPE, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        _tar(_info("files/roots.pem", tarfile.SYMTYPE, linkname="/etc/passwd")),
        _tar(_info("head.json", tarfile.LNKTYPE, linkname="head.json")),
        _tar(_info("tables", tarfile.DIRTYPE)),
        _tar(_info("x" * 500)),
        gzip.compress(_info("head.json", size=1 << 40).tobuf(tarfile.GNU_FORMAT)),
        gzip.compress(_info("head.json", size=17 << 20).tobuf() + bytes(1 << 20)),
        gzip.compress(b"\xff" * 4096),
        gzip.compress(bytes(64 << 20)),
        _tar(_info("head.json"))[:-20],
    ],
    ids=["empty", "plain", "symlink", "link", "folder", "longname", "huge", "large", "noise", "zeros", "cut"],
)
def test_archives_that_are_none_of_ours(vault: Vault, content: bytes) -> None:
    wrong = vault.sealed(content)
    assert vault.json("backup", "verify", wrong, "--identity", vault.key, expect=1)["error"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"SQLite format 3\0" + bytes(1000),
        b"age-encryption.org/v1\n",
        b"age-encryption.org/v1\n-> X25519 aaaa\n" + (b"A" * 64 + b"\n") * 100_000,
        b"age-encryption.org/v1\n--- " + b"A" * 5_000_000,
        b"age-encryption.org/v1\n-> scrypt c29tZXNhbHQ 40\nAAAA\n--- AAAA\n" + bytes(100),
    ],
    ids=["empty", "other", "short", "flood", "line", "scrypt"],
)
def test_headers_that_are_none(vault: Vault, content: bytes) -> None:
    wrong = vault.folder / "wrong.age"
    wrong.write_bytes(content)
    assert vault.json("backup", "verify", wrong, "--identity", vault.key, expect=1)["error"]
