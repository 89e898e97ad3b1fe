"""OCSP requests: what is read out of them, and that nothing a stranger sends makes the parser raise or linger."""

import secrets
import subprocess
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import issuing
from privyseal_ca.revocation.ocsp_request import CERT_ID_HASHES, MAX_REQUEST, encode_request, parse_request
from privyseal_ca.revocation.ocsp_response import issuer_hashes
from privyseal_ca.revocation.published import OcspQuery, OcspStatus

MALFORMED = OcspStatus.MALFORMED_REQUEST
SERIAL = 0x1234567890ABCDEF


def request(
    *extensions: tuple[x509.ExtensionType, bool], serial: int = SERIAL, algorithm: hashes.HashAlgorithm | None = None
) -> bytes:
    algorithm = algorithm or CERT_ID_HASHES["sha1"]
    digest = b"\x01" * algorithm.digest_size
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(digest, digest, serial, algorithm)  # type: ignore[arg-type]
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.build().public_bytes(Encoding.DER)


def tlv(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    length = size.to_bytes((size.bit_length() + 7) // 8 or 1, "big")
    return bytes([tag]) + (bytes([0x80 | len(length)]) if size > 127 else b"") + length + content


#: The parts of a request by hand, for what the library's builder does not make.
SHA1 = tlv(0x30, bytes.fromhex("06052b0e03021a"), b"\x05\x00")
CERT_ID = tlv(0x30, SHA1, tlv(0x04, b"\x01" * 20), tlv(0x04, b"\x01" * 20), tlv(0x02, b"\x05"))


def extension(oid: str, value: bytes, *, critical: bool = False) -> bytes:
    return tlv(0x30, tlv(0x06, bytes.fromhex(oid)), b"\x01\x01\xff" if critical else b"", tlv(0x04, value))


NONCE = "2b0601050507300102"
SERVICE_LOCATOR = "2b0601050507300107"


def by_hand(*requests: bytes, extensions: bytes = b"", signature: bytes = b"") -> bytes:
    wrapped = tlv(0xA2, tlv(0x30, extensions)) if extensions else b""
    return tlv(0x30, tlv(0x30, tlv(0x30, *requests), wrapped), signature)


def one(*extensions: bytes) -> bytes:
    return tlv(0x30, CERT_ID, tlv(0xA0, tlv(0x30, *extensions)) if extensions else b"")


@pytest.mark.parametrize(("name", "algorithm"), CERT_ID_HASHES.items())
def test_a_request_says_what_it_asks(name: str, algorithm: hashes.HashAlgorithm) -> None:
    digest = b"\x01" * algorithm.digest_size
    query = parse_request(request(algorithm=algorithm))
    assert query == OcspQuery(name, digest, digest, SERIAL)
    assert encode_request(query) == request(algorithm=algorithm)


@pytest.mark.parametrize("algorithm", [hashes.SHA224(), hashes.SHA384(), hashes.SHA512()])
def test_nothing_is_known_by_other_hashes(algorithm: hashes.HashAlgorithm) -> None:
    assert parse_request(request(algorithm=algorithm)) is OcspStatus.UNAUTHORIZED


def test_nothing_is_known_by_a_hash_that_nobody_knows() -> None:
    strange = CERT_ID.replace(bytes.fromhex("06052b0e03021a"), bytes.fromhex("06052b0e03027f"))
    assert parse_request(by_hand(tlv(0x30, strange))) is OcspStatus.UNAUTHORIZED


@pytest.mark.parametrize(
    ("octets", "expected"),
    [(1, None), (15, None), (16, 16), (32, 32), (33, 33), (128, 128), (0, MALFORMED), (129, MALFORMED)],
)
def test_nonces_by_their_length(octets: int, expected: int | OcspStatus | None) -> None:
    """RFC 9654 section 2.1."""
    nonce = secrets.token_bytes(octets)
    answer = parse_request(request((x509.OCSPNonce(nonce), False)))
    if isinstance(expected, OcspStatus):
        assert answer is expected
    else:
        assert isinstance(answer, OcspQuery)
        assert answer.nonce == (nonce if expected else None)


def test_a_nonce_may_be_critical() -> None:
    answer = parse_request(request((x509.OCSPNonce(b"n" * 32), True)))
    assert isinstance(answer, OcspQuery)
    assert answer.nonce == b"n" * 32


@pytest.mark.parametrize("value", [b"", b"raw nonce without a tag", tlv(0x02, b"\x05"), tlv(0x04, b"n" * 32) + b"x"])
def test_a_nonce_that_is_no_octet_string(value: bytes) -> None:
    assert parse_request(by_hand(one(), extensions=extension(NONCE, value))) is MALFORMED


def test_extensions_that_nobody_knows() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    assert isinstance(parse_request(request((unknown, False))), OcspQuery)
    assert parse_request(request((unknown, True))) is MALFORMED
    acceptable = x509.OCSPAcceptableResponses([x509.ObjectIdentifier("1.3.6.1.5.5.7.48.1.1")])
    assert isinstance(parse_request(request((acceptable, True))), OcspQuery)


def test_extensions_of_the_single_request() -> None:
    assert isinstance(parse_request(by_hand(one(extension(SERVICE_LOCATOR, b"\x05\x00")))), OcspQuery)
    assert parse_request(by_hand(one(extension(SERVICE_LOCATOR, b"\x05\x00", critical=True)))) is MALFORMED


def test_the_same_extension_twice() -> None:
    twice = extension(NONCE, tlv(0x04, b"n" * 16)) * 2
    assert parse_request(by_hand(one(), extensions=twice)) is MALFORMED


@pytest.mark.parametrize("count", [0, 2, 40])
def test_exactly_one_certificate_is_asked_about(count: int) -> None:
    """RFC 9919 section 3.1."""
    assert parse_request(by_hand(*[one()] * count)) is MALFORMED
    assert isinstance(parse_request(by_hand(one())), OcspQuery)


def test_a_signature_makes_no_difference() -> None:
    algorithm = tlv(0x30, bytes.fromhex("06082a8648ce3d040302"))
    signature = tlv(0xA0, tlv(0x30, algorithm, tlv(0x03, b"\x00" + b"s" * 70)))
    assert parse_request(by_hand(one(), signature=signature)) == parse_request(by_hand(one()))


@pytest.mark.parametrize("serial", [0, 1, (1 << 159) - 1, 1 << 160, 1 << 8000])
def test_serials_of_any_size_are_read(serial: int) -> None:
    answer = parse_request(request(serial=serial))
    assert isinstance(answer, OcspQuery)
    assert answer.serial == serial


def test_a_negative_serial_is_read() -> None:
    answer = parse_request(by_hand(one()).replace(b"\x02\x01\x05", b"\x02\x01\xfb"))
    assert answer is MALFORMED or (isinstance(answer, OcspQuery) and answer.serial == -5)


def test_what_is_too_long_is_not_even_read() -> None:
    long = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x" * 1900)
    der = request((long, False))
    assert isinstance(parse_request(der), OcspQuery)
    for size in (MAX_REQUEST + 1, 1 << 24):
        assert parse_request(der.ljust(size, b"\0")) is MALFORMED


def test_requests_of_openssl(tmp_path: Path) -> None:
    authority = issuing.issuer()
    certificate = tmp_path / "issuer.pem"
    certificate.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    der = tmp_path / "request.der"
    for hash_name in ("sha1", "sha256"):
        for nonce in (True, False):
            command = [
                "openssl",
                "ocsp",
                f"-{hash_name}",
                "-issuer",
                certificate,
                "-serial",
                str(SERIAL),
                "-reqout",
                der,
            ]
            subprocess.run([*command, "-nonce" if nonce else "-no_nonce"], check=True, capture_output=True, timeout=20)
            answer = parse_request(der.read_bytes())
            assert isinstance(answer, OcspQuery)
            # The hashes over the issuer's name and key are those that openssl makes of its certificate.
            expected = OcspQuery(hash_name, *issuer_hashes(authority.certificate, hash_name), SERIAL, answer.nonce)
            assert answer == expected
            assert (answer.nonce is not None) == nonce
            if not nonce:
                assert encode_request(answer) == der.read_bytes()


@cache
def samples() -> tuple[bytes, ...]:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    return (
        request(),
        request(algorithm=hashes.SHA256()),
        request((x509.OCSPNonce(b"n" * 32), False)),
        request((x509.OCSPNonce(b"n" * 32), True), (unknown, False), algorithm=hashes.SHA256()),
        by_hand(one(extension(SERVICE_LOCATOR, b"\x05\x00", critical=True)), extensions=extension(NONCE, b"\x04\x00")),
        by_hand(one(), one()),
    )


def check(der: bytes) -> None:
    begun = perf_counter()
    answer: Any = parse_request(der)
    assert perf_counter() - begun < 0.5
    if isinstance(answer, OcspQuery):
        assert answer.hash_name in {"sha1", "sha256"}
        assert answer.nonce is None or 16 <= len(answer.nonce) <= 128
    else:
        assert answer in {MALFORMED, OcspStatus.UNAUTHORIZED}


@given(st.binary(max_size=3000))
@settings(max_examples=300, deadline=None)
def test_any_octets_at_all(der: bytes) -> None:
    check(der)


@given(
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.integers(0, 400) | st.none(),
    st.binary(max_size=8),
)
@settings(max_examples=1500, deadline=None)
def test_requests_with_octets_changed_cut_and_added(
    which: int, changes: list[tuple[int, int]], cut: int | None, tail: bytes
) -> None:
    der = bytearray(samples()[which])
    for position, value in changes:
        der[position % len(der)] = value
    check(bytes(der[:cut]) + tail)


def test_every_truncation_and_every_octet_changed() -> None:
    for sample in samples()[2:5]:
        for position in range(len(sample)):
            check(sample[:position])
            for value in (0x00, 0x01, 0x30, 0x7F, 0x80, 0x84, 0xA0, 0xFF):
                check(sample[:position] + bytes([value]) + sample[position + 1 :])
