"""Servers written in Go, Java and Python, as the page for relying parties writes them, refuse revoked clients."""

import http.server
import select
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fakes.dns import LOOPBACK
from fakes.process import clean_environment, run_command
from fakes.relying import OWN, TRUST, Authority, Identity, Relying, adapted, block
from fakes.relying_programs import accepted, eventually

pytestmark = pytest.mark.client
pytest_plugins = ("fakes.relying_fixtures",)

_SOURCES = Path(__file__).parent / "relying"
_START_SECONDS = 30.0


@contextmanager
def listening(folder: Path, *command: str | Path) -> Iterator[int]:
    """The port that a program prints when it serves."""
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [str(part) for part in command], env=clean_environment(), stdout=subprocess.PIPE, stderr=errors
        )
    assert process.stdout is not None
    with process, process.stdout as output:
        try:
            ready, _, _ = select.select([output], [], [], _START_SECONDS)
            line = output.readline() if ready else b""
            assert line.strip().isdigit(), (line, (folder / "errors").read_text())
            yield int(line)
        finally:
            process.kill()


def holds_the_door(port: int, relying: Relying, authority: Authority, good: Identity, bad: Identity) -> None:
    """A good client is served, a revoked one is not, and one that is revoked meanwhile is not any more."""
    leaver = authority.issue()
    assert accepted(relying, port, good)
    assert not accepted(relying, port, bad)
    assert accepted(relying, port, leaver)
    authority.revoke(leaver)
    eventually(lambda: not accepted(relying, port, leaver))


@pytest.fixture(scope="session")
def go_server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go program, built with the sources of Debian's packages."""
    folder = tmp_path_factory.mktemp("go")
    environment = clean_environment(
        GO111MODULE="off", GOPATH="/usr/share/gocode", GOCACHE=str(folder / "cache"), GOFLAGS="", GOTOOLCHAIN="local"
    )
    run_command("go", "build", "-o", folder / "relying", _SOURCES / "relying.go", env=environment, timeout=300)
    return folder / "relying"


@pytest.mark.parametrize("method", ["ocsp", "crl"])
def test_go(
    go_server: Path, method: str, relying: Relying, authority: Authority, app: Identity, good: Identity, bad: Identity,
    tmp_path: Path,
) -> None:  # fmt: skip
    with listening(tmp_path, go_server, method, app.pem, app.key, relying.roots) as port:
        holds_the_door(port, relying, authority, good, bad)


@contextmanager
def java(folder: Path, method: str, own: Identity, relying: Relying, *options: str) -> Iterator[int]:
    """The port of the Java program."""
    store = folder / "app.p12"
    run_command("openssl", "pkcs12", "-export", "-in", own.pem, "-inkey", own.key, "-passout", "pass:changeit",
                "-out", store)  # fmt: skip
    program: tuple[str | Path, ...] = ("java", "-XX:TieredStopAtLevel=1", *options, _SOURCES / "Relying.java")
    with listening(folder, *program, method, store, "changeit", relying.roots) as port:
        yield port


def await_error(folder: Path, text: str) -> None:
    """Wait until the program in ``folder`` has said ``text``."""
    eventually(lambda: text in (folder / "errors").read_text(encoding="utf-8"))


def test_java_by_ocsp(
    relying: Relying, authority: Authority, app: Identity, good: Identity, bad: Identity, tmp_path: Path
) -> None:
    with java(tmp_path, "ocsp", app, relying) as port:
        holds_the_door(port, relying, authority, good, bad)
        await_error(tmp_path, "CertificateRevokedException")


@pytest.mark.parametrize("method", ["crl", "chain"])
def test_java_by_crl(
    method: str, relying: Relying, app: Identity, good: Identity, bad: Identity, tmp_path: Path
) -> None:
    """The part that the certificate names, and for the whole chain the root's CRL, which the issuing CA's certificate names.
    Java keeps them for 30 s, so nobody is revoked meanwhile."""
    with java(tmp_path, method, app, relying) as port:
        assert accepted(relying, port, good)
        assert not accepted(relying, port, bad)
        await_error(tmp_path, "CertificateRevokedException")


def test_java_fails_hard(relying: Relying, app: Identity, good: Identity, tmp_path: Path) -> None:
    """All its questions go to a proxy that is not there."""
    nowhere = ("-Dhttp.proxyHost=127.0.0.1", "-Dhttp.proxyPort=9", "-Dhttp.nonProxyHosts=")
    with java(tmp_path, "ocsp", app, relying, *nowhere) as port:
        assert not accepted(relying, port, good)
        await_error(tmp_path, "Unable to determine revocation status")


def python_context(own: Identity, relying: Relying) -> ssl.SSLContext:
    """What the page's lines make."""
    lines = adapted(block("Python", "python"), {OWN: own.folder, TRUST: relying.folder})
    scope: dict[str, object] = {"ssl": ssl}
    exec(compile(lines, "the page", "exec"), scope)  # noqa: S102 (the page's own lines)
    context = scope["context"]
    assert isinstance(context, ssl.SSLContext)
    return context


class _Ok(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A refused client is what is expected here."""


@contextmanager
def python_server(context: ssl.SSLContext) -> Iterator[int]:
    """A server with ``context``."""
    with _Server((LOOPBACK, 0), _Ok) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_python(relying: Relying, authority: Authority, app: Identity, good: Identity, bad: Identity) -> None:
    leaver = authority.issue()
    with python_server(python_context(app, relying)) as port:
        assert accepted(relying, port, good)
        assert not accepted(relying, port, bad)
        authority.revoke(leaver)
        relying.refresh()
        assert accepted(relying, port, leaver), "a context keeps the CRLs that it has read"
    with python_server(python_context(app, relying)) as port:
        assert not accepted(relying, port, leaver)
        assert accepted(relying, port, good)


def test_python_as_a_client(relying: Relying, app: Identity, bad: Identity) -> None:
    """VERIFY_CRL_CHECK_LEAF asks for the issuing CA's CRL alone."""
    relying.keep_crl_of("issuing-1")
    for own, served in ((app, True), (bad, False)):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(own.pem, own.key)
        client = ssl.create_default_context(cafile=relying.roots)
        client.load_verify_locations(relying.crls)
        client.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        said = handshake(client, server, own.name)
        assert said == ("" if served else "certificate revoked")


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> str:
    """Why ``client`` refuses ``server``; empty when it does not."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (one, other, one):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return ""


@pytest.mark.parametrize(
    ("heading", "language", "source"), [("Go", "go", "relying.go"), ("Java", "java", "Relying.java")]
)
def test_the_page_shows_what_runs(heading: str, language: str, source: str) -> None:
    assert block(heading, language) in (_SOURCES / source).read_text(encoding="utf-8")
