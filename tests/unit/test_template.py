import dataclasses
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from fakes.issuing import NOW, YEAR, issuer, issuer_key, key, profile, request, spki
from privyseal_ca.errors import (
    ConfigurationError,
    IssuerNotValidError,
    NameRefusedError,
    ProfileRefusedError,
    UnsupportedNameError,
)
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.issuance.profile import Profile
from privyseal_ca.issuance.template import (
    LATEST_START,
    CertificateRequest,
    IssuerIdentity,
    Template,
    build_template,
    key_identifier,
    new_serial,
    signature_hash,
)

DAY = 86400


def changed(profile: Profile, **fields: Any) -> Profile:
    values = {name: getattr(profile, name) for name in Profile.__slots__}
    return Profile(**{**values, "digest": sha256(repr(fields).encode()).hexdigest(), **fields})


def build(of: CertificateRequest, by: IssuerIdentity | None = None, *, now: float = NOW) -> Template:
    return build_template(of, by or issuer(), serial=99, now=now)


def signed(template: Template, kind: str = "ec-p256") -> x509.Certificate:
    private_key = issuer_key(kind)
    return template.builder.sign(private_key, signature_hash(private_key.public_key()))


def extension(certificate: x509.Certificate, kind: type[Any]) -> Any:
    return certificate.extensions.get_extension_for_class(kind)


def test_a_leaf_is_as_rfc_5280_has_it() -> None:
    by = issuer()
    certificate = signed(build(request("dns:a.example", "ip:10.0.0.1", "uri:spiffe://a.example/x"), by))
    assert certificate.version is x509.Version.v3
    assert certificate.serial_number == 99
    assert certificate.issuer == by.subject
    assert not list(certificate.subject)
    assert extension(certificate, x509.SubjectAlternativeName).critical
    assert extension(certificate, x509.KeyUsage).critical
    assert extension(certificate, x509.BasicConstraints).critical
    assert not extension(certificate, x509.BasicConstraints).value.ca
    for kind in (x509.ExtendedKeyUsage, x509.AuthorityKeyIdentifier, x509.SubjectKeyIdentifier):
        assert not extension(certificate, kind).critical
    aki = extension(certificate, x509.AuthorityKeyIdentifier).value
    assert (aki.key_identifier, aki.authority_cert_issuer, aki.authority_cert_serial_number) == (by.key_id, None, None)
    access = extension(certificate, x509.AuthorityInformationAccess).value
    assert [description.access_location.value for description in access] == [by.pointers.ocsp, by.pointers.ca_issuers]
    (point,) = extension(certificate, x509.CRLDistributionPoints).value
    assert [name.value for name in point.full_name] == [by.pointers.crl(99 % 8)]
    assert len(certificate.extensions) == 8


def test_key_identifier_is_rfc_7093_method_1() -> None:
    point = key("ec-p256").public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert key_identifier(spki(key("ec-p256").public_key())) == sha256(point).digest()[:20]
    raw = key("ed25519").public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert key_identifier(spki(key("ed25519").public_key())) == sha256(raw).digest()[:20]
    pkcs1 = key("rsa").public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
    assert key_identifier(spki(key("rsa").public_key())) == sha256(pkcs1).digest()[:20]


@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "ed25519", "rsa"])
def test_key_encipherment_is_for_rsa_keys(kind: str) -> None:
    usage = extension(signed(build(request(kind=kind, of=profile("server")))), x509.KeyUsage).value
    assert usage.digital_signature
    assert usage.key_encipherment is (kind == "rsa")


def test_lifetime_counts_from_now_and_backdating_comes_on_top() -> None:
    template = build(request(), now=NOW + 0.9)
    assert (template.not_before, template.not_after) == (NOW - 120, NOW + DAY - 1)
    certificate = signed(template)
    assert certificate.not_valid_before_utc == datetime.fromtimestamp(NOW - 120, UTC)
    assert certificate.not_valid_after_utc == datetime.fromtimestamp(NOW + DAY - 1, UTC)


def test_the_issuer_cuts_off_both_ends() -> None:
    template = build(request(), issuer(begin=NOW - 10, end=NOW + 1000))
    assert (template.not_before, template.not_after) == (NOW - 10, NOW + 1000)


@pytest.mark.parametrize(("begin", "end"), [(NOW + 1, NOW + YEAR), (NOW - YEAR, NOW - 1), (NOW - YEAR, NOW)])
def test_an_issuer_out_of_its_time_issues_nothing(begin: float, end: float) -> None:
    with pytest.raises(IssuerNotValidError):
        build(request(), issuer(begin=begin, end=end))


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (None, NOW + 60),
        (None, NOW + 7 * DAY - 1),
        (NOW - 120, None),
        (NOW, None),
        (NOW + 3600, None),
        (NOW + LATEST_START, NOW + LATEST_START + 7 * DAY - 1),
        (NOW - 60, NOW + 60),
    ],
)
def test_times_that_were_asked_for_are_given_exactly(begin: float | None, end: float | None) -> None:
    template = build(request(begin=begin, end=end))
    if begin is not None:
        assert template.not_before == begin
    if end is not None:
        assert template.not_after == end
    else:
        assert template.not_after == max(NOW, begin or 0) + DAY - 1


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (NOW - 121, None),
        (NOW + LATEST_START + 1, None),
        (None, NOW),
        (None, NOW - 1),
        (None, NOW + 7 * DAY),
        (None, NOW + YEAR + 1),
        (NOW + 100, NOW + 100),
        (NOW + 100, NOW + 50),
        (NOW + 0.5, None),
        (None, NOW + 60.25),
        (None, 0.0),
        (None, 1e12),
        (-1e12, None),
    ],
)
def test_other_times_are_refused(begin: float | None, end: float | None) -> None:
    with pytest.raises(ProfileRefusedError):
        build(request(begin=begin, end=end))


def test_an_end_beyond_the_issuers_is_refused_when_asked_for() -> None:
    by = issuer(end=NOW + 1000)
    assert build(request(end=NOW + 1000), by).not_after == NOW + 1000
    with pytest.raises(ProfileRefusedError):
        build(request(end=NOW + 1001), by)


@pytest.mark.parametrize(
    ("texts", "common_name"),
    [
        (["dns:a.example", "dns:b.example"], "a.example"),
        (["ip:10.0.0.1", "dns:b.example"], "b.example"),
        (["dns:" + "a" * 60 + ".example", "dns:b.example"], "b.example"),
        (["ip:10.0.0.1"], None),
        (["uri:spiffe://a.example/x"], None),
        (["dns:" + "a" * 60 + ".example"], None),
    ],
)
def test_common_names(texts: list[str], common_name: str | None) -> None:
    certificate = signed(build(request(*texts, of=changed(profile(), subject="common-name"))))
    found = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    assert found == ([common_name] if common_name else [])
    assert extension(certificate, x509.SubjectAlternativeName).critical is (common_name is None)


@pytest.mark.parametrize(
    ("crl", "deltas", "lists", "fresh"),
    [
        ("none", True, None, None),
        ("full", True, "http://ca.example/crl/test.crl", None),
        ("shard", False, "http://ca.example/crl/test/3.crl", None),
        ("shard", True, "http://ca.example/crl/test/3.crl", "http://ca.example/crl/test/3-delta.crl"),
    ],
)
def test_pointers_to_crls(crl: str, deltas: bool, lists: str | None, fresh: str | None) -> None:
    by = issuer()
    by = dataclasses.replace(by, pointers=dataclasses.replace(by.pointers, deltas=deltas))
    template = build(request(of=changed(profile(), crl=crl)), by)
    assert template.serial == 99
    assert template.crl_shard == (3 if crl == "shard" else None)
    found = {found.oid.dotted_string: found.value for found in signed(template).extensions}
    for oid, url in (("2.5.29.31", lists), ("2.5.29.46", fresh)):
        assert ([point.full_name[0].value for point in found[oid]] if oid in found else None) == (url and [url])


def test_pointers_to_ocsp_and_the_issuer_are_chosen_alone() -> None:
    only_ocsp = extension(
        signed(build(request(of=changed(profile(), aia_ca_issuers=False)))), x509.AuthorityInformationAccess
    )
    assert [each.access_location.value for each in only_ocsp.value] == ["http://ca.example/ocsp"]
    only_issuer = extension(signed(build(request(of=changed(profile(), ocsp=False)))), x509.AuthorityInformationAccess)
    assert [each.access_location.value for each in only_issuer.value] == ["http://ca.example/issuers/test.cer"]


def test_no_rev_avail_is_null_and_not_critical() -> None:
    certificate = signed(build(request(of=changed(profile(), no_rev_avail=True, ocsp=False, crl="none"))))
    found = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier("2.5.29.56"))
    assert (found.critical, found.value.public_bytes()) == (False, b"\x05\x00")


def test_what_does_not_fit_the_profile_is_refused() -> None:
    with pytest.raises(ProfileRefusedError, match="ec-p521"):
        build(request(kind="ec-p521"))
    with pytest.raises(UnsupportedNameError):
        build(request("email:a@b.example"))
    with pytest.raises(UnsupportedNameError):
        build(request("dns:*.a.example", of=profile("client")))


def test_names_outside_the_issuers_constraints_are_refused_before_signing() -> None:
    by = issuer(constraints=x509.NameConstraints([x509.DNSName("corp.example")], None))
    build(request("dns:a.corp.example"), by)
    with pytest.raises(NameRefusedError, match="name constraints"):
        build(request("dns:a.corp.example", "dns:a.example"), by)


def test_shapes_tell_kinds_apart_and_not_values() -> None:
    def shape(*texts: str, kind: str = "ec-p256", by: IssuerIdentity | None = None) -> object:
        return build(request(*texts, kind=kind), by).shape

    by = issuer()
    assert shape("dns:a.example", by=by) == shape("dns:bb.example.org", by=by)
    different = [
        shape("dns:a.example", by=by),
        shape("dns:*.example.org", by=by),
        shape("dns:db1", by=by),
        shape("dns:xn--bcher-kva.example", by=by),
        shape("dns:a.example", "dns:b.example", by=by),
        shape("dns:a.example", "ip:10.0.0.1", by=by),
        shape("dns:a.example", "ip:fd00::1", by=by),
        shape("ip:10.0.0.1", by=by),
        shape("uri:spiffe://a.example/x", by=by),
        shape("dns:a.example", kind="rsa", by=by),
        shape("dns:a.example", by=issuer("rsa")),
    ]
    assert len(set(different)) == len(different)


@given(st.binary(min_size=16, max_size=16).filter(any))
def test_serials_are_positive_and_fit(octets: bytes) -> None:
    draws = iter([octets, b"\x01" * 16])
    serial = new_serial(lambda _size: next(draws))
    assert 0 < serial < 1 << 127
    assert len(serial.to_bytes(16, "big")) == 16


def test_a_zero_serial_is_drawn_again() -> None:
    draws = iter([bytes(16), b"\x80" + bytes(15), b"\xff" * 16])
    assert new_serial(lambda _size: next(draws)) == (1 << 127) - 1


@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "ec-p521", "rsa", "ed25519"])
def test_the_issuer_signs_with_the_algorithm_of_its_key(kind: str) -> None:
    by = issuer(kind)
    expected = {"ec-p256": "sha256", "ec-p384": "sha384", "ec-p521": "sha512", "rsa": "sha256", "ed25519": None}[kind]
    digest = signature_hash(by.public_key)
    assert (digest and digest.name) == expected
    assert by.sign(issuer_key(kind), b"tbs")
    with pytest.raises(TypeError):
        by.sign(key("ed25519" if kind != "ed25519" else "rsa"), b"tbs")


def test_only_a_ca_certificate_makes_an_issuer() -> None:
    leaf = signed(build(request()))
    with pytest.raises(ConfigurationError, match="does not let it issue"):
        IssuerIdentity.from_certificate(leaf, name="x", pointers=Pointers("http://a.example", "x"))
    private_key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    bare = (
        x509.CertificateBuilder()
        .issuer_name(name)
        .subject_name(name)
        .public_key(private_key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2026, 1, 1))  # noqa: DTZ001
        .not_valid_after(datetime(2027, 1, 1))  # noqa: DTZ001
        .sign(private_key, signature_hash(private_key.public_key()))
    )
    with pytest.raises(ConfigurationError, match="cannot be used"):
        IssuerIdentity.from_certificate(bare, name="x", pointers=Pointers("http://a.example", "x"))
