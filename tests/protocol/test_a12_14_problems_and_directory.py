"""STANDARDS A 12 to 14: problem documents and the directory (RFC 8555 sections 6.6, 6.7 and 7.1.1)."""

import json
from urllib.parse import urlsplit

import pytest

from fakes.acme_client import AcmeClient
from fakes.service import NewClient, RunningService, StartService
from privyseal_acme.protocol.problems import STATUS

#: The registry of ACME error types (RFC 8555 section 9.7.4, RFC 9773 section 7.4) and the profiles draft.
REGISTERED = frozenset(
    [
        "accountDoesNotExist",
        "alreadyReplaced",
        "alreadyRevoked",
        "badCSR",
        "badNonce",
        "badPublicKey",
        "badRevocationReason",
        "badSignatureAlgorithm",
        "caa",
        "compound",
        "connection",
        "dns",
        "externalAccountRequired",
        "incorrectResponse",
        "invalidContact",
        "invalidProfile",
        "malformed",
        "orderNotReady",
        "rateLimited",
        "rejectedIdentifier",
        "serverInternal",
        "tls",
        "unauthorized",
        "unsupportedContact",
        "unsupportedIdentifier",
        "userActionRequired",
    ]
)
TERMS = "https://ca.test/terms/1"


def test_a12_only_registered_types() -> None:
    assert set(STATUS) <= REGISTERED


def test_a12_problem_documents_are_exact(client: AcmeClient) -> None:
    answer = client.new_order("*")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert set(answer.json) == {"type", "detail", "status", "subproblems"}
    assert answer.json["type"] == "urn:ietf:params:acme:error:malformed"
    assert answer.json["status"] == answer.status


def test_a12_a_problem_says_nothing_of_the_inside(client: AcmeClient) -> None:
    answers = [
        client.new_order("a" * 3000),
        client.post(client.directory["newOrder"], {"identifiers": [{"type": "dns", "value": 5}]}),
        client.post(client.directory["newOrder"], b"[" * 5000),
    ]
    for answer in answers:
        assert answer.refusal == (400, "malformed")
        assert len(answer.body) < 1000
        for word in ("Traceback", "pydantic", ".py", "https://errors"):
            assert word not in answer.body.decode()


def test_a12_the_answer_names_the_log_line(client: AcmeClient) -> None:
    first, second = client.new_order(), client.new_order()
    assert first.headers["X-Request-Id"] != second.headers["X-Request-Id"]


def test_a13_one_identifier_is_named_in_the_subproblem_only(client: AcmeClient) -> None:
    document = client.new_order("good.test", "bad_.test").json
    assert "identifier" not in document
    assert [item["identifier"] for item in document["subproblems"]] == [{"type": "dns", "value": "bad_.test"}]


def test_a13_each_refused_identifier_has_a_subproblem(service: RunningService, client: AcmeClient) -> None:
    identifiers = [
        {"type": "dns", "value": "good.test"},
        {"type": "dns", "value": "public.example.com"},
        {"type": "dns", "value": "bad_.test"},
        {"type": "email", "value": "a@good.test"},
    ]
    with service.unchanged():
        answer = client.post(client.directory["newOrder"], {"identifiers": identifiers})
    assert answer.refusal == (400, "compound")
    found = {item["identifier"]["value"]: item["type"].rpartition(":")[2] for item in answer.json["subproblems"]}
    assert found == {
        "public.example.com": "rejectedIdentifier",
        "bad_.test": "malformed",
        "a@good.test": "unsupportedIdentifier",
    }
    for item in answer.json["subproblems"]:
        assert item["detail"]
        assert set(item["identifier"]) == {"type", "value"}


def test_a13_alike_refusals_keep_their_type(client: AcmeClient) -> None:
    answer = client.new_order("a.example.com", "b.example.com")
    assert answer.refusal == (400, "rejectedIdentifier")
    assert len(answer.json["subproblems"]) == 2


def test_a13_terms_that_must_be_agreed_to(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(acme={"terms_of_service": TERMS})
    client = new_client(service, registered=False)
    with service.unchanged():
        answer = client.new_account(termsOfServiceAgreed=False)
    assert answer.refusal == (403, "userActionRequired")
    assert answer.json["instance"] == TERMS
    assert answer.links["terms-of-service"] == [TERMS]


@pytest.mark.parametrize("limit", ["new_accounts", "new_orders", "failed_validations"])
def test_a13_rate_limits(start_service: StartService, new_client: NewClient, limit: str) -> None:
    service = start_service(limits={limit: 2, f"{limit}_period": 3600})
    client = new_client(service)
    if limit == "new_accounts":
        new_client(service)
        refused = new_client(service, registered=False).new_account()
    elif limit == "new_orders":
        client.order("a13.test")
        client.order("a13.test")
        refused = client.new_order("a13.test")
    else:
        for _ in range(2):
            url = client.order("a13.test").json["authorizations"][0]
            challenges = client.post(url).json["challenges"]
            client.post(next(item["url"] for item in challenges if item["type"] == "http-01"), {})
            assert client.poll(url).json["status"] == "invalid"
        refused = client.new_order("a13.test")

    assert refused.refusal == (429, "rateLimited")
    seconds = int(refused.headers["Retry-After"])
    assert 1 <= seconds <= 1800
    limits = client.request("GET", refused.links["help"][0])
    assert limits.json[limit] == 2

    service.clock.advance(seconds)
    if limit == "new_accounts":
        new_client(service)
    else:
        client.nonce = None
        assert client.new_order("a13.test").status == 201


def test_a13_a_known_account_is_found_whatever_the_limit(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(limits={"new_accounts": 1})
    client = new_client(service)
    assert client.new_account().status == 200


def test_a13_statuses(client: AcmeClient) -> None:
    assert STATUS["unauthorized"] == STATUS["orderNotReady"] == 403
    assert STATUS["rateLimited"] == 429
    assert STATUS["alreadyReplaced"] == 409
    assert STATUS["serverInternal"] == 500
    assert client.post(client.order("a13.test").json["finalize"], {"csr": "MAA"}).refusal == (403, "orderNotReady")


def test_a14_the_directory(service: RunningService, client: AcmeClient) -> None:
    answer = client.request("GET", client.directory_url)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    directory = answer.json
    base = service.settings.server.public_https
    resources = {"newNonce", "newAccount", "newOrder", "newAuthz", "revokeCert", "keyChange", "renewalInfo"}
    assert set(directory) == resources | {"meta"}
    assert all(directory[name].startswith(f"{base}/acme/") for name in resources)
    assert set(directory["meta"]) == {"externalAccountRequired", "profiles"}
    assert directory["meta"]["externalAccountRequired"] is False
    assert client.request("HEAD", client.directory_url).status == 200


def test_a14_meta(start_service: StartService, new_client: NewClient) -> None:
    service = start_service(
        acme={"terms_of_service": TERMS, "website": "https://ca.test/", "external_account_required": True},
        validation={"caa": True, "caa_identities": ("ca.test",)},
    )
    meta = new_client(service, registered=False).directory["meta"]
    assert meta["termsOfService"] == TERMS
    assert meta["website"] == "https://ca.test/"
    assert meta["caaIdentities"] == ["ca.test"]
    assert meta["externalAccountRequired"] is True


def test_a14_what_the_directory_names_is_there(client: AcmeClient) -> None:
    for name, url in client.directory.items():
        if name == "meta":
            continue
        if name == "renewalInfo":
            answer = client.request("GET", f"{url}/AAAA.AQ")
            assert answer.json["detail"] != "There is no such resource."
        elif name != "newNonce":
            assert client.post(url, {}).status in {400, 403}, name


def test_a14_the_directory_is_json_that_others_read(client: AcmeClient) -> None:
    body = client.request("GET", client.directory_url).body
    assert json.loads(body.decode("ascii")) == client.directory
    assert urlsplit(client.directory["newOrder"]).scheme == "https"
