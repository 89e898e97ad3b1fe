"""``make run`` and ``make demo``: what a newcomer sees first. The printed commands are pasted as they stand."""

import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fakes.clients import check_chain
from fakes.process import CommandFailedError, ServerProcess, clean_environment, run_command

pytestmark = pytest.mark.client

DEPLOY = Path(__file__).parents[2] / "deploy"
BIN = Path(sys.executable).parent


def run_script(home: Path) -> ServerProcess:
    return ServerProcess(home, command=("bash", DEPLOY / "run.sh"))


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """``make run`` where there is no home yet, in a folder whose name needs quoting."""
    server = run_script(tmp_path_factory.mktemp("new") / "a home")
    try:
        server.start()
        yield server
        assert server.stop() == 0, server.log
    finally:
        server.close()


def printed(server: ServerProcess, client: str) -> str:
    """The command line for ``client`` that the service prints."""
    (line,) = re.findall(rf"^ +(\w+=.* {client} .*)$", server.output, re.MULTILINE)
    return str(line)


def paste(line: str, folder: Path) -> None:
    run_command("bash", "-c", line, cwd=folder, env=clean_environment(PATH=f"{BIN}:{os.environ['PATH']}"))


def test_what_is_printed_about_trust(newcomer: ServerProcess) -> None:
    assert newcomer.directory in newcomer.output
    root = x509.load_pem_x509_certificate(newcomer.roots.read_bytes())
    assert root.fingerprint(hashes.SHA256()).hex(":").upper() in newcomer.output


def test_the_certbot_line(newcomer: ServerProcess, tmp_path: Path) -> None:
    paste(printed(newcomer, "certbot"), tmp_path)
    check_chain(newcomer, tmp_path / "certbot" / "live" / "demo.localhost" / "fullchain.pem", ["demo.localhost"])


def test_the_lego_line(newcomer: ServerProcess, tmp_path: Path) -> None:
    paste(printed(newcomer, "lego"), tmp_path)
    check_chain(newcomer, tmp_path / "lego" / "certificates" / "demo.localhost.crt", ["demo.localhost"])


def test_a_home_is_made_once(tmp_path: Path) -> None:
    server = run_script(tmp_path / "home")
    try:
        server.start()
        root = server.roots.read_bytes()
        assert server.stop() == 0
        server.start()
        assert server.stop() == 0
        assert server.roots.read_bytes() == root
    finally:
        server.close()


def test_the_printed_lines_where_accounts_need_a_binding(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "home", {"ACME__EXTERNAL_ACCOUNT_REQUIRED": "true"})
    try:
        server.init()
        server.start()
        assert "privyseal eab create" in server.output
        key = server.json("eab", "create")
        line = printed(server, "certbot").replace("KID", key["kid"]).replace("KEY", key["hmac_key"])
        paste(line, tmp_path)
        check_chain(server, tmp_path / "certbot" / "live" / "demo.localhost" / "fullchain.pem", ["demo.localhost"])
        assert server.stop() == 0
    finally:
        server.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_who_may_not_listen_on_port_80(tmp_path: Path) -> None:
    """Capabilities gone, nothing may bind below 1024: http-01 is asked for where the printed commands can answer."""
    home = tmp_path / "home"
    server = ServerProcess(
        home,
        command=(
            "setpriv",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--securebits=+noroot",
            "bash",
            DEPLOY / "run.sh",
        ),
    )
    del server.settings["VALIDATION__HTTP_PORT"]
    try:
        server.start()
        settings = tomllib.loads((home / "privyseal.toml").read_text(encoding="utf-8"))
        assert settings["validation"]["http_port"] == 5080
        assert "--http-01-port 5080 " in printed(server, "certbot")
        assert server.stop() == 0
    finally:
        server.close()


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file", encoding="utf-8")
    server = run_script(tmp_path / "home")
    with pytest.raises(CommandFailedError, match="privyseal serve ended"):
        server.start()
    assert "error: " in server.log


def test_the_demo(tmp_path: Path) -> None:
    told = run_command(sys.executable, DEPLOY / "demo.py", env=clean_environment(TMPDIR=str(tmp_path)), timeout=120)
    assert "Every step held" in told.stdout
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_the_demo_says_when_a_step_does_not_hold(tmp_path: Path) -> None:
    """A TLS client that is let in without a certificate, or says so."""
    stubs, temporary = tmp_path / "bin", tmp_path / "tmp"
    stubs.mkdir()
    temporary.mkdir()
    (stubs / "curl").write_text('#!/bin/sh\necho "Verify return code: 0 (ok)"\n', encoding="utf-8")
    (stubs / "curl").chmod(0o755)
    environment = clean_environment(PATH=f"{stubs}:{os.environ['PATH']}", TMPDIR=str(temporary))
    told = run_command(sys.executable, DEPLOY / "demo.py", env=environment, expect=1, timeout=120)
    assert "without a certificate was let in" in told.stdout
    assert "Every step held" not in told.stdout
    assert list(temporary.iterdir()) == [], "nothing is left behind"
