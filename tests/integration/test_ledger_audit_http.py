"""`privyseal ledger audit`: a log over real HTTP, and every way in which it is not what was signed, found and named."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fakes.ledgers import log_key
from fakes.outside_logs import (
    BEGIN,
    Server,
    SignedLog,
    Witness,
    abandoned,
    answers,
    crl,
    digest,
    entry,
    intent,
    issued,
    life,
    revoked,
    serial_of,
    served,
    write,
)
from privyseal_acme.cli import cli
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.ledger.note import Checkpoint, note_with
from privyseal_ca.ledger.tiles import TilePath, entry_bundle

SIZE = 600


@dataclass
class Audit:
    """A log that is served, and the command that looks at it."""

    log: SignedLog
    server: Server

    @property
    def folder(self) -> Path:
        return self.server.folder

    def run(self, *arguments: str | Path, expect: int = 0, url: str = "") -> dict[str, Any]:
        words = ["ledger", "audit", "--json", "--vkey", self.log.vkey, *map(str, arguments), url or self.server.url]
        done = CliRunner().invoke(cli, words, env={"PRIVYSEAL_HOME": "/nonexistent"})
        assert done.exit_code == expect, (done.output, done.stderr, done.exception)
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def finds(self, *arguments: str | Path, code: str) -> dict[str, Any]:
        """The one finding."""
        report = self.run(*arguments, expect=1)
        assert [finding["code"] for finding in report["findings"]] == [code], report
        assert report["ok"] is False
        found: dict[str, Any] = report["findings"][0]
        return found

    def replace(self, entries: list[bytes]) -> SignedLog:
        """Publish other entries, signed with the same key."""
        forked = SignedLog(entries)
        forked.publish(self.folder)
        return forked


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[Audit]:
    log = SignedLog(life(SIZE))
    with served(log.publish(tmp_path / "log")) as server:
        yield Audit(log, server)


def change(path: Path, at: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


def test_a_log_that_is_what_was_signed(audit: Audit, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    report = audit.run("--save", kept)
    assert (report["ok"], report["size"], report["entries_checked"], report["unchecked"]) == (True, SIZE, True, [])
    assert report["origin"] == audit.log.origin
    assert report["issued"] + report["abandoned"] + len(report["in_flight"]) == sum(
        b'"certificate.intent"' in each for each in audit.log.entries
    )
    assert kept.read_bytes() == audit.log.note()
    # The next one continues it, with nothing between or with more.
    assert audit.run("--since", kept)["ok"]
    audit.replace(life(SIZE + 300))
    report = audit.run("--since", kept, "--save", kept)
    assert (report["ok"], report["size"]) == (True, SIZE + 300)
    assert kept.read_bytes() == SignedLog(life(SIZE + 300)).note()


@pytest.mark.parametrize("suffix", ["/", "/ledger", "/ledger/"])
def test_the_address_may_end_with_the_ledger(audit: Audit, suffix: str) -> None:
    assert audit.run(url=audit.server.url + suffix)["size"] == SIZE


def test_an_empty_log_and_one_of_one_entry(tmp_path: Path) -> None:
    for size in (0, 1, 256, 257):
        log = SignedLog(life(size) if size else [])
        with served(log.publish(tmp_path / str(size))) as server:
            report = Audit(log, server).run()
            assert (report["size"], report["entries_checked"]) == (size, True)


def test_without_access_to_entries_the_rest_is_checked(audit: Audit, tmp_path: Path) -> None:
    for refusal in (answers(403), answers(401), answers(404)):
        audit.server.faults = {f"/ledger/{TilePath(None, 0).path()}": refusal}
        report = audit.run()
        assert report["entries_checked"] is False
        assert "entries are not given" in report["unchecked"][0]
        audit.run("--require-entries", expect=1)
    change(audit.folder / "ledger/tile/0/001", 5)
    assert audit.finds(code="tile")["index"] == 256


def test_the_token_is_sent_for_entries_and_nowhere_else(audit: Audit, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-secret\n")
    assert "used by others" in audit.run("--token-file", token, expect=1)["error"]
    token.chmod(0o600)
    first = f"/ledger/{TilePath(None, 0).path()}"
    # A redirect is not followed with it.
    with served(audit.folder) as other:
        audit.server.faults = {first: answers(302, Location=f"{other.url}{first}")}
        done = CliRunner().invoke(
            cli, ["ledger", "audit", audit.server.url, "--vkey", audit.log.vkey, "--token-file", str(token)]
        )
        assert (done.exit_code, other.asked) == (1, [])
        assert "302" in done.output
        assert "a-secret" not in done.output
        assert "without encryption" in done.output
    audit.server.faults.clear()
    audit.server.asked.clear()
    audit.server.shown.clear()
    assert audit.run("--token-file", token)["entries_checked"]
    for path, shown in zip(audit.server.asked, audit.server.shown, strict=True):
        assert shown == ("Bearer a-secret" if "/tile/entries/" in path else None), path
    token.write_text("two words")
    assert "token" in audit.run("--token-file", token, expect=1)["error"]


# What is not what was signed.


@pytest.mark.parametrize(("index", "file"), [(3, "000"), (300, "001"), (599, "002.p/88")])
def test_a_bit_of_an_entry(audit: Audit, index: int, file: str) -> None:
    path = audit.folder / f"ledger/tile/entries/{file}"
    begin = index // 256 * 256
    offset = sum(2 + len(each) for each in audit.log.entries[begin:index])
    change(path, offset + 10)
    found = audit.finds(code="entry")
    assert found["index"] == index
    assert f"Entry {index} " in found["message"]


@pytest.mark.parametrize(("index", "file"), [(3, "000"), (300, "001"), (599, "002.p/88")])
def test_a_bit_of_a_hash(audit: Audit, index: int, file: str) -> None:
    change(audit.folder / f"ledger/tile/0/{file}", index % 256 * 32 + 7)
    found = audit.finds(code="tile")
    assert found["index"] == index
    assert f"entry {index}." in found["message"]


def test_a_bit_of_a_hash_further_up(audit: Audit) -> None:
    change(audit.folder / "ledger/tile/1/000.p/2", 40)
    assert "tile/1/000.p/2" in audit.finds(code="tile")["message"]


@pytest.mark.parametrize("file", ["0/001", "entries/001", "0/002.p/88", "1/000.p/2"])
def test_a_tile_that_is_missing_or_cut_off(audit: Audit, file: str) -> None:
    path = audit.folder / f"ledger/tile/{file}"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    code = "entry" if file.startswith("entries") else "tile"
    found = audit.finds(code=code)
    path.write_bytes(b"")
    assert audit.finds(code=code)["index"] == found["index"]
    path.unlink()
    assert audit.finds(code=code)["index"] == found["index"]
    assert found["index"] == {"0/001": 256, "entries/001": 256, "0/002.p/88": 512, "1/000.p/2": 0}[file]


def bundle(audit: Audit, entries: list[bytes]) -> None:
    write(audit.folder, TilePath(None, 1), entry_bundle(entries))


def test_entries_dropped_swapped_reordered_and_truncated(audit: Audit) -> None:
    entries = audit.log.entries[256:512]
    bundle(audit, [*entries[:40], *entries[41:]])
    found = audit.finds(code="entry")
    assert (found["index"], "255" in found["message"]) == (256, True)
    bundle(audit, [*entries[:40], entries[41], entries[40], *entries[42:]])
    assert audit.finds(code="entry")["index"] == 296
    bundle(audit, [*entries[:100], *reversed(entries[100:])])
    assert audit.finds(code="entry")["index"] == 356
    bundle(audit, [*entries[:255], entries[255][:-1]])
    assert audit.finds(code="entry")["index"] == 511


def test_the_partial_tile_may_be_gone_once_the_full_one_is_there(audit: Audit) -> None:
    note = audit.log.note(300)
    audit.replace(life(600))
    (audit.folder / "ledger/checkpoint").write_bytes(note)
    for level in ("0", "entries"):
        assert not (audit.folder / f"ledger/tile/{level}/001.p").exists()
    assert not (audit.folder / "ledger/tile/1/000.p/1").exists()
    write(audit.folder, TilePath(1, 0, 1), audit.log.tiles.data(TilePath(1, 0, 1)))
    assert audit.run()["size"] == 300


# What was signed and does not follow.

OTHER = "b2" * 20
WRONG: dict[str, tuple[Callable[[], list[bytes]], int, str]] = {
    "issued without an intent": (lambda: [issued(1)], 0, "no intent before it"),
    "another issuer": (lambda: [intent(1), issued(1, issuer=OTHER)], 1, "in issuer"),
    "another TBSCertificate": (lambda: [intent(1), issued(1, tbs_sha256=digest("?"))], 1, "in tbs_sha256"),
    "another name": (lambda: [intent(1), issued(1, names=["dns:evil.test"])], 1, "in names"),
    "another key": (lambda: [intent(1), issued(1, spki_sha256=digest("?"))], 1, "in spki_sha256"),
    "another end": (lambda: [intent(1), issued(1, not_after=BEGIN + 9)], 1, "in not_after"),
    "issued twice": (lambda: [intent(1), issued(1), issued(1)], 2, "no intent before it"),
    "intent twice": (lambda: [intent(1), intent(1)], 1, "used before"),
    "serial used again": (lambda: [intent(1), issued(1), intent(1)], 2, "used before"),
    "serial used after it was abandoned": (lambda: [intent(1), abandoned(1), intent(1)], 2, "used before"),
    "abandoned without an intent": (lambda: [intent(2), abandoned(1)], 1, "no intent before it"),
    "revoked before it was issued": (lambda: [revoked(1), intent(1), issued(1)], 0, "had not issued"),
    "revoked by another issuer": (lambda: [intent(1), issued(1), revoked(1, issuer=OTHER)], 2, "had not issued"),
    "revoked although it was abandoned": (lambda: [intent(1), abandoned(1), revoked(1)], 2, "had not issued"),
    "revoked twice": (lambda: [intent(1), issued(1), revoked(1), revoked(1)], 3, "revoked before"),
    "CRL number that falls": (lambda: [crl(2, through=0), crl(1, through=0)], 1, "does not follow"),
    "CRL number that stays": (lambda: [crl(2, through=0), crl(2, through=0)], 1, "does not follow"),
    "CRL of the future": (lambda: [crl(1, through=5)], 0, "does not fit its place"),
    "CRL that ends first": (lambda: [crl(1, through=0, next_update=BEGIN)], 0, "ends before it begins"),
    "delta without base": (lambda: [crl(1, through=0, delta_sha256=digest("d"))], 0, "without a base"),
    "ends before it begins": (
        lambda: [intent(1), issued(1, not_before=BEGIN + 86400)],
        1,
        "ends before it begins",
    ),
    "intent outside of the validity": (lambda: [intent(1, at=BEGIN + 90000)], 0, "in the future"),
    "intent after the validity": (lambda: [intent(1, not_after=BEGIN - 1)], 0, "not within the validity"),
    "made in the future": (lambda: [entry(Kind.SERVICE_STOPPED, {}, at=time.time() + 4000)], 0, "in the future"),
    "not canonical": (lambda: [b'{"v": 1}'], 0, "not in canonical form"),
    "no JSON": (lambda: [b"\xff"], 0, "not in canonical form"),
    "unknown kind": (lambda: [entry(Kind.INTENT, {}).replace(b"certificate.intent", b"certificate.imagin")], 0, "kind"),
    "unknown version": (lambda: [entry(Kind.SERVICE_STOPPED, {})[:-2] + b"2}"], 0, "version"),
    "serial that is none": (lambda: [intent(1, serial="1")], 0, "malformed member serial"),
    "number that is none": (lambda: [intent(1, not_after="x")], 0, "malformed member not_after"),
    "issuer of another type": (lambda: [revoked(1, issuer=7)], 0, "malformed member issuer"),
    "member missing": (lambda: [entry(Kind.REVOKED, {"serial": serial_of(1)})], 0, "lacks the member"),
}


@pytest.mark.parametrize("name", WRONG)
def test_entries_that_do_not_follow(tmp_path: Path, name: str) -> None:
    make, index, said = WRONG[name]
    # Among others, so that the place counts.
    entries = [entry(Kind.SERVICE_STARTED, {"at": number}) for number in range(3)]
    log = SignedLog([*entries, *make()])
    with served(log.publish(tmp_path)) as server:
        found = Audit(log, server).finds(code="entry")
    assert found["index"] == 3 + index
    assert said in found["message"]


def test_an_intent_that_came_to_nothing(tmp_path: Path) -> None:
    begin = BEGIN - 2 * 86400
    log = SignedLog([intent(1, at=begin, not_before=begin), intent(2)])
    with served(log.publish(tmp_path)) as server:
        found = Audit(log, server).finds(code="intent")
    assert found["index"] == 0
    assert serial_of(1) in found["message"]


# Against what was seen before, and elsewhere.


def test_a_rollback(audit: Audit, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(audit.log.note())
    (audit.folder / "ledger/checkpoint").write_bytes(audit.log.note(512))
    found = audit.finds("--since", kept, "--save", tmp_path / "next", code="rollback")
    assert (found["index"], "512" in found["message"], "600" in found["message"]) == (512, True, True)
    assert found["notes"] == [audit.log.note().decode(), audit.log.note(512).decode()]
    assert not (tmp_path / "next").exists()


def test_a_fork_that_was_signed_again(audit: Audit, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(audit.log.note(400))
    entries = life(SIZE)
    entries[100] = entry(Kind.SERVICE_STARTED, {"at": "rewritten"})
    forked = audit.replace(entries)
    found = audit.finds("--since", kept, code="fork")
    assert "first 400 entries" in found["message"]
    assert found["notes"] == [audit.log.note(400).decode(), forked.note().decode()]
    # At the same size as well.
    kept.write_bytes(audit.log.note())
    audit.finds("--since", kept, code="fork")


def test_a_split_view(audit: Audit, tmp_path: Path) -> None:
    for size in (SIZE, 300, 700):
        entries = life(size)
        with served(SignedLog(entries).publish(tmp_path / f"same-{size}")) as mirror:
            assert audit.run("--also", mirror.url)["views"] == 1
        entries[200] = entry(Kind.SERVICE_STARTED, {"at": "other"})
        forked = SignedLog(entries)
        with served(forked.publish(tmp_path / f"other-{size}")) as mirror:
            found = audit.finds("--also", mirror.url, code="split-view")
        assert found["notes"] == [audit.log.note().decode(), forked.note().decode()]
        assert mirror.url in found["message"]


def test_a_mirror_that_cannot_be_reached_or_is_broken(audit: Audit, tmp_path: Path) -> None:
    with served(SignedLog(life(700)).publish(tmp_path / "mirror")) as mirror:
        change(tmp_path / "mirror/ledger/tile/0/002.p/188", 3)
        assert "right edge" in audit.finds("--also", mirror.url, code="tile")["message"]
        mirror.faults["/ledger/checkpoint"] = answers(404)
        assert mirror.url in audit.finds("--also", mirror.url, code="unreachable")["message"]


def test_another_key_another_origin_and_no_checkpoint(audit: Audit) -> None:
    file = audit.folder / "ledger/checkpoint"
    file.write_bytes(SignedLog(audit.log.entries, key=log_key("another")).note())
    assert "no signature by a known key" in audit.finds(code="signature")["message"]
    note = bytearray(audit.log.note())
    note[note.index(b"600")] ^= 1
    file.write_bytes(note)
    assert "wrong signature" in audit.finds(code="signature")["message"]
    for content in (b"", b"<html>404</html>", b"\xff\n\n", audit.log.note()[:-1]):
        file.write_bytes(content)
        audit.finds(code="signature")
    text = Checkpoint("third.test/log", 600, bytes(32)).text()
    file.write_bytes(note_with(text, audit.log.verifier, audit.log.key.sign(text.encode())))
    assert "third.test/log" in audit.finds(code="origin")["message"]


# Witnesses.


def test_cosignatures_and_their_quorum(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privyseal_ca.outside.audit.PAUSE", 0)
    one, two = Witness("one.test/witness"), Witness("two.test/witness")
    named = ("--witness", one.vkey, "--witness", two.vkey)
    now = int(time.time())
    audit.log.publish(audit.folder, witnesses=[(one, now), (two, now - 900)])
    report = audit.run(*named, "--freshness", "1h")
    assert report["cosigned"] == {"one.test/witness": now, "two.test/witness": now - 900}
    assert "900" not in audit.finds(*named, "--freshness", "5m", code="stale")["message"]
    assert audit.run(*named, "--freshness", "5m", "--quorum", "1")["ok"]
    audit.log.publish(audit.folder, witnesses=[(one, now + 3600), (two, now)])
    assert "future" in audit.finds(*named, code="witness")["message"]
    audit.log.publish(audit.folder, witnesses=[(one, now)])
    assert "two.test/witness" in audit.finds(*named, code="witness")["message"]
    assert audit.run(*named, "--quorum", "1")["ok"]
    assert "quorum" in audit.run(*named, "--quorum", "3", expect=1)["error"]
    assert "twice" in audit.run("--witness", one.vkey, "--witness", one.vkey, expect=1)["error"]
    # One that is not over this checkpoint.
    line = one.line(audit.log.note(100).decode().partition("\n\n")[0] + "\n", now)
    (audit.folder / "ledger/checkpoint").write_bytes(audit.log.note() + line.encode())
    assert "wrong cosignature" in audit.finds(*named, code="witness")["message"]


# Servers that are not what they should be.


def endless(handler: SimpleHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(65536))
    except OSError:
        pass


@pytest.mark.parametrize("path", ["checkpoint", "tile/0/000", "tile/entries/000", "tile/0/002.p/88"])
def test_an_answer_without_an_end(audit: Audit, path: str) -> None:
    audit.server.faults[f"/ledger/{path}"] = endless
    report = audit.run(expect=1)
    assert "longer than" in (report.get("error") or report["findings"][0]["message"])


def test_redirects_without_an_end_and_a_server_error(audit: Audit) -> None:
    audit.server.faults["/ledger/checkpoint"] = answers(302, Location="/ledger/checkpoint")
    assert "redirected" in audit.run(expect=1)["error"]
    audit.server.faults["/ledger/checkpoint"] = answers(500, b"secret details")
    report = audit.run(expect=1)
    assert "500" in report["error"]
    assert "secret" not in json.dumps(report)
    assert audit.server.asked.count("/ledger/checkpoint") == 3 + 1


def test_a_server_that_is_busy_for_a_moment(audit: Audit) -> None:
    left = [2]

    def busy(handler: SimpleHTTPRequestHandler) -> None:
        left[0] -= 1
        if not left[0]:
            del audit.server.faults["/ledger/tile/0/000"]
        answers(503, Retry_After="0")(handler)

    audit.server.faults["/ledger/tile/0/000"] = busy
    assert audit.run()["ok"]


@pytest.mark.parametrize(
    "url", ["ftp://a.test", "http://", "http://user:secret@a.test", "http://a.test/?x=1", "a.test", "http://[::"]
)
def test_addresses_that_are_none(audit: Audit, url: str) -> None:
    report = audit.run(url=url, expect=1)
    assert "address" in report["error"]
    assert "secret" not in json.dumps(report)


def test_files_that_are_none(audit: Audit, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(2_000_000))
    assert "too big" in audit.run("--since", other, expect=1)["error"]
    other.write_bytes(b"nonsense")
    assert "no checkpoint" in audit.run("--since", other, expect=1)["error"]
    assert "certificate" in audit.run("--certificate", other, expect=1)["error"].lower()
    assert audit.server.asked == []
