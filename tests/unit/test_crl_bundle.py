"""The file with the CRLs of every CA: the same octets however they come, of the size that was told, and never a half one."""

import asyncio
import itertools
from base64 import encodebytes
from collections.abc import AsyncIterator, Iterable
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.status_sources import MemoryCrls
from privyseal_ca.errors import StatusUnavailableError
from privyseal_ca.revocation.crl_bundle import CrlBundle, pem_of
from privyseal_ca.revocation.published import PublishedCrl


class Pieces:
    """A source of whatever octets a test likes, in pieces of ``sizes``."""

    def __init__(self, contents: dict[str, bytes], sizes: Iterable[int]) -> None:
        self.contents = contents
        self._sizes = list(sizes)
        self._crls = [
            PublishedCrl(name, None, False, 1, 100, 200, len(der), sha256(der).digest())
            for name, der in contents.items()
        ]

    def find(self, issuer_id: str, shard: int | None, *, delta: bool) -> PublishedCrl | None:
        raise NotImplementedError

    def published(self) -> Iterable[PublishedCrl]:
        return self._crls

    async def read(self, crl: PublishedCrl) -> AsyncIterator[bytes]:
        left = self.contents[crl.issuer_id]
        for size in itertools.cycle(self._sizes):
            if not left:
                return
            yield left[:size]
            left = left[size:]


def joined(source: Pieces | MemoryCrls, bundle: CrlBundle | None = None) -> bytes:
    async def work() -> bytes:
        one = bundle or CrlBundle.of(source.published())
        return b"".join([piece async for piece in one.read(source)])

    return asyncio.run(work())


def expected(der: bytes) -> bytes:
    """By another way than the product's."""
    text = encodebytes(der).replace(b"\n", b"")
    lines = [text[begin : begin + 64] for begin in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN X509 CRL-----", *lines, b"-----END X509 CRL-----", b""])


@given(
    st.dictionaries(st.sampled_from(["0a", "1b", "9c", "ff"]), st.binary(min_size=1, max_size=400), min_size=1),
    st.lists(st.integers(1, 150), min_size=1, max_size=5),
)
def test_pieces_of_any_size_make_the_same_file(contents: dict[str, bytes], sizes: list[int]) -> None:
    source = Pieces(contents, sizes)
    bundle = CrlBundle.of(source.published())
    text = joined(source)
    assert text == b"".join(expected(contents[name]) for name in sorted(contents))
    assert bundle.size == len(text)
    assert all(pem_of(der) == expected(der) for der in contents.values())


@pytest.mark.parametrize("fault", [b"", b"short", b"x" * 96, b"x" * 97, b"x" * 1000])
def test_a_member_that_is_another_is_not_ended(fault: bytes) -> None:
    """Also when lines and lengths would fit."""
    source = Pieces({"0a": b"y" * 96, "1b": b"z"}, [48])
    bundle = CrlBundle.of(source.published())
    source.contents["0a"] = fault

    text = bytearray()

    async def read() -> None:
        async for piece in bundle.read(source):
            text.extend(piece)

    with pytest.raises(StatusUnavailableError):
        asyncio.run(read())
    assert b"END" not in text
    assert len(text) < bundle.size


def test_parts_and_deltas_are_left_out() -> None:
    source = MemoryCrls()
    source.publish(3)
    source.publish(3, delta=True)
    assert CrlBundle.of(source.published()).members == ()
    full = source.publish()
    assert CrlBundle.of(source.published()).members == (full,)


def test_the_tag_is_of_the_members_and_their_order_is_fixed() -> None:
    source = MemoryCrls()
    later, first = source.publish(issuer_id="bb"), source.publish(issuer_id="aa")
    one, other = CrlBundle.of([later, first]), CrlBundle.of([first, later])
    assert one == other
    assert one.sha256 == other.sha256
    assert CrlBundle.of([source.publish(issuer_id="aa"), later]).sha256 != one.sha256


def test_memory_is_bounded() -> None:
    size = 3 << 20
    source = Pieces({"0a": bytes(size)}, [256 << 10])

    async def longest() -> int:
        return max([len(piece) async for piece in CrlBundle.of(source.published()).read(source)])

    assert asyncio.run(longest()) < 360 << 10
