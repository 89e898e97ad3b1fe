"""OpenSSL, GnuTLS, curl and pyca/cryptography look at certificates, CRLs and OCSP responses that the service gave them."""

import base64
import time
import urllib.parse
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from fakes.process import run_command
from fakes.relying import SHA1, Authority, Identity, Relying, ask, fetch, running_authority
from fakes.relying_programs import eventually

pytestmark = pytest.mark.client
pytest_plugins = ("fakes.relying_fixtures",)


def part_of(identity: Identity, folder: Path) -> Path:
    """The part of the CRL that a certificate names, as PEM."""
    path = folder / "part.pem"
    path.write_bytes(x509.load_der_x509_crl(fetch(identity.crl_url)).public_bytes(serialization.Encoding.PEM))
    return path


def verified(relying: Relying, identity: Identity, *options: str | Path) -> str:
    """``OK``, or why OpenSSL refuses ``identity`` with these options."""
    done = run_command(
        *("openssl", "verify", "-x509_strict", *options, "-CAfile", relying.roots),
        *("-untrusted", identity.pem, identity.pem),
        expect=None,
    )
    assert done.returncode in {0, 2}, done.stderr
    return "OK" if done.returncode == 0 else done.stderr.partition("lookup: ")[2].partition("\n")[0]


def test_openssl_verifies_by_the_part_that_the_certificate_names(
    relying: Relying, good: Identity, bad: Identity, tmp_path: Path
) -> None:
    for identity, said in ((good, "OK"), (bad, "certificate revoked")):
        assert verified(relying, identity, "-crl_check", "-CRLfile", part_of(identity, tmp_path)) == said
        assert verified(relying, identity, "-crl_check", "-crl_download") == said


def test_openssl_verifies_the_whole_chain_by_full_crls(relying: Relying, good: Identity, bad: Identity) -> None:
    assert verified(relying, good, "-crl_check_all", "-CRLfile", relying.crls) == "OK"
    assert verified(relying, bad, "-crl_check_all", "-CRLfile", relying.crls) == "certificate revoked"


def test_openssl_refuses_without_the_crl_that_counts(relying: Relying, authority: Authority, tmp_path: Path) -> None:
    """A part is for its own certificates (RFC 5280 section 5.2.5); a whole chain needs the root's CRL."""
    one = authority.issue()
    other = authority.issue()
    while other.crl_url == one.crl_url:
        other = authority.issue()
    foreign = part_of(other, tmp_path)
    assert verified(relying, one, "-crl_check", "-CRLfile", foreign).lower() == "different crl scope"
    own = part_of(one, tmp_path)
    assert verified(relying, one, "-crl_check_all", "-CRLfile", own) == "unable to get certificate CRL"
    late = str(int(time.time()) + 4 * 86400)
    assert verified(relying, one, "-crl_check_all", "-CRLfile", relying.crls, "-attime", late) == "CRL has expired"


def test_openssl_follows_a_delta(tmp_path: Path) -> None:
    """RFC 5280 sections 5.2.4 and 5.2.6: who has an old base finds the newest revocations in the delta that it names."""
    (tmp_path / "authority").mkdir()
    with running_authority(tmp_path / "authority", STATUS__DELTA_CRLS="true") as authority:
        relying = Relying(authority, tmp_path / "trust")
        leaver = authority.issue()
        base = part_of(leaver, tmp_path).rename(tmp_path / "base.pem")
        files = ("-CRLfile", base)
        assert verified(relying, leaver, "-crl_check", *files) == "OK"
        authority.revoke(leaver)
        assert verified(relying, leaver, "-crl_check", *files) == "OK", "the old base alone does not know"
        fresh = leaver.certificate.extensions.get_extension_for_class(x509.FreshestCRL).value
        (point,) = fresh
        assert point.full_name is not None
        delta = x509.load_der_x509_crl(fetch(str(point.full_name[0].value)))
        (tmp_path / "delta.pem").write_bytes(delta.public_bytes(serialization.Encoding.PEM))
        deltas = ("-CRLfile", tmp_path / "delta.pem", "-extended_crl", "-use_deltas")
        assert verified(relying, leaver, "-crl_check", *files, *deltas) == "certificate revoked"
        assert (
            verified(relying, authority.issue(), "-crl_check", "-crl_download", "-extended_crl", "-use_deltas") == "OK"
        )


@pytest.mark.parametrize("nonce", ["-nonce", "-no_nonce"])
@pytest.mark.parametrize("digest", ["-sha1", "-sha256"])
def test_openssl_asks_the_responder(relying: Relying, good: Identity, bad: Identity, digest: str, nonce: str) -> None:
    for identity, status in ((good, "good"), (bad, "revoked")):
        url = run_command("openssl", "x509", "-in", identity.pem, "-noout", "-ocsp_uri").stdout.strip()
        done = run_command(
            *("openssl", "ocsp", "-issuer", relying.chain, digest, "-cert", identity.pem, "-url", url, nonce),
            *("-CAfile", relying.chain),
        )
        said = done.stdout + done.stderr
        assert "Response verify OK" in said
        assert f"{identity.pem}: {status}" in said
        assert "WARNING" not in said, "the answer repeats the nonce (RFC 9654 section 2.1)"
        if status == "revoked":
            assert "Reason: keyCompromise" in said


def test_openssl_is_never_told_good_of_what_was_not_issued(relying: Relying, good: Identity) -> None:
    done = run_command(
        *("openssl", "ocsp", "-issuer", relying.chain, "-serial", "0x1234567890abcdef", "-url", good.ocsp_url),
        *("-CAfile", relying.chain),
        expect=None,
    )
    said = done.stdout + done.stderr
    assert "0x1234567890abcdef: good" not in said
    assert "unauthorized" in said or "revoked" in said or "unknown" in said


@pytest.mark.parametrize("digest", ["-sha1", "-sha256"])
def test_curl_gets_what_openssl_asked(
    relying: Relying, good: Identity, bad: Identity, digest: str, tmp_path: Path
) -> None:
    """RFC 6960 appendix A.1: the request in the path of a GET; the answer to be cached by its headers (RFC 9919)."""
    for identity, status in ((good, "good"), (bad, "revoked")):
        request, response, headers = (tmp_path / name for name in ("request", "response", "headers"))
        question = ("-issuer", relying.chain, digest, "-cert", identity.pem)
        run_command("openssl", "ocsp", *question, "-no_nonce", "-reqout", request)
        path = urllib.parse.quote(base64.b64encode(request.read_bytes()), safe="")
        run_command("curl", "-sSf", "-D", headers, "-o", response, f"{identity.ocsp_url}/{path}")
        done = run_command("openssl", "ocsp", *question, "-respin", response, "-CAfile", relying.chain)
        assert "Response verify OK" in done.stderr
        assert f"{identity.pem}: {status}" in done.stdout
        assert "application/ocsp-response" in headers.read_text().lower()


def test_gnutls_asks_the_responder(relying: Relying, good: Identity, bad: Identity) -> None:
    for identity, status in ((good, "good"), (bad, "revoked")):
        said = run_command("ocsptool", "--ask", "--load-chain", identity.pem, "--load-trust", relying.chain).stdout
        assert f"Certificate Status: {status}" in said
        assert "Verifying OCSP Response: Success." in said


def test_gnutls_reads_and_verifies_crls(relying: Relying, bad: Identity, tmp_path: Path) -> None:
    """The full CRL, and a part with its critical extension, which GnuTLS shows without a name."""
    serial = f"{bad.certificate.serial_number:x}"
    for crl in (relying.crls, part_of(bad, tmp_path)):
        said = run_command("certtool", "--crl-info", "--infile", crl).stdout
        assert "Version: 2" in said
        assert "CRL Number (not critical)" in said
        assert serial in said.replace("\n", "").lower()
        verdict = run_command("certtool", "--verify-crl", "--load-ca-certificate", relying.chain, "--infile", crl)
        assert "Verified. The certificate is trusted." in verdict.stdout


@pytest.mark.parametrize("algorithm", [SHA1, hashes.SHA256()], ids=lambda each: each.name)
def test_cryptography_verifies_the_responder(good: Identity, bad: Identity, algorithm: hashes.HashAlgorithm) -> None:
    """RFC 6960 section 4.2.2.2: a delegate whose certificate the issuing CA itself signed, for this and nothing else."""
    for identity, status in ((good, ocsp.OCSPCertStatus.GOOD), (bad, ocsp.OCSPCertStatus.REVOKED)):
        answer = ask(identity, algorithm)
        assert answer.certificate_status is status
        assert answer.serial_number == identity.certificate.serial_number
        (responder,) = answer.certificates
        responder.verify_directly_issued_by(identity.issuer)
        usage = responder.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [ExtendedKeyUsageOID.OCSP_SIGNING]
        responder.extensions.get_extension_for_class(x509.OCSPNoCheck)
        key = responder.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert answer.signature_hash_algorithm is not None
        key.verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(answer.signature_hash_algorithm))


def test_the_bundle_that_the_command_writes(relying: Relying, authority: Authority, good: Identity) -> None:
    """`privyseal crl bundle` gives the same CRLs as the script."""

    def scopes(text: str) -> set[bytes]:
        end = "-----END X509 CRL-----\n"
        crls = [x509.load_pem_x509_crl((each + end).encode()) for each in text.split(end)[:-1]]
        assert all(crl.next_update_utc is not None for crl in crls)
        return {crl.issuer.public_bytes() for crl in crls}

    by_script = relying.crls.read_text(encoding="ascii")
    authority.server.command("crl", "bundle", "--out", relying.crls)
    assert scopes(relying.crls.read_text(encoding="ascii")) == scopes(by_script)
    assert len(scopes(by_script)) == 2
    assert verified(relying, good, "-crl_check_all", "-CRLfile", relying.crls) == "OK"


def test_the_script_takes_no_crl_that_is_not_signed_by_the_chain(
    relying: Relying, authority: Authority, tmp_path: Path
) -> None:
    """A folder whose chain is somebody else's with the same key identifiers keeps the CRLs that it has."""
    before = relying.crls.read_bytes()
    key = ec.generate_private_key(ec.SECP256R1())
    chain = x509.load_pem_x509_certificates(relying.chain.read_bytes())
    relying.chain.write_bytes(b"".join(_resigned(each, key).public_bytes(serialization.Encoding.PEM) for each in chain))
    authority.revoked()
    said = relying.refresh("touch", tmp_path / "reloaded", expect=1)
    assert "verify failure" in said
    assert relying.crls.read_bytes() == before
    assert not (tmp_path / "reloaded").exists()
    assert not list(relying.folder.glob("refresh.*")), "nothing is left behind"


def _resigned(original: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(original.subject)
        .issuer_name(original.issuer)
        .public_key(key.public_key())
        .serial_number(original.serial_number)
        .not_valid_before(original.not_valid_before_utc)
        .not_valid_after(original.not_valid_after_utc)
    )
    for extension in original.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, hashes.SHA256())


def test_the_script_reloads_when_something_is_new(relying: Relying, authority: Authority, tmp_path: Path) -> None:
    """And again when the reload failed; and it leaves all as it is when the service cannot be reached."""
    marker = tmp_path / "reloaded"

    def nothing_is_new() -> bool:
        marker.unlink(missing_ok=True)
        relying.refresh("touch", marker)
        return not marker.exists()

    eventually(nothing_is_new)
    identity = authority.revoked()
    relying.refresh("false", expect=1)
    relying.refresh("touch", marker)
    assert marker.exists(), "the reload that failed is tried again"
    assert verified(relying, identity, "-crl_check_all", "-CRLfile", relying.crls) == "certificate revoked"
    before = relying.crls.read_bytes()
    relying.refresh(base="http://127.0.0.1:9", expect=7)
    assert relying.crls.read_bytes() == before
