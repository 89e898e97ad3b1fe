"""certbot and lego as commands, and a check of what they were given by tools that did not make it."""

import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from fakes.dns import LOOPBACK, Knot
from fakes.process import ServerProcess, clean_environment, run_command

CERTBOT = Path(sys.executable).with_name("certbot")
DNS_HOOK = Path(__file__).with_name("dns_hook.py")
ZONE = "corp.internal"


@dataclass(frozen=True)
class Certbot:
    """certbot with folders of its own; ``http-01`` by its built-in server."""

    server: ServerProcess
    folder: Path

    def __call__(self, *arguments: str | Path, expect: int | None = 0) -> "subprocess.CompletedProcess[str]":
        """Run it; nothing is asked."""
        return run_command(
            CERTBOT,
            *arguments,
            *("--non-interactive", "--no-random-sleep-on-renew"),
            *("--config-dir", self.folder / "config"),
            *("--work-dir", self.folder / "work"),
            *("--logs-dir", self.folder / "logs"),
            *("--server", self.server.directory),
            env=clean_environment(REQUESTS_CA_BUNDLE=str(self.server.roots)),
            cwd=self.folder,
            expect=expect,
        )

    def register(self, *arguments: str) -> None:
        """Make an account."""
        self("register", "--agree-tos", "--register-unsafely-without-email", *arguments)

    def certonly(self, *arguments: str | Path, expect: int | None = 0) -> "subprocess.CompletedProcess[str]":
        """Get a certificate, with a new account when there is none."""
        return self("certonly", "--agree-tos", "--register-unsafely-without-email", *arguments, expect=expect)

    @property
    def standalone(self) -> tuple[str, ...]:
        """The options of http-01."""
        return ("--standalone", "--http-01-port", str(self.server.challenge_port), "--http-01-address", LOOPBACK)

    def dns(self, dns: Knot) -> tuple[str, ...]:
        """The options of dns-01."""
        hook = f"{sys.executable} -P {DNS_HOOK} {dns.port} {ZONE}"
        return (
            *("--manual", "--preferred-challenges", "dns"),
            *("--manual-auth-hook", f"{hook} add", "--manual-cleanup-hook", f"{hook} delete"),
        )

    def lineage(self, lineage: str) -> Path:
        """The folder of the certificate's current files."""
        return self.folder / "config" / "live" / lineage


@dataclass(frozen=True)
class Lego:
    """lego with a folder of its own."""

    server: ServerProcess
    folder: Path

    def __call__(
        self, *arguments: str | Path, expect: int | None = 0, environment: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run it."""
        return run_command(
            "lego",
            *("--server", self.server.directory, "--path", self.folder, "--accept-tos"),
            *("--email", "ops@corp.internal"),
            *arguments,
            env=clean_environment(LEGO_CA_CERTIFICATES=str(self.server.roots), **(environment or {})),
            cwd=self.folder,
            expect=expect,
        )

    @property
    def http(self) -> tuple[str, ...]:
        """The options of http-01."""
        return ("--http", "--http.port", f"{LOOPBACK}:{self.server.challenge_port}")

    @property
    def tls(self) -> tuple[str, ...]:
        """The options of tls-alpn-01."""
        return ("--tls", "--tls.port", f"{LOOPBACK}:{self.server.tls_challenge_port}")

    def certificate(self, name: str) -> Path:
        """The chain that was issued for ``name`` first."""
        return self.folder / "certificates" / f"{name}.crt"


def read_chain(path: Path) -> list[x509.Certificate]:
    """The certificates of a PEM file."""
    return x509.load_pem_x509_certificates(path.read_bytes())


def serial_of(path: Path) -> int:
    """The serial number of the first certificate in a PEM file."""
    return read_chain(path)[0].serial_number


def check_chain(server: ServerProcess, chain: Path, names: Sequence[str]) -> x509.Certificate:
    """Hold an issued chain to what relying parties need; the leaf.

    OpenSSL verifies it as a server's and as a client's; the names are exactly ``names``; the issuer can be fetched.
    """
    for purpose in ("sslserver", "sslclient"):
        run_command("openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", server.roots,
                    "-untrusted", chain, chain)  # fmt: skip
    leaf, issuer, *more = read_chain(chain)
    assert more == [], "the chain is leaf and intermediate; the root is the relying party's"
    alternative = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(value.value) for value in alternative} == set(names)
    assert alternative.get_values_for_type(x509.IPAddress) == [
        ip_address(name) for name in names if name.replace(".", "").isdigit()
    ]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    access = leaf.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    url = next(
        each.access_location.value for each in access if each.access_method == AuthorityInformationAccessOID.CA_ISSUERS
    )
    assert url.startswith(server.http_url)
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 (the server of this test)
        assert x509.load_der_x509_certificate(answer.read()) == issuer
    return leaf
