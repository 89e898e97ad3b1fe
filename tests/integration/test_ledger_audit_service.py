"""`privyseal ledger audit` of a real service: its CRLs and its certificates against its log, and copies that were tampered with."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fakes.acme_client import AcmeClient, Issued
from fakes.outside_logs import Server, answers, served
from fakes.service import RunningService, StartService
from fakes.status_client import eventually, get
from privyseal_acme.cli import cli
from privyseal_ca.ledger.note import Checkpoint
from privyseal_ca.outside.anchors import key_id
from privyseal_ca.revocation.folder_ledger import files_between


@dataclass
class World:
    """A service that has issued and revoked, and a copy of what it serves, all of one moment."""

    service: RunningService
    folder: Path
    good: Issued
    gone: Issued
    old_crl: bytes

    @property
    def issuer(self) -> str:
        return key_id(self.good.chain[1])

    @property
    def crl(self) -> Path:
        return self.folder / f"crl/{self.issuer}.crl"


def vkey_of(url: str) -> str:
    return get(f"{url}/ledger/vkey")[0].decode().strip()


def audit(url: str, vkey: str, *arguments: str | Path, expect: int = 0) -> dict[str, Any]:
    words = ["ledger", "audit", "--json", "--vkey", vkey, *map(str, arguments), url]
    done = CliRunner().invoke(cli, words, env={"PRIVYSEAL_HOME": "/nonexistent"})
    assert done.exit_code == expect, (done.output, done.exception)
    # The service's log lines are on the same standard output.
    document: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{\n") :])[0]
    return document


def pem(path: Path, certificate: x509.Certificate) -> Path:
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path


def number_of(der: bytes) -> int:
    return x509.load_der_x509_crl(der).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def copy_of(service: RunningService, folder: Path, issuers: list[str]) -> None:
    """What the service serves, as files."""

    def keep(path: str) -> bytes:
        content = get(f"{service.status}/{path}")[0]
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return content

    paths = [
        "roots.pem",
        "crls.pem",
        *(f"crl/{each}.crl" for each in issuers),
        *(f"issuers/{each}.pem" for each in issuers),
    ]
    for path in paths:
        keep(path)
    numbers = {each: number_of((folder / f"crl/{each}.crl").read_bytes()) for each in issuers}

    def covered() -> bool:
        return all(
            any(each["kind"] == "crl.published" and each["payload"]["number"] == number for each in service.ledger())
            for number in numbers.values()
        ) and Checkpoint.parse(keep("ledger/checkpoint").decode().rpartition("\n\n")[0] + "\n").size == len(
            service.ledger()
        )

    eventually(covered)
    size = Checkpoint.parse((folder / "ledger/checkpoint").read_text().rpartition("\n\n")[0] + "\n").size
    for tile in files_between(0, size, entries=True):
        keep(f"ledger/{tile.path()}")


@pytest.fixture(scope="module")
def world(
    service_factory: Callable[[], Any], http01: Any, dns_server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("copy")
    with service_factory() as start:
        service: RunningService = start(ledger={"entries": "open"}, status={"interval": 0.05, "watch_interval": 3600})
        client = AcmeClient(service.directory, service.roots, http01=http01, set_txt=lambda *_: None)
        try:
            client.register()
            good, gone = client.issue("good.test"), client.issue("gone.test")
            url = f"{service.status}/crl/{key_id(good.chain[1])}.crl"
            old = get(url)[0]
            service.clock.advance(1)
            assert client.revoke(gone.der, reason=4).status == 200
            eventually(
                lambda: (
                    x509.load_der_x509_crl(get(url)[0]).get_revoked_certificate_by_serial_number(
                        gone.certificate.serial_number
                    )
                    is not None
                )
            )
        finally:
            client.close()
        published = {each["payload"]["issuer"] for each in service.ledger() if each["kind"] == "crl.published"}
        copy_of(service, folder, sorted(published))
        yield World(service, folder, good, gone, old)


@pytest.fixture
def copy(world: World, tmp_path: Path) -> Iterator[tuple[Server, str, World]]:
    """The copy, for one test."""
    folder = tmp_path / "copy"
    for file in (path for path in world.folder.rglob("*") if path.is_file()):
        target = folder / file.relative_to(world.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    with served(folder) as server:
        yield server, vkey_of(world.service.status), World(world.service, folder, world.good, world.gone, world.old_crl)


def finding(server: Server, vkey: str, *arguments: str | Path, code: str = "crl") -> dict[str, Any]:
    report = audit(server.url, vkey, *arguments, expect=1)
    assert [each["code"] for each in report["findings"]] == [code], report
    found: dict[str, Any] = report["findings"][0]
    return found


def test_a_service_at_work(world: World, tmp_path: Path) -> None:
    service = world.service
    names = [
        pem(tmp_path / f"{name}.pem", each)
        for name, each in (
            ("good", world.good.certificate),
            ("gone", world.gone.certificate),
            ("issuer", world.good.chain[1]),
        )
    ]
    options = [word for name in names for word in ("--certificate", name)]
    report = audit(service.status, vkey_of(service.status), *options)
    kinds = [each["kind"] for each in service.ledger()]
    assert (report["entries_checked"], report["unchecked"]) == (True, [])
    assert (report["issued"], report["revoked"]) == (
        kinds.count("certificate.issued"),
        kinds.count("certificate.revoked"),
    )
    assert report["crls"] >= 1
    ledger = service.ledger()
    for name, index in report["certificates"].items():
        certificate = x509.load_pem_x509_certificate(Path(name).read_bytes())
        assert ledger[index]["payload"]["certificate_sha256"] == certificate.fingerprint(hashes.SHA256()).hex()
    assert len(report["certificates"]) == 3


def test_a_service_that_keeps_its_entries(start_service: StartService, new_client: Any, tmp_path: Path) -> None:
    service = start_service()
    issued = new_client(service).issue("a.test")
    certificate = pem(tmp_path / "a.pem", issued.certificate)
    report = audit(service.status, vkey_of(service.status), "--certificate", certificate)
    assert (report["ok"], report["entries_checked"], len(report["certificates"])) == (True, False, 1)
    assert report["crls"] >= 1
    assert any("entries are not given" in each for each in report["unchecked"])
    # By its token they are given.
    token = service.settings.home / "token"
    token.write_text("a-token" * 8)
    token.chmod(0o600)
    access = {"entries": "token", "entries_token_file": token}
    with_token = start_service(ledger=access)
    url = with_token.status
    assert audit(url, vkey_of(url))["entries_checked"] is False
    assert audit(url, vkey_of(url), "--token-file", token)["entries_checked"] is True


def test_the_copy_is_right_before_it_is_tampered_with(copy: tuple[Server, str, World], tmp_path: Path) -> None:
    server, vkey, world = copy
    certificate = pem(tmp_path / "good.pem", world.good.certificate)
    # A folder has no receipts: the place is found by the leaf.
    report = audit(server.url, vkey, "--certificate", certificate)
    assert (report["ok"], report["crls"], len(report["certificates"])) == (True, 2, 1)


def test_crls_that_are_not_what_the_log_says(copy: tuple[Server, str, World]) -> None:
    server, vkey, world = copy
    right = world.crl.read_bytes()
    world.crl.write_bytes(right[:-5] + bytes([right[-5] ^ 1]) + right[-4:])
    assert "not signed" in finding(server, vkey)["message"]
    world.crl.write_bytes(right[:-9])
    assert "malformed" in finding(server, vkey)["message"]
    world.crl.unlink()
    assert "is not served" in finding(server, vkey)["message"]
    (root,) = [path for path in world.crl.parent.glob("*.crl") if path != world.crl]
    world.crl.write_bytes(root.read_bytes())
    assert "another CA" in finding(server, vkey)["message"]


def signed_by_another_key(world: World) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    before = x509.load_der_x509_crl(world.crl.read_bytes())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(before.issuer)
        .last_update(before.last_update_utc)
        .next_update(before.next_update_utc or datetime.now(UTC))
    )
    for extension in before.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_a_crl_by_another_key(copy: tuple[Server, str, World]) -> None:
    server, vkey, world = copy
    world.crl.write_bytes(signed_by_another_key(world))
    assert "not signed by that CA" in finding(server, vkey)["message"]


def test_the_certificate_of_a_ca_that_is_not_in_the_log(copy: tuple[Server, str, World]) -> None:
    """Whoever serves another root and another intermediate with the same key id convinces nobody."""
    server, vkey, world = copy
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "evil")])
    forged = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier(bytes.fromhex(world.issuer)), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    roots = world.folder / "roots.pem"
    right = roots.read_bytes()
    roots.write_bytes(right + forged)
    assert "not one that is in the log" in finding(server, vkey)["message"]
    roots.write_bytes(right)
    (world.folder / f"issuers/{world.issuer}.pem").write_bytes(forged)
    assert "does not lead to one of the roots" in finding(server, vkey)["message"]
    roots.write_bytes(b"nonsense")
    report = audit(server.url, vkey, expect=1)
    assert all("holds no certificates" in each["message"] for each in report["findings"])


def test_without_entries_signatures_of_crls_are_checked(copy: tuple[Server, str, World]) -> None:
    server, vkey, world = copy
    refused = {
        f"/ledger/tile/entries/{path.relative_to(world.folder / 'ledger/tile/entries')}": answers(403)
        for path in (world.folder / "ledger/tile/entries").rglob("*")
        if path.is_file()
    }
    server.faults = refused
    (world.folder / f"issuers/{world.issuer}.pem").unlink()
    found = finding(server, vkey)
    assert world.issuer in found["message"]
    (world.folder / "crls.pem").write_text("-----BEGIN X509 CRL-----\nAAAA\n")
    assert "malformed" in finding(server, vkey)["message"]


def test_certificates_that_are_not_in_the_log(copy: tuple[Server, str, World], tmp_path: Path) -> None:
    server, vkey, world = copy
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder(
            world.good.chain[1].subject,
            world.good.certificate.subject,
            key.public_key(),
            world.good.certificate.serial_number,
        )
        .not_valid_before(world.good.certificate.not_valid_before_utc)
        .not_valid_after(world.good.certificate.not_valid_after_utc)
    )
    for extension in world.good.certificate.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    forged = pem(tmp_path / "forged.pem", builder.sign(key, hashes.SHA256()))
    found = finding(server, vkey, "--certificate", forged, code="certificate")
    assert "forged.pem" in found["message"]
    # The service has a receipt for the serial, which does not prove this certificate.
    report = audit(world.service.status, vkey, "--certificate", forged, expect=1)
    assert [each["code"] for each in report["findings"]] == ["certificate"]
    # A receipt of another certificate in its place.
    other = get(f"{world.service.status}/ledger/proof/{world.gone.certificate.serial_number:032x}")[0]
    good = pem(tmp_path / "good.pem", world.good.certificate)
    server.faults[f"/ledger/proof/{world.good.certificate.serial_number:032x}"] = answers(200, other)
    assert "does not prove" in finding(server, vkey, "--certificate", good, code="certificate")["message"]
    server.faults[f"/ledger/proof/{world.good.certificate.serial_number:032x}"] = answers(200, b"nonsense")
    finding(server, vkey, "--certificate", good, code="certificate")


def test_an_older_crl_is_found_when_it_is_kept_up(
    copy: tuple[Server, str, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, vkey, world = copy
    world.crl.write_bytes(world.old_crl)
    # A moment later it may be a cache that is behind.
    assert audit(server.url, vkey)["ok"]
    monkeypatch.setattr("privyseal_ca.outside.crls._BEHIND", -10)
    found = finding(server, vkey)
    assert "older than the newest in the log" in found["message"]
