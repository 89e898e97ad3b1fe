"""What is fetched is believed only when everything about it is right; each thing that is wrong is named."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.statuses import DAY, FakeIssuer, distribution, unsigned
from privyseal_ca.revocation.published import PublishedCrl
from privyseal_ca.revocation.verify import check_crl, check_ocsp, inspect_crl, inspect_ocsp, ocsp_request

NOW = 1_800_000_000.0
URL = "http://ca.example/crl/ab/3.crl"
SERIAL = 0x77
ISSUER = FakeIssuer(NOW)
OTHER = FakeIssuer(NOW, common_name="Another CA")
SAME_NAME = FakeIssuer(NOW)


def expected(*, shard: int | None = 3, delta: bool = False, number: int = 7) -> PublishedCrl:
    return PublishedCrl(ISSUER.id, shard, delta, number, 0, 0, 0, b"")


def crl_findings(der: bytes, of: PublishedCrl | None = None, **arguments: object) -> list[str]:
    return check_crl(
        der, **{"issuer": ISSUER.certificate, "expected": of or expected(), "url": URL, "now": NOW} | arguments
    )


GOOD_PART = ISSUER.crl(7, [SERIAL], point=URL)
GOOD_FULL = ISSUER.crl(7, [SERIAL])
GOOD_DELTA = ISSUER.crl(7, [SERIAL], point=URL, base=5)


@pytest.mark.parametrize(
    ("der", "of"),
    [(GOOD_PART, expected()), (GOOD_FULL, expected(shard=None)), (GOOD_DELTA, expected(delta=True))],
    ids=["part", "full", "delta"],
)
def test_a_good_crl(der: bytes, of: PublishedCrl) -> None:
    assert crl_findings(der, of, must_list=[SERIAL]) == []


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (rsa.generate_private_key(65537, 2048), hashes.SHA256()),
        (ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()),
        (ed25519.Ed25519PrivateKey.generate(), None),
    ],
    ids=["rsa", "p384", "ed25519"],
)
def test_issuers_of_every_kind(key: object, algorithm: object) -> None:
    issuer = FakeIssuer(NOW, key=key, algorithm=algorithm)
    findings = check_crl(issuer.crl(7, point=URL), issuer=issuer.certificate, expected=expected(), url=URL, now=NOW)
    assert findings == []
    response = issuer.response(SERIAL, "sha256")
    assert check_ocsp(response, issuer=issuer.certificate, serial=SERIAL, hash_name="sha256", now=NOW) == []


_CRL_FAULTS = {
    "is not a CRL": b"\x30\x03\x02\x01\x00",
    "names another issuer": ISSUER.crl(7, point=URL, issuer_name="Another CA"),
    "is not signed by the issuer's key": ISSUER.crl(7, point=URL, key=OTHER.key),
    "names another issuer's key": ISSUER.crl(
        7, point=URL, aki=x509.AuthorityKeyIdentifier.from_issuer_public_key(OTHER.key.public_key())
    ),
    "has no usable number": ISSUER.crl(7, point=URL, without=x509.CRLNumber),
    "is from the future": ISSUER.crl(7, point=URL, this_update=6),
    "is out of date since": ISSUER.crl(7, point=URL, this_update=-DAY, next_update=0),
    "is an old one: number 6 after 7 was published": ISSUER.crl(6, point=URL),
    "does not say of which part it is": GOOD_FULL,
    "is for another distribution point": ISSUER.crl(7, point=URL.replace("3", "4")),
    "has an issuingDistributionPoint that is not critical": ISSUER.crl(7, point=URL, critical=False),
    "is for other kinds of certificates": ISSUER.crl(7, point=URL, user_certs=False),
    "is a delta CRL where a complete one must be": GOOD_DELTA,
    "has a critical extension that nobody knows": ISSUER.crl(
        7, point=URL, extra=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.1"), b"\x05\x00"), True)]
    ),
}


@pytest.mark.parametrize("finding", _CRL_FAULTS)
def test_a_wrong_crl(finding: str) -> None:
    findings = crl_findings(_CRL_FAULTS[finding])
    assert any(found.startswith(finding) for found in findings), findings


def test_a_part_where_all_of_the_list_must_be() -> None:
    findings = crl_findings(GOOD_PART, expected(shard=None))
    assert findings == ["is one part of the list where all of it must be"]


@pytest.mark.parametrize("base", [None, 8])
def test_what_is_no_delta(base: int | None) -> None:
    assert crl_findings(ISSUER.crl(7, point=URL, base=base), expected(delta=True)) == ["is no delta CRL"]


def test_a_clock_may_be_a_little_ahead() -> None:
    assert crl_findings(ISSUER.crl(7, point=URL, this_update=5)) == []


def test_a_newer_one_than_expected_is_good() -> None:
    assert crl_findings(ISSUER.crl(2**150, point=URL)) == []


def test_what_must_be_listed_and_is_not() -> None:
    assert crl_findings(GOOD_PART, must_list=[SERIAL, 1]) == ["does not list what was revoked"]


def test_every_fault_is_told_at_once() -> None:
    der = ISSUER.crl(6, point="http://x/", key=OTHER.key, next_update=-1)
    assert len(crl_findings(der)) == 4


def test_two_identifiers_of_a_distribution_point_are_another_one() -> None:
    both = x509.IssuingDistributionPoint(
        [x509.UniformResourceIdentifier(URL), x509.UniformResourceIdentifier("http://x/")],
        None,
        True,
        False,
        None,
        False,
        False,
    )
    assert crl_findings(ISSUER.crl(7, extra=[(both, True)])) == ["is for another distribution point"]
    assert crl_findings(ISSUER.crl(7, extra=[(distribution(URL), True)])) == []


def ocsp_findings(der: bytes, *, revoked_at: int | None = None, hash_name: str = "sha1") -> list[str]:
    return check_ocsp(
        der, issuer=ISSUER.certificate, serial=SERIAL, hash_name=hash_name, now=NOW, revoked_at=revoked_at
    )


@pytest.mark.parametrize("hash_name", ["sha1", "sha256"])
@pytest.mark.parametrize("revoked_at", [None, int(NOW) - 5])
def test_a_good_response(hash_name: str, revoked_at: int | None) -> None:
    der = ISSUER.response(SERIAL, hash_name, revoked_at=revoked_at)
    assert ocsp_findings(der, hash_name=hash_name, revoked_at=revoked_at) == []


def _resigned(der: bytes) -> bytes:
    """A response whose signature is not that of its responder."""
    signature = ocsp.load_der_ocsp_response(der).signature
    return der.replace(signature, signature[:-1] + bytes([signature[-1] ^ 1]))


_STRANGER = ec.generate_private_key(ec.SECP256R1())
_OCSP_FAULTS = {
    "is not an OCSP response": b"\x30\x00",
    "is the error try_later": unsigned(ocsp.OCSPResponseStatus.TRY_LATER),
    "is the error unauthorized": unsigned(ocsp.OCSPResponseStatus.UNAUTHORIZED),
    "answers for another certificate": ISSUER.response(SERIAL + 1),
    "names its responder otherwise than by key": ISSUER.response(SERIAL, by_name=True),
    "does not hold its responder's certificate": ISSUER.response(SERIAL, enclosed=False),
    "has a responder that the issuer did not certify": ISSUER.response(
        SERIAL, responder=SAME_NAME.delegate(_STRANGER), key=_STRANGER
    ),
    "is not signed by the responder that it names": _resigned(ISSUER.response(SERIAL)),
    "has a responder that may not sign responses": ISSUER.response(
        SERIAL, responder=ISSUER.delegate(_STRANGER, usage=ExtendedKeyUsageOID.CLIENT_AUTH), key=_STRANGER
    ),
    "has a responder whose own status must be checked": ISSUER.response(
        SERIAL, responder=ISSUER.delegate(_STRANGER, nocheck=False), key=_STRANGER
    ),
    "has a responder whose certificate is not valid now": ISSUER.response(
        SERIAL, responder=ISSUER.delegate(_STRANGER, end=-60), key=_STRANGER
    ),
    "is from the future": ISSUER.response(SERIAL, this_update=60),
    "is out of date since": ISSUER.response(SERIAL, next_update=-1),
    "has no nextUpdate": ISSUER.response(SERIAL, next_update=0),
    "says revoked": ISSUER.response(SERIAL, revoked_at=NOW),
    "says unknown": ISSUER.response(SERIAL, status=ocsp.OCSPCertStatus.UNKNOWN),
}


@pytest.mark.parametrize("finding", _OCSP_FAULTS)
def test_a_wrong_response(finding: str) -> None:
    findings = ocsp_findings(_OCSP_FAULTS[finding])
    assert len(findings) == 1, findings
    assert findings[0].startswith(finding)


def test_a_response_of_a_responder_that_is_not_valid_yet() -> None:
    der = ISSUER.response(SERIAL, responder=ISSUER.delegate(_STRANGER, begin=60), key=_STRANGER)
    assert ocsp_findings(der) == ["has a responder whose certificate is not valid now"]


def test_another_hash_than_was_asked_with() -> None:
    assert ocsp_findings(ISSUER.response(SERIAL, "sha256")) == ["answers for another certificate"]


def test_another_issuer_of_the_same_name() -> None:
    assert "answers for another certificate" in ocsp_findings(ISSUER.response(SERIAL, issuer=SAME_NAME))


def test_good_for_what_was_revoked_and_another_time_of_it() -> None:
    assert ocsp_findings(ISSUER.response(SERIAL), revoked_at=int(NOW)) == ["says good"]
    der = ISSUER.response(SERIAL, revoked_at=NOW - 60)
    assert ocsp_findings(der, revoked_at=int(NOW)) == ["gives another time of revocation"]


@pytest.mark.parametrize("hash_name", ["sha1", "sha256"])
def test_the_request_names_issuer_and_serial(hash_name: str) -> None:
    request = ocsp.load_der_ocsp_request(ocsp_request(ISSUER.certificate, SERIAL, hash_name))
    leaf = ISSUER.certify(_STRANGER.public_key(), ISSUER.certificate.subject, [])
    algorithm = hashes.SHA1() if hash_name == "sha1" else hashes.SHA256()  # noqa: S303 (of a CertID)
    reference = ocsp.OCSPRequestBuilder().add_certificate(leaf, ISSUER.certificate, algorithm).build()
    assert request.issuer_key_hash == reference.issuer_key_hash
    assert request.issuer_name_hash == reference.issuer_name_hash
    assert (request.serial_number, request.hash_algorithm.name) == (SERIAL, hash_name)


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, len(GOOD_PART) - 1), value=st.integers(1, 255))
def test_a_crl_with_one_octet_changed_is_never_good(position: int, value: int) -> None:
    changed = bytearray(GOOD_PART)
    changed[position] ^= value
    assert crl_findings(bytes(changed), must_list=[SERIAL])


_GOOD_RESPONSE = ISSUER.response(SERIAL, revoked_at=int(NOW))
_SIGNED = ocsp.load_der_ocsp_response(_GOOD_RESPONSE).tbs_response_bytes
_SIGNED_AT = _GOOD_RESPONSE.index(_SIGNED)


@settings(max_examples=150, deadline=None)
@given(position=st.integers(_SIGNED_AT, _SIGNED_AT + len(_SIGNED) - 1), value=st.integers(1, 255))
def test_a_response_with_one_signed_octet_changed_is_never_good(position: int, value: int) -> None:
    changed = bytearray(_GOOD_RESPONSE)
    changed[position] ^= value
    assert ocsp_findings(bytes(changed), revoked_at=int(NOW))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_named_and_never_raises(garbage: bytes) -> None:
    crl = inspect_crl(garbage, issuer=ISSUER.certificate, shard=None, delta=False, url=URL, serials=[SERIAL])
    assert crl.problems == ("is not a CRL",)
    response = inspect_ocsp(garbage, issuer=ISSUER.certificate, serial=SERIAL, hash_name="sha1", now=NOW)
    assert response.problems


@settings(max_examples=100, deadline=None)
@given(length=st.integers(0, len(GOOD_PART) - 1))
def test_what_was_cut_off_is_no_crl(length: int) -> None:
    assert crl_findings(GOOD_PART[:length]) == ["is not a CRL"]
