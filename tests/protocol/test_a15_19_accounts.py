"""STANDARDS A 15 to 19: accounts (RFC 8555 section 7.3)."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.acme_client import AcmeClient, JwsKey, challenge_of, make_csr
from fakes.service import NewClient, RunningService, StartService


def test_a15_unknown_members_are_ignored_and_not_echoed(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service, registered=False)
    answer = client.register(
        contact=["mailto:a@b.test"],
        orders="https://evil.test/orders",
        status="deactivated",
        onlyReturnExisting=False,
        feature={"deep": [1, 2]},
    )
    assert answer.status == 201
    assert answer.json == {
        "status": "valid",
        "contact": ["mailto:a@b.test"],
        "orders": f"{client.account}/orders",
        "termsOfServiceAgreed": True,
    }
    assert client.post(client.account or "").json == answer.json


@pytest.mark.parametrize(
    "members",
    [
        {"contact": "mailto:a@b.test"},
        {"contact": [5]},
        {"contact": {"a": 1}},
        {"termsOfServiceAgreed": "true"},
        {"termsOfServiceAgreed": 1},
        {"onlyReturnExisting": "false"},
        {"externalAccountBinding": "x"},
        {"externalAccountBinding": []},
    ],
)
def test_a15_members_have_their_types(service: RunningService, new_client: NewClient, members: dict[str, Any]) -> None:
    client = new_client(service, registered=False)
    with service.unchanged():
        assert client.new_account(**members).refusal == (400, "malformed")


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b"5", b"{", b'{"a":}', b"\xff"])
def test_a15_the_payload_is_an_object(service: RunningService, new_client: NewClient, payload: bytes) -> None:
    client = new_client(service, registered=False)
    with service.unchanged():
        answer = client.post(client.directory["newAccount"], payload, jwk=client.key.jwk)
    assert answer.refusal == (400, "malformed")


GOOD_CONTACTS = [[], ["mailto:a@b.test"], ["mailto:a.b+c@d.test", "mailto:x@y.test"], ["MAILTO:a@b.test"]]
BAD_CONTACTS = {
    "mailto:a@b.test?subject=x": "invalidContact",
    "mailto:a@b.test?bcc=c@d.test": "invalidContact",
    "mailto:a@b.test,c@d.test": "invalidContact",
    "mailto:a@b.test%2Cc@d.test": "invalidContact",
    "mailto:": "invalidContact",
    "mailto:a": "invalidContact",
    "mailto:a@": "invalidContact",
    "mailto:@b.test": "invalidContact",
    "mailto:a@b@c.test": "invalidContact",
    "mailto:A <a@b.test>": "invalidContact",
    "mailto:a@b.test\r\nBcc: c@d.test": "invalidContact",
    "mailto:a\0@b.test": "invalidContact",
    "mailto:a@b..test": "invalidContact",
    "mailto:" + "a" * 400 + "@b.test": "invalidContact",
    "a@b.test": "invalidContact",
    "": "invalidContact",
    "tel:+12025551212": "unsupportedContact",
    "https://a.test/": "unsupportedContact",
    "mailto : a@b.test": "unsupportedContact",
}


@pytest.mark.parametrize("contact", GOOD_CONTACTS)
def test_a16_good_contacts(service: RunningService, new_client: NewClient, contact: list[str]) -> None:
    client = new_client(service, registered=False)
    assert client.register(contact=contact).json["contact"] == contact


@pytest.mark.parametrize("contact", BAD_CONTACTS)
def test_a16_bad_contacts(service: RunningService, client: AcmeClient, new_client: NewClient, contact: str) -> None:
    newcomer = new_client(service, registered=False)
    with service.unchanged():
        made = newcomer.new_account(contact=["mailto:good@b.test", contact])
        changed = client.post(client.account or "", {"contact": [contact]})
    assert made.refusal == changed.refusal == (400, BAD_CONTACTS[contact])


def test_a16_too_many_contacts(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service, registered=False)
    limit = service.settings.acme.max_contacts
    with service.unchanged():
        answer = client.new_account(contact=[f"mailto:a{number}@b.test" for number in range(limit + 1)])
    assert answer.refusal == (400, "invalidContact")
    assert client.new_account(contact=[f"mailto:a{number}@b.test" for number in range(limit)]).status == 201


@pytest.mark.parametrize("agreed", [False, None])
def test_a17_terms(start_service: StartService, new_client: NewClient, agreed: bool | None) -> None:
    service = start_service(acme={"terms_of_service": "https://ca.test/terms"})
    client = new_client(service, registered=False)
    payload = {} if agreed is None else {"termsOfServiceAgreed": agreed}
    with service.unchanged():
        refused = client.post(client.directory["newAccount"], payload, jwk=client.key.jwk)
    assert refused.refusal == (403, "userActionRequired")
    assert client.register(termsOfServiceAgreed=True).json["termsOfServiceAgreed"] is True


def test_a17_an_existing_account_need_not_agree_again(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(acme={"terms_of_service": "https://ca.test/terms"})
    client = new_client(service)
    assert client.new_account(termsOfServiceAgreed=False).status == 200
    assert client.new_account(termsOfServiceAgreed=False, onlyReturnExisting=True).status == 200


def test_a17_without_terms_nothing_is_agreed_to(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service, registered=False)
    answer = client.post(client.directory["newAccount"], {}, jwk=client.key.jwk)
    assert answer.status == 201
    assert answer.json.get("termsOfServiceAgreed") in {None, False}


def test_a18_a_known_key_finds_its_account(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service, registered=False)
    made = client.register(contact=["mailto:a@b.test"])
    assert made.status == 201
    with service.unchanged():
        found = client.new_account(contact=["mailto:other@b.test"])
    assert found.status == 200
    assert found.headers["Location"] == made.headers["Location"]
    assert found.json == made.json


def test_a18_only_return_existing(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service, registered=False)
    with service.unchanged():
        # python acme and lacme send contacts along.
        refused = client.new_account(onlyReturnExisting=True, contact=["mailto:a@b.test"])
    assert refused.refusal == (400, "accountDoesNotExist")
    client.register()
    found = client.new_account(onlyReturnExisting=True, contact=["no contact"])
    assert (found.status, found.headers["Location"]) == (200, client.account)
    assert "onlyReturnExisting" not in found.json


def test_a18_two_requests_with_one_key_make_one_account(service: RunningService, new_client: NewClient) -> None:
    client = new_client(service, registered=False)
    twins = [client.twin() for _ in range(8)]
    for twin in twins:
        assert twin.fresh_nonce()
    with ThreadPoolExecutor(len(twins)) as threads:
        answers = list(threads.map(lambda twin: twin.new_account(), twins))
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]
    assert len({answer.headers["Location"] for answer in answers}) == 1
    for twin in twins:
        twin.close()


def test_a18_every_account_has_a_list_of_orders(client: AcmeClient) -> None:
    account = client.post(client.account or "").json
    orders = [client.order("a18.test").headers["Location"] for _ in range(3)]
    answer = client.post(account["orders"])
    assert answer.status == 200
    assert set(answer.json["orders"]) == set(orders)
    assert "next" not in answer.links


def test_a19_contacts_can_be_changed(client: AcmeClient) -> None:
    account = client.account or ""
    answer = client.post(account, {"contact": ["mailto:new@b.test"], "orders": "x", "unknown": 1})
    assert answer.status == 200
    assert answer.headers["Location"] is None
    assert answer.json["contact"] == ["mailto:new@b.test"]
    assert client.post(account).json == answer.json
    assert client.post(account, {"contact": []}).json["contact"] == []


def test_a19_an_update_without_content_changes_nothing(service: RunningService, client: AcmeClient) -> None:
    with service.unchanged():
        answer = client.post(client.account or "", {})
        assert answer.status == 200
        assert client.post(client.account or "", {"unknown": 1}).json == answer.json


@pytest.mark.parametrize("status", ["valid", "revoked", "", "DEACTIVATED", None, 5, ["deactivated"]])
def test_a19_other_statuses_are_refused(service: RunningService, client: AcmeClient, status: object) -> None:
    with service.unchanged():
        answer = client.post(client.account or "", {"status": status})
    if status is None:
        assert answer.json["status"] == "valid"
    else:
        assert answer.refusal == (400, "malformed")


def test_a19_a_deactivated_account_can_do_nothing(fresh_service: RunningService, fresh_client: AcmeClient) -> None:
    client = fresh_client
    order = client.order("a19.test")
    authorization = order.json["authorizations"][0]
    challenge = challenge_of(client.post(authorization).json, "http-01")["url"]
    issued = client.issue("b19.test")
    answer = client.post(client.account or "", {"status": "deactivated"})
    assert (answer.status, answer.json["status"]) == (200, "deactivated")

    targets: list[tuple[str, object]] = [
        (client.account or "", None),
        (client.account or "", {"contact": []}),
        (client.account or "", {"status": "deactivated"}),
        (f"{client.account}/orders", None),
        (client.directory["newOrder"], {"identifiers": [{"type": "dns", "value": "a19.test"}]}),
        (client.directory["newAuthz"], {"identifier": {"type": "dns", "value": "a19.test"}}),
        (client.directory["revokeCert"], {"certificate": "MAA"}),
        (client.directory["keyChange"], {}),
        (client.directory["newNonce"], None),
        (client.directory_url, None),
        (order.headers["Location"], None),
        (order.json["finalize"], {"csr": "MAA"}),
        (authorization, None),
        (challenge, {}),
        (issued.order.json["certificate"], None),
    ]
    with fresh_service.unchanged():
        for url, payload in targets:
            assert client.post(url, payload).refusal == (401, "unauthorized"), url
        assert client.new_account().refusal == (401, "unauthorized")
        assert client.new_account(onlyReturnExisting=True).refusal == (401, "unauthorized")


def test_a19_deactivation_cancels_pending_work_and_revokes_nothing(
    fresh_service: RunningService, fresh_client: AcmeClient
) -> None:
    client = fresh_client
    issued = client.issue("b19.test")
    client.order("a19.test")
    ready = client.ready_order("c19.test")
    revoked = fresh_service.state()["revocation"]
    client.post(client.account or "", {"status": "deactivated"})
    state = fresh_service.state()
    assert state["revocation"] == revoked
    assert "deactivated" in state["acme_account"][0]
    assert sum("'open'" in row for row in state["acme_order"]) == 0
    assert sum("'deactivated'" in row for row in state["acme_authorization"]) == 3
    assert fresh_service.ledger()[-1]["kind"] == "account.deactivated"
    key = ec.generate_private_key(ec.SECP256R1())
    assert client.finalize(ready, make_csr(["c19.test"], key)).refusal == (401, "unauthorized")
    # Whoever holds its key can still revoke the certificate (section 7.3.6).
    assert client.revoke(issued.der, key=JwsKey("ES256", issued.key)).status == 200


def test_a19_accounts_are_in_the_ledger(fresh_service: RunningService, new_client: NewClient) -> None:
    before = len(fresh_service.ledger())
    client = new_client(fresh_service)
    client.post(client.account or "", {"contact": ["mailto:secret-person@b.test"]})
    entries = fresh_service.ledger()[before:]
    assert [entry["kind"] for entry in entries] == ["account.created", "account.updated"]
    assert entries[0]["actor"] == f"account:{(client.account or '').rpartition('/')[2]}"
    assert "secret-person" not in repr(entries)
