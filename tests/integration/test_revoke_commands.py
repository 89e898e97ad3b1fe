"""``privyseal cert revoke`` and ``cert jobs`` as operators use them: what they ask, say, refuse and leave behind."""

import asyncio
import json
import os
import pty
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fakes.acme_client import AcmeClient, make_csr
from fakes.home import MakeSettings
from fakes.issued import issue_row, spki_hash
from fakes.process import PRIVYSEAL, clean_environment, served
from privyseal_acme.cli import cli
from privyseal_ca.ceremony.initialise import make_store
from privyseal_ca.config import Settings, load_settings
from privyseal_ca.revocation.possession import spki_sha256
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.certificates import CertificateRow
from privyseal_ca.store.statement import Transaction

_PATIENCE = 60


class Commands:
    """The command line, in processes of its own, for a home whose database is the test's own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Path(settings.database_url.removeprefix("sqlite:///"))
        self.environment = clean_environment(
            PRIVYSEAL_HOME=str(settings.home), PRIVYSEAL_DATABASE__URL=settings.database_url
        )

    def run(self, *arguments: str | Path, expect: int = 0, group: str = "cert") -> Result:
        """In this process, with nobody at its standard input."""
        result = CliRunner().invoke(cli, [group, *map(str, arguments)], env=self.environment)
        assert result.exit_code == expect, (arguments, result.output, result.exception)
        return result

    def json(self, *arguments: str | Path, expect: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", expect=expect).stdout)

    def ledger(self, kind: str) -> list[dict[str, Any]]:
        shown = self.run("show", "--count", "10000", "--json", group="ledger")
        return [entry for entry in json.loads(shown.stdout) if kind in entry["kind"]]

    def write(self, unit: Callable[[Transaction], Any]) -> Any:
        async def work() -> Any:
            store = make_store(backend_for(self.settings.database_url, durable=False, timeout=5), self.settings)
            await store.open()
            try:
                return await store.write(unit)
            finally:
                await store.close()

        return asyncio.run(work())

    def issue(self, *serials: int, **options: Any) -> list[CertificateRow]:
        rows: list[CertificateRow] = self.write(
            lambda tx: [issue_row(tx, serial, now=time.time(), **options) for serial in serials]
        )
        return rows

    def on_terminal(self, *arguments: str | Path, answer: str, until: str) -> tuple[int, str]:
        """Run a command on a terminal; ``answer`` is typed once ``until`` is shown. Exit code and all that was shown."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [PRIVYSEAL, "cert", *arguments],
            env=self.environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        guard = threading.Timer(_PATIENCE, process.kill)
        guard.start()
        shown, answered = b"", False
        try:
            while octets := _read(ours):
                shown += octets
                if not answered and until.encode() in shown:
                    os.write(ours, answer.encode() + b"\n")
                    answered = True
            return process.wait(_PATIENCE), shown.decode()
        finally:
            guard.cancel()
            process.kill()
            process.wait()
            os.close(ours)


def _read(terminal: int) -> bytes:
    """Nothing when the other side is closed, which Linux says with an error."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


@pytest.fixture
def commands(make_settings: MakeSettings) -> Commands:
    return Commands(make_settings())


# Selections.


def test_a_dry_run_shows_and_changes_nothing(commands: Commands) -> None:
    commands.issue(*range(1, 15))
    commands.issue(20, 21, requester="account:b", profile="server")
    commands.issue(30, lifetime=-5)
    commands.issue(40, requester="service", profile="canary")
    before = commands.ledger("")
    shown = commands.json("revoke", "--name", "*.corp.example", "--dry-run")
    assert (shown["total"], shown["expired"], shown["revoked"], shown["own"]) == (16, 1, 0, 1)
    assert len(shown["sample"]) == 10
    assert shown["sample"][0] == {"serial": f"{1:032x}", "names": ["dns:h1.corp.example"]}
    assert shown["profiles"] == {"mtls": 14, "server": 2}
    assert shown["requesters"] == {"account:a": 14, "account:b": 2}
    text = commands.run("revoke", "--name", "*.corp.example", "--dry-run").stdout
    assert "16 certificates selected by name *.corp.example (not counting 1 expired, 1 of the authority itself)" in text
    assert "and 6 more" in text
    assert commands.ledger("") == before
    assert commands.json("jobs") == []


@pytest.mark.parametrize("how", [(), ("--json",)])
def test_a_selection_is_refused_when_nobody_can_be_asked(commands: Commands, how: tuple[str, ...]) -> None:
    commands.issue(1, 2, 3)
    refused = commands.run("revoke", "--account", "a", *how, expect=1)
    assert "3 certificates would be revoked" in refused.stdout + refused.stderr
    assert "--yes" in refused.stdout + refused.stderr
    assert commands.ledger("revo") == []


def test_a_selection_with_consent(commands: Commands) -> None:
    commands.issue(1, 2, 3)
    commands.issue(4, requester="account:b")
    done = commands.json("revoke", "--account", "a", "--reason", "superseded", "--yes")
    assert (done["state"], done["total"], done["revoked"], done["skipped"], done["reason"]) == ("finished", 3, 3, 0, 4)
    assert commands.json("list")[3]["state"] == "valid"
    (listed,) = commands.json("jobs")
    assert listed == done
    text = commands.run("jobs").stdout
    assert done["job"] in text
    assert "3/3" in text
    assert "account a" in text
    assert commands.json("revoke", "--resume", done["job"]) == done
    nothing = commands.json("revoke", "--account", "a", "--yes", expect=1)
    assert "not counting 3 revoked before" in nothing["error"]
    assert len(commands.ledger("certificate.revoked")) == 3


def test_people_are_told_how_it_goes_and_programs_are_not(commands: Commands) -> None:
    commands.issue(1, 2)
    told = commands.run("revoke", "--profile", "mtls", "--yes")
    assert "2 of 2 revoked" in told.stderr
    assert "2 certificates revoked" in told.stdout
    commands.issue(3)
    assert commands.run("revoke", "--profile", "mtls", "--yes", "--json").stderr == ""


@pytest.mark.parametrize(("answer", "code", "count"), [("y", 0, 2), ("n", 1, 0), ("", 1, 0)])
def test_on_a_terminal_one_is_asked(commands: Commands, answer: str, code: int, count: int) -> None:
    commands.issue(1, 2)
    ended, shown = commands.on_terminal("revoke", "--account", "a", answer=answer, until="[y/N]")
    assert ended == code, shown
    assert "h1.corp.example" in shown
    assert "Revoke 2 certificates (unspecified)?" in shown
    assert len(commands.ledger("certificate.revoked")) == count


def test_a_single_serial_with_json_is_not_asked_for(commands: Commands) -> None:
    commands.issue(1, 2, key="k")
    dry = commands.json("revoke", "1", "--reason", "keyCompromise", "--dry-run")
    assert (dry["state"], dry["others_with_key"]) == ("valid", 1)
    assert commands.ledger("revo") == []
    done = commands.json("revoke", "1", "--reason", "1")
    assert (done["state"], done["reason"], done["others_with_key"]) == ("revoked", 1, 1)
    assert len(commands.ledger("certificate.revoked")) == 2
    assert "already" in commands.json("revoke", "2", "--dry-run", expect=1)["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--yes",),
        ("--reason", "superseded"),
        ("--dry-run", "--yes"),
        ("01", "--account", "a"),
        ("01", "--resume", "x"),
        ("--account", "a", "--private-key", "k"),
        ("--resume", "x", "--cancel", "x"),
        ("--resume", "x", "--reason", "superseded"),
        ("--cancel", "x", "--dry-run"),
        ("--private-key", "k", "--reason", "superseded"),
        ("--account", "a", "--reason", "certificateHold"),
        ("--account", "a", "--issued-after", "yesterday"),
        ("--key", "abc"),
    ],
)
def test_calls_that_make_no_sense(commands: Commands, arguments: tuple[str, ...]) -> None:
    assert commands.run("revoke", *arguments, expect=2).stdout == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--account", "nobody", "--yes"), "Nothing that could be revoked"),
        (("--account", "nobody", "--dry-run"), "Nothing that could be revoked"),
        (("--account", "", "--yes"), "Nothing that could be revoked"),
        (("--name", "", "--yes"), "pattern"),
        (("--issuer", "none", "--yes"), "no issuer"),
        (("--resume", "nothing"), "no job"),
        (("--cancel", "nothing"), "no job"),
        (("--private-key", "/nonexistent"), "cannot be read"),
        (("--private-key", "/"), "cannot be read"),
        (("--private-key", "/dev/zero"), "too large"),
        (("--private-key", "/dev/null"), "holds nothing"),
        (("--key", "/dev/null"), "no public key"),
    ],
)
def test_what_cannot_be_done(commands: Commands, arguments: tuple[str, ...], said: str) -> None:
    assert said in commands.json("revoke", *arguments, expect=1)["error"]


def test_by_key_in_every_form(commands: Commands, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    request = make_csr(["a.test"], key)
    digest = spki_sha256(key.public_key())

    def unit(transaction: Transaction) -> None:
        row = issue_row(transaction, 1, now=time.time(), key="k")
        transaction._cursor.execute("UPDATE certificate SET spki_sha256 = ? WHERE serial = ?", (digest, row.serial))

    commands.write(unit)
    files = {"pem": public, "csr": request}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path / "pem")
    for given in (digest.hex(), digest.hex(":").upper(), *(tmp_path / name for name in (*files, "link"))):
        assert commands.json("revoke", "--key", given, "--dry-run")["total"] == 1


def write_certificate(path: Path, serial: int) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(x509.Name([]), x509.Name([]), key.public_key(), serial, now, now + timedelta(days=1))
    ).sign(key, hashes.SHA256())
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return certificate.public_bytes(Encoding.DER)


def test_a_strangers_certificate_with_the_serial_of_another_revokes_nothing(commands: Commands, tmp_path: Path) -> None:
    """Serials are public, and whoever asks for a revocation may send a file that was made for it."""
    (row,) = commands.issue(7)
    ours, strange = tmp_path / "ours.pem", tmp_path / "strange.pem"
    der = write_certificate(ours, 7)
    write_certificate(strange, 7)
    commands.write(lambda tx: tx._cursor.execute("UPDATE certificate SET der = ? WHERE serial = ?", (der, row.serial)))
    for command in (["revoke", str(strange)], ["revoke", str(strange), "--dry-run"], ["show", str(strange)]):
        assert "was not issued here; another one" in commands.json(*command, expect=1)["error"]
    assert commands.ledger("revoked") == []
    assert commands.json("show", ours)["serial"] == row.serial
    assert commands.json("revoke", ours)["state"] == "revoked"


def test_a_key_that_turns_out_to_be_compromised_is_blocked_although_its_certificate_was_revoked(
    commands: Commands,
) -> None:
    commands.issue(1, 2, key="k")
    commands.json("revoke", "1", "--reason", "superseded")
    dry = commands.json("revoke", "1", "--reason", "keyCompromise", "--dry-run")
    assert (dry["reason"], dry["others_with_key"]) == (4, 1)
    assert commands.ledger("key.blocked") == []
    told = commands.run("revoke", "1", "--reason", "keyCompromise").stdout
    assert "was revoked before; its key is blocked, and 1 others with it are revoked" in told
    (blocked,) = commands.ledger("key.blocked")
    assert blocked["payload"]["spki_sha256"] == spki_hash("k").hex()
    assert [entry["payload"]["reason"] for entry in commands.ledger("certificate.revoked")] == [4, 1]
    for how in ([], ["--dry-run"]):
        assert "already" in commands.json("revoke", "1", "--reason", "keyCompromise", *how, expect=1)["error"]


def test_a_compromise_of_many_says_that_it_reaches_further_than_the_selection(commands: Commands) -> None:
    commands.issue(1, key="k")
    commands.issue(2, key="k", requester="account:b")
    look = ("revoke", "--account", "a", "--dry-run")
    assert "all other certificates" not in commands.run(*look).stdout
    assert "all other certificates" in commands.run(*look, "--reason", "keyCompromise").stdout
    assert commands.json(*look, "--reason", "keyCompromise")["takes_others_with_key"] is True


# Interruptions.


def test_a_job_that_somebody_cancels_does_not_look_done(commands: Commands) -> None:
    commands.issue(*range(1, 3001))
    command = [str(PRIVYSEAL), "cert", "revoke", "--account", "a", "--yes"]
    with subprocess.Popen(command, env=commands.environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        job = process.stderr.readline().removeprefix("job ").strip()
        commands.json("revoke", "--cancel", job)
        rest = process.stderr.read()
        assert process.wait(_PATIENCE) == 1
    assert "cancelled by somebody else" in rest
    (listed,) = commands.json("jobs")
    assert listed["state"] == "cancelled"
    assert listed["revoked"] < 3000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_job_that_was_interrupted_is_resumed(commands: Commands, number: int) -> None:
    commands.issue(*range(1, 3001))
    command = [str(PRIVYSEAL), "cert", "revoke", "--account", "a", "--yes"]
    with subprocess.Popen(command, env=commands.environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        job = process.stderr.readline().removeprefix("job ").strip()
        # The first batch is there: some are revoked, many are not.
        deadline = time.monotonic() + _PATIENCE
        while not (revoked := revoked_by_now(commands)):
            assert time.monotonic() < deadline
        process.send_signal(number)
        rest = process.stderr.read()
        code = process.wait(_PATIENCE)
    assert revoked < 3000
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 1)
    if number == signal.SIGINT:
        assert f"--resume {job}" in rest
    (listed,) = commands.json("jobs")
    assert (listed["job"], listed["state"], listed["skipped"]) == (job, "running", None)
    assert len(commands.ledger("certificate.revoked")) == listed["revoked"]
    done = commands.json("revoke", "--resume", job)
    assert (done["state"], done["total"], done["revoked"]) == ("finished", 3000, 3000)
    serials = [entry["payload"]["serial"] for entry in commands.ledger("certificate.revoked")]
    assert len(serials) == len(set(serials)) == 3000


def revoked_by_now(commands: Commands) -> int:
    """How many a job has revoked, seen from beside it."""
    with closing(sqlite3.connect(commands.database)) as connection:
        return int(connection.execute("SELECT revoked FROM revocation_job").fetchone()[0])


# Private keys.


def write_key(path: Path, secret: str = "") -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = BestAvailableEncryption(secret.encode()) if secret else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return key


def test_a_private_key_that_nothing_was_issued_for_is_blocked(commands: Commands, tmp_path: Path) -> None:
    key = write_key(tmp_path / "key.pem")
    digest = spki_sha256(key.public_key()).hex()
    dry = commands.json("revoke", "--private-key", tmp_path / "key.pem", "--dry-run")
    assert (dry["spki_sha256"], dry["revoked"], dry["blocked_before"]) == (digest, 0, False)
    assert commands.ledger("key.blocked") == []
    done = commands.json("revoke", "--private-key", tmp_path / "key.pem", "--reason", "keyCompromise")
    assert (done["spki_sha256"], done["revoked"], done["blocked_before"]) == (digest, 0, False)
    (entry,) = commands.ledger("key.blocked")
    assert entry["payload"] == {"spki_sha256": digest, "reason": "keyCompromise", "proof": done["proof"]}
    assert entry["payload"]["proof"]["algorithm"] == "ecdsa-secp256r1-sha256"
    assert commands.json("revoke", "--private-key", tmp_path / "key.pem")["blocked_before"] is True


def test_a_private_key_through_a_pipe_takes_its_certificates(commands: Commands, tmp_path: Path) -> None:
    key = write_key(tmp_path / "key.pem")

    def unit(transaction: Transaction) -> None:
        for serial in range(1, 711):
            issue_row(transaction, serial, now=time.time(), key="k")
        transaction._cursor.execute(
            "UPDATE certificate SET spki_sha256 = ? WHERE spki_sha256 = ?",
            (spki_sha256(key.public_key()), spki_hash("k")),
        )

    commands.write(unit)
    os.mkfifo(tmp_path / "pipe")
    content = (tmp_path / "key.pem").read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    done = commands.json("revoke", "--private-key", tmp_path / "pipe")
    writer.join()
    assert done["revoked"] == 710
    revoked = commands.ledger("certificate.revoked")
    assert len(revoked) == 710
    assert {entry["payload"]["reason"] for entry in revoked} == {1}


def test_an_encrypted_key_is_asked_for_on_a_terminal_only(commands: Commands, tmp_path: Path) -> None:
    write_key(tmp_path / "key.pem", "open sesame")
    refused = commands.json("revoke", "--private-key", tmp_path / "key.pem", expect=1)
    assert "encrypted" in refused["error"]
    arguments = ("revoke", "--private-key", tmp_path / "key.pem", "--yes")
    code, shown = commands.on_terminal(*arguments, answer="open says me", until="Passphrase")
    assert code == 1
    assert "cannot be decrypted" in shown
    code, shown = commands.on_terminal(*arguments, answer="open sesame", until="Passphrase")
    assert code == 0, shown
    assert "is blocked" in shown
    assert "sesame" not in shown
    assert len(commands.ledger("key.blocked")) == 1


def test_nothing_of_the_key_is_left(commands: Commands, tmp_path: Path) -> None:
    key = write_key(tmp_path / "key.pem")
    secret = key.private_numbers().private_value
    done = commands.run("revoke", "--private-key", tmp_path / "key.pem", "--json")
    files = commands.database.parent.glob(f"{commands.database.name}*")
    content = b"".join(path.read_bytes() for path in files)
    for form in (secret.to_bytes(32, "big"), f"{secret:x}".encode(), str(secret).encode()):
        assert form not in content
        assert form not in (done.stdout + done.stderr).encode()


# Beside a service that runs.


def test_ten_thousand_while_the_service_works(tmp_path: Path) -> None:
    count = 10_000
    with served(tmp_path / "home") as server:
        commands = Commands(load_settings(server.home))
        for first in range(1, count, 1000):
            commands.issue(*range(first, first + 1000), requester="account:many")
        waits: list[float] = []
        command = [PRIVYSEAL, "cert", "revoke", "--account", "many", "--yes", "--json"]
        begun = time.monotonic()
        with subprocess.Popen(command, env=server.environment, stdout=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                before = time.monotonic()
                client = AcmeClient(server.directory, server.roots)
                assert client.new_account().status == 201
                client.close()
                waits.append(time.monotonic() - before)
            assert process.stdout is not None
            done = json.loads(process.stdout.read())
        took = time.monotonic() - begun
        listed = server.json("cert", "jobs")
    print(f"{count} in {took:.1f} s; {len(waits)} accounts beside it, the slowest in {max(waits):.2f} s")
    assert listed == [done]
    assert (done["state"], done["revoked"], done["skipped"]) == ("finished", count, 0)
    assert took < _PATIENCE
    assert len(waits) > 1
    assert max(waits) < 5
