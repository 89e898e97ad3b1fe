"""A compromised key at the ACME front: what it takes with it, whoever says so, and what it can never do again."""

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.acme_client import AcmeClient, Issued, JwsKey, make_csr, make_jws
from fakes.service import NewClient, RunningService
from privyseal_acme.flow.blocked import BlockedAccounts
from privyseal_ca.revocation.compromise import CompromisedKeys
from privyseal_ca.revocation.possession import spki_sha256
from privyseal_ca.revocation.revoke import block_compromised_key
from privyseal_ca.store.statement import Transaction


def digest(key: Any) -> bytes:
    return spki_sha256(key.public_key())


def block(service: RunningService, key: Any) -> None:
    """As an operator does, in a process of their own."""

    def unit(transaction: Transaction) -> None:
        block_compromised_key(
            transaction, digest(key), actor="operator:tests", correlation="block", now=service.clock.now()
        )

    service.write(unit)


def sweep(service: RunningService) -> int:
    """What the service does now and then by itself, at once; it may have been faster."""
    context = service.service.context
    return service.call(BlockedAccounts(context.store, context.clock, context.random_bytes).sweep())


def entries_of(service: RunningService, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in service.ledger() if entry["kind"] == kind]


def serial(issued: Issued) -> str:
    return f"{issued.certificate.serial_number:032x}"


def metric(service: RunningService) -> float:
    value = service.service.context.metrics.registry.get_sample_value("privyseal_certificates_revoked_total")
    return value or 0.0


# What goes with it.


@pytest.mark.parametrize("how", ["account", "key"])
def test_a_key_takes_all_its_certificates_with_it(
    service: RunningService, client: AcmeClient, new_client: NewClient, how: str
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    mine = [client.issue(f"{name}.{how}.compromise.test", key=key) for name in "ab"]
    theirs = new_client(service).issue(f"other.{how}.compromise.test", key=key)
    untouched = client.issue(f"c.{how}.compromise.test")
    before = metric(service)
    if how == "account":
        assert client.revoke(mine[1].der, reason=1).status == 200
    else:
        stranger = new_client(service, registered=False)
        assert stranger.revoke(mine[1].der, key=JwsKey("ES256", key), reason=1).status == 200
    assert metric(service) == before + 3
    recorded = [entry for entry in service.ledger() if entry["kind"] in {"key.blocked", "certificate.revoked"}][-4:]
    assert [entry["kind"] for entry in recorded] == ["key.blocked"] + ["certificate.revoked"] * 3
    assert recorded[1]["payload"]["serial"] == serial(mine[1])
    assert {entry["payload"]["serial"] for entry in recorded[1:]} == {serial(each) for each in (*mine, theirs)}
    assert {entry["payload"].get("reason") for entry in recorded[1:]} == {1}
    assert len({(entry["actor"], entry["correlation"]) for entry in recorded}) == 1
    assert client.revoke(mine[0].der).problem == "alreadyRevoked"
    assert client.revoke(untouched.der).status == 200


def test_those_who_hold_the_names_cannot_say_that_a_key_is_out(
    service: RunningService, client: AcmeClient, new_client: NewClient
) -> None:
    issued = client.issue("names.compromise.test")
    other = new_client(service)
    other.ready_order("names.compromise.test")
    with service.unchanged():
        assert other.revoke(issued.der, reason=1).refusal == (400, "badRevocationReason")
    assert other.revoke(issued.der, reason=4).status == 200


@pytest.mark.parametrize("reason", [None, 0, 3, 4, 5])
def test_other_reasons_leave_the_key_and_its_certificates(
    service: RunningService, client: AcmeClient, reason: int | None
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    one, two = (client.issue(f"{name}{reason}.compromise.test", key=key) for name in "xy")
    before = metric(service)
    members = {} if reason is None else {"reason": reason}
    assert client.revoke(one.der, **members).status == 200
    assert metric(service) == before + 1
    assert client.revoke(two.der).status == 200


# What it can never do again.


def test_it_is_never_certified_again(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue("again.compromise.test")
    assert client.revoke(issued.der, reason=1).status == 200
    order = client.ready_order("again.compromise.test")
    with service.unchanged():
        refused = client.finalize(order, make_csr(["again.compromise.test"], issued.key))
    assert refused.refusal == (400, "badCSR")
    assert client.issue("again.compromise.test").certificate


def test_it_makes_no_account(service: RunningService, new_client: NewClient) -> None:
    stranger = new_client(service, registered=False)
    block(service, stranger.key.private)
    with service.unchanged():
        assert stranger.new_account().refusal == (400, "badPublicKey")
        assert stranger.new_account(onlyReturnExisting=True).refusal == (400, "accountDoesNotExist")


def test_a_refused_account_uses_up_no_binding(service: RunningService, new_client: NewClient) -> None:
    stranger = new_client(service, registered=False)
    block(service, stranger.key.private)
    eab = service.eab_key(max_uses=1)
    binding = stranger.binding(eab.row.kid, eab.secret)
    with service.unchanged():
        assert stranger.new_account(externalAccountBinding=binding).refusal == (400, "badPublicKey")
    other = new_client(service, registered=False)
    assert other.new_account(externalAccountBinding=other.binding(eab.row.kid, eab.secret)).status == 201


def test_no_account_changes_to_it(service: RunningService, client: AcmeClient) -> None:
    new, url = JwsKey(), client.directory["keyChange"]
    block(service, new.private)
    inner = make_jws(
        new, {"account": client.account, "oldKey": client.key.jwk}, {"alg": new.alg, "jwk": new.jwk, "url": url}
    )
    with service.unchanged():
        assert client.post(url, inner).refusal == (400, "badPublicKey")
    assert client.post(client.account or "").status == 200


# Accounts that have it.


def test_an_account_whose_key_is_blocked_is_ended(
    service: RunningService, client: AcmeClient, new_client: NewClient
) -> None:
    other = new_client(service)
    order = client.ready_order("ended.compromise.test")
    issued = client.issue("kept.compromise.test")
    block(service, client.key.private)
    sweep(service)
    assert sweep(service) == 0
    with service.unchanged():
        assert client.new_order("ended.compromise.test").refusal == (401, "unauthorized")
        assert client.post(client.account or "").refusal == (401, "unauthorized")
        assert client.revoke(issued.der).refusal == (401, "unauthorized")
        assert client.finalize(order, make_csr(["ended.compromise.test"], issued.key)).refusal == (401, "unauthorized")
        assert client.new_account().refusal == (401, "unauthorized")
    ended = entries_of(service, "account.deactivated")[-1]
    assert ended["actor"] == "service"
    assert ended["payload"]["reason"] == "keyCompromise"
    assert ended["payload"]["orders"] == 1
    assert (client.account or "").endswith(ended["payload"]["account"])
    assert other.post(other.account or "").status == 200
    # Its certificates are not the key's: they stay, and their own key can still revoke them.
    assert new_client(service, registered=False).revoke(issued.der, key=JwsKey("ES256", issued.key)).status == 200


def test_acme_ends_the_account_at_once(service: RunningService, client: AcmeClient, new_client: NewClient) -> None:
    """Nobody may certify an account's key, but an account may be made with a certificate's key afterwards."""
    issued = client.issue("both.compromise.test")
    other = new_client(service, registered=False)
    other.key = JwsKey("ES256", issued.key)
    other.register()
    assert client.revoke(issued.der, reason=1).status == 200
    with service.unchanged():
        assert other.new_order("both.compromise.test").refusal == (401, "unauthorized")
    ended = entries_of(service, "account.deactivated")[-1]
    assert ended["payload"]["reason"] == "keyCompromise"
    assert (other.account or "").endswith(ended["payload"]["account"])
    assert client.post(client.account or "").status == 200


def test_the_sweep_finds_what_an_operator_blocked(service: RunningService, client: AcmeClient) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = client.issue("sweep.compromise.test", key=key)
    block(service, key)
    context = service.service.context
    before = metric(service)
    service.call(CompromisedKeys(context.store, context.clock, context.metrics).sweep())
    assert metric(service) >= before + 1
    assert client.revoke(issued.der).problem == "alreadyRevoked"


def test_the_way_a_key_is_hashed_is_the_same_everywhere(service: RunningService, client: AcmeClient) -> None:
    issued = client.issue("hash.compromise.test")
    recorded = [entry for entry in service.ledger() if entry["payload"].get("serial") == serial(issued)]
    assert {entry["payload"]["spki_sha256"] for entry in recorded} == {digest(issued.key).hex()}
    account = entries_of(service, "account.created")[-1]
    assert account["payload"]["spki_sha256"] == digest(client.key.private).hex()
    assert len(hashlib.sha256().digest()) == len(digest(issued.key))
