"""Receipts of the CAs' own certificates, which bring the entry that cannot be rebuilt (promise P6)."""

import asyncio
import base64
import contextlib
import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import delete

from fakes.exporting import exported_ledger, opened
from fakes.home import MakeSettings
from fakes.service import NewClient, RunningService
from fakes.status_client import eventually, get
from privyseal_acme.cli import cli
from privyseal_ca.ledger.ca_entries import find_ca_entry, index_ca_entries
from privyseal_ca.ledger.entries import Kind, decode_entry, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.store.issuers import all_issuers, chains, set_fact
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import Fact


def ca_certificates(service: RunningService) -> list[x509.Certificate]:
    """Those of the root and of the intermediate."""
    pems = service.read(lambda tx: [chains(tx, row.id)[0] for row in all_issuers(tx)])
    return [x509.load_pem_x509_certificates(pem.encode())[0] for pem in pems]


def receipt_of(service: RunningService, certificate: x509.Certificate) -> str:
    return get(f"{service.status}/ledger/proof/{certificate.serial_number:032x}")[0].decode()


def verify(vkey: str, certificate: x509.Certificate, receipt: str, folder: Path) -> Result:
    """What the offline check says."""
    pem, proof = folder / "ca.pem", folder / "ca.tlog-proof"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    proof.write_text(receipt)
    arguments = ["ledger", "verify-proof", "--json", "--vkey", vkey, str(pem), str(proof)]
    return CliRunner().invoke(cli, arguments, env={"PRIVYSEAL_HOME": "/nonexistent"})


@pytest.fixture(scope="module")
def vkey(service: RunningService) -> str:
    return get(f"{service.status}/ledger/vkey")[0].decode().strip()


def test_every_ca_certificate_has_a_receipt(service: RunningService, vkey: str, tmp_path: Path) -> None:
    found = ca_certificates(service)
    assert len(found) == 2
    for certificate in found:
        done = verify(vkey, certificate, receipt_of(service, certificate), tmp_path)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["verified"]


def test_the_command_makes_it_too(service: RunningService, vkey: str, tmp_path: Path) -> None:
    certificate = ca_certificates(service)[0]
    environment = {
        "PRIVYSEAL_HOME": str(service.settings.home),
        "PRIVYSEAL_DATABASE__URL": service.settings.database_url,
    }
    serial = f"{certificate.serial_number:032x}"
    done = CliRunner().invoke(cli, ["ledger", "proof", "--json", serial], env=environment)
    assert done.exit_code == 0, done.output
    assert verify(vkey, certificate, json.loads(done.stdout)["proof"], tmp_path).exit_code == 0


def test_a_receipt_is_for_one_certificate(service: RunningService, vkey: str, tmp_path: Path) -> None:
    root, issuing = ca_certificates(service)
    done = verify(vkey, root, receipt_of(service, issuing), tmp_path)
    assert done.exit_code == 1
    assert "not for this certificate" in json.loads(done.stdout)["error"]


def test_an_invented_entry_proves_nothing(service: RunningService, vkey: str, tmp_path: Path) -> None:
    root, issuing = ca_certificates(service)
    receipt = receipt_of(service, issuing)
    line = next(line for line in receipt.splitlines() if line.startswith("extra "))
    members = decode_entry(base64.b64decode(line.removeprefix("extra ")))
    members["payload"]["certificate_sha256"] = root.fingerprint(hashes.SHA256()).hex()
    invented = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
    done = verify(vkey, root, receipt.replace(line, f"extra {base64.b64encode(invented).decode()}"), tmp_path)
    assert done.exit_code == 1
    # A receipt for a subscriber's certificate does not become one for a CA by an entry of another kind, either.
    other = encode_entry("service.stopped", time=0, actor="a", correlation="b", payload={"certificate_sha256": "c"})  # type: ignore[arg-type]
    done = verify(vkey, root, receipt.replace(line, f"extra {base64.b64encode(other).decode()}"), tmp_path)
    assert done.exit_code == 1


def test_entries_from_before_are_found(fresh_service: RunningService) -> None:
    facts = Fact.__table__  # type: ignore[attr-defined]
    certificate = ca_certificates(fresh_service)[0]
    serial = f"{certificate.serial_number:032x}"
    expected = fresh_service.read(lambda tx: find_ca_entry(tx, serial))
    assert expected is not None
    fresh_service.write(lambda tx: tx.execute(Statement(delete(facts).where(facts.c.name.like("ca-entr%")))))
    assert fresh_service.read(lambda tx: find_ca_entry(tx, serial)) is None
    fresh_service.call(index_ca_entries(fresh_service.service.context.store))
    assert fresh_service.read(lambda tx: find_ca_entry(tx, serial)) == expected


def test_a_wrong_place_is_told(fresh_service: RunningService, new_client: NewClient) -> None:
    certificate = ca_certificates(fresh_service)[0]
    serial = f"{certificate.serial_number:032x}"
    fresh_service.write(lambda tx: set_fact(tx, f"ca-entry:{serial}", "0"))

    def refused() -> bool:
        try:
            get(f"{fresh_service.status}/ledger/proof/{serial}")
        except OSError as error:
            return getattr(error, "code", 0) == 503
        return False

    eventually(refused, seconds=3)
    # A place beyond the end is no place either.
    fresh_service.write(lambda tx: set_fact(tx, f"ca-entry:{serial}", "999999"))
    assert refused()
    fresh_service.write(
        lambda tx: append(tx, encode_entry(Kind.SERVICE_STOPPED, time=0, actor="a", correlation="b", payload={}))
    )
    new_client(fresh_service).issue("still.test")


def test_a_payload_that_looks_like_such_an_entry(make_settings: MakeSettings, tmp_path: Path) -> None:
    """The service starts all the same, and finds the entries that there are."""
    ledger = exported_ledger(make_settings, tmp_path)

    def unit(transaction: Transaction) -> None:
        payload = {"selection": {"kind": "issuer.certified"}}
        append(
            transaction,
            encode_entry(Kind.REVOCATION_STARTED, time=1.0, actor="operator:o", correlation="c", payload=payload),
        )

    ledger.write(unit)
    ledger.sql("DELETE FROM fact WHERE name = 'ca-entries-indexed' OR name LIKE 'ca-entry:%'")

    async def work() -> None:
        async with opened(ledger.settings.database_url) as store:
            await index_ca_entries(store)

    asyncio.run(work())
    path = ledger.settings.database_url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM fact WHERE name LIKE 'ca-entry:%'").fetchone()[0] >= 1
