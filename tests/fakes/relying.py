"""Those who rely on certificates: real programs with the configuration that the page for relying parties gives them.

An :class:`Authority` is the service, whose certificates the tests issue and revoke over ACME. A :class:`Relying` is a folder as
:data:`PAGE` describes it, with trust anchors and CRLs fetched by the page's own script. :mod:`fakes.relying_fixtures` makes
them; the programs are in :mod:`fakes.relying_programs`.
"""

import base64
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import count
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from fakes.acme_client import AcmeClient, Issued
from fakes.dns import LOOPBACK, knot
from fakes.http01 import http01_responder
from fakes.process import ServerProcess, clean_environment, run_command, served

PAGE = Path(__file__).parents[2] / "docs" / "relying-parties.md"
#: What the page calls the service, the folders of a relying party, and the program it configures.
CA = "http://ca.corp.example"
TRUST = "/etc/ssl/privyseal"
OWN = "/etc/ssl/app"
APP = "app.corp.example"
ZONE = "corp.example"

#: The hash of most clients' CertIDs.
SHA1 = hashes.SHA1()  # noqa: S303 (not used to sign)

#: The service promises 5 s; the rest is for a busy machine.
_VISIBLE_SECONDS = 10.0
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_numbers = count(1)


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, in the files that programs want."""

    name: str
    folder: Path
    certificate: x509.Certificate
    issuer: x509.Certificate

    @classmethod
    def write(cls, folder: Path, name: str, issued: Issued) -> "Identity":
        """Write the files into a new ``folder``: ``app.pem`` (certificate and issuer), ``app.key``, ``app.both.pem``."""
        folder.mkdir()
        chain = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in issued.chain)
        key = issued.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / "app.pem").write_bytes(chain)
        (folder / "app.key").write_bytes(key)
        (folder / "app.both.pem").write_bytes(chain + key)
        return cls(name, folder, issued.chain[0], issued.chain[1])

    @property
    def pem(self) -> Path:
        """The certificate and its issuer's."""
        return self.folder / "app.pem"

    @property
    def key(self) -> Path:
        """The private key."""
        return self.folder / "app.key"

    @property
    def both(self) -> Path:
        """Certificate, issuer and key in one file."""
        return self.folder / "app.both.pem"

    @cached_property
    def ocsp_url(self) -> str:
        """The responder that the certificate names."""
        access = self.certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
        return next(
            str(each.access_location.value)
            for each in access
            if each.access_method == AuthorityInformationAccessOID.OCSP
        )

    @cached_property
    def crl_url(self) -> str:
        """The part of the CRL that the certificate names."""
        return crl_url(self.certificate)


def crl_url(certificate: x509.Certificate) -> str:
    """The CRL that a certificate names."""
    (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name is not None
    return str(point.full_name[0].value)


class Authority:
    """The service, with an account at it."""

    def __init__(self, server: ServerProcess, client: AcmeClient, folder: Path) -> None:
        self.server = server
        self._client = client
        self._folder = folder

    @property
    def http_url(self) -> str:
        """What :data:`CA` stands for."""
        return self.server.http_url

    @cached_property
    def ids(self) -> dict[str, str]:
        """The id of each CA by its name."""
        return {each["name"]: each["id"] for each in self.server.json("issuer", "list")}

    @property
    def chain_url(self) -> str:
        """The certificates of the issuing CA and of its root."""
        return f"{self.http_url}/issuers/{self.ids['issuing-1']}.pem"

    def issue(self, name: str | None = None) -> Identity:
        """A certificate with the default profile, for a name of its own unless one is given."""
        number = next(_numbers)
        chosen = name or f"host{number}.{ZONE}"
        return Identity.write(self._folder / f"{number}", chosen, self._client.issue(chosen))

    def revoke(self, identity: Identity, reason: int = 1) -> None:
        """Revoke over ACME, and wait until everything that is published says so."""
        answer = self._client.revoke(identity.certificate.public_bytes(serialization.Encoding.DER), reason=reason)
        assert answer.status == 200, answer.body
        await_revoked(self, identity)

    def revoked(self) -> Identity:
        """A certificate that is revoked already."""
        identity = self.issue()
        self.revoke(identity)
        return identity


def await_revoked(authority: Authority, identity: Identity) -> None:
    """Wait until OCSP, the part of the CRL that the certificate names, and the full CRL all refuse it."""
    serial = identity.certificate.serial_number
    issuing = identity.issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    urls = (identity.crl_url, f"{authority.http_url}/crl/{issuing}.crl")

    def listed(url: str) -> bool:
        return x509.load_der_x509_crl(fetch(url)).get_revoked_certificate_by_serial_number(serial) is not None

    def refused(algorithm: hashes.HashAlgorithm, by_get: bool) -> bool:
        return ask(identity, algorithm, by_get=by_get).certificate_status is ocsp.OCSPCertStatus.REVOKED

    waiting: dict[str, Callable[[], bool]] = {url: partial(listed, url) for url in urls}
    # GET and POST are answered from caches of their own, here and in the service.
    for algorithm in (SHA1, hashes.SHA256()):
        for by_get in (False, True):
            waiting[f"OCSP {algorithm.name} {'GET' if by_get else 'POST'}"] = partial(refused, algorithm, by_get)
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while waiting := {what: seen for what, seen in waiting.items() if not seen()}:
        assert time.monotonic() < deadline, f"not revoked there after {_VISIBLE_SECONDS} s: {', '.join(waiting)}"
        time.sleep(0.05)


def fetch(url: str, body: bytes | None = None, content_type: str | None = None) -> bytes:
    """What is at ``url``; ``body`` makes it a POST."""
    request = urllib.request.Request(url, body, {"Content-Type": content_type} if content_type else {})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 (the server of this test)
        content: bytes = answer.read()
    return content


def ask(identity: Identity, algorithm: hashes.HashAlgorithm, *, by_get: bool = False) -> ocsp.OCSPResponse:
    """What the responder says of ``identity``; nothing is verified."""
    query = ocsp.OCSPRequestBuilder().add_certificate(identity.certificate, identity.issuer, algorithm).build()
    der = query.public_bytes(serialization.Encoding.DER)
    if by_get:
        path = urllib.parse.quote(base64.b64encode(der), safe="")
        return ocsp.load_der_ocsp_response(fetch(f"{identity.ocsp_url}/{path}"))
    return ocsp.load_der_ocsp_response(fetch(identity.ocsp_url, der, "application/ocsp-request"))


def authority_key(crl: str) -> str:
    """The id of the CA that signed ``crl`` (PEM)."""
    found = x509.load_pem_x509_crl(crl.encode()).extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert found.key_identifier is not None
    return found.key_identifier.hex()


def code_blocks() -> list[tuple[str, str]]:
    """Heading and language of every block of the page."""
    return [(heading, language) for heading, found in _sections().items() for language, _ in found]


def blocks(heading: str, *languages: str) -> list[str]:
    """The blocks in these languages below a heading of the page, up to the next heading."""
    return [content for language, content in _sections()[heading] if language in languages]


@cache
def _sections() -> dict[str, list[tuple[str, str]]]:
    text = PAGE.read_text(encoding="utf-8")
    # A "#" that begins a line of a block is a comment and no heading.
    hidden = _FENCE.sub(lambda match: re.sub(r"^#", "\0", match[0], flags=re.MULTILINE), text)
    parts = re.split(r"^#+ (.+)\n", hidden, flags=re.MULTILINE)
    return {
        heading: [(language, content.replace("\0", "#")) for language, content in _FENCE.findall(body)]
        for heading, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def block(heading: str, language: str) -> str:
    """The only block in ``language`` below a heading."""
    (only,) = blocks(heading, language)
    return only


def adapted(text: str, replacements: Mapping[str, object]) -> str:
    """``text`` with what the page says exchanged for what a test has. All of it has to be there."""
    for old, new in replacements.items():
        assert old in text, f"the page does not say {old!r}:\n{text}"
        text = text.replace(old, str(new))
    return text


class Relying:
    """A relying party's folder: ``chain.pem`` and ``roots.pem`` as the page has them fetched, ``crls.pem`` by its script."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        self.authority = authority
        self.folder = folder
        self._script = folder.with_name(f"{folder.name}-refresh-crls")
        folder.mkdir()
        (folder / "roots.pem").write_bytes(fetch(f"{authority.http_url}/roots.pem"))
        (folder / "chain.pem").write_bytes(fetch(authority.chain_url))
        self._script.write_text(block("Keeping CRL files fresh", "sh"), encoding="utf-8")
        self.refresh()

    @property
    def roots(self) -> Path:
        """The trust anchors."""
        return self.folder / "roots.pem"

    @property
    def chain(self) -> Path:
        """The issuing CA and its root."""
        return self.folder / "chain.pem"

    @property
    def crls(self) -> Path:
        """The full CRL of every CA."""
        return self.folder / "crls.pem"

    def keep_crl_of(self, authority: str) -> None:
        """Leave in the file the CRL of this CA alone."""
        (crl,) = (
            each
            for each in re.findall(
                r"-----BEGIN.*?END X509 CRL-----\n", self.crls.read_text(encoding="ascii"), re.DOTALL
            )
            if authority_key(each) == self.authority.ids[authority]
        )
        self.crls.write_text(crl, encoding="ascii")

    def refresh(self, *command: str | Path, base: str | None = None, expect: int | None = 0, **environment: str) -> str:
        """Run the page's script, with ``command`` to be run when there is something new. What it printed."""
        done = run_command(
            *("sh", self._script, base or self.authority.http_url, self.folder, *(command or ("true",))),
            env=clean_environment(**environment),
            expect=expect,
        )
        return done.stdout + done.stderr


@contextmanager
def running_authority(folder: Path, **more: str) -> Iterator[Authority]:
    """A service of its own, whose publisher looks for revocations more often than once a second; ``more`` are settings."""
    with knot(folder, zones=(ZONE,)) as names, http01_responder() as http01:
        names.set(f"*.{ZONE}", "A", LOOPBACK)
        settings = {
            "VALIDATION__RESOLVERS": f'["{names.address}"]',
            "VALIDATION__HTTP_PORT": str(http01.port),
            "STATUS__INTERVAL": "0.1",
            **more,
        }
        with served(folder / "home", settings, init=("--allow-dns", ZONE), named=True) as server:
            client = AcmeClient(server.directory, server.roots, http01=http01)
            client.register()
            try:
                yield Authority(server, client, folder)
            finally:
                client.close()
