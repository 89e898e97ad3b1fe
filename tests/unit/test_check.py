"""The finished certificate's check, against certificates that another builder made: this test, wrongly."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fakes.issuing import NOW, issuer, issuer_key, key, profile, request
from privyseal_ca.errors import LintError
from privyseal_ca.issuance.check import check_certificate
from privyseal_ca.issuance.template import distribution_point
from unit.test_template import changed

BEGIN = datetime.fromtimestamp(NOW - 120, UTC)
END = datetime.fromtimestamp(NOW + 86399, UTC)
BY = issuer()
OCSP = "1.3.6.1.5.5.7.48.1"
USAGE = x509.KeyUsage(True, False, False, False, False, False, False, False, False)


def name(text: str | None) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def points(*urls: str) -> x509.CRLDistributionPoints:
    return x509.CRLDistributionPoints([distribution_point(url) for url in urls])


def access(*urls: str) -> x509.AuthorityInformationAccess:
    return x509.AuthorityInformationAccess(
        [x509.AccessDescription(x509.ObjectIdentifier(OCSP), x509.UniformResourceIdentifier(url)) for url in urls]
    )


def leaf(
    *,
    extensions: dict[type[Any], Any] | None = None,
    critical: frozenset[type[Any]] = frozenset({x509.KeyUsage, x509.BasicConstraints, x509.SubjectAlternativeName}),
    **fields: Any,
) -> bytes:
    """A good leaf for ``a.example``, but for what is given; an extension that is ``None`` is left out."""
    contents: dict[type[Any], Any] = {
        x509.KeyUsage: USAGE,
        x509.ExtendedKeyUsage: x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        ),
        x509.BasicConstraints: x509.BasicConstraints(ca=False, path_length=None),
        x509.AuthorityKeyIdentifier: x509.AuthorityKeyIdentifier(BY.key_id, None, None),
        x509.SubjectKeyIdentifier: x509.SubjectKeyIdentifier(b"k" * 20),
        x509.SubjectAlternativeName: x509.SubjectAlternativeName([x509.DNSName("a.example")]),
        x509.CRLDistributionPoints: points("http://ca.example/crl/test/7.crl"),
        x509.AuthorityInformationAccess: access("http://ca.example/ocsp"),
        **(extensions or {}),
    }
    builder = (
        x509.CertificateBuilder()
        .issuer_name(fields.get("issuer", BY.subject))
        .subject_name(fields.get("subject", name(None)))
        .public_key(fields.get("public_key", key("ec-p256").public_key()))
        .serial_number(fields.get("serial", 7))
        .not_valid_before(fields.get("begin", BEGIN))
        .not_valid_after(fields.get("end", END))
    )
    for kind, content in contents.items():
        if content is not None:
            builder = builder.add_extension(content, kind in critical)
    signed_by: Any = fields.get("signed_by", issuer_key("ec-p256"))
    return builder.sign(signed_by, hashes.SHA256()).public_bytes(Encoding.DER)


def check(der: bytes, *, of: Any = None, tbs: bytes | None = None, by: Any = BY, serial: int = 7) -> x509.Certificate:
    linted = x509.load_der_x509_certificate(der).tbs_certificate_bytes if tbs is None else tbs
    return check_certificate(der, linted_tbs=linted, issuer=by, request=of or request("dns:a.example"), serial=serial)


def test_a_good_certificate_passes() -> None:
    assert check(leaf()).serial_number == 7


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"serial": 8}, "serial"),
        ({"issuer": name("Other CA")}, "not signed by its issuer"),
        ({"signed_by": ec.generate_private_key(ec.SECP256R1())}, "not signed by its issuer"),
        ({"public_key": ec.generate_private_key(ec.SECP256R1()).public_key()}, "another key"),
        ({"subject": name("a.example")}, "2.5.29.17"),
        ({"subject": name("a.example"), "critical": frozenset({x509.KeyUsage, x509.BasicConstraints})}, "subject"),
        ({"end": END + timedelta(days=7)}, "longer than its profile"),
        ({"end": datetime.fromtimestamp(NOW + 400 * 86400, UTC)}, "issuer is not"),
        ({"begin": datetime.fromtimestamp(NOW - 400 * 86400, UTC)}, "issuer is not"),
    ],
)
def test_other_fields_are_found(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(LintError, match=reason):
        check(leaf(**fields))


@pytest.mark.parametrize(
    ("extension", "reason"),
    [
        (x509.SubjectAlternativeName([x509.DNSName("b.example")]), "names"),
        (x509.SubjectAlternativeName([x509.DNSName("a.example"), x509.DNSName("b.example")]), "names"),
        (x509.SubjectAlternativeName([x509.DNSName("a.example"), x509.IPAddress(ip_address("10.0.0.1"))]), "names"),
        (x509.SubjectAlternativeName([x509.DNSName("*.example")]), "names"),
        (x509.SubjectAlternativeName([x509.DNSName("a.example."), x509.DNSName("a.example")]), "parse"),
        (x509.SubjectAlternativeName([x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))]), "parse"),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), "extended key usages"),
        (
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.CODE_SIGNING]
            ),
            "extended key usages",
        ),
        (
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.OCSP_SIGNING]
            ),
            "extended key usages",
        ),
        (x509.BasicConstraints(ca=True, path_length=None), "CA certificate"),
        (x509.KeyUsage(True, False, False, False, False, True, False, False, False), "key usages"),
        (x509.KeyUsage(True, False, False, False, False, False, True, False, False), "key usages"),
        (x509.KeyUsage(True, False, True, False, False, False, False, False, False), "key usages"),
        (x509.KeyUsage(True, False, False, True, False, False, False, False, False), "key usages"),
        (x509.KeyUsage(False, True, False, False, False, False, False, False, False), "key usages"),
        (x509.AuthorityKeyIdentifier(b"x" * 20, None, None), "another issuer's key"),
        (x509.OCSPNoCheck(), "has the extension"),
        (points("http://ca.example/crl/test/6.crl"), "another CRL"),
        (points("http://ca.example/crl/test.crl"), "another CRL"),
        (points("http://ca.example/crl/test/7.crl", "http://b.example/7.crl"), "another CRL"),
        (
            x509.CRLDistributionPoints(
                [
                    x509.DistributionPoint(
                        points("http://ca.example/crl/test/7.crl")[0].full_name, None, None, [x509.DNSName("b.example")]
                    )
                ]
            ),
            "another CRL",
        ),
        (x509.FreshestCRL([distribution_point("http://ca.example/crl/test/7-delta.crl")]), "another delta CRL"),
        (access("http://b.example/ocsp"), "another OCSP responder"),
        (access("http://ca.example/ocsp", "http://b.example/ocsp"), "another OCSP responder"),
        (x509.NameConstraints([x509.DNSName("a.example")], None), "has the extension"),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.56"), b"\x05\x00"), "has the extension"),
    ],
)
def test_other_extensions_are_found(extension: x509.ExtensionType, reason: str) -> None:
    with pytest.raises(LintError, match=reason):
        check(leaf(extensions={type(extension): extension}))


@pytest.mark.parametrize(
    "kind",
    [
        x509.KeyUsage,
        x509.ExtendedKeyUsage,
        x509.BasicConstraints,
        x509.AuthorityKeyIdentifier,
        x509.SubjectAlternativeName,
        x509.SubjectKeyIdentifier,
        x509.CRLDistributionPoints,
        x509.AuthorityInformationAccess,
    ],
)
def test_missing_extensions_are_found(kind: type[Any]) -> None:
    with pytest.raises(LintError):
        check(leaf(extensions={kind: None}))


@pytest.mark.parametrize("kind", [x509.KeyUsage, x509.BasicConstraints, x509.SubjectAlternativeName])
def test_missing_criticality_is_found(kind: type[Any]) -> None:
    others = frozenset({x509.KeyUsage, x509.BasicConstraints, x509.SubjectAlternativeName}) - {kind}
    with pytest.raises(LintError):
        check(leaf(critical=others))


@pytest.mark.parametrize("kind", [x509.ExtendedKeyUsage, x509.AuthorityKeyIdentifier, x509.SubjectKeyIdentifier])
def test_needless_criticality_is_found(kind: type[Any]) -> None:
    usual = frozenset({x509.KeyUsage, x509.BasicConstraints, x509.SubjectAlternativeName})
    with pytest.raises(LintError):
        check(leaf(critical=usual | {kind}))


def test_octets_that_were_not_linted_are_found() -> None:
    other = x509.load_der_x509_certificate(leaf(serial=9)).tbs_certificate_bytes
    with pytest.raises(LintError, match="not what was linted"):
        check(leaf(), tbs=other)


def test_a_worthless_signature_is_found() -> None:
    der = bytearray(leaf())
    der[-1] ^= 1
    with pytest.raises(LintError, match="not signed by its issuer"):
        check(bytes(der))


@pytest.mark.parametrize("der", [b"", b"\x30\x00", leaf()[:-1], leaf() + b"\x00"])
def test_what_is_no_certificate_is_found(der: bytes) -> None:
    with pytest.raises(LintError, match="parse"):
        check(der, tbs=b"")


def test_times_that_were_asked_for_are_compared() -> None:
    check(leaf(), of=request("dns:a.example", begin=NOW - 120, end=NOW + 86399))
    for begin, end in ((NOW - 119, None), (None, NOW + 86398)):
        with pytest.raises(LintError, match="other times"):
            check(leaf(), of=request("dns:a.example", begin=begin, end=end))


def test_name_constraints_of_the_issuer_are_honoured() -> None:
    constrained = replace(BY, name_constraints=x509.NameConstraints([x509.DNSName("b.example")], None))
    with pytest.raises(LintError, match="name constraints"):
        check(leaf(), by=constrained)
    check(leaf(), by=replace(BY, name_constraints=x509.NameConstraints([x509.DNSName("example")], None)))


def test_common_names() -> None:
    of = request("dns:a.example", of=changed(profile(), subject="common-name"))
    usual = frozenset({x509.KeyUsage, x509.BasicConstraints})
    check(leaf(subject=name("a.example"), critical=usual), of=of)
    for subject in ("b.example", "10.0.0.1"):
        with pytest.raises(LintError, match="subject"):
            check(leaf(subject=name(subject), critical=usual), of=of)


def test_key_encipherment_only_for_rsa() -> None:
    of = request("dns:a.example", of=profile("server"))
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    check(leaf(extensions={x509.ExtendedKeyUsage: server}), of=of)
    both = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
    with pytest.raises(LintError, match="key usages"):
        check(leaf(extensions={x509.ExtendedKeyUsage: server, x509.KeyUsage: both}), of=of)


def test_a_certificate_without_pointers_has_none() -> None:
    silent = request("dns:a.example", of=changed(profile(), ocsp=False, crl="none"))
    check(leaf(extensions={x509.CRLDistributionPoints: None, x509.AuthorityInformationAccess: None}), of=silent)
    with pytest.raises(LintError, match="another CRL"):
        check(leaf(extensions={x509.AuthorityInformationAccess: None}), of=silent)
    with pytest.raises(LintError, match="another OCSP responder"):
        check(leaf(extensions={x509.CRLDistributionPoints: None}), of=silent)


def test_a_delta_crl_is_named_where_there_is_one() -> None:
    by = replace(BY, pointers=replace(BY.pointers, deltas=True))
    with pytest.raises(LintError, match="another delta CRL"):
        check(leaf(), by=by)
    check(
        leaf(
            extensions={
                x509.FreshestCRL: x509.FreshestCRL([distribution_point("http://ca.example/crl/test/7-delta.crl")])
            }
        ),
        by=by,
    )


@pytest.mark.parametrize(
    ("usages", "no_check", "reason"),
    [
        (("1.3.6.1.5.5.7.3.9",), False, "without being a responder's alone"),
        (("1.3.6.1.5.5.7.3.9", "1.3.6.1.5.5.7.3.1"), True, "without being a responder's alone"),
        (("1.3.6.1.5.5.7.3.1",), True, "without being a responder's alone"),
    ],
)
def test_only_a_responder_signs_ocsp_responses(usages: tuple[str, ...], no_check: bool, reason: str) -> None:
    of = changed(profile(), extended_key_usage=usages, ocsp_no_check=no_check, ocsp=False, crl="none")
    extensions: dict[type[Any], Any] = {
        x509.ExtendedKeyUsage: x509.ExtendedKeyUsage([x509.ObjectIdentifier(oid) for oid in usages]),
        x509.CRLDistributionPoints: None,
        x509.AuthorityInformationAccess: None,
    }
    if no_check:
        extensions[x509.OCSPNoCheck] = x509.OCSPNoCheck()
        extensions[x509.SubjectAlternativeName] = None
    wanted = (
        replace(request("dns:a.example", of=of), names=(), common_name="x")
        if no_check
        else request("dns:a.example", of=of)
    )
    if no_check:
        wanted = replace(wanted, profile=changed(of, nameless=True))
    with pytest.raises(LintError, match=reason):
        check(leaf(extensions=extensions, subject=name("x") if no_check else name(None)), of=wanted)
