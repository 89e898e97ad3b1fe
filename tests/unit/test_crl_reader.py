"""CRLs read piece by piece, beside cryptography, which reads them at once."""

import tracemalloc
from hashlib import sha256

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.issuing import NOW, issuer, issuer_key
from privyseal_ca.ledger.crl_reader import CrlReader, Listed, MalformedCrlError
from privyseal_ca.revocation.crl import CrlAssembly, CrlOutline, Revoked, sign_crl

KINDS = ("ec-p256", "ec-p384", "rsa", "ed25519")
revocations = st.lists(
    st.tuples(
        st.integers(1, 2**127 - 1).map(lambda serial: f"{serial:032x}"),
        st.integers(0, 2**33),
        st.sampled_from([None, 1, 4, 5, 9]),
    ),
    max_size=30,
)


def make(revoked: list[Revoked], kind: str = "ec-p256", url: str | None = None) -> bytes:
    outline = CrlOutline(issuer(kind), 7, int(NOW), int(NOW) + 86400, url=url)
    with CrlAssembly(outline) as assembly:
        assembly.add(revoked)
        signed = assembly.to_be_signed()
        finished = assembly.finish(signed, sign_crl(outline.issuer, signed)(issuer_key(kind)))
        return b"".join(finished.pieces())


def read(der: bytes, size: int) -> tuple[CrlReader, x509.CertificateRevocationList, list[Listed]]:
    reader = CrlReader()
    listed = [entry for begin in range(0, len(der), size) for entry in reader.feed(der[begin : begin + size])]
    return reader, reader.finish(), listed


@given(revocations, st.sampled_from(KINDS), st.integers(1, 400), st.booleans())
@settings(max_examples=80, deadline=None)
def test_it_reads_what_cryptography_reads(revoked: list[Revoked], kind: str, size: int, part: bool) -> None:
    der = make(revoked, kind, "http://ca.example/crl/x/0.crl" if part else None)
    reader, outline, listed = read(der, size)
    whole = x509.load_der_x509_crl(der)
    assert [(entry.serial, entry.revoked_at, entry.reason) for entry in listed] == revoked
    assert [int(entry.serial, 16) for entry in listed] == [entry.serial_number for entry in whole]
    assert (reader.entries, reader.size, reader.sha256.digest()) == (len(revoked), len(der), sha256(der).digest())
    assert (outline.issuer, outline.next_update_utc, len(outline)) == (whole.issuer, whole.next_update_utc, 0)
    assert list(outline.extensions) == list(whole.extensions)
    assert reader.signed_by(outline, issuer(kind).certificate)
    other = next(name for name in KINDS if name != kind)
    assert not reader.signed_by(outline, issuer(other).certificate)


@given(st.integers(0, 10_000), st.integers(1, 255), st.sampled_from(KINDS), st.integers(1, 500))
@settings(max_examples=150, deadline=None)
def test_whatever_is_changed_is_malformed_or_not_signed(position: int, flip: int, kind: str, size: int) -> None:
    der = bytearray(make([(f"{serial:032x}", int(NOW), 4) for serial in range(1, 4)], kind))
    der[position % len(der)] ^= flip
    try:
        reader, outline, _ = read(bytes(der), size)
        signed = reader.signed_by(outline, issuer(kind).certificate)
        # The algorithm is named a second time outside of what is signed, and some signatures have several encodings.
        assert not signed or x509.load_der_x509_crl(bytes(der)).is_signature_valid(issuer(kind).public_key)
    except MalformedCrlError:
        pass


@given(st.binary(max_size=200), st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_whatever_is_read_nothing_else_is_raised(octets: bytes, size: int) -> None:
    with pytest.raises(MalformedCrlError):
        read(octets, size)


def test_what_is_behind_it_or_missing_is_found() -> None:
    der = make([("0" * 31 + "1", int(NOW), None)])
    with pytest.raises(MalformedCrlError, match="behind"):
        read(der + b"\0", 100)
    for length in range(len(der)):
        with pytest.raises(MalformedCrlError):
            read(der[:length], 64)


def test_memory_does_not_grow_with_the_list() -> None:
    der = make([(f"{serial:032x}", int(NOW), 4) for serial in range(1, 100_001)])
    assert len(der) > 3_000_000
    tracemalloc.start()
    reader, count = CrlReader(), 0
    for begin in range(0, len(der), 64 * 1024):
        count += len(reader.feed(der[begin : begin + 64 * 1024]))
    reader.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 100_000
    assert peak < 2_000_000
