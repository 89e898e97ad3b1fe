"""OCSP requests as they stand in the path of a GET: every way in which clients and proxies write them."""

import os
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privyseal_ca.web.ocsp_path import request_in_path


def sequence(content: bytes) -> bytes:
    """A DER SEQUENCE of ``content``."""
    size = len(content)
    if size < 0x80:
        return bytes((0x30, size)) + content
    length = size.to_bytes(1 if size < 0x100 else 2)
    return bytes((0x30, 0x80 + len(length))) + length + content


#: Three bytes of ones are four slashes, of 0xFB 0xEF 0xBE four plusses.
DER = sequence(b"\xff\xff\xff\xff\xfb\xef\xbe\xfb\xef\xbe" + bytes(range(60)) + b"\xff\xff")
TEXT = b64encode(DER).decode()


@pytest.mark.parametrize(
    "path",
    [
        f"/{TEXT}",
        f"/{quote(TEXT, safe='')}",
        f"/{quote(quote(TEXT, safe=''), safe='')}",
        f"/{quote(TEXT)}",
        f"/{quote_plus(TEXT)}",
        f"/{TEXT.replace('+', ' ')}",
        f"/{TEXT.replace('+', '%20')}",
        f"/{TEXT.rstrip('=')}",
        f"/{TEXT.rstrip('=')}/",
        f"/{TEXT}/",
        f"//{TEXT}//",
        f"/%2F{TEXT}%2F",
        f"/{urlsafe_b64encode(DER).decode()}",
        f"/{urlsafe_b64encode(DER).decode().rstrip('=')}",
        f"/{TEXT}==",
        TEXT,
        "/" + "%0D%0A".join(TEXT[at : at + 64] for at in range(0, len(TEXT), 64)),
        "/" + "%0A".join(TEXT[at : at + 64] for at in range(0, len(TEXT), 64)),
    ],
)
def test_the_request_is_found(path: str) -> None:
    assert "/" in TEXT
    assert "+" in TEXT
    assert request_in_path(path) == DER


@pytest.mark.parametrize("size", [*range(1, 12), 83, 84, 85, 125, 126, 127, 128, 129, 253, 254, 255, 256, 257, 700])
@pytest.mark.parametrize("ending", ["", "/", "//"])
def test_slashes_at_the_end_are_told_from_base64(size: int, ending: str) -> None:
    """A request that ends in ones ends in slashes of its own."""
    for der in (sequence(b"\xff" * size), sequence(bytes(size))):
        for text in (b64encode(der).decode(), b64encode(der).decode().rstrip("=")):
            assert request_in_path(f"/{text}{ending}") == der


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "////",
        "/M",
        "/MA",
        f"/{TEXT[:-8]}",
        f"/{TEXT[4:]}",
        f"/{TEXT}AAAA",
        f"/{TEXT}/A",
        f"/x/{TEXT}",
        "/../../etc/passwd",
        "/%",
        "/%zz",
        "/%00",
        "/MA\N{LATIN SMALL LETTER E WITH ACUTE}=",
        "/\udc80",
        f"/{b64encode(bytes((0x30, 0x80)) + bytes(20)).decode()}",  # indefinite length
        f"/{b64encode(bytes((0x30, 0x84, 0, 0, 0, 20)) + bytes(20)).decode()}",  # a length longer than it must be
        f"/{b64encode(bytes((0x31, 20)) + bytes(20)).decode()}",
        "/" + "=" * 100,
        "/M" + "=" * 100,
    ],
)
def test_what_is_no_request_is_nothing(path: str) -> None:
    assert request_in_path(path) is None


def test_a_lost_character_is_not_guessed() -> None:
    """A proxy that merges slashes takes away what cannot be put back for certain."""
    assert "//" in TEXT
    assert request_in_path("/" + TEXT.replace("//", "/")) is None


@settings(max_examples=400)
@given(st.text(max_size=200))
@example("/%25%32%35")
def test_any_text_is_a_request_or_nothing(path: str) -> None:
    found = request_in_path(path)
    assert found is None or found[0] == 0x30


@settings(max_examples=300)
@given(
    st.binary(min_size=1, max_size=300),
    st.sampled_from([str, lambda text: quote(text, safe=""), lambda text: quote(quote(text, safe=""), safe="")]),
    st.booleans(),
    st.sampled_from(["", "/", "//"]),
    st.sampled_from(["", "/"]),
)
def test_whatever_is_written_is_read(content: bytes, encode: object, padded: bool, before: str, after: str) -> None:
    assert callable(encode)
    der = sequence(content)
    text = b64encode(der).decode() if padded else b64encode(der).decode().rstrip("=")
    assert request_in_path(f"/{before}{encode(text)}{after}") == der


def test_a_long_path_takes_no_long_time() -> None:
    """The callers' limit is 1,024 characters; this is what an HTTP request line can have."""
    assert request_in_path("/" + "%25" * 1300) is None
    assert request_in_path("/" + b64encode(sequence(os.urandom(3000))).decode()) is not None
