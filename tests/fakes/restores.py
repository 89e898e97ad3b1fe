"""A real service that loses its database: what a drill needs (issue, back up, go on, destroy, restore, settle)."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.ocsp import OCSPCertStatus, OCSPResponseStatus

from fakes.acme_client import AcmeClient, Issued, JwsKey, make_csr, make_jws
from fakes.dns import Knot
from fakes.home import MakeSettings, copy_database
from fakes.http01 import Http01
from fakes.service import FakeClock, RunningService, serving, txt_setter
from fakes.status_client import ask, eventually, fetch_crl, get, issuer_of
from privyseal_acme.cli import cli
from privyseal_ca.config import Settings
from privyseal_ca.ledger.checkpoints import latest_checkpoint
from privyseal_ca.ledger.log import size
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, open_note

SERIAL = "{:032x}"


def serial_of(issued: Issued) -> str:
    """As commands and tables have it."""
    return SERIAL.format(issued.certificate.serial_number)


@dataclass
class Drill:
    """One home with a database of its own. Its clock goes on from service to service."""

    settings: Settings
    folder: Path
    surroundings: dict[str, Any]
    clock: FakeClock = field(default_factory=FakeClock)
    clients: ExitStack = field(default_factory=ExitStack)

    def client(self, service: RunningService, account: "AccountKey | None" = None) -> AcmeClient:
        """A client with an account: a new one, or one that is there."""
        key = JwsKey() if account is None else account.key
        client = AcmeClient(service.directory, service.roots, key=key, **self.surroundings)
        self.clients.callback(client.close)
        if account is None:
            client.register()
        else:
            client.account = account.url
        return client

    def elsewhere(self, folder: Path, clock: FakeClock, **changes: Any) -> "Drill":
        """The same authority with another home, and a published folder of its own; ``changes`` of its settings."""
        home = folder / "home"
        home.mkdir(mode=0o700, parents=True)
        for path in self.settings.home.iterdir():
            (home / path.name).symlink_to(path)
        published = folder / "published"
        shutil.copytree(self.folder, published)
        database = {"url": f"sqlite:///{folder / 'privyseal.db'}"}
        ledger = {"outside": (str(published),), "kept_checkpoint": "newest-checkpoint"}
        document = self.settings.model_dump()
        for layer in ({"database": database, "ledger": ledger}, changes):
            for name, section in layer.items():
                document[name] = {**document[name], **section}
        settings = Settings(**{name: value for name, value in document.items() if name != "home"})
        settings = settings.model_copy(update={"home": home})
        return Drill(settings, published, self.surroundings, clock, self.clients)

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return Path(self.settings.database_url.removeprefix("sqlite:///"))

    @property
    def checkpoint(self) -> Path:
        """The checkpoint in the published folder."""
        return self.folder / "ledger" / "checkpoint"

    @contextmanager
    def serving(self) -> Iterator[RunningService]:
        """The service, until the end of the context."""
        self.clock.advance(5)
        with serving(self.settings, clock=self.clock) as service:
            yield service

    def back_up(self, name: str = "backup.db") -> Path:
        """A copy of the database as it is."""
        copy = self.folder.parent / name
        copy_database(self.database, copy)
        return copy

    def restore(self, copy: Path) -> None:
        """Destroy the database, and put the copy in its place."""
        for path in self.database.parent.glob(f"{self.database.name}*"):
            path.unlink()
        shutil.copyfile(copy, self.database)

    @property
    def environment(self) -> dict[str, str]:
        """What commands are told of the home."""
        return {
            "PRIVYSEAL_HOME": str(self.settings.home),
            "PRIVYSEAL_DATABASE__URL": self.settings.database_url,
            "PRIVYSEAL_LEDGER__ENTRIES": self.settings.ledger.entries,
            "PRIVYSEAL_LEDGER__KEPT_CHECKPOINT": str(self.settings.ledger.kept_checkpoint),
            "PRIVYSEAL_LEDGER__OUTSIDE": json.dumps(self.settings.ledger.outside),
            "PRIVYSEAL_SERVER__HTTP": self.settings.server.http,
        }

    def command(self, *arguments: str | Path, code: int = 0) -> Any:
        """The document of a command."""
        done = CliRunner().invoke(cli, [*map(str, arguments), "--json"], env=self.environment)
        assert done.exit_code == code, (arguments, done.output, done.exception)
        return json.loads(done.stdout) if done.stdout.strip() else None

    @property
    def vkey(self) -> str:
        """The key in the published folder."""
        return (self.folder / "ledger" / "vkey").read_text(encoding="utf-8").strip()

    def doctor(self) -> list[dict[str, str]]:
        """What `privyseal doctor` finds, whatever that is."""
        done = CliRunner().invoke(cli, ["doctor", "--json"], env=self.environment)
        found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
        return found

    def publish(self) -> None:
        """Write status and ledger into the folder."""
        self.command("status", "publish", self.folder)

    def settle(self, *arguments: str | Path, code: int = 0) -> Any:
        """``privyseal recovery settle``."""
        return self.command("recovery", "settle", *arguments, code=code)

    def published(self) -> Checkpoint:
        """What the folder's checkpoint says."""
        text, _ = open_note(self.checkpoint.read_bytes(), [NoteVerifier.parse(self.vkey)])
        return Checkpoint.parse(text)


class AccountKey(NamedTuple):
    """An account, and the key that it had when the backup was made."""

    key: JwsKey
    url: str

    @classmethod
    def of(cls, client: AcmeClient) -> "AccountKey":
        """That of a client."""
        return cls(client.key, client.account or "")


def covered(service: RunningService) -> Checkpoint:
    """Wait until a checkpoint covers everything, and give it."""

    def is_covered() -> bool:
        end, latest = service.read(lambda tx: (size(tx), latest_checkpoint(tx)))
        return latest is not None and latest.size == end

    eventually(is_covered, seconds=10)
    text, _ = open_note(
        get(f"{service.status}/ledger/checkpoint")[0],
        [NoteVerifier.parse(get(f"{service.status}/ledger/vkey")[0].decode().strip())],
    )
    return Checkpoint.parse(text)


def crls_of(service: RunningService, *certificates: x509.Certificate) -> dict[str, x509.CertificateRevocationList]:
    """The complete CRL and the parts that the certificates name, by URL, as they are served."""
    issuer = issuer_of(certificates[0])
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    urls = {f"{service.status}/crl/{identifier}.crl"}
    for certificate in certificates:
        (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        urls |= {str((point.full_name or [])[0].value)}
    return {url: fetch_crl(url) for url in urls}


def number_of(crl: x509.CertificateRevocationList) -> int:
    """crlNumber."""
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def says(service: RunningService, certificate: x509.Certificate) -> str:
    """What OCSP says: ``good``, ``revoked``, ``unknown``, or the error of the responder."""
    answer = ask(certificate, issuer_of(certificate), url=f"{service.status}/ocsp")
    if answer.response_status is not OCSPResponseStatus.SUCCESSFUL:
        return answer.response_status.name.lower()
    names = {OCSPCertStatus.GOOD: "good", OCSPCertStatus.REVOKED: "revoked", OCSPCertStatus.UNKNOWN: "unknown"}
    return names[answer.certificate_status]


def is_listed(service: RunningService, certificate: x509.Certificate) -> bool:
    """Whether the complete CRL and the part that the certificate names both list it."""
    return all(
        crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
        for crl in crls_of(service, certificate).values()
    )


@dataclass
class Story:
    """What happened before and after the backup."""

    drill: Drill
    #: The database then, and as it was at the end.
    backup: Path
    end: Path
    account: AccountKey
    #: Accounts that were deactivated, and whose key was changed, after the backup; the key that it was changed to.
    deactivated: AccountKey
    rekeyed: AccountKey
    new_key: JwsKey
    eab: str
    #: Issued before the backup: left alone, revoked before it, revoked after it.
    kept: Issued
    revoked_before: Issued
    revoked_after: Issued
    #: Issued after it, the first by an order from before: left alone, and revoked.
    lost: Issued
    lost_revoked: Issued
    #: The numbers of the CRLs, by path, when the backup was made and at the end.
    before: dict[str, int]
    numbers: dict[str, int]
    outside: Checkpoint

    def scene(self, folder: Path, **changes: Any) -> Drill:
        """The authority after its database was destroyed and the backup restored."""
        drill = self.drill.elsewhere(folder, FakeClock(self.drill.clock.now()), **changes)
        if drill.settings.database_url.startswith("sqlite:"):
            shutil.copyfile(self.backup, drill.database)
        return drill


def play(settings: Settings, folder: Path, surroundings: dict[str, Any]) -> Story:
    """Issue and revoke, back up, issue and revoke more, publish all of it, and stop."""
    drill = Drill(settings, folder / "published", surroundings)
    with drill.serving() as service:
        client, leaving, changing = (drill.client(service) for _ in range(3))
        accounts = [AccountKey.of(each) for each in (client, leaving, changing)]
        eab = service.eab_key().row.kid
        kept, before, after = client.issue("kept.test"), client.issue("before.test"), client.issue("after.test")
        order = client.ready_order("lost.test")
        assert client.revoke(before.der).status == 200
        eventually(lambda: is_listed(service, before.certificate))
        covered(service)
        numbers_before = numbers_of(service, kept)
        backup = drill.back_up()
        key = ec.generate_private_key(ec.SECP256R1())
        assert client.finalize(order, make_csr(["lost.test"], key)).status == 200
        url = order.headers["Location"]
        done = client.poll(url)
        chain = client.download(done.json["certificate"])
        lost = Issued(chain[0], chain, key, done, url)
        lost_revoked = client.issue("lost-revoked.test")
        assert client.revoke(after.der, reason=1).status == 200
        assert client.revoke(lost_revoked.der, reason=4).status == 200
        assert leaving.post(leaving.account or "", {"status": "deactivated"}).status == 200
        new_key = change_key(changing)
        drill.client(service)
        drill.command("eab", "revoke", eab, "--yes")
        for issued in (after, lost_revoked):
            eventually(lambda issued=issued: is_listed(service, issued.certificate))  # type: ignore[misc]
        numbers = numbers_of(service, kept)
        covered(service)
    drill.publish()
    end = drill.back_up("end.db")
    return Story(
        drill, backup, end, *accounts, new_key, eab, kept, before, after, lost, lost_revoked, numbers_before, numbers,
        drill.published(),
    )  # fmt: skip


def change_key(client: AcmeClient) -> JwsKey:
    """Give the account another key."""
    new, url = JwsKey(), client.directory["keyChange"]
    inner = make_jws(
        new, {"account": client.account, "oldKey": client.key.jwk}, {"alg": new.alg, "jwk": new.jwk, "url": url}
    )
    assert client.post(url, inner).status == 200
    return new


def numbers_of(service: RunningService, issued: Issued) -> dict[str, int]:
    """The numbers of all CRLs of the issuer, by path."""
    issuer = issuer_of(issued.certificate)
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    scopes = ["", *(f"/{part}" for part in range(service.settings.status.crl_shards))]
    paths = [f"/crl/{identifier}{scope}.crl" for scope in scopes]
    return {path: number_of(fetch_crl(service.status + path)) for path in paths}


@pytest.fixture(scope="module")
def story(
    settings_factory: MakeSettings, dns_server: Knot, http01: Http01, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    """What the drills of a module begin with; each has its own :meth:`Story.scene`."""
    folder = tmp_path_factory.mktemp("story")
    settings = settings_factory(
        status={"interval": 0.1, "watch_interval": 3600, "ocsp_delay": 0},
        ledger={"entries": "open"},
        validation={"resolvers": (dns_server.address,), "http_port": http01.port},
    )
    surroundings = {"http01": http01, "set_txt": txt_setter(dns_server)}
    told = play(settings, folder, surroundings)
    with told.drill.clients:
        yield told
