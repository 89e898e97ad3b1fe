"""The commands on an authority that has issued: what they show, what they change, and what they refuse."""

import asyncio
import base64
import json
import os
import re
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fakes.home import MakeSettings
from fakes.process import PRIVYSEAL, run_command
from privyseal_acme.cli import cli
from privyseal_acme.service import running
from privyseal_acme.store.accounts import AccountRow, add_account
from privyseal_acme.store.eab import EabKeyRow, find_eab_key, use_eab_key
from privyseal_ca.ceremony.initialise import make_hsm, make_store, pin_reader
from privyseal_ca.config import Settings
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.statement import Transaction

runner = CliRunner()


class Commands:
    """The command line for one home whose database is the test's own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Path(settings.database_url.removeprefix("sqlite:///"))
        self.environment = {
            "PRIVYSEAL_HOME": str(settings.home),
            "PRIVYSEAL_DATABASE__URL": settings.database_url,
            "PRIVYSEAL_SERVER__HTTPS": settings.server.https,
            "PRIVYSEAL_SERVER__HTTP": settings.server.http,
        }

    def run(self, *arguments: str | Path, expect: int = 0, **environment: str) -> Result:
        result = runner.invoke(cli, [str(part) for part in arguments], env=self.environment | environment)
        assert result.exit_code == expect, (arguments, result.output, result.exception)
        return result

    def json(self, *arguments: str | Path, expect: int = 0, **environment: str) -> Any:
        return json.loads(self.run(*arguments, "--json", expect=expect, **environment).stdout)

    async def write(self, unit: Callable[[Transaction], Any]) -> Any:
        store = make_store(backend_for(self.settings.database_url, durable=False, timeout=5), self.settings)
        await store.open()
        try:
            return await store.write(unit)
        finally:
            await store.close()

    def tamper(self, statement: str, *parameters: object) -> None:
        with closing(sqlite3.connect(self.database)) as connection:
            connection.execute(statement, parameters)
            connection.commit()


@pytest.fixture
def commands(make_settings: MakeSettings) -> Commands:
    return Commands(make_settings())


@pytest.fixture
async def issued(commands: Commands) -> Commands:
    """The same after the service ran: it has issued its own certificate."""
    async with running(commands.settings):
        pass
    return commands


async def in_thread(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Commands run event loops of their own."""
    return await asyncio.to_thread(work, *arguments, **options)


# Certificates.


async def servers_own(issued: Commands) -> dict[str, Any]:
    """The server's own certificate, among the canary's and the OCSP responder's."""
    listed = await in_thread(issued.json, "cert", "list")
    assert sorted(each["profile"] for each in listed) == ["canary", "ocsp-responder", "server"]
    return next(each for each in listed if each["profile"] == "server")


async def test_certificates_are_listed_and_shown(issued: Commands) -> None:
    listed = await servers_own(issued)
    assert listed["state"] == "valid"
    assert "ip:127.0.0.1" in listed["names"]
    assert await in_thread(issued.json, "cert", "list", "--name", "nowhere") == []
    after = await in_thread(issued.json, "cert", "list", "--after", listed["serial"])
    assert all(each["serial"] > listed["serial"] for each in after)
    shown = await in_thread(issued.json, "cert", "show", listed["serial"])
    certificate = x509.load_pem_x509_certificate(shown["pem"].encode())
    assert f"{certificate.serial_number:032x}" == listed["serial"]
    text = await in_thread(issued.run, "cert", "list")
    assert listed["serial"] in text.stdout


async def test_a_certificate_is_named_by_serial_in_any_form_or_by_its_file(issued: Commands, tmp_path: Path) -> None:
    listed = await servers_own(issued)
    serial = listed["serial"]
    shown = await in_thread(issued.json, "cert", "show", serial)
    pem, der = tmp_path / "c.pem", tmp_path / "c.der"
    pem.write_text(shown["pem"])
    der.write_bytes(x509.load_pem_x509_certificate(shown["pem"].encode()).public_bytes(Encoding.DER))
    colons = ":".join(serial[i : i + 2] for i in range(0, 32, 2)).upper()
    for name in (serial.upper(), f"0x{serial}", serial.lstrip("0"), colons, pem, der):
        assert (await in_thread(issued.json, "cert", "show", name))["serial"] == serial


async def test_revocation_is_for_good_and_in_the_ledger(issued: Commands) -> None:
    listed = await servers_own(issued)
    serial = listed["serial"]
    revoked = await in_thread(issued.json, "cert", "revoke", serial, "--reason", "keyCompromise")
    assert (revoked["state"], revoked["reason"]) == ("revoked", 1)
    again = await in_thread(issued.json, "cert", "revoke", serial, expect=1)
    assert "already" in again["error"]
    last = (await in_thread(issued.json, "ledger", "show", "--count", "1000"))[-1]
    assert (last["kind"], last["payload"]["serial"]) == ("certificate.revoked", serial)
    assert last["actor"].startswith("operator:")
    report = await in_thread(issued.json, "ledger", "verify")
    # The canary is the other one that is revoked.
    assert (report["certificates"], report["revoked"]) == (3, 2)


@pytest.mark.parametrize("reason", ["certificateHold", "removeFromCRL", "7", "10", "x"])
async def test_reasons_that_nobody_may_give(issued: Commands, reason: str) -> None:
    listed = await servers_own(issued)
    await in_thread(issued.run, "cert", "revoke", listed["serial"], "--reason", reason, expect=2)


def test_a_certificate_that_was_not_issued_here(commands: Commands) -> None:
    for action in ("show", "revoke"):
        assert "was issued here" in commands.json("cert", action, "01", expect=1)["error"]
        commands.run("cert", action, "no-serial", expect=2)


# The ledger.


def test_the_ledger_is_shown_in_parts(commands: Commands) -> None:
    whole = commands.json("ledger", "show")
    assert [entry["index"] for entry in whole] == list(range(len(whole)))
    assert commands.json("ledger", "show", "--from", "2", "--count", "3") == whole[2:5]
    assert commands.json("ledger", "show", "--from", "100000") == []
    commands.run("ledger", "show", "--count", "0", expect=2)


def test_verification_names_what_is_wrong(commands: Commands) -> None:
    report = commands.json("ledger", "verify")
    assert report["ca_certificates"] == 2
    expected = f"{report['size']}:{report['root']}"
    assert commands.json("ledger", "verify", "--expect", expected) == report
    assert "ok" in commands.run("ledger", "verify").stdout
    commands.run("ledger", "verify", "--expect", "x", expect=2)
    wrong = commands.json("ledger", "verify", "--expect", f"{report['size']}:{'0' * 64}", expect=1)
    assert "earlier check" in wrong["error"]
    commands.tamper("UPDATE ledger_entry SET entry = x'00' WHERE idx = 3")
    failed = commands.run("ledger", "verify", expect=1)
    assert failed.stderr.startswith("error: Entry 3 ")


# Issuers.


def test_issuers_are_listed_and_shown(commands: Commands) -> None:
    root, issuing = commands.json("issuer", "list")
    assert (root["state"], issuing["state"]) == ("root", "active")
    shown = commands.json("issuer", "show", "issuing-1")
    assert shown["attestation"]["attributes"]["EXTRACTABLE"] is False
    assert shown["chains"][0].count("BEGIN CERTIFICATE") == 2
    assert "issuing-1" in commands.run("issuer", "list").stdout
    assert "NEVER_EXTRACTABLE" in commands.run("issuer", "show", "issuing-1").stdout
    commands.run("issuer", "show", "nobody", expect=1)


def test_another_issuer_is_made_and_retired(commands: Commands) -> None:
    name = f"second-{os.getpid()}-{commands.database.stem}"
    made = commands.json("issuer", "create", name, "--key-type", "rsa-2048", "--permit-dns", "corp.example")
    assert made["state"] == "active"
    shown = commands.json("issuer", "show", name)
    assert shown["algorithm"] == "rsa-2048"
    certificate = x509.load_pem_x509_certificates(shown["chains"][0].encode())[0]
    assert certificate.extensions.get_extension_for_class(x509.NameConstraints).critical
    assert commands.json("ledger", "verify")["ca_certificates"] == 3
    assert "already" in commands.json("issuer", "create", name, expect=1)["error"]
    assert commands.json("issuer", "retire", name)["state"] == "retired"
    commands.run("issuer", "retire", name, expect=1)
    for bad in ("root", "UPPER", "a/b", ""):
        commands.run("issuer", "create", bad, expect=2)


def test_another_issuer_names_the_roots_crl_when_the_public_url_is_set(commands: Commands) -> None:
    root_id = commands.json("issuer", "show", "root")["id"]
    urls = [f"http://ca.test/issuers/{root_id}.cer", f"http://ca.test/crl/{root_id}.crl"]
    for number, (url, named) in enumerate({"http://ca.test": urls, "": []}.items()):
        name = f"pointing-{os.getpid()}-{commands.database.stem}-{number}"
        commands.run("issuer", "create", name, PRIVYSEAL_SERVER__HTTP_URL=url)
        certificate = x509.load_pem_x509_certificates(commands.json("issuer", "show", name)["chains"][0].encode())[0]
        text = " ".join(repr(extension) for extension in certificate.extensions)
        assert re.findall(r"http://[^']+", text) == named
    assert commands.json("ledger", "verify")["ca_certificates"] == 4


def test_a_request_is_written_instead_when_asked(commands: Commands) -> None:
    name = f"third-{os.getpid()}-{commands.database.stem}"
    made = commands.json("issuer", "create", name, "--request")
    assert made["state"] == "pending"
    path = Path(made["csr"])
    assert x509.load_pem_x509_csr(path.read_bytes()).is_signature_valid
    assert "BEGIN CERTIFICATE REQUEST" in commands.run("issuer", "show", name).stdout
    roots = commands.settings.home / "roots.pem"
    assert "no issuer here has" in commands.json("issuer", "import", roots, expect=1)["error"]
    path.unlink()


# External account keys.


def eab_row(commands: Commands, kid: str) -> EabKeyRow:
    with closing(sqlite3.connect(commands.database)) as connection:
        return EabKeyRow(*connection.execute("SELECT * FROM eab_key WHERE kid = ?", (kid,)).fetchone())


async def test_an_external_account_key_is_told_once_and_stored_wrapped(commands: Commands) -> None:
    made = await in_thread(
        commands.json,
        *("eab", "create", "--label", "team a", "--allow-dns", "a.test", "--allow-ip", "10.1.0.0/16"),
        *("--expires", "30d", "--uses", "2"),
    )
    secret = base64.urlsafe_b64decode(made["hmac_key"] + "=")
    assert len(secret) == 32
    row = eab_row(commands, made["kid"])
    assert secret not in row.wrapped
    assert made["narrowing"] == {"dns": ["a.test"], "ip": ["10.1.0.0/16"], "uri": []}
    settings = commands.settings
    hsm = make_hsm(pin_reader(settings, {}, root_token="", root_pin_file=None), settings)
    uri = next(
        value
        for name, value in sqlite3.connect(commands.database).execute("SELECT * FROM fact")
        if name == "wrapping-key"
    )
    try:
        key = await hsm.open_wrapping_key(uri)
        assert await key.unwrap(row.wrapped, made["kid"].encode()) == secret
    finally:
        await hsm.close()
    listed = await in_thread(commands.run, "eab", "list")
    assert made["hmac_key"] not in listed.output
    assert "team a" in listed.output
    last = (await in_thread(commands.json, "ledger", "show", "--count", "1000"))[-1]
    assert last["kind"] == "eab.created"
    assert made["hmac_key"] not in json.dumps(last)


async def test_uses_are_counted_until_the_key_is_used_up_expired_or_revoked(commands: Commands) -> None:
    once = (await in_thread(commands.json, "eab", "create", "--single-use"))["kid"]
    assert await commands.write(lambda tx: use_eab_key(tx, once, 0)) is True
    assert await commands.write(lambda tx: use_eab_key(tx, once, 0)) is False
    short = await in_thread(commands.json, "eab", "create", "--expires", "1h")
    end = eab_row(commands, short["kid"]).expires
    assert end is not None
    assert await commands.write(lambda tx: use_eab_key(tx, short["kid"], end)) is False
    assert await commands.write(lambda tx: use_eab_key(tx, short["kid"], end - 1)) is True
    many = (await in_thread(commands.json, "eab", "create"))["kid"]
    for _ in range(3):
        assert await commands.write(lambda tx: use_eab_key(tx, many, 0)) is True
    assert (await in_thread(commands.json, "eab", "revoke", many))["revoked"] is True
    assert await commands.write(lambda tx: use_eab_key(tx, many, 0)) is False
    assert await commands.write(lambda tx: use_eab_key(tx, "unknown", 0)) is False
    assert await commands.write(lambda tx: find_eab_key(tx, "unknown")) is None
    states = {
        row["kid"]: (row["uses"], row["revoked"] is not None) for row in await in_thread(commands.json, "eab", "list")
    }
    assert states == {once: (1, False), short["kid"]: (1, False), many: (3, True)}
    await in_thread(commands.run, "eab", "revoke", many, expect=1)
    await in_thread(commands.run, "eab", "revoke", "unknown", expect=1)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--policy", "nobody"), 1),
        (("--allow-dns", "a_b"), 1),
        (("--allow-ip", "10.0.0.1/8"), 1),
        (("--allow-uri", "nonsense"), 1),
        (("--label", "x" * 300), 1),
        (("--uses", "0"), 2),
        (("--uses", "2", "--single-use"), 2),
        (("--expires", "soon"), 2),
    ],
)
def test_keys_that_could_never_work_are_not_made(commands: Commands, arguments: tuple[str, ...], code: int) -> None:
    commands.run("eab", "create", *arguments, expect=code)
    assert commands.json("eab", "list") == []


# Accounts.


async def test_accounts_are_listed_shown_and_ended(commands: Commands) -> None:
    row = AccountRow(
        id="a1",
        status="valid",
        thumbprint="t",
        jwk="{}",
        spki_sha256=b"s",
        contact='["mailto:a@b.test"]',
        terms_agreed=1,
        policy="default",
        narrowing=None,
        eab_kid=None,
        eab=None,
        created=0,
    )
    await commands.write(lambda tx: add_account(tx, row))
    (listed,) = await in_thread(commands.json, "account", "list")
    assert listed["contact"] == ["mailto:a@b.test"]
    assert await in_thread(commands.json, "account", "show", "a1") == listed
    assert await in_thread(commands.json, "account", "list", "--after", "a1") == []
    assert (await in_thread(commands.json, "account", "deactivate", "a1"))["status"] == "deactivated"
    assert (await in_thread(commands.json, "account", "show", "a1"))["status"] == "deactivated"
    last = (await in_thread(commands.json, "ledger", "show", "--count", "1000"))[-1]
    assert (last["kind"], last["payload"]["account"]) == ("account.deactivated", "a1")
    await in_thread(commands.run, "account", "deactivate", "a1", expect=1)
    await in_thread(commands.run, "account", "show", "nobody", expect=1)


# Profiles, status, doctor.


def test_profiles(commands: Commands) -> None:
    profiles = {row["name"]: row for row in commands.json("profile", "list")}
    assert profiles["mtls"]["default"] is True
    assert commands.json("profile", "show", "mtls")["lifetime"] == 86400
    assert "nothing" in commands.json("profile", "show", "nothing", expect=1)["error"]


async def test_status_knows_its_own_service(commands: Commands) -> None:
    before = await in_thread(commands.json, "status")
    assert before["service"] == "not running"
    assert before["schema"] == "current"
    assert {issuer["name"]: issuer["days_left"] for issuer in before["issuers"]}["issuing-1"] == 1094
    async with running(commands.settings):
        during = await in_thread(commands.json, "status")
        assert during["service"] == "ready"
        assert during["certificates"] == 3
        findings = {finding["what"]: finding for finding in (await in_thread(commands.json, "doctor"))["findings"]}
        assert "running service" in findings["http"]["message"]
        assert "running service" in findings["https"]["message"]


def findings(commands: Commands, *, expect: int = 0, **environment: str) -> dict[str, dict[str, str]]:
    document = commands.json("doctor", expect=expect, **environment)
    assert document["ok"] is (expect == 0)
    return {finding["what"]: finding for finding in document["findings"]}


def test_a_healthy_home(commands: Commands) -> None:
    found = findings(commands)
    assert {finding["level"] for finding in found.values()} == {"ok"}
    assert {"settings", "home", "schema", "ledger", "issuer issuing-1", "key issuing-1", "wrapping key"} <= found.keys()
    assert "ok    schema: current" in commands.run("doctor").stdout


def test_a_port_that_another_program_has(commands: Commands) -> None:
    host, _, port = commands.settings.server.http.partition(":")
    with closing(socket.socket()) as other:
        other.bind((host, int(port)))
        other.listen()
        found = findings(commands, expect=1)
    assert found["http"]["level"] == "fail"
    assert found["https"]["level"] == "ok"


def test_a_ledger_that_was_cut(commands: Commands) -> None:
    commands.tamper("UPDATE ledger_head SET size = size + 1")
    assert "ledger verify" in findings(commands, expect=1)["ledger"]["hint"]


def test_a_schema_of_another_version(commands: Commands) -> None:
    commands.tamper("UPDATE alembic_version SET version_num = '0000'")
    assert findings(commands)["schema"]["level"] == "warn"


def test_a_wrong_pin(commands: Commands) -> None:
    # In a process of its own, for a PIN that was refused is never tried again in the life of one.
    environment = {**os.environ, **commands.environment, "PRIVYSEAL_HSM__PIN": "not-the-pin"}
    done = run_command(PRIVYSEAL, "doctor", "--json", env=environment, expect=1)
    levels = {finding["what"]: finding["level"] for finding in json.loads(done.stdout)["findings"]}
    assert levels["key issuing-1"] == levels["wrapping key"] == "fail"
    assert levels["ledger"] == "ok"
    assert "not-the-pin" not in done.stdout + done.stderr


def test_a_key_that_is_gone(commands: Commands) -> None:
    commands.tamper(
        "UPDATE issuer SET key_uri = replace(key_uri, 'object=issuing-1', 'object=gone') WHERE name <> 'root'"
    )
    found = findings(commands, expect=1)
    assert found["key issuing-1"]["level"] == "fail"
    assert "object=gone" in found["key issuing-1"]["message"]
    assert found["wrapping key"]["level"] == "ok"


def test_a_key_that_was_exchanged(commands: Commands) -> None:
    commands.tamper("""UPDATE issuer SET attestation = '{"spki_sha256": "00"}' WHERE name = 'issuing-1'""")
    assert "another key" in findings(commands, expect=1)["key issuing-1"]["message"]


def test_settings_that_are_not_valid(commands: Commands) -> None:
    found = findings(commands, expect=1, PRIVYSEAL_LOG__LEVEL="loud")
    assert list(found) == ["settings"]


def test_a_home_that_does_not_exist(tmp_path: Path) -> None:
    result = runner.invoke(
        cli, ["doctor", "--json", "--home", str(tmp_path / "none")], env={"PRIVYSEAL_DATABASE__URL": None}
    )
    assert result.exit_code == 1
    levels = {finding["what"]: finding["level"] for finding in json.loads(result.stdout)["findings"]}
    assert levels["home"] == levels["schema"] == "fail"
    assert not (tmp_path / "none").exists()
