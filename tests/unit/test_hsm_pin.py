import os
import pickle
import traceback
from pathlib import Path

import pytest

from privyseal_ca.errors import SignerMisconfiguredError
from privyseal_ca.hsm.pin import Pin, read_pin
from privyseal_ca.hsm.uri import KeyUri

SECRET = "correct horse"
TOKEN = KeyUri(token="t")


def put(path: Path, content: bytes = SECRET.encode() + b"\n", mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def read(
    home: Path, *, uri: KeyUri = TOKEN, pin: str = "", pin_file: Path | None = None, cred: Path | None = None
) -> str:
    return read_pin(uri, pin=pin, pin_file=pin_file, credentials=cred, home=home).reveal()


def test_sources_in_their_order(tmp_path: Path) -> None:
    put(tmp_path / "secrets" / "pin", b"home")
    assert read(tmp_path) == "home"
    put(tmp_path / "credentials" / "privyseal-pin", b"credential")
    credentials = tmp_path / "credentials"
    assert read(tmp_path, cred=credentials) == "credential"
    pin_file = put(tmp_path / "file", b"file")
    assert read(tmp_path, cred=credentials, pin_file=pin_file) == "file"
    assert read(tmp_path, cred=credentials, pin_file=pin_file, pin="setting") == "setting"
    source = put(tmp_path / "source", b"source")
    uri = KeyUri(token="t", pin_source=f"file:{source}")
    assert read(tmp_path, cred=credentials, pin_file=pin_file, pin="setting", uri=uri) == "source"


def test_a_named_source_is_not_passed_over(tmp_path: Path) -> None:
    put(tmp_path / "secrets" / "pin")
    for arguments in ({"pin_file": tmp_path / "none"}, {"uri": KeyUri(token="t", pin_source=str(tmp_path / "none"))}):
        with pytest.raises(SignerMisconfiguredError, match="cannot be read"):
            read(tmp_path, **arguments)


def test_no_pin_says_where_to_put_one(tmp_path: Path) -> None:
    with pytest.raises(SignerMisconfiguredError) as caught:
        read(tmp_path, cred=tmp_path / "credentials")
    assert "secrets/pin" in caught.value.hint
    assert "PRIVYSEAL_HSM__PIN" in caught.value.hint


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_one_line_end_is_not_part_of_it(tmp_path: Path, ending: bytes) -> None:
    assert read(tmp_path, pin_file=put(tmp_path / "pin", SECRET.encode() + ending)) == SECRET


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        SECRET.encode() + b"\n\n",
        SECRET.encode() + b"\nmore",
        b"\0" + SECRET.encode(),
        SECRET.encode() + b"\xff\xfe",
        SECRET.encode() * 30,
        b"\xef\xbb\xbf" + SECRET.encode(),
    ],
)
def test_content_that_is_no_pin_is_not_repeated(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SignerMisconfiguredError) as caught:
        read(tmp_path, pin_file=put(tmp_path / "pin", content))
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in "".join(traceback.format_exception(error))
        assert SECRET not in repr(vars(error))
        assert not isinstance(error, UnicodeDecodeError)
        error = error.__context__


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622, 0o601, 0o777])
def test_a_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SignerMisconfiguredError, match="used by others") as caught:
        read(tmp_path, pin_file=put(tmp_path / "pin", mode=mode))
    assert "chmod 600" in caught.value.hint


def test_systemd_may_show_an_access_list_as_group_bits(tmp_path: Path) -> None:
    put(tmp_path / "privyseal-pin", mode=0o440)
    assert read(tmp_path, cred=tmp_path) == SECRET
    put(tmp_path / "privyseal-pin", mode=0o444)
    with pytest.raises(SignerMisconfiguredError, match="used by others"):
        read(tmp_path, cred=tmp_path)


def test_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(SignerMisconfiguredError, match="not a regular file"):
            read(tmp_path, pin_file=path)


def test_mounted_secrets_are_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(put(tmp_path / "data" / "pin"))
    assert read(tmp_path, pin_file=tmp_path / "link") == SECRET


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "pin")
    os.chown(path, 12345, 12345)
    with pytest.raises(SignerMisconfiguredError, match="another user"):
        read(tmp_path, pin_file=path)


def test_a_pin_does_not_show() -> None:
    pin = Pin(SECRET)
    assert pin.reveal() == SECRET
    for text in (repr(pin), str(pin), f"{pin}", f"{pin!r:>40}", repr([pin]), repr({"pin": pin})):
        assert SECRET not in text
    with pytest.raises(TypeError):
        pickle.dumps(pin)
    assert not hasattr(pin, "__dict__")


@pytest.mark.parametrize("text", ["", "a\nb", "tab\t", "x" * 256, "\0"])
def test_text_that_is_no_pin(text: str) -> None:
    with pytest.raises(SignerMisconfiguredError) as caught:
        Pin(text)
    assert not text or text not in str(caught.value)
