from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privyseal_ca.errors import ConfigurationError
from privyseal_ca.hsm.uri import KeyUri

PIN = "1234-very-secret"


def bounded(limit: int) -> st.SearchStrategy[str]:
    text = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=limit)
    return text.filter(lambda value: len(value.encode()) <= limit)


absolute = bounded(40).map(lambda text: Path("/lib", text.strip("/") or "module.so"))
uris = st.builds(
    KeyUri,
    token=st.none() | bounded(32),
    manufacturer=st.none() | bounded(32),
    serial=st.none() | bounded(16),
    model=st.none() | bounded(16),
    object=st.none() | bounded(64),
    id=st.none() | st.binary(max_size=32),
    type=st.none() | st.sampled_from(["public", "private", "secret-key", "cert", "data"]),
    module_path=st.none() | absolute,
    pin_source=st.none() | absolute.map(str),
)


@given(uris)
@settings(max_examples=200)
def test_what_is_written_reads_back(uri: KeyUri) -> None:
    assert KeyUri.parse(str(uri)) == uri
    assert str(KeyUri.parse(str(uri))) == str(uri)


@given(st.text(max_size=60) | st.text(alphabet="token=;?&%0aid:/module-pathpin-source", max_size=60))
@settings(max_examples=200)
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        uri = KeyUri.parse("pkcs11:" + text)
    except ConfigurationError:
        return
    assert KeyUri.parse(str(uri)) == uri


def test_the_parts_of_a_uri() -> None:
    uri = KeyUri.parse(
        "pkcs11:token=Priv%20Seal;object=issuer%3b1;id=%01%ffA;type=private?module-path=/usr/lib/p11.so&pin-source=file:/run/pin"
    )
    assert uri == KeyUri(
        token="Priv Seal",
        object="issuer;1",
        id=b"\x01\xffA",
        type="private",
        module_path=Path("/usr/lib/p11.so"),
        pin_source="file:/run/pin",
    )
    assert uri.pin_file == Path("/run/pin")
    assert str(uri.token_uri) == "pkcs11:token=Priv%20Seal?module-path=/usr/lib/p11.so&pin-source=file:/run/pin"


@pytest.mark.parametrize("source", ["file:/run/pin", "file:///run/pin", "file://localhost/run/pin", "/run/pin"])
def test_forms_of_pin_source(source: str) -> None:
    assert KeyUri.parse(f"pkcs11:token=t?pin-source={source}").pin_file == Path("/run/pin")


def test_the_scheme_has_no_case() -> None:
    assert KeyUri.parse("PKCS11:token=a") == KeyUri(token="a")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "pkcs11:"),
        ("token=a", "pkcs11:"),
        ("https://token=a", "pkcs11:"),
        ("pkcs11:token=a;token=b", "token is given twice"),
        ("pkcs11:id=%01;token=a;id=%01", "id is given twice"),
        ("pkcs11:token=a?module-path=/a&module-path=/b", "module-path is given twice"),
        ("pkcs11:slot-id=1", "slot-id is not accepted"),
        ("pkcs11:slot-description=x", "slot-description is not accepted"),
        ("pkcs11:library-version=3", "library-version is not accepted"),
        ("pkcs11:token=a?module-name=softhsm2", "module-name is not accepted"),
        ("pkcs11:token=a?module-path=lib/p11.so", "module-path is relative"),
        (f"pkcs11:token=a?pin-value={PIN}", "pin-value is not accepted"),
        (f"pkcs11:token=a?pin-source=file:/pin&pin-value={PIN}", "pin-value is not accepted"),
        (f"pkcs11:token=a;pin-value={PIN}", "pin-value is not accepted"),
        ("pkcs11:token=a?pin-source=|/bin/ask", "runs a program"),
        ("pkcs11:token=a?pin-source=%7c/bin/ask", "runs a program"),
        ("pkcs11:token=a?pin-source=file://elsewhere/pin", "no file of this machine"),
        ("pkcs11:token=a?pin-source=pin", "no absolute path"),
        ("pkcs11:token=a?pin-source=file:pin", "no absolute path"),
        ("pkcs11:color=red", "not known"),
        ("pkcs11:module-path=/a.so", "not in its place"),
        ("pkcs11:?token=a", "not in its place"),
        ("pkcs11:token", "token"),
        ("pkcs11:token=a;", "not known"),
        ("pkcs11:token=a b", "percent-encoded"),
        ("pkcs11:token=%2", "percent-encoded"),
        ("pkcs11:token=a#b", "percent-encoded"),
        ("pkcs11:token=%ff", "not UTF-8"),
        ("pkcs11:token=a%00", "NUL"),
        ("pkcs11:token=" + "a" * 33, "32 bytes"),
        ("pkcs11:serial=" + "1" * 17, "16 bytes"),
        ("pkcs11:id=" + "%00" * 256, "255 bytes"),
        ("pkcs11:type=secret", "type is none of"),
        ("pkcs11:token=a?" + "x" * 5000, "4096"),
    ],
)
def test_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        KeyUri.parse(text)
    assert says in caught.value.message
    assert caught.value.hint
    assert PIN not in str(caught.value)
    assert PIN not in repr(caught.value)


def test_refused_slots_come_with_advice() -> None:
    with pytest.raises(ConfigurationError) as caught:
        KeyUri.parse("pkcs11:slot-id=960490664")
    assert "token=LABEL" in caught.value.hint


def test_values_are_checked_however_they_come() -> None:
    with pytest.raises(ConfigurationError):
        KeyUri(token="a" * 33)
    with pytest.raises(ConfigurationError):
        KeyUri(module_path=Path("p11.so"))
