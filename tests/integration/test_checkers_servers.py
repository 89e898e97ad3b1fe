"""nginx, HAProxy and Apache, configured by the page for relying parties, refuse revoked clients and staple their own status."""

import http.client
import shlex
import ssl
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fakes.dns import LOOPBACK
from fakes.process import clean_environment, run_command
from fakes.relying import APP, CA, OWN, TRUST, Authority, Identity, Relying, adapted, block, blocks
from fakes.relying_programs import (
    Program,
    accepted,
    apache,
    curl,
    daemon,
    eventually,
    haproxy,
    nginx,
    reload_haproxy,
    stapled,
)

pytestmark = pytest.mark.client
pytest_plugins = ("fakes.relying_fixtures",)

Start = Callable[[Path, str, Identity, Relying], AbstractContextManager[Program]]

NGINX, NGINX_OCSP = blocks("nginx", "nginx")
APACHE, APACHE_OCSP = blocks("Apache httpd", "apache")
HAPROXY = block("HAProxy", "haproxy")
HAPROXY_CRL, HAPROXY_STAPLE = blocks("HAProxy", "sh")

NGINX_BY_OCSP = adapted(NGINX, {f"    ssl_crl {TRUST}/crls.pem;\n": NGINX_OCSP})
APACHE_BY_OCSP = adapted(
    APACHE,
    {f"    SSLCARevocationFile {TRUST}/crls.pem\n    SSLCARevocationCheck chain\n": APACHE_OCSP},
)

by_crl = pytest.mark.parametrize(
    ("start", "configuration"),
    [(nginx, NGINX), (haproxy, HAPROXY), (apache, APACHE)],
    ids=["nginx", "haproxy", "apache"],
)
by_ocsp = pytest.mark.parametrize(
    ("start", "configuration"), [(nginx, NGINX_BY_OCSP), (apache, APACHE_BY_OCSP)], ids=["nginx", "apache"]
)


@by_crl
def test_crl_file(
    start: Start, configuration: str, relying: Relying, authority: Authority, app: Identity, good: Identity, bad: Identity,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A client that is revoked while the server runs is refused once the timer's command has run."""
    leaver = authority.issue()
    with start(tmp_path / "server", configuration, app, relying) as server:
        assert accepted(relying, server.port, good)
        assert accepted(relying, server.port, leaver)
        assert not accepted(relying, server.port, bad), server.log
        authority.revoke(leaver)
        assert accepted(relying, server.port, leaver), "the file is read at the start"
        if start is haproxy:
            relying.refresh()
            reload_haproxy(server)
        else:
            refresh_as_the_unit_does(relying, server)
        eventually(lambda: not accepted(relying, server.port, leaver))
        assert accepted(relying, server.port, good), server.log
        assert "revoked" in server.log or start is haproxy, "HAProxy logs elsewhere"


def refresh_as_the_unit_does(relying: Relying, server: Program) -> None:
    """Run ExecStart of the page's unit."""
    unit = block("Keeping CRL files fresh", "ini")
    (command,) = (line.removeprefix("ExecStart=") for line in unit.splitlines() if line.startswith("ExecStart="))
    script, base, folder, *reload = shlex.split(command)
    assert (script, base, folder) == ("/usr/local/sbin/refresh-crls", CA, TRUST)
    assert reload == ["systemctl", "reload", "nginx"]
    relying.refresh(*server.reload)


@by_crl
def test_a_crl_file_fails_hard(
    start: Start, configuration: str, relying: Relying, app: Identity, good: Identity, tmp_path: Path
) -> None:
    """Without the root's CRL nobody is served."""
    relying.keep_crl_of("issuing-1")
    with start(tmp_path / "server", configuration, app, relying) as server:
        assert not accepted(relying, server.port, good), server.log


@by_ocsp
def test_ocsp_of_clients(
    start: Start, configuration: str, relying: Relying, authority: Authority, app: Identity, good: Identity, bad: Identity,
    tmp_path: Path,
) -> None:  # fmt: skip
    """No file and no reload: the next connection is refused."""
    leaver = authority.issue()
    with start(tmp_path / "server", configuration, app, relying) as server:
        assert accepted(relying, server.port, good), server.log
        assert accepted(relying, server.port, leaver), server.log
        assert not accepted(relying, server.port, bad), server.log
        authority.revoke(leaver)
        eventually(lambda: not accepted(relying, server.port, leaver))
        assert accepted(relying, server.port, good), server.log


@pytest.mark.parametrize(("start", "configuration"), [(nginx, NGINX), (apache, APACHE)], ids=["nginx", "apache"])
def test_stapling(
    start: Start, configuration: str, relying: Relying, authority: Authority, good: Identity, tmp_path: Path
) -> None:
    """``good``; and after the server's own certificate was revoked, nothing from nginx, ``revoked`` from Apache."""
    own = authority.issue(APP)
    with start(tmp_path / "before", configuration, own, relying) as server:
        eventually(lambda: stapled(relying, server.port) == "good")
        curl(relying, server.port, good, "--cert-status")
    authority.revoke(own)
    with start(tmp_path / "after", configuration, own, relying) as server:
        if start is nginx:
            stapled(relying, server.port)
            eventually(lambda: 'certificate status "revoked" in the OCSP response' in server.log)
            assert stapled(relying, server.port) == ""
        else:
            assert stapled(relying, server.port) == "revoked"
        refused = curl(relying, server.port, good, "--cert-status", expect=91)
        assert ("No OCSP response" if start is nginx else "revocation reason: keyCompromise") in refused.stderr
        relying.refresh()
        refused = curl(relying, server.port, good, "--crlfile", relying.crls, expect=60)
        assert "certificate revoked" in refused.stderr


def test_nginx_cannot_ask_about_the_whole_chain(
    relying: Relying, app: Identity, good: Identity, tmp_path: Path
) -> None:
    """Why the page says ``leaf``: issuing CAs name no responder."""
    whole = adapted(NGINX_BY_OCSP, {"ssl_ocsp leaf;": "ssl_ocsp on;"})
    with nginx(tmp_path / "nginx", whole, app, relying) as server:
        assert not accepted(relying, server.port, good)
        assert "no OCSP responder URL in certificate" in server.log


def test_a_cache_in_nginx_hides_revocations(
    relying: Relying, authority: Authority, app: Identity, tmp_path: Path
) -> None:
    """What the page warns of: with ``ssl_ocsp_cache`` a revoked client comes in for as long as the response lives."""
    leaver = authority.issue()
    cached = adapted(NGINX_BY_OCSP, {NGINX_OCSP: f"{NGINX_OCSP}    ssl_ocsp_cache shared:ocsp:1m;\n"})
    with nginx(tmp_path / "nginx", cached, app, relying) as server:
        assert accepted(relying, server.port, leaver)
        authority.revoke(leaver)
        assert accepted(relying, server.port, leaver)


def runtime(server: Program, script: str, own: Identity, relying: Relying) -> str:
    """Run a script of the page that speaks to HAProxy's runtime socket."""
    places = {
        "/run/haproxy/admin.sock": server.folder / "admin.sock",
        OWN: own.folder,
        TRUST: relying.folder,
        CA: relying.authority.http_url,
    }
    text = adapted(script, {old: new for old, new in places.items() if old in script})
    return run_command("sh", "-eu", "-c", text).stdout


def test_haproxy_over_its_runtime_socket(
    relying: Relying, authority: Authority, good: Identity, tmp_path: Path
) -> None:
    """A CRL and a staple without a reload; and that a committed CRL takes the staple back to the one of the start."""
    own, leaver = authority.issue(APP), authority.issue()
    response = own.both.with_name("app.both.pem.ocsp")
    run_command(
        *("openssl", "ocsp", "-issuer", relying.chain, "-cert", own.both, "-url", own.ocsp_url, "-no_nonce"),
        *("-CAfile", relying.chain, "-respout", response),
    )
    with haproxy(tmp_path / "haproxy", HAPROXY, own, relying) as server:
        assert stapled(relying, server.port) == "good"
        curl(relying, server.port, good, "--cert-status")
        assert accepted(relying, server.port, leaver)
        authority.revoke(own)
        authority.revoke(leaver)
        assert "OCSP Response updated!" in runtime(server, HAPROXY_STAPLE, own, relying)
        assert stapled(relying, server.port) == "revoked"
        relying.refresh()
        assert "Success!" in runtime(server, HAPROXY_CRL, own, relying)
        assert not accepted(relying, server.port, leaver)
        assert accepted(relying, server.port, good)
        if "HAProxy version 2.6." in run_command(daemon("haproxy"), "-v").stdout:
            assert stapled(relying, server.port) == "good", "the page says that 2.6 forgets it"
        runtime(server, HAPROXY_STAPLE, own, relying)
        assert stapled(relying, server.port) == "revoked"
        curl(relying, server.port, good, "--cert-status", expect=91)


def test_an_open_connection_is_not_cut(relying: Relying, authority: Authority, app: Identity, tmp_path: Path) -> None:
    """Whoever is in stays in: the check belongs to the handshake."""
    leaver = authority.issue()
    context = ssl.create_default_context(cafile=relying.roots)
    context.load_cert_chain(leaver.pem, leaver.key)
    context.check_hostname = False
    with nginx(tmp_path / "nginx", NGINX_BY_OCSP, app, relying) as server:
        connection = http.client.HTTPSConnection(LOOPBACK, server.port, context=context, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"ok\n"
        authority.revoke(leaver)
        eventually(lambda: not accepted(relying, server.port, leaver))
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"ok\n"
        connection.close()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@by_crl
def test_no_session_is_resumed(
    start: Start, configuration: str, version: str, relying: Relying, app: Identity, good: Identity, tmp_path: Path
) -> None:
    with start(tmp_path / "server", configuration, app, relying) as server:
        assert not resumes(relying, server, good, version, tmp_path)


def test_a_resumed_session_skips_the_check(
    relying: Relying, authority: Authority, app: Identity, tmp_path: Path
) -> None:
    """Why the page turns resumption off: a cache that reloads do not empty lets a revoked client in."""
    leaver = authority.issue()
    configuration = adapted(NGINX, {"ssl_session_cache off;": "ssl_session_cache shared:sessions:1m;"})
    session = tmp_path / "session"
    with nginx(tmp_path / "server", configuration, app, relying) as server:
        assert "200 OK" in connection(relying, server, leaver, "-tls1_2", "-sess_out", session)
        authority.revoke(leaver)
        relying.refresh(*server.reload)
        eventually(lambda: not accepted(relying, server.port, leaver))
        answer = connection(relying, server, leaver, "-tls1_2", "-sess_in", session)
        assert "Reused, TLS" in answer
        assert "200 OK" in answer


def resumes(relying: Relying, server: Program, client: Identity, version: str, folder: Path) -> bool:
    """Whether a second connection with the session of a first one is resumed."""
    session = folder / "session"
    connection(relying, server, client, version, "-sess_out", session)
    return session.exists() and "Reused, TLS" in connection(relying, server, client, version, "-sess_in", session)


def connection(relying: Relying, server: Program, client: Identity, *options: str | Path) -> str:
    """What ``openssl s_client`` says of a connection with one request."""
    done = subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"{LOOPBACK}:{server.port}", "-servername", APP, "-ign_eof"),
            *("-CAfile", relying.roots, "-cert", client.pem, "-cert_chain", client.pem, "-key", client.key, *options),
        ],
        input=f"GET / HTTP/1.1\r\nHost: {APP}\r\nConnection: close\r\n\r\n",
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout
