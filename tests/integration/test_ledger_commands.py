"""``privyseal ledger vkey``, ``proof`` and ``verify-proof``: a receipt from a real token, checked without the authority."""

import asyncio
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fakes.home import MakeSettings
from fakes.ocsp_desk import OcspDesk, ocsp_desk
from fakes.process import PRIVYSEAL, clean_environment, run_command
from privyseal_acme.cli import cli
from privyseal_ca.ceremony.ledger_key import ledger_key
from privyseal_ca.config import Settings
from privyseal_ca.ledger.checkpoints import Checkpointer
from privyseal_ca.ledger.note import NoteVerifier
from privyseal_ca.ledger.proofs import Receipt
from privyseal_ca.telemetry.metrics import Metrics

ORIGIN = "ca.test/ledger"
runner = CliRunner()


@dataclass(frozen=True)
class Scene:
    """An authority with certificates, some of them under a checkpoint."""

    settings: Settings
    #: Serials and DER of two certificates that a checkpoint covers.
    certificates: tuple[tuple[str, bytes], ...]
    #: The serial of one that none covers yet.
    uncovered: str
    folder: Path

    def run(self, *arguments: str | Path, expect: int = 0) -> Result:
        environment = {
            "PRIVYSEAL_HOME": str(self.settings.home),
            "PRIVYSEAL_DATABASE__URL": self.settings.database_url,
            "PRIVYSEAL_SERVER__HTTP": self.settings.server.http,
        }
        result = runner.invoke(cli, ["ledger", *map(str, arguments)], env=environment)
        assert result.exit_code == expect, (arguments, result.output, result.exception)
        return result

    def json(self, *arguments: str | Path, expect: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", expect=expect).stdout)

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def certificate(self, number: int = 0) -> Path:
        certificate = x509.load_der_x509_certificate(self.certificates[number][1])
        return self.file(f"{number}.pem", certificate.public_bytes(Encoding.PEM))

    def receipt(self, number: int = 0) -> Path:
        path = self.folder / f"{number}.tlog-proof"
        self.run("proof", self.certificates[number][0], "--out", path)
        return path

    @property
    def vkey(self) -> str:
        return self.run("vkey").stdout.strip()


async def _make(settings: Settings) -> tuple[tuple[tuple[str, bytes], ...], str]:
    async with ocsp_desk(settings) as desk:
        first = await _issue(desk)
        checkpointer = await _checkpointer(desk)
        assert await checkpointer.sign_due()
        second = await _issue(desk)
        assert await checkpointer.sign_due()
        return (first, second), (await _issue(desk))[0]


async def _issue(desk: OcspDesk) -> tuple[str, bytes]:
    row = await desk.issue()
    return row.serial, row.der


async def _checkpointer(desk: OcspDesk) -> Checkpointer:
    uri = await ledger_key(desk.store, desk.hsm, desk.clock, os.urandom, actor="operator:tests", correlation="tests")
    key = await desk.hsm.open_signing_key(uri)
    return Checkpointer(store=desk.store, key=key, origin=ORIGIN, clock=desk.clock, metrics=Metrics())


@pytest.fixture(scope="module")
def shared(settings_factory: MakeSettings, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    settings = settings_factory()
    certificates, uncovered = asyncio.run(_make(settings))
    return Scene(settings, certificates, uncovered, tmp_path_factory.mktemp("receipts"))


@pytest.fixture
def scene(shared: Scene, tmp_path: Path) -> Scene:
    return replace(shared, folder=tmp_path)


# vkey.


def test_the_key_is_shown(scene: Scene) -> None:
    document = scene.json("vkey")
    verifier = NoteVerifier.parse(document["vkey"])
    assert document["vkey"] == scene.vkey
    assert document["origin"] == verifier.name == ORIGIN
    assert document["key_id"] == verifier.key_id.hex()
    assert document["url"] == f"{scene.settings.server.public_http}/ledger"


def test_before_the_first_checkpoint_there_is_neither_key_nor_receipt(make_settings: MakeSettings) -> None:
    settings = make_settings()

    async def make() -> str:
        async with ocsp_desk(settings) as desk:
            return (await _issue(desk))[0]

    scene = Scene(settings, (), asyncio.run(make()), Path())
    assert "no checkpoint" in scene.json("vkey", expect=1)["error"]
    assert "covers" in scene.json("proof", scene.uncovered, expect=1)["error"]


# proof.


def test_a_receipt_is_shown_as_it_is_served(scene: Scene) -> None:
    serial, der = scene.certificates[0]
    text = scene.run("proof", serial).stdout
    document = scene.json("proof", serial)
    assert text == document["proof"]
    assert Receipt.parse(text).index == document["index"] < document["size"]
    assert document["serial"] == serial
    assert scene.receipt().read_text() == text
    for named in (f"0x{serial.upper()}", scene.file("c.der", der), scene.certificate()):
        assert scene.run("proof", named).stdout == text


def test_no_receipt_for_what_was_not_issued_here(scene: Scene) -> None:
    assert "issued here" in scene.json("proof", "00" * 16, expect=1)["error"]
    assert "covers" in scene.json("proof", scene.uncovered, expect=1)["error"]
    scene.run("proof", "neither", expect=2)


# verify-proof.


@pytest.mark.parametrize("number", [0, 1])
def test_a_receipt_verifies(scene: Scene, number: int) -> None:
    serial, der = scene.certificates[number]
    vkey, receipt = scene.vkey, scene.receipt(number)
    document = scene.json("verify-proof", "--vkey", vkey, scene.certificate(number), receipt)
    assert document == {
        "verified": True,
        "serial": serial,
        "index": scene.json("proof", serial)["index"],
        "origin": ORIGIN,
        "size": scene.json("proof", serial)["size"],
        "root": document["root"],
    }
    for key in (vkey, f"@{scene.file('vkey', vkey)}", f"@{scene.file('line', vkey + chr(10))}"):
        for certificate in (scene.certificate(number), scene.file("c.der", der)):
            shown = scene.run("verify-proof", "--vkey", key, certificate, receipt).stdout
            assert shown.startswith(f"verified: certificate {serial}")


def test_it_needs_nothing_but_what_it_is_given(scene: Scene) -> None:
    """Another machine: no home, no database, no token, no settings."""
    environment = {**clean_environment(), "PRIVYSEAL_HOME": str(scene.folder / "nowhere"), "HOME": str(scene.folder)}
    arguments: list[str | Path] = ["verify-proof", "--vkey", scene.vkey, scene.certificate(), scene.receipt(), "--json"]
    before = sorted(scene.folder.iterdir())
    done = run_command(PRIVYSEAL, "ledger", *arguments, env=environment)
    assert json.loads(done.stdout)["verified"] is True
    assert sorted(scene.folder.iterdir()) == before
    arguments[3] = scene.certificate(1)
    done = run_command(PRIVYSEAL, "ledger", *arguments, env=environment, expect=1)
    assert "verified" not in json.loads(done.stdout)


def test_a_receipt_of_another_certificate(scene: Scene) -> None:
    vkey = scene.vkey
    for certificate, receipt in ((0, 1), (1, 0)):
        error = scene.json(
            "verify-proof", "--vkey", vkey, scene.certificate(certificate), scene.receipt(receipt), expect=1
        )
        assert "error" in error


def test_an_issuers_certificate_is_refused(scene: Scene) -> None:
    error = scene.json(
        "verify-proof", "--vkey", scene.vkey, scene.settings.home / "roots.pem", scene.receipt(), expect=1
    )
    assert "error" in error


def test_another_key(scene: Scene) -> None:
    name, _, key = scene.vkey.split("+", 2)
    public_key = NoteVerifier.parse(scene.vkey).key
    for wrong in (
        "",
        "nonsense",
        f"{name}+00000000+{key}",
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        NoteVerifier.for_key("another.test/log", public_key).vkey(),
    ):
        assert "error" in scene.json("verify-proof", "--vkey", wrong, scene.certificate(), scene.receipt(), expect=1)
    assert "cannot be read" in scene.json(
        "verify-proof", "--vkey", f"@{scene.folder / 'none'}", scene.certificate(), scene.receipt(), expect=1
    )["error"]  # fmt: skip


def test_every_changed_line_of_a_receipt_is_found(scene: Scene) -> None:
    vkey, certificate = scene.vkey, scene.certificate()
    lines = scene.receipt().read_text().splitlines(keepends=True)
    for number, line in enumerate(lines):
        for changed in (
            [],
            [line, line],
            [line[:-2] + ("A" if line[-2:-1] != "A" else "B") + "\n"],
            [line.rstrip("\n") + " \n"],
            [line.rstrip("\n") + "\r\n"],
        ):
            wrong = scene.file("wrong", "".join([*lines[:number], *changed, *lines[number + 1 :]]))
            assert "error" in scene.json("verify-proof", "--vkey", vkey, certificate, wrong, expect=1), (line, changed)
    for end in range(0, len("".join(lines)), 37):
        wrong = scene.file("wrong", "".join(lines)[:end])
        assert "error" in scene.json("verify-proof", "--vkey", vkey, certificate, wrong, expect=1)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"\0" * 100, b"x" * (3 << 20)])
def test_files_that_are_none(scene: Scene, content: bytes) -> None:
    wrong, vkey = scene.file("wrong", content), scene.vkey
    receipt, certificate = scene.receipt(), scene.certificate()
    for arguments in (
        ("--vkey", vkey, certificate, wrong),
        ("--vkey", vkey, wrong, receipt),
        ("--vkey", f"@{wrong}", certificate, receipt),
    ):
        assert "error" in scene.json("verify-proof", *arguments, expect=1)


def test_calls_that_make_no_sense(scene: Scene) -> None:
    certificate, receipt = scene.certificate(), scene.receipt()
    scene.run("verify-proof", certificate, receipt, expect=2)
    scene.run("verify-proof", "--vkey", scene.vkey, certificate, expect=2)
    scene.run("verify-proof", "--vkey", scene.vkey, certificate, scene.folder / "none", expect=2)
    scene.run("verify-proof", "--vkey", scene.vkey, certificate, scene.folder, expect=2)
