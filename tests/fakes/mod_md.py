"""Apache with mod_md: a web server that gets and renews its own certificates over ACME, as a process on free ports.

::

    with mod_md(server, "web.corp.internal") as apache:
        apache.await_certificate()
        apache.reload()

What mod_md has obtained is staged and served from the next reload on. It asks for renewal information (RFC 9773) after a
start and after a reload.
"""

import signal
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509

from fakes.dns import LOOPBACK, free_port
from fakes.process import ServerProcess
from fakes.relying_programs import Program, daemon, eventually, program

_MODULES = Path("/usr/lib/apache2/modules")
_LOADED = ("mpm_event", "authz_core", "socache_shmcb", "ssl", "md")
#: With the private key's kind in its name, when that is not RSA.
_CHAIN = "pubcert.secp256r1.pem"
_STARTED = "AH00489"

#: The module's own words: the authority says when, or that it is time; a renewal is waiting for the next reload.
TOLD_WHEN = "AH10515"
TOLD_NOW = "AH10517"
RENEWED = "AH10059"
#: By its own rule (MDRenewWindow) it is too early; only said when the authority is not asked.
NOT_DUE = "AH10514"
#: It looks whether anything is to be done (MDCheckInterval).
LOOKED = "AH10055"


class ModMd:
    """A running Apache with one managed domain."""

    def __init__(self, server: ServerProcess, name: str, folder: Path, running: Program) -> None:
        self.name = name
        self._server = server
        self._folder = folder
        self._running = running
        self._renewals = 0

    @property
    def chain(self) -> Path:
        """The certificate in use, and its issuer's, since the last reload."""
        return self._folder / "md" / "domains" / self.name / _CHAIN

    @property
    def staged(self) -> Path:
        """What the next reload brings into use."""
        return self._folder / "md" / "staging" / self.name / _CHAIN

    def said(self, code: str) -> int:
        """How often Apache has logged the message with ``code``."""
        return self._running.log.count(f" {code}: ")

    def await_message(self, code: str, times: int) -> None:
        """Wait until Apache has logged the message with ``code`` so often."""
        eventually(lambda: self.said(code) >= times)

    def await_certificate(self) -> None:
        """Wait until one more certificate is staged."""
        self._renewals += 1
        self.await_message(RENEWED, self._renewals)
        assert self.staged.exists()

    def reload(self) -> None:
        """Reload gracefully, as after a change of its files, and wait until that is done."""
        before = self.said(_STARTED)
        self._running.signal(signal.SIGUSR1)
        self.await_message(_STARTED, before + 1)

    def served(self) -> x509.Certificate:
        """The certificate that it shows to a client that trusts the authority and verifies the name."""
        context = ssl.create_default_context(cafile=str(self._server.roots))
        with (
            socket.create_connection((LOOPBACK, self._running.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=self.name) as connection,
        ):
            shown = connection.getpeercert(binary_form=True)
        assert shown
        return x509.load_der_x509_certificate(shown)


@contextmanager
def mod_md(server: ServerProcess, name: str, *directives: str) -> Iterator[ModMd]:
    """Apache for ``name``, with more ``directives`` of mod_md's; it answers http-01 where ``server`` asks for it."""
    # Its children are somebody else when it is started by root, and have to get here.
    with tempfile.TemporaryDirectory(prefix="mod_md-") as directory:
        folder = Path(directory)
        folder.chmod(0o755)
        (folder / "roots.pem").write_bytes(server.roots.read_bytes())
        port = free_port()
        configuration = folder / "apache.conf"
        configuration.write_text(_configuration(server, name, folder, port, directives), encoding="utf-8")
        command = (daemon("apache2"), "-DFOREGROUND", "-f", configuration)
        with program(folder, command, port, server.challenge_port) as running:
            yield ModMd(server, name, folder, running)


def _configuration(server: ServerProcess, name: str, folder: Path, port: int, directives: tuple[str, ...]) -> str:
    loaded = "\n".join(f"LoadModule {each}_module {_MODULES}/mod_{each}.so" for each in _LOADED)
    more = "\n".join(directives)
    return f"""
{loaded}
ServerRoot {folder}
DefaultRuntimeDir {folder}
PidFile {folder}/pid
ErrorLog {folder}/error.log
LogLevel notice md:debug
User "#65534"
Group "#65534"
StartServers 1
ServerLimit 2
ThreadLimit 8
ThreadsPerChild 8
MinSpareThreads 1
MaxRequestWorkers 16
ServerName localhost
Listen {LOOPBACK}:{port}
Listen {LOOPBACK}:{server.challenge_port}
MDomain {name}
MDCertificateAuthority {server.directory}
MDCACertificateFile {folder}/roots.pem
MDCertificateAgreement accepted
MDContactEmail ops@corp.internal
MDStoreDir {folder}/md
MDPortMap http:{server.challenge_port} https:-
MDCAChallenges http-01
MDPrivateKeys secp256r1
MDCheckInterval 1s
MDRetryDelay 1s
{more}
<VirtualHost {LOOPBACK}:{port}>
    ServerName {name}
    SSLEngine on
</VirtualHost>
"""
