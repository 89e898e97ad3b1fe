"""Base64url as RFC 8555 section 6.1 has it."""

from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privyseal_acme.protocol.encoding import decode, encode


@given(st.binary(max_size=200))
def test_round_trip(data: bytes) -> None:
    text = encode(data)
    assert text == urlsafe_b64encode(data).rstrip(b"=").decode()
    assert decode(text) == data


@given(st.text(max_size=40))
def test_any_text_is_decoded_or_refused(text: str) -> None:
    try:
        data = decode(text)
    except ValueError:
        return
    # One form for one value: what is taken is what would be written.
    assert encode(data) == text


@pytest.mark.parametrize(
    "text",
    ["=", "A", "AA=", "AA==", "AAAA=", "AB", "AAB", "A-+/", "AA\n", " AA", "AA AA", "\u00e9\u00e9", "AAAAA", "A*AA"],
)
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode(text)


def test_nothing_stands_for_nothing() -> None:
    assert decode("") == b""
    assert encode(b"") == ""


# RFC 4648 section 10, without the padding; RFC 7515 appendix C.
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"f", "Zg"),
        (b"fo", "Zm8"),
        (b"foo", "Zm9v"),
        (b"foobar", "Zm9vYmFy"),
        (bytes([3, 236, 255, 224, 193]), "A-z_4ME"),
    ],
)
def test_published(data: bytes, text: str) -> None:
    assert encode(data) == text
    assert decode(text) == data
