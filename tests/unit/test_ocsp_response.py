"""OCSP responses as cryptography's own loader and openssl read them, for every kind of key."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from fakes import issuing
from privyseal_ca.revocation.ocsp_request import encode_request
from privyseal_ca.revocation.ocsp_response import (
    CertStatus,
    Revoked,
    Statement,
    issuer_hashes,
    sign_responses,
    unsigned_response,
)
from privyseal_ca.revocation.published import OcspQuery, OcspStatus

NOW = int(issuing.NOW)
KINDS = ("ec-p256", "ec-p384", "rsa", "ed25519")


def signed(status: CertStatus, *, kind: str = "ec-p256", hash_name: str = "sha1", nonce: bytes | None = None) -> Any:
    authority = issuing.issuer(kind)
    query = OcspQuery(hash_name, *issuer_hashes(authority.certificate, hash_name), 0x1234, nonce)
    statement = Statement(query, status, NOW, NOW + 3600)
    (der,) = sign_responses(issuing.issuer_key(kind), authority.certificate, [statement])
    return query, der, ocsp.load_der_ocsp_response(der)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hash_name", ["sha1", "sha256"])
def test_good(kind: str, hash_name: str) -> None:
    query, der, response = signed("good", kind=kind, hash_name=hash_name)
    assert response.certificate_status is ocsp.OCSPCertStatus.GOOD
    assert (response.this_update_utc.timestamp(), response.next_update_utc.timestamp()) == (NOW, NOW + 3600)
    assert response.produced_at_utc.microsecond == 0
    assert not list(response.extensions)
    # The CertID is the request's, octet for octet.
    request = encode_request(query)
    assert request[8:] in der
    key = issuing.issuer_key(kind).public_key()
    assert response.responder_key_hash == x509.SubjectKeyIdentifier.from_public_key(key).digest
    (certificate,) = response.certificates
    assert certificate.public_key() == key


@pytest.mark.parametrize("reason", [None, 0, 1, 2, 3, 4, 5, 6, 8, 9, 10])
def test_revoked(reason: int | None) -> None:
    _, _, response = signed(Revoked(NOW - 5, reason))
    assert response.certificate_status is ocsp.OCSPCertStatus.REVOKED
    assert response.revocation_time_utc.timestamp() == NOW - 5
    assert (response.revocation_reason is None) == (not reason)


def test_unknown_with_a_nonce() -> None:
    _, der, response = signed("unknown", nonce=b"n" * 32)
    assert response.certificate_status is ocsp.OCSPCertStatus.UNKNOWN
    assert response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"n" * 32
    # RFC 9654 section 2.1: an OCTET STRING inside extnValue.
    assert b"\x04\x22\x04\x20" + b"n" * 32 in der


def test_many_are_signed_in_one_go() -> None:
    authority = issuing.issuer()
    hashes = issuer_hashes(authority.certificate, "sha1")
    statements = [Statement(OcspQuery("sha1", *hashes, serial), "good", NOW, NOW + 60) for serial in range(1, 65)]
    ders = sign_responses(issuing.issuer_key("ec-p256"), authority.certificate, statements)
    assert [ocsp.load_der_ocsp_response(der).serial_number for der in ders] == list(range(1, 65))
    assert sign_responses(issuing.issuer_key("ec-p256"), authority.certificate, []) == []


@pytest.mark.parametrize("status", list(OcspStatus))
def test_what_is_not_signed(status: OcspStatus, tmp_path: Path) -> None:
    der = unsigned_response(status)
    assert der == bytes([0x30, 0x03, 0x0A, 0x01, status])  # RFC 6960 section 4.2.1
    assert ocsp.load_der_ocsp_response(der).response_status.value == status
    path = tmp_path / "response.der"
    path.write_bytes(der)
    done = subprocess.run(
        ["openssl", "ocsp", "-respin", path, "-noverify"], capture_output=True, check=False, timeout=20
    )
    assert f"({int(status)})".encode() in done.stdout + done.stderr
