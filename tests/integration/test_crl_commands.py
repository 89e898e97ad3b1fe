"""`privyseal crl`, `privyseal ocsp` and `privyseal issuer revoke`: what they show, write, sign and refuse."""

import asyncio
import base64
import itertools
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from fakes.home import MakeSettings, never_started
from fakes.process import PRIVYSEAL, run_command
from privyseal_acme.cli import cli
from privyseal_ca.ceremony.initialise import make_store
from privyseal_ca.cli.home import opened_hsm
from privyseal_ca.clock import SystemClock
from privyseal_ca.config import Settings
from privyseal_ca.issuance.issuers import make_issuer
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.revocation.publisher import CrlPublisher
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.issuers import IssuerRow, all_issuers, chains
from privyseal_ca.store.ocsp import ResponseRow, add_responder, keep_response
from privyseal_ca.store.statement import Transaction
from privyseal_ca.telemetry.metrics import Metrics

runner = CliRunner()
SHARDS = 2
_numbers = itertools.count(1)


def another() -> str:
    """A name that no issuer has: the run's tokens are shared by all tests."""
    return f"another-{os.getpid()}-{next(_numbers)}"


class Commands:
    """The command line for a home whose database is the test's own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.environment = {
            "PRIVYSEAL_HOME": str(settings.home),
            "PRIVYSEAL_DATABASE__URL": settings.database_url,
            "PRIVYSEAL_SERVER__HTTP": settings.server.http,
        }

    def run(self, *arguments: str | Path, expect: int = 0) -> Result:
        result = runner.invoke(cli, [str(part) for part in arguments], env=self.environment)
        assert result.exit_code == expect, (arguments, result.output, result.exception)
        return result

    def json(self, *arguments: str | Path, expect: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", expect=expect).stdout)

    def read(self, unit: Callable[[Transaction], Any]) -> Any:
        return asyncio.run(self._with_store(lambda store: store.read(unit)))

    def write(self, unit: Callable[[Transaction], Any]) -> Any:
        return asyncio.run(self._with_store(lambda store: store.write(unit)))

    async def _with_store(self, work: Callable[[Any], Any]) -> Any:
        store = make_store(backend_for(self.settings.database_url, durable=False, timeout=5), self.settings)
        await store.open()
        try:
            return await work(store)
        finally:
            await store.close()

    def issuer(self, name: str = "issuing-1") -> tuple[IssuerRow, list[str]]:
        def unit(transaction: Transaction) -> tuple[IssuerRow, list[str]]:
            row = next(row for row in all_issuers(transaction) if row.name == name)
            return row, chains(transaction, row.id)

        found: tuple[IssuerRow, list[str]] = self.read(unit)
        return found

    def publish(self, **status: Any) -> int:
        """What the service does: publish the CRLs of the issuer."""
        row, pems = self.issuer()
        settings = self.settings.status.model_copy(update={"crl_shards": SHARDS, **status})

        async def work(store: Any) -> int:
            async with opened_hsm(self.settings) as hsm:
                key = await hsm.open_signing_key(row.key_uri)
                issuer = make_issuer(row, pems, key, pointers=Pointers("http://ca.test", row.id, shards=SHARDS))
                publisher = CrlPublisher(
                    store=store, issuers=[issuer], settings=settings, clock=SystemClock(), metrics=Metrics()
                )
                return await publisher.publish_due()

        return int(asyncio.run(self._with_store(work)))


@pytest.fixture
def commands(make_settings: MakeSettings) -> Commands:
    return Commands(never_started(make_settings()))


@pytest.fixture
def published(commands: Commands) -> Commands:
    assert commands.publish(delta_crls=True) == SHARDS + 1
    return commands


def certificate_of(pems: list[str]) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pems[0].encode())[0]


# crl list, crl show.


def test_crls_are_listed(published: Commands) -> None:
    found = published.json("crl", "list")
    assert [(row["issuer"], row["scope"], row["number"], row["entries"]) for row in found] == [
        ("root", "full", 1, 0),
        ("issuing-1", "full", 1, 0),
        ("issuing-1", "0", 1, 0),
        ("issuing-1", "1", 1, 0),
    ]
    assert all(row["age"] >= 0 and row["size"] > 100 for row in found)
    assert found[2]["url"].endswith(f"/crl/{found[2]['issuer_id']}/0.crl")
    assert found[2]["delta"]["url"].endswith("/0-delta.crl")
    assert found[1]["delta"] is None
    text = published.run("crl", "list").stdout.splitlines()
    assert len(text) == 5
    assert text[0].split()[:3] == ["ISSUER", "SCOPE", "NUMBER"]


def test_a_new_home_has_the_roots_crl(commands: Commands) -> None:
    assert [row["issuer"] for row in commands.json("crl", "list")] == ["root"]


def test_a_crl_is_shown_and_written(published: Commands, tmp_path: Path) -> None:
    row, pems = published.issuer()
    shown = published.json("crl", "show", "issuing-1", "--shard", "1")
    assert (shown["issuer_id"], shown["scope"]) == (row.id, "1")
    assert "number" in published.run("crl", "show", row.id).stdout
    der, pem, delta = tmp_path / "c.der", tmp_path / "c.pem", tmp_path / "d.der"
    published.run("crl", "show", "issuing-1", "--shard", "1", "--out", der)
    published.run("crl", "show", "issuing-1", "--shard", "1", "--out", pem, "--pem")
    published.run("crl", "show", row.id, "--shard", "1", "--delta", "--out", delta)
    crl = x509.load_der_x509_crl(der.read_bytes())
    assert crl.is_signature_valid(certificate_of(pems).public_key())  # type: ignore[arg-type]
    assert x509.load_pem_x509_crl(pem.read_bytes()) == crl
    assert x509.load_der_x509_crl(delta.read_bytes()).extensions.get_extension_for_class(x509.DeltaCRLIndicator)
    assert published.run("crl", "show", "issuing-1", "--shard", "1", "--out", "-").stdout_bytes == der.read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["c.der", "c.pem", "d.der"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("nobody",), 1),
        (("issuing-1", "--shard", "7"), 1),
        (("issuing-1", "--shard", "-1"), 2),
        (("issuing-1", "--shard", "256"), 2),
        (("issuing-1", "--delta"), 2),
        (("issuing-1", "--out", "/nowhere/c.crl"), 1),
    ],
)
def test_crls_that_cannot_be_shown(published: Commands, arguments: tuple[str, ...], code: int) -> None:
    published.run("crl", "show", *arguments, expect=code)


def test_a_delta_crl_that_there_is_none_of(commands: Commands) -> None:
    commands.publish()
    for out in ((), ("--out", "-")):
        result = commands.run("crl", "show", "issuing-1", "--shard", "0", "--delta", *out, expect=1)
        assert "There is no" in result.stderr


def test_a_crl_that_was_changed_is_not_written(published: Commands, tmp_path: Path) -> None:
    with closing(sqlite3.connect(published.settings.database_url.removeprefix("sqlite:///"))) as connection:
        connection.execute("UPDATE crl_part SET der = CAST(der || x'00' AS BLOB)")
        connection.commit()
    result = published.run("crl", "show", "root", "--out", tmp_path / "r.crl", expect=1)
    assert "not the one that was published" in result.stderr
    assert not list(tmp_path.iterdir())


# crl bundle.


def test_a_bundle_lets_openssl_check_every_ca(published: Commands, tmp_path: Path) -> None:
    bundle, roots, issuing = tmp_path / "crls.pem", published.settings.home / "roots.pem", tmp_path / "issuing.pem"
    written = published.json("crl", "bundle", "--out", bundle)
    assert [row["issuer_id"] for row in written["crls"]] == sorted(
        published.issuer(name)[0].id for name in ("root", "issuing-1")
    )
    assert bundle.read_text() == published.run("crl", "bundle").stdout
    _, pems = published.issuer()
    issuing.write_bytes(certificate_of(pems).public_bytes(Encoding.PEM))
    verify = ["openssl", "verify", "-CAfile", str(roots), "-crl_check_all", "-CRLfile", str(bundle), str(issuing)]
    assert subprocess.run(verify, check=False, capture_output=True, timeout=30).returncode == 0
    published.run("issuer", "revoke", "issuing-1", "--yes")
    published.run("crl", "bundle", "--out", bundle)
    refused = subprocess.run(verify, check=False, capture_output=True, text=True, timeout=30)
    assert refused.returncode != 0
    assert "certificate revoked" in refused.stderr


def test_a_bundle_that_lacks_a_ca_replaces_nothing(commands: Commands, tmp_path: Path) -> None:
    bundle = tmp_path / "crls.pem"
    bundle.write_text("before")
    refused = commands.json("crl", "bundle", "--out", bundle, expect=1)
    assert "There is no CRL of" in refused["error"]
    assert bundle.read_text() == "before"
    commands.run("crl", "bundle", "--json", expect=2)


# issuer revoke.


def test_an_issuer_is_revoked_with_the_roots_crl(commands: Commands) -> None:
    second = another()
    commands.run("issuer", "create", second)
    refused = commands.json("issuer", "revoke", second, expect=1)
    assert "active" in refused["error"]
    commands.run("issuer", "retire", second)
    before = commands.json("crl", "show", "root")
    revoked = commands.json("issuer", "revoke", second, "--reason", "cACompromise")
    assert (revoked["state"], revoked["reason"]) == ("retired", 2)
    after = commands.json("crl", "show", "root")
    assert (after["number"], after["entries"]) == (before["number"] + 1, 1)
    crl = x509.load_pem_x509_crl(commands.run("crl", "show", "root", "--out", "-", "--pem").stdout_bytes)
    serial = certificate_of(commands.issuer(second)[1]).serial_number
    entry = crl.get_revoked_certificate_by_serial_number(serial)
    assert entry is not None
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.ca_compromise
    ledger = commands.json("ledger", "show", "--count", "1000")
    told = next(found for found in ledger if found["kind"] == "issuer.revoked")
    assert told["payload"] | {"not_after": 0} == {
        "id": commands.issuer(second)[0].id,
        "issuer": commands.issuer("root")[0].id,
        "name": second,
        "not_after": 0,
        "reason": 2,
        "serial": f"{serial:032x}",
    }
    assert commands.json("ledger", "verify")["revoked"] == 1
    assert "already" in commands.json("issuer", "revoke", second, "--yes", expect=1)["error"]


def test_an_active_issuer_is_retired_when_it_is_revoked(commands: Commands) -> None:
    commands.run("issuer", "revoke", "issuing-1", "--yes")
    assert commands.issuer()[0].state == "retired"
    kinds = [entry["kind"] for entry in commands.json("ledger", "show", "--count", "1000")][-3:]
    assert kinds == ["issuer.retired", "issuer.revoked", "crl.published"]
    assert commands.json("ledger", "verify")["revoked"] == 1


@pytest.mark.parametrize(
    ("name", "why"), [("root", "cannot be revoked"), ("nobody", "no issuer"), ("pending", "signed no certificate")]
)
def test_issuers_that_cannot_be_revoked(commands: Commands, name: str, why: str) -> None:
    waits = another()
    commands.run("issuer", "create", waits, "--request")
    name = waits if name == "pending" else name
    before = commands.json("ledger", "verify")["size"]
    assert why in commands.json("issuer", "revoke", name, "--yes", expect=1)["error"]
    assert commands.json("ledger", "verify")["size"] == before


@pytest.mark.parametrize("reason", ["keyCompromise", "certificateHold", "removeFromCRL", "1", "x"])
def test_reasons_that_do_not_fit_a_ca(commands: Commands, reason: str) -> None:
    commands.run("issuer", "revoke", "issuing-1", "--reason", reason, "--yes", expect=2)


def test_without_the_roots_pin_nothing_is_revoked(commands: Commands, tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    pin.write_text("wrong\n")
    pin.chmod(0o600)
    before = commands.json("ledger", "verify")["size"]
    for command in (("crl", "root"), ("issuer", "revoke", "issuing-1", "--yes")):
        # In a process of its own: a token that refused a PIN is not asked again by the same process.
        done = run_command(PRIVYSEAL, *command, "--root-pin-file", pin, "--json", env=commands.environment, expect=1)
        assert json.loads(done.stdout)["error"]
    assert commands.issuer()[0].state == "active"
    assert commands.json("ledger", "verify")["size"] == before


# ocsp.


def test_ocsp_is_listed_and_shown(commands: Commands, tmp_path: Path) -> None:
    assert commands.json("ocsp", "list") == []
    row, pems = commands.issuer()
    serial = "0" * 31 + "5"
    now = int(datetime.now(UTC).timestamp())

    def unit(transaction: Transaction) -> None:
        add_responder(transaction, row.id, "pkcs11:token=t;object=issuing-1-ocsp")
        keep_response(transaction, ResponseRow(serial, "sha1", row.id, 0, now, now + 60, now + 30, b"response"))

    commands.write(unit)
    (listed,) = commands.json("ocsp", "list")
    assert (listed["issuer"], listed["serial"], listed["responses"]) == ("issuing-1", None, 1)
    shown = commands.json("ocsp", "show", serial)
    assert shown["status"] == "unknown"
    assert [(kept["hash"], kept["status"], kept["size"]) for kept in shown["responses"]] == [("sha1", "good", 8)]
    commands.run("issuer", "revoke", "issuing-1", "--yes")
    issuing = tmp_path / "issuing.pem"
    issuing.write_bytes(certificate_of(pems).public_bytes(Encoding.PEM))
    assert commands.json("ocsp", "show", issuing)["status"] == "revoked"
    assert "unknown" in commands.run("ocsp", "show", "00:01").stdout
    commands.run("ocsp", "show", "nonsense", expect=2)


@pytest.mark.parametrize("hash_name", ["sha1", "sha256"])
def test_an_ocsp_request_is_what_clients_send(commands: Commands, tmp_path: Path, hash_name: str) -> None:
    row, pems = commands.issuer()
    issuer = certificate_of(pems)
    leaf, request = tmp_path / "leaf.pem", tmp_path / "request.der"
    leaf.write_bytes(signed_leaf(issuer).public_bytes(Encoding.PEM))
    made = commands.json("ocsp", "request", leaf, "--hash", hash_name, "--out", request)
    parsed = ocsp.load_der_ocsp_request(request.read_bytes())
    assert (parsed.serial_number, parsed.hash_algorithm.name) == (4711, hash_name)
    base, _, path = made["url"].partition("/ocsp/")
    assert base == commands.settings.server.public_http
    assert "/" not in path
    assert base64.b64decode(unquote(path)) == request.read_bytes()
    (tmp_path / "issuer.pem").write_bytes(issuer.public_bytes(Encoding.PEM))
    said = subprocess.run(
        ["openssl", "ocsp", "-reqin", request, "-req_text", "-noverify"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout
    assert "Serial Number: 1267" in said
    assert row.id


def test_an_ocsp_request_for_a_stranger_is_refused(commands: Commands, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    stranger.write_bytes(signed_leaf(None).public_bytes(Encoding.PEM))
    assert "another authority" in commands.json("ocsp", "request", stranger, expect=1)["error"]


def signed_leaf(issuer: x509.Certificate | None) -> x509.Certificate:
    """A certificate that names ``issuer``; who signed it makes no difference to a request."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateBuilder().issuer_name(issuer.subject if issuer else name).subject_name(name)
    builder = builder.public_key(key.public_key()).serial_number(4711).not_valid_before(now)
    builder = builder.not_valid_after(now + timedelta(days=1))
    if issuer is not None:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        builder = builder.add_extension(authority, critical=False)
    return builder.sign(key, hashes.SHA256())
