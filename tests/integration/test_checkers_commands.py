"""OpenSSL, GnuTLS, curl and pyca/cryptography look at certificates, CRLs and OCSP responses that the service gave them."""

import base64
import http.server
import os
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from fakes.dns import LOOPBACK
from fakes.process import run_command
from fakes.relying import SHA1, Authority, Identity, Relying, ask, crl_url, fetch, running_authority
from fakes.relying_programs import eventually

pytestmark = pytest.mark.client
pytest_plugins = ("fakes.relying_fixtures",)

PEM = Encoding.PEM


def part_of(identity: Identity, folder: Path) -> Path:
    """The part of the CRL that a certificate names, as PEM."""
    path = folder / "part.pem"
    path.write_bytes(x509.load_der_x509_crl(fetch(identity.crl_url)).public_bytes(PEM))
    return path


def full_url(identity: Identity) -> str:
    """Where the full CRL of the issuer is."""
    return f"{identity.crl_url.rpartition('/')[0]}.crl"


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


def test_openssl_verifies_the_whole_chain_by_what_its_certificates_name(
    relying: Relying, authority: Authority, good: Identity, bad: Identity, tmp_path: Path
) -> None:
    """Nothing but the certificates says where to look: the leaf for its part, the issuing CA for the root's CRL."""
    assert crl_url(good.issuer) == f"{authority.http_url}/crl/{authority.ids['root']}.crl"
    roots = tmp_path / "root.crl"
    for identity, said in ((good, "OK"), (bad, "certificate revoked")):
        roots.write_bytes(x509.load_der_x509_crl(fetch(crl_url(identity.issuer))).public_bytes(PEM))
        files = ("-CRLfile", part_of(identity, tmp_path), "-CRLfile", roots)
        assert verified(relying, identity, "-crl_check_all", *files) == said
    access = good.issuer.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    (issuer,) = access
    root = x509.load_der_x509_certificate(fetch(str(issuer.access_location.value)))
    assert root.public_bytes(PEM) == relying.roots.read_bytes()


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
        (tmp_path / "delta.pem").write_bytes(delta.public_bytes(PEM))
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
    # It looks at the first CRL of a file only, so the bundle will not do.
    full = tmp_path / "full.pem"
    full.write_bytes(x509.load_der_x509_crl(fetch(full_url(bad))).public_bytes(PEM))
    for crl in (full, part_of(bad, tmp_path)):
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


def test_the_bundle_is_the_same_wherever_it_comes_from(
    relying: Relying, authority: Authority, good: Identity, tmp_path: Path
) -> None:
    """Over HTTP, by `privyseal crl bundle`, and in a published folder; the script takes it as it is."""
    written = tmp_path / "crls.pem"

    def same() -> bool:
        relying.refresh()
        authority.server.command("crl", "bundle", "--out", written)
        authority.server.command("status", "publish", tmp_path / "published")
        forms = (fetch(f"{authority.http_url}/crls.pem"), (tmp_path / "published" / "crls.pem").read_bytes())
        return relying.crls.read_bytes() == written.read_bytes() == forms[0] == forms[1]

    eventually(same)
    crls = x509.load_pem_x509_crl(written.read_bytes()), written.read_text().count("BEGIN X509 CRL")
    assert crls[0].next_update_utc is not None
    assert crls[1] == 2
    assert verified(relying, good, "-crl_check_all", "-CRLfile", written) == "OK"


def test_the_script_takes_no_crl_that_is_not_signed_by_the_chain(
    relying: Relying, authority: Authority, tmp_path: Path
) -> None:
    """A folder whose chain is somebody else's with the same key identifiers keeps the CRLs that it has."""
    before = relying.crls.read_bytes()
    key = ec.generate_private_key(ec.SECP256R1())
    chain = x509.load_pem_x509_certificates(relying.chain.read_bytes())
    relying.chain.write_bytes(b"".join(_resigned(each, key).public_bytes(PEM) for each in chain))
    authority.revoked()
    said = relying.refresh("touch", tmp_path / "reloaded", expect=1)
    assert "good CRLs of 0 CAs, not of 2" in said
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


@contextmanager
def somebody(content: bytes) -> Iterator[str]:
    """The URL of a server that has ``content`` at ``/crls.pem``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", '"x"')
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    with http.server.HTTPServer((LOOPBACK, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://{LOOPBACK}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("what", ["empty", "a page", "cut short", "without the root's", "twice the same"])
def test_the_script_installs_nothing_that_would_lock_everybody_out(relying: Relying, what: str, tmp_path: Path) -> None:
    before = relying.crls.read_bytes()
    relying.keep_crl_of("issuing-1")
    one = relying.crls.read_bytes()
    relying.crls.write_bytes(before)
    content = {
        "empty": b"",
        "a page": b"<html>Please log in</html>",
        "cut short": before[: len(before) * 3 // 4],
        "without the root's": one,
        "twice the same": one + one,
    }[what]
    with somebody(content) as url:
        assert "not of 2" in relying.refresh("touch", tmp_path / "reloaded", base=url, expect=1)
    assert relying.crls.read_bytes() == before
    assert not (tmp_path / "reloaded").exists()


def test_the_script_installs_no_crl_that_has_ended(relying: Relying, tmp_path: Path) -> None:
    """A clock of its own that is four days ahead."""
    (tmp_path / "date").write_text('#!/bin/sh\n[ "$1" = -d ] || set -- -d "now + 4 days" "$@"\nexec /bin/date "$@"\n')
    (tmp_path / "date").chmod(0o755)
    before = relying.crls.read_bytes()
    (relying.folder / "crls.etag").unlink()
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert "good CRLs of 1 CAs, not of 2" in relying.refresh("false", expect=1, PATH=path)
    assert relying.crls.read_bytes() == before


def test_the_script_fetches_a_file_that_was_lost(relying: Relying) -> None:
    before = relying.crls.read_bytes()
    relying.crls.write_bytes(b"")
    relying.refresh()
    assert x509.load_pem_x509_crl(relying.crls.read_bytes()).issuer == x509.load_pem_x509_crl(before).issuer
