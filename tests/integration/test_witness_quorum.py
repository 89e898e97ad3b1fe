"""Issuance that waits for witnesses, when it was told to: orders stay processing, and go on by themselves (P5, P7)."""

import time
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fakes.acme_client import make_csr
from fakes.outages import readiness
from fakes.service import NewClient, StartService
from fakes.witnesses import WitnessProcess
from privyseal_acme.cli import cli
from privyseal_ca.ledger.checkpoints import VKEY_FACT
from privyseal_ca.ledger.cosignatures import CosignatureVerifier
from privyseal_ca.store.issuers import find_fact

_DEADLINE = 30.0


def until(work: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not work():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_orders_wait_for_the_quorum_and_drain(
    tmp_path: Path, start_service: StartService, new_client: NewClient
) -> None:
    witness = WitnessProcess(tmp_path / "witness", "quorum.example")
    bounds = {"quorum": 1, "quorum_required": True, "quorum_patience": 0.3, "witness_timeout": 0.2}
    service = start_service(ledger={"witnesses": [witness.setting], **bounds})
    client = new_client(service)
    order = client.ready_order("quorum.test")
    until(lambda: "0 of the 1 witnesses" in str(readiness(service.status)))
    assert not readiness(service.status)["ready"]
    answer = client.finalize(order, make_csr(["quorum.test"], ec.generate_private_key(ec.SECP256R1())))
    assert (answer.status, answer.json["status"]) == (200, "processing")
    assert int(answer.headers["Retry-After"]) >= 1
    # The witness that was down comes, and nobody has to do anything more.
    vkey = service.read(lambda tx: find_fact(tx, VKEY_FACT))
    assert CliRunner().invoke(cli, ["witness", "add", str(vkey), "--home", str(witness.home)]).exit_code == 0
    try:
        witness.start()
        assert client.poll(order.headers["Location"], ("processing",)).json["status"] == "valid"
        until(lambda: bool(readiness(service.status)["ready"]))
    finally:
        witness.close()


def test_without_being_required_it_stops_nobody(start_service: StartService, new_client: NewClient) -> None:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    vkey = CosignatureVerifier.for_key("missing.example", key).vkey()
    settings = {"witnesses": [{"vkey": vkey, "url": "http://127.0.0.1:1"}], "quorum": 1, "quorum_patience": 0.01}
    service = start_service(ledger=settings)
    assert new_client(service).issue("missing.test")
    value = service.service.context.metrics.registry.get_sample_value
    until(lambda: value("privyseal_checkpoint_quorum") == 0)
    assert readiness(service.status)["ready"]
    assert new_client(service).issue("still.test")
