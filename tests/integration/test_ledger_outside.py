"""The ledger as others see it, from a real service: checkpoint, tiles and receipts over HTTP, checked offline (promise P6)."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import bindparam, update

from fakes.acme_client import Issued, make_csr
from fakes.outages import readiness
from fakes.service import NewClient, RunningService, StartService, serving
from fakes.status_client import eventually, get
from privyseal_acme.cli import cli
from privyseal_ca.ledger.checkpoints import ORIGIN_FACT, latest_checkpoint
from privyseal_ca.ledger.log import append, entries, size
from privyseal_ca.ledger.note import Checkpoint, NoteVerifier, open_note
from privyseal_ca.ledger.tiles import TilePath, parse_bundle
from privyseal_ca.ledger.tree import leaf_hash, root_hash
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.store.readonly import reading
from privyseal_ca.store.statement import Statement, Transaction
from privyseal_ca.store.tables import LedgerEntry

_WITHIN = 3.0

_entry = LedgerEntry.__table__  # type: ignore[attr-defined]
_SET_LEAF = Statement(update(_entry).values(leaf_hash=bindparam("leaf")).where(_entry.c.idx == 0))


def checkpoint_of(service: RunningService) -> Checkpoint:
    """What the newest checkpoint says, verified by the key that is served."""
    verifier = NoteVerifier.parse(get(f"{service.status}/ledger/vkey")[0].decode().strip())
    text, signers = open_note(get(f"{service.status}/ledger/checkpoint")[0], [verifier])
    assert signers == [verifier]
    return Checkpoint.parse(text)


def receipt_of(service: RunningService, issued: Issued) -> bytes:
    """The receipt, as soon as there is one: a checkpoint covers an entry within about a second."""
    url = f"{service.status}/ledger/proof/{issued.certificate.serial_number:032x}"
    found: list[bytes] = []
    refusals: list[tuple[int, bool]] = []

    def is_there() -> bool:
        try:
            found.append(get(url)[0])
        except HTTPError as error:
            refusals.append((error.code, int(error.headers["Retry-After"] or 0) >= 1))
            return False
        return True

    eventually(is_there, seconds=_WITHIN)
    assert set(refusals) <= {(503, True)}
    return found[0]


def verdict(vkey: str, certificate: Path, receipt: Path) -> tuple[int, dict[str, Any]]:
    """What the offline check says."""
    arguments = ["ledger", "verify-proof", "--json", "--vkey", vkey, str(certificate), str(receipt)]
    done = CliRunner().invoke(cli, arguments, env={"PRIVYSEAL_HOME": "/nonexistent"})
    return done.exit_code, json.loads(done.stdout)


def test_a_certificate_and_its_receipt_suffice(
    start_service: StartService, new_client: NewClient, tmp_path: Path
) -> None:
    service = start_service()
    client = new_client(service)
    issued, other = client.issue("a.test"), client.issue("b.test")
    certificate, receipt = tmp_path / "cert.pem", tmp_path / "cert.tlog-proof"
    certificate.write_bytes(issued.certificate.public_bytes(Encoding.PEM))
    receipt.write_bytes(receipt_of(service, issued))
    vkey = get(f"{service.status}/ledger/vkey")[0].decode().strip()
    code, said = verdict(vkey, certificate, receipt)
    assert (code, said.get("error")) == (0, None)
    # Another key's, a changed one and another certificate's say nothing.
    stranger = NoteVerifier.for_key(NoteVerifier.parse(vkey).name, ed25519.Ed25519PrivateKey.generate().public_key())
    assert verdict(stranger.vkey(), certificate, receipt)[0] == 1
    receipt.write_bytes(receipt_of(service, issued).replace(b"\nindex ", b"\nindex 1", 1))
    assert verdict(vkey, certificate, receipt)[0] == 1
    receipt.write_bytes(receipt_of(service, other))
    assert verdict(vkey, certificate, receipt)[0] == 1


def test_the_tree_is_that_of_the_entries(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(ledger={"entries": "open"})
    client = new_client(service)
    client.issue("a.test")
    eventually(lambda: checkpoint_of(service).size == len(service.ledger()), seconds=_WITHIN)
    checkpoint = checkpoint_of(service)
    entries: list[bytes] = []
    for index in range(0, checkpoint.size, 256):
        width = min(256, checkpoint.size - index)
        path = TilePath(None, index // 256, width).path()
        entries += parse_bundle(get(f"{service.status}/ledger/{path}")[0])
    assert len(entries) == checkpoint.size
    assert root_hash([leaf_hash(entry) for entry in entries]) == checkpoint.root
    assert [json.loads(entry) for entry in entries] == service.ledger()[: checkpoint.size]


def test_entries_are_nobodys_business_unless_they_are_opened(start_service: StartService) -> None:
    service = start_service()
    with pytest.raises(HTTPError) as caught:
        get(f"{service.status}/ledger/tile/entries/000.p/1")
    assert caught.value.code == 403


def test_a_restart_continues_the_same_log(
    make_settings: Callable[..., Any], http01: Any, dns_server: Any, new_client: NewClient
) -> None:
    settings = make_settings(validation={"resolvers": (dns_server.address,), "http_port": http01.port})
    with serving(settings) as service:
        new_client(service).issue("a.test")
        vkey = get(f"{service.status}/ledger/vkey")[0]
        before = checkpoint_of(service)
    with serving(settings) as again:
        assert get(f"{again.status}/ledger/vkey")[0] == vkey
        after = checkpoint_of(again)
        assert after.origin == before.origin
        assert after.size > before.size


def test_nothing_is_issued_while_the_ledger_is_not_what_was_signed(
    start_service: StartService, new_client: NewClient
) -> None:
    """P7: orders wait, and go on by themselves when the ledger is what it was."""
    service = start_service()
    client = new_client(service)
    client.issue("a.test")
    order = client.ready_order("b.test")
    first = service.read(lambda tx: next(entries(tx, count=1)))

    def change(leaf: bytes) -> None:
        service.write(lambda tx: tx.execute(_SET_LEAF, leaf=leaf))

    eventually(lambda: checkpoint_of(service).size == len(service.ledger()), seconds=_WITHIN)
    change(bytes(32))
    service.write(lambda tx: append(tx, first.entry))
    eventually(lambda: readiness(service.status)["parts"]["ledger"] != "ok", seconds=_WITHIN)
    issued = sum(entry["kind"] == "certificate.intent" for entry in service.ledger())
    answer = client.finalize(order, make_csr(["b.test"], ec.generate_private_key(ec.SECP256R1())))
    assert (answer.status, answer.json["status"]) == (200, "processing")
    assert int(answer.headers["Retry-After"]) >= 1
    assert sum(entry["kind"] == "certificate.intent" for entry in service.ledger()) == issued
    change(first.leaf_hash)
    answer = client.poll(order.headers["Location"], ("processing",))
    assert answer.json["status"] == "valid"
    eventually(lambda: readiness(service.status)["parts"]["ledger"] == "ok", seconds=_WITHIN)


def test_the_last_checkpoint_covers_the_end_of_the_service(
    make_settings: Callable[..., Any], http01: Any, dns_server: Any
) -> None:
    settings = make_settings(validation={"resolvers": (dns_server.address,), "http_port": http01.port})
    with serving(settings):
        pass

    def unit(transaction: Transaction) -> tuple[int, int]:
        latest = latest_checkpoint(transaction)
        return size(transaction), 0 if latest is None else latest.size

    async def look() -> tuple[int, int]:
        async with reading(settings) as store:
            return await store.read(unit)

    end, covered = asyncio.run(look())
    assert covered == end


def test_a_url_with_what_a_name_cannot_have(make_settings: Callable[..., Any], http01: Any, dns_server: Any) -> None:
    url = "http://ca.test/a+b c"
    server = {"http_url": url}
    settings = make_settings(server=server, validation={"resolvers": (dns_server.address,), "http_port": http01.port})
    with serving(settings) as service:
        origin = service.read(lambda tx: find_fact(tx, ORIGIN_FACT))
    assert origin == "ca.test/a%2Bb%20c/ledger"
