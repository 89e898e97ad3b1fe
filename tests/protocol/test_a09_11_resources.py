"""STANDARDS A 9 to 11: GET, POST-as-GET, ownership, links, URLs, the order of checks (RFC 8555 sections 6.3 and 7.1)."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.acme_client import ABSENT, AcmeClient, JwsKey, Response, b64, challenge_of, make_csr
from fakes.service import NewClient, RunningService


def resources(client: AcmeClient) -> dict[str, str]:
    """One URL of every kind."""
    issued = client.issue("a09.test")
    order = client.order("a09.test")
    authorization = client.post(order.json["authorizations"][0]).json
    return {
        "account": client.account or "",
        "orders": f"{client.account}/orders",
        "order": order.headers["Location"],
        "finalize": order.json["finalize"],
        "authz": order.json["authorizations"][0],
        "challenge": challenge_of(authorization, "http-01")["url"],
        "certificate": issued.order.json["certificate"],
    }


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
def test_a09_resources_are_read_by_post_as_get(service: RunningService, client: AcmeClient, method: str) -> None:
    directory = client.directory
    targets = [directory[name] for name in ("newAccount", "newOrder", "newAuthz", "revokeCert", "keyChange")]
    targets += resources(client).values()
    with service.unchanged():
        for url in targets:
            answer = client.request(method, url)
            assert answer.status == 405, url
            assert answer.headers["Allow"] == "POST"
            if method != "HEAD":
                assert answer.problem == "malformed"


@pytest.mark.parametrize("resource", ["account", "orders", "order", "authz", "challenge", "certificate"])
def test_a09_post_as_get(service: RunningService, client: AcmeClient, resource: str) -> None:
    url = resources(client)[resource]
    with service.unchanged():
        answer = client.post(url)
    assert answer.status == 200
    if resource != "certificate":
        assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("resource", ["orders", "order", "certificate"])
@pytest.mark.parametrize("payload", [{}, [], b" ", b"null", {"status": "deactivated"}])
def test_a09_the_payload_of_a_post_as_get_is_empty(client: AcmeClient, resource: str, payload: object) -> None:
    assert client.post(resources(client)[resource], payload).refusal == (400, "malformed")


@pytest.mark.parametrize("name", ["newOrder", "newAuthz", "revokeCert", "keyChange"])
def test_a09_an_empty_payload_changes_nothing(service: RunningService, client: AcmeClient, name: str) -> None:
    with service.unchanged():
        assert client.post(client.directory[name]).refusal == (400, "malformed")


def test_a09_directory_and_nonce_answer_both_ways(client: AcmeClient) -> None:
    assert client.post(client.directory_url).json == client.request("GET", client.directory_url).json
    assert client.post(client.directory["newNonce"]).status == 204
    for url in (client.directory_url, client.directory["newNonce"]):
        assert client.post(url, {}).refusal == (400, "malformed")
        assert client.post(url, None, key=JwsKey()).refusal == (400, "malformed")


@pytest.mark.parametrize("resource", ["account", "orders", "order", "finalize", "authz", "challenge", "certificate"])
def test_a09_other_accounts_resources(
    service: RunningService, client: AcmeClient, new_client: NewClient, resource: str
) -> None:
    url = resources(client)[resource]
    stranger = new_client(service)
    payloads: dict[str, list[object]] = {
        "account": [None, {}, {"status": "deactivated"}, {"contact": ["mailto:a@b.test"]}],
        "finalize": [{"csr": b64(make_csr(["a09.test"], ec.generate_private_key(ec.SECP256R1())))}],
        "authz": [None, {"status": "deactivated"}],
        "challenge": [None, {}],
    }
    with service.unchanged():
        for payload in payloads.get(resource, [None]):
            assert stranger.post(url, payload).refusal == (403, "unauthorized")


@pytest.mark.parametrize("resource", ["order", "finalize", "authz", "challenge", "certificate"])
def test_a09_resources_that_are_not_there(client: AcmeClient, resource: str) -> None:
    url = resources(client)[resource]
    parts = url.split("/")
    parts[5] = ("0" * 32) if resource == "certificate" else "A" * 22
    payload = {"csr": "MAA"} if resource == "finalize" else None
    assert client.post("/".join(parts), payload).refusal == (404, "malformed")


def test_a09_a_challenge_of_another_type(client: AcmeClient) -> None:
    authorization = client.post(client.order("a09.test").json["authorizations"][0])
    url = challenge_of(authorization.json, "http-01")["url"].replace("http-01", "http-02")
    assert client.post(url).refusal == (404, "malformed")


@pytest.mark.parametrize(
    "path", ["/", "/acme", "/acme/", "/acme/order/x", "/acme/directory/", "/acme/../acme/directory"]
)
def test_a09_unknown_paths(client: AcmeClient, path: str) -> None:
    base = client.directory_url.removesuffix("/acme/directory")
    assert client.request("GET", base + path).refusal == (404, "malformed")


def assert_indexed(client: AcmeClient, answer: Response) -> None:
    """Every answer but the directory's points to the directory (section 7.1)."""
    assert answer.links.get("index") == [client.directory_url]


def test_a10_index_is_everywhere(client: AcmeClient) -> None:
    urls = resources(client)
    answers = [client.post(url) for name, url in urls.items() if name != "finalize"]
    answers += [
        client.request("HEAD", client.directory["newNonce"]),
        client.request("GET", client.directory["newNonce"]),
        client.new_account(),
        client.order("a10.test"),
        client.post(client.directory["newAuthz"], {"identifier": {"type": "dns", "value": "a10.test"}}),
        client.post(urls["challenge"], {}),
    ]
    issued = client.issue("a10.test")
    answers += [issued.order, client.revoke(issued.der)]
    for answer in answers:
        assert answer.status < 300
        assert_indexed(client, answer)


def test_a10_index_is_with_problems_too(client: AcmeClient) -> None:
    answers = [
        client.new_order("no name"),
        client.post(client.account or "", None, alg="none"),
        client.post(client.account or "", None, nonce=ABSENT),
        client.request("GET", client.directory["newOrder"]),
        client.request("GET", f"{client.directory['renewalInfo']}/a.b"),
    ]
    for answer in answers:
        assert answer.status >= 400
        assert_indexed(client, answer)


def test_a10_the_directory_does_not_point_to_itself(client: AcmeClient) -> None:
    assert "index" not in client.request("GET", client.directory_url).links
    assert "index" not in client.post(client.directory_url).links


def test_a10_up_leads_from_challenge_to_authorization(client: AcmeClient) -> None:
    url = client.order("a10.test").json["authorizations"][0]
    challenge = challenge_of(client.post(url).json, "http-01")
    assert client.post(challenge["url"]).links["up"] == [url]
    client.prepare("a10.test", challenge)
    assert client.post(challenge["url"], {}).links["up"] == [url]
    client.poll(url)
    assert client.post(challenge["url"]).links["up"] == [url]


def test_a11_urls_cannot_be_guessed(service: RunningService, client: AcmeClient) -> None:
    orders = [client.order("a11.test") for _ in range(8)]
    ids = [order.headers["Location"].rpartition("/")[2] for order in orders]
    ids += [order.json["authorizations"][0].rpartition("/")[2] for order in orders]
    assert len(set(ids)) == 16
    # Their beginnings may tell the time; at least 64 bits of each are chance.
    tails = [text[-12:-1] for text in ids]
    assert len(set(tails)) == 16
    for position in range(11):
        assert len({tail[position] for tail in tails}) > 4


def _broken(client: AcmeClient, faults: set[str]) -> Response:
    """A newOrder with all of ``faults`` at once."""
    url = client.directory["newOrder"]
    header: dict[str, Any] = {}
    if "alg" in faults:
        header["alg"] = "none"
    if "url" in faults:
        header["url"] = url + "x"
    if "nonce" in faults:
        header["nonce"] = b64(bytes(24))
    if "kid" in faults:
        header["kid"] = url
    payload: object = {} if "payload" in faults else {"identifiers": [{"type": "dns", "value": "a11.test"}]}
    jws = client.sign(url, payload, key=JwsKey() if "signature" in faults else None, **header)
    if "shape" in faults:
        jws["header"] = {}
    media_type = "text/plain" if "media type" in faults else "application/jose+json"
    return client.send(url, json.dumps(jws).encode(), content_type=media_type)


_CHECKS = [
    ("media type", (415, "malformed")),
    ("shape", (400, "malformed")),
    ("alg", (400, "badSignatureAlgorithm")),
    ("url", (403, "unauthorized")),
    ("nonce", (400, "badNonce")),
    ("kid", (400, "accountDoesNotExist")),
    ("signature", (400, "malformed")),
    ("payload", (400, "malformed")),
]


@pytest.mark.parametrize("first", range(len(_CHECKS)))
def test_a11_checks_come_in_order(service: RunningService, client: AcmeClient, first: int) -> None:
    faults = {name for name, _ in _CHECKS[first:]}
    with service.unchanged():
        answer = _broken(client, faults)
    assert answer.refusal == _CHECKS[first][1]


def test_a11_a_strangers_signature_learns_nothing_of_the_account(
    service: RunningService, new_client: NewClient
) -> None:
    victim = new_client(service)
    victim.post(victim.account or "", {"status": "deactivated"})
    # Without the key, a deactivated account looks like any other.
    answer = victim.post(victim.account or "", None, key=JwsKey())
    assert answer.refusal == (400, "malformed")
