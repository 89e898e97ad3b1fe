"""The drill: back up, issue and revoke more, destroy, restore. The revoked stay revoked (promise P8)."""

import asyncio
import json
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import DER_cert_to_PEM_cert

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from fakes.acme_client import JwsKey
from fakes.killing import killed_command
from fakes.postgresql import Postgresql, copy_to_postgresql
from fakes.restores import Drill, Story, covered, is_listed, numbers_of, says, serial_of
from fakes.status_client import eventually
from privyseal_acme.status_role import status_running
from privyseal_ca.errors import LedgerBehindError, LedgerError
from privyseal_ca.recovery.kept_file import keep_checkpoint, kept_path


def entries_in(drill: Drill) -> list[bytes]:
    """The entries in the database."""
    with closing(sqlite3.connect(drill.database)) as connection:
        return [row[0] for row in connection.execute("SELECT entry FROM ledger_entry ORDER BY idx")]


@contextmanager
def unchanged(drill: Drill) -> Iterator[None]:
    """Fails when anything was appended."""
    before = entries_in(drill)
    yield
    assert entries_in(drill) == before


@contextmanager
def over_http(folder: Path) -> Iterator[str]:
    """A folder behind a web server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def export(database: Path, file: Path) -> Path:
    """What `privyseal ledger export` writes, with an entry twice and the last line cut off."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT idx, leaf_hash, entry FROM ledger_entry ORDER BY idx").fetchall()
    lines = [
        json.dumps({"index": index, "leaf_hash": leaf.hex(), "entry": json.loads(entry)}) + "\n"
        for index, leaf, entry in rows
    ]
    file.write_text("".join([*lines[:-1], lines[-2], lines[-1], lines[-1][:20]]))
    return file


def described(kind: str) -> set[str]:
    """The members that the documentation has for a kind."""
    page = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(\w+)` \|", page.partition(f"\n### `{kind}`\n")[2].partition("\n#")[0], re.MULTILINE))


def refuses(drill: Drill, match: str) -> LedgerError:
    """The service does not start, and says why."""
    with pytest.raises(LedgerError, match=match) as refused, drill.serving():
        pass
    return refused.value


def outside_of(drill: Drill) -> dict[str, str]:
    """What the doctor finds of it."""
    found: dict[str, str] = next(each for each in drill.doctor() if each["what"] == "outside")
    return found


def everything_holds(drill: Drill, story: Story) -> None:
    """The service starts; the revoked are revoked, the others are not, and everything goes on."""
    with drill.serving() as service:
        for issued in (story.revoked_before, story.revoked_after, story.lost_revoked):
            eventually(lambda issued=issued: is_listed(service, issued.certificate))  # type: ignore[misc]
            assert says(service, issued.certificate) == "revoked"
        for issued in (story.kept, story.lost):
            assert says(service, issued.certificate) == "good"
            assert not is_listed(service, issued.certificate)
        numbers = numbers_of(service, story.kept)
        for path, number in story.numbers.items():
            # A list that was published after the backup is not published again under its number.
            assert numbers[path] > number or story.before[path] == number, path
        client = drill.client(service, story.account)
        assert client.issue("on.test").certificate
        assert client.revoke(story.kept.der).status == 200
        eventually(lambda: is_listed(service, story.kept.certificate))
        assert covered(service).size > story.outside.size


def test_the_revoked_stay_revoked(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path)
    with unchanged(drill):
        error = refuses(drill, "The database is behind")
    assert isinstance(error, LedgerBehindError)
    assert f"a checkpoint of {story.outside.size}" in error.message
    assert "privyseal recovery settle --entries" in error.hint
    assert "The database is behind" in outside_of(drill)["message"]
    known = drill.command("recovery", "status", code=1)
    assert (known["ok"], known["newest_outside"]) == (False, story.outside.size)

    settled = drill.settle("--entries", drill.folder, "--checkpoint", drill.checkpoint)
    assert (settled["to_size"], settled["root"]) == (story.outside.size, story.outside.root.hex())
    assert settled["accounts_lost"] == 1
    assert len(settled["accounts_ended"]) == 1
    assert drill.command("recovery", "status")["ok"]
    assert outside_of(drill)["level"] == "ok"
    verified = drill.command("ledger", "verify", "--since", drill.checkpoint)
    assert verified["lost"] == settled["lost"] >= 2
    assert not drill.settle("--entries", drill.folder, "--checkpoint", drill.checkpoint)["settled"]

    everything_holds(drill, story)
    drill.publish()
    drill.command("ledger", "verify", "--since", drill.checkpoint)
    entry = json.loads(entries_in(drill)[story.outside.size])
    assert entry["kind"] == "authority.restored"
    assert entry["payload"]["from_size"] == settled["from_size"]
    assert entry["payload"].keys() == described("authority.restored")


def test_whoever_was_shut_out_stays_out(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path)
    drill.settle("--entries", drill.folder)
    with drill.serving() as service:
        for account in (story.deactivated, story.rekeyed):
            client = drill.client(service, account)
            assert client.post(client.directory["newOrder"], {"identifiers": []}).refusal == (401, "unauthorized")
        # The key that the account was given is nobody's now.
        again = drill.client(service, story.rekeyed._replace(key=JwsKey()))
        again.account = None
        again.key = story.new_key
        assert again.new_account().status == 201
        listed = {key["kid"]: key for key in drill.command("eab", "list")}
        assert listed[story.eab]["revoked"]
        # Its order had its certificate: it does not get another.
        client = drill.client(service, story.account)
        order = client.post(story.lost.url)
        assert order.json["status"] == "invalid"
        assert "restore" in order.json["error"]["detail"]


def test_a_lost_certificate_is_adopted(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path)
    drill.settle("--entries", drill.folder)
    serial = serial_of(story.lost)
    shown = drill.command("cert", "show", serial)
    assert (shown["lost"], shown["state"], shown["pem"]) == (True, "valid", None)
    assert shown["names"] == ["dns:lost.test"]
    lost = drill.command("ledger", "verify")["lost"]
    file = tmp_path / "lost.pem"
    with drill.serving() as service:
        client = drill.client(service, story.account)
        answer = client.post(f"{story.lost.order.json['certificate']}")
        assert answer.refusal == (404, "malformed")
        assert "order it anew" in answer.json["detail"]
        assert client.revoke(story.kept.der[:-1] + b"x").status == 404
        assert client.revoke(story.lost.der).status == 200
        eventually(lambda: is_listed(service, story.lost.certificate))
        assert says(service, story.lost.certificate) == "revoked"
        assert client.download(story.lost.order.json["certificate"])[0] == story.lost.certificate
    for issued, adopted in ((story.lost, False), (story.lost_revoked, True)):
        file.write_text(DER_cert_to_PEM_cert(issued.der))
        assert drill.command("cert", "adopt", file) == [{"serial": serial_of(issued), "adopted": adopted}]
    assert drill.command("cert", "show", file)["lost"] is False
    file.write_text(DER_cert_to_PEM_cert(story.lost_revoked.chain[1].public_bytes(Encoding.DER)))
    assert "was issued here" in drill.command("cert", "adopt", file, code=1)["error"]
    # New certificates of the service's own came meanwhile, and none of them is lost.
    assert drill.command("ledger", "verify")["lost"] == lost - 2


def test_a_certificate_that_somebody_removed_is_found(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path)
    drill.settle("--entries", drill.folder)
    with closing(sqlite3.connect(drill.database)) as connection:
        connection.execute("UPDATE certificate SET der = x'' WHERE serial = ?", (serial_of(story.kept),))
        connection.commit()
    assert "no restore brought the entry back" in drill.command("ledger", "verify", code=1)["error"]


def test_without_entries_nothing_goes_on(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path)
    with unchanged(drill):
        refused = drill.settle("--checkpoint", drill.checkpoint, code=1)
        assert "The database is behind" in refused["error"]
        shutil.rmtree(drill.folder / "ledger" / "tile" / "entries")
        refused = drill.settle("--entries", drill.folder, code=1)
        assert "does not have tile/entries" in refused["error"]
        assert "--crl" in drill.settle("--accept-loss", "--yes", code=1)["hint"]
    refuses(drill, "not settled")


def test_another_key_or_another_log_counts_for_nothing(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path, ledger={"outside": ()})
    vkey = drill.vkey
    name = vkey.partition("+")[0]
    other = f"{name}+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    with unchanged(drill):
        for wrong in (other, vkey[:-4] + "AAA="):
            drill.settle("--entries", drill.folder, "--checkpoint", drill.checkpoint, "--vkey", wrong, code=1)
        forged = tmp_path / "forged"
        forged.write_bytes(drill.checkpoint.read_bytes().replace(str(story.outside.size).encode(), b"9999", 1))
        refused = drill.settle("--entries", drill.folder, "--checkpoint", forged, code=1)
        assert "no checkpoint of this ledger" in refused["error"]
        forged.write_bytes(b"another/log\n" + drill.checkpoint.read_bytes().partition(b"\n")[2])
        assert "no checkpoint of this ledger" in drill.settle("--checkpoint", forged, code=1)["error"]
        assert "cannot be read" in drill.settle("--checkpoint", tmp_path / "nothing", code=1)["error"]


def test_a_fork_is_named_and_nothing_is_appended(story: Story, tmp_path: Path) -> None:
    # Nobody told the service where to look, and it went on from the backup.
    drill = story.scene(tmp_path, ledger={"outside": ()})
    with drill.serving() as service:
        drill.client(service, story.account).issue("forked.test")
        covered(service)
    with unchanged(drill):
        refused = drill.settle("--entries", drill.folder, "--checkpoint", drill.checkpoint, code=1)
    assert "another ledger" in refused["error"] or "do not lead to the checkpoint" in refused["error"]
    with closing(sqlite3.connect(story.backup)) as connection:
        (backed_up,) = connection.execute("SELECT size FROM ledger_head").fetchone()
    assert f"is {backed_up}." in refused["error"]
    assert str(drill.folder) in refused["error"]
    assert "Nothing was appended" in refused["hint"]


def test_entries_that_were_changed_are_not_taken(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path, ledger={"outside": ()})
    file = export(story.end, tmp_path / "entries.jsonl")
    whole = file.read_text()
    with unchanged(drill):
        for wrong, said in (
            (whole.replace('"reason": 4', '"reason": 0'), "do not lead to the checkpoint"),
            (whole.replace("certificate.revoked", "certificate.blessed"), "of a kind that this program does not know"),
            ("".join(whole.splitlines(keepends=True)[:-3]), "does not have entry"),
            (whole.replace("\n", "\nnonsense\n", 1), "no entry of a ledger"),
        ):
            file.write_text(wrong)
            refused = drill.settle("--entries", file, "--checkpoint", drill.checkpoint, code=1)
            assert said in refused["error"]


def test_entries_from_an_export(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path)
    file = export(story.end, tmp_path / "entries.jsonl")
    settled = drill.settle("--entries", file, "--checkpoint", drill.checkpoint)
    assert settled["to_size"] == story.outside.size
    drill.command("ledger", "verify", "--since", drill.checkpoint)


def test_entries_and_checkpoint_over_http(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path, ledger={"outside": ()})
    with over_http(drill.folder) as url:
        settled = drill.settle("--entries", url, "--checkpoint", f"{url}/ledger/checkpoint")
        assert settled["to_size"] == story.outside.size
        outside = drill.settings.ledger.model_copy(update={"outside": (url, "http://127.0.0.1:9/nobody")})
        drill.settings = drill.settings.model_copy(update={"ledger": outside})
        known = drill.command("recovery", "status")
    assert known["newest_outside"] == story.outside.size
    assert [each["place"] for each in known["silent"]] == ["http://127.0.0.1:9/nobody"]


def test_killed_half_way(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path)
    begun = len(entries_in(drill))
    killed_command(drill, ["recovery", "settle", "--entries", str(drill.folder)], at="catch_up._append_batch", call=2)
    half = len(entries_in(drill))
    assert begun < half < story.outside.size
    refuses(drill, "not settled")
    for command in (("cert", "revoke", serial_of(story.kept), "--yes"), ("status", "publish", tmp_path / "another")):
        assert "not settled" in drill.command(*command, code=1)["error"]
    assert "not settled" in outside_of(drill)["message"]
    assert "no restore brought" in drill.command("ledger", "verify", code=1)["error"]
    assert len(entries_in(drill)) == half

    settled = drill.settle("--entries", drill.folder)
    assert (settled["from_size"], settled["to_size"]) == (begun, story.outside.size)
    drill.command("ledger", "verify", "--since", drill.checkpoint)
    everything_holds(drill, story)


def test_accepted_loss_begins_another_log(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path)
    crls = [part for path in story.numbers for part in ("--crl", drill.folder / path[1:])]
    with unchanged(drill):
        refused = drill.settle("--accept-loss", "--yes", "--crl", tmp_path / "nothing.crl", code=1)
        assert "cannot be read" in refused["error"]
    settled = drill.settle("--accept-loss", "--yes", *crls, "--crl", "none")
    assert settled["new_origin"] == f"{story.outside.origin}/2"
    assert settled["missing"] == story.outside.size - settled["from_size"]
    assert settled["imported"] >= 2
    verified = drill.command("ledger", "verify")
    assert verified["revoked"] >= 3
    restored = [entry for entry in map(json.loads, entries_in(drill)) if entry["kind"] == "revocation.restored"]
    assert {entry["payload"]["serial"] for entry in restored} >= {
        serial_of(story.revoked_after),
        serial_of(story.lost_revoked),
    }
    assert all(entry["payload"].keys() == described("revocation.restored") for entry in restored)
    assert (
        "of the log"
        in drill.command("ledger", "verify", "--since", drill.checkpoint, "--vkey", drill.vkey, code=1)["error"]
    )

    with drill.serving() as service:
        for issued in (story.revoked_before, story.revoked_after, story.lost_revoked):
            eventually(lambda issued=issued: is_listed(service, issued.certificate))  # type: ignore[misc]
            assert says(service, issued.certificate) == "revoked"
        assert says(service, story.lost.certificate) in {"unknown", "unauthorized"}
        numbers = numbers_of(service, story.kept)
        assert all(numbers[path] > number for path, number in story.numbers.items())
        assert drill.client(service, story.account).issue("on.test").certificate
        assert covered(service).origin == settled["new_origin"]
    drill.command("ledger", "verify")
    # The former log's folder is evidence, and is not written over.
    assert "verification key" in drill.command("status", "publish", drill.folder, code=1)["error"]


def test_killed_while_another_log_begins(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path)
    crls = [part for path in story.numbers for part in ("--crl", str(drill.folder / path[1:]))]
    killed_command(drill, ["recovery", "settle", "--accept-loss", *crls, "--crl", "none"], at="new_log.withdraw_crl")
    refuses(drill, "not settled")
    assert "--accept-loss" in drill.settle("--entries", drill.folder, code=1)["hint"]
    settled = drill.settle("--accept-loss", *crls, "--crl", "none")
    assert settled["new_origin"] == f"{story.outside.origin}/2"
    assert settled["missing"]
    drill.command("ledger", "verify")
    with drill.serving() as service:
        for issued in (story.revoked_before, story.revoked_after, story.lost_revoked):
            eventually(lambda issued=issued: is_listed(service, issued.certificate))  # type: ignore[misc]


def test_entries_behind_a_token(story: Story, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 32)
    token.chmod(0o600)
    ledger = {"entries": "token", "entries_token_file": str(token), "outside": ()}
    mirror = story.scene(tmp_path / "mirror", ledger=ledger)
    shutil.copyfile(story.end, mirror.database)
    drill = story.scene(tmp_path / "restored", ledger={"outside": ()})
    with mirror.serving() as service:
        covered(service)
        with unchanged(drill):
            assert "401" in drill.settle("--entries", service.status, code=1)["error"]
        settled = drill.settle("--entries", service.status, "--token-file", token)
    assert settled["to_size"] > story.outside.size
    drill.command("ledger", "verify", "--since", drill.checkpoint)


def test_a_crl_shows_that_the_database_is_behind(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path, ledger={"outside": ()})
    for path in story.numbers:
        if story.numbers[path] != story.before[path]:
            with unchanged(drill):
                refused = drill.settle("--crl", drill.folder / path[1:], code=1)
            assert "the highest that the database knows" in refused["error"]
    crl = next(path for path in story.numbers if path.count("/") == 2)
    broken = bytearray((drill.folder / crl[1:]).read_bytes())
    broken[-20] ^= 1
    (tmp_path / "broken.crl").write_bytes(broken)
    assert "No CA of this database" in drill.settle("--crl", tmp_path / "broken.crl", code=1)["error"]
    settled = drill.settle("--entries", drill.folder, "--crl", drill.folder / crl[1:])
    assert settled["to_size"] == story.outside.size


def test_the_home_remembers(story: Story, tmp_path: Path) -> None:
    drill = story.scene(tmp_path, ledger={"outside": ()})
    keep_checkpoint(kept_path(drill.settings), drill.checkpoint.read_bytes())
    error = refuses(drill, "newest-checkpoint shows a checkpoint")
    assert "--checkpoint" in error.hint
    drill.settle("--entries", drill.folder)
    with drill.serving():
        pass


def test_the_status_role_answers_from_no_such_database(story: Story, tmp_path: Path) -> None:
    """It would say good of what is revoked."""
    drill = story.scene(tmp_path)

    async def answers() -> None:
        async with status_running(drill.settings, folder=None, clock=drill.clock):
            pass

    with pytest.raises(LedgerBehindError, match="is behind"):
        asyncio.run(answers())
    with restored(drill), pytest.raises(LedgerBehindError, match="was restored"):
        asyncio.run(answers())
    drill.settle("--entries", drill.folder)
    asyncio.run(answers())


@contextmanager
def restored(drill: Drill) -> Iterator[None]:
    """Inside the block the database says that it was restored, and nobody outside says more."""
    with closing(sqlite3.connect(drill.database)) as connection:
        connection.execute("INSERT INTO fact (name, value) VALUES ('restore', '{\"size\": 1}')")
        connection.commit()
        yield
        connection.execute("DELETE FROM fact WHERE name = 'restore'")
        connection.commit()


@pytest.mark.postgresql
def test_on_postgresql(story: Story, postgresql: Postgresql, tmp_path: Path) -> None:
    url = copy_to_postgresql(f"sqlite:///{story.backup}", postgresql)
    drill = story.scene(tmp_path, database={"url": url})
    refuses(drill, "The database is behind")
    settled = drill.settle("--entries", drill.folder)
    assert settled["to_size"] == story.outside.size
    drill.command("ledger", "verify", "--since", drill.checkpoint)
    everything_holds(drill, story)
