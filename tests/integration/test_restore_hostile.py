"""What goes wrong around a restore at 03:00, by mistake or by intent: the revoked stay revoked all the same (promise P8)."""

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.error import HTTPError

import pytest

from fakes.restores import AccountKey, Drill, Story, covered, is_listed, numbers_of, says, serial_of
from fakes.status_client import eventually, get
from privyseal_acme.status_role import status_running
from privyseal_ca.errors import LedgerBehindError
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import size
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.recovery import catch_up
from privyseal_ca.recovery.facts import RESTORE_FACT
from privyseal_ca.recovery.kept_file import keep_checkpoint, kept_path


def query(drill: Drill, statement: str, *values: object) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(drill.database)) as connection:
        rows = connection.execute(statement, values).fetchall()
        connection.commit()
        return rows


def end_of(drill: Drill) -> int:
    ((end,),) = query(drill, "SELECT size FROM ledger_head")
    assert isinstance(end, int)
    return end


def unsettle(drill: Drill) -> None:
    """As `privyseal restore` leaves a database."""
    fact = json.dumps({"at": "2026-11-21T03:00:00Z", "by": "operator:test", "root": "", "size": end_of(drill)})
    query(drill, "INSERT INTO fact (name, value) VALUES (?, ?)", RESTORE_FACT, fact)


def note_in(database: Path) -> bytes:
    """The newest checkpoint in a database."""
    with closing(sqlite3.connect(database)) as connection:
        ((note,),) = connection.execute("SELECT note FROM ledger_checkpoint ORDER BY size DESC LIMIT 1").fetchall()
    return bytes(note)


def answered(url: str) -> tuple[int, bytes]:
    """Status and body."""
    try:
        return 200, get(url)[0]
    except HTTPError as error:
        return error.code, error.read()


def append(drill: Drill, kind: Kind, payload: dict[str, object]) -> None:
    """What somebody with the database can do: an entry that is well-formed."""
    entry = encode_entry(kind, time=drill.clock.now(), actor="operator:x", correlation="x", payload=payload)
    query(drill, "INSERT INTO ledger_entry VALUES (?, ?, ?)", end_of(drill), leaf_hash(entry), entry)
    query(drill, "UPDATE ledger_head SET size = size + 1")


# The service and the status role.


def test_a_token_that_is_away_is_no_way_round_the_guard(story: Story, tmp_path: Path) -> None:
    """The service cannot start without its token; what answers in its place must not answer from an older database."""
    drill = story.scene(tmp_path)

    async def answers() -> None:
        async with status_running(drill.settings, folder=None, clock=drill.clock, away={"token": "is away"}):
            pass

    with pytest.raises(LedgerBehindError, match="is behind"):
        asyncio.run(answers())


async def test_a_database_that_is_restored_under_a_status_role(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path)
    shutil.copyfile(story.end, drill.database)
    async with status_running(drill.settings, folder=None, clock=drill.clock) as role:
        url = f"http://127.0.0.1:{role.http_port}"

        def served() -> int:
            return answered(f"{url}/ledger/checkpoint")[0]

        assert await asyncio.to_thread(served) == 200
        unsettle(drill)
        await asyncio.to_thread(eventually, lambda: served() == 503)
        assert b"not settled" in (await asyncio.to_thread(answered, f"{url}/readyz"))[1]
        query(drill, "DELETE FROM fact WHERE name = ?", RESTORE_FACT)
        await asyncio.to_thread(eventually, lambda: served() == 200)


def put_back(drill: Drill, count: int) -> None:
    """What PostgreSQL looks like after a recovery to a point in time, to a service that has it open."""
    left = end_of(drill) - count
    query(drill, "DELETE FROM ledger_entry WHERE idx >= ?", left)
    query(drill, "DELETE FROM ledger_checkpoint WHERE size > ?", left)
    query(drill, "UPDATE ledger_head SET size = ?", left)


def test_a_database_that_is_put_back_under_the_service(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path, ledger={"outside": ()})
    shutil.copyfile(story.end, drill.database)
    with drill.serving() as service:
        drill.client(service, story.account).issue("before.test")
        newest = covered(service)
        service.call(service.service.keeper.keep())
        service.call(service.service.keeper.watch())
        put_back(drill, 12)
        eventually(service.service.lost.is_set, seconds=10)
        end = end_of(drill)
        with pytest.raises(LedgerBehindError, match="put back under the service"):
            service.write(size)
        service.call(service.service.keeper.keep())
    assert end_of(drill) == end
    assert f"\n{newest.size}\n" in kept_path(drill.settings).read_text()
    with pytest.raises(LedgerBehindError, match="newest-checkpoint"), drill.serving():
        pass


# Commands beside the guard.


def test_commands_do_not_go_on_from_a_database_that_was_put_back(story: Story, tmp_path: Path) -> None:
    """Nobody said `privyseal restore`: a file was copied, or PostgreSQL brought back. The home knows better."""
    drill = story.scene(tmp_path, ledger={"outside": ()})
    keep_checkpoint(kept_path(drill.settings), drill.checkpoint.read_bytes())
    before = end_of(drill)
    identity = drill.command("backup", "identity", tmp_path / "identity")
    for command in (
        ("cert", "revoke", serial_of(story.kept), "--yes"),
        ("eab", "create"),
        ("status", "publish", tmp_path / "another"),
    ):
        assert "is behind" in drill.command(*command, code=1)["error"], command
    made = drill.command("backup", "create", tmp_path / "a.age", "--recipient", identity["recipient"])
    assert made["recorded"] is None
    assert end_of(drill) == before
    assert not (tmp_path / "another").exists()
    # Looking is allowed.
    assert drill.command("cert", "show", serial_of(story.kept))["state"] == "valid"
    drill.settle("--entries", drill.folder)
    assert drill.command("cert", "revoke", serial_of(story.kept), "--yes")


# Settling.


def test_what_is_older_than_the_backup_shows_nothing(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path, ledger={"outside": ()})
    shutil.copyfile(story.end, drill.database)
    unsettle(drill)
    older = tmp_path / "older"
    older.write_bytes(note_in(story.backup))
    refused = drill.settle("--checkpoint", older, code=1)
    assert "older than the backup itself" in refused["error"]
    # That something may be lost is no reason to take entries for all that there were.
    (tmp_path / "entries").touch()
    refused = drill.settle("--accept-loss", "--entries", tmp_path / "entries", "--checkpoint", older, code=1)
    assert "older than the backup itself" in refused["error"]
    assert drill.settle("--checkpoint", drill.checkpoint)["settled"]


def test_a_place_that_may_know_more_is_not_passed_over(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path, ledger={"outside": ("http://127.0.0.1:9/mirror",)})
    shutil.copyfile(story.end, drill.database)
    keep_checkpoint(kept_path(drill.settings), drill.checkpoint.read_bytes())
    unsettle(drill)
    for more in ((), ("--accept-loss", "--yes", "--crl", "none")):
        refused = drill.settle(*more, code=1)
        assert "http://127.0.0.1:9/mirror" in refused["error"]
        assert "ledger.outside" in refused["hint"]
    assert drill.settle("--checkpoint", drill.checkpoint)["settled"]


def test_no_crl_number_comes_twice_though_the_newest_entries_are_known_to_nobody(story: Story, tmp_path: Path) -> None:
    """Between the newest checkpoint that is kept outside and the end of the machine CRLs were published as well."""
    drill = story.scene(tmp_path, ledger={"outside": ()})
    unsettle(drill)
    note = tmp_path / "note"
    note.write_bytes(note_in(story.backup))
    assert drill.settle("--checkpoint", note)["settled"]
    with drill.serving() as service:
        client = drill.client(service, story.account)
        assert client.revoke(story.kept.der).status == 200
        eventually(lambda: is_listed(service, story.kept.certificate))
        numbers = numbers_of(service, story.kept)
        renewed = {path for path, number in numbers.items() if number != story.before[path]}
        assert len(renewed) >= 2
        assert all(numbers[path] > story.numbers[path] for path in renewed)
    drill.command("ledger", "verify")


def test_revocations_that_no_checkpoint_covers_are_named(story: Story, tmp_path: Path) -> None:
    """An export is ahead of the checkpoints that are kept. Nothing proves its end, but a person may know that it is right."""
    drill = story.scene(tmp_path, ledger={"outside": ()})
    with closing(sqlite3.connect(story.end)) as connection:
        rows = connection.execute("SELECT idx, entry FROM ledger_entry ORDER BY idx").fetchall()
    lines = [json.dumps({"index": index, "entry": json.loads(entry)}) for index, entry in rows]
    nonsense = {"actor": "x", "correlation": "x", "kind": Kind.REVOKED, "payload": [], "time": "x", "v": 1}
    lines.append(json.dumps({"index": len(rows), "entry": nonsense}))
    file = tmp_path / "entries.jsonl"
    file.write_text("\n".join(lines) + "\n")
    note = tmp_path / "note"
    note.write_bytes(note_in(story.backup))
    unsettle(drill)
    settled = drill.settle("--entries", file, "--checkpoint", note)
    assert settled["unproved"] == len(lines) - settled["to_size"]
    assert serial_of(story.revoked_after) in settled["unproved_revocations"]
    assert any(serial_of(story.revoked_after) in each for each in settled["to_do"])


def test_a_full_disk_for_what_is_fetched(story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drill = story.scene(tmp_path)
    before = end_of(drill)
    full = Path("/dev/full")
    monkeypatch.setattr(catch_up, "TemporaryFile", lambda: full.open("r+b", buffering=0))
    refused = drill.settle("--entries", drill.folder, code=1)
    assert "No space left" in refused["error"]
    assert end_of(drill) == before
    monkeypatch.undo()
    assert drill.settle("--entries", drill.folder)["settled"]


def test_an_old_crl_is_no_evidence_of_what_was_lost(story: Story, tmp_path: Path) -> None:
    old = story.scene(tmp_path / "old")
    issuer = next(path for path in story.numbers if path.count("/") == 2).removeprefix("/crl/").removesuffix(".crl")
    old.command("crl", "show", issuer, "--out", tmp_path / "old.crl")
    drill = story.scene(tmp_path / "new", ledger={"outside": ()})
    shutil.copyfile(story.end, drill.database)
    unsettle(drill)
    loss = ("--accept-loss", "--yes", "--crl", "none", "--crl")
    refused = drill.settle(*loss, tmp_path / "old.crl", code=1)
    assert "older than" in refused["error"]
    assert drill.settle(*loss, drill.folder / "crl" / f"{issuer}.crl")["new_origin"]


def test_what_is_usable_again_after_a_loss_is_named(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path, ledger={"outside": ()})
    full = next(path for path in story.numbers if path.count("/") == 2)
    settled = drill.settle("--accept-loss", "--yes", "--crl", "none", "--crl", drill.folder / full[1:])
    told = " ".join(settled["to_do"])
    for what in ("privyseal account list", "privyseal eab list", "block", "privyseal issuer list"):
        assert what in told
    with drill.serving() as service:
        covered(service)
        # Nobody here knows that it was deactivated: that is why it has to be said.
        client = drill.client(service, AccountKey(story.deactivated.key, story.deactivated.url))
        assert client.post(client.directory["newOrder"], {"identifiers": []}).refusal != (401, "unauthorized")
        assert says(service, story.revoked_after.certificate) == "revoked"


# An attacker with the database.


def test_a_restore_that_never_was_explains_nothing(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path)
    shutil.copyfile(story.end, drill.database)
    query(drill, "UPDATE certificate SET der = x'' WHERE serial = ?", serial_of(story.kept))
    end = end_of(drill)
    with closing(sqlite3.connect(story.end)) as connection:
        assert connection.execute("SELECT size FROM ledger_head").fetchone() == (end,)
    intact = story.scene(tmp_path / "intact")
    shutil.copyfile(story.end, intact.database)
    root = intact.command("ledger", "verify")["root"]
    claim = {
        "accepted_loss": False, "accounts_ended": 0, "crls": 0, "evidence": [], "from_size": 0, "lost": 0, "missing": 0,
        "origin": None, "root": root, "to_size": end,
    }  # fmt: skip
    copy = tmp_path / "copy.db"
    shutil.copyfile(drill.database, copy)
    for changed, said in (
        ({}, "0 certificates were lost"),
        ({"root": "0" * 64, "lost": 1}, "what cannot be"),
        ({"to_size": end - 1, "lost": 1}, "what cannot be"),
    ):
        shutil.copyfile(copy, drill.database)
        append(drill, Kind.AUTHORITY_RESTORED, claim | changed)
        assert said in drill.command("ledger", "verify", code=1)["error"], changed
