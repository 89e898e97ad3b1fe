"""The specification of the ledger, against a ledger: every kind, every member, and the entry that a certificate gives."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fakes.acme_client import AcmeClient, Issued, JwsKey, challenge_of, make_jws
from fakes.backups import Vault
from fakes.service import NewClient, RunningService, StartService
from privyseal_acme.cli import cli
from privyseal_ca.issuance.record import issued_entry, serial_text
from privyseal_ca.ledger.entries import Kind, decode_entry
from privyseal_ca.ledger.tree import leaf_hash
from privyseal_ca.store.certificates import IntentRow, open_intent
from privyseal_ca.store.fleet import lineage_of

PAGE = Path(__file__).parents[2] / "docs" / "ledger.md"
_ROW = re.compile(r"^\| `(\w+)` \| ([a-z, ]+) \|", re.MULTILINE)
_TYPES = {"text": str, "integer": int, "boolean": bool, "list": list, "object": dict}


def section(heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    found = re.search(
        rf"^#+ {re.escape(heading)}$\n(.*?)(?=^#|\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found, heading
    return found[1]


def members(heading: str) -> dict[str, tuple[str, bool]]:
    """The members in the table under a heading: type, and whether it is always there."""
    rows = _ROW.findall(section(heading))
    return {name: (kind.split(",")[0], "optional" not in kind) for name, kind in rows}


def check(heading: str, found: dict[str, object]) -> None:
    """Hold an object to the table under a heading."""
    described = members(heading)
    required = {name for name, (_, always) in described.items() if always}
    assert required <= found.keys() <= described.keys(), (heading, found)
    for name, value in found.items():
        assert value is None or isinstance(value, _TYPES[described[name][0]]), (heading, name, value)


def test_every_kind_has_its_section_and_no_other() -> None:
    sections = re.findall(r"^### `([a-z.-]+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(sections) == sorted(Kind)


def test_the_example() -> None:
    text = section("Rebuilding `certificate.issued` from a certificate")
    pem = re.search(r"```pem\n(.*?)```", text, re.DOTALL)
    entry = re.search(r"```json\n(.*?)\n```", text, re.DOTALL)
    leaf = re.search(r"leaf hash `([0-9a-f]{64})`", text)
    assert pem
    assert entry
    assert leaf
    der = x509.load_pem_x509_certificate(pem[1].encode()).public_bytes(Encoding.DER)
    assert issued_entry(der) == entry[1].encode()
    assert leaf_hash(entry[1].encode()).hex() == leaf[1]
    check("Form of an entry", decode_entry(entry[1].encode()))


def run(service: RunningService, *arguments: str) -> None:
    """A command beside the service."""
    environment = {
        "PRIVYSEAL_HOME": str(service.settings.home),
        "PRIVYSEAL_DATABASE__URL": service.settings.database_url,
    }
    result = CliRunner().invoke(cli, arguments, env=environment)
    assert result.exit_code == 0, (arguments, result.output)


def change_key(client: AcmeClient) -> None:
    """Give the account another key."""
    new, url = JwsKey(), client.directory["keyChange"]
    inner = make_jws(
        new, {"account": client.account, "oldKey": client.key.jwk}, {"alg": new.alg, "jwk": new.jwk, "url": url}
    )
    assert client.post(url, inner).status == 200
    client.key = new


def abandon(service: RunningService) -> None:
    """An intent that nobody works on, and its end."""
    issuer = next(iter(service.service.context.authority.issuers)).id
    row = IntentRow("0" * 31 + "1", issuer, bytes(32), int(service.clock.now()) + 60, "service", "tests", None)
    service.write(lambda tx: open_intent(tx, row))
    assert service.call(service.service.context.authority.close_intents()) == 1


def retire_and_resume(service: RunningService, issued: Issued) -> None:
    """Take the workload of a certificate out of the fleet, and put it back."""
    service.call(service.service.fleet.follower.follow())
    row = service.read(lambda tx: lineage_of(tx, serial_text(issued.certificate.serial_number)))
    assert row is not None
    run(service, "fleet", "retire", row.id, "--reason", "told in the documentation", "--yes")
    run(service, "fleet", "resume", row.id)


@pytest.fixture
def story(start_service: StartService, new_client: NewClient, tmp_path: Path) -> RunningService:
    """A service in whose ledger there is everything, once it has stopped."""
    service = start_service(validation={"attempts": 2})
    key = service.eab_key(max_uses=2)
    run(service, "eab", "revoke", service.eab_key().row.kid, "--yes")
    run(service, "eab", "describe", key.row.kid, "--owner", "docs@docs.test", "--set", "tier=1", "--no-renewal")
    client = new_client(service, registered=False)
    client.register(externalAccountBinding=client.binding(key.row.kid, key.secret))
    assert client.post(client.account or "", {"contact": ["mailto:a@docs.test"]}).status == 200
    change_key(client)
    by_owner = client.issue("ledger.docs.test", "*.ledger.docs.test")
    assert client.revoke(by_owner.der, reason=1).status == 200
    by_operator = client.issue("127.0.0.1")
    run(service, "cert", "revoke", f"{by_operator.certificate.serial_number:032x}", "--yes")
    failing = client.order("nothing.docs.test").json["authorizations"][0]
    client.post(challenge_of(client.post(failing).json, "http-01")["url"], {})
    assert client.poll(failing).json["status"] == "invalid"
    pending = client.order("pending.docs.test").json["authorizations"][0]
    assert client.post(pending, {"status": "deactivated"}).status == 200
    abandon(service)
    run(service, "crl", "root")
    run(service, "cert", "revoke", "--account", "service", "--yes")
    run(service, "backup", "create", str(tmp_path / "backup.age"), "--recipient", Vault(tmp_path).recipient)
    retire_and_resume(service, by_owner)
    other = new_client(service)
    run(service, "account", "describe", (other.account or "")[-22:], "--criticality", "high")
    assert client.post(client.account or "", {"status": "deactivated"}).status == 200
    run(service, "account", "deactivate", (other.account or "")[-22:], "--yes")
    return service


def test_entries_have_the_members_that_are_described(story: RunningService) -> None:
    ledger = story.ledger()
    for entry in ledger:
        check("Form of an entry", entry)
        check(f"`{entry['kind']}`", entry["payload"])
        if entry["kind"].startswith("authorization.") and "evidence" in entry["payload"]:
            check("Evidence", entry["payload"]["evidence"])
        if entry["kind"] == Kind.REVOCATION_STARTED:
            check("Selections", entry["payload"]["selection"])
    actors = set(re.findall(r"^\| `([a-z-]+)[:`]", section("Actors"), re.MULTILINE))
    assert {entry["actor"].partition(":")[0] for entry in ledger} <= actors
    # A root elsewhere, the end of an issuer and that of a service are other stories.
    untold = {Kind.CSR_WRITTEN, Kind.ISSUER_RETIRED, Kind.ISSUER_REVOKED, Kind.SERVICE_STOPPED}
    # Restores are told by the drill (test_restore_drill.py).
    untold |= {Kind.AUTHORITY_RESTORED, Kind.REVOCATION_RESTORED}
    assert {entry["kind"] for entry in ledger} == set(Kind) - untold


def test_a_certificate_leads_to_its_entry(story: RunningService) -> None:
    told = {entry["payload"]["serial"]: entry for entry in story.ledger() if entry["kind"] == Kind.ISSUED}
    assert told
    for serial, entry in told.items():
        row = story.call(story.service.context.authority.find(serial))
        assert row is not None
        assert decode_entry(issued_entry(row.der)) == entry
