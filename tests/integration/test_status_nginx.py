"""The example for nginx, with Debian's nginx, curl and openssl: what relying parties get, checked by programs that are not ours."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from fakes.dns import LOOPBACK, free_port
from fakes.ledgers import OverHttp, check, log_in
from fakes.process import PRIVYSEAL, ServerProcess, run_command
from fakes.status_rows import StatusRows
from privyseal_ca.revocation.manifest import ocsp_file
from privyseal_ca.revocation.ocsp_request import encode_request

EXAMPLE = Path(__file__).parents[2] / "deploy" / "nginx" / "privyseal-status.conf"
ENDS_WITH_SLASH = (0x80 << 120) | 0x3F
GOOD, REVOKED = 0x1234, 0x5678

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")


class Site(NamedTuple):
    """A folder behind nginx, and behind that the status role for POST."""

    rows: StatusRows
    folder: Path
    url: str
    role: ServerProcess
    files: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("site")
    with closing(StatusRows(f"sqlite:///{base / 'privyseal.db'}")) as rows:
        rows.crl(3, serials=(REVOKED,), at=time.time() - 60)
        rows.crl(2, shard=0, delta=True)
        for hash_name in ("sha1", "sha256"):
            rows.response(GOOD, hash_name=hash_name)
            rows.response(REVOKED, revoked=True, hash_name=hash_name)
        for serial in (ENDS_WITH_SLASH, (0x42 << 120) | (0x3FFFF << 60)):
            rows.response(serial)
        home, folder = rows.home(base / "home").home, base / "published"
        asyncio.run(_grow(rows.url, 600))
        publisher = ServerProcess(home, {"DATABASE__URL": rows.url, "LEDGER__ENTRIES": "open"})
        run_command(PRIVYSEAL, "status", "publish", folder, env=publisher.environment)
        role = ServerProcess(base / "empty", command=(PRIVYSEAL, "serve", "--role", "status", "--folder", folder))
        port = free_port()
        process = _nginx(base, folder, port, role.http_port)
        try:
            role.start()
            deadline = time.monotonic() + 20
            while _curl("-o", "/dev/null", f"http://{LOOPBACK}:{port}/roots.pem").returncode:
                assert time.monotonic() < deadline, (base / "error.log").read_text()
                assert process.poll() is None, (base / "error.log").read_text()
            (base / "issuer.pem").write_text(rows.issuer.pem)
            (base / "root.pem").write_text(rows.root.pem)
            yield Site(rows, folder, f"http://{LOOPBACK}:{port}", role, base)
        finally:
            process.terminate()
            process.wait(20)
            role.close()


def _nginx(
    base: Path, folder: Path, port: int, role_port: int, text: str = EXAMPLE.read_text()
) -> "subprocess.Popen[bytes]":
    for before, after in (
        ("listen 80;", f"listen {LOOPBACK}:{port};"),
        ("listen [::]:80;", ""),
        ("/srv/privyseal-status;", f"{folder};"),
        ("http://127.0.0.1:8080", f"http://{LOOPBACK}:{role_port}"),
    ):
        assert before in text, before
        text = text.replace(before, after)
    temporary = "\n".join(
        f"{kind}_temp_path {base}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (base / "nginx.conf").write_text(
        # Workers as whoever runs the tests: pytest's folders are closed to others.
        f"{'user root;' if os.geteuid() == 0 else ''}\ndaemon off;\npid {base}/pid;\nerror_log {base}/error.log;\nworker_processes 1;\nevents {{ }}\n"
        f"http {{\n{temporary}\n{text}\n}}\n"
    )
    return subprocess.Popen(["nginx", "-p", base, "-c", base / "nginx.conf"], stdin=subprocess.DEVNULL)


def _curl(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return run_command("curl", "--silent", "--path-as-is", "--noproxy", "*", *arguments, expect=None)


async def _grow(url: str, count: int) -> None:
    async with log_in(url) as log:
        await log.grow(count)


def _ledger_of(site: Site) -> Callable[[str], Awaitable[bytes | None]]:
    async def fetch(path: str) -> bytes | None:
        got = get(site, f"/ledger/{path}")
        return got.body if got.code == 200 else None

    return fetch


class Got(NamedTuple):
    code: int
    headers: dict[str, str]
    body: bytes


def get(site: Site, path: str, *options: str) -> Got:
    body, headers = site.files / "body", site.files / "headers"
    body.write_bytes(b"")
    done = _curl("-o", body, "-D", headers, "-w", "%{http_code}", *options, site.url + path)
    lines = [line.split(": ", 1) for line in headers.read_text().splitlines() if ": " in line]
    return Got(int(done.stdout), {name.lower(): value for name, value in lines}, body.read_bytes())


def ocsp_path(site: Site, serial: int, hash_name: str = "sha1", *, escaped: bool) -> str:
    name = ocsp_file(site.rows.query(serial, hash_name)).removeprefix("ocsp/").removesuffix("_")
    assert "//" not in name
    return "/ocsp/" + (quote(name, safe="") if escaped else name)


def test_all_full_crls_in_one_file(site: Site) -> None:
    got = get(site, "/crls.pem")
    assert (got.code, got.headers["content-type"]) == (200, "application/x-pem-file")
    assert "max-age=60" in got.headers["cache-control"]
    role = get(site._replace(url=site.role.http_url), "/crls.pem")
    assert got.body == role.body == (site.folder / "crls.pem").read_bytes()
    assert get(site, "/crls.pem", "-H", f"If-None-Match: {got.headers['etag']}").code == 304
    assert get(site, "/crls.pem", "-H", f"If-Modified-Since: {got.headers['last-modified']}").code == 304
    # A later date is no promise: what is published next may be dated before it.
    later = formatdate(parsedate_to_datetime(got.headers["last-modified"]).timestamp() + 5, usegmt=True)
    assert get(site, "/crls.pem", "-H", f"If-Modified-Since: {later}").code == 200


def test_a_crl_that_openssl_verifies(site: Site) -> None:
    got = get(site, f"/crl/{site.rows.id}.crl")
    assert (got.code, got.headers["content-type"]) == (200, "application/pkix-crl")
    assert "max-age=60" in got.headers["cache-control"]
    crl = x509.load_der_x509_crl(got.body)
    assert parsedate_to_datetime(got.headers["last-modified"]) == crl.last_update_utc
    file = site.files / "a.crl"
    file.write_bytes(got.body)
    done = run_command(
        "openssl", "crl", "-inform", "DER", "-in", file, "-noout", "-text", "-CAfile", site.files / "issuer.pem"
    )
    assert "verify OK" in done.stderr + done.stdout
    assert "5678" in done.stdout
    for path in (f"/crl/{site.rows.id}/0.crl", f"/crl/{site.rows.id}/0-delta.crl"):
        assert get(site, path).headers["content-type"] == "application/pkix-crl"


def test_conditional_requests(site: Site) -> None:
    path = f"/crl/{site.rows.id}.crl"
    first = get(site, path)
    assert get(site, path, "-H", f"If-None-Match: {first.headers['etag']}").code == 304
    assert get(site, path, "-H", f"If-Modified-Since: {first.headers['last-modified']}").code == 304


def test_certificates(site: Site) -> None:
    got = get(site, f"/issuers/{site.rows.id}.cer")
    assert (got.code, got.headers["content-type"]) == (200, "application/pkix-cert")
    assert x509.load_der_x509_certificate(got.body) == site.rows.issuer.certificate
    assert get(site, f"/issuers/{site.rows.id}.pem").headers["content-type"] == "application/x-pem-file"
    assert get(site, "/roots.pem").body.decode() == site.rows.root.pem


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("hash_name", ["sha1", "sha256"])
def test_ocsp_by_get(site: Site, hash_name: str, escaped: bool) -> None:
    for serial, status in ((GOOD, ocsp.OCSPCertStatus.GOOD), (REVOKED, ocsp.OCSPCertStatus.REVOKED)):
        got = get(site, ocsp_path(site, serial, hash_name, escaped=escaped))
        assert (got.code, got.headers["content-type"]) == (200, "application/ocsp-response")
        assert got.headers["cache-control"] == "public, max-age=60, no-transform, must-revalidate"
        response = ocsp.load_der_ocsp_response(got.body)
        assert response.certificate_status is status
        assert parsedate_to_datetime(got.headers["last-modified"]) == response.this_update_utc


@pytest.mark.parametrize("escaped", [True, False])
def test_a_request_whose_text_ends_with_a_slash(site: Site, escaped: bool) -> None:
    path = ocsp_path(site, ENDS_WITH_SLASH, escaped=escaped)
    assert path.endswith("%2F" if escaped else "/")
    assert ocsp.load_der_ocsp_response(get(site, path).body).serial_number == ENDS_WITH_SLASH


def test_two_slashes_after_each_other(site: Site) -> None:
    serial = (0x42 << 120) | (0x3FFFF << 60)
    text = b64encode(encode_request(site.rows.query(serial))).decode()
    assert "//" in text
    for path in (text, quote(text, safe="")):
        assert ocsp.load_der_ocsp_response(get(site, f"/ocsp/{path}").body).serial_number == serial


def test_what_is_not_there_is_unauthorized(site: Site) -> None:
    for path in (ocsp_path(site, 0x9999, escaped=True), "/ocsp/garbage", "/ocsp/"):
        got = get(site, path)
        assert (got.code, got.headers["content-type"]) == (200, "application/ocsp-response"), path
        assert ocsp.load_der_ocsp_response(got.body).response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED
        assert got.headers["cache-control"] == "no-store"


def test_openssl_asks_by_post_and_verifies(site: Site) -> None:
    for serial, word in ((GOOD, "good"), (REVOKED, "revoked")):
        leaf = site.files / f"{serial}.pem"
        leaf.write_bytes(site.rows.issuer.leaf(serial).public_bytes(Encoding.PEM))
        for digest in ("-sha1", "-sha256"):
            done = run_command(
                "openssl", "ocsp", digest, "-issuer", site.files / "issuer.pem", "-cert", leaf, "-no_nonce",
                "-url", f"{site.url}/ocsp", "-CAfile", site.files / "root.pem", "-verify_other",
                site.files / "issuer.pem",
            )  # fmt: skip
            assert f": {word}" in done.stdout
            assert "Response verify OK" in done.stderr


@pytest.mark.parametrize(
    "path",
    ["/", "/manifest.json", "/.privyseal-publish", "/unknown", "/crl/", "/issuers/", "/crl/..%2f..%2fhome/roots.pem",
     "/ocsp/../manifest.json", "/ocsp/..%2fmanifest.json", "/crl/ffff.crl", "/issuers/../../home/roots.pem"],
)  # fmt: skip
def test_nothing_else_is_served(site: Site, path: str) -> None:
    got = get(site, path)
    # Below /ocsp/ whatever is not there is a question that nobody answers.
    assert got.code in {400, 403, 404} or got.body == bytes.fromhex("30030a0106")


def test_the_ledger(site: Site) -> None:
    """Key, checkpoint, tiles and entries, with the headers of C2SP tlog-tiles."""
    assert asyncio.run(check(OverHttp(_ledger_of(site)))).size == 600
    got = get(site, "/ledger/checkpoint")
    assert got.headers["content-type"] == "text/plain; charset=utf-8"
    assert got.headers["cache-control"] == "public, max-age=2"
    assert get(site, "/ledger/checkpoint", "-H", f"If-None-Match: {got.headers['etag']}").code == 304
    later = formatdate(parsedate_to_datetime(got.headers["last-modified"]).timestamp() + 5, usegmt=True)
    assert get(site, "/ledger/checkpoint", "-H", f"If-Modified-Since: {later}").code == 200
    assert get(site, "/ledger/vkey").headers["content-type"] == "text/plain; charset=utf-8"
    for path in ("0/001", "0/002.p/88", "1/000.p/2", "entries/000", "entries/002.p/88"):
        got = get(site, f"/ledger/tile/{path}")
        assert (got.code, got.headers["content-type"]) == (200, "application/octet-stream"), path
        assert got.headers["cache-control"] == "public, max-age=31536000, immutable"
    for path in ("tile/0/002.p/87", "tile/0/003", "tile/0/1", "tile/0", "tile/", "", "proof/00", "tile/0/../../vkey/"):
        assert get(site, f"/ledger/{path}").code == 404, path


def test_what_is_published_later_is_served_at_once(site: Site) -> None:
    der = site.rows.crl(5, shard=1)
    asyncio.run(_grow(site.rows.url, 200))
    settings = {"DATABASE__URL": site.rows.url, "LEDGER__ENTRIES": "open"}
    home = ServerProcess(site.rows.home(site.files / "home").home, settings)
    done = json.loads(run_command(PRIVYSEAL, "status", "publish", site.folder, "--json", env=home.environment).stdout)
    assert done["written"]["crls"] == 1
    assert get(site, f"/crl/{site.rows.id}/1.crl").body == der
    assert done["ledger"] == asyncio.run(check(OverHttp(_ledger_of(site)))).size == 800
    # A client with the checkpoint before goes to the full tile.
    assert get(site, "/ledger/tile/0/002.p/88").code == 404
    assert len(get(site, "/ledger/tile/0/002").body) == 256 * 32


def test_post_without_a_status_role(site: Site) -> None:
    """The example's second block in place of the first."""
    text = EXAMPLE.read_text()
    first = re.search(r"    location = /ocsp \{\n.*?\n    \}\n", text, re.DOTALL)
    assert first is not None
    text = text.replace(first[0], "    # http://127.0.0.1:8080\n")
    text = text.replace(
        "    #location = /ocsp {\n    #    return 405;\n    #}", "    location = /ocsp {\n return 405;\n }"
    )
    base, port = site.files / "second", free_port()
    base.mkdir()
    process = _nginx(base, site.folder, port, site.role.http_port, text)
    try:
        other = site._replace(url=f"http://{LOOPBACK}:{port}")
        deadline = time.monotonic() + 20
        while _curl("-o", "/dev/null", f"{other.url}/roots.pem").returncode != 0:
            assert time.monotonic() < deadline
        assert get(other, "/ocsp", "-H", "Content-Type: application/ocsp-request", "--data-binary", "x").code == 405
        assert get(other, ocsp_path(other, GOOD, escaped=True)).code == 200
    finally:
        process.terminate()
        process.wait(20)
