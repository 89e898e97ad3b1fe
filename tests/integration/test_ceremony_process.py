"""``privyseal init`` as a process: killed for real, and as scripts meet it."""

import json
import os
import signal
import sqlite3
import stat
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from fakes.process import PRIVYSEAL, clean_environment, run_command

PATIENCE = 30.0


def environment(home: Path, **more: str) -> dict[str, str]:
    return clean_environment(PRIVYSEAL_HOME=str(home), **more)


def entries(home: Path) -> list[str]:
    """The kinds of the entries in the ledger so far; none as long as there is no ledger."""
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"file:{home / 'privyseal.db'}?mode=ro", uri=True, timeout=0)) as connection,
    ):
        rows = connection.execute("SELECT entry FROM ledger_entry ORDER BY idx").fetchall()
        return [json.loads(row[0])["kind"] for row in rows]
    return []


def init_and_kill(home: Path, after: int) -> bool:
    """Run ``init`` and kill it as soon as the ledger has ``after`` entries; whether it was still alive."""
    process = subprocess.Popen(
        [PRIVYSEAL, "init"],
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and len(entries(home)) < after:
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_it_may_be_killed_anywhere(tmp_path: Path) -> None:
    killed = 0
    for after in (1, 3, 5, 8, 11):
        home = tmp_path / f"home-{after}"
        killed += init_and_kill(home, after)
        begun = entries(home)
        done = run_command(PRIVYSEAL, "init", env=environment(home), expect=None)
        finished = "ceremony.finished" in begun
        assert done.returncode == (1 if finished else 0), done.stderr
        kinds = entries(home)
        assert kinds[: len(begun)] == begun
        assert kinds.count("ceremony.started") == kinds.count("ceremony.finished") == 1
        assert kinds.count("issuer.certified") == 2
        report = json.loads(run_command(PRIVYSEAL, "ledger", "verify", "--json", env=environment(home)).stdout)
        assert (report["ca_certificates"], report["in_flight"]) == (2, 0)
        states = [
            row["state"]
            for row in json.loads(run_command(PRIVYSEAL, "issuer", "list", "--json", env=environment(home)).stdout)
        ]
        assert states == ["root", "active"]
    assert killed >= 2, "the test never was fast enough"


def test_one_home_that_is_killed_again_and_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    while True:
        known = len(entries(home))
        # An intent, its abandonment by the next run, and one step forward.
        if not init_and_kill(home, known + 3):
            break
    run_command(PRIVYSEAL, "init", env=environment(home), expect=None)
    assert entries(home).count("issuer.certified") == 2
    run_command(PRIVYSEAL, "ledger", "verify", env=environment(home))


def test_a_script_reads_one_document(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    done = run_command(
        PRIVYSEAL,
        "init",
        "--home",
        home,
        "--json",
        "--https",
        "127.0.0.1:9443",
        "--allow-dns",
        "corp.example",
        env=clean_environment(),
    )
    document = json.loads(done.stdout)
    assert document["home"] == str(home)
    assert document["directory"] == "https://127.0.0.1:9443/acme/directory"
    assert document["state"] == "active"
    assert document["csr"] is None
    assert str(home) in document["next"]
    fingerprint = run_command("openssl", "x509", "-in", home / "roots.pem", "-noout", "-fingerprint", "-sha256").stdout
    assert document["root_sha256"] == fingerprint.partition("=")[2].strip().replace(":", "").lower()
    assert "key generated in token privyseal-root" in done.stderr

    again = run_command(PRIVYSEAL, "init", "--home", home, "--json", env=clean_environment(), expect=1)
    assert "initialised already" in json.loads(again.stdout)["error"]
    assert not again.stderr


def test_files_keep_to_themselves_whatever_the_umask(tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = os.umask(0)
    try:
        run_command(PRIVYSEAL, "init", env=environment(home))
    finally:
        os.umask(before)
    for path in [home, *home.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.name in {"roots.pem", "privyseal.db-service"}:
            continue  # the home itself keeps others out
        assert not mode & 0o077, (path, oct(mode))


def test_openssl_accepts_the_chain(tmp_path: Path) -> None:
    home = tmp_path / "home"
    run_command(PRIVYSEAL, "init", "--permit-dns", "corp.example", env=environment(home))
    shown = json.loads(run_command(PRIVYSEAL, "issuer", "show", "issuing-1", "--json", env=environment(home)).stdout)
    chain = tmp_path / "chain.pem"
    chain.write_text(shown["chains"][0])
    run_command("openssl", "verify", "-x509_strict", "-CAfile", home / "roots.pem", chain)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--root-token", "x"],
        ["--pkcs11-module", "/etc/hostname"],
        [
            "--pkcs11-module",
            "/etc/hostname",
            "--issuing-token",
            "x",
            "--pin-file",
            "/etc/hostname",
            "--offline-root",
            "--root-token",
            "y",
        ],
        ["--pkcs11-module", "/nowhere.so"],
        ["--https", "nonsense"],
        ["--http-url", "https://a"],
        ["--root-key", "dsa-1024"],
        ["--unknown"],
    ],
)
def test_calls_that_make_no_sense(tmp_path: Path, arguments: list[str]) -> None:
    home = tmp_path / "home"
    done = run_command(PRIVYSEAL, "init", *arguments, env=environment(home), expect=2)
    assert "Traceback" not in done.stderr
    assert not home.exists()


def test_a_module_that_is_none(tmp_path: Path) -> None:
    home = tmp_path / "home"
    pin = tmp_path / "pin"
    pin.touch(mode=0o600)
    pin.write_text("secret-of-the-test\n")
    done = run_command(
        PRIVYSEAL,
        "init",
        *("--pkcs11-module", "/etc/hostname", "--offline-root", "--issuing-token", "x", "--pin-file", pin),
        env=environment(home),
        expect=1,
    )
    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret-of-the-test" not in done.stdout + done.stderr


def test_the_database_may_be_of_another_home(tmp_path: Path) -> None:
    """A second home that is given the first one's database neither takes it over nor leaves anything behind."""
    first, second = tmp_path / "first", tmp_path / "second"
    run_command(PRIVYSEAL, "init", env=environment(first))
    shared = environment(second, PRIVYSEAL_DATABASE__URL=f"sqlite:///{first / 'privyseal.db'}")
    done = run_command(PRIVYSEAL, "init", env=shared, expect=1)
    assert "initialised already" in done.stderr
    assert not second.exists()
