import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fakes.issuing import NOW, YEAR, issuer, issuer_key, key, profile, request
from privyseal_ca.errors import LintError
from privyseal_ca.issuance import pkix_rules
from privyseal_ca.issuance.check import check_certificate
from privyseal_ca.issuance.lint import LintedCertificate, Linter
from privyseal_ca.issuance.standin import stand_in_for
from privyseal_ca.issuance.template import IssuerIdentity, Template, build_template, signature_hash
from unit.test_template import changed

KINDS = ["ec-p256", "ec-p384", "rsa", "ed25519"]


def build(
    *texts: str, by: IssuerIdentity | None = None, serial: int = 77, now: float = NOW, **options: Any
) -> Template:
    return build_template(request(*texts, **options), by or issuer(), serial=serial, now=now)


@pytest.mark.parametrize("issuer_kind", [*KINDS, "ec-p521"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mtls", "server", "client"])
def test_every_built_in_profile_passes_the_full_linter(name: str, kind: str, issuer_kind: str) -> None:
    by, of = issuer(issuer_kind), profile(name)
    texts = ["dns:a.example", "ip:10.0.0.1", "ip:fd00::1", "dns:db1", "dns:xn--bcher-kva.example"]
    texts += ["uri:spiffe://a.example/x"] if "uri" in of.san_types else []
    texts += ["email:Ada@a.example"] if "email" in of.san_types else []
    texts += ["dns:*.a.example"] if of.wildcard else []
    wanted = request(*texts, of=of, kind=kind)
    linter = Linter()
    template = build_template(wanted, by, serial=77, now=NOW)
    linted = linter.lint(template, by)
    signature = by.sign(issuer_key(issuer_kind), linted.redeem())
    der = linter.assemble(linted, signature)
    certificate = check_certificate(der, linted_tbs=linted.tbs, issuer=by, request=wanted, serial=77)
    assert certificate.public_bytes(Encoding.DER) == der
    assert certificate.tbs_certificate_bytes == linted.tbs
    # What cryptography's own builder makes of the same template with the real key has the same TBSCertificate.
    private_key = issuer_key(issuer_kind)
    assert template.builder.sign(private_key, signature_hash(by.public_key)).tbs_certificate_bytes == linted.tbs


@pytest.mark.parametrize(
    "fields",
    [
        {"subject": "common-name"},
        {"no_rev_avail": True, "crl": "none", "ocsp": False},
        {"crl": "none", "ocsp": False},
        {"crl": "full"},
        {"aia_ca_issuers": False},
        {"extended_key_usage": ("1.3.6.1.5.5.7.3.4", "1.3.6.1.4.1.311.20.2.2")},
    ],
)
def test_profiles_with_other_extensions_pass_the_full_linter(fields: dict[str, Any]) -> None:
    by = issuer()
    Linter().lint(build("dns:a.example", of=changed(profile(), **fields), by=by), by)


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:8080", "http://ca:8080", "http://[::1]:8080"])
@pytest.mark.parametrize("deltas", [False, True])
def test_pointers_to_hosts_of_all_kinds_pass(base_url: str, deltas: bool) -> None:
    by = issuer()
    by = dataclasses.replace(by, pointers=dataclasses.replace(by.pointers, base_url=base_url, deltas=deltas))
    Linter().lint(build(by=by), by)


def test_certificates_of_the_authority_itself_pass() -> None:
    by = issuer()
    of = changed(
        profile(),
        nameless=True,
        ocsp_no_check=True,
        extended_key_usage=("1.3.6.1.5.5.7.3.9",),
        aia_ca_issuers=False,
        ocsp=False,
        crl="none",
    )
    wanted = dataclasses.replace(request(of=of), names=(), common_name="issuing-1 OCSP responder")
    linter = Linter()
    linted = linter.lint(build_template(wanted, by, serial=77, now=NOW), by)
    der = linter.assemble(linted, by.sign(issuer_key("ec-p256"), linted.redeem()))
    certificate = check_certificate(der, linted_tbs=linted.tbs, issuer=by, request=wanted, serial=77)
    assert certificate.extensions.get_extension_for_class(x509.OCSPNoCheck)
    assert b"issuing-1 OCSP responder" in linted.tbs


def test_certificates_beyond_2049_pass() -> None:
    later = datetime(2050, 6, 1, tzinfo=UTC).timestamp()
    by = issuer(begin=later - YEAR, end=later + YEAR)
    linted = Linter().lint(build(by=by, now=later), by)
    assert b"20500601" in linted.tbs


def test_openssl_accepts_what_is_issued(tmp_path: Path) -> None:
    by = issuer()
    linter = Linter()
    linted = linter.lint(build_template(request(), by, serial=77, now=datetime.now(UTC).timestamp()), by)
    der = linter.assemble(linted, by.sign(issuer_key("ec-p256"), linted.tbs))
    (tmp_path / "ca.pem").write_bytes(by.certificate.public_bytes(Encoding.PEM))
    (tmp_path / "leaf.pem").write_bytes(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
    for purpose in ("sslserver", "sslclient"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.pem", "leaf.pem"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def broken(template: Template, *, drop: type[Any] | None = None, add: Any = None, critical: bool = False) -> Template:
    """``template`` with an extension less, more, or other than its profile says."""
    original = template.builder
    builder = (
        x509.CertificateBuilder()
        .issuer_name(original._issuer_name)  # type: ignore[arg-type]
        .subject_name(original._subject_name)  # type: ignore[arg-type]
        .public_key(original._public_key)  # type: ignore[arg-type]
        .serial_number(original._serial_number)  # type: ignore[arg-type]
        .not_valid_before(original._not_valid_before)  # type: ignore[arg-type]
        .not_valid_after(original._not_valid_after)  # type: ignore[arg-type]
    )
    for extension in original._extensions:
        if drop is None or not isinstance(extension.value, drop):
            builder = builder.add_extension(extension.value, extension.critical)
    if add is not None:
        builder = builder.add_extension(add, critical)
    return dataclasses.replace(template, builder=builder, shape=object())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"drop": x509.SubjectKeyIdentifier}, "its extensions"),
        ({"drop": x509.AuthorityKeyIdentifier}, "its extensions"),
        ({"drop": x509.KeyUsage}, "its extensions"),
        ({"drop": x509.SubjectAlternativeName}, "its names"),
        ({"drop": x509.BasicConstraints}, "a CA bit"),
        ({"drop": x509.BasicConstraints, "add": x509.BasicConstraints(True, None), "critical": True}, "a CA bit"),
        ({"drop": x509.KeyUsage, "add": x509.KeyUsage(*[True] + [False] * 8), "critical": False}, "its extensions"),
        ({"add": x509.OCSPNoCheck()}, "its extensions"),
        ({"add": x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")}, "its extensions"),
        ({"add": x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.56"), b"\x05\x00")}, "its extensions"),
        (
            {
                "drop": x509.SubjectAlternativeName,
                "add": x509.SubjectAlternativeName([x509.DNSName("b.example")]),
                "critical": True,
            },
            "its names",
        ),
        (
            {
                "drop": x509.SubjectAlternativeName,
                "add": x509.SubjectAlternativeName([x509.DNSName("a.example"), x509.DNSName("b.example")]),
                "critical": True,
            },
            "its names",
        ),
        (
            {
                "drop": x509.SubjectAlternativeName,
                "add": x509.SubjectAlternativeName([x509.DNSName("A..example")]),
                "critical": True,
            },
            "bad name",
        ),
    ],
)
def test_the_cheap_check_stops_what_the_profile_does_not_say(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(LintError, match=reason):
        Linter().lint(broken(build("dns:a.example"), **change), issuer())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"serial": 78}, "serial"),
        ({"not_before": int(NOW)}, "times"),
        ({"not_after": int(NOW) + 5}, "times"),
    ],
)
def test_the_cheap_check_compares_with_the_template(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(LintError, match=reason):
        Linter().lint(dataclasses.replace(build("dns:a.example"), **fields), issuer())


def test_the_cheap_check_knows_the_issuer() -> None:
    template = build("dns:a.example")
    with pytest.raises(LintError, match="outside its issuer's"):
        Linter().lint(template, issuer(end=NOW + 100))
    with pytest.raises(LintError, match="serial"):
        Linter().lint(build("dns:a.example", serial=1 << 127), issuer())


def test_the_cheap_check_knows_the_profiles_limits() -> None:
    template = build("dns:a.example")
    narrower = changed(profile(), max_lifetime=3600, lifetime=3600)
    moved = dataclasses.replace(template, request=dataclasses.replace(template.request, profile=narrower))
    with pytest.raises(LintError, match="lifetime"):
        Linter().lint(moved, issuer())


def test_the_full_linter_stops_what_the_cheap_check_lets_pass() -> None:
    """A key usage that an Ed25519 key cannot have is no matter of the extension set."""
    usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
    template = broken(build("dns:a.example", kind="ed25519"), drop=x509.KeyUsage, add=usage, critical=True)
    with pytest.raises(LintError, match=r"would break rules: .*key_usage"):
        Linter().lint(template, issuer())


def test_a_shape_that_failed_is_linted_again() -> None:
    usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
    template = broken(build("dns:a.example", kind="ed25519"), drop=x509.KeyUsage, add=usage, critical=True)
    linter = Linter()
    for _ in range(2):
        with pytest.raises(LintError, match="would break rules"):
            linter.lint(template, issuer())


def test_only_the_first_of_a_shape_is_linted_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def findings(der: bytes) -> list[str]:
        seen.append(der)
        return []

    monkeypatch.setattr(pkix_rules, "findings", findings)
    linter, by = Linter(), issuer()
    for number in range(5):
        linter.lint(build(f"dns:a{number}.example", by=by, serial=100 + number), by)
    assert len(seen) == 1
    linter.lint(build("dns:*.example.org", by=by), by)
    linter.lint(build("dns:a.example", by=by, kind="rsa"), by)
    assert len(seen) == 3


def test_a_linted_certificate_is_assembled_once() -> None:
    linter, by = Linter(), issuer()
    linted = linter.lint(build(by=by), by)
    signature = by.sign(issuer_key("ec-p256"), linted.tbs)
    linter.assemble(linted, signature)
    with pytest.raises(LintError, match="used before"):
        linter.assemble(linted, signature)
    with pytest.raises(LintError, match="used before"):
        linted.redeem()


def test_a_linted_certificate_is_redeemed_once() -> None:
    by = issuer()
    linted = Linter().lint(build(by=by), by)
    assert linted.redeem() == linted.tbs
    with pytest.raises(LintError, match="used before"):
        linted.redeem()


def test_of_many_threads_one_redeems() -> None:
    linter, by = Linter(), issuer()
    linted = linter.lint(build(by=by), by)

    def attempt(_: int) -> bool:
        try:
            linter.assemble(linted, b"\x00")
        except LintError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(64))) == 1


def test_many_threads_lint_at_once() -> None:
    linter, by = Linter(), issuer()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: linter.lint(build(f"dns:a{n}.example", by=by, serial=n + 1), by), range(40)))
    assert [linted.serial for linted in results] == list(range(1, 41))


def test_nobody_else_makes_a_linted_certificate() -> None:
    by = issuer()
    linted = Linter().lint(build(by=by), by)
    with pytest.raises(TypeError, match="only a Linter"):
        LintedCertificate(object(), linted.template, b"other", linted._envelope)


def test_the_stand_in_is_no_private_key() -> None:
    for kind in KINDS:
        stand_in: Any = stand_in_for(key(kind).public_key())
        for name in ("private_bytes", "private_numbers", "private_bytes_raw", "exchange", "decrypt"):
            if hasattr(stand_in, name):
                with pytest.raises(TypeError):
                    getattr(stand_in, name)()


def test_the_signature_of_a_stand_in_is_worthless() -> None:
    public_key = ec.generate_private_key(ec.SECP256R1()).public_key()
    stand_in: Any = stand_in_for(public_key)
    with pytest.raises(InvalidSignature):
        public_key.verify(stand_in.sign(b"tbs"), b"tbs", ec.ECDSA(hashes.SHA256()))


def test_accepted_findings_have_reasons() -> None:
    assert all(len(reason) > 20 for reason in pkix_rules.ACCEPTED.values())


def test_commands_that_issue_nothing_do_not_load_the_full_linter() -> None:
    program = "import sys, privyseal_ca.issuance.lint; sys.exit('pkilint' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode == 0


def test_prepare_loads_it() -> None:
    Linter().prepare()
    assert "pkilint" in sys.modules
