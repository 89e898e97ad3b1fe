"""A process that is killed while SoftHSM writes a token's file costs nobody the token (promise P1: there is no other copy of a key)."""

import logging
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.process import served
from fakes.softhsm import SoftToken, make_hsm
from privyseal_ca.errors import SignerUnavailableError
from privyseal_ca.hsm.modules import Modules
from privyseal_ca.hsm.softhsm import CONF_VARIABLE, embed
from privyseal_ca.hsm.softhsm_guard import COPIES_DIRECTORY, guard_tokens, is_whole

TORN = [
    lambda _: b"",
    lambda whole: whole[:8],
    lambda whole: whole[:100],
    lambda whole: whole[:-1],
    lambda whole: bytes(len(whole)),
    lambda whole: whole + b"\x00",
]


def token_file(token: SoftToken) -> Path:
    return token.directory / "token.object"


def copy_of(token: SoftToken) -> Path:
    return token.tokens.parent / COPIES_DIRECTORY / token.directory.name


async def signs(token: SoftToken, uri: str) -> bool:
    """Whether a process that comes now can use the key: it initialises a SoftHSM of its own."""
    hsm = make_hsm(modules=Modules())
    try:
        key = await hsm.open_signing_key(uri)
        signature = await key.run(lambda private: private.sign(b"data", ec.ECDSA(hashes.SHA256())))  # type: ignore[call-arg, union-attr]
        key.public_key.verify(signature, b"data", ec.ECDSA(hashes.SHA256()))  # type: ignore[call-arg, union-attr]
    finally:
        await hsm.close()
    return True


@pytest.mark.parametrize("tear", TORN)
async def test_a_torn_file_is_restored(
    soft_token: SoftToken, tear: "type[bytes]", caplog: pytest.LogCaptureFixture
) -> None:
    key = await soft_token.signing_key()
    await soft_token.hsm.close()
    assert await signs(soft_token, key.uri)
    file = token_file(soft_token)
    whole = file.read_bytes()
    assert is_whole(whole)
    assert copy_of(soft_token).read_bytes()[8:] == whole[8:]
    file.write_bytes(tear(whole))
    with caplog.at_level(logging.ERROR):
        assert await signs(soft_token, key.uri)
    assert "restored from its copy" in caplog.text
    assert is_whole(file.read_bytes())
    assert file.stat().st_mode & 0o077 == 0
    assert copy_of(soft_token).stat().st_mode & 0o077 == 0


async def test_without_a_copy_it_is_said(soft_token: SoftToken, caplog: pytest.LogCaptureFixture) -> None:
    key = await soft_token.signing_key()
    await soft_token.hsm.close()
    file, copy = token_file(soft_token), copy_of(soft_token)
    whole = file.read_bytes()
    copy.unlink(missing_ok=True)
    file.write_bytes(b"")
    try:
        with caplog.at_level(logging.ERROR), pytest.raises(SignerUnavailableError):
            await signs(soft_token, key.uri)
        assert "there is no copy" in caplog.text
    finally:
        file.write_bytes(whole)


class Home:
    """A home of SoftHSM with one token's file, which nobody uses."""

    def __init__(self, folder: Path, content: bytes) -> None:
        self.environ = {CONF_VARIABLE: str(embed(folder))}
        self.file = folder / "tokens" / "one" / "token.object"
        self.file.parent.mkdir()
        self.file.write_bytes(content)
        self.copy = folder / COPIES_DIRECTORY / "one"
        self.pauses = 0

    def guard(self) -> None:
        guard_tokens(self.environ, sleep=self.sleep)

    def sleep(self, _: float) -> None:
        self.pauses += 1


@pytest.fixture
def whole(soft_token: SoftToken) -> bytes:
    return token_file(soft_token).read_bytes()


def test_a_file_that_is_just_written_is_left_alone(tmp_path: Path, whole: bytes) -> None:
    home = Home(tmp_path, whole)
    home.guard()
    newer = whole[:-1] + bytes([whole[-1] ^ 1])
    home.file.write_bytes(b"")

    def write(_: float) -> None:
        home.file.write_bytes(newer)

    guard_tokens(home.environ, sleep=write)
    assert home.file.read_bytes() == home.copy.read_bytes() == newer


def test_the_copy_follows_what_is_whole(tmp_path: Path, whole: bytes) -> None:
    """As when an operator has changed the PIN."""
    home = Home(tmp_path, whole)
    home.guard()
    before = home.copy.stat().st_ino
    # The generation alone, which every login changes, is not worth a write.
    home.file.write_bytes(b"\xff" * 8 + whole[8:])
    home.guard()
    assert home.copy.stat().st_ino == before
    changed = whole[:-1] + bytes([whole[-1] ^ 1])
    home.file.write_bytes(changed)
    home.guard()
    assert home.copy.read_bytes() == changed
    assert home.pauses == 0


def test_a_token_that_was_removed_stays_away(tmp_path: Path, whole: bytes) -> None:
    home = Home(tmp_path, whole)
    home.guard()
    shutil.rmtree(home.file.parent)
    home.guard()
    assert not home.file.exists()


def test_what_cannot_be_copied_stops_nobody(tmp_path: Path, whole: bytes, caplog: pytest.LogCaptureFixture) -> None:
    home = Home(tmp_path, whole)
    (tmp_path / COPIES_DIRECTORY).write_bytes(b"in the way")
    home.guard()
    assert "cannot be guarded" in caplog.text


@pytest.mark.parametrize("variable", [None, "/nonexistent/softhsm2.conf"])
def test_tokens_elsewhere_are_none_of_its_business(variable: str | None) -> None:
    guard_tokens({} if variable is None else {CONF_VARIABLE: variable})


def test_a_service_starts_after_a_kill_in_the_middle_of_a_login(tmp_path: Path) -> None:
    with served(tmp_path / "home") as server:
        server.close()
        for file in (server.home / "tokens").glob("*/token.object"):
            file.write_bytes(b"")
        server.start()
        server.command("ledger", "verify")
