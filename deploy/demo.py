"""The whole story of one authority, unattended: ``make demo``.

It makes a home of its own in a temporary folder, serves it on free ports, and has certbot, curl and openssl judge what
comes out. The exit code is 0 only if every step held; the folder and every process are gone at the end.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

BIN: Final = Path(sys.executable).parent
LOOPBACK: Final = "127.0.0.1"
SERVER: Final = "server.demo.localhost"
CLIENT: Final = "client.demo.localhost"
DAY: Final = 86400
BACKDATE: Final = 600
COMMAND_SECONDS: Final = 60
START_SECONDS: Final = 30
STOP_SECONDS: Final = 30
LOG_LINES: Final = 20
# Two leaves, one renewed; of the service itself its own, the OCSP responder's and the canary, which is revoked.
ISSUED: Final = 6
REVOKED: Final = 2
VISIBLE_SECONDS: Final = 10


class StepFailedError(Exception):
    """A step did not hold."""


def require(held: bool, otherwise: str) -> None:
    """Go on only if ``held``."""
    if not held:
        raise StepFailedError(otherwise)


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


class Demo:
    """The steps, and what they share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.roots = self.home / "roots.pem"
        self.log = folder / "serve.log"
        self.challenge_port = free_port()
        self.https = f"{LOOPBACK}:{free_port()}"
        self.http = f"{LOOPBACK}:{free_port()}"
        self.service: subprocess.Popen[bytes] | None = None
        inherited = {
            name: value
            for name, value in os.environ.items()
            # Nothing here is for another authority, for the operator's token, or leaves this machine.
            if not name.startswith("PRIVYSEAL_") and name != "SOFTHSM2_CONF" and not name.lower().endswith("_proxy")
        }
        self.environment = {
            **inherited,
            "PRIVYSEAL_HOME": str(self.home),
            "PRIVYSEAL_SERVER__HTTPS": self.https,
            "PRIVYSEAL_SERVER__HTTP": self.http,
            "PRIVYSEAL_VALIDATION__HTTP_PORT": str(self.challenge_port),
            "REQUESTS_CA_BUNDLE": str(self.roots),
        }

    # The steps, in their order.

    def init(self) -> str:
        """Hold the key ceremony: root and intermediate in SoftHSM tokens."""
        made = json.loads(self.run(BIN / "privyseal", "init", "--organization", "Demo", "--json"))
        return f"root SHA-256 {made['root_sha256'][:16]}..., keys in SoftHSM"

    def serve(self) -> str:
        """Start the service and wait until it says that it is ready."""
        with self.log.open("wb") as log:
            self.service = subprocess.Popen(  # noqa: S603
                [BIN / "privyseal", "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.ready():
            require(self.service.poll() is None, "privyseal serve ended")
            require(time.monotonic() < deadline, f"not ready after {START_SECONDS} s")
            time.sleep(0.05)
        return f"https://{self.https}/acme/directory"

    def issue(self) -> str:
        """Have certbot get two certificates by http-01."""
        self.certbot("register", "--agree-tos", "--register-unsafely-without-email")
        for name in (SERVER, CLIENT):
            self.certbot("certonly", "--standalone", "--http-01-port", str(self.challenge_port),
                         "--http-01-address", LOOPBACK, "-d", name)  # fmt: skip
        return f"{SERVER}, {CLIENT}"

    def verify(self) -> str:
        """Have openssl verify the chains, and look at what the profile promises."""
        for name in (SERVER, CLIENT):
            chain = self.live(name) / "fullchain.pem"
            for purpose in ("sslserver", "sslclient"):
                self.run("openssl", "verify", "-x509_strict", "-purpose", purpose, "-verify_hostname", name,
                         "-CAfile", self.roots, "-untrusted", chain, chain)  # fmt: skip
            leaf, issuer = x509.load_pem_x509_certificates(chain.read_bytes())
            extensions = leaf.extensions
            usage = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
            require(
                usage == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH},
                "the certificate is not for server and client authentication",
            )
            lifetime = (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds()
            require(lifetime <= DAY + BACKDATE, f"the certificate lives {lifetime} s, longer than a day")
            require(
                extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
                == issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest,
                "the authority key identifier is not the issuer's",
            )
        return "chain, names, EKU serverAuth + clientAuth, one day, key identifiers"

    def handshake(self) -> str:
        """Have two holders of certificates meet: a TLS server that asks for one, and a client that has one."""
        with self.tls_server() as port:
            page = self.curl(port, "--cert", self.live(CLIENT) / "fullchain.pem", "--key",
                             self.live(CLIENT) / "privkey.pem")  # fmt: skip
            require(page.returncode == 0, f"the client was not let in: {page.stderr}")
            require("Verify return code: 0 (ok)" in page.stdout, "the server did not verify the client")
            anonymous = self.curl(port)
            require(anonymous.returncode != 0, "a client without a certificate was let in")
        version = re.search(r"Protocol\s*:\s*(\S+)", page.stdout)
        return f"{version[1] if version else 'TLS'}, both sides verified; without a certificate refused"

    def renew(self) -> str:
        """Have certbot renew, as it will do every day."""
        before = self.serial(SERVER)
        self.certbot("renew", "--force-renewal", "--cert-name", SERVER, "--no-random-sleep-on-renew")
        after = self.serial(SERVER)
        require(before != after, "the serial number is the same")
        self.run("openssl", "verify", "-CAfile", self.roots, "-untrusted", self.live(SERVER) / "chain.pem",
                 self.live(SERVER) / "cert.pem")  # fmt: skip
        return f"serial {after[:8]}... after {before[:8]}..."

    def revoke(self) -> str:
        """Have certbot revoke, and ask the authority."""
        serial = self.serial(CLIENT)
        require(self.state(serial) == "valid", f"the certificate is {self.state(serial)} beforehand")
        self.certbot("revoke", "--cert-name", CLIENT, "--reason", "superseded", "--no-delete-after-revoke")
        require(self.state(serial) == "revoked", f"the certificate is {self.state(serial)}, not revoked")
        return f"serial {serial[:8]}... is revoked, superseded"

    def relying(self) -> str:
        """Ask as those do who have to know: by OCSP and by CRL, at the places that the certificate names."""
        begun = time.monotonic()
        live = self.live(CLIENT)
        leaf = x509.load_pem_x509_certificate((live / "cert.pem").read_bytes())
        ask = ["openssl", "ocsp", "-issuer", live / "chain.pem", "-cert", live / "cert.pem", "-CAfile", self.roots,
               "-url", ocsp_url(leaf)]  # fmt: skip
        self.wait_for("OCSP says that the certificate is revoked", lambda: "revoked" in self.run(*ask))
        part = self.folder / "part.crl"

        def refused() -> bool:
            with urllib.request.urlopen(crl_url(leaf), timeout=5) as answer:  # noqa: S310
                part.write_bytes(answer.read())
            return "certificate revoked" in self.refusal("openssl", "verify", "-crl_check", "-CAfile", self.roots, "-untrusted", live / "chain.pem",
                              "-CRLfile", part, live / "cert.pem")  # fmt: skip

        self.wait_for("the CRL lists the certificate", refused)
        other = self.live(SERVER)
        ask = ["openssl", "ocsp", "-issuer", other / "chain.pem", "-cert", other / "cert.pem", "-CAfile", self.roots,
               "-url", ocsp_url(x509.load_pem_x509_certificate((other / "cert.pem").read_bytes()))]  # fmt: skip
        require(": good" in self.run(*ask), "OCSP does not say that the other certificate is good")
        return f"refused by OCSP and CRL {time.monotonic() - begun:.1f} s later; the other is good"

    def ledger(self) -> str:
        """Check the ledger from its first entry to its last."""
        found = json.loads(self.run(BIN / "privyseal", "ledger", "verify", "--json"))
        require(found["certificates"] == ISSUED, f"the ledger holds {found['certificates']} certificates, not {ISSUED}")
        require(found["revoked"] == REVOKED, f"the ledger holds {found['revoked']} revocations, not {REVOKED}")
        return f"{found['size']} entries, {found['certificates']} certificates, {REVOKED} revoked, all accounted for"

    def stop(self) -> str:
        """Tell the service to stop."""
        require(self.service is not None, "the service does not run")
        assert self.service is not None  # noqa: S101 (for the type checker)
        self.service.send_signal(signal.SIGTERM)
        try:
            code = self.service.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise StepFailedError(f"it did not end within {STOP_SECONDS} s of SIGTERM") from error
        require(code == 0, f"it ended with exit code {code}")
        return "SIGTERM, exit code 0"

    # What the steps do it with.

    def run(self, *command: str | Path) -> str:
        """The standard output of ``command``, which has to succeed."""
        done = subprocess.run(  # noqa: S603
            command,
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        shown = " ".join(str(part) for part in command)
        require(done.returncode == 0, f"{shown}\nended with exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def refusal(self, *command: str | Path) -> str:
        """What ``command`` says against it; nothing when it succeeds."""
        try:
            self.run(*command)
        except StepFailedError as error:
            return str(error)
        return ""

    def wait_for(self, what: str, holds: Callable[[], bool]) -> None:
        """Return once ``holds``."""
        deadline = time.monotonic() + VISIBLE_SECONDS
        while not holds():
            require(time.monotonic() < deadline, f"not within {VISIBLE_SECONDS} s: {what}")
            time.sleep(0.1)

    def certbot(self, *arguments: str) -> None:
        """Run certbot with its folders in the demo's."""
        folder = self.folder / "certbot"
        self.run(BIN / "certbot", *arguments, "--non-interactive", "--server", f"https://{self.https}/acme/directory",
                 "--config-dir", folder, "--work-dir", folder, "--logs-dir", folder)  # fmt: skip

    def curl(self, port: int, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        """Have curl fetch the TLS server's page."""
        command: list[str | Path] = ["curl", "--silent", "--show-error", "--max-time", "10", "--cacert", self.roots]
        command += ["--resolve", f"{SERVER}:{port}:{LOOPBACK}", *arguments, f"https://{SERVER}:{port}/"]
        return subprocess.run(  # noqa: S603
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    @contextmanager
    def tls_server(self) -> Iterator[int]:
        """OpenSSL's server with an issued certificate; it lets nobody in without one. Gives its port."""
        port = free_port()
        live = self.live(SERVER)
        command: list[str | Path] = [
            "openssl",
            "s_server",
            "-accept",
            f"{LOOPBACK}:{port}",
            "-www",
            "-CAfile",
            self.roots,
        ]
        command += ["-Verify", "3", "-verify_return_error"]
        command += ["-cert", live / "cert.pem", "-key", live / "privkey.pem", "-cert_chain", live / "chain.pem"]
        server = subprocess.Popen(  # noqa: S603
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            if server.stdout is None or not any(line.startswith(b"ACCEPT") for line in server.stdout):
                raise StepFailedError("openssl s_server did not start")
            yield port
        finally:
            server.terminate()
            server.communicate()

    def live(self, name: str) -> Path:
        """certbot's folder with the current files of ``name``."""
        return self.folder / "certbot" / "live" / name

    def serial(self, name: str) -> str:
        """The serial number of the current certificate of ``name``."""
        certificate = x509.load_pem_x509_certificate((self.live(name) / "cert.pem").read_bytes())
        return f"{certificate.serial_number:032x}"

    def state(self, serial: str) -> str:
        """What the authority says of a certificate."""
        document: dict[str, Any] = json.loads(self.run(BIN / "privyseal", "cert", "show", serial, "--json"))
        return str(document["state"])

    def ready(self) -> bool:
        """Whether the service is ready."""
        try:
            with urllib.request.urlopen(f"http://{self.http}/readyz", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def close(self) -> None:
        """End what still runs."""
        if self.service is not None and self.service.poll() is None:
            self.service.kill()
            self.service.wait()


def ocsp_url(certificate: x509.Certificate) -> str:
    """The OCSP responder that ``certificate`` names."""
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    (url,) = (each.access_location.value for each in access if each.access_method == AuthorityInformationAccessOID.OCSP)
    return str(url)


def crl_url(certificate: x509.Certificate) -> str:
    """The CRL that ``certificate`` names."""
    (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    return str((point.full_name or [])[0].value)


def play(demo: Demo) -> bool:
    """Take the steps until one does not hold, and say of each how it went."""
    steps: list[tuple[str, Callable[[], str]]] = [
        ("init", demo.init),
        ("serve", demo.serve),
        ("certbot issues", demo.issue),
        ("openssl verifies", demo.verify),
        ("mutual TLS", demo.handshake),
        ("certbot renews", demo.renew),
        ("certbot revokes", demo.revoke),
        ("others see it", demo.relying),
        ("ledger check", demo.ledger),
        ("shut down", demo.stop),
    ]
    begun = time.monotonic()
    for name, step in steps:
        start = time.monotonic()
        try:
            said = step()
        except (StepFailedError, subprocess.TimeoutExpired, OSError, ValueError, LookupError) as error:
            print(f"  \u2717 {name:<17}{time.monotonic() - start:6.1f} s  {error}", flush=True)
            if demo.log.exists():
                tail = demo.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
                print("\nThe end of the service's log:\n", *tail, sep="\n")
            return False
        print(f"  \u2713 {name:<17}{time.monotonic() - start:6.1f} s  {said}", flush=True)
    print(f"\nEvery step held, in {time.monotonic() - begun:.0f} s.")
    return True


def main() -> int:
    """Play the demo; the exit code."""
    # As Ctrl-C: whoever ends the demo early leaves nothing behind either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="privyseal-demo-") as folder:
        demo = Demo(Path(folder))
        try:
            return 0 if play(demo) else 1
        finally:
            demo.close()


if __name__ == "__main__":
    sys.exit(main())
