from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.issuing import csr, key, names, spki
from privyseal_ca.errors import CsrRefusedError, KeyRefusedError, PolicyError
from privyseal_ca.policy.csr import MAX_CSR, MAX_EXTENSIONS, vet_csr
from privyseal_ca.policy.keys import KeyPolicy
from privyseal_ca.sections import KeyPolicySettings

KEYS = KeyPolicy(KeyPolicySettings())
WEB = "dns:web.corp.example"


def common_name(text: str) -> x509.NameAttribute[str]:
    return x509.NameAttribute(NameOID.COMMON_NAME, text)


def vet(der: bytes, *texts: str) -> Any:
    return vet_csr(der, names(*(texts or (WEB,))), KEYS)


@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "ec-p521", "rsa", "ed25519"])
def test_a_plain_request_is_vetted(kind: str) -> None:
    vetted = vet(csr(WEB, kind=kind))
    der = spki(key(kind).public_key())
    assert vetted.spki_der == der
    assert vetted.spki_sha256 == sha256(der).digest()
    assert vetted.key_type == kind
    assert vetted.identifiers == set(names(WEB))
    assert spki(vetted.public_key) == der


def test_all_kinds_of_names_and_any_order() -> None:
    texts = [
        "dns:*.corp.example",
        "ip:10.0.0.1",
        "ip:fd00::1",
        "uri:spiffe://corp.example/web",
        "email:a@b.example",
        WEB,
    ]
    assert vet(csr(*texts), *reversed(texts)).identifiers == set(names(*texts))


def test_names_repeated_or_in_other_case_are_the_same_names() -> None:
    extension = x509.SubjectAlternativeName([x509.DNSName("WEB.corp.example"), x509.DNSName("web.Corp.Example")])
    assert vet(csr(extensions=[extension])).identifiers == set(names(WEB))


@pytest.mark.parametrize(
    ("subject", "san", "ordered"),
    [
        ([common_name("web.corp.example")], [], [WEB]),
        ([common_name("WEB.corp.example")], [WEB], [WEB]),
        ([common_name("10.0.0.1")], [], ["ip:10.0.0.1"]),
        ([common_name("10.0.0.1")], ["ip:10.0.0.1", WEB], ["ip:10.0.0.1", WEB]),
        ([common_name("FD00:0::1")], ["ip:fd00::1"], ["ip:fd00::1"]),
        ([common_name("a@b.example")], ["email:a@b.example"], ["email:a@b.example"]),
        ([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Any Corp")], [WEB], [WEB]),
    ],
)
def test_the_common_name_counts_as_one_more_name(subject: Any, san: list[str], ordered: list[str]) -> None:
    assert vet(csr(*san, subject=subject), *ordered).identifiers == set(names(*ordered))


@pytest.mark.parametrize(
    ("subject", "san", "ordered", "reason"),
    [
        ([], [], [WEB], "ordered but not asked for: web.corp.example"),
        ([], ["dns:other.corp.example"], [WEB], "not ordered: other.corp.example"),
        ([], [WEB, "dns:other.corp.example"], [WEB], "not ordered"),
        ([], [WEB], [WEB, "dns:other.corp.example"], "ordered but not asked for"),
        ([], ["dns:*.corp.example"], ["dns:corp.example"], "exactly"),
        ([], [WEB, "ip:10.0.0.1"], [WEB], "exactly"),
        ([], ["ip:10.0.0.1"], ["ip:10.0.0.2"], "exactly"),
        ([common_name("other.corp.example")], [WEB], [WEB], "exactly"),
        ([common_name("10.0.0.1")], [WEB], [WEB], "exactly"),
        ([common_name("My Server")], [WEB], [WEB], "common name"),
        ([common_name("web.corp.example."[:-1] + "\u0000.evil")], [WEB], [WEB], "common name"),
        ([common_name("web.corp.example"), common_name("web.corp.example")], [WEB], [WEB], "several"),
    ],
)
def test_other_names_are_refused(subject: Any, san: list[str], ordered: list[str], reason: str) -> None:
    with pytest.raises(CsrRefusedError, match=reason):
        vet(csr(*san, subject=subject), *ordered)


def test_the_list_of_other_names_is_bounded() -> None:
    many = [f"dns:host-{number}.corp.example" for number in range(200)]
    with pytest.raises(CsrRefusedError, match="and 195 more") as caught:
        vet(csr(*many, WEB))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name",
    [
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
        x509.DirectoryName(x509.Name([common_name("a")])),
        x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x01a"),
        x509.DNSName("10.0.0.1"),
        x509.DNSName("xn--a.example"),
        x509.DNSName("a.*.example"),
        x509.DNSName("web.corp.example\x00.evil.example"),
        x509.DNSName("web.corp.example."),
        x509.DNSName(""),
        x509.UniformResourceIdentifier("nonsense"),
        x509.RFC822Name("nonsense"),
    ],
)
def test_bad_names_are_refused_even_beside_good_ones(name: x509.GeneralName) -> None:
    extension = x509.SubjectAlternativeName([x509.DNSName("web.corp.example"), name])
    with pytest.raises(CsrRefusedError):
        vet(csr(extensions=[extension]))


@pytest.mark.parametrize(
    "extension",
    [
        x509.BasicConstraints(ca=False, path_length=None),
        x509.KeyUsage(True, False, True, False, False, False, False, False, False),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]),
        x509.TLSFeature([x509.TLSFeatureType.status_request]),
        x509.SubjectKeyIdentifier(b"1" * 20),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
    ],
    ids=lambda extension: type(extension).__name__,
)
def test_harmless_extensions_are_ignored(extension: x509.ExtensionType) -> None:
    assert vet(csr(WEB, extensions=[extension])).identifiers == set(names(WEB))


@pytest.mark.parametrize(
    "extension",
    [
        x509.BasicConstraints(ca=True, path_length=None),
        x509.BasicConstraints(ca=True, path_length=0),
        x509.KeyUsage(True, False, False, False, False, True, False, False, False),
        x509.KeyUsage(False, False, False, False, False, False, True, False, False),
        x509.NameConstraints([x509.DNSName("corp.example")], None),
    ],
)
def test_wishes_to_issue_are_refused(extension: x509.ExtensionType) -> None:
    with pytest.raises(CsrRefusedError, match="could issue others"):
        vet(csr(WEB, extensions=[extension]))


def test_too_many_extensions_are_refused() -> None:
    extras = [
        x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.{number}"), b"\x05\x00")
        for number in range(MAX_EXTENSIONS)
    ]
    with pytest.raises(CsrRefusedError, match="extensions"):
        vet(csr(WEB, extensions=extras))
    vet(csr(WEB, extensions=extras[1:]))


def rebuilt(der: bytes, old: bytes, new: bytes, private_key: ec.EllipticCurvePrivateKey) -> bytes:
    """``der`` with ``old`` replaced by as many octets in what is signed, and signed again."""
    assert len(old) == len(new)
    parsed = x509.load_der_x509_csr(der)
    info = parsed.tbs_certrequest_bytes
    assert info.count(old) == 1
    info = info.replace(old, new)
    outer = asn1.decode_der(Outer, der)
    replaced = Outer(
        info=element(info),
        algorithm=outer.algorithm,
        signature=asn1.BitString(private_key.sign(info, ec.ECDSA(hashes.SHA256())), 0),
    )
    return asn1.encode_der(replaced)


@asn1.sequence
class Outer:
    info: asn1.TLV
    algorithm: asn1.TLV
    signature: asn1.BitString


@asn1.sequence
class Holder:
    tlv: asn1.TLV


def element(der: bytes) -> asn1.TLV:
    assert 0 < len(der) < 256
    length = bytes([len(der)]) if len(der) < 128 else b"\x81" + bytes([len(der)])
    return asn1.decode_der(Holder, b"\x30" + length + der).tlv


def p256() -> ec.EllipticCurvePrivateKey:
    private_key = key("ec-p256")
    assert isinstance(private_key, ec.EllipticCurvePrivateKey)
    return private_key


def test_extensions_that_occur_twice_are_refused() -> None:
    first, second = (x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.{n}"), b"\x05\x00") for n in (4, 5))
    der = csr(WEB, extensions=[first, second])
    assert vet(der)
    with pytest.raises(CsrRefusedError, match="twice"):
        vet(rebuilt(der, bytes.fromhex("06032a0305"), bytes.fromhex("06032a0304"), p256()))


def test_other_versions_are_refused() -> None:
    der = csr(WEB)
    with pytest.raises(CsrRefusedError, match="version 1"):
        vet(rebuilt(der, bytes.fromhex("0201003000"), bytes.fromhex("0201023000"), p256()))


def test_points_off_the_curve_are_refused() -> None:
    der = csr(WEB)
    point = p256().public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    with pytest.raises(KeyRefusedError, match="malformed"):
        vet(rebuilt(der, point, point[:-1] + bytes([point[-1] ^ 1]), p256()))


def test_other_curves_are_refused() -> None:
    for curve in (ec.SECP256K1(), ec.SECP224R1()):
        with pytest.raises(KeyRefusedError, match="kind"):
            vet(csr(WEB, private_key=ec.generate_private_key(curve)))


def test_weak_keys_are_refused_before_anything_else() -> None:
    with pytest.raises(KeyRefusedError, match="publicly known"):
        vet(csr("dns:other.example", private_key=ec.derive_private_key(1, ec.SECP256R1())))
    with pytest.raises(KeyRefusedError, match="1024 bits"):
        vet(csr(WEB, private_key=rsa.generate_private_key(65537, 1024)))  # noqa: S505


def test_a_broken_signature_is_refused() -> None:
    der = bytearray(csr(WEB))
    der[-1] ^= 1
    with pytest.raises(CsrRefusedError, match="signature"):
        vet(bytes(der))


def test_a_signature_by_another_key_is_refused() -> None:
    der = csr(WEB)
    other = ec.generate_private_key(ec.SECP256R1())
    name = b"web.corp.example"
    with pytest.raises(CsrRefusedError, match="signature"):
        vet(rebuilt(der, name, name, other))


def test_sha1_signatures_are_refused() -> None:
    der = csr(WEB)
    sha256_oid, sha1_oid = bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06072a8648ce3d0401")
    assert der.count(sha256_oid) == 1
    info = x509.load_der_x509_csr(der).tbs_certrequest_bytes
    signature = p256().sign(info, ec.ECDSA(hashes.SHA1()))  # noqa: S303
    algorithm = element(b"\x30\x09" + sha1_oid)
    outer = asn1.decode_der(Outer, der)
    forged = asn1.encode_der(Outer(info=outer.info, algorithm=algorithm, signature=asn1.BitString(signature, 0)))
    with pytest.raises(CsrRefusedError, match="signature"):
        vet(forged)


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30\x00",
        b"-----BEGIN CERTIFICATE REQUEST-----",
        csr(WEB) + b"\x00",
        csr(WEB)[:-1],
        csr(WEB)[:40],
        b"\x30\x84\xff\xff\xff\xff",
    ],
    ids=["empty", "sequence", "pem", "longer", "shorter", "cut", "length"],
)
def test_what_is_no_request_is_refused(der: bytes) -> None:
    with pytest.raises(CsrRefusedError, match="PKCS #10"):
        vet(der)


def test_a_request_that_is_too_large_is_not_even_parsed() -> None:
    with pytest.raises(CsrRefusedError, match="more than"):
        vet(b"\x30" * (MAX_CSR + 1))


def test_challenge_passwords_are_ignored_and_never_repeated() -> None:
    secret = b"correct horse battery"
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("web.corp.example")]), critical=False)
        .add_attribute(AttributeOID.CHALLENGE_PASSWORD, secret)
    )
    der = builder.sign(p256(), hashes.SHA256()).public_bytes(Encoding.DER)
    vetted = vet(der)
    assert secret.decode() not in repr(vetted)
    with pytest.raises(CsrRefusedError) as caught:
        vet(der, "dns:other.example")
    assert secret.decode() not in str(caught.value)


def test_two_extension_requests_are_refused() -> None:
    """Some parsers read the first, some the last, some Microsoft's: a request has one or none."""
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("web.corp.example")]), critical=False)
        .add_attribute(x509.ObjectIdentifier("1.3.6.1.4.1.311.2.1.14"), b"x")
    )
    with pytest.raises(CsrRefusedError, match="attributes"):
        vet(builder.sign(p256(), hashes.SHA256()).public_bytes(Encoding.DER))


def test_too_many_attributes_are_refused() -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for number in range(20):
        builder = builder.add_attribute(x509.ObjectIdentifier(f"1.2.3.{number}"), b"x")
    with pytest.raises(CsrRefusedError, match="attributes"):
        vet(builder.sign(p256(), hashes.SHA256()).public_bytes(Encoding.DER))


GOOD = csr(WEB)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_mutation_gets_through_or_breaks_out(data: st.DataObject) -> None:
    """Whatever happens to the octets, the answer is a policy error, or the request is the one that was signed."""
    der = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(der) - 1))
        der[at] ^= data.draw(st.integers(1, 255))
    try:
        vetted = vet(bytes(der))
    except PolicyError:
        return
    # The count of unused bits around the signature is not signed, and a second flip may undo the first; all else is.
    original, mutated = (x509.load_der_x509_csr(octets) for octets in (GOOD, bytes(der)))
    assert mutated.tbs_certrequest_bytes == original.tbs_certrequest_bytes
    assert mutated.signature == original.signature
    assert vetted.identifiers == set(names(WEB))
